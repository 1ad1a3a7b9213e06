"""Where a model's modules and arrays are, by one walk through a model; arrays without values."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
from jaxtyping import PyTree

from vernal._data.files import FileArray


class Found(NamedTuple):
    """A module or an array at one place in a model.

    Attributes:
        path: The place, as Python writes it: ".layers[0]"; "" is the model itself.
        thing: The module or the array.
        owner: The path of the module that holds it.
        first: The path at which the walk met the same object first; `path` for a new object.
    """

    path: str
    thing: Any
    owner: str
    first: str


def walk(model: PyTree) -> Iterator[Found]:
    """Yield a model, then every module and array in it, depth first.

    An object at two places is yielded twice, but what it holds only the first time. An
    `eqx.nn.Shared` holds what a call of it returns, so that the things it shares are at two places.
    """
    first: dict[int, Found] = {}  # whole, which keeps the `id`s from being used again

    def visit(thing: Any, path: str, owner: str) -> Iterator[Found]:
        met = first.get(id(thing))
        found = Found(path, thing, owner, path if met is None else met.path)
        yield found
        if met is not None:
            return
        first[id(thing)] = found
        node = _filled(thing) if isinstance(thing, eqx.nn.Shared) else thing

        def is_inside(part: Any) -> bool:
            return part is not node and isinstance(part, eqx.Module)

        for keys, part in jax.tree_util.tree_flatten_with_path(node, is_leaf=is_inside)[0]:
            if part is not thing and (is_inside(part) or eqx.is_array(part)):
                yield from visit(part, path + jax.tree_util.keystr(keys), path)

    return visit(model, path="", owner="")


def _filled(shared: eqx.nn.Shared) -> eqx.nn.Shared:
    """Return an `eqx.nn.Shared` that holds what a call of the given one returns."""
    filled = []

    def fill() -> None:
        filled.append(eqx.tree_at(lambda node: node.pytree, shared, shared()))

    # What is shared may be computed, as by a transpose. Traced, nothing is.
    jax.eval_shape(fill)
    return filled[0]


def module_paths(model: PyTree) -> dict[int, tuple[str, eqx.Module]]:
    """Return every module in a model by its `id`: its first path, and the module itself."""
    return {
        id(found.thing): (found.path, found.thing)
        for found in walk(model)
        if isinstance(found.thing, eqx.Module) and found.path == found.first
    }


def shapes_of(tree: PyTree) -> PyTree:
    """Replace every array by its `jax.ShapeDtypeStruct`; other leaves stay as they are.

    The dtypes are those that JAX gives the arrays: single precision, unless x64 is enabled.
    """

    def shape_of(leaf):
        if not (eqx.is_array(leaf) or isinstance(leaf, FileArray | jax.ShapeDtypeStruct)):
            return leaf
        dtype = jax.dtypes.canonicalize_dtype(leaf.dtype, allow_extended_dtype=True)
        return jax.ShapeDtypeStruct(leaf.shape, dtype)

    return jax.tree.map(shape_of, tree)
