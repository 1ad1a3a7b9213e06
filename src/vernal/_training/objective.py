"""Calling a loss, metrics and a model in the one way they are called."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, PRNGKeyArray, PyTree

from vernal.errors import ShapeError, VernalError, call_error, kind
from vernal.losses import AbstractSupervised, Weighted, forward
from vernal.metrics import AbstractMetric, Mean

# Names of what is recorded beside the metrics.
RESERVED_NAMES = frozenset({"loss", "learning_rate"})


class Objective(NamedTuple):
    """What is measured, and how.

    Attributes:
        loss: Called as `loss(model, batch, key)`, or with a model state as the fourth argument.
        metrics: Metrics by name.
        compute_dtype: The dtype of the model's arithmetic; `None` is that of its parameters.
    """

    loss: Callable
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
    if isinstance(loss, AbstractSupervised) and not loss.has_own_call:
        x, y, weights = loss.parts_of(batch)
        prediction, new_state = forward(model, cast(x, dtype), key, model_state)
        prediction = _in_full_precision(prediction, dtype)
        info = {"loss": loss.average(prediction, y, weights)}
        measured = _with_metrics(objective, info, prediction, y, loss.weights_of(y, weights))
    else:
        measured, new_state = _measure_custom(objective, model, model_state, batch, key)

    info = {name: _checked_scalar(name, value) for name, value in measured.info.items()}
    if not jnp.issubdtype(info["loss"].dtype, jnp.floating):
        raise ShapeError(f"a loss needs to return a real number; it is {info['loss'].dtype}.")
    new_state = _with_dtypes_of(model_state, new_state)
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
        try:
            average = metric.of_batch(prediction, y, weights)
        except VernalError:
            raise
        except Exception as error:
            raise call_error(f"metrics[{name!r}]", "", error) from error
        if metric.recorded:
            no_spread = jax.tree.map(jnp.zeros_like, average)
            info[name] = metric.value(average, no_spread, 1 if weight is None else weight)
        if not isinstance(metric, Mean):
            averages[name] = average

    return Measured(info, weight, averages, None)


def _measure_custom(
    objective: Objective, model: PyTree, model_state: PyTree, batch: PyTree, key: PRNGKeyArray
) -> tuple[Measured, PyTree]:
    """Measure a loss that calls the model itself; return the model's new state, too."""
    loss: Any = objective.loss
    dtype = objective.compute_dtype
    stateful = model_state is not None
    # A copy: an `eqx.nn.State` serves once.
    with_state = (jax.tree.map(lambda leaf: leaf, model_state),) if stateful else ()
    result = loss(model, cast(batch, dtype), key, *with_state)
    value, metrics, new_state = _parts_of_result(result, stateful=stateful)
    if isinstance(value, Weighted):
        if objective.metrics:
            raise ShapeError(
                f"{kind(loss)} returns losses.Weighted, beside metrics=..., which have weights of "
                'their own.\n  Return the metrics from the loss: (Weighted(...), {"name": value}).'
            )
        value, weight = value.value, _checked_scalar("the weight", value.weight)
    else:
        weight = _weight_of(loss, batch)

    info = _in_full_precision({"loss": value, **metrics}, dtype)
    measured = Measured(info, weight, {}, None)
    if objective.metrics:  # a built-in loss with a call of its own
        x, y, weights = loss.parts_of(batch)
        prediction, _ = forward(model, cast(x, dtype), key, model_state)
        prediction = _in_full_precision(prediction, dtype)
        measured = _with_metrics(objective, info, prediction, y, loss.weights_of(y, weights))
    return measured, new_state


def _weight_of(loss: Any, batch: PyTree) -> Array | None:
    """Return a batch's weight in averages over batches, if a built-in loss has given it one."""
    is_usual = isinstance(batch, tuple | list) and len(batch) in (2, 3)
    if not isinstance(loss, AbstractSupervised) or not is_usual:
        return None
    weights: Any = loss.weights_of(batch[1], batch[2] if len(batch) == 3 else None)
    return jnp.sum(weights) if eqx.is_array(weights) else None


def _parts_of_result(result: Any, *, stateful: bool) -> tuple[Any, dict[str, Any], PyTree]:
    """Return the value, the metrics and the model state that a custom loss returned."""
    parts: Any = result if isinstance(result, tuple) else (result,)
    if stateful:
        needed = "(scalar, dict of metrics, model_state)"
        fits = len(parts) == 3
    else:
        needed = "a scalar, or (scalar, dict of metrics)"
        fits = len(parts) in (1, 2)
    metrics = parts[1] if len(parts) > 1 else {}
    if fits and isinstance(metrics, dict) and RESERVED_NAMES.isdisjoint(metrics):
        return parts[0], metrics, parts[2] if stateful else None

    given = kind(result)
    if isinstance(result, tuple):
        kinds = ["array" if eqx.is_array(part) else type(part).__name__ for part in parts]
        given = f"a tuple ({', '.join(kinds)})"
    raise ShapeError(
        f"a loss needs to return {needed}; it returns {given}."
        '\n  No metric may be called "loss" or "learning_rate".'
    )


def _checked_scalar(name: str, value: Any) -> Array:
    if not eqx.is_array_like(value):
        raise ShapeError(f"a loss needs to return one number; {name} is a {type(value).__name__}.")
    if jnp.shape(value) != ():
        raise ShapeError(
            f"a loss needs to return one number; {name} has shape {jnp.shape(value)}."
            "\n  Average it, as with jnp.mean(...)."
        )
    if jnp.iscomplexobj(value):
        raise ShapeError(
            f"a loss and its metrics need to be real numbers; {name} is {value.dtype}."
            "\n  Take its absolute value, or its real part: jnp.abs(...), jnp.real(...)."
        )
    return jnp.asarray(value)


def _with_dtypes_of(old: PyTree, new: PyTree) -> PyTree:
    """Return a model's new state in the dtypes of the old one.

    Raises:
        ShapeError: If the structure or a shape has changed.
    """
    if jax.tree.structure(old) != jax.tree.structure(new):
        raise ShapeError(
            f"the model_state that comes back is another PyTree: {jax.tree.structure(new)},"
            f"\n  and was {jax.tree.structure(old)}."
        )

    def converted(path: tuple, old: Any, new: Any) -> Any:
        if not eqx.is_array(old):
            if new is not old and new != old:
                raise ShapeError(
                    f"model_state{jax.tree_util.keystr(path)} is {kind(old)}, no array: it cannot "
                    f"change in training, and comes back as {kind(new)}."
                )
            return old
        if jnp.shape(old) != jnp.shape(new):
            raise ShapeError(
                f"model_state{jax.tree_util.keystr(path)} comes back with shape {jnp.shape(new)}, "
                f"and had {jnp.shape(old)}."
            )
        is_key = jnp.issubdtype(old.dtype, jax.dtypes.prng_key)
        return new if is_key else lax.convert_element_type(new, old.dtype)

    return jax.tree_util.tree_map_with_path(converted, old, new)


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


def outputs(model: PyTree, model_state: PyTree, x: PyTree, dtype: np.dtype | None) -> PyTree:
    """Return a model's predictions for a batch, as `measure` makes them."""
    model = cast(model, dtype)
    prediction, _ = forward(model, cast(x, dtype), None, model_state)
    return _in_full_precision(prediction, dtype)
