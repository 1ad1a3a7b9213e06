"""Lines of code that may fix data of a wrong shape; each is tried before it is suggested."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from vernal._data.files import blocks
from vernal._shapes.modules import shapes_of

_MOST_INT32 = 2**31 - 1
# Lines that change a shape, with braces for the array, each after its cost.
_SHAPE_LINES = (
    (2, "{0}[:, None]"),
    (4, "{0}[..., None]"),
    (4, "np.moveaxis({0}, -1, 1)"),
    (4, "np.moveaxis({0}, 1, -1)"),
    (4, "{0}.reshape(len({0}), -1)"),
    (5, "{0}[None]"),
)


@dataclass(frozen=True)
class Fix:
    """A line for one array, and the shape that the line gives it.

    Attributes:
        name: What the user calls the array; any expression will do.
        code: The line; the name alone if the array stays as it is.
        array: The result's shape and dtype.
        cost: The likelier a fix is, the lower its cost; 0 if it changes nothing.
    """

    name: str
    code: str
    array: jax.ShapeDtypeStruct
    cost: int = 0


def fixes_of(name: str, array: Any, classes: int = 0) -> list[Fix]:
    """List lines that change one array, the likeliest first; the very first changes nothing.

    Args:
        name: What the user calls the array; any expression will do.
        array: Its values are read only to tell whole numbers, labels and one-hot rows.
        classes: How many classes an array of labels may stand for, if it may.
    """
    start = Fix(name, name, shapes_of(array))
    # From -1: labels of -1 and 1, or from 1 on, have a line of their own once they are integers.
    low, high = (-1, classes) if classes else (-_MOST_INT32, _MOST_INT32)
    whole = all_blocks(array, partial(_is_whole, low=low, high=high))
    classes = classes if all_blocks(array, partial(_is_whole, low=0, high=classes - 1)) else 0
    every = [start]
    if all_blocks(array, _is_one_hot):
        every += _tried(start, [(1, "{0}.argmax(-1)")])
    lines: list[tuple[int, str]] = []
    if not jnp.issubdtype(start.array.dtype, jnp.inexact):
        lines.append((2, '{0}.astype("float32")'))
    if jnp.issubdtype(start.array.dtype, jnp.integer):
        lines += [(4, f"jax.nn.one_hot({{0}}, {classes})")] if classes else []
    elif whole:
        lines.append((2, "{0}.astype(int)"))
    for fix in [start, *_tried(start, _shape_lines(len(start.array.shape)))]:
        every += [fix, *_tried(fix, lines)]

    likeliest: dict[Any, Fix] = {}
    for fix in sorted(every, key=lambda fix: fix.cost):
        # A new leading axis means something else, though the shape may be the same.
        likeliest.setdefault((fix.array.shape, fix.array.dtype, "[None]" in fix.code), fix)
    return list(likeliest.values())


def _shape_lines(rank: int) -> Iterator[tuple[int, str]]:
    """Give lines that change a shape, with braces for the array, each after its cost."""
    for axis in range(rank):
        yield (1 if axis else 2), f"{{0}}.squeeze({axis})"
    for first, second in itertools.combinations(range(rank), 2):
        yield (2 if first else 3), f"{{0}}.squeeze({first}).squeeze({second - 1})"
    if rank == 0:
        yield 6, "{0}[None, None]"
    if rank == 2:
        yield 3, "{0}.T"
    yield from _SHAPE_LINES


def _tried(fix: Fix, lines: Iterable[tuple[int, str]]) -> Iterator[Fix]:
    """Keep the lines that run on an array of this shape."""
    for cost, line in lines:
        try:
            array = jax.eval_shape(partial(_run, line.format("array")), fix.array)
        except Exception:
            continue  # the line does not run on this shape
        yield replace(fix, code=line.format(fix.code), array=array, cost=fix.cost + cost)


def _run(line: str, array: Any) -> Any:
    """Run the very line that will be shown, with JAX in NumPy's place."""
    return eval(line, {"np": jnp, "jax": jax, "len": len, "array": array})


def _is_whole(part: np.ndarray, low: int, high: int) -> bool:
    """Say whether all values are bools, or whole numbers in a range."""
    # As floats, for integers of 4 bits have no room for such numbers.
    in_range = (part >= np.float64(low)) & (part <= np.float64(high))
    return bool(np.all((part == np.rint(part)) & in_range))


def _is_one_hot(rows: np.ndarray) -> bool:
    """Say whether each row is 0, ..., 0, 1 once it is sorted."""
    if rows.ndim < 2 or rows.shape[-1] < 2:
        return False
    return bool(np.all(np.sort(rows) == np.arange(rows.shape[-1]) // (rows.shape[-1] - 1)))


def all_blocks(array: Any, condition: Callable) -> bool:
    """Say whether a condition holds for all values; it does not where there are no values."""
    if isinstance(array, jax.core.Tracer):
        return False
    return all(condition(part) for _, part in blocks(array))


def as_line(choice: Iterable[Fix]) -> str:
    """Word a suggestion: `Try x[:, None], which has shape (100, 1).`"""
    changed = [fix for fix in choice if fix.cost]
    codes = " and ".join(fix.code for fix in changed)
    if all(fix.code.startswith(f"{fix.name}.astype(") for fix in changed):
        return f"Try {codes}."
    has = "has shape" if len(changed) == 1 else "have shapes"
    shapes = " and ".join(str(fix.array.shape) for fix in changed)
    return f"Try {codes}, which {has} {shapes}."
