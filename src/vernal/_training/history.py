"""What a run measured: a plain record, in NumPy."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from vernal._training.averages import combined
from vernal._training.records import Columns, Records
from vernal._training.state import TrainState
from vernal.metrics import AbstractMetric


@dataclass(frozen=True, eq=False)
class History:
    """The record of a run.

    **Attributes:**

    - `steps`: name -> an array with one value an update: `"loss"`, the metrics, and
      `"learning_rate"` if the optimizer's state shows it, as with `optax.inject_hyperparams`.
    - `epochs`: name -> an array with one value an epoch that the run completed: the averages of
      `steps` over the epoch's examples, and the validation's results as `"val_loss"`, ...; `nan`
      where an epoch was not validated. A dict that `pandas.DataFrame` takes. Where each epoch was
      one update, they are the arrays of `steps`, and not held twice.
    - `seconds`: how long the run took, compilation included.
    """

    steps: dict[str, np.ndarray] = field(default_factory=dict)
    epochs: dict[str, np.ndarray] = field(default_factory=dict)
    seconds: float = 0.0

    def plot(self, ax=None, label: str | None = None):
        """Draw the loss curve; see `vernal.plot.history`. **Returns:** matplotlib's axes."""
        from vernal import plot

        return plot.history(self, ax=ax, label=label)

    def __repr__(self) -> str:
        losses = self.steps.get("loss", np.empty(0))
        epochs = len(self.epochs.get("loss", ()))
        parts = [_many(epochs, "epoch"), _many(len(losses), "update")]
        for name, values in (self.epochs if epochs else self.steps).items():
            if name.startswith("val_"):  # nan where it was not measured
                values = values[~np.isnan(values)]
            if len(values):
                parts.append(f"{name} {values[0]:.4g} → {values[-1]:.4g}")
        return f"History({', '.join(parts)}, {self.seconds:.2f} s)"


def _many(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


@dataclass(frozen=True)
class Epoch:
    """One epoch of a run, completed."""

    index: int  # counted from 0 over the state's whole life
    state: TrainState
    metrics: dict[str, float]  # averages over the epoch: "loss", ...; validation's as "val_loss"
    seconds: float


class Recorder:
    """Gathers a run's records as they come, and averages them over epochs."""

    def __init__(self, metrics: dict[str, AbstractMetric]):
        self._metrics = metrics
        self._seconds = 0.0  # that the run took before
        self._steps = Columns()
        self._epochs = self._steps  # as long as each epoch is one update
        self._validations = Columns()  # to the last epoch that was validated
        self.epochs = 0  # completed
        # The epoch under way: the sum of weights, and name -> the weighted sum of values.
        self._weight, self._sums = 0.0, {}
        # And of each batch what the metrics need that are no averages, and its weight.
        self._averages: list[tuple[dict[str, PyTree], np.ndarray]] = []

    @property
    def updates(self) -> int:
        """Updates recorded."""
        return len(self._steps)

    @property
    def latest(self) -> dict[str, float]:
        """The averages of the last completed epoch, with its validation's results."""
        validated = self.epochs == len(self._validations)
        return self._epochs.last() | (self._validations.last() if validated else {})

    def add_all(self, chunks: Iterable[list[Records]]) -> None:
        """Take in the records of chunk after chunk."""
        for chunk in chunks:
            self.add(chunk)

    def add(self, chunk: list[Records]) -> None:
        """Take in the records of a chunk of updates."""
        for records in chunk:
            self._add(records)

    def _add(self, records: Records) -> None:
        n, length = records.updates, records.stack.length
        if length > 1 and self._epochs is self._steps:
            self._epochs = self._steps.copy()
        self._steps.add(records.values)
        if n == 0:  # the first of a chunk was not to be made
            return
        if length == 1:
            if self._epochs is not self._steps:
                self._epochs.add(records.values)
            self.epochs += n
            return
        start, weights = records.place, records.weights
        if weights is None:
            weights = records.stack.sizes(start, start + n)
        weights = weights.astype(np.float64)
        # Epochs end after these many of the updates; between the ends lie the parts to be summed.
        ends = np.arange(length - start % length, n + 1, length)
        starts = np.concatenate([[0], ends[ends < n]]).astype(int)
        parts = lambda values: np.add.reduceat(values, starts)
        part_weights = parts(weights)
        part_sums = {name: parts(values * weights) for name, values in records.values.items()}
        part_weights[0] += self._weight
        for name, sums in part_sums.items():
            sums[0] += self._sums.get(name, 0.0)
        done = len(ends)
        if done:
            total = np.where(part_weights[:done] == 0, 1, part_weights[:done])
            means = {name: sums[:done] / total for name, sums in part_sums.items()}
            self._epochs.add(means | self._combined(records.averages, weights, ends))
            self.epochs += done
        elif records.averages:
            self._averages.append((records.averages, weights))
        under_way = len(starts) > done
        self._weight = float(part_weights[-1]) if under_way else 0.0
        self._sums = {name: float(s[-1]) for name, s in part_sums.items()} if under_way else {}

    def _combined(self, averages, weights, ends) -> dict[str, np.ndarray]:
        """Metrics that are no averages, of the epochs that end after so many of the updates."""
        if not averages:
            return {}
        values: dict[str, list[float]] = {name: [] for name in averages}
        start = 0
        for end in ends:
            cut = jax.tree.map(lambda rows, s=slice(start, end): rows[s], (averages, weights))
            rows = jax.tree.map(lambda *parts: np.concatenate(parts), *self._averages, cut)
            for name in averages:
                values[name].append(float(combined(self._metrics[name], rows[0][name], rows[1])))
            self._averages, start = [], end
        if start < len(weights):
            self._averages = [jax.tree.map(lambda rows: rows[start:], (averages, weights))]
        return {name: np.array(column) for name, column in values.items()}

    def add_validation(self, results: dict[str, float]) -> None:
        """Take in what validation measured at the end of the last completed epoch."""
        missing = np.full(self.epochs - len(self._validations) - 1, np.nan)
        column = {f"val_{name}": np.append(missing, x) for name, x in results.items()}
        self._validations.add(column)

    def kept(self, seconds: float) -> dict[str, Any]:
        """All of it, for a checkpoint, after so many seconds."""
        own = self._epochs is not self._steps
        return {
            "steps": self._steps.copies(),
            "epochs": self._epochs.copies() if own else None,
            "validations": self._validations.copies(),
            "completed": self.epochs,
            "weight": self._weight,
            "sums": self._sums,
            "averages": [(jax.tree.leaves(values), w) for values, w in self._averages],
            "seconds": self._seconds + seconds,
        }

    def restore(self, kept: dict[str, Any], averages: Any) -> None:
        """Go on from what `kept` returned.

        `averages` is the treedef of what the metrics that are no averages are made from.
        """
        self._steps.add(kept["steps"])
        if kept["epochs"] is not None:
            self._epochs = Columns()
            self._epochs.add(kept["epochs"])
        self._validations.add(kept["validations"])
        self.epochs, self._weight = kept["completed"], kept["weight"]
        self._sums, self._seconds = kept["sums"], kept["seconds"]
        self._averages = [(averages.unflatten(leaves), w) for leaves, w in kept["averages"]]

    def history(self, seconds: float) -> History:
        """The record so far, handed over: there is nothing to be added any more."""
        steps, epochs = self._steps.taken(), {}
        if self._epochs is not self._steps:
            epochs = self._epochs.taken()
        elif self.epochs:
            epochs = dict(steps)
        for name, values in self._validations.taken().items():
            epochs[name] = np.full(self.epochs, np.nan)
            epochs[name][: len(values)] = values
        return History(steps, epochs, self._seconds + seconds)
