"""The arrays of a PyTree by name: as they are stored, compared, and put back."""

import hashlib
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from vernal import _hosts
from vernal.errors import CheckpointError


def of(tree: PyTree) -> dict[str, Any]:
    """Return the arrays of a PyTree by their paths, such as `layers.0.weight`, as they are stored.

    Of random keys, these are the numbers behind them. Of shapes, these are shapes.

    Raises:
        CheckpointError: If two arrays have the same path, or one holds objects.
    """
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(eqx.filter(tree, _is_array)):
        name = _name(path)
        if name in found:
            problem = f"two arrays of the {type(tree).__name__} have the name {name}."
            raise CheckpointError(f"{problem}\n  Give the keys of its dicts names without dots.")
        found[name] = leaf if is_key(leaf) else _hosts.on_host(leaf)
        if is_key(leaf) and isinstance(leaf, jax.ShapeDtypeStruct):
            found[name] = jax.eval_shape(jax.random.key_data, leaf)
        elif is_key(leaf):
            found[name] = _hosts.on_host(jax.random.key_data(leaf))
        elif not is_storable(leaf.dtype):
            hint = "Make numbers of it, or keep it in a static field of the model."
            problem = f"{name} is an array of {leaf.dtype}, which cannot be stored."
            raise CheckpointError(f"{problem}\n  {hint}")
    return found


def with_arrays(tree: PyTree, values: Mapping[str, Any]) -> PyTree:
    """Return a PyTree with stored values in the place of its arrays.

    Args:
        tree: Says which kind of array each value becomes, and on which devices.
        values: Stored values by the names that `of` gives. Arrays without a value stay as they are.
    """

    def replaced(path, leaf):
        name = _name(path)
        return _restored(values[name], leaf) if _is_array(leaf) and name in values else leaf

    return jax.tree_util.tree_map_with_path(replaced, tree)


def within(named: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Return the arrays of one part of a PyTree, by their names in this part."""
    start = f"{part}."
    return {n[len(start) :]: value for n, value in named.items() if f"{n}.".startswith(start)}


def is_storable(dtype: Any) -> bool:
    """Return whether arrays of a dtype are bytes that its name gives a meaning: no objects."""
    return not dtype.hasobject and dtype.names is None


def written_as(array: Any) -> jax.ShapeDtypeStruct:
    """Return the shape and dtype that a stored array, of which these are given, is written with.

    These are its own, or else, of a dtype that not all storage knows, a last axis of bytes.
    """
    dtype = array.dtype
    is_common = dtype.kind in "biufc" and dtype.itemsize <= 8 and dtype.isnative
    if is_common or dtype.name in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
        return jax.ShapeDtypeStruct(array.shape, dtype)
    return jax.ShapeDtypeStruct((*array.shape, dtype.itemsize), np.uint8)


def written(arrays: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, list]]:
    """Return stored arrays as they are written, and what `read_back` needs to know of each."""
    described = {name: [a.shape, str(a.dtype), digest(a)] for name, a in arrays.items()}
    return {name: viewed(array, written_as(array)) for name, array in arrays.items()}, described


def read_back(arrays: Mapping[str, Any], described: Mapping[str, list]) -> dict[str, Any]:
    """Return stored arrays from what was written of them.

    Raises:
        ValueError: If an array is not what it was.
    """
    found = {}
    for name, (shape, dtype, expected) in described.items():
        found[name] = viewed(arrays[name], jax.ShapeDtypeStruct(shape, dtype))
        if digest(found[name]) != expected:
            raise ValueError(f"{name} is not what was written")
    return found


def viewed(values: Any, like: jax.ShapeDtypeStruct) -> Any:
    """Return the bytes of an array as another shape and dtype, to write it or to read it."""
    if (values.shape, values.dtype) == (like.shape, like.dtype):
        return values
    return np.asarray(values, order="C").reshape(-1).view(like.dtype).reshape(like.shape)


def is_key(array: Any) -> bool:
    """Return whether an array holds random keys."""
    return jnp.issubdtype(array.dtype, jax.dtypes.prng_key)


def digest(values: Array | np.ndarray) -> str:
    """Return the SHA-256 of a stored array's bytes, in hexadecimal."""
    contiguous = np.ascontiguousarray(values)
    return hashlib.sha256(contiguous.reshape(-1).view(np.uint8).data).hexdigest()


def check_alike(saved: dict[str, Any], needed: dict[str, Any], *, where: str, fix: str) -> None:
    """Check that what was saved has the arrays that are needed, with their shapes and dtypes.

    Args:
        saved: The saved arrays, or their shapes, by name.
        needed: The needed arrays, or their shapes, by name.
        where: What holds the saved arrays, for the message.
        fix: The last sentences of the message.

    Raises:
        CheckpointError: If they differ. The message names the first array that does.
    """
    for name in needed | saved:
        there, here = _described(saved, name), _described(needed, name)
        if there != here:
            raise CheckpointError(f"{name} is {there} in {where}, but {here} here.\n  {fix}")


def _described(arrays: dict[str, Any], name: str) -> str:
    """Write the shape and dtype of an array, such as `(4, 1) float32`."""
    return f"{arrays[name].shape} {arrays[name].dtype}" if name in arrays else "missing"


def _is_array(leaf: Any) -> bool:
    # A `jax.ShapeDtypeStruct` stands for an array to be filled in.
    return eqx.is_array(leaf) or isinstance(leaf, np.ndarray | jax.ShapeDtypeStruct)


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _restored(values: Any, like: Any) -> Array | np.ndarray:
    """Return stored values as the kind of array that another one is, on the same devices."""
    if isinstance(like, np.ndarray | np.generic):
        return values[()] if isinstance(like, np.generic) else values
    # Where JAX chose the place, it may choose again: `jax.jit` compiles anew for an array that was
    # put somewhere, even on the default device.
    # And where like is of many members, a member's array may not be split as it is.
    is_alike = values.ndim == like.ndim + is_key(like) and values.shape[: like.ndim] == like.shape
    is_chosen = isinstance(like, jax.Array) and not (like.committed and is_alike)
    placed = jax.device_put(values, None if is_chosen else like.sharding)
    if not is_key(like):
        return placed
    impl = jax.random.key_impl(jnp.empty((), like.dtype))
    return jax.random.wrap_key_data(placed, impl=impl)
