"""Whether a choice can be used, before anything is made of it."""

import inspect
from collections.abc import Callable

import numpy as np

from vernal._errors import ArgumentError, kind
from vernal.losses import AbstractSupervised


def check_optimizer(optimizer) -> None:
    """Raise `ArgumentError` if this is not an Optax optimizer."""
    is_one = callable(getattr(optimizer, "init", None)) and callable(
        getattr(optimizer, "update", None)
    )
    if isinstance(optimizer, type) or not is_one:
        name = getattr(optimizer, "__name__", None)
        call = f"{name}(...)" if callable(optimizer) and name else "optax.adam(1e-3)"
        raise ArgumentError(
            f"optimizer is {kind(optimizer)}; an Optax optimizer is needed."
            f"\n  Try Trainer({call}, ...), as in optax.adam(1e-3)."
        )


def check_loss(loss) -> None:
    """Raise `ArgumentError` if this cannot be called as `loss(model, batch, key)`."""
    if isinstance(loss, type) and issubclass(loss, AbstractSupervised):
        raise ArgumentError(
            f"loss is the class {loss.__name__}; an instance is needed."
            f"\n  Try losses.{loss.__name__}()."
        )
    if isinstance(loss, type) or not callable(loss):
        raise ArgumentError(
            f"loss is {kind(loss)}; a callable loss(model, batch, key) is needed."
            "\n  Try losses.MeanSquaredError(), or another of vernal.losses."
        )
    if not _accepts_three(loss) or (getattr(loss, "__module__", "") or "").startswith("optax"):
        name = getattr(loss, "__name__", type(loss).__name__)
        raise ArgumentError(
            f"loss is called as loss(model, batch, key), which {name} is not made for."
            f"\n  Try losses.Supervised({name}) if it takes one example's prediction and target."
        )


def _accepts_three(function: Callable) -> bool:
    try:
        inspect.signature(function).bind("model", "batch", "key")
    except TypeError:
        return False
    except ValueError:  # no signature to be had, as for some built-in callables
        return True
    return True


def whole_number(name: str, value, *, at_least: int) -> int:
    """The value as an int; `ArgumentError` if it is no whole number, or out of range."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < at_least:
        raise ArgumentError(f"{name} needs to be a whole number from {at_least}; it is {value!r}.")
    return int(value)
