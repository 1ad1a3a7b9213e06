"""Lines of code that may mend data of a wrong shape: made up here, tried before they are said."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from vernal._data.files import blocks
from vernal._training.jit import shapes_of, signature


@dataclass(frozen=True)
class Mend:
    """A line for one array, and the shape that it makes of it."""

    name: str  # of the array
    code: str  # the same, if nothing is changed
    array: jax.ShapeDtypeStruct
    cost: int = 0  # the likelier a mend is, the less

    def __bool__(self) -> bool:
        return self.code != self.name


def mends(name: str, array: Any, classes: Iterable[int] = ()) -> list[Mend]:
    """Lines that change one array, the likeliest first; the very first changes nothing.

    **Arguments:**

    - `array`: of which values are looked at only to tell whole numbers and one-hot rows.
    - `classes`: how many classes an array of labels may be meant for.
    """
    start = Mend(name, name, shapes_of(signature(array)))
    shaped = [start, *_tried(start, _shape_lines(start))]
    shaped += [
        more
        for mend in shaped[1:]
        for more in _tried(mend, _shape_lines(mend))
        if "squeeze" in mend.code and "squeeze" in more.code.removeprefix(mend.code)
    ]
    whole, one_hot = _is_whole(array), _is_one_hot(array)
    every = []
    for mend in shaped:
        lines = _dtype_lines(mend, whole, one_hot and mend is start, classes)
        every += [mend, *_tried(mend, lines)]
    found: dict[Any, Mend] = {}
    for mend in sorted(every, key=lambda mend: mend.cost):
        found.setdefault((mend.array.shape, mend.array.dtype, "[None]" in mend.code), mend)
    return list(found.values())


def _shape_lines(mend: Mend) -> Iterator[tuple[int, str]]:
    code, shape = mend.code, mend.array.shape
    rank = len(shape)
    yield from ((1, f"{code}.squeeze({k})") for k in range(1, rank) if shape[k] == 1)
    if rank == 0:
        yield 6, f"{code}[None, None]"
    yield 2, f"{code}[:, None]"
    if rank > 1:
        yield 2, f"{code}[..., None]"
        if shape[0] == 1:
            yield 2, f"{code}.squeeze(0)"
    if rank == 2:
        yield 3, f"{code}.T"
    if rank > 2:
        yield 4, f"np.moveaxis({code}, -1, 1)"
        yield 4, f"{code}.reshape(len({code}), -1)"
    yield 5, f"{code}[None]"


def _dtype_lines(
    mend: Mend, whole: bool, one_hot: bool, classes: Iterable[int]
) -> Iterator[tuple[int, str]]:
    code, dtype = mend.code, mend.array.dtype
    if one_hot:
        yield 1, f"{code}.argmax(-1)"
    if not jnp.issubdtype(dtype, jnp.inexact):
        yield 2, f'{code}.astype("float32")'
    if whole and not jnp.issubdtype(dtype, jnp.integer):
        yield 2, f"{code}.astype(int)"
    if jnp.issubdtype(dtype, jnp.integer):
        yield from ((4, f"jax.nn.one_hot({code}, {n})") for n in classes)


def _tried(mend: Mend, lines: Iterable[tuple[int, str]]) -> Iterator[Mend]:
    """Those of the lines that an array like this can be put through."""
    for cost, line in lines:
        # The very line that will be shown is what is run, with JAX in NumPy's place.
        line_of = line.replace(mend.code, mend.name)
        run = partial(_run, line_of, mend.name)
        try:
            made = jax.eval_shape(run, mend.array)
        except Exception:
            continue  # not for this shape
        yield replace(mend, code=line, array=made, cost=mend.cost + cost)


def _run(line: str, name: str, array: Any) -> Any:
    return eval(line, {"np": jnp, "jax": jax, "len": len}, {name: array})


def _is_whole(array: Any) -> bool:
    return _holds(array, lambda part: part.dtype == bool or np.all(part == part.round()))


def _is_one_hot(array: Any) -> bool:
    ones = lambda rows: np.all((rows == 0) | (rows == 1)) and np.all(rows.sum(-1) == 1)
    return len(array.shape) > 1 and array.shape[-1] > 1 and _holds(array, ones)


def _holds(array: Any, of_part: Callable) -> bool:
    """Whether something is so of all values, if there are values."""
    is_traced = isinstance(array, jax.core.Tracer)
    return not is_traced and all(of_part(part) for _, part in blocks(array))


def as_line(choice: Iterable[Mend]) -> str:
    """The suggestion: `Try x[:, None], which has shape (100, 1).`"""
    changed = [mend for mend in choice if mend]
    codes = " and ".join(mend.code for mend in changed)
    if all(mend.code.startswith(f"{mend.name}.astype(") for mend in changed):
        have = "which are" if len(changed) > 1 else "which is"
        return f"Try {codes}, {have} {' and '.join(str(mend.array.dtype) for mend in changed)}."
    have = "which have shapes" if len(changed) > 1 else "which has shape"
    return f"Try {codes}, {have} {' and '.join(str(mend.array.shape) for mend in changed)}."
