"""Examples to batches, in an order that (key, epoch) fixes."""

import functools
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from vernal._data import superbatch as _stack
from vernal._data.arrays import as_arrays, checked_batch_size
from vernal._data.files import FileArray, in_files, in_memory
from vernal._data.loader_source import LoaderSource, is_function
from vernal._data.memory import room_for
from vernal._data.superbatch import AbstractSource, Stack, nbytes, on_device, put

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
        self._endless = endless
        self._n = n = len(jax.tree.leaves(self.arrays)[0])
        # To measure, a batch as large as the data will do; to train, it is a mistake.
        self._size = min(n, checked_batch_size(batch_size, n if endless else None))
        self._full, self._tail = divmod(n, self._size)
        self.length = self._full + (self._tail > 0)
        # The full batch has no order: shuffled or not, it is the same sum.
        self._shuffle = shuffle and self.length > 1
        self._generator: np.random.Generator  # from `begin` on, to shuffle
        self._until = sys.maxsize  # the epoch that a run ends before
        self._drawn: tuple[int, np.ndarray] = (-1, np.empty(0))  # the latest epoch's order
        epoch_bytes = max(1, nbytes(self.arrays))
        self._on_host = gathers_on_host(self.arrays)
        times = 1 if self._on_host else _stack.ROOMIER
        most = times * min(_SHARED_BYTES, _stack.STACK_BYTES) // epoch_bytes
        shared = min(times * _STACK_UPDATES // self.length, most)
        self._epochs = max(1, shared) if endless else 1  # in a stack
        # Batches that a stack has room for, without tails.
        part = max(1, self._full * times * _stack.STACK_BYTES // epoch_bytes)
        self._room = self._full * self._epochs if self._epochs > 1 else min(self._full, part)

    def begin(self, key: PRNGKeyArray | None, mark: Any = None, until: int = sys.maxsize) -> None:
        """Shuffle, if at all, in the order that a key and the epoch fix."""
        self._until, self._drawn = until, (-1, np.empty(0))
        if self._shuffle:
            self._generator = np.random.Generator(
                np.random.Philox(np.random.SeedSequence(_seed(key)))
            )

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
        # A run's first stacks are not filled, so that the device begins soon, and trains on one as
        # long as it takes to gather the next. Where updates are not in a loop, they take longer.
        fills = self._on_host and self._endless and self.loops
        most = max(1, self._room // 16) if fills else self._room
        while True:
            skipped, batch = divmod(batch, self.length)
            epoch += skipped
            if batch == 0 and self._epochs > 1 and most >= self._full:
                yield (stack := self._whole_epochs(epoch, most // self._full))
            else:
                yield (stack := self._part_of_epoch(epoch, batch, batch + most))
            batch, most = stack.end, min(self._room, 4 * most)

    def _whole_epochs(self, epoch: int, epochs: int) -> Stack:
        epochs = max(1, min(epochs, self._until - epoch))
        orders = np.stack([self._order(epoch + i) for i in range(epochs)])
        rows, tails = np.split(orders, [self._full * self._size], axis=1)
        return self._stack(rows, tails, 0, self.length * epochs, epoch)

    def _part_of_epoch(self, epoch: int, batch: int, end: int) -> Stack:
        if epoch != self._drawn[0]:
            self._drawn = epoch, self._order(epoch)
        rows, tails = np.split(self._drawn[1], [self._full * self._size])
        rows = rows[batch * self._size : end * self._size]
        if end < self._full:
            return self._stack(rows, tails[:0], batch, end, epoch)
        return self._stack(rows, tails, batch, self.length, epoch)

    def _stack(self, rows, tails, first: int, end: int, epoch: int) -> Stack:
        """The batches, from the place `first` on, of examples in some order, and the tails."""
        orders = [(rows.reshape(-1, self._size), self._room)]
        if self._tail:
            orders.append((tails.reshape(-1, self._tail), self._epochs))
        batches, tails = [*self._gathered(orders), None][:2]
        return Stack(
            *(batches, first, end, epoch, self._size, self.length),
            origin=first,
            tails=tails,
            tail_size=self._tail,
        )

    def _gathered(self, orders: list[tuple[np.ndarray, int]]) -> list[PyTree[Array]]:
        """The examples of some batches, in arrays with room for so many."""
        if self._on_host:
            take = lambda rows, room: jax.tree.map(
                lambda leaf: _taken(leaf, rows, room, clear=not self._endless), self.arrays
            )
            return put([take(*order) for order in orders])
        pad = lambda rows, room: np.pad(rows, ((0, room - len(rows)), (0, 0)))
        return [_gather(self._on_device, pad(*order)) for order in orders]

    def _order(self, epoch: int) -> np.ndarray:
        """The examples in an epoch's order: a function of (key, epoch) and of nothing else."""
        if not self._shuffle:
            return np.arange(self._n, dtype=np.int32)
        # Philox makes its numbers of a key and a counter. An epoch begins at a counter of its own,
        # which takes a tenth of the time of a generator of its own.
        philox: Any = self._generator.bit_generator
        counter = np.array([0, 0, epoch, 0], np.uint64)
        state = philox.state
        fresh = {"counter": counter, "key": state["state"]["key"]}
        philox.state = {**state, "state": fresh, "buffer_pos": 4, "has_uint32": 0}
        return self._generator.permutation(self._n).astype(np.int32)

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
    source.begin(key)
    return source.batches(epoch)


def gathers_on_host(arrays: PyTree) -> bool:
    """Whether batches are made on the host, and not on the device, of all examples there."""
    # A CPU's memory is the host's: a copy of all examples would only take room and time. And
    # those in a file need not fit in a device's.
    return jax.default_backend() == "cpu" or in_files(arrays)


def _taken(leaf: np.ndarray | Array | FileArray, rows: np.ndarray, room: int, *, clear: bool):
    """Rows of an array, gathered by the host, in one with room for more."""
    leaf = leaf if isinstance(leaf, FileArray) else np.asarray(leaf)
    shape = room, *rows.shape[1:], *leaf.shape[1:]
    gathered = room_for(shape, leaf.dtype, len(rows), clear=clear)
    if isinstance(leaf, FileArray):
        leaf.read(rows, gathered[: len(rows)])
    else:
        leaf.take(rows, axis=0, out=gathered[: len(rows)], mode="clip")
    return gathered


def _seed(key: PRNGKeyArray | None) -> list[int]:
    """The numbers in a key; in that of 0, if there is none."""
    if key is None:  # as for most runs, whose device need not be asked
        config: Any = jax.config
        return _seed_of_none(config.jax_default_prng_impl)
    return np.ravel(jax.random.key_data(key)).tolist()


@functools.cache
def _seed_of_none(implementation: str) -> list[int]:
    return _seed(jax.random.key(0, impl=implementation))


@jax.jit
def _gather(arrays: PyTree, rows: Array) -> PyTree:
    """The examples of some batches."""
    return jax.tree.map(lambda leaf: leaf.at[rows].get(mode="promise_in_bounds"), arrays)
