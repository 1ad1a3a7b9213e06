"""What a run needs, checked and made."""

import functools
import sys
from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from vernal._data.array_source import is_loader
from vernal._training.checks import checked_source, model_of
from vernal._training.chunks import Loop
from vernal._training.evaluate import evaluate
from vernal._training.jit import pack, shapes_of, signature
from vernal._training.objective import Objective
from vernal._training.state import TrainState, counts, with_data_state
from vernal._training.update import Choices, new_state, trained_leaves
from vernal.errors import ArgumentError, kind


def choices_for(
    optimizer: optax.GradientTransformation | optax.MultiSteps,
    objective: Objective,
    trainable: PyTree,
    model: PyTree,
) -> Choices:
    """A trainer's choices, made out for a model; `ArgumentError` if it has nothing to train."""
    try:
        trained = trained_leaves(model, trainable)
    except ValueError as error:
        raise ArgumentError(
            f"trainable is {kind(trainable)}; a function of an array is needed, or a PyTree of "
            f"True and False with the structure of the model, {kind(model)}."
            "\n  Make one from the model: jax.tree.map(lambda _: False, model), then eqx.tree_at."
        ) from error
    if not any(trained):
        raise ArgumentError(
            f"model is {kind(model)}, without a float array to train."
            "\n  Pass an instance of an eqx.Module, and see what `trainable` picks of it."
        )
    return Choices(optimizer, objective, trained)


def with_checked_opt_state(choices: Choices, state: TrainState) -> TrainState:
    """The state, with arrays for numbers that were put into the optimizer's state by hand.

    **Raises:** `ArgumentError` if it was made with another optimizer, or for other parameters.
    """
    arrays, rest = eqx.partition(state.opt_state, eqx.is_array_like)
    if not all(map(eqx.is_array, jax.tree.leaves(arrays))):
        arrays = jax.tree.map(lambda leaf: np.asarray(leaf, jnp.result_type(leaf)), arrays)
        state = replace(state, opt_state=eqx.combine(arrays, rest))
    params, _ = choices.split(state.model)
    if _of_opt_state(choices.optimizer, signature(params)) != signature(arrays):
        again = "state.model"
        if state.model_state is not None:
            again += ", model_state=state.model_state"
        raise ArgumentError(
            "state.opt_state was made by another optimizer, or for other trainable parameters."
            f"\n  Begin anew with the model: trainer.init({again})."
        )
    return state


@functools.lru_cache(maxsize=256)
def _of_opt_state(optimizer: optax.GradientTransformation, params: Hashable) -> Hashable:
    return signature(jax.eval_shape(optimizer.init, shapes_of(params)))


def start(
    choices: Choices,
    model_or_state: PyTree | TrainState,
    data: PyTree | Iterable,
    batch_size: int | None,
    shuffle: bool,
    validation_data: PyTree | Iterable | None,
    *,
    rewinds: bool,
    epochs: int | None = None,
    **saving,
) -> tuple[Loop, Callable[[], dict[str, float]] | None]:
    """Check everything, and make a run's loop, and what validates its model, if that is wanted.

    `epochs` is how many the run has, if that is known.
    """
    learned = model_of(model_or_state)
    measured = choices.objective, *learned
    source, shapes = checked_source(*measured, data, batch_size, endless=True, shuffle=shuffle)
    held_out = None
    if validation_data is not None:
        size = None if is_loader(validation_data) else batch_size
        held_out, _ = checked_source(*measured, validation_data, size, name="validation_data")
    mark = key = None
    if isinstance(model_or_state, TrainState):
        mark, key = model_or_state.data_state, model_or_state.key
        state = with_data_state(with_checked_opt_state(choices, model_or_state), None)
        state = pack(state)
    else:
        state = new_state(choices, *learned, None)
    until = sys.maxsize if epochs is None else counts(state.arrays)[1] + epochs
    source.begin(key, mark, until)
    loop = Loop(choices, state, source, shapes, rewinds, **saving)
    if held_out is None:
        return loop, None
    return loop, lambda: evaluate(choices.objective, *loop.models(), held_out)
