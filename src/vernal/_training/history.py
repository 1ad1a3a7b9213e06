"""The record of a run: plain NumPy."""

import base64
import html
import importlib.util
from collections.abc import Iterable, Sequence
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
            of `steps` over the epoch's examples; the validation's results as `"val_loss"`, ...; and
            the numbers that callbacks add to `Epoch.metrics`. They are `nan` where an epoch has
            none. A dict that `pandas.DataFrame` takes.
        seconds: How long the run took, compilation included.
    """

    steps: dict[str, np.ndarray] = field(default_factory=dict)
    epochs: dict[str, np.ndarray] = field(default_factory=dict)
    seconds: float = 0.0

    def plot(
        self, ax: Any = None, metrics: str | Sequence[str] = ("loss",), *, label: str | None = None
    ) -> Any:
        """Draw the curves of the loss, or of other metrics; see `vernal.plot.history`.

        Returns:
            Matplotlib's axes.
        """
        return plot.history(self, ax=ax, metrics=metrics, label=label)

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

    def _repr_html_(self) -> str:
        """Show a notebook the loss curve, if matplotlib is installed, and a table."""
        table = "<tr><th></th><th>last</th><th>best</th><th>in epoch</th></tr>"
        for name, values in self.epochs.items():
            known = [*values[~np.isnan(values)]] or [np.nan]
            cells = [html.escape(name), f"{known[-1]:.4g}", "", ""]
            best = plot.best_epoch(name, values)
            if best is not None:
                cells[2:] = f"{values[best]:.4g}", f"{best + 1:,}"
            table += f"<tr><td>{'</td><td>'.join(cells)}</td></tr>"

        image = ""
        if importlib.util.find_spec("matplotlib") is not None:
            png = base64.b64encode(plot.png(self)).decode()
            image = f'<img src="data:image/png;base64,{png}">'
        return f"<p>{html.escape(repr(self))}</p>{image}<table>{table}</table>"


def counted(number: int, noun: str) -> str:
    """Write a number with its noun, such as `1 epoch`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


@dataclass(frozen=True)
class Epoch:
    """One completed epoch of a run.

    Attributes:
        index: Number of the epoch, counted from 0 over the state's whole life.
        state: The state at its end.
        metrics: Averages over the epoch: `"loss"`, ...; the validation's as `"val_loss"`, .... A
            callback may add what it measures, for the callbacks after it and for the history.
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
            latest |= self._validations[-1]
        return latest

    @property
    def so_far(self) -> dict[str, float]:
        """The averages of the epoch under way; nothing at its start."""
        means = {}
        for name in self._names if self._under_way else ():
            parts = [(by[name][0], weights) for by, weights in self._under_way if name in by]
            total = sum(weights.sum() for _, weights in parts)
            means[name] = float(sum(each @ weights for each, weights in parts)) / (total or 1)
        return means

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
        values = {name: (each, measured.averages.get(name)) for name, each in measured.info.items()}
        weights = np.asarray(weights, np.float64)
        part = values, weights
        if not len(ends):
            return [*self._under_way, part], []

        before = sum(len(weights) for _, weights in self._under_way)
        parts, unmeasured = [part], []
        for earlier in reversed(self._under_way):
            aligned, names = _aligned(earlier, part)
            parts.insert(0, aligned)
            unmeasured += names
        whole = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
        bounds = np.concatenate([[0], before + ends])
        means = self._means(whole, bounds)
        for name in unmeasured:  # by a part of the epoch, which then has no value
            means[name][0] = np.nan
        left = jax.tree.map(lambda x: x[bounds[-1] :], whole)
        return [left] if len(left[1]) else [], [means]

    def _means(self, measured: "_Measured", bounds: np.ndarray) -> dict[str, np.ndarray]:
        """Average what steps measured, between each two bounds the steps of one epoch."""
        by_name, weights = measured
        starts, end = bounds[:-1], bounds[-1]
        if len(starts) == end:  # a step is an epoch, and its own average
            means = {name: each[:end].astype(np.float64) for name, (each, _) in by_name.items()}
        else:
            totals = np.add.reduceat(weights[:end], starts)
            divisors = np.where(totals == 0, 1, totals)
            means = {
                name: np.add.reduceat(each[:end] * weights[:end], starts) / divisors
                for name, (each, _) in by_name.items()
            }
        for name, (_, parts) in by_name.items():
            if parts is None:
                continue
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
        self.add_to_epoch({f"val_{name}": value for name, value in results.items()})

    def add_to_epoch(self, metrics: dict[str, Any]) -> None:
        """Add the numbers that are new among what was measured of the last completed epoch."""
        known = self.latest
        new = {name: float(value) for name, value in metrics.items() if name not in known}
        if not new:
            return
        if self._validated[-1:] == [self.epochs]:
            self._validated.pop()
            new = {**self._validations.pop(), **new}
        self._validations.append(new)
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
                ({name: jax.tree.leaves(tree) for name, tree in measured.items()}, weights)
                for measured, weights in self._under_way
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
                column = epochs.setdefault(name, np.full(self.epochs, np.nan))
                column[completed - 1] = value
        return History(_joined(self._step_values), epochs, self._seconds + seconds)


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Join arrays by name, the loss first; NaN stands for what a part does not have."""
    names = sorted(dict.fromkeys(chain(*parts)), key=lambda name: name != "loss")

    def of_part(part: dict[str, np.ndarray], name: str) -> np.ndarray:
        return part[name] if name in part else np.full(len(part["loss"]), np.nan)

    return {name: np.concatenate([of_part(part, name) for part in parts]) for name in names}


# What steps measured: by name the values, with the parts of a metric that is no average; and the
# steps' weights.
_Measured = tuple[dict[str, tuple[np.ndarray, PyTree]], np.ndarray]


def _aligned(earlier: _Measured, later: _Measured) -> tuple[_Measured, list[str]]:
    """Return what earlier steps measured in the structure of later ones.

    Returns:
        NaN stands for what the earlier steps did not measure, or not in the same way; and the names
        of this.
    """
    measured, weights = earlier
    aligned, unmeasured = {}, []
    for name, tree in later[0].items():
        leaves, structure = jax.tree.flatten(tree)
        found = jax.tree.leaves(measured.get(name))
        if [leaf.shape[1:] for leaf in found] != [leaf.shape[1:] for leaf in leaves]:
            found = [np.full((len(weights), *leaf.shape[1:]), np.nan) for leaf in leaves]
            unmeasured.append(name)
        aligned[name] = structure.unflatten(found)
    return (aligned, weights), unmeasured
