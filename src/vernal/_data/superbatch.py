"""Consecutive batches in arrays that a compiled loop slices."""

import sys
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from vernal import _limits
from vernal._data.arrays import row_of


@dataclass(frozen=True)
class Superbatch:
    """Consecutive batches, gathered at once.

    A cursor is a place in the data: it counts batches from the start of `data_pass`.

    Attributes:
        batches: Arrays with the leading axes (batch, example); or (example,) if `repeats`. They may
            be longer than what is filled.
        data_pass: Number of the pass that the first batch is of.
        start: Cursor of the first batch.
        stop: Cursor after the last batch.
        batch_size: Examples in a batch.
        pass_length: Batches in a pass; `sys.maxsize` while that is not known.
        last_batches: The smaller last batch of each pass, with the leading axes (pass, example);
            `None` if all batches are of one size.
        last_size: Examples in the last batch of a pass, if that is smaller.
        repeats: Whether there is one batch, the full one, again and again.
        loader_state: What a loader needs to give the batches from `start` on again.
        next_loader_state: What a loader needs to begin the next pass, if this one ends here.
    """

    batches: PyTree
    data_pass: int
    start: int
    stop: int
    batch_size: int
    pass_length: int = sys.maxsize
    last_batches: PyTree = None
    last_size: int = 0
    repeats: bool = False
    loader_state: Any = None
    next_loader_state: Any = None

    @property
    def capacity(self) -> int:
        """How many batches the arrays have space for; of one that repeats, steps in a call."""
        if self.repeats:
            return _limits.current().steps_per_call

        parts = [self.batches] if self.last_batches is None else [self.batches, self.last_batches]
        return sum(len(jax.tree.leaves(part)[0]) for part in parts)

    def location(self, cursor: int) -> tuple[int, int]:
        """Return a cursor as the number of a pass, and of a batch in it."""
        passes, batch = divmod(cursor, self.pass_length)
        return self.data_pass + passes, batch

    def loader_state_at(self, cursor: int) -> Any:
        """Return what a loader needs to go on from a cursor."""
        return self.next_loader_state if cursor >= self.pass_length else self.loader_state

    def batch(self, cursor: int) -> PyTree:
        """Return the batch at a cursor."""
        if self.repeats:
            return self.batches

        arrays, row = self.row(cursor)
        return _row_of(arrays, row)

    def row(self, cursor: int) -> tuple[PyTree, int]:
        """Return the arrays that hold the batch at a cursor, and its row in them."""
        if self.last_batches is None:
            return self.batches, cursor - self.start

        data_pass, batch = divmod(cursor, self.pass_length)
        if batch == self.pass_length - 1:
            return self.last_batches, data_pass
        return self.batches, data_pass * (self.pass_length - 1) + batch - self.start

    def sizes(self, start: int, stop: int) -> np.ndarray:
        """Return how many examples the batches between two cursors have."""
        if self.last_batches is None:
            return np.full(stop - start, self.batch_size)

        is_last = (np.arange(start, stop) + 1) % self.pass_length == 0
        return np.where(is_last, self.last_size, self.batch_size)


_row_of = jax.jit(row_of)


@dataclass(frozen=True)
class Start:
    """Where in the data a run begins.

    Attributes:
        data_pass: Number of the pass.
        batch: Number of the batch in it; may count over several passes.
        key: Fixes the order of the examples, where batches are made of arrays; `None` is
            `jax.random.key(0)`.
        loader_state: A `Superbatch.loader_state` to go on from.
        last_pass: Number of the pass that the run ends before.
    """

    data_pass: int = 0
    batch: int = 0
    key: PRNGKeyArray | None = None
    loader_state: Any = None
    last_pass: int = sys.maxsize
