"""The record of a run: plain NumPy."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from vernal import plot
from vernal._training.measurements import Measurements
from vernal._training.state import TrainState
from vernal.metrics import AbstractMetric, combine_batches


@dataclass(frozen=True, eq=False)
class History:
    """The record of a run.

    Attributes:
        steps: name -> an array with one value a step: `"loss"`, the metrics, and `"learning_rate"`
            if the optimizer's state shows it, as with `optax.inject_hyperparams`.
        epochs: name -> an array with one value for each epoch that the run completed: the averages
            of `steps` over the epoch's examples, and the validation's results as `"val_loss"`, ...;
            `nan` where an epoch did not measure one. A dict that `pandas.DataFrame` takes.
        seconds: How long the run took, compilation included.
    """

    steps: dict[str, np.ndarray] = field(default_factory=dict)
    epochs: dict[str, np.ndarray] = field(default_factory=dict)
    seconds: float = 0.0

    def plot(self, ax: Any = None, label: str | None = None) -> Any:
        """Draw the loss curve; see `vernal.plot.history`.

        Returns:
            Matplotlib's axes.
        """
        return plot.history(self, ax=ax, label=label)

    def __repr__(self) -> str:
        losses = self.steps.get("loss", np.empty(0))
        epochs = len(self.epochs.get("loss", ()))
        parts = [counted(epochs, "epoch"), counted(len(losses), "step")]
        for name, values in (self.epochs if epochs else self.steps).items():
            if name.startswith("val_"):  # nan where it was not measured
                values = values[~np.isnan(values)]
            if len(values):
                parts.append(f"{name} {values[0]:.4g} → {values[-1]:.4g}")
        return f"History({', '.join(parts)}, {self.seconds:.2f} s)"


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


@dataclass(frozen=True)
class Epoch:
    """One completed epoch of a run.

    Attributes:
        index: Number of the epoch, counted from 0 over the state's whole life.
        state: The state at its end.
        metrics: Averages over the epoch: `"loss"`, ...; the validation's as `"val_loss"`, ....
        seconds: How long the epoch took.
    """

    index: int
    state: TrainState
    metrics: dict[str, float]
    seconds: float


class Recorder:
    """Gathers what a run measures, and averages it over epochs.

    Args:
        metrics: The metrics that are measured in training, by name.

    Attributes:
        steps: Number of steps recorded.
        epochs: Number of epochs completed.
    """

    def __init__(self, metrics: dict[str, AbstractMetric]):
        self._metrics = metrics
        self._seconds = 0.0  # that the run took before it was resumed
        self._step_values: list[dict[str, np.ndarray]] = []
        self._epoch_values: list[dict[str, np.ndarray]] = []
        self._validations: list[dict[str, float]] = []
        self._validated: list[int] = []  # how many epochs were completed at each validation
        self.steps = 0
        self.epochs = 0
        # Of the epoch under way: what its steps measured, and their weights.
        self._under_way: list[_Measured] = []
        self._unaveraged: list[Measurements] = []  # which the epochs do not have yet
        self._names: Iterable[str] = ()  # what is measured now

    @property
    def latest(self) -> dict[str, float]:
        """The averages of the last completed epoch, with its validation's results."""
        averages = self._epoch_values[-1]
        latest = {name: float(averages.get(name, [np.nan])[-1]) for name in self._names}
        if self._validated and self._validated[-1] == self.epochs:
            latest |= {f"val_{name}": value for name, value in self._validations[-1].items()}
        return latest

    def add(self, chunk: list[Measurements]) -> None:
        """Add what the steps of a chunk measured."""
        for call in chunk:
            self._names = call.measured.info
            self._step_values.append(call.measured.info)
            self.steps += call.steps
        self._unaveraged += [call for call in chunk if call.steps]
        while self._unaveraged:
            # A metric's own code may be interrupted here, and is called again.
            under_way, means = self._averaged(self._unaveraged[0])
            ended = len(self._unaveraged.pop(0).epoch_ends)
            self._under_way = under_way
            self._epoch_values += means
            self.epochs += ended

    def _averaged(
        self, call: Measurements
    ) -> tuple[list["_Measured"], list[dict[str, np.ndarray]]]:
        """Average what the steps of a call measured over each epoch that ends with one of them.

        Returns:
            What was measured of the epoch under way; and the averages of the epochs, if any.
        """
        measured = call.measured
        weights = measured.weight
        if weights is None:
            weights = call.superbatch.sizes(call.cursor, call.cursor + call.steps)

        # What the epoch under way has measured comes first; what follows the last end is left over.
        ends = call.epoch_ends
        part = (measured.info, measured.averages, np.asarray(weights, np.float64))
        if not len(ends):
            return [*self._under_way, part], []

        before = sum(len(weights) for _, _, weights in self._under_way)
        parts = [_aligned(earlier, part) for earlier in self._under_way]
        info, averages, weights = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts, part)
        bounds = np.concatenate([[0], before + ends])
        means = self._means(info, averages, weights, bounds)
        for earlier in self._under_way:
            # Of what a part of an epoch did not measure, the epoch has no value.
            for name in _unmeasured(earlier, part):
                means[name][0] = np.nan
        rest = slice(bounds[-1], len(weights))
        left = jax.tree.map(lambda x: x[rest], (info, averages, weights))
        return [left] if rest.start < rest.stop else [], [means]

    def _means(
        self,
        info: dict[str, np.ndarray],
        averages: dict[str, PyTree],
        weights: np.ndarray,
        bounds: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """Average what steps measured, between each two bounds the steps of one epoch."""
        starts, end = bounds[:-1], bounds[-1]
        if len(starts) == end:  # a step is an epoch, and its own average
            means = {name: values[:end].astype(np.float64) for name, values in info.items()}
        else:
            totals = np.add.reduceat(weights[:end], starts)
            divisors = np.where(totals == 0, 1, totals)
            means = {
                name: np.add.reduceat(values[:end] * weights[:end], starts) / divisors
                for name, values in info.items()
            }
        for name, parts in averages.items():
            values = [
                combine_batches(
                    self._metrics[name],
                    jax.tree.map(lambda x, epoch=slice(start, stop): x[epoch], parts),
                    weights[start:stop],
                )
                for start, stop in pairwise(bounds)
            ]
            means[name] = np.array(values, float)
        return means

    def add_validation(self, results: dict[str, float]) -> None:
        """Add what validation measured at the end of the last completed epoch."""
        self._validations.append(results)
        self._validated.append(self.epochs)

    def kept(self, seconds: float) -> dict[str, Any]:
        """Return all of it, for a checkpoint that is written after so many seconds."""
        return {
            "steps": _joined(self._step_values),
            "epochs": _joined(self._epoch_values),
            "completed": self.epochs,
            "validations": self._validations,
            "validated": self._validated,
            "under_way": [
                (info, {name: jax.tree.leaves(parts) for name, parts in averages.items()}, weights)
                for info, averages, weights in self._under_way
            ],
            "seconds": self._seconds + seconds,
        }

    def restore(self, kept: dict[str, Any], names: Iterable[str]) -> None:
        """Go on from what `kept` returned.

        Args:
            kept: What `kept` returned.
            names: What is measured now, validation aside: it need not be what was measured before.
        """
        self._names = names
        self._step_values = [kept["steps"]] if kept["steps"] else []
        self._epoch_values = [kept["epochs"]] if kept["epochs"] else []
        self.steps = len(kept["steps"].get("loss", ()))
        self.epochs = kept["completed"]
        self._validations, self._validated = kept["validations"], kept["validated"]
        self._under_way = kept["under_way"]
        self._seconds = kept["seconds"]

    def history(self, seconds: float) -> History:
        """Return the record so far, after so many seconds."""
        epochs = _joined(self._epoch_values)
        for results, completed in zip(self._validations, self._validated, strict=True):
            for name, value in results.items():
                column = epochs.setdefault(f"val_{name}", np.full(self.epochs, np.nan))
                column[completed - 1] = value
        return History(_joined(self._step_values), epochs, self._seconds + seconds)


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Join arrays by name, the loss first; NaN stands for what a part does not have."""
    names = sorted(dict.fromkeys(chain(*parts)), key=lambda name: name != "loss")
    missing = [np.full(len(part["loss"]), np.nan) for part in parts]
    return {
        name: np.concatenate([part.get(name, no) for part, no in zip(parts, missing, strict=True)])
        for name in names
    }


# What steps measured, the parts of metrics that are not averages, and the weights.
_Measured = tuple[dict[str, np.ndarray], dict[str, PyTree], np.ndarray]


def _unmeasured(earlier: _Measured, later: _Measured) -> set[str]:
    """Return which of the later steps' metrics the earlier ones did not measure, or otherwise."""

    def shapes(averages: dict[str, PyTree], name: str) -> list[tuple[int, ...]]:
        return [leaf.shape[1:] for leaf in jax.tree.leaves(averages.get(name))]

    return {
        name
        for name in later[0]
        if name not in earlier[0] or shapes(earlier[1], name) != shapes(later[1], name)
    }


def _aligned(earlier: _Measured, later: _Measured) -> _Measured:
    """Return what earlier steps measured in the structure of later ones, NaN where they did not."""
    info, averages, weights = earlier

    def missing(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: np.full((len(weights), *leaf.shape[1:]), np.nan), tree)

    unmeasured = _unmeasured(earlier, later)
    kept = {name: jax.tree.leaves(parts) for name, parts in averages.items()}
    parts = {
        name: missing(tree)
        if name in unmeasured
        else jax.tree.structure(tree).unflatten(kept[name])
        for name, tree in later[1].items()
    }
    values = {
        name: missing(array) if name in unmeasured else info[name]
        for name, array in later[0].items()
    }
    return values, parts, weights
