"""What a loss returns is checked, while it is traced."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from vernal.errors import ShapeError, kind
from vernal.losses import Weighted


def parts_of_result(result: Any, *, stateful: bool) -> tuple[Any, dict[str, Any], PyTree]:
    """Return the value, the metrics and the model state that a custom loss returned."""
    parts: Any = result if isinstance(result, tuple) else (result,)
    needed, lengths = "a scalar, or (scalar, dict of metrics)", (1, 2)
    if stateful:
        needed, lengths = "(scalar, dict of metrics, model_state)", (3,)
    metrics = parts[1] if len(parts) > 1 else {}
    is_free = isinstance(metrics, dict) and {"loss", "learning_rate"}.isdisjoint(metrics)
    if len(parts) in lengths and is_free:
        return parts[0], metrics, parts[2] if stateful else None

    kinds = ["array" if eqx.is_array(part) else type(part).__name__ for part in parts]
    given = f"a tuple ({', '.join(kinds)})" if isinstance(result, tuple) else kind(result)
    hint = 'No metric may be called "loss" or "learning_rate".'
    raise ShapeError(f"a loss needs to return {needed}; it returns {given}.\n  {hint}")


def checked_scalar(name: str, value: Any) -> Array:
    """Return a loss or a metric as an array; `ShapeError` if it is not one real number."""
    hint = ""
    if not eqx.is_array_like(value):
        given = f"is a {type(value).__name__}"
    elif jnp.shape(value) != ():
        given = f"has shape {jnp.shape(value)}"
        hint = "\n  Average it, as with jnp.mean(...)."
    elif jnp.iscomplexobj(value):
        given = f"is {jnp.result_type(value)}"
        hint = "\n  Take its absolute value, or its real part: jnp.abs(...), jnp.real(...)."
    elif name == "loss" and not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        given = f"is {jnp.result_type(value)}"
    else:
        return jnp.asarray(value)
    raise ShapeError(f"a loss needs to return one number, a real number; {name} {given}.{hint}")


def parts_of_weighted(weighted: Weighted, *, has_metrics: bool) -> tuple[Array, Array]:
    """Return a loss, and its batch's weight in averages over batches."""
    if has_metrics:
        hint = 'Return the metrics from the loss: (Weighted(...), {"name": value}).'
        raise ShapeError(f"the loss returns losses.Weighted, beside metrics=....\n  {hint}")
    return weighted.value, checked_scalar("the weight", weighted.weight)


def with_dtypes_of(old: PyTree, new: PyTree) -> PyTree:
    """Return a model's new state in the dtypes of the old one.

    Raises:
        ShapeError: If the structure or a shape has changed.
    """
    was, now = jax.tree.structure(old), jax.tree.structure(new)
    if was != now:
        raise ShapeError(f"the model_state that comes back is another PyTree: {now}, not {was}.")

    def converted(path: tuple, old: Any, new: Any) -> Any:
        name = f"model_state{jax.tree_util.keystr(path)}"
        if not eqx.is_array(old):
            if new is not old and new != old:
                raise ShapeError(f"{name} is {kind(old)}, no array: it cannot change in training.")
            return old
        if old.shape != jnp.shape(new):
            given = f"comes back with shape {jnp.shape(new)}"
            raise ShapeError(f"{name} {given}, and had {old.shape}.")
        is_key = jnp.issubdtype(old.dtype, jax.dtypes.prng_key)
        return new if is_key else lax.convert_element_type(new, old.dtype)

    return jax.tree_util.tree_map_with_path(converted, old, new)
