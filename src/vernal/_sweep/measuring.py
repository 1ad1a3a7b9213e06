"""One pass over data without training, for many models at once."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from vernal._members import Members
from vernal._training.evaluate import Predict, averaged, each_batch, measured_batches
from vernal._training.objective import Objective
from vernal._training.preflight.data import CheckedData


def evaluate_members(
    objective: Objective, model: PyTree, model_state: PyTree, data: CheckedData, members: Members
) -> list[dict[str, Any]]:
    """Do the same for many models at once, whose arrays have them along the leading axis."""

    def of(i: int) -> dict[str, Any]:
        own = jax.tree.map(lambda leaf: leaf[:, i], measured)
        return averaged(objective, own, weights if weights.ndim == 1 else weights[:, i])

    measured, weights = measured_batches(objective, model, model_state, data, members)
    return [of(i) for i in range(members.number)]


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
