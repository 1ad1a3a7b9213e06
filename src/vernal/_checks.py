"""Whether choices, a model and data can be used, before anything is made of them."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from jaxtyping import PyTree

from vernal._arrays import as_arrays, is_whole
from vernal._data import LoaderSource, Source, as_source
from vernal._errors import ArgumentError, DataError, ExamplesError, kind
from vernal._preflight import about, examples_error, label_check, preflight
from vernal._state import TrainState
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
    if not is_whole(value) or value < at_least:
        raise ArgumentError(f"{name} needs to be a whole number from {at_least}; it is {value!r}.")
    return int(value)


def model_of(model_or_state: PyTree | TrainState) -> PyTree:
    """The model itself, or a state's; `ArgumentError` if it is a class."""
    is_state = isinstance(model_or_state, TrainState)
    model = model_or_state.model if is_state else model_or_state
    if isinstance(model, type):
        raise ArgumentError(
            f"model is {kind(model)}; an instance of an eqx.Module is needed, or a TrainState."
        )
    return model


def checked_source(
    loss: Callable | None, model: PyTree, data, batch_size, *, name: str = "data", **order
) -> tuple[Source, Any]:
    """Data as a source, checked against the model and the loss, and what the check returns."""
    try:
        # A list of batches is a loader; but of what a model is applied to, it is an array.
        arrays = as_arrays(data, name=name) if name == "x" and isinstance(data, list) else data
        source = as_source(arrays, batch_size, name=name, **order)
    except ExamplesError as error:
        raise examples_error(error, loss, model, data, name) from None
    except DataError as error:
        raise DataError(about(name, str(error))) from None
    given = None if isinstance(source, LoaderSource) else data
    shapes = preflight(loss, model, source.example, name=name, given=given)
    labels = label_check(loss, model, source.example, name)
    if isinstance(source, LoaderSource):
        source.check = partial(preflight, loss, model, name=name)
        source.check_labels = labels
    else:
        labels(source.example)
    return source, shapes
