"""How long a run takes to start, over the number of arrays in the model: by hand, and in `fit`.

`python benchmarks/leaves.py` prints the seconds of the first three steps, compilation included, of
models of many small arrays, and of a network of many layers. Each is a process of its own.
"""

import argparse
import subprocess
import sys
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import vernal
from vernal import losses

STEPS, EXAMPLES, FEATURES = 3, 32, 8
SIZES = {"arrays": (100, 1_000), "layers": (50, 500)}


class Arrays(eqx.Module):
    """A linear model of many arrays, each of a few weights."""

    weights: list

    def __init__(self, number: int):
        self.weights = [jnp.full(FEATURES, 1 / number) for _ in range(number)]

    def __call__(self, x):
        return jnp.sum(jnp.stack(self.weights) @ x, keepdims=True)


class Layers(eqx.Module):
    """A network of many layers, each added to what it is given."""

    layers: list

    def __init__(self, number: int):
        keys = jax.random.split(jax.random.key(0), number)
        self.layers = [eqx.nn.Linear(FEATURES, FEATURES, key=key) for key in keys]

    def __call__(self, x):
        for layer in self.layers:
            x = x + jnp.tanh(layer(x)) / len(self.layers)
        return x[:1]


def by_hand(model, optimizer, x, y):
    """The loop that Equinox's documentation teaches."""

    @eqx.filter_jit
    def step(model, opt_state):
        def loss(model):
            return jnp.mean((jax.vmap(model)(x) - y) ** 2)

        value, grads = eqx.filter_value_and_grad(loss)(model)
        updates, opt_state = optimizer.update(grads, opt_state, model)
        return eqx.apply_updates(model, updates), opt_state, value

    opt_state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
    values = []
    for _ in range(STEPS):
        model, opt_state, value = step(model, opt_state)
        values.append(value)
    return float(values[-1])


def run(kind: str, number: int, way: str) -> None:
    """Train a model in one way, and print the seconds."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(EXAMPLES, FEATURES)).astype(np.float32)
    y = x[:, :1]
    model = {"arrays": Arrays, "layers": Layers}[kind](number)
    optimizer = optax.sgd(1e-3, momentum=0.9)
    jax.block_until_ready(jax.tree.leaves(eqx.filter(model, eqx.is_array)))
    start = time.perf_counter()
    if way == "by hand":
        by_hand(model, optimizer, x, y)
    else:
        trainer = vernal.Trainer(optimizer, losses.MeanSquaredError())
        trainer.fit(model, (x, y), epochs=STEPS, progress=False)
    print(time.perf_counter() - start)


def seconds(kind: str, number: int, way: str) -> float:
    """Return how long a model takes to start, in a process of its own."""
    command = [sys.executable, __file__, "--kind", kind, "--number", str(number), "--way", way]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kind", choices=SIZES)
    parser.add_argument("--number", type=int)
    parser.add_argument("--way", choices=("by hand", "fit"), help="run one, in this process")
    asked = parser.parse_args()
    if asked.way:
        run(asked.kind, asked.number, asked.way)
        return

    print("| Model | by hand, s | fit, s | fit / by hand |\n|---|---|---|---|")
    for kind, numbers in SIZES.items():
        for number in numbers:
            hand, fit = (seconds(kind, number, way) for way in ("by hand", "fit"))
            print(f"| {number:,} {kind} | {hand:.1f} | {fit:.1f} | {fit / hand:.2f} |", flush=True)


if __name__ == "__main__":
    main()
