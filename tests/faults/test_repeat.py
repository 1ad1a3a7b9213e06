"""The same script in fresh processes, with keys checked, and in both precisions."""

import subprocess
import sys

import pytest
from runs import RUNS


@pytest.mark.long  # the next test makes the hash in another process, too
def test_the_same_script_in_fresh_processes_makes_one_hash(script, expected, tmp_path, tried):
    made = {script.run("dropout", tmp_path / str(number)).hash for number in range(20)}
    assert made == {expected("dropout")}
    tried("the same script in a fresh process", 20)


@pytest.mark.parametrize("name", RUNS)
def test_no_key_is_used_twice(name, script, expected, tmp_path, long, tried):
    if not long and name != "dropout":
        pytest.skip("in nox -s faults")
    checked = script.run(name, tmp_path / "checked", JAX_DEBUG_KEY_REUSE="1")
    assert checked.status == 0, checked.error
    assert checked.hash == expected(name)
    tried("a run with JAX's check that no key is used twice")


DTYPES_AND_DEVICES = """
import contextlib, sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np, optax, vernal
from jax.sharding import NamedSharding, PartitionSpec
from vernal import losses, nn

directory = Path(sys.argv[1])
trainer = vernal.Trainer(optax.sgd(1e-2, momentum=0.9), losses.MeanSquaredError())

def arrays(tree):
    return [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]

def dtypes(tree):
    return [leaf.dtype for leaf in arrays(tree)]

for wide, names in KINDS.items():
    jax.config.update("jax_enable_x64", wide)
    for dtype in map(np.dtype, names):
        run = directory / f"{wide} {np.dtype(dtype)}"
        model = nn.MLP(2, 1, 4, 1, dtype=dtype, key=jax.random.key(0))
        data = np.ones((8, 2), dtype), np.ones((8, 1), dtype)
        start = trainer.init(model)
        first, _ = trainer.fit(start, data, epochs=3, checkpoints=vernal.Checkpoints(run))
        again, history = trainer.fit(start, data, epochs=3, checkpoints=vernal.Checkpoints(run))
        assert dtypes(start) == dtypes(first) == dtypes(again)
        assert all(leaf == dtype for leaf in dtypes(again.model))
        assert len(history.steps["loss"]) == 3 and int(again.step) == 3
        vernal.save(run / "model", first.model)
        loaded = vernal.load(run / "model", model)
        assert dtypes(loaded) == dtypes(model)
        for a, b in zip(arrays(loaded), arrays(first.model), strict=True):
            assert np.array_equal(a, b)

mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

def sharded(leaf):
    if not isinstance(leaf, jax.Array):
        return leaf
    divides = leaf.ndim > 0 and leaf.shape[0] % 4 == 0
    spec = PartitionSpec("data") if divides else PartitionSpec()
    return jax.device_put(leaf, NamedSharding(mesh, spec))

state = jax.tree.map(sharded, trainer.init(nn.MLP(2, 1, 4, 1, key=jax.random.key(0))))
checkpoints = vernal.Checkpoints(directory / "sharded")
data = np.ones((4, 2)), np.ones((4, 1))
checked, _ = trainer._checked(state, data, None, batch_size=None, shuffle=False)
beginning = vernal._training.checkpointer.Beginning(
    state,
    settings={},
    objective=trainer._objective,
    data=checked,
    validation_data=None,
)
with contextlib.closing(checkpoints.open()) as checkpointer:
    assert checkpointer.restore(beginning) is None
    checkpointer.save(vernal._training.checkpointer.RunState(
        state=state,
        last_epoch=1,
        record={},
        callbacks=[("Kept", state)],
        pending=False,
        stopped=False,
    ))
with contextlib.closing(checkpoints.open()) as checkpointer:
    run = checkpointer.restore(beginning)
for restored in (run.state, run.callbacks[0][1]):
    for a, b in zip(arrays(state), arrays(restored), strict=True):
        assert a.dtype == b.dtype and a.sharding == b.sharding and a.committed == b.committed
loaded = vernal.load(directory / "sharded", state.model)
assert len(loaded.layers[0].weight.sharding.device_set) == 4
"""


# Without and with double precision.
FEW_KINDS = {False: ["float16"], True: ["float64", "bfloat16"]}
KINDS = {False: ["float32", "bfloat16", "float16"], True: ["float64", "bfloat16", "float16"]}


def test_dtypes_and_devices_stay_through_steps_and_a_restore(script, tmp_path, long):
    environment = {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # nothing is computed that could round otherwise
    }
    program = f"KINDS = {KINDS if long else FEW_KINDS}\n{DTYPES_AND_DEVICES}"
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env=script.environment | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
