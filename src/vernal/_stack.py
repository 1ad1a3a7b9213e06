"""Batches on the device, one behind the other."""

import sys
from dataclasses import dataclass

import jax
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree


@dataclass(frozen=True)
class Stack:
    """Consecutive batches on the device, ready to be sliced in a compiled loop.

    A place in it is counted in batches from the start of its first epoch.
    """

    batches: PyTree[Array]  # leading axes: batch, example; only the second if `repeats`
    first: int  # the place of its first batch
    end: int  # the place after its last; the arrays may be longer, and are padded then
    epoch: int  # epochs before the one that places are counted from
    size: int  # examples in a batch
    length: int = sys.maxsize  # batches in an epoch, the tail included; maxsize while unknown
    origin: int = 0  # the place of `batches[0]`
    tails: PyTree[Array] | None = None  # each epoch's smaller last batch, by epoch
    tail_size: int = 0  # examples in a tail
    repeats: bool = False  # there is one batch, the full one, again and again

    @property
    def capacity(self) -> int:
        """How many batches the arrays have room for."""
        return sum(
            len(jax.tree.leaves(part)[0]) for part in (self.batches, self.tails) if part is not None
        )

    @property
    def nbytes(self) -> int:
        """The size of the arrays."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves((self.batches, self.tails)))

    def place(self, place: int) -> tuple[int, int]:
        """The same place in epochs completed, and updates made since."""
        epochs, batch = divmod(place, self.length)
        return self.epoch + epochs, batch

    def batch(self, place: int) -> PyTree:
        """The batch at a place."""
        if self.repeats:
            return self.batches
        arrays, row = self.row(place)
        return taken(arrays, row)

    def row(self, place: int) -> tuple[PyTree, int]:
        """The batch at a place: the arrays that it is in, and its row there."""
        epoch, batch = divmod(place, self.length)
        if self.tails is not None and batch == self.length - 1:
            return self.tails, epoch
        return self.batches, place - self.origin - (epoch if self.tails is not None else 0)

    def sizes(self, start: int, stop: int) -> np.ndarray:
        """How many examples there are in the batches at some places."""
        is_tail = (np.arange(start, stop) + 1) % self.length == 0
        return np.where(is_tail & (self.tails is not None), self.tail_size, self.size)


@jax.jit
def taken(arrays: PyTree, row: int) -> PyTree:
    """A row of each of some arrays."""
    return jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, row, keepdims=False), arrays)
