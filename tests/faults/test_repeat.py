"""The same script in fresh processes, with keys checked, and in both precisions."""

import subprocess
import sys

import pytest
from runs import RUNS


def test_the_same_script_in_fresh_processes_makes_one_hash(script, expected, tmp_path, long, tried):
    times = 20 if long else 1
    made = {script.run("dropout", tmp_path / str(number)).hash for number in range(times)}
    assert made == {expected("dropout")}
    tried("the same script in a fresh process", times)


@pytest.mark.parametrize("name", RUNS)
def test_no_key_is_used_twice(name, script, expected, tmp_path, long, tried):
    if not long and name != "dropout":
        pytest.skip("in nox -s faults")
    checked = script.run(name, tmp_path / "checked", JAX_DEBUG_KEY_REUSE="1")
    assert checked.status == 0, checked.error
    assert checked.hash == expected(name)
    tried("a run with JAX's check that no key is used twice")


@pytest.mark.parametrize("wide", ["0", "1"], ids=["float32", "float64"])
def test_dtypes_stay_through_updates_and_a_restore(wide, script, tmp_path):
    code = f"""
import jax, jax.numpy as jnp, numpy as np, optax, equinox as eqx, vernal
from vernal import nn, losses
dtypes = [jnp.float64 if {wide} else jnp.float32, jnp.bfloat16, jnp.float16]
for number, dtype in enumerate(dtypes):
    model = nn.MLP(2, 1, 4, 1, dtype=dtype, key=jax.random.key(0))
    data = np.ones((8, 2), dtype), np.ones((8, 1), dtype)
    trainer = vernal.Trainer(optax.sgd(1e-2, momentum=0.9), losses.MeanSquaredError())
    start = trainer.init(model)
    of = lambda tree: [leaf.dtype for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_array))]
    checkpoints = vernal.Checkpoints(f"{tmp_path}/{{number}}")
    first, _ = trainer.fit(start, data, epochs=3, checkpoints=checkpoints)
    again, history = trainer.fit(start, data, epochs=3, checkpoints=checkpoints)
    assert of(start) == of(first) == of(again), (of(start), of(first), of(again))
    assert all(leaf == dtype for leaf in of(again.model))
    assert len(history.steps["loss"]) == 3 and int(again.step) == 3
    vernal.save(f"{tmp_path}/{{number}}.safetensors", first.model)
    loaded = vernal.load(f"{tmp_path}/{{number}}.safetensors", model)
    assert of(loaded) == of(model)
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(first.model)):
        assert not eqx.is_array(a) or np.array_equal(a, b)
"""
    environment = script.environment | {"JAX_ENABLE_X64": wide}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
