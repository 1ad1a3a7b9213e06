"""What counts as arrays of examples, and whether they can be trained on."""

import functools
import math
import sys
from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree

from vernal._data.files import FileArray, blocks, held_as, is_in_file
from vernal.errors import ArgumentError, DataError, ExamplesError

PARTS = ("x", "y", "sample_weight")  # what users call the parts of a batch
# How many bytes NumPy's memory must be aligned to, so that JAX on a CPU reads it without a copy.
_ALIGNMENT = 64


def as_arrays(
    data: PyTree, *, name: str = "data", finite: bool = True, files: bool = False
) -> PyTree:
    """Turn everything in `data` that counts as an array into one, and check it.

    With `files`, what lies in a file stays there, as a `FileArray`.

    Raises:
        DataError: If a leaf is not numeric, lengths differ, there is no example, or, with `finite`,
            a value is NaN or infinite.
    """

    def is_list(node: Any) -> bool:
        return isinstance(node, list)

    flat, treedef = jax.tree_util.tree_flatten_with_path(data, is_leaf=is_list)
    if not flat:
        raise DataError(f"{name} has no arrays in it: {data!r}.\n  Pass (x, y).")
    leaves = {leaf_name(name, data, path): leaf for path, leaf in flat}
    arrays = {each: _as_array(each, leaf, files) for each, leaf in leaves.items()}
    tree = jax.tree.unflatten(treedef, arrays.values())

    for each, array in arrays.items():
        if array.ndim == 0:
            raise ExamplesError(
                f"{each} is a single number; it needs a leading axis, the examples.", tree
            )
    lengths = {each: len(array) for each, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{each} has {length}" for each, length in lengths.items())
        raise ExamplesError(f"{name} needs as many examples of each: {listed}.", tree)
    for each, array in arrays.items():
        if len(array) == 0:
            raise ExamplesError(f"{each} has no examples: its shape is {array.shape}.", tree)
        if finite:
            _check_finite(each, array)
    return tree


def _as_array(name: str, leaf, files: bool) -> np.ndarray | Array | FileArray:
    if not isinstance(leaf, jax.Array):
        try:
            leaf = FileArray(leaf) if files and is_in_file(leaf) else np.asarray(leaf)
        except Exception as error:
            raise DataError(f"{name} cannot be made an array: {error}") from error
    if not (jnp.issubdtype(leaf.dtype, jnp.number) or leaf.dtype == bool):
        first = ""
        if leaf.size:
            some = leaf[:1] if isinstance(leaf, FileArray) else leaf
            first = f", the first of them {some.ravel()[0]!r}"
        raise DataError(
            f"{name} needs numbers; it holds {leaf.dtype} values{first}."
            "\n  Encode them as numbers first."
        )
    if isinstance(leaf, np.ndarray):
        with np.errstate(over="ignore"):  # what single precision cannot hold is found below
            leaf = leaf.astype(held_as(leaf.dtype), copy=False)
    return leaf


def _check_finite(name: str, array: np.ndarray | Array | FileArray) -> None:
    # A sum is finite only if every value is, and costs one pass and no memory; only where it is
    # not (a large sum may overflow, too) are the values looked at one by one.
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return
    if isinstance(array, jax.Array) and np.isfinite(_sum(array)):
        return
    number, first = 0, ""
    for start, values in blocks(array):
        with np.errstate(all="ignore"):
            if np.isfinite(values.sum()):
                continue
        bad = np.argwhere(~np.isfinite(np.asarray(values, np.promote_types(values.dtype, "f4"))))
        if len(bad) and not number:
            where = ", ".join(map(str, [start + bad[0][0], *bad[0][1:]]))
            first = f"{name}[{where}], {values[tuple(bad[0])]}"
        number += len(bad)
    if number:
        many = "1 value that is" if number == 1 else f"{number} values that are"
        raise DataError(
            f"{name} has {many} not finite, of {array.size}: the first is {first}."
            f"\n  Drop those examples, or try np.where(np.isfinite({name}), {name}, 0)."
        )


@jax.jit
def _sum(array):
    return array.sum()


def leaf_name(name: str, data: PyTree, path: tuple) -> str:
    """Name a leaf as a user would: x, y, sample_weight, or its path in the argument."""
    if name in ("data", "validation_data") and type(data) is tuple and len(data) in (2, 3):
        return PARTS[path[0].idx] + jax.tree_util.keystr(path[1:])
    return name + jax.tree_util.keystr(path)


def checked_batch_size(batch_size, most: int | None) -> int:
    """Return a batch size as an int, without bound for `None`.

    Raises:
        ArgumentError: If it is not a whole number from 1 to `most`.
    """
    if batch_size is None:
        return sys.maxsize
    is_whole = isinstance(batch_size, int | np.integer) and not isinstance(batch_size, bool)
    if not is_whole or not 1 <= batch_size <= (most or sys.maxsize):
        limit = "" if most is None else f" to {most}, the number of examples"
        raise ArgumentError(
            f"batch_size needs to be a whole number from 1{limit}; it is {batch_size!r}."
            "\n  batch_size=None is the full batch."
        )
    return int(batch_size)


def signature(arrays: PyTree) -> Hashable:
    """Return what decides whether a compiled program serves again: structure, shapes, dtypes."""
    leaves, treedef = jax.tree.flatten(arrays)
    in_jax = functools.partial(jax.dtypes.canonicalize_dtype, allow_extended_dtype=True)
    return treedef, tuple((leaf.shape, in_jax(leaf.dtype)) for leaf in leaves)


def nbytes(arrays: PyTree) -> int:
    """Return the size of some arrays, in bytes."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(arrays))


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return a new array, in memory that JAX on a CPU reads without a copy."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    offset = -memory.ctypes.data % _ALIGNMENT

    return memory[offset : offset + size].view(dtype).reshape(shape)


def on_device(arrays: PyTree) -> PyTree:
    """Return arrays on the device; JAX's own stay where they are."""
    return jax.tree.map(jnp.asarray, arrays)


def row_of(arrays: PyTree, row: Any) -> PyTree:
    """Return one row of each of some arrays; its number may be known at run time only."""
    return jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, row, keepdims=False), arrays)
