"""What consecutive steps measured."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from vernal._data.superbatch import Superbatch


@dataclass(frozen=True, eq=False)
class Measurements:
    """What the consecutive steps of one compiled call measured.

    Attributes:
        superbatch: The data of the steps.
        cursor: The cursor of the first step's batch; see `Superbatch`.
        steps: How many steps there are.
        first_step: Number of the first step.
        epoch: Number of the first step's epoch.
        epoch_ends: After how many of the steps an epoch ends.
        measured: A `Measured` of arrays with the steps along the leading axis; `None` until the
            steps are made.
    """

    superbatch: Superbatch
    cursor: int
    steps: int
    first_step: int
    epoch: int
    epoch_ends: np.ndarray
    measured: Any = None

    def first(self, steps: int) -> "Measurements":
        """Wait for the arrays, and return what the first steps measured, in NumPy's memory."""
        # A copy: a view would keep the whole buffer.
        cut = jax.tree.map(lambda buffer: np.array(np.asarray(buffer)[:steps]), self.measured)
        ends = self.epoch_ends[self.epoch_ends <= steps]
        return replace(self, steps=steps, epoch_ends=ends, measured=cut)


def steps_of(chunk: list[Measurements]) -> int:
    """Return how many steps the calls of a chunk make."""
    return sum(call.steps for call in chunk)
