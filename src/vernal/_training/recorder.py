"""What a run measures, gathered step by step and averaged over epochs."""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from vernal._moments import combine_batches, moments
from vernal._training.measurements import Measurements
from vernal.errors import wrong_argument
from vernal.history import History
from vernal.metrics import AbstractMetric

# One value a step, by name: what steps measured; their weights, under no name; and the leaves of a
# metric that is made from averages, numbered from 0.
Columns = dict[Any, np.ndarray]
_WEIGHT = ""


class Recorder:
    """Gathers what a run measures, and averages it over epochs.

    Args:
        metrics: The metrics that are measured in training, by name.

    Attributes:
        steps: Number of steps recorded.
        epochs: Number of epochs completed.
        is_over: Whether what was measured ends the run.
    """

    is_over = False

    def __init__(self, metrics: dict[str, AbstractMetric]):
        self._metrics = metrics
        self._seconds = 0.0  # that the run took before it was resumed
        self._step_values: list[Columns] = []
        self._epoch_values: list[Columns] = []
        self._added: dict[int, dict[str, float]] = {}  # by how many epochs were completed
        self.steps = 0
        self.epochs = 0
        self._under_way: list[Columns] = []  # of the steps of the epoch under way
        self._unaveraged: list[Measurements] = []  # which the epochs do not have yet
        self._names: Iterable[str] = ()  # what is measured now

    @property
    def latest(self) -> dict[str, float]:
        """The averages of the last completed epoch, with its validation's results."""
        averages = self._epoch_values[-1]
        latest = {name: float(averages.get(name, [np.nan])[-1]) for name in self._names}
        return latest | self._added.get(self.epochs, {})

    @property
    def so_far(self) -> dict[str, float]:
        """The averages of the epoch under way; nothing at its start."""
        if not self._under_way:
            return {}
        self._under_way = [_joined(self._under_way)]
        columns = self._under_way[0]
        weights = columns[_WEIGHT]
        known = [name for name in self._names if name in columns]
        return {name: float(columns[name] @ weights / (weights.sum() or 1)) for name in known}

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

    def _averaged(self, call: Measurements) -> tuple[list[Columns], list[Columns]]:
        """Average what the steps of a call measured over each epoch that ends with one of them.

        Returns:
            What was measured of the epoch under way; and the averages of the epochs, if any.
        """
        measured, ends = call.measured, call.epoch_ends
        weights = measured.weight
        if weights is None:
            weights = call.superbatch.sizes(call.cursor, call.cursor + call.steps)
        part = {**measured.info, _WEIGHT: np.asarray(weights, np.float64)}
        for name, averages in measured.averages.items():
            part |= {(name, i): leaf for i, leaf in enumerate(jax.tree.leaves(averages))}
        if not len(ends):
            return [*self._under_way, part], []

        # What the epoch under way has measured comes first; what follows the last end is left over.
        before = sum(len(columns[_WEIGHT]) for columns in self._under_way)
        columns = _joined([*self._under_way, part]) if before else part
        bounds = np.concatenate([[0], before + ends])
        means = self._means(columns, bounds, measured.averages)
        for name in self._names:
            if any(_layout(earlier, name) != _layout(part, name) for earlier in self._under_way):
                means[name][0] = np.nan  # a part of the epoch did not measure it, or otherwise
        left = {name: column[bounds[-1] :] for name, column in columns.items()}
        return [left] if len(left[_WEIGHT]) else [], [means]

    def _means(self, columns: Columns, bounds: np.ndarray, averages: dict[str, PyTree]) -> Columns:
        """Average what steps measured, between each two bounds the steps of one epoch."""
        starts, end = bounds[:-1], bounds[-1]
        weights = columns[_WEIGHT][:end]
        means = {name: columns[name][:end].astype(np.float64) for name in self._names}
        if len(starts) < end:  # otherwise a step is an epoch, and its own average
            totals = np.add.reduceat(weights, starts)
            divisors = np.where(totals == 0, 1, totals)
            for name, values in means.items():
                means[name] = np.add.reduceat(values * weights, starts) / divisors
        for name, tree in averages.items():
            leaves, structure = jax.tree.flatten(tree)
            parts = [columns[name, i] for i in range(len(leaves))]
            of_epochs = []
            for epoch in map(slice, starts, bounds[1:]):
                tree = structure.unflatten([part[epoch] for part in parts])
                total = moments(tree, weights[epoch])
                of_epochs.append(combine_batches(self._metrics[name], total))
            means[name] = np.array(of_epochs, float)
        return means

    def add_to_epoch(self, metrics: dict[str, Any]) -> None:
        """Add the numbers that are new among what was measured of the last completed epoch."""
        known = self.latest
        new = {name: value for name, value in metrics.items() if name not in known}
        for name, value in new.items():
            try:
                new[name] = float(value)
            except (TypeError, ValueError):
                need = "a number, which a callback may add,"
                raise wrong_argument(f"epoch.metrics[{name!r}]", value, need) from None
        if new:
            self._added[self.epochs] = self._added.get(self.epochs, {}) | new

    def kept(self, seconds: float) -> dict[str, Any]:
        """Return all of it, for a checkpoint that is written after so many seconds."""
        return {
            "steps": _joined(self._step_values),
            "epochs": _joined(self._epoch_values),
            "completed": self.epochs,
            "added": self._added,
            "under_way": self._under_way,
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
        self._added = kept["added"]
        self._under_way = kept["under_way"]
        self._seconds = kept["seconds"]

    def history(self, seconds: float) -> History:
        """Return the record so far, after so many seconds."""
        epochs = _joined(self._epoch_values)
        for completed, added in self._added.items():
            for name, value in added.items():
                column = epochs.setdefault(name, np.full(self.epochs, np.nan))
                column[completed - 1] = value
        return History(_joined(self._step_values), epochs, self._seconds + seconds)


def _layout(columns: Columns, name: str) -> dict[Any, tuple[int, ...]]:
    """Return the shapes of the columns of one metric."""
    keys = [key for key in columns if key == name or (isinstance(key, tuple) and key[0] == name)]
    return {key: columns[key].shape[1:] for key in keys}


def _joined(parts: list[Columns]) -> Columns:
    """Join columns by name, the loss first; NaN stands for what a part does not have.

    A part does not have what it measured in another way, either: as values of another shape.
    """
    shapes = {name: column.shape[1:] for part in parts for name, column in part.items()}

    def of_part(part: Columns, name: Any) -> np.ndarray:
        column = part.get(name)
        if column is not None and column.shape[1:] == shapes[name]:
            return column
        return np.full((len(part["loss"]), *shapes[name]), np.nan)

    names = sorted(shapes, key=lambda name: name != "loss")
    return {name: np.concatenate([of_part(part, name) for part in parts]) for name in names}
