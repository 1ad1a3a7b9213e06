"""The errors that Vernal raises: what was given, what was needed, and the line that fixes it."""

import contextlib
import difflib
import functools
import importlib
import inspect
import math
import os
import re
import textwrap
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import KW_ONLY, dataclass
from numbers import Real
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TypeVar, cast

import numpy as np

# The public names, which `vernal` has, too.
__all__ = [
    "ArgumentError",
    "CallError",
    "CheckpointError",
    "DataError",
    "ExamplesError",
    "MissingExtraError",
    "NonFiniteError",
    "RecompilationError",
    "ShapeError",
    "VernalError",
]

Function = TypeVar("Function", bound=Callable)

_NO_BREAK = "\u00a0"
_WRAPPER = textwrap.TextWrapper(
    width=100, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
)
# The libraries whose frames say nothing to a user about a mistake in the user's own program.
_LIBRARIES = ("vernal", "jax", "equinox", "optax", "jaxtyping", "beartype", "contextlib")


class VernalError(Exception):
    """Base of every error that Vernal raises on purpose.

    Attributes:
        args: The message, as it was before it was wrapped for a terminal.
        full_traceback: The frames inside Vernal and JAX, which the printed traceback leaves out;
            `None` where nothing was left out. `traceback.print_tb` prints them.

    Example:
        >>> try:
        ...     trainer.fit(model, (x, y[:, 0]), epochs=1)
        ... except vernal.VernalError as error:
        ...     print(type(error).__name__)
        ShapeError
    """

    full_traceback: TracebackType | None = None

    def __str__(self) -> str:
        # Paths, code and what is in parentheses, such as a shape, stay in one piece, and with the
        # word before.
        glued = re.sub(r" (?=\(|[^()\n]*\))", _NO_BREAK, super().__str__())
        wrapped = "\n".join(map(_WRAPPER.fill, glued.splitlines()))
        return wrapped.replace(_NO_BREAK, " ")


class ArgumentError(VernalError, ValueError):
    """A choice cannot be used: an optimizer that is a class, a negative number of epochs, ..."""


class DataError(VernalError, ValueError):
    """The data cannot be trained on: unequal lengths, no examples, strings, NaN, ..."""


class ShapeError(VernalError, ValueError):
    """Model, data and loss disagree about a shape."""


class ExamplesError(ShapeError, DataError):
    """The data's arrays cannot be examples: unequal lengths, none at all, labels out of range.

    Attributes:
        arrays: The data, for which a fix may be found.
    """

    def __init__(self, message: str, arrays: Any = None):
        super().__init__(message)
        self.arrays = arrays


@dataclass(eq=False, repr=False)
class NonFiniteError(VernalError, ArithmeticError):
    """A loss, gradient or parameter is not finite any more; the step that did it was not made.

    Attributes:
        message: The message; as the one positional argument, Python keeps it in `args`, too.
        update: The step, counted from 0.
        epoch: The step's epoch, counted from 0.
        path: The first array that is not finite, such as `MLP.layers[0].weight`; `None` if only
            the loss is not.
        grad_norm: The norm of the last finite gradients; `None` if it is not known.
        state: The last good state, before the step; `None` if no copy was kept.
        history: The `History` up to there.

    Example:
        >>> try:
        ...     vernal.Trainer(optax.sgd(1e6), trainer.loss).fit(model, (x, y), epochs=99)
        ... except vernal.NonFiniteError as error:
        ...     stopped = error
        >>> int(stopped.state.step) == stopped.update == len(stopped.history.steps["loss"])
        True
    """

    message: str
    _: KW_ONLY
    update: int
    epoch: int
    path: str | None
    grad_norm: float | None
    state: Any
    history: Any = None


class CallError(VernalError, RuntimeError):
    """A function of your own failed when Vernal called it, or a step did while it ran.

    Attributes:
        state: Of a run that it ended: the last good state; `None` if there is none.
        history: Of a run that it ended: the `History` up to there.

    Example:
        >>> def broken(model, batch, key):
        ...     return undefined
        >>> try:
        ...     vernal.Trainer(optax.sgd(0.1), broken).fit(model, (x, y), epochs=1)
        ... except vernal.CallError as error:
        ...     print("the loss fails" in str(error))
        True
    """

    state: Any = None
    history: Any = None


class CheckpointError(VernalError, RuntimeError):
    """A checkpoint cannot be written, is damaged, or does not fit what it is to be read into."""


class RecompilationError(VernalError, RuntimeError):
    """Something compiles again inside of `no_recompilation`."""


class MissingExtraError(VernalError, ImportError):
    """An optional dependency is not installed; the message has the command that installs it."""


for _name in __all__:
    globals()[_name].__module__ = "vernal"  # where users import it from


def short_traceback(function: Function) -> Function:
    """Decorate a public function: its errors show the user's lines, and no others.

    A `VernalError` keeps its type, message and attributes. Other exceptions pass as they are, but
    for what JAX raises where arrays of one program are on different devices.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except VernalError as error:
            error.full_traceback = error.full_traceback or error.__traceback__
            cause = error.__cause__
            if cause is not None:
                cause.__traceback__ = _users_frames(cause.__traceback__)
                # A cause without a frame of the user's stays the context alone.
                cause = cause if cause.__traceback__ else None
            raise error.with_traceback(_users_frames(error.__traceback__)) from cause
        except ValueError as error:
            if "incompatible devices" not in str(error):
                raise
            raise _of_devices(error) from None

    return cast(Function, call)


def _of_devices(error: ValueError) -> ArgumentError:
    """Explain what JAX raises for arrays on different devices; what the error carries stays."""
    ids = re.findall(r"device ids (\S+) on platform (\w+)", str(error))
    devices = " and ".join(f"{platform} {number}" for number, platform in ids)
    explained = ArgumentError(
        f"the model and the data, or parts of them, are on different devices: {devices}."
        "\n  Put them on one, as with jax.device_put(x, jax.devices()[0]), or pass NumPy's "
        "arrays as data, which go where the model is."
    )
    vars(explained).update(vars(error))
    explained.full_traceback = error.__traceback__
    return explained


def _users_frames(frames: TracebackType | None) -> TracebackType | None:
    if frames is None:
        return None
    inner = _users_frames(frames.tb_next)
    if _is_library(frames.tb_frame):
        return inner
    return TracebackType(inner, frames.tb_frame, frames.tb_lasti, frames.tb_lineno)


def _is_library(frame: FrameType) -> bool:
    return frame.f_globals.get("__name__", "").partition(".")[0] in _LIBRARIES


def warn(message: str) -> None:
    """Warn, at the line of the user's that called Vernal."""
    frame, level = inspect.currentframe(), 1
    while frame is not None and _is_library(frame):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, RuntimeWarning, stacklevel=level)


def wrong_argument(name: str, value: Any, need: str, hint: str = "") -> ArgumentError:
    """Make the error for an argument: what was given, what is needed, and a line that fixes it."""
    fix = f"\n  {hint}" if hint else ""
    return ArgumentError(f"{name} is {kind(value)}; {need} is needed.{fix}")


def whole_number(name: str, value: Any, *, at_least: int, hint: str = "") -> int:
    """Return the value as an int.

    Raises:
        ArgumentError: If the value is not a whole number, or is below `at_least`.
    """
    if isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= at_least:
        return int(value)
    need = f"a whole number from {at_least}"
    raise ArgumentError(f"{name} needs to be {need}; it is {value!r}.{hint}")


def check_finite(name: str, value: Any, hint: str) -> None:
    """Raise `ArgumentError`, with a hint, if this is not a finite number from 0."""
    if not isinstance(value, Real) or not 0 <= float(value) < math.inf:
        raise wrong_argument(name, value, "a finite number from 0", hint)


def checked_path(name: str, value: Any) -> Path:
    """Return an argument as an absolute path, with `~` expanded.

    Raises:
        ArgumentError: If the argument is not a path, or is a URL.
    """
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise wrong_argument(name, value, "a path", "Pass a str or a Path.")
    given = os.fsdecode(value)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", given):  # of its two slashes, a Path keeps one
        hint = "Pass a path without a scheme, such as that of a mounted bucket."
        raise ArgumentError(f"{name} is the URL {given}; a path is needed.\n  {hint}")
    return Path(os.path.expanduser(given)).absolute()


def shown(path: Path) -> str:
    """Word a path for a message: from the working directory, if it lies in there."""
    with contextlib.suppress(ValueError, OSError):  # OSError: the working directory is gone
        path = path.relative_to(Path.cwd())
    return str(path)


def unwritable(path: Path, error: OSError) -> ArgumentError:
    """Make the error for a path that cannot be written."""
    hint = "Pass a path in a directory that you may write to."
    return ArgumentError(f"{shown(path)} cannot be written: {error.strerror or error}.\n  {hint}")


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
        hint = f"Run: pip install 'vernal[{extra}]'"
        raise MissingExtraError(f"{user} needs {module}, which is missing.\n  {hint}") from error


def about(name: str, message: str) -> str:
    """Name the argument that a message is about, if it is not the main one."""
    is_clear = name in ("data", "x") or name in message
    return message if is_clear else f"in {name}, {message}"


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return a line that suggests the name that is most like a wrong one, if one is."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"\n  Did you mean {close[0]!r}?" if close else ""


def call_error(what: str, on: str, error: Exception) -> CallError:
    """Make the error for a function of the user's own that failed.

    Args:
        what: What failed, in the user's words, such as "the loss".
        on: What it was called on, such as " on a batch"; empty if that does not help.
        error: What was raised.
    """
    frames = traceback.extract_tb(_users_frames(error.__traceback__))
    place = f" in line {frames[-1].lineno} of {Path(frames[-1].filename).name}" if frames else ""
    # What JAX calls a tracer is an array to the user.
    reason = re.sub(r"^Tracer\w*: |\w*Tracer\b", "", first_line(error))
    raised = f"{type(error).__name__}: {error}"
    hints = [f"\n  {hint}" for words, hint in _HINTS.items() if re.match(words, raised)]
    return CallError(f"{what} fails{on}{place}: {reason}{''.join(hints)}")


@contextlib.contextmanager
def calling(what: str) -> Iterator[None]:
    """Turn what a function of the user's own raises into `CallError`; Vernal's errors pass."""
    try:
        yield
    except VernalError:
        raise
    except Exception as error:
        raise call_error(what, "", error) from error


# By the name of an exception, as importing it would import JAX; and by words in it.
_HINTS = {
    "TracerBool": "`if` cannot depend on the values of arrays. Try jnp.where(condition, a, b).",
    "TracerArray": "NumPy cannot take such arrays. Try jnp in place of np, as in jnp.maximum(...).",
    "Concretization|TracerInteger": "float(...) needs a known value. Try jnp.asarray(...).",
    "RuntimeError: .*requires a key": "Take a key, and hand it on: self.dropout(x, key=key).",
    "TypeError: .*PRNG key.*NoneType": (
        "The key is None where nothing is random, as in predict. Split it only if there is one, or "
        "make it required: def __call__(self, x, *, key)."
    ),
    "(?s)TypeError: .*unexpected keyword argument 'key'": (
        "eqx.nn.Sequential gives each part a key. Wrap a function: eqx.nn.Lambda(jax.nn.relu)."
    ),
    "NameError: .*axis name": 'The axis of the examples is called "batch": give it that name.',
}


def first_line(error: Exception) -> str:
    """Word another library's error in one line of at most 200 characters."""
    text = f"{type(error).__name__}: {' '.join(map(str, error.args))}"
    line = text.partition("\n")[0]
    is_whole = not line.endswith(("(", "[", ":"))
    return textwrap.shorten(line if is_whole else text, 200, placeholder=" ...")


def kind(thing: Any) -> str:
    """Say what a thing is, for a message: `the function adam`, `a tuple of 3`."""
    if isinstance(thing, type) or inspect.isroutine(thing):
        return f"the {'class' if isinstance(thing, type) else 'function'} {thing.__name__}"
    if isinstance(thing, str | int | float | None):
        return repr(thing)
    if hasattr(thing, "shape"):
        return f"a single array of shape {thing.shape}"
    name = type(thing).__name__
    # MLP and LSTM are read with a vowel first, besides names that are written with one.
    article = "an" if re.match("[AEIOaeio]|MLP|LSTM", name) else "a"
    size = f" of {len(thing)}" if isinstance(thing, tuple | list) else ""
    return f"{article} {name}{size}"
