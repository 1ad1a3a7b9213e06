"""What counts as arrays of examples, and whether they can be trained on."""

import functools
import math
from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree

from vernal._data.conversion import check_values, in_memory, line_that_works, not_numbers
from vernal._data.files import FileArray, is_in_file, is_number
from vernal.errors import DataError, ExamplesError, kind, warn

PARTS = ("x", "y", "sample_weight")  # what users call the parts of a batch
# How many bytes NumPy's memory must be aligned to, so that JAX on a CPU reads it without a copy.
_ALIGNMENT = 64


def as_arrays(data: PyTree, *, name="data", finite=False, files=False, aligned=True) -> PyTree:
    """Turn everything in `data` that counts as an array into one, with the numbers it has.

    Args:
        data: Any PyTree.
        name: The argument that `data` is, for messages.
        finite: Whether every value needs to be finite.
        files: Whether what lies in a file stays there, as a `FileArray`.
        aligned: Whether every array needs the same number of examples, along its leading axis.

    Raises:
        DataError: If a leaf is not numeric, there is no array, a value would change on the way, by
            a narrower dtype or without its mask, or, with `finite`, is not finite.
        ExamplesError: If lengths differ, or there is no example.
    """
    flat, treedef = jax.tree.flatten_with_path(data, is_leaf=lambda node: isinstance(node, list))
    if not flat:
        raise DataError(f"{name} has no arrays in it: {data!r}.\n  Pass (x, y).")
    leaves = {leaf_name(name, data, path): leaf for path, leaf in flat}
    arrays = {each: _as_array(each, leaf, files) for each, leaf in leaves.items()}
    tree = jax.tree.unflatten(treedef, arrays.values())

    if aligned or number_of_examples(tree) is not None:
        _check_lengths(name, arrays, tree)
    for each, array in arrays.items():
        if finite or (isinstance(array, FileArray) and array.may_lose):
            check_values(each, leaves[each], array, finite=finite)
    return tree


def as_batch(item: PyTree, *, aligned: bool) -> PyTree:
    """Turn a ready batch into arrays. A list of arrays, as PyTorch's loaders give, is a tuple."""
    if isinstance(item, list) and item and all(hasattr(part, "shape") for part in item):
        item = tuple(item)
    return as_arrays(item, aligned=aligned)


def warn_of_split(data: PyTree, name: str) -> None:
    """Warn of arrays that are split over devices, of which one alone will train on them."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(data):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_replicated:
            given = f"{leaf_name(name, data, path)} lies on {len(leaf.devices())} devices"
            hint = "Pass mesh= to the Trainer, so that they share each batch."
            warn(f"{given}, and one of them has all the work. {hint}")


def number_of_examples(arrays: PyTree) -> int | None:
    """Return the length of the leading axis that arrays have in common; `None` without one."""
    lengths = {leaf.shape[:1] for leaf in jax.tree.leaves(arrays)}
    return None if () in lengths or len(lengths) > 1 else lengths.pop()[0]


def _check_lengths(name: str, arrays: dict[str, Any], tree: PyTree) -> None:
    for each, array in arrays.items():
        if array.ndim == 0:
            raise ExamplesError(f"{each} is a single number; a leading axis is needed.", tree)
        if len(array) == 0:
            raise ExamplesError(f"{each} has no examples: its shape is {array.shape}.", tree)
    if len({len(array) for array in arrays.values()}) > 1:
        listed = ", ".join(f"{each} has {len(array)}" for each, array in arrays.items())
        raise ExamplesError(f"{name} needs as many examples of each: {listed}.", tree)


def _as_array(name: str, leaf: Any, files: bool) -> np.ndarray | Array | FileArray:
    array = leaf
    if not isinstance(leaf, jax.Array):
        _check_no_dataset(name, leaf)
        try:
            if files and is_in_file(leaf):
                array = FileArray(leaf)
            elif isinstance(leaf, list) and np.ma.MaskedArray in map(type, leaf):
                array = np.ma.stack(leaf)
            else:
                array = np.asanyarray(leaf)
        except Exception as error:
            hint = line_that_works(name, leaf)
            raise DataError(f"{name} cannot be made an array: {error}{hint}") from error
    if not is_number(array.dtype):
        raise not_numbers(name, leaf, array)
    return in_memory(name, leaf, array) if isinstance(array, np.ndarray) else array


def _check_no_dataset(name: str, leaf: Any) -> None:
    """Raise `DataError` for what only gives single items, such as a dataset of PyTorch's."""
    is_indexed = hasattr(leaf, "__getitem__") and hasattr(leaf, "__len__")
    is_array_like = hasattr(leaf, "__iter__") or hasattr(leaf, "__array__")
    if is_indexed and not is_array_like and len(leaf) and isinstance(leaf[0], tuple | list | dict):
        items = f"({name}[i] for i in range(len({name})))"
        raise DataError(
            f"{name} is {kind(leaf)} without __iter__; arrays are needed, or ready batches."
            f"\n  If its items are batches, try lambda: {items}."
            f"\n  If they are examples, try tuple(map(np.stack, zip(*{items}))), or a DataLoader."
        )


def leaf_name(name: str, data: PyTree, path: tuple) -> str:
    """Name a leaf as a user would: x, y, sample_weight, or its path in the argument."""
    if name in ("data", "validation_data") and type(data) is tuple and len(data) in (2, 3):
        return PARTS[path[0].idx] + jax.tree_util.keystr(path[1:])
    return name + jax.tree_util.keystr(path)


def signature(arrays: PyTree) -> Hashable:
    """Return what decides whether a compiled program serves again: structure, shapes, dtypes."""
    leaves, treedef = jax.tree.flatten(arrays)
    in_jax = functools.partial(jax.dtypes.canonicalize_dtype, allow_extended_dtype=True)
    return treedef, tuple((leaf.shape, in_jax(leaf.dtype)) for leaf in leaves)


def nbytes(arrays: PyTree) -> int:
    """Return the size of some arrays, or of shapes, in bytes."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(arrays))


@jax.jit
def copied(arrays: PyTree) -> PyTree:
    """Return copies of arrays, which may be given away."""
    return jax.tree.map(lambda leaf: jnp.array(leaf, dtype=leaf.dtype, copy=True), arrays)


def unshared(arrays: PyTree, others: PyTree) -> PyTree:
    """Return some arrays, or copies if one may lie in the memory of others, or of another one."""
    addresses = [_address(leaf) for leaf in jax.tree.leaves(arrays)]
    taken = {None, *(_address(leaf) for leaf in jax.tree.leaves(others))}
    are_apart = len(set(addresses)) == len(addresses) and taken.isdisjoint(addresses)
    return arrays if are_apart else copied(arrays)


def _address(leaf: Any) -> int | None:
    """Return where an array lies; `None` if it is not known, as of one on several devices."""
    try:
        return leaf.unsafe_buffer_pointer()
    except Exception:
        return None


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return a new array, in memory that JAX on a CPU reads without a copy."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    offset = -memory.ctypes.data % _ALIGNMENT

    return memory[offset : offset + size].view(dtype).reshape(shape)


def row_of(arrays: PyTree, row: Any) -> PyTree:
    """Return one row of each of some arrays; its number may be known at run time only."""
    return jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, row, keepdims=False), arrays)
