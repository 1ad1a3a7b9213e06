"""Arrays of examples to batches, in an order that the key and the epoch fix."""

import functools
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from vernal import _limits
from vernal._data.arrays import as_arrays, checked_batch_size, empty, nbytes, on_device
from vernal._data.files import FileArray, in_files, in_memory
from vernal._data.superbatch import Start, Superbatch


class ArraySource:
    """Batches of arrays with equal leading axes, in memory or in files.

    Args:
        data: A PyTree of arrays.
        batch_size: Examples in a batch; `None` is all of them.
        shuffle: Whether an epoch takes the examples in an order of its own.
        trains: Whether the batches are trained on: then small epochs are gathered several at once.
        finite: Whether every value needs to be finite.
        name: The argument that `data` is, for messages.
    """

    def __init__(
        self,
        data: PyTree,
        batch_size: int | None,
        *,
        shuffle: bool = False,
        trains: bool = False,
        finite: bool = False,
        name: str = "data",
    ):
        self.arrays = as_arrays(data, name=name, files=True, finite=finite)
        self.examples = len(jax.tree.leaves(self.arrays)[0])
        self.batch_size = min(self.examples, checked_batch_size(batch_size))

        self._full_batches, self._last_size = divmod(self.examples, self.batch_size)
        self.epoch_length = self._full_batches + (self._last_size > 0)
        # Of the batches of an epoch; a full one, as shapes.
        self.sizes = [self.batch_size, self._last_size] if self._last_size else [self.batch_size]
        self.example = self.shapes(self.batch_size)
        # The full batch has no order: shuffled or not, the loss is the same average.
        self._shuffle = shuffle and self.epoch_length > 1

        limits = _limits.current()
        self._on_host = limits.gathers_on_host or in_files(self.arrays)
        epoch_bytes = max(1, nbytes(self.arrays))
        shared = min(
            limits.superbatch_bytes // epoch_bytes,
            limits.superbatch_steps // self.epoch_length,
        )
        self._epochs_at_once = max(1, shared) if trains else 1
        fitting = self._full_batches * limits.superbatch_bytes // epoch_bytes
        # Full batches in a superbatch: of whole epochs, or of a part of one.
        self._capacity = max(1, min(fitting, self._full_batches * self._epochs_at_once))

    def shapes(self, size: int) -> PyTree:
        """Return the shapes of so many examples."""
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype), self.arrays
        )

    def first(self, size: int) -> PyTree:
        """Return the first so many examples, in NumPy's memory."""
        rows = np.arange(size)
        return jax.tree.map(lambda leaf: _take_on_host(leaf, rows, size), self.arrays)

    def superbatches(self, start: Start) -> Iterator[Superbatch]:
        """Yield the batches of a run, without end."""
        if self.epoch_length == 1:
            yield self._full_batch(start.epoch)
            return

        order = _Order(self.examples, start.key, shuffle=self._shuffle)
        epoch, batch = start.epoch, start.batch
        while True:
            skipped, batch = divmod(batch, self.epoch_length)
            epoch += skipped
            epochs = self._epochs_at_once if batch == 0 else 1
            epochs = max(1, min(epochs, start.last_epoch - epoch))
            if epochs > 1:
                stop = epochs * self.epoch_length
            elif batch + self._capacity < self._full_batches:
                stop = batch + self._capacity
            else:
                stop = self.epoch_length
            yield self._gathered(order, epoch, batch, stop)
            batch = stop

    def one_pass(self) -> Iterator[Superbatch]:
        """Yield the batches of one epoch, in the order of the data."""
        for superbatch in self.superbatches(Start()):
            yield superbatch
            if superbatch.repeats or superbatch.stop >= superbatch.epoch_length:
                return

    def batches(self, epoch: int, key: PRNGKeyArray | None) -> Iterator[PyTree]:
        """Yield the batches of one epoch one by one."""
        rows = _Order(self.examples, key, shuffle=self._shuffle)(epoch)
        for start in range(0, self.examples, self.batch_size):
            batch_rows = rows[start : start + self.batch_size]
            yield jax.tree.map(lambda leaf, rows=batch_rows: leaf[rows], self.arrays)

    def _full_batch(self, epoch: int) -> Superbatch:
        return Superbatch(
            batches=on_device(in_memory(self.arrays)),
            epoch=epoch,
            start=0,
            stop=sys.maxsize,
            batch_size=self.examples,
            epoch_length=1,
            repeats=True,
        )

    def _gathered(self, order: "_Order", epoch: int, start: int, stop: int) -> Superbatch:
        """Gather the batches between two cursors: of whole epochs, or of a part of one."""
        epochs = -(-stop // self.epoch_length)
        rows = np.stack([order(epoch + i) for i in range(epochs)])
        in_full_batches = self._full_batches * self.batch_size
        full, last = np.split(rows, [in_full_batches], axis=1)

        # A part of an epoch may end within the full batches, or include the last one.
        first_row = start * self.batch_size
        part = full if epochs > 1 else full[:, first_row : stop * self.batch_size]
        last_batches = None
        if self._last_size:
            has_last = stop % self.epoch_length == 0
            last_batches = self._take(last if has_last else last[:0], self._epochs_at_once)

        return Superbatch(
            batches=self._take(part.reshape(-1, self.batch_size), self._capacity),
            epoch=epoch,
            start=start,
            stop=stop,
            batch_size=self.batch_size,
            epoch_length=self.epoch_length,
            last_batches=last_batches,
            last_size=self._last_size,
        )

    def _take(self, rows: np.ndarray, capacity: int) -> PyTree:
        """Gather the examples of some batches, in arrays with space for `capacity` of them."""
        if self._on_host:
            return jax.tree.map(lambda leaf: _take_on_host(leaf, rows, capacity), self.arrays)

        padded = np.pad(rows, ((0, capacity - len(rows)), (0, 0)))
        return _take_on_device(self._on_device, padded)

    @functools.cached_property
    def _on_device(self) -> PyTree:
        return on_device(self.arrays)


class _Order:
    """The order of the examples in each epoch: a function of the key and the epoch alone."""

    def __init__(self, examples: int, key: PRNGKeyArray | None, *, shuffle: bool):
        self._examples = examples
        self._shuffle = shuffle
        self._latest = -1, np.empty(0, np.int32)
        if shuffle:
            key = jax.random.key(0) if key is None else key
            seed = np.random.SeedSequence(np.ravel(jax.random.key_data(key)).tolist())
            self._generator = np.random.Generator(np.random.Philox(seed))

    def __call__(self, epoch: int) -> np.ndarray:
        """Return the numbers of the examples, in the order of an epoch."""
        if self._latest[0] != epoch:  # a large epoch is gathered in parts
            self._latest = epoch, self._drawn(epoch)
        return self._latest[1]

    def _drawn(self, epoch: int) -> np.ndarray:
        if not self._shuffle:
            return np.arange(self._examples, dtype=np.int32)

        # Philox makes its numbers from a key and a counter. Each epoch begins at a counter of its
        # own, which takes a tenth of the time of a new generator.
        philox: Any = self._generator.bit_generator
        counter = np.array([0, 0, epoch, 0], np.uint64)
        state = philox.state
        begun = {"counter": counter, "key": state["state"]["key"]}
        philox.state = {**state, "state": begun, "buffer_pos": 4, "has_uint32": 0}
        return self._generator.permutation(self._examples).astype(np.int32)


def _take_on_host(
    leaf: np.ndarray | Array | FileArray, rows: np.ndarray, capacity: int
) -> np.ndarray:
    leaf = leaf if isinstance(leaf, FileArray) else np.asarray(leaf)
    gathered = empty((capacity, *rows.shape[1:], *leaf.shape[1:]), leaf.dtype)
    filled = gathered[: len(rows)]
    if isinstance(leaf, FileArray):
        leaf.read(rows, filled)
    else:
        leaf.take(rows, axis=0, out=filled, mode="clip")

    return gathered


@jax.jit
def _take_on_device(arrays: PyTree, rows: Array) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.at[rows].get(mode="promise_in_bounds"), arrays)
