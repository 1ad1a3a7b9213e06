"""Numbers as JAX takes them: converted, or refused with their place and a line that helps."""

import contextlib
import textwrap
from numbers import Number
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vernal._data.files import FileArray, held_as, is_number, narrows, parts
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


def line_that_works(name: str, given: Any) -> str | None:
    """Return the first of the lines that makes numbers of an array; or `None`.

    Args:
        name: What the user calls the array.
        given: What the user passed.
    """
    array = "np.asarray({0})" if isinstance(given, list) else "{0}"
    for line in _LINES:
        code = line.format(array)
        with contextlib.suppress(Exception), np.errstate(all="raise", under="ignore"):
            # The very line that will be shown.
            made = np.asarray(eval(code.format("a"), {"np": np, "jax": jax, "a": given}))
            has_codes = "codes" not in line or made.min() >= 0  # -1 is pandas' missing value
            if is_number(made.dtype) and has_codes and np.isfinite(made).any():
                return f"Try {code.format(name)}."
    return None


def not_numbers(name: str, given: Any, array: Any) -> DataError:
    """Make the error for an array that does not hold numbers.

    Args:
        name: What the user calls it.
        given: What the user passed.
        array: What NumPy makes of it.
    """
    hint = None
    if isinstance(array, FileArray):
        array = array[:1]  # only a part is read at once
    else:
        hint = line_that_works(name, given)
    found = f"{name} needs numbers; it holds {array.dtype.name} values"
    values = np.ndenumerate(array) if isinstance(array, np.ndarray) else ()  # not of random keys
    for index, value in values:
        if not isinstance(value, Number | np.bool_):
            text = repr(str(value)) if isinstance(value, str) else str(value)
            found += f": {name}{list(index) or ''} is {textwrap.shorten(text, 60)}"
            break
    hint = hint or "Encode them as numbers first, or drop those examples."
    return DataError(f"{found}.\n  {hint}")


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
        raise DataError(f"{name}{_place(mask, start)} is masked: models have no masks.{hint}")

    values = np.asarray(values)
    dtype = held_as(values.dtype)
    with np.errstate(over="ignore"):
        held = values.astype(dtype, copy=False)
    if not narrows(values.dtype):
        return held
    array = _as_numpy(name, given)
    if jnp.issubdtype(dtype, jnp.integer):
        wrong, hint = held != values, f"{array}.astype(np.float32) for a quantity"
    else:
        wrong, hint = np.isinf(held), f"{array} / np.abs({array}[np.isfinite({array})]).max()"
    if wrong.any():
        wrong &= np.isfinite(values)
    if wrong.any():
        if narrows(np.dtype(float)):  # without double precision
            hint += ', or jax.config.update("jax_enable_x64", True)'
        first = f"{name}{_place(wrong, start)} is {values[wrong][0]!s}"
        raise DataError(f"{first}: too large for {dtype}.\n  Try {hint}.")
    return held


def check_values(
    name: str, given: Any, array: np.ndarray | Array | FileArray, *, finite: bool
) -> None:
    """Raise `DataError` if a value does not fit in memory or, with `finite`, is not finite."""
    # A sum is finite only if every value is, and costs one pass and no memory; only where it is
    # not (a large sum may overflow, too) are the values looked at one by one.
    finite = finite and jnp.issubdtype(array.dtype, jnp.inexact)
    if isinstance(array, jax.Array) and (not finite or np.isfinite(_sum(array))):
        return
    number, first, hint = 0, "", ""
    for start, part in parts(array):
        values = in_memory(name, given, part, start)
        with np.errstate(all="ignore"):
            if not finite or np.isfinite(values.sum()):
                continue
        bad = ~np.isfinite(np.asarray(values, np.promote_types(values.dtype, "f4")))
        if bad.any() and not number:
            first = f"{name}{_place(bad, start)}, {values[bad][0]}"
            hint = _line_that_drops(bad, f"np.isfinite({_as_numpy(name, given)})", name, given)
        number += np.count_nonzero(bad)
    if number:
        many = "1 value that is" if number == 1 else f"{number} values that are"
        raise DataError(
            f"{name} has {many} not finite, of {array.size}: the first is {first}.{hint}"
        )


@jax.jit
def _sum(array):
    return array.sum()


def _line_that_drops(bad: np.ndarray, condition: str, name: str, given: Any) -> str:
    """Write the lines that drop examples with bad values, by code that says which are good."""
    if bad.reshape(len(bad), -1).any(1).all():
        return "\n  Every example has one: a loss of your own may leave out such values."
    every = "" if bad.ndim == 1 else f".reshape(len({name}), -1).all(1)"
    return (
        f"\n  Drop those examples: keep = {condition}{every}"
        f"\n  Then index every array with it, as in {_as_numpy(name, given)}[keep]."
    )


def _as_numpy(name: str, given: Any) -> str:
    """Write an array that NumPy's functions take: by its name, unless it is a list or a frame."""
    return name if isinstance(given, np.ndarray | jax.Array) else f"np.asarray({name})"


def _place(wrong: np.ndarray, start: int) -> str:
    """Write the index of the first value that is wrong; the first row has the number `start`."""
    index = np.argwhere(wrong)[0]
    index[:1] += start
    return str(index.tolist()) if len(index) else ""
