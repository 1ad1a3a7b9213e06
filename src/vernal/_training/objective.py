"""What a batch says of a model: the loss, metrics, predictions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from vernal.errors import ShapeError, kind
from vernal.losses import AbstractSupervised, forward
from vernal.metrics import AbstractMetric, Mean


class Objective(NamedTuple):
    """What is measured, and how."""

    loss: Callable
    metrics: dict[str, AbstractMetric]
    compute_dtype: np.dtype | None  # of the model's arithmetic; None is that of its parameters

    @property
    def recorded(self) -> "Objective":
        """The same in training, where not every metric is measured."""
        recorded = {name: metric for name, metric in self.metrics.items() if metric.recorded}
        return self._replace(metrics=recorded)


class Measured(NamedTuple):
    """What a batch gave."""

    info: dict[str, Array]  # the loss, as "loss", and metrics: scalars
    weight: Array | None  # the batch's in an average over batches; None is its number of examples
    averages: dict[str, PyTree[Array]]  # of each metric that is made from such
    model_state: PyTree


def measure(
    objective: Objective, model: PyTree, model_state: PyTree, batch: PyTree, key: PRNGKeyArray
) -> Measured:
    """Call a loss in the one way all losses are called, and measure the metrics beside it.

    **Raises:** `ShapeError` if the loss or a metric is not a scalar, or the model's state changes
    its shape.
    """
    loss, dtype = objective.loss, objective.compute_dtype
    model, weight, averages = _cast(model, dtype), None, {}
    # A copy: an `eqx.nn.State` serves once.
    state = jax.tree.map(lambda leaf: leaf, model_state)
    if isinstance(loss, AbstractSupervised):
        x, y, weights = loss.parts_of(batch)
        prediction, new_state = forward(model, _cast(x, dtype), key, state)
        prediction = _in_full(prediction, dtype)
        info: dict[str, Any] = {"loss": loss.average(prediction, y, weights)}
        weight = None if weights is None else jnp.sum(weights)
        for name, metric in objective.metrics.items():
            average = metric.of_batch(prediction, y, weights)
            if metric.recorded:
                still = jax.tree.map(jnp.zeros_like, average)
                info[name] = metric.value(average, still, 1 if weight is None else weight)
            if not isinstance(metric, Mean):
                averages[name] = average
    else:
        args = () if model_state is None else (state,)
        result = loss(model, _cast(batch, dtype), key, *args)
        info, new_state = _parts_of(result, model_state)
        info = _in_full(info, dtype)
    _check_scalars(info)
    info = jax.tree.map(jnp.asarray, info)
    if not jnp.issubdtype(info["loss"].dtype, jnp.floating):
        raise ShapeError(f"a loss needs to return a real number; it is {info['loss'].dtype}.")
    return Measured(info, weight, averages, _like(model_state, new_state))


def _parts_of(result: Any, model_state: PyTree) -> tuple[dict[str, Any], PyTree]:
    """What a loss of one's own returned: the loss and metrics, and the model's new state."""
    parts: tuple[Any, ...] = result if isinstance(result, tuple) else (result,)
    if model_state is None:
        needed, wrong = "a scalar, or (scalar, dict of metrics)", len(parts) > 2
    else:
        needed, wrong = "(scalar, dict of metrics, model_state)", len(parts) != 3
    metrics = parts[1] if len(parts) > 1 else {}
    if (
        not parts
        or wrong
        or not isinstance(metrics, dict)
        or not {"loss", "learning_rate"}.isdisjoint(metrics)
    ):
        given = ", ".join("array" if eqx.is_array(p) else type(p).__name__ for p in parts)
        raise ShapeError(
            f"a loss needs to return {needed}; it returns "
            f"{f'a tuple ({given})' if isinstance(result, tuple) else kind(result)}."
            '\n  No metric may be called "loss" or "learning_rate".'
        )
    loss, new_state = parts[0], parts[2] if len(parts) == 3 else None
    return {"loss": loss, **metrics}, new_state


def _check_scalars(info: dict[str, Any]) -> None:
    for name, scalar in info.items():
        if not eqx.is_array_like(scalar):
            raise ShapeError(
                f"a loss needs to return one number; {name} is a {type(scalar).__name__}."
            )
        if jnp.shape(scalar) != ():
            raise ShapeError(
                f"a loss needs to return one number; {name} has shape {jnp.shape(scalar)}."
                "\n  Average it, as with jnp.mean(...)."
            )


def _like(old: PyTree, new: PyTree) -> PyTree:
    """A model's new state, in the dtypes of the old one; `ShapeError` if shapes have changed."""
    if jax.tree.structure(old) != jax.tree.structure(new):
        raise ShapeError(
            f"the model_state that comes back is another PyTree: {jax.tree.structure(new)},"
            f"\n  and was {jax.tree.structure(old)}."
        )

    def checked(path, old, new):
        if eqx.is_array(old) and jnp.shape(old) != jnp.shape(new):
            raise ShapeError(
                f"model_state{jax.tree_util.keystr(path)} comes back with shape {jnp.shape(new)}, "
                f"and had {jnp.shape(old)}."
            )
        return strong(new, old)

    return jax.tree_util.tree_map_with_path(checked, old, new)


def strong(leaf: Any, like: Any) -> Any:
    """An array in the dtype of another, and to stay: JAX's weak types, of numbers, would not.

    What is no array is what it was.
    """
    if not eqx.is_array(like):
        return like
    is_key = jnp.issubdtype(like.dtype, jax.dtypes.prng_key)
    return leaf if is_key else jax.lax.convert_element_type(leaf, like.dtype)


def _cast(tree: PyTree, dtype: np.dtype | None) -> PyTree:
    if dtype is None:
        return tree
    cast = lambda leaf: leaf.astype(dtype) if eqx.is_inexact_array(leaf) else leaf
    return jax.tree.map(cast, tree)


def _in_full(tree: PyTree, dtype: np.dtype | None) -> PyTree:
    """Undo a cast to lower precision: what is measured is measured in single precision at least."""
    if dtype is None:
        return tree
    cast = lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
    return jax.tree.map(lambda leaf: cast(leaf) if eqx.is_inexact_array(leaf) else leaf, tree)


def outputs(
    model: PyTree,
    model_state: PyTree,
    x: PyTree,
    dtype: np.dtype | None,
    key: PRNGKeyArray | None = None,
) -> Array:
    """A model's predictions for a batch, as `measure` makes them."""
    prediction, _ = forward(_cast(model, dtype), _cast(x, dtype), key, model_state)
    return _in_full(prediction, dtype)
