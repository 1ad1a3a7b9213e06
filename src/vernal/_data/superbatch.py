"""Batches, one behind the other, in arrays that a compiled function takes."""

import abc
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax import lax
from jaxtyping import PRNGKeyArray, PyTree

# How much is stacked at once, at most; a single batch may be larger.
STACK_BYTES = 2**25
# An accelerator gathers in its own memory, in no time, and soon goes through it: it stacks, and a
# chunk holds, so many times as much.
ROOMIER = 8


@dataclass(frozen=True)
class Stack:
    """Consecutive batches, ready to be sliced in a compiled loop.

    A place in it is counted in batches from the start of its first epoch.
    """

    batches: PyTree  # of arrays; leading axes: batch, example; only the second if `repeats`
    first: int  # the place of its first batch
    end: int  # the place after its last; the arrays may be longer, and are padded then
    epoch: int  # epochs before the one that places are counted from
    size: int  # examples in a batch
    length: int = sys.maxsize  # batches in an epoch, the tail included; maxsize while unknown
    origin: int = 0  # the place of `batches[0]`
    tails: PyTree = None  # each epoch's smaller last batch, by epoch
    tail_size: int = 0  # examples in a tail
    repeats: bool = False  # there is one batch, the full one, again and again
    # What a loader with a state needs to give the batches from a place in this epoch on, "batch",
    # anew; and those of the next epoch, if this one ends here.
    mark: Any = None
    end_mark: Any = None

    @property
    def capacity(self) -> int:
        """How many batches the arrays have room for."""
        return sum(
            len(jax.tree.leaves(part)[0]) for part in (self.batches, self.tails) if part is not None
        )

    @property
    def full(self) -> int:
        """How many of an epoch's batches are as large as the first, as far as that is known."""
        return self.length - (self.tails is not None)

    @property
    def nbytes(self) -> int:
        """The size of the arrays."""
        return nbytes((self.batches, self.tails))

    def place(self, place: int) -> tuple[int, int]:
        """The same place in epochs completed, and updates made since."""
        epochs, batch = divmod(place, self.length)
        return self.epoch + epochs, batch

    def mark_at(self, place: int) -> Any:
        """What a loader with a state needs to go on from a place."""
        return self.end_mark if place >= self.length else self.mark

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

    def before_tail(self, place: int) -> int:
        """How many batches of the same size there are from a place on, without one between."""
        if self.tails is None:
            return self.end - place
        in_epoch = place % self.length
        return max(1, self.length - 1 - in_epoch)

    def sizes(self, start: int, stop: int) -> np.ndarray:
        """How many examples there are in the batches at some places."""
        is_tail = (np.arange(start, stop) + 1) % self.length == 0
        return np.where(is_tail & (self.tails is not None), self.tail_size, self.size)


@jax.jit
def taken(arrays: PyTree, row: int) -> PyTree:
    """A row of each of some arrays."""
    return jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, row, keepdims=False), arrays)


class AbstractSource(abc.ABC):
    """Where batches come from."""

    # Whether many batches may be taken in one compiled loop. XLA lays the numbers of a convolution
    # out for a CPU only outside of loops: inside, one takes several times as long, and is rounded
    # in another way.
    loops: bool = True
    # Whether there are loops in what is made of a batch: nobody knows then how long it takes.
    goes_round: bool = False
    length: int  # batches in an epoch; `sys.maxsize` if that is not known

    @abc.abstractmethod
    def begin(self, key: PRNGKeyArray | None, mark: Any = None, until: int = sys.maxsize) -> None:
        """Take what is known of a run.

        **Arguments:**

        - `key`: fixes the order of examples, where they have none; `None` is `jax.random.key(0)`.
        - `mark`: a loader's `Stack.mark`, to go on from.
        - `until`: the epoch that will not be made any more.
        """

    @abc.abstractmethod
    def stacks(self, epoch: int, batch: int) -> Iterator[Stack]:
        """The run's batches from a place on, without end."""

    def one_pass(self) -> Iterator[Stack]:
        """One epoch, and no more."""
        for stack in self.stacks(0, 0):
            yield stack
            if stack.repeats or stack.end >= stack.length:
                return


def nbytes(tree: PyTree) -> int:
    """The size of some arrays."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def on_device(arrays: PyTree) -> PyTree:
    """Bring copies of NumPy's arrays to the device. JAX's are there."""
    there, brought = eqx.partition(arrays, lambda leaf: isinstance(leaf, jax.Array))
    return eqx.combine(there, _brought(brought))


@jax.jit
def _brought(arrays: PyTree) -> PyTree:
    # For small arrays the way through a compiled function is faster than `jax.device_put`.
    return arrays


def put(arrays: PyTree) -> PyTree:
    """Bring NumPy's arrays to the device, if it has memory of its own."""
    # A CPU reads them where they are, at each call; to make JAX's arrays of them takes longer.
    return arrays if jax.default_backend() == "cpu" else jax.device_put(arrays)


def sent(arrays: PyTree) -> PyTree:
    """Begin to bring JAX's arrays to the host, as soon as they are computed."""
    if jax.default_backend() != "cpu":  # whose arrays are there
        for leaf in jax.tree.leaves(arrays):
            leaf.copy_to_host_async()
    return arrays
