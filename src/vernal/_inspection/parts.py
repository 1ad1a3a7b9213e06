"""Which of a model's modules holds what, each array counted once."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PyTree

from vernal._training.update import trained_leaves


@dataclass
class Part:
    """What a module holds itself, without what its own modules do; or a place for a shared thing.

    **Attributes:** `layer`, its type's name, or "array"; how many numbers there are, and bytes;
    `shared_with`, the path at which it is counted instead.
    """

    layer: str
    trainable: int = 0
    frozen: int = 0
    bytes: int = 0
    shared_with: str | None = None


def parts_of(model: PyTree, trainable: PyTree) -> tuple[dict[str, Part], dict[str, str]]:
    """A model's modules by their paths in it, as in `.layers[0]`, the model itself first.

    What was met before, a module or an array, is one of the parts, too, without what is in it.

    **Returns:** the parts; and for the path of each thing that was met before, its first one.
    """
    picks = zip(jax.tree.leaves(model), trained_leaves(model, trainable), strict=True)
    trained = {id(leaf) for leaf, pick in picks if pick}
    parts: dict[str, Part] = {}
    aliases: dict[str, str] = {}
    first: dict[int, str] = {}

    def share(path: str, thing: Any, earlier: str) -> None:
        layer = type(thing).__name__ if isinstance(thing, eqx.Module) else "array"
        parts[path] = Part(layer, shared_with=type(model).__name__ + earlier)
        aliases[path] = earlier

    def visit(node: PyTree, path: str) -> None:
        first[id(node)] = path
        own = parts[path] = Part(type(node).__name__)
        inside = lambda part: part is not node and isinstance(part, eqx.Module)
        for keys, part in jax.tree_util.tree_flatten_with_path(node, is_leaf=inside)[0]:
            place = path + jax.tree_util.keystr(keys)
            if not (inside(part) or eqx.is_array(part)):
                continue
            if id(part) in first:
                share(place, part, first[id(part)])
            elif inside(part):
                visit(part, place)
            else:
                first[id(part)] = place
                own.bytes += part.nbytes
                if id(part) in trained:
                    own.trainable += part.size
                else:
                    own.frozen += part.size
        if isinstance(node, eqx.nn.Shared):
            for place, thing, source in _ties(node):
                share(f"{path}.pytree{place}", thing, f"{path}.pytree{source}")

    visit(model, "")
    return parts, aliases


def first_path(path: str, aliases: dict[str, str]) -> str:
    """The path at which a module is counted: what it is in may be shared."""
    for end in [*(i for i, char in enumerate(path) if char in ".[" and i), len(path)]:
        if path[:end] in aliases:
            return first_path(aliases[path[:end]] + path[end:], aliases)
    return path


def _ties(shared: eqx.nn.Shared) -> Iterator[tuple[str, Any, str]]:
    """Places in a `Shared`'s PyTree that were emptied, what belongs there, and where that is."""
    found: list[Any] = []
    # The functions may compute, as in a transpose; traced, they only look.
    look = lambda: found.extend([shared.where(shared.pytree), shared.get(shared.pytree)])
    eqx.filter_eval_shape(look)
    several = isinstance(found[0], tuple | list)
    for emptied, source in zip(*found, strict=True) if several else [found]:
        places = _places(shared.pytree, source)
        for place in _places(shared.pytree, emptied):
            yield place, source, places[0] if places else ""


def _places(tree: PyTree, node: Any) -> list[str]:
    """The paths of a node in a PyTree."""
    found = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda part: part is node)[0]
    return [jax.tree_util.keystr(keys) for keys, part in found if part is node]
