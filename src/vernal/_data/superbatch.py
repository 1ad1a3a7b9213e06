"""Consecutive batches in arrays that a compiled loop slices."""

import sys
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from vernal import _limits
from vernal._data.arrays import nbytes, row_of


@dataclass(frozen=True)
class Superbatch:
    """Consecutive batches, gathered at once.

    A cursor is a place in the data: it counts batches from the start of `epoch`.

    Attributes:
        batches: Arrays with the leading axes (batch, example); or (example,) if `repeats`. They may
            be longer than what is filled.
        epoch: Number of the epoch that the first batch is of.
        start: Cursor of the first batch.
        stop: Cursor after the last batch.
        batch_size: Examples in a batch.
        epoch_length: Batches in an epoch; `sys.maxsize` while that is not known.
        last_batches: The smaller last batch of each epoch, with the leading axes (epoch, example);
            `None` if all batches are of one size.
        last_size: Examples in the last batch of an epoch, if that is smaller.
        repeats: Whether there is one batch, the full one, again and again.
        loader_state: What a loader needs to give the batches from `start` on again.
        next_loader_state: What a loader needs to begin the next epoch, if this one ends here.
    """

    batches: PyTree
    epoch: int
    start: int
    stop: int
    batch_size: int
    epoch_length: int = sys.maxsize
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

    @property
    def nbytes(self) -> int:
        """The size of the arrays, in bytes."""
        return nbytes((self.batches, self.last_batches))

    def location(self, cursor: int) -> tuple[int, int]:
        """Return a cursor as the number of an epoch, and of a batch in it."""
        epochs, batch = divmod(cursor, self.epoch_length)
        return self.epoch + epochs, batch

    def loader_state_at(self, cursor: int) -> Any:
        """Return what a loader needs to go on from a cursor."""
        return self.next_loader_state if cursor >= self.epoch_length else self.loader_state

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

        epoch, batch = divmod(cursor, self.epoch_length)
        if batch == self.epoch_length - 1:
            return self.last_batches, epoch
        return self.batches, epoch * (self.epoch_length - 1) + batch - self.start

    def sizes(self, start: int, stop: int) -> np.ndarray:
        """Return how many examples the batches between two cursors have."""
        if self.last_batches is None:
            return np.full(stop - start, self.batch_size)

        is_last = (np.arange(start, stop) + 1) % self.epoch_length == 0
        return np.where(is_last, self.last_size, self.batch_size)


_row_of = jax.jit(row_of)


@dataclass(frozen=True)
class Start:
    """Where in the data a run begins.

    Attributes:
        epoch: Number of the epoch.
        batch: Number of the batch in it; may count over several epochs.
        key: Fixes the order of the examples, where batches are made of arrays; `None` is
            `jax.random.key(0)`.
        loader_state: A `Superbatch.loader_state` to go on from.
        last_epoch: Number of the epoch that the run ends before.
    """

    epoch: int = 0
    batch: int = 0
    key: PRNGKeyArray | None = None
    loader_state: Any = None
    last_epoch: int = sys.maxsize
