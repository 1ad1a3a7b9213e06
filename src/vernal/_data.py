"""Examples to batches, in an order that (key, epoch) fixes."""

import functools
import itertools
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from vernal._arrays import as_arrays, checked_batch_size
from vernal._errors import ArgumentError, DataError
from vernal._jit import signature
from vernal._stack import Stack

# How much is gathered at once. Small epochs share a stack until it has so many updates, or takes so
# many bytes, that a call's own cost no longer shows; a large epoch is taken in parts.
_STACK_UPDATES = 1024
_SHARED_BYTES = 2**22
_STACK_BYTES = 2**25


class _Source:
    # Whether many batches may be taken in one compiled loop. XLA lays the numbers of a convolution
    # out for a CPU only outside of loops: inside, one takes several times as long, and is rounded
    # in another way.
    loops: bool = True


class ArraySource(_Source):
    """Examples in memory: arrays with equal leading axes."""

    def __init__(
        self,
        data: PyTree,
        batch_size: int | None,
        *,
        endless: bool = False,
        shuffle: bool = False,
        name: str = "data",
    ):
        self.arrays = as_arrays(data, name=name)
        self._n = n = len(jax.tree.leaves(self.arrays)[0])
        # To measure, a batch as large as the data will do; to train, it is a mistake.
        self._size = min(n, checked_batch_size(batch_size, n if endless else None))
        self._full, self._tail = divmod(n, self._size)
        self.length = self._full + (self._tail > 0)
        # The full batch has no order: shuffled or not, it is the same sum.
        self._shuffle = shuffle and self.length > 1
        self._seed: list[int] = []
        epoch_bytes = max(1, _nbytes(self.arrays))
        shared = min(_STACK_UPDATES // self.length, _SHARED_BYTES // epoch_bytes)
        self._epochs = max(1, shared) if endless else 1  # in a stack
        self._part = max(1, self._full * _STACK_BYTES // epoch_bytes)  # batches in one, if fewer

    def order_by(self, key: PRNGKeyArray) -> None:
        """Shuffle, if at all, in the order that a key and the epoch fix."""
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
        while True:
            skipped, batch = divmod(batch, self.length)
            epoch += skipped
            if self.length == 1:
                yield Stack(on_device(self.arrays), 0, sys.maxsize, epoch, self._n, 1, repeats=True)
                return
            stack = self._whole_epochs if self._part >= self._full else self._part_of_epoch
            yield (stack := stack(epoch, batch))
            batch = stack.end

    def _whole_epochs(self, epoch: int, batch: int) -> Stack:
        orders = np.stack([self._order(epoch + i) for i in range(self._epochs)])
        rows, tails = np.split(orders, [self._full * self._size], axis=1)
        return self._stack(rows, tails, batch, self.length * self._epochs, epoch)

    def _part_of_epoch(self, epoch: int, batch: int) -> Stack:
        rows, tails = np.split(self._order(epoch)[None], [self._full * self._size], axis=1)
        part = rows[:, batch * self._size : (batch + self._part) * self._size]
        end = batch + part.size // self._size
        end = self.length if end >= self._full else end  # with the tail
        padding = self._part * self._size - part.size
        part = np.pad(part, ((0, 0), (0, padding)))
        return self._stack(part, tails, batch, end, epoch, origin=batch)

    def _stack(self, rows, tails, first, end, epoch, origin=0) -> Stack:
        orders = rows.reshape(-1, self._size), tails if self._tail else None
        batches, tails = self._gathered(orders)
        return Stack(
            *(batches, first, end, epoch, self._size, self.length, origin),
            tails=tails,
            tail_size=self._tail,
        )

    def _gathered(self, orders: PyTree[np.ndarray]) -> PyTree[Array]:
        """The examples of each of some orders."""
        if jax.default_backend() != "cpu":
            return _gather(self._on_device, orders)
        # The host's memory is the device's: a copy of all examples would only take room and time.
        return jax.tree.map(
            lambda rows: jax.tree.map(lambda leaf: _taken(leaf, rows), self.arrays), orders
        )

    def _order(self, epoch: int) -> np.ndarray:
        """The examples in an epoch's order: a function of (key, epoch) and of nothing else."""
        if not self._shuffle:
            return np.arange(self._n, dtype=np.int32)
        seed = np.random.SeedSequence([*self._seed, epoch])
        order = np.random.Generator(np.random.Philox(seed)).permutation(self._n)
        return order.astype(np.int32)

    def one_pass(self) -> Iterator[Stack]:
        """One epoch, and no more."""
        return _first_epoch(self.stacks(0, 0))

    def batches(self, epoch: int) -> Iterator[PyTree]:
        """One epoch's batches, each by itself."""
        order = self._order(epoch)
        for start in range(0, self._n, self._size):
            rows = order[start : start + self._size]
            yield jax.tree.map(lambda leaf, rows=rows: leaf[rows], self.arrays)


class LoaderSource(_Source):
    """Ready batches from anything that can be iterated again and again."""

    def __init__(self, loader: Iterable, batch_size: int | None, *, name: str = "data"):
        self._name = name
        if batch_size is not None:
            raise ArgumentError(
                f"batch_size={batch_size} was given with a loader, whose batches have a size "
                "already.\n  Leave batch_size out, or pass arrays."
            )
        if isinstance(loader, Iterator):
            raise DataError(
                f"{name} is a {type(loader).__name__}, which can be read only once; every epoch "
                "reads it again.\n  Pass what it was made from: a list, or an object whose "
                "__iter__ starts afresh."
            )
        self._loader = loader
        self._capacities: dict[Any, int] = {}
        self.check: Callable[[PyTree], Any] = lambda batch: None  # the first batch of each shape
        self.check_labels: Callable[[PyTree], Any] = lambda batch: None  # every batch
        self.length = len(loader) if isinstance(loader, Sized) else sys.maxsize
        first = next(iter(loader), None)
        if first is None:
            raise DataError(f"{name} is a {type(loader).__name__} without a single batch.")
        self.example = as_arrays(first, finite=False)

    def order_by(self, key: PRNGKeyArray) -> None:
        """Do nothing: a loader has an order of its own."""

    def stacks(self, epoch: int, batch: int) -> Iterator[Stack]:
        """The run's batches from a place on, without end."""
        while True:
            batches = (as_arrays(item, finite=False) for item in self._loader)
            skipped = sum(1 for _ in itertools.islice(batches, batch))
            if skipped < batch:  # the place was counted over several epochs
                if skipped == 0:
                    raise DataError(f"{self._name} had no batches when it was read again.")
                more, batch = divmod(batch, skipped)
                epoch += more
                continue
            yield from self._epoch(batches, epoch, batch)
            epoch, batch = epoch + 1, 0

    def one_pass(self) -> Iterator[Stack]:
        """One epoch, and no more."""
        return _first_epoch(self.stacks(0, 0))

    def _epoch(self, batches: Iterator[PyTree], epoch: int, batch: int) -> Iterator[Stack]:
        pending = next(batches, None)
        if pending is None and batch == 0:
            raise DataError(
                f"{self._name} had no batches when it was read again."
                "\n  Pass a list, or an object whose __iter__ starts afresh."
            )
        while pending is not None:
            shape = signature(pending)
            if shape not in self._capacities:
                self.check(pending)
            room = self._capacities.get(shape) or max(1, min(256, _STACK_BYTES // _nbytes(pending)))
            items = [pending]
            while (pending := next(batches, None)) is not None:
                if len(items) == room or signature(pending) != shape:
                    break
                items.append(pending)
            for item in items:
                self.check_labels(item)
            # The first stack of a shape settles how long its stacks are: one compilation for all.
            room = self._capacities.setdefault(shape, len(items))
            padded = items + items[:1] * (room - len(items))
            stacked = on_device(jax.tree.map(lambda *leaves: np.stack(leaves), *padded))
            size = len(jax.tree.leaves(items[0])[0])
            end = batch + len(items)
            length = end if pending is None else sys.maxsize
            yield Stack(stacked, batch, end, epoch, size, length, origin=batch)
            batch = end


Source = ArraySource | LoaderSource


def is_loader(data) -> bool:
    """Whether data is ready batches to iterate over, and not arrays."""
    return isinstance(data, list) or (
        hasattr(data, "__iter__")
        and not hasattr(data, "__array__")
        and not isinstance(data, str)
        and jax.tree_util.all_leaves([data])
    )


def as_source(data, batch_size: int | None, *, name: str = "data", **order) -> Source:
    """Arrays in memory, or a loader of ready batches: whichever `data` is.

    **Raises:** `DataError` if it is neither, or cannot be trained on.
    """
    if is_loader(data):
        return LoaderSource(data, batch_size, name=name)
    return ArraySource(data, batch_size, name=name, **order)


def _first_epoch(stacks: Iterator[Stack]) -> Iterator[Stack]:
    for stack in stacks:
        yield stack
        if stack.repeats or stack.end >= stack.length:
            return


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
    source.order_by(jax.random.key(0) if key is None else key)
    return source.batches(epoch)


def _nbytes(tree: PyTree) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def _taken(leaf: np.ndarray | Array, rows: np.ndarray) -> Array:
    """The rows of an array, gathered by NumPy."""
    leaf = np.asarray(leaf)
    shape = rows.shape + leaf.shape[1:]
    # JAX takes memory that begins at a multiple of 64 bytes as it is, and copies other.
    memory = np.empty(math.prod(shape) * leaf.itemsize + 64, np.uint8)
    start = -memory.ctypes.data % 64
    gathered = memory[start : start + memory.size - 64].view(leaf.dtype).reshape(shape)
    return jax.device_put(leaf.take(rows, axis=0, out=gathered, mode="clip"))


@jax.jit
def _gather(arrays: PyTree, orders: PyTree[Array]) -> PyTree:
    """The examples of each of some orders."""
    take = lambda rows: jax.tree.map(
        lambda leaf: leaf.at[rows].get(mode="promise_in_bounds"), arrays
    )
    return jax.tree.map(take, orders)


@jax.jit
def on_device(arrays: PyTree) -> PyTree:
    """Bring NumPy's arrays to the device."""
    # For small arrays the way through a compiled function is faster than `jax.device_put`.
    return arrays
