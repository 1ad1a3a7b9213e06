"""What each piece of the loop is worth: `fit` as it is, against `fit` with the piece undone.

`python benchmarks/pieces.py` prints a table. The two take turns in one process; `times as fast` is
the median of the ratios of turns, and the ratio of the best times. Above 1, the piece pays. The
last two rows are the price of what a run promises and shows.
"""

import argparse
import contextlib
import statistics
import time
from dataclasses import replace
from typing import Any

import jax
from rivals.equinox_models import model, optimizer
from rivals.ours import Terminal, loss_of
from workloads import workload

import vernal
from vernal._limits import limits

# what is undone -> on which workload; the limits, the trainer's choices or fit's arguments for it
PIECES: dict[str, tuple[str, dict[str, Any]]] = {
    "many steps a call, not a few": ("c", {"limits": {"superbatch_steps": 8}}),
    "chunks of 0.25 s, not of 1 ms": ("c", {"limits": {"chunk_seconds": 1e-3}}),
    "small epochs in one superbatch": ("h2", {"limits": {"superbatch_steps": 1}}),
    "gathered by NumPy, not by XLA": ("e", {"limits": {"gathers_on_host": False}}),
    "convolutions outside of loops": ("f", {"limits": {"loops_convolutions": True}}),
    "numbers that stop being finite": ("c", {"trainer": {"on_nonfinite": "ignore"}}),
    "the progress bar": ("c", {"fit": {"progress": False}}),
}


def measure(name: str, undone: dict[str, Any], turns: int) -> tuple[float, float]:
    """How many times as fast a workload is than with something undone."""
    w = workload(name)
    made, data = model(w, jax.random.key(0)), w.data()
    trainer = vernal.Trainer(optimizer(w), loss_of(w))
    options = {"epochs": w.epochs, "batch_size": w.batch_size}
    without = replace(trainer, **undone.get("trainer", {}))
    seconds = [], []
    for turn in range(-1, turns):
        for side, (fitted, changes, arguments) in enumerate(
            ((trainer, {}, {}), (without, undone.get("limits", {}), undone.get("fit", {})))
        ):
            start = time.perf_counter()
            with limits(**changes), contextlib.redirect_stderr(Terminal()):
                state, _ = fitted.fit(made, data, **options, **arguments)
                jax.block_until_ready(jax.tree.leaves(state.opt_state))
            if turn >= 0:
                seconds[side].append(time.perf_counter() - start)
    ratios = [b / a for a, b in zip(*seconds, strict=True)]
    return statistics.median(ratios), min(seconds[1]) / min(seconds[0])


def main() -> None:
    """Measure all of them, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--only", nargs="*", default=list(PIECES), choices=list(PIECES))
    options = parser.parse_args()
    print("| piece | workload | times as fast: turns, best |\n|---|---|---|")
    for piece in options.only:
        name, undone = PIECES[piece]
        told = measure(name, undone, options.turns)
        print(f"| {piece} | ({name}) | {told[0]:.2f}, {told[1]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
