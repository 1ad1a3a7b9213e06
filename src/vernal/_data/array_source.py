"""Arrays of examples to batches, in an order that the key and the pass fix."""

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, PRNGKeyArray, PyTree

from vernal import _limits
from vernal._data.arrays import as_arrays, empty, nbytes
from vernal._data.batch_size import batch_size_for
from vernal._data.files import FileArray, in_files, read_whole
from vernal._data.superbatch import Start, Superbatch
from vernal._sharding import made_in_parts, split_over_devices

# The numbers of the examples in the order of a pass, by the number of the pass.
Order = Callable[[int], np.ndarray]
# What these numbers may be, the narrowest first: a device indexes by the first one alone.
_ROW_DTYPES = (np.int32, np.uint32, np.int64)


class ArraySource:
    """Batches of arrays with equal leading axes, in memory or in files.

    Args:
        data: A PyTree of arrays.
        batch_size: Examples in a batch; `None` is all of them.
        shuffle: Whether a pass takes the examples in an order of its own.
        trains: Whether the batches are trained on: then small passes are gathered several at once.
        finite: Whether every value needs to be finite.
        name: The argument that `data` is, for messages.
        mesh: The devices that share each batch; `None` is one alone.
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
        mesh: Mesh | None = None,
    ):
        self.arrays = as_arrays(data, name=name, files=True, finite=finite)
        self.examples = len(jax.tree.leaves(self.arrays)[0])
        self.batch_size = batch_size_for(self.examples, batch_size, mesh=mesh, trains=trains)
        self._mesh = mesh

        self._full_batches, self._last_size = divmod(self.examples, self.batch_size)
        self.pass_length = self._full_batches + (self._last_size > 0)
        # Of the batches of a pass; a full one, as shapes.
        self.sizes = [self.batch_size, self._last_size] if self._last_size else [self.batch_size]
        self.example = self.shapes(self.batch_size)
        # The full batch has no order: shuffled or not, the loss is the same average.
        self.shuffles = shuffle and self.pass_length > 1

        limits = _limits.current()
        is_long = self.examples > np.iinfo(_ROW_DTYPES[0]).max
        has_to = is_long or in_files(self.arrays) or mesh is not None
        self._on_host = limits.gathers_on_host or has_to
        pass_bytes = max(1, nbytes(self.arrays))
        by_bytes = limits.superbatch_bytes // pass_bytes
        by_steps = limits.superbatch_steps // self.pass_length
        self._passes_at_once = max(1, min(by_bytes, by_steps)) if trains else 1
        fitting = self._full_batches * limits.superbatch_bytes // pass_bytes
        # Full batches in a superbatch: of whole passes, or of a part of one.
        self._capacity = max(1, min(fitting, self._full_batches * self._passes_at_once))

    @property
    def kept(self) -> None:
        """What `resume` needs: nothing, for the key and the pass fix the order."""

    def resume(self, kept: Any, *, is_later: bool) -> None:
        """Do nothing, for the same reason."""

    def shapes(self, size: int) -> PyTree:
        """Return the shapes of so many examples."""
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype), self.arrays
        )

    def first(self, size: int) -> PyTree:
        """Return the first so many examples, in NumPy's memory."""
        return jax.tree.map(lambda leaf: np.asarray(leaf[:size]), self.arrays)

    def superbatches(self, start: Start) -> Iterator[Superbatch]:
        """Yield the batches of a run, without end."""
        if self.pass_length == 1:
            yield Superbatch(
                batches=self._on_device,
                data_pass=start.data_pass,
                start=0,
                stop=sys.maxsize,
                batch_size=self.examples,
                pass_length=1,
                repeats=True,
            )
            return

        order = _order(self.examples, start.key, shuffle=self.shuffles)
        data_pass, batch = start.data_pass, start.batch
        while True:
            skipped, batch = divmod(batch, self.pass_length)
            data_pass += skipped
            passes = self._passes_at_once if batch == 0 else 1
            passes = max(1, min(passes, start.last_pass - data_pass))
            stop = passes * self.pass_length
            if passes == 1 and batch + self._capacity < self._full_batches:
                stop = batch + self._capacity
            yield self._gathered(order, data_pass, batch, stop)
            batch = stop

    def one_pass(self) -> Iterator[Superbatch]:
        """Yield the batches of one pass, in the order of the data."""
        for superbatch in self.superbatches(Start()):
            yield superbatch
            if superbatch.repeats or superbatch.stop >= superbatch.pass_length:
                return

    def batches(self, data_pass: int, key: PRNGKeyArray | None) -> Iterator[PyTree]:
        """Yield the batches of one pass one by one."""
        rows = _order(self.examples, key, shuffle=self.shuffles)(data_pass)
        for start in range(0, self.examples, self.batch_size):
            batch_rows = rows[start : start + self.batch_size]
            yield jax.tree.map(lambda leaf, rows=batch_rows: leaf[rows], self.arrays)

    def _gathered(self, order: Order, data_pass: int, start: int, stop: int) -> Superbatch:
        """Gather the batches between two cursors: of whole passes, or of a part of one."""
        passes = -(-stop // self.pass_length)
        rows = np.stack([order(data_pass + i) for i in range(passes)])
        in_full_batches = self._full_batches * self.batch_size
        full, last = np.split(rows, [in_full_batches], axis=1)

        # A part of a pass may end within the full batches, or include the last one.
        part = full[:, start * self.batch_size : stop * self.batch_size]
        last_batches = None
        if self._last_size:
            has_last = stop % self.pass_length == 0
            last_batches = self._take(last if has_last else last[:0], self._passes_at_once)

        return Superbatch(
            batches=self._take(part.reshape(-1, self.batch_size), self._capacity),
            data_pass=data_pass,
            start=start,
            stop=stop,
            batch_size=self.batch_size,
            pass_length=self.pass_length,
            last_batches=last_batches,
            last_size=self._last_size,
        )

    def _take(self, rows: np.ndarray, capacity: int) -> PyTree:
        """Gather the examples of some batches, in arrays with space for `capacity` of them."""

        def taken_on_host(leaf: Any) -> np.ndarray | Array:
            shape = capacity, *rows.shape[1:], *leaf.shape[1:]
            part_of = functools.partial(_take_on_host, leaf, rows, capacity)
            return made_in_parts(self._mesh, shape, part_of, axis=1)

        if self._on_host:
            return jax.tree.map(taken_on_host, self.arrays)

        padded = np.pad(rows, ((0, capacity - len(rows)), (0, 0)))
        return _take_on_device(self._on_device, padded)

    @functools.cached_property
    def _on_device(self) -> PyTree:
        return split_over_devices(self._mesh, read_whole(self.arrays))


def _order(examples: int, key: PRNGKeyArray | None, *, shuffle: bool) -> Order:
    """Make the order of the examples in each pass: a function of the key and the pass alone."""
    dtype = next(each for each in _ROW_DTYPES if examples <= np.iinfo(each).max)
    if not shuffle:
        in_order = np.arange(examples, dtype=dtype)
        return lambda data_pass: in_order

    key = jax.random.key(0) if key is None else key
    seed = np.random.SeedSequence(np.ravel(jax.random.key_data(key)).tolist())
    philox: Any = np.random.Philox(seed)
    generator = np.random.Generator(philox)

    @functools.lru_cache(maxsize=1)  # a large pass is gathered in parts
    def drawn(data_pass: int) -> np.ndarray:
        # Philox makes its numbers from a key and a counter. Each pass begins at a counter of its
        # own, which takes a tenth of the time of a new generator.
        state = philox.state
        counter = np.array([0, 0, data_pass, 0], np.uint64)
        begun = {"counter": counter, "key": state["state"]["key"]}
        philox.state = {**state, "state": begun, "buffer_pos": 4, "has_uint32": 0}
        return generator.permutation(examples).astype(dtype)

    return drawn


def _take_on_host(
    leaf: np.ndarray | Array | FileArray, rows: np.ndarray, capacity: int, examples: slice
) -> np.ndarray:
    """Gather some examples of each batch."""
    rows = rows[:, examples]
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
