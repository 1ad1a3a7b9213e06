"""What checking model, loss and data costs beside the first compilation.

`python benchmarks/preflight.py [repeats]` starts a fresh process for each model and repeat, and
prints medians: of the check alone, the first time that this process makes it, and of a first `fit`
of one epoch, which makes the check and compiles.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import vernal
from vernal import losses
from vernal._training.objective import Objective
from vernal._training.preflight.trace import Preflight


class Attention(eqx.Module):
    """One block of a transformer, and a head."""

    attention: eqx.nn.MultiheadAttention
    norms: tuple[eqx.nn.LayerNorm, eqx.nn.LayerNorm]
    mlp: eqx.nn.MLP
    head: eqx.nn.Linear

    def __init__(self, size, *, key):
        keys = jax.random.split(key, 3)
        self.attention = eqx.nn.MultiheadAttention(4, size, key=keys[0])
        self.norms = (eqx.nn.LayerNorm(size), eqx.nn.LayerNorm(size))
        self.mlp = eqx.nn.MLP(size, size, 4 * size, 1, jax.nn.gelu, key=keys[1])
        self.head = eqx.nn.Linear(size, 10, key=keys[2])

    def __call__(self, x):
        h = jax.vmap(self.norms[0])(x)
        x = x + self.attention(h, h, h)
        x = x + jax.vmap(self.mlp)(jax.vmap(self.norms[1])(x))
        return self.head(x.mean(0))


def cnn(key):
    keys = jax.random.split(key, 3)
    return eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(1, 16, 3, key=keys[0]),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.MaxPool2d(2, 2),
            eqx.nn.Conv2d(16, 32, 3, key=keys[1]),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.MaxPool2d(2, 2),
            eqx.nn.Lambda(jnp.ravel),
            eqx.nn.Linear(800, 10, key=keys[2]),
        ]
    )


MODELS: dict[str, tuple[Callable[[Any], Any], tuple[int, ...]]] = {
    "MLP": (lambda key: eqx.nn.MLP(20, 10, 64, 3, key=key), (20,)),
    "CNN": (cnn, (1, 28, 28)),
    "attention": (lambda key: Attention(32, key=key), (16, 32)),
}


def measure(name: str) -> tuple[float, float]:
    """The seconds that the check takes, and a first fit, in this process."""
    make, shape = MODELS[name]
    model = make(jax.random.key(0))
    x = np.random.default_rng(0).normal(size=(256, *shape)).astype(np.float32)
    y = np.arange(256) % 10
    trainer = vernal.Trainer(optax.adam(1e-3), losses.CrossEntropy())
    # The check is timed on another number of examples, so that `fit` finds nothing done for it;
    # what JAX itself does once in a process, such as starting its backend, `make` has done.
    started = time.perf_counter()
    Preflight(Objective(trainer.loss, {}, None), model, None).check((x[1:], y[1:]))
    check = time.perf_counter() - started
    jax.clear_caches()
    started = time.perf_counter()
    trainer.fit(model, (x, y), epochs=1, batch_size=32, progress=False)
    return check, time.perf_counter() - started


def main():
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    seconds = {name: [] for name in MODELS}
    for _ in range(repeats):
        for name, found in seconds.items():
            run = [sys.executable, __file__, "--one", name]
            done = subprocess.run(run, env=environment, capture_output=True, check=True)
            found.append(tuple(map(float, done.stdout.split())))
    print("| model | check, ms | first fit, ms | check / first fit |")
    print("| --- | ---: | ---: | ---: |")
    for name, found in seconds.items():
        check, fit = map(statistics.median, zip(*found, strict=True))
        print(f"| {name} | {1e3 * check:.0f} | {1e3 * fit:.0f} | {check / fit:.1%} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(*measure(sys.argv[2]))
    else:
        main()
