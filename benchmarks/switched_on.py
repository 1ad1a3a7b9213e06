"""What everything that can be switched on costs: one by one, and all together.

`python benchmarks/switched_on.py` prints how fast `fit` is with each, relative to a plain `fit` of
the same model: the median of turns, and the best. `python benchmarks/switched_on.py c` measures one
workload.
"""

import argparse
import contextlib
import functools
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rivals.equinox_models import model, optimizer
from rivals.ours import Terminal, loss_of
from workloads import workload

import vernal
from vernal import callbacks, metrics

EPOCHS = {"c": 400, "d": 10}  # so that a run takes seconds


def error_to_the(power):
    """A metric of one's own: some power of the error's size."""

    def metric(prediction, target):
        return jax.numpy.mean(jax.numpy.abs(prediction - target) ** power)

    return metric


METRICS = {
    "mae": metrics.mean_absolute_error,
    "r2": metrics.r2,
    "cubed": error_to_the(3),
    "rooted": error_to_the(0.5),
}


def switched_on(name: str, data: Any, folder: Path) -> dict[str, dict[str, Any]]:
    """What a trainer and `fit` get when something is switched on."""
    tenth = jax.tree.map(lambda array: array[: len(array) // 10], data)
    if name == "validation every epoch":
        return {"fit": {"validation_data": tenth}}
    if name == "BestState":
        return {"fit": {"callbacks": [callbacks.BestState("loss")]}}
    if name == "EarlyStopping":
        return {"fit": {"callbacks": [callbacks.EarlyStopping("loss", patience=10**6)]}}
    if name == "CSVLog":
        return {"fit": {"callbacks": [callbacks.CSVLog(folder / "log.csv")]}}
    if name == "four metrics":
        return {"trainer": {"metrics": METRICS}}
    if name == "averaged weights":
        return {"trainer": {"eval_params": vernal.averaged}}
    if name == "a checkpoint every second":
        return {"fit": {"checkpoints": vernal.Checkpoints(folder / "run", every_seconds=1)}}
    return {"fit": {"progress": "bar"}}


NAMES = (
    "validation every epoch",
    "BestState",
    "EarlyStopping",
    "CSVLog",
    "four metrics",
    "averaged weights",
    "a checkpoint every second",
    "the progress bar",
)
TOGETHER = "all together"


def merged(parts: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """All of them at once."""
    whole: dict[str, dict[str, Any]] = {"trainer": {}, "fit": {"callbacks": []}}
    for part in parts:
        whole["trainer"] |= part.get("trainer", {})
        fit = dict(part.get("fit", {}))
        whole["fit"]["callbacks"] += fit.pop("callbacks", [])
        whole["fit"] |= fit
    return whole


def seconds(w: Any, made: Any, data: Any, name: str | None, trainer_of: Any) -> float:
    """How long one run takes with something switched on."""
    with tempfile.TemporaryDirectory() as folder:
        names = NAMES if name == TOGETHER else [name] if name else []
        options = merged([switched_on(one, data, Path(folder)) for one in names])
        trainer = trainer_of(options["trainer"])
        arguments = {"progress": False} | options["fit"]
        start = time.perf_counter()
        with contextlib.redirect_stderr(Terminal()):
            state, _ = trainer.fit(
                made, data, epochs=w.epochs, batch_size=w.batch_size, **arguments
            )
            jax.block_until_ready(jax.tree.leaves(state.opt_state))
        return time.perf_counter() - start


def measure(letter: str, turns: int, epochs: int) -> None:
    """Take turns, and print a table."""
    w = replace(workload(letter), epochs=epochs)
    made, data = model(w, jax.random.key(0)), w.data()
    plain = optimizer(w)

    @functools.cache
    def cached(averages: bool, measures: bool) -> vernal.Trainer:
        chosen = vernal.average_weights(plain) if averages else plain
        eval_params = vernal.averaged if averages else None
        options = {"metrics": METRICS if measures else None, "eval_params": eval_params}
        return vernal.Trainer(chosen, loss_of(w), **options)

    def trainer_of(options: dict[str, Any]) -> vernal.Trainer:
        return cached("eval_params" in options, "metrics" in options)

    taken: dict[str | None, list[float]] = {name: [] for name in (None, *NAMES, TOGETHER)}
    for turn in range(-1, turns):
        for name, found in taken.items():
            value = seconds(w, made, data, name, trainer_of)
            if turn >= 0:
                found.append(value)
    base = taken.pop(None)
    print(f"\n({letter}), {epochs} epochs, plain: {statistics.median(base):.2f} s\n")
    print("| Switched on | Times as fast: turns, best |\n|---|---|")
    for name, found in taken.items():
        ratio = statistics.median(np.array(base) / np.array(found))
        print(f"| {name} | {ratio:.2f}, {min(base) / min(found):.2f} |", flush=True)


def main() -> None:
    """Measure the workloads that were asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("workloads", nargs="*", default=list(EPOCHS))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument(
        "--epochs", type=int, help="of each run, in place of so many as take seconds"
    )
    asked = parser.parse_args()
    for letter in asked.workloads:
        measure(letter, asked.turns, asked.epochs or EPOCHS[letter])


if __name__ == "__main__":
    main()
