"""Numbers as JAX takes them: converted, or refused with their place and a line that helps."""

import contextlib
import textwrap
from numbers import Number
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vernal._data.files import FileArray, blocks, held_as, is_number, narrows
from vernal.errors import DataError

# Lines that make numbers of what holds none, with braces for the array; the first that works is
# suggested. Times count from the first of them: in single precision, seconds since 1970 would lose
# minutes.
_LINES = (
    "{0}.detach().cpu().numpy()",
    "{0}.detach().cpu().float().numpy()",
    "{0}.toarray()",
    "{0}.cat.codes",
    "jax.random.key_data({0})",
    "np.stack([{0}[name] for name in {0}.dtype.names], axis=-1)",
    '{0} / np.timedelta64(1, "s")',
    '({0} - {0}.min()) / np.timedelta64(1, "D")',
    '({0} - np.nanmin({0})) / np.timedelta64(1, "D")',
    "{0}.astype(np.float32)",
    "{0}.astype(float)",
    "np.unique({0}, return_inverse=True)[1]",
)


def line_that_works(name: str, given: Any) -> str:
    """Suggest the first of the lines that makes numbers of an array; nothing if none does.

    Args:
        name: What the user calls the array.
        given: What the user passed.
    """
    for line in _LINES:
        code = line.format("np.asarray({0})" if isinstance(given, list) else "{0}")
        with contextlib.suppress(Exception), np.errstate(all="raise", under="ignore"):
            # The very line that will be shown.
            made = np.asarray(eval(code.format("a"), {"np": np, "jax": jax, "a": given}))
            has_codes = "codes" not in line or made.min() >= 0  # -1 is pandas' missing value
            if is_number(made.dtype) and has_codes and np.isfinite(made).any():
                return f"\n  Try {code.format(name)}."
    return ""


def not_numbers(name: str, given: Any, array: Any) -> DataError:
    """Make the error for an array that does not hold numbers.

    Args:
        name: What the user calls it.
        given: What the user passed.
        array: What NumPy makes of it.
    """
    hint = "" if isinstance(array, FileArray) else line_that_works(name, given)
    found = f"{name} needs numbers; it holds {array.dtype.name} values"
    if not isinstance(array, jax.Array):  # random keys
        array = array[:1] if isinstance(array, FileArray) else array  # of a file, little is read
        for index, value in np.ndenumerate(array):
            if not isinstance(value, Number | np.bool_):
                text = repr(str(value)) if isinstance(value, str) else str(value)
                found += f": {name}{list(index) or ''} is {textwrap.shorten(text, 60)}"
                break
    hint = hint or "\n  Encode them as numbers first, or drop those examples."
    return DataError(f"{found}.{hint}")


def in_memory(name: str, given: Any, values: np.ndarray, start: int = 0) -> np.ndarray:
    """Return numbers in the dtype that they have in memory.

    Args:
        name: What the user calls the array.
        given: What the user passed.
        values: The array, or a part of it.
        start: The number of its first row.

    Raises:
        DataError: If one of the values is masked, or does not fit.
    """
    if np.ma.is_masked(values):
        mask = np.ma.getmaskarray(values)
        array = name if isinstance(given, np.ma.MaskedArray) else f"np.ma.stack({name})"
        hint = _line_that_drops(mask, f"(~np.ma.getmaskarray({array}))", name, given)
        raise DataError(f"{name}{place(mask, start)} is masked: models have no masks.{hint}")

    values = np.asarray(values)
    dtype = held_as(values.dtype)
    with np.errstate(over="ignore"):
        held = values.astype(dtype, copy=False)
    if not narrows(values.dtype):
        return held
    is_integer = jnp.issubdtype(dtype, jnp.integer)
    wrong = held != values if is_integer else np.isinf(held) & np.isfinite(values)
    if wrong.any():
        array = _as_numpy(name, given)
        scaled = f"{array} / np.abs({array}[np.isfinite({array})]).max()"
        line = f"{array}.astype(np.float32) for a quantity" if is_integer else scaled
        if narrows(np.dtype(float)):  # without double precision
            line += ', or jax.config.update("jax_enable_x64", True)'
        first = f"{name}{place(wrong, start)} is {values[wrong][0]!s}"
        raise DataError(f"{first}: too large for {dtype}.\n  Try {line}.")
    return held


def check_values(name: str, given: Any, array: Any, *, finite: bool) -> None:
    """Raise `DataError` if a value does not fit in memory or, with `finite`, is not finite."""
    finite = finite and jnp.issubdtype(array.dtype, jnp.inexact)
    if isinstance(array, jax.Array) and (not finite or jnp.isfinite(array).all()):
        return  # looked at on its device
    number, first = 0, ""
    for start, part in blocks(array):
        values = in_memory(name, given, part, start)
        # A product with itself is finite only if every value is: one pass of BLAS, and no memory.
        is_fast = values.dtype.char in "fdFD"
        with np.errstate(all="ignore"):
            if not finite or (is_fast and np.isfinite(np.vdot(values, values))):
                continue
        bad = ~np.isfinite(values)
        if bad.any() and not number:
            hint = _line_that_drops(bad, f"np.isfinite({_as_numpy(name, given)})", name, given)
            first = f"{name}{place(bad, start)}, {values[bad][0]}.{hint}"
        number += np.count_nonzero(bad)
    if number:
        many = "1 value that is" if number == 1 else f"{number} values that are"
        raise DataError(f"{name} has {many} not finite, of {array.size}: the first is {first}")


def _line_that_drops(bad: np.ndarray, condition: str, name: str, given: Any) -> str:
    """Write the lines that drop examples with bad values, by code that says which are good."""
    if bad.reshape(len(bad), -1).any(1).all():
        return "\n  Every example has one: a loss of your own may leave out such values."
    every = "" if bad.ndim == 1 else f".reshape(len({name}), -1).all(1)"
    then = f"Then index every array with it, as in {_as_numpy(name, given)}[keep]."
    return f"\n  Drop those examples: keep = {condition}{every}\n  {then}"


def _as_numpy(name: str, given: Any) -> str:
    """Write an array that NumPy's functions take: by its name, unless it is a list or a frame."""
    return name if isinstance(given, np.ndarray | jax.Array) else f"np.asarray({name})"


def place(wrong: np.ndarray, start: int) -> str:
    """Write the index of the first value that is wrong; the first row has the number `start`."""
    index = np.argwhere(wrong)[0]
    index[:1] += start
    return str(index.tolist()) if len(index) else ""
