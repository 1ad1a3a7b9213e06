"""The errors Vernal raises: what was given, what was needed, the line that mends it."""

import inspect
import re
import textwrap
from dataclasses import dataclass
from functools import partial
from typing import Any

# Paths and code stay in one piece.
_WHOLE = {"break_long_words": False, "break_on_hyphens": False}


class VernalError(Exception):
    """Base of every error that Vernal raises on purpose."""

    __module__ = "vernal"

    def __init__(self, message: str):
        wrap = partial(textwrap.wrap, subsequent_indent="  ", width=100, **_WHOLE)
        lines = message.splitlines()
        super().__init__("\n".join(part for line in lines for part in wrap(line) or [line]))


class ArgumentError(VernalError, ValueError):
    """A choice cannot be used: an optimizer that is a class, a negative number of epochs, ..."""

    __module__ = "vernal"


class DataError(VernalError, ValueError):
    """The data cannot be trained on: unequal lengths, no examples, strings, NaN, ..."""

    __module__ = "vernal"


@dataclass(frozen=True)
class At:
    """Which layer a `ShapeError` is about: a model that it is part of can say where it is."""

    layer: Any
    given: str  # "x has shape (100,),"
    where: str  # the layer's path, as far out as is known, and its type: "MLP.layers[0] (Linear)"
    needed: str  # "needs (*batch, 1)."

    @property
    def message(self) -> str:
        """The error's message."""
        return joined(self.given, f"but {self.where} {self.needed}")


class ShapeError(VernalError, ValueError):
    """Model, data and loss disagree about a shape."""

    __module__ = "vernal"

    def __init__(self, message: str, at: At | None = None):
        super().__init__(message)
        self.at = at


class ExamplesError(ShapeError, DataError):
    """The data's arrays cannot be examples: not as many of each, none, labels out of range.

    **Attributes:** `arrays`, the data, where a line that mends it may be found.
    """

    __module__ = "vernal"

    def __init__(self, message: str, arrays: Any = None):
        super().__init__(message)
        self.arrays = arrays


class NonFiniteError(VernalError, ArithmeticError):
    """A loss, gradient or parameter is not finite any more; the update that did it was not made.

    **Attributes:**

    - `update`, `epoch`: which update, and of which epoch; both are counted from 0.
    - `path`: the first array that is not finite, such as `MLP.layers[0].weight`; `None` if that is
      the loss alone.
    - `grad_norm`: the norm of the last finite gradients; `None` if there were none before, or not
      since training last looked.
    - `state`: the last good state, before the update.
    - `history`: the `History` up to there.
    """

    __module__ = "vernal"

    def __init__(
        self,
        message: str,
        *,
        update: int,
        epoch: int,
        path: str | None,
        grad_norm: float | None,
        state: Any,
        history: Any = None,
    ):
        super().__init__(message)
        self.update, self.epoch, self.path = update, epoch, path
        self.grad_norm: float | None = grad_norm
        self.state, self.history = state, history


class CheckpointError(VernalError, RuntimeError):
    """A checkpoint cannot be written, is damaged, or does not fit what it is to be read into."""

    __module__ = "vernal"


class RecompilationError(VernalError, RuntimeError):
    """Something compiles again inside of `no_recompilation`."""

    __module__ = "vernal"


class MissingExtraError(VernalError, ImportError):
    """An optional dependency is not installed; the message has the command that installs it."""

    __module__ = "vernal"


def joined(first: str, second: str) -> str:
    """Two parts of a sentence: on one line if they fit, else broken where they meet."""
    fits = len(first) + len(second.partition("\n")[0]) < 100
    return f"{first} {second}" if fits else f"{first}\n  {second}"


def first_line(error: Exception) -> str:
    """An error of somebody else's, in one line of at most 200 characters."""
    text = " ".join(str(part) for part in error.args)
    text = re.sub(r"\b\w*Tracer\b", "array", text)  # what an array is while it is traced
    line = f"{type(error).__name__}: {text}".partition("\n")[0]
    return textwrap.shorten(line, 200, placeholder=" ...")


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
    name = type(thing).__name__
    spelt = re.match("[FHLMNRSX][A-Z]", name)  # an MLP, an LSTM
    return f"{'an' if name[0] in 'AEIOaeio' or spelt else 'a'} {name}{size}"
