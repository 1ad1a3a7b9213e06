"""Arrays that lie in a file: read as they are needed, and never all at once."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from vernal import _limits


def is_in_file(array: Any) -> bool:
    """Whether this is an array that NumPy would read: h5py's, Zarr's, or mapped by NumPy."""
    if isinstance(array, np.ndarray | np.generic | jax.Array):
        return isinstance(array, np.memmap) and array.ndim > 0
    # A series of pandas is in memory, and is indexed by labels.
    is_like = hasattr(array, "__array__") and not hasattr(array, "iloc")
    return is_like and isinstance(getattr(array, "dtype", None), np.dtype) and array.ndim > 0


class FileArray:
    """An array in a file, with what is asked of arrays in memory. Its rows are the examples."""

    def __init__(self, array: Any):
        self._array = np.asarray(array) if isinstance(array, np.memmap) else array
        probe = self._array[:0]
        read = np.asarray(probe)
        self.shape: tuple[int, ...] = tuple(array.shape)
        self.ndim, self.size = len(self.shape), int(np.prod(self.shape, dtype=np.int64))
        self.dtype = held_as(read.dtype)
        # Whether reading may lose something: values that do not fit, or a mask.
        self.may_lose = isinstance(probe, np.ma.MaskedArray) or narrows(read.dtype)
        self.nbytes = self.size * self.dtype.itemsize
        row_bytes = max(1, self.size // max(1, len(self)) * read.dtype.itemsize)
        # Any part of a chunk costs as much to read as all of it.
        chunks = getattr(array, "chunks", None)
        chunk = int(np.max(chunks[0])) if chunks else 1
        limits = _limits.current()
        # Rows to read at once; and how many, that are not needed, are rather read than skipped.
        self._block = max(1, limits.read_bytes // row_bytes // chunk) * chunk
        self._gap = chunk if chunks else max(1, limits.gap_bytes // row_bytes)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        self.read(rows, out)
        return out

    def read(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Read rows of any order into an array; both may have several leading axes."""
        if isinstance(self._array, np.ndarray) and self._array.dtype == out.dtype:
            self._array.take(rows, axis=0, out=out, mode="clip")
            return
        # From the front to the back, in slices: a file takes long to look rows up one by one.
        out = out.reshape(-1, *self.shape[1:])
        order = np.argsort(rows, axis=None)
        rows = rows.ravel()[order]
        ends = (np.diff(rows) > self._gap) | (np.diff(rows // self._block) > 0)
        for part in np.split(np.arange(len(rows)), np.flatnonzero(ends) + 1) if len(rows) else ():
            wanted = rows[part]
            read = np.asarray(self._array[wanted[0] : wanted[-1] + 1])
            out[order[part]] = read[wanted - wanted[0]]

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """All of it as the file has it, in parts: the number of the first row, and the rows."""
        for start in range(0, len(self), self._block):
            yield start, self._array[start : start + self._block]


def is_number(dtype: Any) -> bool:
    """Whether JAX computes with values of a dtype. NumPy counts spans of time as integers."""
    return dtype == np.dtype(bool) or (jnp.issubdtype(dtype, jnp.number) and dtype.kind != "m")


def held_as(dtype: np.dtype) -> np.dtype:
    """The dtype that numbers have in memory: this machine's byte order, and as wide as JAX's."""
    if dtype.kind not in "iufc":
        return dtype
    widest = {"g": np.float64, "G": np.complex128}  # JAX has no long double
    native = np.dtype(widest.get(dtype.char, dtype.newbyteorder("=")))
    return jax.dtypes.canonicalize_dtype(native)


def narrows(dtype: np.dtype) -> bool:
    """Whether numbers of a dtype are wider in a user's array than in memory."""
    return held_as(dtype).itemsize < dtype.itemsize


def blocks(array: np.ndarray | Array | FileArray) -> Iterator[tuple[int, Any]]:
    """What an array holds: at once, or in parts if it is in a file; each with its first row."""
    return array.blocks() if isinstance(array, FileArray) else iter([(0, np.asarray(array))])


def in_files(arrays: PyTree) -> bool:
    """Whether one of some arrays is in a file."""
    return any(isinstance(leaf, FileArray) for leaf in jax.tree.leaves(arrays))


def read_whole(arrays: PyTree) -> PyTree:
    """The same arrays, with all that is in files."""
    return jax.tree.map(lambda leaf: leaf[:] if isinstance(leaf, FileArray) else leaf, arrays)
