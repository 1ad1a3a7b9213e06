"""Shapes, checked before anything compiles and explained in Vernal's words."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import jaxtyping

from vernal._shapes.fixes import as_line, fixes_of
from vernal.errors import Misfit, ShapeError


def checked(method: Callable) -> Callable:
    """Check `method(self, x)` against its jaxtyping annotations, and reword what they find.

    The method's class has a `_in`, the size of the last axis.

    Raises:
        ShapeError: With jaxtyping's own message as its `__context__`.
    """

    @functools.cache
    def typechecked() -> Callable:
        from beartype import beartype  # at the first call: it takes longer than the rest of Vernal

        return jaxtyping.jaxtyped(typechecker=beartype)(method)

    @functools.wraps(method)
    def call(self, x):
        try:
            return typechecked()(self, x)
        except jaxtyping.TypeCheckError:
            raise _shape_error(self, x, self._in) from None

    return call


def _shape_error(layer: Any, x: Any, size: int) -> ShapeError:
    hint = ""
    if not hasattr(x, "shape"):
        given = f"x is a {type(x).__name__},"
        needed = "needs an array of floats."
    elif not jnp.issubdtype(x.dtype, jnp.floating):
        given = f"x is {x.dtype},"
        needed = "needs floats."
        if not jnp.issubdtype(x.dtype, jnp.complexfloating):
            hint = '\n  Try x.astype("float32").'
    else:
        given = f"x has shape {x.shape},"
        needed = f"needs ({size},) or (*batch, {size})."
        for fix in fixes_of("x", x):
            if fix.array.shape[-1:] == (size,) and fix.array.dtype == x.dtype:
                hint = f"\n  {as_line([fix])}"
                break
    misfit = Misfit(layer, given, type(layer).__name__, needed + hint)
    return ShapeError(str(misfit), misfit)


@contextlib.contextmanager
def locating(layer: Any, path: str) -> Iterator[None]:
    """Name a layer by its path in the model, in a `ShapeError` that the layer raises inside."""
    try:
        yield
    except ShapeError as error:
        if error.at is None or error.at.layer is not layer:
            raise
        misfit = replace(error.at, where=f"{path} ({type(layer).__name__})")
        raise ShapeError(str(misfit), misfit) from None
