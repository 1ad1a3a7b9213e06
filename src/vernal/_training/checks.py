"""Whether choices, a model and data can be used, before anything is made of them."""

import inspect
from collections.abc import Callable, Iterable, Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from vernal._training.objective import Objective
from vernal.errors import ArgumentError, kind
from vernal.losses import AbstractSupervised
from vernal.metrics import AbstractMetric, Mean, top_k


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
    is_loss = _accepts(loss, 3) or _accepts(loss, 4)
    if not is_loss or (getattr(loss, "__module__", "") or "").startswith("optax"):
        name = getattr(loss, "__name__", type(loss).__name__)
        raise ArgumentError(
            f"loss is called as loss(model, batch, key), which {name} is not made for."
            f"\n  Try losses.Supervised({name}) if it takes one example's prediction and target."
        )


def check_on_nonfinite(choice) -> None:
    """Raise `ArgumentError` if this is none of the choices there are."""
    if choice not in ("raise", "ignore"):
        raise ArgumentError(f'on_nonfinite is {choice!r}; "raise" or "ignore" is needed.')


def checked_objective(loss, metrics, compute_dtype) -> Objective:
    """What to measure; `ArgumentError` if one of the choices cannot be used."""
    check_loss(loss)
    return Objective(loss, _checked_metrics(metrics, loss), _checked_dtype(compute_dtype))


def check_stateful(loss: Callable | None, model: PyTree, model_state: PyTree) -> None:
    """Raise `ArgumentError` if loss, model and model state do not go together."""
    is_index = lambda node: isinstance(node, eqx.nn.StateIndex)
    name = type(model).__name__
    if model_state is None and any(map(is_index, jax.tree.leaves(model, is_leaf=is_index))):
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


def _checked_metrics(metrics, loss: Callable) -> dict[str, AbstractMetric]:
    """Metrics by name, each as an `AbstractMetric`; `ArgumentError` if they cannot be measured."""
    if metrics is None:
        return {}
    if not isinstance(metrics, Mapping):
        raise ArgumentError(
            f"metrics is {kind(metrics)}; a dict of functions by name is needed."
            '\n  Try metrics={"accuracy": metrics.accuracy}.'
        )
    if metrics and not isinstance(loss, AbstractSupervised):
        raise ArgumentError(
            "metrics are functions of predictions and targets, which a loss of one's own keeps to "
            'itself.\n  Return them from the loss: (scalar, {"name": value}).'
        )
    for name, metric in metrics.items():
        if not isinstance(name, str) or name in ("loss", "learning_rate") or name[:4] == "val_":
            raise ArgumentError(f"{name!r} is taken, or no name; call the metric something else.")
        is_metric = isinstance(metric, AbstractMetric) or (
            callable(metric) and not isinstance(metric, type) and _accepts(metric, 2)
        )
        if not is_metric:
            hint = "\n  Try metrics.top_k(5)." if metric is top_k else ""
            raise ArgumentError(
                f"metrics[{name!r}] is {kind(metric)}; a function fn(prediction, target) of one "
                f"example is needed, or an AbstractMetric.{hint}"
            )
    made = lambda metric: metric if isinstance(metric, AbstractMetric) else Mean(metric)
    return {name: made(metric) for name, metric in metrics.items()}


def _checked_dtype(dtype) -> np.dtype | None:
    """A dtype to compute in; `ArgumentError` if it is none of floating-point numbers."""
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


def checked_callbacks(callbacks, names: Iterable[str]) -> list[Callable]:
    """Callbacks as a list; `ArgumentError` if one is none, or waits for what is not measured."""
    if callable(callbacks) or not isinstance(callbacks, Iterable):
        raise ArgumentError(
            f"callbacks is {kind(callbacks)}; a list of callables is needed."
            "\n  Try callbacks=[callback]."
        )
    listed, known = list(callbacks), list(names)
    for callback in listed:
        if not callable(callback) or isinstance(callback, type):
            raise ArgumentError(
                f"callbacks holds {kind(callback)}; a callable callback(epoch) is needed."
            )
        monitor = getattr(callback, "monitor", None)
        if monitor is not None and monitor not in known:
            hint = "\n  Pass validation_data." if monitor[:4] == "val_" else ""
            raise ArgumentError(
                f"{type(callback).__name__} watches {monitor!r}, which is not measured; "
                f"there are {', '.join(known)}.{hint}"
            )
    return listed


def _accepts(function: Callable, arguments: int) -> bool:
    try:
        inspect.signature(function).bind(*range(arguments))
    except TypeError:
        return False
    except ValueError:  # no signature to be had, as for some built-in callables
        return True
    return True
