"""One pass over data without training, for many models at once."""

from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from vernal._members import Members, is_stacked
from vernal._moments import Moments, joined, moments
from vernal._training.evaluate import Predict, combined, each_batch, measured_batches
from vernal._training.objective import Measured, Objective
from vernal._training.preflight.data import CheckedData
from vernal._training.state import TrainState
from vernal._training.trainer import Trainer


def evaluate_members(
    objective: Objective, model: PyTree, model_state: PyTree, data: CheckedData, members: Members
) -> list[dict[str, Any]]:
    """Do the same for many models at once, whose arrays have them along the leading axis."""

    def of(i: int, measured: Measured, weights: np.ndarray) -> Moments:
        own = jax.tree.map(lambda leaf: leaf[:, i], measured)
        return moments(own, weights if weights.ndim == 1 else weights[:, i])

    totals: list[Any] = [None] * members.number
    for part in measured_batches(objective, model, model_state, data, members):
        own = [of(i, *part) for i in range(members.number)]
        totals = own if totals[0] is None else list(map(joined, totals, own))
    return [combined(objective, total) for total in totals]


def predict_members(
    model: PyTree,
    model_state: PyTree,
    data: CheckedData,
    compute_dtype: np.dtype | None,
    members: Members,
) -> PyTree:
    """Apply many models, in inference mode, to all examples; they come along the leading axis."""
    parts = []
    each = each_batch(Predict(model, model_state, compute_dtype, data.mesh, members), data)
    for made, filled, size in each:
        in_rows = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), made)
        rows = filled * size
        parts.append(
            jax.tree.map(lambda x, n=rows: x.reshape(len(x), -1, *x.shape[3:])[:, :n], in_rows)
        )
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), *parts)


def eval_models(trainer: Trainer, state: TrainState) -> PyTree:
    """Return the models that the states of many are evaluated with."""
    if trainer.eval_params is None:
        return state.model
    alone = replace(trainer, mesh=None)
    axes = jax.tree.map(lambda leaf: 0 if is_stacked(leaf) else None, state)
    return eqx.filter_vmap(alone.eval_model, in_axes=(axes,))(state)
