"""What updates measured, as a compiled call returns it."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from vernal._stack import Stack


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
