"""Shapes, checked before anything compiles and explained in Vernal's words."""

import contextlib
import functools
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import jaxtyping

from vernal._shapes.calls import located, module_paths
from vernal._shapes.fixes import as_line, mends
from vernal.errors import At, ShapeError


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
        given, needed = f"is a {type(value).__name__}", "an array of floats"
    elif not jnp.issubdtype(value.dtype, jnp.floating):
        given, needed = f"is {value.dtype}", "floats"
        if not jnp.issubdtype(value.dtype, jnp.complexfloating):
            hint = f'\n  Try {name}.astype("float32").'
    else:
        size = _last_axis(layer, annotation)
        given, needed = f"has shape {value.shape}", f"({size},) or (*batch, {size})"
        for mend in mends(name, value):
            if mend.array.shape[-1:] == (size,) and mend.array.dtype == value.dtype:
                hint = f"\n  {as_line([mend])}"
                break
    at = At(layer, f"{name} {given},", title, f"needs {needed}.{hint}")
    return ShapeError(at.message, at)


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
        if error.at is None:
            raise
        layer = error.at.layer
        path, _ = module_paths(root).get(id(layer), ("", None))
        if not path:
            raise
        where = located(root, path, layer)
        found_at = replace(error.at, where=where)
        raise ShapeError(found_at.message, found_at) from error.__cause__
