"""Where a model's modules and arrays are: the one walk through a model."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
from jaxtyping import PyTree


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

    An object at two places is yielded twice. What it holds is yielded only the first time. The
    places that an `eqx.nn.Shared` fills when it is called count as second places, too.
    """
    first: dict[int, str] = {}

    def visit(thing: Any, path: str, owner: str) -> Iterator[Found]:
        is_new = id(thing) not in first
        yield Found(path, thing, owner, first.setdefault(id(thing), path))
        if not is_new or eqx.is_array(thing):
            return
        for keys, part in _parts(thing):
            if isinstance(part, eqx.Module) or eqx.is_array(part):
                yield from visit(part, path + jax.tree_util.keystr(keys), path)
        if isinstance(thing, eqx.nn.Shared):
            yield from _filled(thing, path)

    return visit(model, path="", owner="")


def _parts(node: PyTree) -> list[tuple[tuple, Any]]:
    """Return the outermost modules in a node, and its other leaves, with their keys."""

    def is_inside(part: Any) -> bool:
        return part is not node and isinstance(part, eqx.Module)

    return jax.tree_util.tree_flatten_with_path(node, is_leaf=is_inside)[0]


def _filled(shared: eqx.nn.Shared, path: str) -> Iterator[Found]:
    """Yield each place that `shared` fills when it is called, with what it puts there."""
    placeholders: list[Any] = []
    sources: list[Any] = []

    def look() -> None:
        empty, source = shared.where(shared.pytree), shared.get(shared.pytree)
        several = isinstance(empty, tuple | list)
        placeholders.extend(empty if several else [empty])
        sources.extend(source if several else [source])

    # `where` and `get` may compute, as in a transpose. Traced, they compute nothing.
    eqx.filter_eval_shape(look)
    for placeholder, source in zip(placeholders, sources, strict=True):
        for place in _places(shared.pytree, placeholder):
            source_places = [*_places(shared.pytree, source), ""]
            yield Found(
                path=f"{path}.pytree{place}",
                thing=source,
                owner=path,
                first=f"{path}.pytree{source_places[0]}",
            )


def _places(tree: PyTree, node: Any) -> list[str]:
    """Return the paths of a node in a PyTree."""
    leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda part: part is node)[0]
    return [jax.tree_util.keystr(keys) for keys, part in leaves if part is node]


def module_paths(model: PyTree) -> dict[int, tuple[str, eqx.Module]]:
    """Return every module in a model by its `id`: its first path, and the module itself."""
    return {
        id(found.thing): (found.path, found.thing)
        for found in walk(model)
        if isinstance(found.thing, eqx.Module) and found.path == found.first
    }
