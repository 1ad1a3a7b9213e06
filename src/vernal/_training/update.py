"""Loss to gradients to new state: one update, pure."""

import inspect
from functools import lru_cache
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, PRNGKeyArray, PyTree

from vernal._data.arrays import PARTS
from vernal._training.compilation import compiles
from vernal._training.jit import Packed, jit_updates, pack
from vernal._training.objective import Measured, Objective, measure, strong
from vernal._training.state import TrainState, put_counts

# Numbers in a parameter of which a copy costs more than to wait.
_LARGE = 2**15


class Choices(NamedTuple):
    """What a `Trainer` holds, made out for one model."""

    optimizer: optax.GradientTransformation | optax.MultiSteps
    objective: Objective
    trained: tuple[bool, ...]  # for each of the model's leaves

    def split(self, model: PyTree) -> tuple[PyTree, PyTree]:
        """A model's trained parameters, `None` elsewhere, and the rest of it."""
        return eqx.partition(model, jax.tree.structure(model).unflatten(self.trained))


def trained_leaves(model: PyTree, trainable: PyTree) -> tuple[bool, ...]:
    """Which leaves of a model are trained: those that `trainable` picks, if they are float arrays.

    **Arguments:**

    - `trainable`: a predicate of a leaf, a bool, or a PyTree of these that is a prefix of `model`.

    **Raises:** `ValueError` if it is none of these.
    """

    def picks(choice, part) -> list[bool]:
        if not callable(choice) and not isinstance(choice, bool | np.bool_):
            raise ValueError(f"{choice!r} is neither True, False nor a function of an array")
        pick = choice if callable(choice) else lambda leaf: choice
        return [eqx.is_inexact_array(leaf) and bool(pick(leaf)) for leaf in jax.tree.leaves(part)]

    return tuple(jax.tree.leaves(jax.tree.map(picks, trainable, model)))


def update(
    choices: Choices, state: TrainState, batch: PyTree
) -> tuple[TrainState, tuple[dict[str, Array], Array | None, dict[str, PyTree]]]:
    """Make one update.

    **Arguments:**

    - `choices`: how.
    - `state`: what changes.
    - `batch`: one batch, as the loss takes it.

    **Returns:** the new state; and of what `measure` returned for the old one the scalars, among
    them the learning rate if the optimizer shows it, the weight, and the averages.
    """
    measured, _, opt_state, params = gradients_and_update(choices, state, batch)
    info = measured.info
    if (rate := learning_rate(opt_state)) is not None:
        info = {**info, "learning_rate": rate}
    new = TrainState(
        model=eqx.combine(params, choices.split(state.model)[1]),
        model_state=measured.model_state,
        opt_state=opt_state,
        step=state.step + 1,
        epoch=state.epoch,
        batch=state.batch + 1,
        key=state.key,
    )
    return new, (info, measured.weight, measured.averages)


def gradients_and_update(
    choices: Choices, state: TrainState, batch: PyTree
) -> tuple[Measured, PyTree, Any, PyTree]:
    """What `measure` returns, the gradients, and the optimizer's new state and parameters."""
    params, frozen = choices.split(state.model)
    key = jax.random.fold_in(state.key, state.step)

    def objective(params):
        model = eqx.combine(params, frozen)
        measured = measure(choices.objective, model, state.model_state, batch, key)
        return measured.info["loss"], measured

    grads, measured = jax.grad(objective, has_aux=True)(params)
    # For optimizers that look at the loss, or try several lengths of a step.
    known = {
        "value": measured.info["loss"],
        "grad": grads,
        "value_fn": lambda params: objective(params)[0],
    }
    extra = _accepted(choices.optimizer, known)
    updates, opt_state = choices.optimizer.update(grads, state.opt_state, params, **extra)
    opt_state = jax.tree.map(lambda leaf: strong(leaf, leaf), opt_state)
    return measured, grads, opt_state, optax.apply_updates(_after(opt_state, params), updates)


def _after(opt_state: Any, params: PyTree) -> PyTree:
    """The parameters, to be changed when the optimizer's new state is there.

    Most optimizers keep something of each gradient: then nothing needs the old parameters any more.
    XLA does not see that by itself, and on a CPU has a loop copy them in each turn.
    """
    if jax.default_backend() != "cpu":
        return params
    large, small = eqx.partition(params, lambda leaf: leaf.size >= _LARGE)
    large, _ = lax.optimization_barrier((large, pack(opt_state).arrays))
    return eqx.combine(large, small)


def _accepted(optimizer: Any, known: dict[str, Any]) -> dict[str, Any]:
    """Of what is known of an update, what an optimizer's `update` takes by name."""
    parameters = inspect.signature(optimizer.update).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return known
    return {name: value for name, value in known.items() if name in parameters}


def learning_rate(opt_state: Any) -> Any:
    """The learning rate that an optimizer's state shows, as with `optax.inject_hyperparams`.

    `None` if there is none, or several.
    """
    found = optax.tree_utils.tree_get_all_with_path(opt_state, "learning_rate")
    rates = [x for path, x in found if _is_shown(path) and jax.tree_util.all_leaves([x])]
    return rates[0] if len(rates) == 1 and np.ndim(rates[0]) == 0 else None


def _is_shown(path: tuple) -> bool:
    """Whether a learning rate is a field of a state, or a hyperparameter; and not a parameter."""
    field = isinstance(path[-1], optax.tree_utils.NamedTupleKey)
    return field or (len(path) > 1 and getattr(path[-2], "name", None) == "hyperparams")


@lru_cache(maxsize=256)
def learning_rate_at(structure: tuple) -> int | None:
    """The place of the learning rate among a packed state's arrays, if it is there."""
    places = list(range(len([leaf for leaf in structure[1] if leaf is None])))
    return learning_rate(Packed(places, structure).unpack().opt_state)


@jax.jit
def compiled_init(packed: Packed, key: PRNGKeyArray | None) -> Packed:
    """The state that training starts from."""
    choices, model, model_state = packed.unpack()
    params, _ = choices.split(model)
    key = jax.random.key(0) if key is None else key
    zero = np.zeros((), np.int32)
    opt_state = choices.optimizer.init(params)
    opt_state = jax.tree.map(lambda leaf: strong(leaf, leaf), opt_state)
    model_state = jax.tree.map(lambda leaf: strong(leaf, leaf), model_state)
    return pack(TrainState(model, model_state, opt_state, zero, zero, zero, key))


def new_state(
    choices: Choices, model: PyTree, model_state: PyTree, key: PRNGKeyArray | None
) -> Packed:
    """The state that training starts from, packed."""
    as_array = lambda leaf: jnp.asarray(leaf) if eqx.is_array_like(leaf) else leaf
    model_state = jax.tree.map(as_array, model_state)
    packed = compiled_init(pack((choices, model, model_state)), key)
    put_counts(packed.arrays, 0, 0, 0)
    return packed


@jit_updates
def compiled_step(choices: Packed, state: Packed, batch: PyTree) -> tuple[Packed, dict[str, Array]]:
    """One update by itself."""
    chosen, before = choices.unpack(), state.unpack()
    compiles("step", **parts(chosen, before, batch))
    new, (info, *_) = update(chosen, before, batch)
    return pack(new), info


def parts(choices: Choices, state: TrainState, batch: PyTree) -> dict[str, PyTree]:
    """What an update's program depends on, by the names that users know."""
    return {
        **named(batch),
        "model": state.model,
        "model_state": state.model_state,
        "optimizer": choices.optimizer,
        **choices.objective._asdict(),
        "trained": choices.trained,
        "opt_state": state.opt_state,
        "key": state.key,
    }


def named(batch: PyTree) -> dict[str, PyTree]:
    """A batch's parts, by the names that users know."""
    pair = isinstance(batch, tuple) and len(batch) in (2, 3)
    return dict(zip(PARTS, batch, strict=False)) if pair else {"data": batch}
