"""Calling a loss, metrics and a model in the one way they are called."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from vernal import _results
from vernal.errors import calling
from vernal.losses import AbstractSupervised, Weighted, forward
from vernal.metrics import AbstractMetric, Mean


class Objective(NamedTuple):
    """What is measured, and how.

    Attributes:
        loss: Called as `loss(model, batch, key)`, or with a model state as the fourth argument.
        metrics: Metrics by name.
        compute_dtype: The dtype of the model's arithmetic; `None` is that of its parameters.
    """

    loss: Any
    metrics: dict[str, AbstractMetric]
    compute_dtype: np.dtype | None

    @property
    def in_training(self) -> "Objective":
        """The same without the metrics that only `evaluate` measures."""
        recorded = {name: metric for name, metric in self.metrics.items() if metric.recorded}
        return self._replace(metrics=recorded)


class Measured(NamedTuple):
    """What was measured of a batch.

    Attributes:
        info: The loss, as "loss", and metrics: scalars by name.
        weight: The batch's weight in an average over batches; `None` is its number of examples.
        averages: Of each metric that is made from averages, these.
        model_state: The model's state after the batch.
    """

    info: dict[str, Any]
    weight: Any
    averages: dict[str, PyTree]
    model_state: PyTree


def measure(
    objective: Objective, model: PyTree, model_state: PyTree, batch: PyTree, key: PRNGKeyArray
) -> Measured:
    """Call a loss on a batch, and measure the metrics beside it.

    Raises:
        ShapeError: If the loss or a metric is not a scalar, or the model's state changes its shape.
    """
    loss, dtype = objective.loss, objective.compute_dtype
    model = cast(model, dtype)
    # A subclass's own `__call__` is called as it is written.
    if type(loss).__call__ is AbstractSupervised.__call__:
        x, y, weights = loss.parts_of(batch)
        prediction, new_state = forward(model, cast(x, dtype), key, model_state)
        prediction = _in_full_precision(prediction, dtype)
        info = {"loss": loss.average(prediction, y, weights)}
        measured = _with_metrics(objective, info, prediction, y, loss.weights_of(y, weights))
    else:
        measured, new_state = _measure_custom(objective, model, model_state, batch, key)

    info = {name: _results.checked_scalar(name, value) for name, value in measured.info.items()}
    new_state = _results.with_dtypes_of(model_state, new_state)
    return measured._replace(info=info, model_state=new_state)


def _with_metrics(
    objective: Objective,
    info: dict[str, Any],
    prediction: PyTree,
    y: PyTree,
    weights: Array | None,
) -> Measured:
    """Measure metrics of the predictions, beside what is known."""
    weight = None if weights is None else jnp.sum(weights)
    averages = {}
    for name, metric in objective.metrics.items():
        with calling(f"metrics[{name!r}]"):
            average = metric.of_batch(prediction, y, weights)
            if metric.recorded:
                no_spread = jax.tree.map(jnp.zeros_like, average)
                info[name] = metric.value(average, no_spread, 1 if weight is None else weight)
        if type(metric).value is not Mean.value:
            averages[name] = average

    return Measured(info, weight, averages, None)


def _measure_custom(
    objective: Objective, model: PyTree, model_state: PyTree, batch: PyTree, key: PRNGKeyArray
) -> tuple[Measured, PyTree]:
    """Measure a loss that calls the model itself; return the model's new state, too."""
    loss, dtype = objective.loss, objective.compute_dtype
    stateful = model_state is not None
    # A copy: an `eqx.nn.State` serves once.
    with_state = (jax.tree.map(lambda leaf: leaf, model_state),) if stateful else ()
    # The targets and weights of a built-in loss stay as they are, whatever calls it.
    is_usual = _is_supervised(loss, batch)
    in_dtype = (cast(batch[0], dtype), *batch[1:]) if is_usual else cast(batch, dtype)
    result = loss(model, in_dtype, key, *with_state)
    value, metrics, new_state = _results.parts_of_result(result, stateful=stateful)
    weight = _weight_of(loss, batch)
    if isinstance(value, Weighted):
        value, weight = _results.parts_of_weighted(value, has_metrics=bool(objective.metrics))

    info = _in_full_precision({"loss": value, **metrics}, dtype)
    measured = Measured(info, weight, {}, None)
    if objective.metrics:  # a built-in loss with a call of its own
        x, y, weights = loss.parts_of(batch)
        prediction, _ = predicted(model, model_state, x, key, dtype)
        measured = _with_metrics(objective, info, prediction, y, loss.weights_of(y, weights))
    return measured, new_state


def _weight_of(loss: Any, batch: PyTree) -> Array | None:
    """Return a batch's weight in averages over batches, if a built-in loss has given it one."""
    if not _is_supervised(loss, batch):
        return None
    weights: Any = loss.weights_of(batch[1], batch[2] if len(batch) == 3 else None)
    return jnp.sum(weights) if eqx.is_array(weights) else None


def _is_supervised(loss: Any, batch: PyTree) -> bool:
    """Say whether a built-in loss is given `(x, y)` or `(x, y, sample_weight)`."""
    is_usual = isinstance(batch, tuple | list) and len(batch) in (2, 3)
    return isinstance(loss, AbstractSupervised) and is_usual


def cast(tree: PyTree, dtype: np.dtype | None) -> PyTree:
    """Return a PyTree with its float arrays in another dtype; as it is for `None`.

    Complex numbers stay: there are none of lower precision.
    """
    if dtype is None:
        return tree
    return _converted(tree, jnp.floating, lambda _: dtype)


def _in_full_precision(tree: PyTree, dtype: np.dtype | None) -> PyTree:
    """Undo a cast to lower precision: what is measured has single precision at least."""
    if dtype is None:
        return tree
    return _converted(tree, jnp.inexact, lambda low: jnp.promote_types(low, jnp.float32))


def _converted(tree: PyTree, kind: type, new_dtype: Callable) -> PyTree:
    """Return a PyTree with its arrays of a kind of dtypes converted."""

    def converted(leaf: Any) -> Any:
        is_of_kind = eqx.is_array(leaf) and jnp.issubdtype(leaf.dtype, kind)
        return leaf.astype(new_dtype(leaf.dtype)) if is_of_kind else leaf

    return jax.tree.map(converted, tree)


def predicted(
    model: PyTree, model_state: PyTree, x: PyTree, key: PRNGKeyArray | None, dtype: np.dtype | None
) -> tuple[PyTree, PyTree]:
    """Apply a model, already cast to a dtype, to a batch; return its new state, too."""
    prediction, new_state = forward(model, cast(x, dtype), key, model_state)
    return _in_full_precision(prediction, dtype), new_state
