"""How much memory a large state takes: three steps of Adam on 300 million parameters.

`python benchmarks/large_state.py` prints the peak of each process's memory, as Linux counts it:
a loop written by hand that gives its buffers away and keeps the caller's model, and `fit`: alone,
with checkpoints, with `BestState`, and with both. Each is a process of its own. `--width 2048`
makes a model of 17 million.
"""

import argparse
import functools
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import vernal
from vernal import losses

DEPTH, STEPS, EXAMPLES, FEATURES = 5, 3, 16, 64
# What `fit` is given: a checkpoint after each step, and what keeps the best state.
GIVEN = {
    "fit": (False, False),
    "fit, checkpoints": (True, False),
    "fit, best state": (False, True),
    "fit, both": (True, True),
}
WAYS = ("nothing", "by hand", *GIVEN)


@eqx.filter_jit
def made(width: int):
    """A network, drawn in one program."""
    return eqx.nn.MLP(FEATURES, 1, width, DEPTH, key=jax.random.key(0))


def by_hand(model, optimizer, x, y):
    """The loop that Equinox's documentation teaches, with its buffers given away."""
    params, static = eqx.partition(model, eqx.is_inexact_array)
    params = jax.tree.map(jnp.copy, params)  # the caller's model stays
    opt_state = optimizer.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, opt_state):
        def loss(params):
            return jnp.mean((jax.vmap(eqx.combine(params, static))(x) - y) ** 2)

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    values = []
    for _ in range(STEPS):
        params, opt_state, value = step(params, opt_state)
        values.append(value)
    return params, opt_state, values


def run(way: str, width: int) -> None:
    """Train in one way, and print the peak of memory in bytes, and the seconds."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(EXAMPLES, FEATURES)).astype(np.float32)
    y = rng.normal(size=(EXAMPLES, 1)).astype(np.float32)
    optimizer = optax.adam(1e-4)
    model = made(width)
    start = time.perf_counter()
    kept: list = [model]
    if way == "by hand":
        kept += by_hand(model, optimizer, x, y)
    elif way != "nothing":
        trainer = vernal.Trainer(optimizer, losses.MeanSquaredError())
        saves, keeps_best = GIVEN[way]
        with tempfile.TemporaryDirectory() as folder:
            checkpoints = vernal.Checkpoints(Path(folder) / "run", every_epochs=1, keep=1)
            kept += trainer.fit(
                model,
                (x, y),
                epochs=STEPS,
                checkpoints=checkpoints if saves else None,
                callbacks=[vernal.callbacks.BestState("loss")] if keeps_best else [],
            )
    jax.block_until_ready(jax.tree.leaves(eqx.filter(kept, eqx.is_array)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(peak, time.perf_counter() - start)


def main() -> None:
    """Run each way in a process of its own, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--width", type=int, default=8640)
    parser.add_argument("--way", choices=WAYS, help="run one, in this process")
    asked = parser.parse_args()
    if asked.way:
        run(asked.way, asked.width)
        return

    shapes = eqx.filter_eval_shape(made, asked.width)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes) if hasattr(leaf, "size"))
    print(f"{parameters:,} parameters, {4 * parameters / 2**30:.2f} GiB\n")
    print("| Way | Peak, GiB | Times the model | s |\n|---|---|---|---|")
    for way in WAYS:
        command = [sys.executable, __file__, "--width", str(asked.width), "--way", way]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peak, seconds = map(float, done.stdout.split())
        model = peak / (4 * parameters)
        print(f"| {way} | {peak / 2**30:.2f} | {model:.2f} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
