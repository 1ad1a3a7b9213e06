"""Loss to gradients to new state: one step of training, pure."""

from dataclasses import replace
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, PyTree

from vernal import _sharding
from vernal._members import Members
from vernal._optimizers import (
    Optimizer,
    extra_arguments,
    initial_opt_state,
    learning_rate,
    strongly_typed,
    with_ascending_gradients,
)
from vernal._training.objective import Measured, Objective, measure
from vernal._training.state import TrainState


class Choices(NamedTuple):
    """What a `Trainer` holds, made out for one model.

    Attributes:
        optimizer: The optimizer.
        objective: What is measured, and how.
        trained: For each of the model's leaves, whether it is trained.
        mesh: The devices that share each batch; `None` is one alone.
        shardings: How each array that steps change is split over devices; `None` lets XLA choose.
        members: How many models are trained at once, and how; `None` is one alone.
    """

    optimizer: Optimizer
    objective: Objective
    trained: tuple[bool, ...]
    mesh: Mesh | None = None
    shardings: tuple[NamedSharding, ...] | None = None
    members: Members | None = None

    def trained_mask(self, model: PyTree) -> PyTree[bool]:
        """Return which leaves of a model are trained, in the model's structure."""
        return jax.tree.structure(model).unflatten(self.trained)


def update(
    choices: Choices, state: TrainState, batch: PyTree
) -> tuple[TrainState, Measured, PyTree]:
    """Make one step of training.

    Args:
        choices: The optimizer, the objective, and what is trained.
        state: The state before the step.
        batch: One batch, as the loss takes it.

    Returns:
        The state after the step; what was measured of the model before the step, with the learning
        rate in its `info` if the optimizer's state shows one; and the gradients.
    """
    batch = _sharding.split_batch(choices.mesh, batch)
    params, frozen = eqx.partition(state.model, choices.trained_mask(state.model))
    key = jax.random.fold_in(state.key, state.step)

    def objective(params: PyTree) -> tuple[Array, Measured]:
        model = eqx.combine(with_ascending_gradients(params), frozen)
        measured = measure(choices.objective, model, state.model_state, batch, key)
        return measured.info["loss"], measured

    (loss, measured), grads = eqx.filter_value_and_grad(objective, has_aux=True)(params)
    extra = extra_arguments(choices.optimizer, loss, grads, lambda params: objective(params)[0])
    updates, opt_state = choices.optimizer.update(grads, state.opt_state, params, **extra)
    params = optax.apply_updates(params, updates)

    opt_state = jax.tree.map(strongly_typed, opt_state)
    new_state = replace(
        state,
        model=eqx.combine(params, frozen),
        model_state=measured.model_state,
        opt_state=opt_state,
        step=state.step + 1,
        epoch_step=state.epoch_step + 1,
        batch=state.batch + 1,
    )
    info = measured.info
    if (rate := learning_rate(opt_state)) is not None:
        info = {**info, "learning_rate": rate}
    return new_state, measured._replace(info=info), grads


@eqx.filter_jit
def new_arrays(
    choices: Choices, model: PyTree, model_state: PyTree, key: Array | None
) -> tuple[PyTree, PyTree, PyTree, Array]:
    """Make new arrays of what training starts from: model, its state, the optimizer's, the key."""
    params = eqx.filter(model, choices.trained_mask(model))
    opt_state = initial_opt_state(choices.optimizer, params)
    key = jax.random.key(0) if key is None else key

    def as_array(leaf: Any) -> Any:
        return strongly_typed(jnp.asarray(leaf)) if eqx.is_array_like(leaf) else leaf

    return model, jax.tree.map(as_array, model_state), opt_state, key


def changing_part(choices: Choices, state: TrainState) -> tuple[TrainState, TrainState]:
    """Split a state into the arrays that steps change, and all the rest of it.

    The counts and the key are part of the rest. `equinox.combine` undoes the split.
    """
    mask = replace(
        jax.tree.map(lambda leaf: False, state),
        model=choices.trained_mask(state.model),
        model_state=eqx.is_array,
        opt_state=eqx.is_array,
    )
    return eqx.partition(state, mask)


def on_mesh(
    choices: Choices, state: TrainState, batch: PyTree = None
) -> tuple[Choices, TrainState, PyTree]:
    """Put a state and a batch on the mesh, and note how the arrays that steps change are split."""
    if choices.mesh is None:
        return choices, state, batch
    # A number that was put there by hand, say.
    opt_state = jax.tree.map(
        lambda leaf: jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf, state.opt_state
    )
    state = _sharding.placed(choices.mesh, replace(state, opt_state=opt_state))
    shardings = _sharding.shardings_of(changing_part(choices, state)[0])
    batch = _sharding.split_over_devices(choices.mesh, batch)
    return choices._replace(shardings=shardings), state, batch
