"""Loss to gradients to new state: one update, pure."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PRNGKeyArray, PyTree

from vernal._arrays import PARTS
from vernal._errors import ShapeError
from vernal._jit import Packed, pack
from vernal._recompile import compiles
from vernal._state import TrainState
from vernal.losses import AbstractSupervised


class Choices(NamedTuple):
    """What a `Trainer` holds, made out for one model."""

    optimizer: optax.GradientTransformation
    loss: Callable
    trained: tuple[bool, ...]  # for each of the model's leaves

    def split(self, model: PyTree) -> tuple[PyTree, PyTree]:
        """A model's trained parameters, `None` elsewhere, and the rest of it."""
        return eqx.partition(model, jax.tree.structure(model).unflatten(self.trained))


def trained_leaves(model: PyTree, trainable: PyTree) -> tuple[bool, ...]:
    """Which leaves of a model are trained: those that `trainable` picks, if they are float arrays.

    **Arguments:**

    - `trainable`: a predicate of a leaf, a bool, or a PyTree of these that is a prefix of `model`.
    """

    def picks(choice, part) -> list[bool]:
        pick = choice if callable(choice) else lambda leaf: choice
        return [eqx.is_inexact_array(leaf) and bool(pick(leaf)) for leaf in jax.tree.leaves(part)]

    return tuple(jax.tree.leaves(jax.tree.map(picks, trainable, model)))


def measure(loss, model: PyTree, batch: PyTree, key: PRNGKeyArray):
    """Call a loss in the one way all losses are called.

    **Returns:** a dict of the loss, as "loss", and of its own metrics; and the weight that the
    batch has in an average over batches, or `None` if that is its number of examples.

    **Raises:** `ShapeError` if the loss or a metric is not a scalar.
    """
    value, metrics = _with_metrics(loss(model, batch, key))
    info = {"loss": value, **metrics}
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
    info = jax.tree.map(jnp.asarray, info)
    if not jnp.issubdtype(info["loss"].dtype, jnp.floating):
        raise ShapeError(f"a loss needs to return a real number; it is {info['loss'].dtype}.")
    return info, loss.weight_of(batch) if isinstance(loss, AbstractSupervised) else None


def _with_metrics(result) -> tuple[Array, dict[str, Array]]:
    if isinstance(result, tuple):
        if len(result) == 2 and isinstance(result[1], dict) and "loss" not in result[1]:
            return result
        parts = ", ".join("array" if eqx.is_array(p) else type(p).__name__ for p in result)
        raise ShapeError(
            "a loss needs to return a scalar, or (scalar, dict of metrics); "
            f"it returns a tuple ({parts})."
            '\n  No metric may be called "loss".'
        )
    return result, {}


def update(
    choices: Choices, state: TrainState, batch: PyTree
) -> tuple[TrainState, dict, Array | None]:
    """Make one update.

    **Arguments:**

    - `choices`: how.
    - `state`: what changes.
    - `batch`: one batch, as the loss takes it.

    **Returns:** the new state, and what `measure` returns for the old one.
    """
    params, frozen = choices.split(state.model)
    key = jax.random.fold_in(state.key, state.step)

    def objective(params):
        info, weight = measure(choices.loss, eqx.combine(params, frozen), batch, key)
        return info["loss"], (info, weight)

    grads, (info, weight) = jax.grad(objective, has_aux=True)(params)
    updates, opt_state = choices.optimizer.update(grads, state.opt_state, params)
    params = optax.apply_updates(params, updates)
    new = TrainState(
        model=eqx.combine(params, frozen),
        opt_state=opt_state,
        step=state.step + 1,
        epoch=state.epoch,
        batch=state.batch + 1,
        key=state.key,
    )
    return new, info, weight


@jax.jit
def compiled_init(choices_and_model: Packed, key: PRNGKeyArray | None) -> Packed:
    """The state that training starts from."""
    choices, model = choices_and_model.unpack()
    params, _ = choices.split(model)
    key = jax.random.key(0) if key is None else key
    zero = np.zeros((), np.int32)
    return pack(TrainState(model, choices.optimizer.init(params), zero, zero, zero, key))


@jax.jit
def compiled_step(choices: Packed, state: Packed, batch: PyTree) -> tuple[Packed, dict[str, Array]]:
    """One update by itself."""
    chosen, before = choices.unpack(), state.unpack()
    compiles("step", **parts(chosen, before, batch))
    new_state, info, _ = update(chosen, before, batch)
    return pack(new_state), info


def parts(choices: Choices, state: TrainState, batch: PyTree) -> dict[str, PyTree]:
    """What an update's program depends on, by the names that users know."""
    return {
        **named(batch),
        "model": state.model,
        "optimizer": choices.optimizer,
        "loss": choices.loss,
        "trained": choices.trained,
        "opt_state": state.opt_state,
        "key": state.key,
    }


def named(batch: PyTree) -> dict[str, PyTree]:
    """A batch's parts, by the names that users know."""
    pair = isinstance(batch, tuple) and len(batch) in (2, 3)
    return dict(zip(PARTS, batch, strict=False)) if pair else {"data": batch}
