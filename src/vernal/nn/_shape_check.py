"""Shapes, checked before anything compiles and explained in Vernal's words."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import jaxtyping

from vernal._shapes.fixes import as_line, fixes_of
from vernal.errors import ShapeError


def checked(method: Callable) -> Callable:
    """Check `method(self, x)` against its jaxtyping annotations, and reword what they find.

    The method's class has a `weight` of shape (size after, size before).

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
            raise shape_error(self, x, type(self).__name__) from None

    return call


def shape_error(layer: Any, x: Any, where: str) -> ShapeError:
    """Say why x does not fit a layer, named by `where`; with a fix for x, if there is one."""
    size = layer.weight.shape[1]
    if not hasattr(x, "shape"):
        return ShapeError(f"x is a {type(x).__name__}, but {where} needs an array of floats.")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        hint = "" if jnp.iscomplexobj(x) else '\n  Try x.astype("float32").'
        return ShapeError(f"x is {x.dtype}, but {where} needs floats.{hint}")

    message = f"x has shape {x.shape}, but {where} needs ({size},) or (*batch, {size})."
    for fix in fixes_of("x", x):
        if fix.array.shape[-1:] == (size,) and fix.array.dtype == x.dtype:
            return ShapeError(f"{message}\n  {as_line([fix])}")
    return ShapeError(message)
