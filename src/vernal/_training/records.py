"""What updates measured: as a compiled call returns it, and in columns that grow."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from vernal._data.superbatch import Stack


@dataclass(frozen=True)
class Records:
    """What consecutive updates on one stack measured; arrays may still be on their way."""

    stack: Stack
    place: int  # the first update's place in the stack
    updates: int
    step: int  # of the first update
    values: dict[str, Any]  # name -> one value an update, JAX's and then NumPy's
    weights: Any  # each batch's weight, if it is not its number of examples
    averages: dict[str, PyTree]  # of each metric that is made from such

    def fetched(self) -> "Records":
        """The same as NumPy arrays, cut to the updates that were made."""
        # A copy: a view of a few numbers would keep the whole buffer.
        cut = lambda buffer: np.array(np.asarray(buffer)[: self.updates])
        kept = jax.tree.map(cut, (self.values, self.weights, self.averages))
        return replace(self, values=kept[0], weights=kept[1], averages=kept[2])

    def first(self, updates: int) -> "Records":
        """Those of so many updates only."""
        return replace(self, updates=updates).fetched()

    @property
    def finite_losses(self) -> int:
        """How many updates there are before a loss that is not finite."""
        finite = np.isfinite(self.values["loss"])
        return len(finite) if finite.all() else int(np.argmin(finite))


class Columns:
    """Arrays that grow at their end, one for each name and all as long as each other.

    What is in them is in memory once, also while they grow: the system moves a large array to where
    there is room for a larger one.
    """

    def __init__(self):
        self._arrays: dict[str, np.ndarray] = {}  # as long as what is in them, or up to 1/8 longer
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def add(self, values: dict[str, np.ndarray]) -> None:
        """Put values behind those that there are."""
        start = self._length
        for name, new in values.items():
            array = self._arrays.setdefault(name, np.empty(0, new.dtype))
            self._length = end = start + len(new)
            if end > len(array):
                array.resize(end + end // 8, refcheck=False)  # nobody else has it
            array[start:end] = new

    def last(self) -> dict[str, float]:
        """The last value of each."""
        return {name: float(array[self._length - 1]) for name, array in self._arrays.items()}

    def copy(self) -> "Columns":
        """The same in double precision, to grow by itself."""
        copy = Columns()
        copy.add({name: a[: self._length].astype(float) for name, a in self._arrays.items()})
        return copy

    def copies(self) -> dict[str, np.ndarray]:
        """What is in them, in arrays of their own."""
        return {name: array[: self._length].copy() for name, array in self._arrays.items()}

    def taken(self) -> dict[str, np.ndarray]:
        """The arrays, the loss first: the caller's from now on. The columns are empty then."""
        arrays, length = self._arrays, self._length
        self._arrays, self._length = {}, 0
        for array in arrays.values():
            array.resize(length, refcheck=False)
        return {name: arrays[name] for name in sorted(arrays, key=lambda name: name != "loss")}
