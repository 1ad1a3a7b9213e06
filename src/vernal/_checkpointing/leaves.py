"""A PyTree's arrays by name, and digests of them: to save, and to check what is read."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from vernal.errors import CheckpointError


@dataclass(frozen=True)
class Leaf:
    """What an array is: its name, such as `model.layers.0.weight`, shape and dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.shape} {self.dtype}"


def named_arrays(tree: PyTree) -> dict[str, Array | np.ndarray]:
    """The arrays of a PyTree, by their paths: `layers.0.weight`.

    **Raises:** `CheckpointError` if two of them have the same.
    """
    found: dict[str, Array | np.ndarray] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if not _is_array(leaf):
            continue
        name = _name(path)
        if name in found:
            raise CheckpointError(
                f"two arrays of the {type(tree).__name__} have the name {name}."
                "\n  Give the keys of its dicts names without dots."
            )
        found[name] = leaf
    return found


def with_arrays(tree: PyTree, arrays: Mapping[str, Any]) -> PyTree:
    """A PyTree with other arrays, by the names that `named_arrays` gives them."""
    pick = lambda path, leaf: arrays.get(_name(path), leaf) if _is_array(leaf) else leaf
    return jax.tree_util.tree_map_with_path(pick, tree)


def _is_array(leaf: Any) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, np.ndarray | jax.ShapeDtypeStruct)


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def described(arrays: Mapping[str, Array | np.ndarray]) -> list[Leaf]:
    """What arrays are, by name; of keys, the numbers that they are made of."""
    numbers = lambda a: jax.eval_shape(jax.random.key_data, a) if is_key(a) else a
    shapes = {name: numbers(array) for name, array in arrays.items()}
    return [Leaf(name, tuple(s.shape), str(s.dtype)) for name, s in shapes.items()]


def numbers_of(array: Array | np.ndarray) -> Array | np.ndarray:
    """An array, or the numbers that a key is made of."""
    return jax.random.key_data(array) if is_key(array) else array


def on_host(array: Array | np.ndarray) -> np.ndarray:
    """An array's numbers, on the host."""
    return np.asarray(numbers_of(array))


def as_like(numbers: Any, array: Array | np.ndarray) -> Array | np.ndarray:
    """Numbers as the kind of array that another is: NumPy's, JAX's with its sharding, or a key."""
    if isinstance(array, np.ndarray):
        return np.asarray(numbers)
    if is_key(array):
        return jax.random.wrap_key_data(jax.device_put(numbers), impl=jax.random.key_impl(array))
    return jax.device_put(numbers, array.sharding if is_placed(array) else None)


def is_placed(array: Any) -> bool:
    """Whether an array is on certain devices, and not just on those that are there anyway."""
    # For `jax.jit`, the two are not the same: it would compile again for an array that is placed.
    return isinstance(array, jax.Array) and array.committed


def is_key(array: Array | np.ndarray) -> bool:
    """Whether an array is of random keys."""
    return jnp.issubdtype(array.dtype, jax.dtypes.prng_key)


def digest(numbers: np.ndarray) -> str:
    """SHA-256 of an array's bytes, in hexadecimal."""
    return hashlib.sha256(np.ascontiguousarray(numbers).reshape(-1).view(np.uint8).data).hexdigest()


def check_alike(saved: Iterable[Leaf], wanted: Iterable[Leaf], where: str, mend: str) -> None:
    """See whether what was saved is what is wanted, leaf by leaf, by name.

    **Raises:** `CheckpointError`, which names the first leaf that differs, and both of its shapes.
    """
    there = {leaf.name: leaf for leaf in saved}
    needed = {leaf.name: leaf for leaf in wanted}
    for name, leaf in needed.items():
        if name in there and there[name] != leaf:
            raise CheckpointError(f"{name} is {there[name]} in {where}, but {leaf} here.\n  {mend}")
    missing = [name for name in needed if name not in there]
    extra = [name for name in there if name not in needed]
    if missing or extra:
        parts = [
            f"{where} has no {_few(missing)}" if missing else "",
            f"{where} has {_few(extra)}, which there is not here" if extra else "",
        ]
        raise CheckpointError(f"{'; '.join(part for part in parts if part)}.\n  {mend}")


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
