"""The errors that Vernal raises: what was given, what was needed, and the line that fixes it."""

import functools
import importlib
import inspect
import math
import os
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np

P = ParamSpec("P")
T = TypeVar("T")

_WIDTH = 100
# The libraries whose frames say nothing to a user about a mistake in the user's own program.
_LIBRARIES = ("vernal", "jax", "equinox", "optax", "jaxtyping", "beartype", "contextlib")
# Names that are read with a vowel first, besides those that are written with one.
_AN = ("A", "E", "I", "O", "a", "e", "i", "o", "MLP", "LSTM")


class VernalError(Exception):
    """Base of every error that Vernal raises on purpose.

    Attributes:
        full_traceback: The frames inside Vernal and JAX, which the printed traceback leaves out;
            `None` where nothing was left out. `traceback.print_tb` prints them.
    """

    __module__ = "vernal"

    full_traceback: TracebackType | None = None

    def __init__(self, message: str):
        lines: list[str] = []
        for line in message.splitlines():
            lines += _wrapped(line) or [line]
        super().__init__("\n".join(lines))


class ArgumentError(VernalError, ValueError):
    """A choice cannot be used: an optimizer that is a class, a negative number of epochs, ..."""

    __module__ = "vernal"


class DataError(VernalError, ValueError):
    """The data cannot be trained on: unequal lengths, no examples, strings, NaN, ..."""

    __module__ = "vernal"


@dataclass(frozen=True)
class Misfit:
    """An input that does not fit a layer: a model around the layer can say where the layer is.

    Attributes:
        layer: The layer itself.
        given: The first part of the sentence, such as "x has shape (100,),".
        where: The layer's path, as far out as it is known, and its type.
        needed: The last part of the sentence, such as "needs (*batch, 1).".
    """

    layer: Any
    given: str
    where: str
    needed: str

    def __str__(self) -> str:
        return joined(self.given, f"but {self.where} {self.needed}")


class ShapeError(VernalError, ValueError):
    """Model, data and loss disagree about a shape.

    Attributes:
        at: The layer that the error is about, and what the layer needs, if a layer raised it.
    """

    __module__ = "vernal"

    def __init__(self, message: str, at: Misfit | None = None):
        super().__init__(message)
        self.at = at


class ExamplesError(ShapeError, DataError):
    """The data's arrays cannot be examples: unequal lengths, none at all, labels out of range.

    Attributes:
        arrays: The data, for which a fix may be found.
    """

    __module__ = "vernal"

    def __init__(self, message: str, arrays: Any = None):
        super().__init__(message)
        self.arrays = arrays


class NonFiniteError(VernalError, ArithmeticError):
    """A loss, gradient or parameter is not finite any more; the step that did it was not made.

    Attributes:
        update: The step, counted from 0.
        epoch: The step's epoch, counted from 0.
        path: The first array that is not finite, such as `MLP.layers[0].weight`; `None` if only
            the loss is not.
        grad_norm: The norm of the last finite gradients; `None` if it is not known.
        state: The last good state, before the step.
        history: The `History` up to there.
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
        self.update = update
        self.epoch = epoch
        self.path = path
        self.grad_norm = grad_norm
        self.state = state
        self.history = history


class CheckpointError(VernalError, RuntimeError):
    """A checkpoint cannot be written, is damaged, or does not fit what it is to be read into."""

    __module__ = "vernal"


class RecompilationError(VernalError, RuntimeError):
    """Something compiles again inside of `no_recompilation`."""

    __module__ = "vernal"


class MissingExtraError(VernalError, ImportError):
    """An optional dependency is not installed; the message has the command that installs it."""

    __module__ = "vernal"


def short_traceback(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a public function or generator: its errors show the user's lines, and no others.

    A `VernalError` keeps its type, message and attributes. Other exceptions pass as they are.
    """
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def iterate(*args: P.args, **kwargs: P.kwargs) -> Any:
            try:
                return (yield from function(*args, **kwargs))
            except VernalError as error:
                raise _shortened(error) from error.__cause__

        return cast(Callable[P, T], iterate)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except VernalError as error:
            raise _shortened(error) from error.__cause__

    return call


def _shortened(error: VernalError) -> VernalError:
    if error.full_traceback is None:
        error.full_traceback = error.__traceback__
    _leave_out_libraries(error)
    return error


def _leave_out_libraries(error: BaseException) -> None:
    """Leave out frames of libraries, and causes that have no others; these stay as the context."""
    error.__traceback__ = _users_frames(error.__traceback__)
    cause = error.__cause__
    if cause is not None:
        _leave_out_libraries(cause)
        if cause.__traceback__ is None:
            error.__cause__ = None
            error.__context__ = cause
    error.__suppress_context__ = True


def _users_frames(traceback: TracebackType | None) -> TracebackType | None:
    if traceback is None:
        return None
    inner = _users_frames(traceback.tb_next)
    module = traceback.tb_frame.f_globals.get("__name__", "")
    if module.partition(".")[0] in _LIBRARIES:
        return inner
    return TracebackType(inner, traceback.tb_frame, traceback.tb_lasti, traceback.tb_lineno)


def whole_number(name: str, value: Any, *, at_least: int) -> int:
    """Return the value as an int.

    Raises:
        ArgumentError: If the value is not a whole number, or is below `at_least`.
    """
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_whole or value < at_least:
        raise ArgumentError(f"{name} needs to be a whole number from {at_least}; it is {value!r}.")
    return int(value)


def check_finite(name: str, value: Any, hint: str) -> None:
    """Raise `ArgumentError`, with a hint, if this is not a finite number from 0."""
    if not isinstance(value, Real) or not 0 <= float(value) < math.inf:
        raise ArgumentError(f"{name} is {kind(value)}; a finite number from 0 is needed.\n  {hint}")


def checked_path(name: str, value: Any) -> Path:
    """Return an argument as a path.

    Raises:
        ArgumentError: If the argument is not a path.
    """
    if not isinstance(value, str | os.PathLike):
        raise ArgumentError(f"{name} is {kind(value)}; a path is needed, as a str or a Path.")
    return Path(value)


def unwritable(path: str | Path, error: OSError) -> ArgumentError:
    """Make the error for a path that cannot be written."""
    return ArgumentError(
        f"{path} cannot be written: {error.strerror or error}."
        "\n  Pass a path in a directory that you may write to."
    )


def optional_import(module: str, *, user: str, extra: str) -> Any:
    """Import a package that only a part of Vernal needs.

    Args:
        module: The module's full name.
        user: The names in Vernal that need the package.
        extra: The extra of `vernal` that installs the package.

    Raises:
        MissingExtraError: If the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{user} needs {module.partition('.')[0]}, which is not installed."
            f"\n  Run: pip install 'vernal[{extra}]'"
        ) from error


def about(name: str, message: str) -> str:
    """Name the argument that a message is about, if it is not the main one."""
    if name in ("data", "x") or name in message:
        return message
    fits = len(f"in {name}, {message}".partition("\n")[0]) <= _WIDTH
    return f"in {name}, {message}" if fits else f"in {name},\n  {message}"


def joined(first: str, second: str) -> str:
    """Join two parts of a sentence: on one line if they fit, else broken where they meet."""
    fits = len(first) + len(second.partition("\n")[0]) < _WIDTH
    return f"{first} {second}" if fits else f"{first}\n  {second}"


def first_line(error: Exception) -> str:
    """Word another library's error in one line of at most 200 characters."""
    text = " ".join(str(part) for part in error.args)
    line = f"{type(error).__name__}: {text}".partition("\n")[0]
    return textwrap.shorten(line, 200, placeholder=" ...")


def kind(thing: Any) -> str:
    """Say what a thing is, for a message: `the function adam`, `a tuple of 3`."""
    if isinstance(thing, type):
        return f"the class {thing.__name__}"
    if inspect.isroutine(thing):
        return f"the function {thing.__name__}"
    if isinstance(thing, str | int | float | None):
        return repr(thing)
    if hasattr(thing, "shape"):
        return f"a single array of shape {thing.shape}"
    name = type(thing).__name__
    article = "an" if name.startswith(_AN) else "a"
    size = f" of {len(thing)}" if isinstance(thing, tuple | list) else ""
    return f"{article} {name}{size}"


def _wrapped(line: str) -> list[str]:
    # Paths and code stay in one piece.
    return textwrap.wrap(
        line,
        width=_WIDTH,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
