"""Arguments of `Trainer` and its methods are checked before anything is made of them."""

import contextlib
import functools
import inspect
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from vernal._data.arrays import signature
from vernal.errors import ArgumentError, did_you_mean, whole_number, wrong_argument
from vernal.losses import AbstractSupervised
from vernal.metrics import AbstractMetric, Mean, top_k


def check_optimizer(optimizer) -> None:
    """Raise `ArgumentError` if this is not an Optax optimizer."""
    is_one = all(callable(getattr(optimizer, name, None)) for name in ("init", "update"))
    if isinstance(optimizer, type) or not is_one:
        call = f"{optimizer.__name__}(...)" if inspect.isroutine(optimizer) else "one of Optax's"
        hint = f"Try {call}, as in optax.adam(1e-3)."
        raise wrong_argument("optimizer", optimizer, "an Optax optimizer", hint)


def check_loss(loss) -> None:
    """Raise `ArgumentError` if this cannot be called as `loss(model, batch, key)`."""
    is_optax = (getattr(loss, "__module__", "") or "").startswith("optax")
    if (_accepts(loss, 3) or _accepts(loss, 4)) and not is_optax:
        return
    taken = "your_loss" if isinstance(loss, functools.partial) else _name_of(loss)
    hint = f"Try losses.Supervised({taken}) if it takes one prediction and target."
    if isinstance(loss, type) or not callable(loss):
        is_class = isinstance(loss, type) and issubclass(loss, AbstractSupervised)
        hint = f"Try losses.{loss.__name__ if is_class else 'MeanSquaredError'}()."
    raise wrong_argument("loss", loss, "a callable loss(model, batch, key)", hint)


def check_hashable(name: str, function: Any) -> None:
    """Raise `ArgumentError` if JAX could not tell this from another one, as it needs to."""
    for leaf in jax.tree.leaves(function):
        if not eqx.is_array(leaf) and type(leaf).__hash__ is None:
            hint = "Write @dataclass(frozen=True), or make it an eqx.Module."
            raise wrong_argument(name, leaf, "what has a hash", hint)


def check_key(key: Any) -> None:
    """Raise `ArgumentError` if this is neither a random key nor `None`."""
    try:
        if key is not None:
            jax.eval_shape(jax.random.fold_in, key, 0)
    except (TypeError, ValueError):
        hint = f"Try jax.random.key({key if isinstance(key, int) else 0})."
        raise wrong_argument("key", key, "a random key", hint) from None


def check_no_key(key: Any) -> None:
    """Raise `ArgumentError` if a key is given where a `TrainState` is."""
    if key is not None:
        hint = "Pass the key to trainer.init(model, key=key), where the state begins."
        raise ArgumentError(f"key is given with a TrainState, which has a key already.\n  {hint}")


def checked_steps_per_epoch(steps: Any) -> int | None:
    """Return a number of steps, or `None`; `ArgumentError` if it is neither."""
    return None if steps is None else whole_number("steps_per_epoch", steps, at_least=1)


def check_on_nonfinite(choice) -> None:
    """Raise `ArgumentError` if this is neither "raise" nor "ignore"."""
    if choice not in ("raise", "ignore"):
        raise wrong_argument("on_nonfinite", choice, '"raise" or "ignore"')


def check_eval_params(eval_params: Any) -> None:
    """Raise `ArgumentError` if this is no function of an optimizer's state and parameters."""
    if eval_params is not None and not _accepts(eval_params, 2):
        need = "a function eval_params(opt_state, params)"
        raise wrong_argument("eval_params", eval_params, need, "Try eval_params=vernal.averaged.")


def check_same_params(evaluated: PyTree, params: PyTree) -> None:
    """Raise `ArgumentError` if these parameters differ in structure, shape or dtype."""
    if signature(evaluated) != signature(params):
        hint = "Return jax.tree.map(..., params)."
        raise ArgumentError(f"eval_params returns other parameters than it is given.\n  {hint}")


def check_stateful(loss: Callable | None, model: PyTree, model_state: PyTree) -> None:
    """Raise `ArgumentError` if loss, model and model state do not go together."""
    leaves = jax.tree.leaves(model, is_leaf=_is_state_index)
    if model_state is None and any(map(_is_state_index, leaves)):
        name = type(model).__name__
        raise ArgumentError(
            f"{name} has layers with a state, such as BatchNorm, and is given without it."
            f"\n  Make both: model, model_state = eqx.nn.make_with_state({name})(...),"
            "\n  and pass trainer.init(model, model_state=model_state) in place of the model."
        )
    given, called = "no", ["model", "batch", "key"]
    if model_state is not None:
        given, called = "a", [*called, "model_state"]
    if loss is None or _accepts(loss, len(called)):
        return
    raise ArgumentError(
        f"with {given} model_state the loss is called as loss({', '.join(called)}), "
        f"which {_name_of(loss)} is not made for."
        "\n  For a loss that returns (scalar, dict of metrics, model_state), pass "
        "trainer.init(model, model_state=...) in place of the model."
    )


def _is_state_index(node: Any) -> bool:
    """Say whether this is an index into a model's state, which layers with a state hold."""
    return isinstance(node, eqx.nn.StateIndex)


def _name_of(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


def checked_metrics(metrics: Any, loss: Callable) -> dict[str, AbstractMetric]:
    """Return metrics by name, each as an `AbstractMetric`.

    Raises:
        ArgumentError: If they cannot be measured.
    """
    metrics = {} if metrics is None else metrics
    if not isinstance(metrics, Mapping):
        hint = 'Try metrics={"accuracy": metrics.accuracy}.'
        raise wrong_argument("metrics", metrics, "a dict of functions by name", hint)
    if metrics and not isinstance(loss, AbstractSupervised):
        hint = 'Return the metrics from the loss: (scalar, {"name": value}).'
        raise ArgumentError(f"metrics are for losses of vernal.losses, not your own.\n  {hint}")
    checked = {}
    for name, metric in metrics.items():
        is_taken = name in ("", "loss", "learning_rate")
        if not isinstance(name, str) or is_taken or name.startswith("val_"):
            need = 'a string is needed that is not "loss", "learning_rate" or "val_..."'
            raise ArgumentError(f"metrics cannot be called {name!r}; {need}.")
        if not isinstance(metric, AbstractMetric) and not _accepts(metric, 2):
            need = "a function fn(prediction, target) of one example, or an AbstractMetric,"
            hint = "Try metrics.top_k(5)." if metric is top_k else ""
            raise wrong_argument(f"metrics[{name!r}]", metric, need, hint)
        check_hashable(f"metrics[{name!r}]", metric)
        checked[name] = metric if isinstance(metric, AbstractMetric) else Mean(metric)
    return checked


def checked_dtype(dtype) -> np.dtype | None:
    """Return a dtype to compute in; `ArgumentError` if it is not a floating-point dtype."""
    if dtype is None:
        return None
    with contextlib.suppress(TypeError):
        if jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
            return jnp.dtype(dtype)
    raise wrong_argument("compute_dtype", dtype, "a floating-point dtype", "Try jnp.bfloat16.")


def checked_callbacks(callbacks, names: list[str], metrics: Mapping) -> list[Callable]:
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
        hint = "Try callbacks=[callback]."
        raise wrong_argument("callbacks", callbacks, "a list of callables", hint)
    listed = list(callbacks)
    may_measure = False
    for i, callback in enumerate(listed):
        if not _accepts(callback, 1):
            hooks = [name for name in dir(callback) if name.startswith("on_")]
            hint = f"Write __call__(self, epoch) in place of {hooks[0]}." if hooks else ""
            if isinstance(callback, type):
                hint = f"Try {callback.__name__}()."
            raise wrong_argument(f"callbacks[{i}]", callback, "a callable callback(epoch)", hint)
        if not may_measure:
            check_monitored(callback, names)
        if hasattr(callback, "decide_mode"):
            callback.decide_mode(metrics)
        is_vernals = type(callback).__module__.startswith("vernal.")
        may_measure |= not is_vernals and not inspect.isbuiltin(callback)  # such as a list's append
    return listed


def check_monitored(callback: Any, names: Collection[str]) -> None:
    """Raise `ArgumentError` if a callback monitors what is not among the names of measurements."""
    monitor = getattr(callback, "monitor", None)
    if not isinstance(monitor, str) or monitor in names:
        return
    measure = f"epoch.metrics[{monitor!r}] = ..."
    hint = f"{did_you_mean(monitor, names)}\n  A callback before it may measure it: {measure}"
    if monitor.removeprefix("val_") in names:
        hint = "\n  Pass validation_data."
    problem = f"{type(callback).__name__} monitors {monitor!r}, which is not measured"
    raise ArgumentError(f"{problem}; there are {', '.join(names)}.{hint}")


def check_progress(progress: Any) -> None:
    """Raise `ArgumentError` if this is no choice of what shows the progress."""
    if not isinstance(progress, bool) and progress not in ("auto", "bar", "lines"):
        raise wrong_argument("progress", progress, 'True, False, "auto", "bar" or "lines"')


def check_checkpoints(checkpoints: Any) -> None:
    """Raise `ArgumentError` if `fit` was given something else as its `checkpoints`."""
    is_path = isinstance(checkpoints, str | os.PathLike)  # a Path can be opened, but not so
    if checkpoints is None or (hasattr(checkpoints, "open") and not is_path):
        return
    path = os.fspath(checkpoints) if is_path else "runs/1"
    hint = f"Try checkpoints=vernal.Checkpoints({path!r})."
    raise wrong_argument("checkpoints", checkpoints, "a vernal.Checkpoints", hint)


def _accepts(function: Any, arguments: int) -> bool:
    """Say whether this is a function, or another callable instance, of so many arguments."""
    if isinstance(function, type):
        return False
    try:
        with contextlib.suppress(ValueError):  # some built-in callables have no signature
            inspect.signature(function).bind(*range(arguments))
    except TypeError:
        return False
    return True


@dataclass
class Plan:
    """What a call of `fit` asks for beside model, data and callbacks: see `Trainer.fit`.

    Attributes:
        began: When the call began, in seconds of `time.perf_counter`.

    Raises:
        ArgumentError: If one of them cannot be used.
    """

    epochs: int
    steps_per_epoch: int | None
    batch_size: int | None
    shuffle: bool | Literal["shared"]
    validate_every: int
    checkpoints: Any
    progress: bool | Literal["auto", "bar", "lines"]
    began: float = field(default_factory=time.perf_counter)

    def __post_init__(self):
        self.epochs = whole_number("epochs", self.epochs, at_least=0)
        self.validate_every = whole_number("validate_every", self.validate_every, at_least=1)
        self.steps_per_epoch = checked_steps_per_epoch(self.steps_per_epoch)
        check_checkpoints(self.checkpoints)
        check_progress(self.progress)

    @property
    def seconds(self) -> float:
        """How long the call has taken so far."""
        return time.perf_counter() - self.began

    def settings(self, callbacks: list[Any]) -> dict[str, Any]:
        """Return what a resumed run must ask for again, by the names that users know.

        Args:
            callbacks: Those that save what they keep.
        """
        return {
            "batch_size": None if self.batch_size is None else int(self.batch_size),
            "shuffle": self.shuffle if self.shuffle == "shared" else bool(self.shuffle),
            "steps_per_epoch": self.steps_per_epoch,
            "callbacks": [type(each).__name__ for each in callbacks],
        }
