"""A sweep against a vmapped loop written by hand, and against `fit` one after another, by turns.

`python benchmarks/sweep.py` prints for each workload how many times as fast the sweep is: the
median of the ratios of turns, and the ratio of the best times. By hand, the states of all models
are stacked, and `jax.lax.scan` runs `jax.vmap` of a step, or `jax.lax.map` of it, over the batches
of each epoch, which NumPy draws in an order that all models share; the faster of the two counts.
`python benchmarks/sweep.py a --members 16` measures one workload with so many models.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rivals.equinox_models import model, optimizer
from rivals.ours import loss_of
from workloads import Workload, workload

import vernal

# How many models, and how long to train them: so that a run takes a third of a second or more.
RUNS = {"a": (64, 100_000), "b": (16, 60), "c": (16, 8), "d": (8, 1)}


def by_hand(w: Workload, data: Any, models: list, in_turn: bool) -> Callable[[], Any]:
    """Make the loop written by hand: of all models at once, or one after the other."""
    optimize = optimizer(w)
    parts = [eqx.partition(each, eqx.is_inexact_array) for each in models]
    params, static = zip(*parts, strict=True)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    x, y = data
    size = w.batch_size or len(x)

    def step(carry, batch):
        params, opt_state = carry
        x, y = batch

        def loss(params):
            outputs = jax.vmap(eqx.combine(params, static[0]))(x)
            return jnp.mean((outputs - y) ** 2)

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = optimize.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    def one_step(carry, batch):
        if in_turn:
            return jax.lax.map(partial(step, batch=batch), carry)
        return jax.vmap(step, in_axes=(0, None))(carry, batch)

    @partial(jax.jit, donate_argnums=0)
    def epoch(carry, batches):
        return jax.lax.scan(one_step, carry, batches)

    @partial(jax.jit, donate_argnums=0, static_argnums=2)
    def full_batch(carry, batch, steps):
        return jax.lax.scan(lambda carry, _: one_step(carry, batch), carry, length=steps)

    def run():
        rng = np.random.default_rng(0)
        carry = jax.tree.map(jnp.copy, stacked), jax.vmap(optimize.init)(stacked)
        if w.batch_size is None:
            return full_batch(carry, (x, y), w.epochs)
        losses = None
        for _ in range(w.epochs):
            rows = rng.permutation(len(x))[: len(x) // size * size].reshape(-1, size)
            carry, losses = epoch(carry, (x[rows], y[rows]))
        return carry, losses

    return run


def runs(w: Workload, members: int) -> dict[str, Callable[[], Any]]:
    """Return by name what is compared."""
    keys = jax.random.split(jax.random.key(0), members)
    trainer = vernal.Trainer(optimizer(w), loss_of(w))
    options = {"epochs": w.epochs, "batch_size": w.batch_size, "progress": False}
    data = w.data()
    if w.batch_size is not None:  # by hand, no smaller last batch
        data = tuple(part[: len(part) // w.batch_size * w.batch_size] for part in data)
    models = [model(w, key) for key in keys]
    sweep = vernal.Sweep(trainer, partial(model, w), keys=keys)

    def in_sweep(shuffle):
        return [state.opt_state for state in sweep.fit(data, shuffle=shuffle, **options)]

    def one_after_another():
        pairs = zip(models, keys, strict=True)
        return [trainer.fit(each, data, key=key, **options)[0].opt_state for each, key in pairs]

    return {
        "sweep": partial(in_sweep, "shared"),
        "own orders": partial(in_sweep, True),
        "by hand, at once": by_hand(w, data, models, in_turn=False),
        "by hand, in turn": by_hand(w, data, models, in_turn=True),
        "`fit`, one after another": one_after_another,
    }


def seconds(function: Callable[[], Any]) -> float:
    """Return how long a call takes."""
    began = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - began


def main() -> None:
    """Compare, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("workloads", nargs="*", default=list(RUNS))
    parser.add_argument("--members", type=int, help="how many models")
    parser.add_argument("--epochs", type=int, help="of each run")
    parser.add_argument("--turns", type=int, default=5)
    asked = parser.parse_args()
    print("| | models | sweep, s | own orders | best by hand | `fit`, one after another |")
    print("|---|---|---|---|---|---|")
    for letter in asked.workloads:
        members, epochs = RUNS[letter]
        members, epochs = asked.members or members, asked.epochs or epochs
        w = replace(workload(letter), epochs=epochs)
        compared = runs(w, members)
        for function in compared.values():
            function()
        times = [{name: seconds(run) for name, run in compared.items()} for _ in range(asked.turns)]
        best = {name: min(each[name] for each in times) for name in compared}

        def ratio(rivals: list[str], best: dict = best, times: list = times) -> str:
            rival = min(rivals, key=best.__getitem__)
            turns = statistics.median(each[rival] / each["sweep"] for each in times)
            return f"{turns:.2f}, {best[rival] / best['sweep']:.2f}"

        columns = ["own orders"], ["by hand, at once", "by hand, in turn"], [[*compared][-1]]
        cells = " | ".join(ratio(rivals) for rivals in columns)
        print(f"| ({letter}) | {members} | {best['sweep']:.2f} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
