"""`trainer.step` against a step written by hand: speed, by turns.

`python benchmarks/step.py [workloads]` prints for each workload the time of a step of each, and how
many times as fast `trainer.step` is: the median of the ratios of turns, and the ratio of the best
times. Both train the same model on one batch, again and again: in a loop of Python, where the step
by hand is compiled by `eqx.filter_jit`, and within a `jax.lax.scan` of the user's own.
"""

import argparse
import statistics
import time

import equinox as eqx
import jax
import numpy as np
from rivals.by_hand import step_of, update_of
from rivals.equinox_models import model, optimizer
from rivals.ours import loss_of
from workloads import Workload, workload

import vernal

TURN = 0.4  # seconds that a turn takes at least


def by_hand(w: Workload, batch):
    """Return a function that makes so many steps, written by hand."""
    tx, step = step_of(w)
    start = model(w, jax.random.key(0))

    def run(steps: int):
        trained, opt_state = start, tx.init(eqx.filter(start, eqx.is_inexact_array))
        loss = None
        for _ in range(steps):
            trained, opt_state, loss = step(trained, opt_state, *batch)
        jax.block_until_ready(loss)

    return run


def by_trainer(w: Workload, batch):
    """Return a function that makes so many steps by `trainer.step`."""
    trainer = vernal.Trainer(optimizer(w), loss_of(w))
    start = trainer.init(model(w, jax.random.key(0)))

    def run(steps: int):
        state, info = start, {}
        for _ in range(steps):
            state, info = trainer.step(state, batch)
        jax.block_until_ready(info)

    return run


def by_scan(update, start, batch):
    """Return a function that makes so many steps in a `jax.lax.scan`."""

    @eqx.filter_jit
    def scanned(carry, batch, steps):
        return jax.lax.scan(lambda carry, _: update(carry, batch), carry, steps)

    def run(steps: int):
        jax.block_until_ready(scanned(start, batch, np.zeros(steps)))

    return run


def scans(w: Workload, batch):
    """Return both scans: of `trainer.step`, and of the update by hand."""
    trainer = vernal.Trainer(optimizer(w), loss_of(w))
    start = trainer.init(model(w, jax.random.key(0)))
    arrays, static = eqx.partition(start, eqx.is_array)

    def step(arrays, batch):
        state, info = trainer.step(eqx.combine(arrays, static), batch)
        return eqx.filter(state, eqx.is_array), info["loss"]

    update, carry, _ = update_of(w)
    return by_scan(step, arrays, batch), by_scan(update, carry, batch)


def seconds(run, steps: int) -> float:
    """Return how long so many steps take."""
    began = time.perf_counter()
    run(steps)
    return time.perf_counter() - began


def main() -> None:
    """Compare, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("workloads", nargs="*", default=list("acdeg"))
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    print("| workload | | `trainer.step`, µs | by hand, µs | speed: turns, best |")
    print("|---|---|---|---|---|")
    for name in options.workloads:
        w = workload(name)
        batch = jax.device_put(tuple(part[: w.batch_size] for part in w.data()))
        pairs = {"in Python": (by_trainer(w, batch), by_hand(w, batch)), "scan": scans(w, batch)}
        for where, (ours, theirs) in pairs.items():
            theirs(10)  # compiles
            steps = max(1, round(TURN / (seconds(theirs, 10) / 10)))
            for run in (ours, theirs):
                run(steps)  # compiles a scan of so many
            times = [(seconds(ours, steps), seconds(theirs, steps)) for _ in range(options.turns)]
            turns = statistics.median(b / a for a, b in times)
            best = [min(each) / steps * 1e6 for each in zip(*times, strict=True)]
            speed = f"{turns:.2f}, {best[1] / best[0]:.2f}"
            print(f"| ({name}) | {where} | {best[0]:.0f} | {best[1]:.0f} | {speed} |")


if __name__ == "__main__":
    main()
