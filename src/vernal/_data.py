"""Examples to batches, in an order that (key, epoch) fixes."""

import functools
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from vernal import _stack
from vernal._arrays import as_arrays, checked_batch_size
from vernal._files import FileArray, in_files, in_memory
from vernal._loader import LoaderSource, is_function
from vernal._stack import AbstractSource, Stack, memory, nbytes, on_device

# How much is gathered at once. Small epochs share a stack until it has so many updates, or takes so
# many bytes, that a call's own cost no longer shows; a large epoch is taken in parts.
_STACK_UPDATES = 1024
_SHARED_BYTES = 2**22


class ArraySource(AbstractSource):
    """Examples in memory, or in files: arrays with equal leading axes."""

    def __init__(
        self,
        data: PyTree,
        batch_size: int | None,
        *,
        endless: bool = False,
        shuffle: bool = False,
        name: str = "data",
    ):
        self.arrays = as_arrays(data, name=name, files=True)
        self._n = n = len(jax.tree.leaves(self.arrays)[0])
        # To measure, a batch as large as the data will do; to train, it is a mistake.
        self._size = min(n, checked_batch_size(batch_size, n if endless else None))
        self._full, self._tail = divmod(n, self._size)
        self.length = self._full + (self._tail > 0)
        # The full batch has no order: shuffled or not, it is the same sum.
        self._shuffle = shuffle and self.length > 1
        self._seed: list[int] = []
        self._drawn: tuple[int, np.ndarray] = (-1, np.empty(0))  # the latest epoch's order
        epoch_bytes = max(1, nbytes(self.arrays))
        most = min(_SHARED_BYTES, _stack.STACK_BYTES) // epoch_bytes
        shared = min(_STACK_UPDATES // self.length, most)
        self._epochs = max(1, shared) if endless else 1  # in a stack
        # Batches in a stack of a part of an epoch.
        self._part = min(self._full, max(1, self._full * _stack.STACK_BYTES // epoch_bytes))
        # A run's first stack is not filled, but for a share of it, so that the device begins soon.
        self._first_share = 16 if endless else 1

    def begin(self, key: PRNGKeyArray, mark: Any = None) -> None:
        """Shuffle, if at all, in the order that a key and the epoch fix."""
        self._drawn = (-1, np.empty(0))
        if self._shuffle:
            self._seed = np.ravel(jax.random.key_data(key)).tolist()

    @property
    def example(self) -> PyTree:
        """What stands for a batch in the preflight: all of the data, so that messages name it."""
        return self.arrays

    @functools.cached_property
    def _on_device(self) -> PyTree[Array]:
        return on_device(self.arrays)

    def stacks(self, epoch: int, batch: int) -> Iterator[Stack]:
        """The run's batches from a place on, without end."""
        if self.length == 1:
            full = on_device(in_memory(self.arrays))
            yield Stack(full, 0, sys.maxsize, epoch, self._n, 1, repeats=True)
            return
        share = self._first_share
        while True:
            skipped, batch = divmod(batch, self.length)
            epoch += skipped
            stack = self._whole_epochs if self._epochs > 1 else self._part_of_epoch
            yield (stack := stack(epoch, batch, share))
            batch, share = stack.end, max(1, share // 4)

    def _whole_epochs(self, epoch: int, batch: int, share: int) -> Stack:
        epochs = max(1, self._epochs // share)
        orders = np.stack([self._order(epoch + i) for i in range(epochs)])
        rows, tails = np.split(orders, [self._full * self._size], axis=1)
        room = self._epochs * self._full, self._epochs
        return self._stack(rows, tails, room, batch, self.length * epochs, epoch)

    def _part_of_epoch(self, epoch: int, batch: int, share: int) -> Stack:
        if epoch != self._drawn[0]:
            self._drawn = epoch, self._order(epoch)
        rows, tails = np.split(self._drawn[1], [self._full * self._size])
        end = batch + max(1, self._part // share)
        rows = rows[batch * self._size : end * self._size]
        end = self.length if end >= self._full else end  # with the tail
        return self._stack(rows, tails, (self._part, 1), batch, end, epoch, origin=batch)

    def _stack(self, rows, tails, room, first, end, epoch, origin=0) -> Stack:
        """Batches from examples in some order, in arrays with room for so many, and for tails."""
        batches = self._gathered(rows.reshape(-1, self._size), room[0])
        tails = self._gathered(tails.reshape(-1, self._tail), room[1]) if self._tail else None
        return Stack(
            *(batches, first, end, epoch, self._size, self.length, origin),
            tails=tails,
            tail_size=self._tail,
        )

    def _gathered(self, rows: np.ndarray, room: int) -> PyTree[Array]:
        """The examples of some batches, in arrays with room for more of them."""
        if not gathers_on_host(self.arrays):
            return _gather(self._on_device, np.pad(rows, ((0, room - len(rows)), (0, 0))))
        return jax.tree.map(lambda leaf: _taken(leaf, rows, room), self.arrays)

    def _order(self, epoch: int) -> np.ndarray:
        """The examples in an epoch's order: a function of (key, epoch) and of nothing else."""
        if not self._shuffle:
            return np.arange(self._n, dtype=np.int32)
        seed = np.random.SeedSequence([*self._seed, epoch])
        order = np.random.Generator(np.random.Philox(seed)).permutation(self._n)
        return order.astype(np.int32)

    def batches(self, epoch: int) -> Iterator[PyTree]:
        """One epoch's batches, each by itself."""
        order = self._order(epoch)
        for start in range(0, self._n, self._size):
            rows = order[start : start + self._size]
            yield jax.tree.map(lambda leaf, rows=rows: leaf[rows], self.arrays)


Source = ArraySource | LoaderSource


def is_loader(data) -> bool:
    """Whether data is ready batches to iterate over, and not arrays."""
    return (
        isinstance(data, list)
        or is_function(data)
        or (
            hasattr(data, "__iter__")
            and not hasattr(data, "__array__")
            and not isinstance(data, str)
            and jax.tree_util.all_leaves([data])
        )
    )


def as_source(data, batch_size: int | None, *, name: str = "data", **order) -> Source:
    """Arrays, or a loader of ready batches: whichever `data` is.

    **Raises:** `DataError` if it is neither, or cannot be trained on.
    """
    if is_loader(data):
        return LoaderSource(data, batch_size, name=name)
    return ArraySource(data, batch_size, name=name, **order)


def batches(
    data: PyTree,
    batch_size: int | None = None,
    *,
    shuffle: bool = True,
    epoch: int = 0,
    key: PRNGKeyArray | None = None,
) -> Iterator[PyTree]:
    """The batches of one epoch, exactly as `Trainer.fit` would make them: for a loop of your own.

    **Arguments:**

    - `data`: a PyTree of arrays with equal leading axes, such as `(x, y)`.
    - `batch_size`: examples in a batch; `None` is all. The last batch may be smaller.
    - `shuffle`: whether to take the examples in the order that `key` and `epoch` fix.
    - `epoch`: which epoch, counted from 0.
    - `key`: the state's key; `None` is `jax.random.key(0)`.

    **Raises:** `DataError`, `ArgumentError` as `Trainer.fit` does.
    """
    source = ArraySource(data, batch_size, endless=True, shuffle=shuffle)
    source.begin(jax.random.key(0) if key is None else key)
    return source.batches(epoch)


def gathers_on_host(arrays: PyTree) -> bool:
    """Whether batches are made on the host, and not on the device, of all examples there."""
    # A CPU's memory is the host's: a copy of all examples would only take room and time. And
    # those in a file need not fit in a device's.
    return jax.default_backend() == "cpu" or in_files(arrays)


def _taken(leaf: np.ndarray | Array | FileArray, rows: np.ndarray, room: int) -> Array:
    """Rows of an array, gathered by the host, in one with room for more."""
    leaf = leaf if isinstance(leaf, FileArray) else np.asarray(leaf)
    gathered = memory((room, *rows.shape[1:], *leaf.shape[1:]), leaf.dtype)
    if isinstance(leaf, FileArray):
        leaf.read(rows, gathered[: len(rows)])
    else:
        leaf.take(rows, axis=0, out=gathered[: len(rows)], mode="clip")
    return jax.device_put(gathered)


@jax.jit
def _gather(arrays: PyTree, rows: Array) -> PyTree:
    """The examples of some batches."""
    return jax.tree.map(lambda leaf: leaf.at[rows].get(mode="promise_in_bounds"), arrays)
