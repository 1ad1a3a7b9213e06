"""Arguments of `Trainer` and its methods are checked before anything is made of them."""

import inspect
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from vernal._data.arrays import signature
from vernal.errors import ArgumentError, did_you_mean, kind, whole_number
from vernal.losses import AbstractSupervised
from vernal.metrics import AbstractMetric, Mean, top_k


def check_optimizer(optimizer) -> None:
    """Raise `ArgumentError` if this is not an Optax optimizer."""
    is_one = all(callable(getattr(optimizer, name, None)) for name in ("init", "update"))
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
    is_loss = _accepts(loss, 3) or _accepts(loss, 4)
    if not is_loss or (getattr(loss, "__module__", "") or "").startswith("optax"):
        name = getattr(loss, "__name__", type(loss).__name__)
        raise ArgumentError(
            f"loss is called as loss(model, batch, key), which {name} is not made for."
            f"\n  Try losses.Supervised({name}) if it takes one example's prediction and target."
        )


def check_key(key: Any) -> None:
    """Raise `ArgumentError` if this is neither a random key nor `None`."""
    is_array = isinstance(key, jax.Array | np.ndarray)
    # Keys as `jax.random.PRNGKey` makes them are two plain numbers.
    is_key = is_array and (
        (jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ())
        or (key.dtype == np.uint32 and key.ndim == 1)
    )
    if key is not None and not is_key:
        seed = key if isinstance(key, int) else 0
        raise ArgumentError(
            f"key is {kind(key)}; a random key is needed.\n  Try jax.random.key({seed})."
        )


def check_no_key(key: Any) -> None:
    """Raise `ArgumentError` if a key is given where a `TrainState` is."""
    if key is not None:
        raise ArgumentError(
            "key is given with a TrainState, which has a key already."
            "\n  Pass the key to trainer.init(model, key=key), where the state begins."
        )


def checked_steps_per_epoch(steps: Any) -> int | None:
    """Return a number of steps, or `None`; `ArgumentError` if it is neither."""
    return None if steps is None else whole_number("steps_per_epoch", steps, at_least=1)


def check_on_nonfinite(choice) -> None:
    """Raise `ArgumentError` if this is neither "raise" nor "ignore"."""
    if choice not in ("raise", "ignore"):
        raise ArgumentError(f'on_nonfinite is {choice!r}; "raise" or "ignore" is needed.')


def check_eval_params(eval_params: Any) -> None:
    """Raise `ArgumentError` if this is no function of an optimizer's state and parameters."""
    if eval_params is not None and not _accepts(eval_params, 2):
        raise ArgumentError(
            f"eval_params is {kind(eval_params)}; a function eval_params(opt_state, params) is "
            "needed.\n  Try eval_params=vernal.averaged."
        )


def check_same_params(evaluated: PyTree, params: PyTree) -> None:
    """Raise `ArgumentError` if these parameters differ in structure, shape or dtype."""
    if signature(evaluated) != signature(params):
        raise ArgumentError(
            "eval_params returns other parameters than it is given: their structure, a shape or a "
            "dtype differs.\n  Return jax.tree.map(..., params)."
        )


def check_stateful(loss: Callable | None, model: PyTree, model_state: PyTree) -> None:
    """Raise `ArgumentError` if loss, model and model state do not go together."""
    name = type(model).__name__
    if model_state is None and _needs_state(model):
        raise ArgumentError(
            f"{name} has layers with a state, such as BatchNorm, and is given without it."
            f"\n  Make both: model, model_state = eqx.nn.make_with_state({name})(...),"
            "\n  and pass trainer.init(model, model_state=model_state) in place of the model."
        )
    if loss is None or isinstance(loss, AbstractSupervised):
        return
    if _accepts(loss, 3 if model_state is None else 4):
        return
    loss_name = getattr(loss, "__name__", type(loss).__name__)
    if model_state is None:
        raise ArgumentError(
            f"{loss_name} takes a model_state, and there is none."
            "\n  Pass trainer.init(model, model_state=...) in place of the model."
        )
    raise ArgumentError(
        f"with a model_state the loss is called as loss(model, batch, key, model_state), which "
        f"{loss_name} is not made for."
        "\n  It needs to return (scalar, dict of metrics, model_state)."
    )


def _needs_state(model: PyTree) -> bool:
    """Say whether a model has layers with a state: these hold an index into it."""
    found = jax.tree.leaves(model, is_leaf=lambda node: isinstance(node, eqx.nn.StateIndex))
    return any(isinstance(leaf, eqx.nn.StateIndex) for leaf in found)


def checked_metrics(metrics: Any, loss: Callable) -> dict[str, AbstractMetric]:
    """Return metrics by name, each as an `AbstractMetric`.

    Raises:
        ArgumentError: If they cannot be measured.
    """
    if metrics is None:
        return {}
    if not isinstance(metrics, Mapping):
        raise ArgumentError(
            f"metrics is {kind(metrics)}; a dict of functions by name is needed."
            '\n  Try metrics={"accuracy": metrics.accuracy}.'
        )
    if metrics and not isinstance(loss, AbstractSupervised):
        raise ArgumentError(
            "metrics are functions of predictions and targets, but a loss of your own measures "
            'both.\n  Return the metrics from the loss: (scalar, {"name": value}).'
        )
    checked: dict[str, AbstractMetric] = {}
    for name, metric in metrics.items():
        is_taken = name in ("loss", "learning_rate")
        if not isinstance(name, str) or is_taken or name.startswith("val_"):
            raise ArgumentError(
                f"metrics cannot be called {name!r}; a string is needed that is not "
                '"loss" or "learning_rate" and does not begin with "val_".'
            )
        if isinstance(metric, AbstractMetric):
            checked[name] = metric
        elif _accepts(metric, 2):
            checked[name] = Mean(metric)
        else:
            hint = "\n  Try metrics.top_k(5)." if metric is top_k else ""
            raise ArgumentError(
                f"metrics[{name!r}] is {kind(metric)}; a function fn(prediction, target) of one "
                f"example is needed, or an AbstractMetric.{hint}"
            )
    return checked


def checked_dtype(dtype) -> np.dtype | None:
    """Return a dtype to compute in; `ArgumentError` if it is not a floating-point dtype."""
    if dtype is None:
        return None
    try:
        made = jnp.dtype(dtype)
    except TypeError:
        made = None
    if made is None or not jnp.issubdtype(made, jnp.floating):
        raise ArgumentError(
            f"compute_dtype is {dtype!r}; a floating-point dtype is needed, such as jnp.bfloat16."
        )
    return made


def checked_callbacks(
    callbacks, names: list[str], metrics: Mapping[str, AbstractMetric]
) -> list[Callable]:
    """Return callbacks as a list.

    Args:
        callbacks: Any iterable.
        names: Everything that an epoch measures.
        metrics: The metrics among them.

    Raises:
        ArgumentError: If one is not a callback, or monitors something else that no callback before
            it can measure.
    """
    if callable(callbacks) or not isinstance(callbacks, Iterable):
        raise ArgumentError(
            f"callbacks is {kind(callbacks)}; a list of callables is needed."
            "\n  Try callbacks=[callback]."
        )
    listed = list(callbacks)
    may_measure = False
    for callback in listed:
        if not _accepts(callback, 1):
            raise ArgumentError(
                f"callbacks holds {kind(callback)}; a callable callback(epoch) is needed."
                f"{_callback_hint(callback)}"
            )
        if not may_measure:
            check_monitored(callback, names)
        if hasattr(callback, "decide_mode"):
            callback.decide_mode(metrics)
        is_vernals = type(callback).__module__.startswith("vernal.")
        may_measure |= not is_vernals and not inspect.isbuiltin(callback)  # such as a list's append
    return listed


def _callback_hint(callback: Any) -> str:
    if isinstance(callback, type):
        return f"\n  Try {callback.__name__}()."
    others = [name for name in dir(callback) if name.startswith("on_")]
    return f"\n  Write __call__(self, epoch) in place of {others[0]}." if others else ""


def check_monitored(callback: Any, names: Collection[str]) -> None:
    """Raise `ArgumentError` if a callback monitors what is not among the names of measurements."""
    monitor = getattr(callback, "monitor", None)
    if not isinstance(monitor, str) or monitor in names:
        return
    hint = (
        f"{did_you_mean(monitor, names)}\n  A callback before it may measure it, from the first "
        f"epoch on: epoch.metrics[{monitor!r}] = ..."
    )
    if monitor.removeprefix("val_") in names:
        hint = "\n  Pass validation_data."
    raise ArgumentError(
        f"{type(callback).__name__} monitors {monitor!r}, which is not measured; there are "
        f"{', '.join(names)}.{hint}"
    )


def check_progress(progress: Any) -> None:
    """Raise `ArgumentError` if this is no choice of what shows the progress."""
    if not isinstance(progress, bool) and progress not in ("auto", "bar", "lines"):
        raise ArgumentError(
            f'progress is {progress!r}; True, False, "auto", "bar" or "lines" is needed.'
        )


def check_checkpoints(checkpoints: Any) -> None:
    """Raise `ArgumentError` if `fit` was given something else as its `checkpoints`."""
    is_path = isinstance(checkpoints, str | os.PathLike)  # a Path can be opened, but not so
    if checkpoints is None or (hasattr(checkpoints, "open") and not is_path):
        return
    path = os.fspath(checkpoints) if is_path else "runs/1"
    raise ArgumentError(
        f"checkpoints is {kind(checkpoints)}; a vernal.Checkpoints is needed."
        f"\n  Try checkpoints=vernal.Checkpoints({path!r})."
    )


def _accepts(function: Any, arguments: int) -> bool:
    """Say whether this is a function, or another callable instance, of so many arguments."""
    if isinstance(function, type) or not callable(function):
        return False
    try:
        inspect.signature(function).bind(*range(arguments))
    except TypeError:
        return False
    except ValueError:  # some built-in callables have no signature
        return True
    return True
