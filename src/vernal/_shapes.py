"""Shapes, checked before anything compiles and explained in Vernal's words."""

import contextlib
import functools
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
from jaxtyping import PyTree

from vernal._errors import Mismatch, ShapeError, VernalError
from vernal._jit import Packed, shapes_of, signature


def checked(method: Callable) -> Callable:
    """Check a layer's method against its jaxtyping annotations, and reword what they find.

    **Raises:** `ShapeError`, with jaxtyping's own message as its `__cause__`.
    """

    @functools.cache
    def typechecked() -> Callable:
        from beartype import beartype  # at the first call: it takes longer than the rest of Vernal

        return jaxtyping.jaxtyped(typechecker=beartype)(method)

    name, parameter = list(inspect.signature(method).parameters.items())[1]

    @functools.wraps(method)
    def call(self, x):
        try:
            return typechecked()(self, x)
        except jaxtyping.TypeCheckError as error:
            raise _layer_error(self, name, x, parameter.annotation) from error

    return call


def _layer_error(layer, name: str, value: Any, annotation: Any) -> ShapeError:
    title, hint = type(layer).__name__, ""
    if not hasattr(value, "shape"):
        given, needed = f"a {type(value).__name__}", "an array of floats"
        message = f"{name} is {given}"
    elif not jnp.issubdtype(value.dtype, jnp.floating):
        given, needed = str(value.dtype), "floats"
        message, hint = f"{name} is {given}", f"\n  Try {name}.astype(float)."
    else:
        size = _last_axis(layer, annotation)
        given, needed = str(value.shape), f"({size},)"
        message = f"the last axis of {name}, of shape {given}"
        for code, mended in _mends(name, value):
            if mended.shape[-1:] == (size,):
                hint = f"\n  Try {code}, which has shape {mended.shape}."
                break
    mismatch = Mismatch(layer, title, given, needed)
    return ShapeError(f"{message}, but {title} needs {needed}.{hint}", mismatch)


def _last_axis(layer, annotation: Any) -> int:
    """The size of the last axis in an annotation such as `"*batch {self.in_features}"`."""
    dims = getattr(annotation, "__args__", (annotation,))[0].dim_str
    return getattr(layer, re.sub(r"\*batch \{self\.(\w+)\}", r"\1", dims))


@contextlib.contextmanager
def locating(root) -> Iterator[None]:
    """Name the layer by its path in `root` in a `ShapeError` that is raised inside."""
    try:
        yield
    except ShapeError as error:
        if error.mismatch is None:
            raise
        layer = error.mismatch.layer
        found = jax.tree_util.tree_flatten_with_path(root, is_leaf=lambda node: node is layer)[0]
        paths = [jax.tree_util.keystr(path) for path, node in found if node is layer]
        if not paths or not paths[0]:
            raise
        where = f"{type(root).__name__}{paths[0]} ({type(layer).__name__})"
        message = str(error).replace(f"but {error.mismatch.where} needs", f"but {where} needs")
        raise ShapeError(message, replace(error.mismatch, where=where)) from error.__cause__


def preflight(
    objective: Callable, packed: Packed, batch: PyTree, *, culprit: str, name: str = "data"
) -> PyTree:
    """Trace a function on shapes alone, before anything compiles.

    **Arguments:**

    - `objective`: a jitted function, called as `objective(packed, batch)`.
    - `batch`: of which only shapes and dtypes are used.
    - `culprit`: what an error of somebody else's is put down to: the model's name, or "the loss".
    - `name`: the argument that the batch was taken from.

    **Returns:** what the objective returns, as shapes.

    **Raises:** `ShapeError`, with a line that mends the data if one was found to work; any other
    of Vernal's errors as it is.
    """
    try:
        return _trace(objective, signature((packed, batch)))
    except Exception as error:
        if isinstance(error, VernalError) and not isinstance(error, ShapeError):
            raise
        where = "" if name == "data" else f"{name}: "
        message = where + _describe(error, culprit, batch)
        for code, mended in _batch_mends(batch):
            if _succeeds(lambda mended=mended: _trace(objective, signature((packed, mended)))):
                message += f"\n  Try {code}."
                break
        raise ShapeError(message) from error


@functools.lru_cache(maxsize=256)
def _trace(objective: Any, of) -> PyTree:
    # Tracing takes milliseconds; a trace that went well is not made again for the same program.
    return objective.eval_shape(*shapes_of(of))


def _describe(error: Exception, culprit: str, batch: PyTree) -> str:
    """What went wrong, in terms of the data where one layer or the model is at odds with it."""
    mismatch = error.mismatch if isinstance(error, ShapeError) else None
    if isinstance(error, ShapeError) and mismatch is None:
        return str(error)
    if mismatch is None and culprit == "the loss":
        return f"the loss fails on a batch: {_first_line(error)}"
    x: Any = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if not hasattr(x, "shape"):
        return f"{culprit} fails on an example: {_first_line(error)}"
    n, *example = x.shape
    each = f"of shape {tuple(example)}" if example else "a single number"
    data = f"x has shape {x.shape}: each of its {n} examples is {each}"
    if mismatch is None:
        return f"{data}, on which {culprit} fails: {_first_line(error)}"
    where = mismatch.where
    if mismatch.given == str(tuple(example)):
        return f"{data}, but {where} needs {mismatch.needed}."
    if mismatch.given == str(x.dtype):
        return f"x is {x.dtype}, but {where} needs {mismatch.needed}."
    return f"{where} needs {mismatch.needed} and is given {mismatch.given}; {data}."


def _first_line(error: Exception) -> str:
    line = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
    return textwrap.shorten(line, 300, placeholder=" ...")


def _mends(name: str, value) -> Iterator[tuple[str, jax.ShapeDtypeStruct]]:
    """Lines that change one array, the likeliest first, and the shape that each makes of it."""
    lines = {
        f"{name}.T": lambda a: a.T,
        f"{name}[:, None]": lambda a: a[:, None],
        f"{name}.squeeze(-1)": lambda a: a.squeeze(-1),
        f"{name}.squeeze(1)": lambda a: a.squeeze(1),
        f"{name}.astype(float)": lambda a: a.astype(float),
        f"{name}.astype(int)": lambda a: a.astype(int),
        f"{name}.argmax(-1)": lambda a: a.argmax(-1),
    }
    for code, mend in lines.items():
        try:
            mended = jax.eval_shape(mend, shapes_of(signature(value)))
        except Exception:
            continue  # not for this shape
        if (mended.shape, mended.dtype) != (value.shape, value.dtype):
            yield code, mended


def _batch_mends(batch: PyTree) -> Iterator[tuple[str, PyTree]]:
    """Lines that mend an array `x` or a batch `(x, y)`, and what each makes of it."""
    if hasattr(batch, "shape"):
        for code, mended in _mends("x", batch):
            yield f"{code}, which has shape {mended.shape}", mended
    if not (isinstance(batch, tuple | list) and len(batch) in (2, 3)):
        return
    x, y, *weight = batch
    if not (hasattr(x, "shape") and hasattr(y, "shape")):
        return
    for_x = [("", x), *((code, mended) for code, mended in _mends("x", x) if len(mended.shape))]
    for_y = [("", y), *((code, mended) for code, mended in _mends("y", y) if len(mended.shape))]
    both = [(a, b) for a in for_x for b in for_y if a[1].shape[:1] == b[1].shape[:1]]
    for (code_x, new_x), (code_y, new_y) in sorted(
        both, key=lambda p: bool(p[0][0]) + bool(p[1][0])
    ):
        changes = [(code, new) for code, new in ((code_x, new_x), (code_y, new_y)) if code]
        codes = " and ".join(code for code, _ in changes)
        shapes = " and ".join(str(new.shape) for _, new in changes)
        has = "have shapes" if len(changes) > 1 else "has shape"
        yield f"{codes}, which {has} {shapes}", (new_x, new_y, *weight)


def _succeeds(function: Callable) -> bool:
    """Whether a call goes through: a mend is tried, not assumed."""
    try:
        function()
    except Exception:
        return False
    return True
