"""The errors Vernal raises: what was given, what was needed, the line that mends it."""

import inspect
from dataclasses import dataclass
from typing import Any


class VernalError(Exception):
    """Base of every error that Vernal raises on purpose."""

    __module__ = "vernal"


class ArgumentError(VernalError, ValueError):
    """A choice cannot be used: an optimizer that is a class, a negative number of epochs, ..."""

    __module__ = "vernal"


class DataError(VernalError, ValueError):
    """The data cannot be trained on: unequal lengths, no examples, strings, NaN, ..."""

    __module__ = "vernal"


@dataclass(frozen=True)
class Mismatch:
    """One layer's disagreement with its input: what a `ShapeError` is about, for programs."""

    layer: Any  # the module that was called
    where: str  # its path, as far out as is known, and its type: "MLP.layers[0] (Linear)"
    given: str  # shape, or dtype, or type
    needed: str


class ShapeError(VernalError, ValueError):
    """Model, data and loss disagree about a shape."""

    __module__ = "vernal"

    def __init__(self, message: str, mismatch: Mismatch | None = None):
        super().__init__(message)
        self.mismatch = mismatch


class MissingExtraError(VernalError, ImportError):
    """An optional dependency is not installed; the message has the command that installs it."""

    __module__ = "vernal"


def kind(thing) -> str:
    """What a thing is, for a message: `the function adam`, `a tuple of 3`."""
    if isinstance(thing, type):
        return f"the class {thing.__name__}"
    if inspect.isroutine(thing):
        return f"the function {thing.__name__}"
    if isinstance(thing, str | int | float | None):
        return repr(thing)
    if hasattr(thing, "shape"):
        return f"a single array of shape {thing.shape}"
    size = f" of {len(thing)}" if isinstance(thing, tuple | list) else ""
    return f"a {type(thing).__name__}{size}"
