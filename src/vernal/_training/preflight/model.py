"""The model that a trainer is given, and what of it is trained."""

from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from vernal._optimizers import Optimizer
from vernal._training.objective import Objective
from vernal._training.state import TrainState
from vernal._training.update import Choices
from vernal.errors import ArgumentError, kind, wrong_argument


def model_of(model_or_state: Any) -> tuple[PyTree, PyTree]:
    """Return a model and its state: itself, or a `TrainState`'s.

    Raises:
        ArgumentError: If it is a class, a pair of a model and its state, or what has a state in it.
    """
    if isinstance(model_or_state, TrainState):
        return model_or_state.model, model_or_state.model_state

    is_tuple = isinstance(model_or_state, tuple) and model_or_state
    parts = model_or_state if is_tuple else (None,)
    if isinstance(model_or_state, type):
        hint = "Pass an instance of it."
    elif isinstance(parts[0], TrainState):
        hint = "Unpack it: state, history = trainer.fit(...), or state, info = trainer.step(...)."
    elif isinstance(parts[-1], eqx.nn.State):
        hint = "Try trainer.init(model, model_state=model_state)."
    elif isinstance(getattr(model_or_state, "state", None), TrainState):
        hint = f"Pass {type(model_or_state).__name__.lower()}.state."
    else:
        return model_or_state, None
    need = "an instance of an eqx.Module, or a TrainState,"
    raise wrong_argument("model", model_or_state, need, hint)


def check_state(state: Any) -> None:
    """Raise `ArgumentError` if this is not a `TrainState`, which a step needs."""
    if not isinstance(state, TrainState):
        hint = "Try trainer.step(trainer.init(model), batch)."
        raise wrong_argument("state", state, "a TrainState", hint)


def trained_leaves(model: PyTree, trainable: PyTree) -> tuple[bool, ...]:
    """Return which leaves of a model are trained: those that `trainable` picks of its float arrays.

    Args:
        model: Any PyTree.
        trainable: A function of a leaf, a bool, or a PyTree of these that is a prefix of `model`.

    Raises:
        ArgumentError: If `trainable` is none of these.
    """

    def picks(choice: Any, part: PyTree) -> list[bool]:
        if not callable(choice) and not isinstance(choice, bool | np.bool_):
            raise ValueError(f"{choice!r} is neither True, False nor a function of an array")
        picked = choice if callable(choice) else lambda leaf: choice
        return [eqx.is_inexact_array(leaf) and bool(picked(leaf)) for leaf in jax.tree.leaves(part)]

    try:
        return tuple(jax.tree.leaves(jax.tree.map(picks, trainable, model)))
    except ValueError as error:
        need = "a function of an array, or a PyTree of True and False as large as the model,"
        hint = "Make one from the model: jax.tree.map(lambda _: False, model), then eqx.tree_at."
        raise wrong_argument("trainable", trainable, need, hint) from error


def choices_for(
    optimizer: Optimizer, objective: Objective, trainable: PyTree, model: PyTree
) -> Choices:
    """Make out a trainer's choices for a model.

    Raises:
        ArgumentError: If the model has nothing to train.
    """
    trained = trained_leaves(model, trainable)
    if not any(trained):
        hint = "Pass an instance of an eqx.Module, and see what `trainable` picks of it."
        raise ArgumentError(f"model is {kind(model)}, without a float array to train.\n  {hint}")
    return Choices(optimizer, objective, trained)
