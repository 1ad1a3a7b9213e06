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
from vernal.errors import ArgumentError, kind


def model_of(model_or_state: Any) -> tuple[PyTree, PyTree]:
    """Return a model and its state: itself, or a `TrainState`'s.

    Raises:
        ArgumentError: If it is a class, a pair of a model and its state, or what has a state in it.
    """
    if isinstance(model_or_state, TrainState):
        return model_or_state.model, model_or_state.model_state

    if isinstance(model_or_state, type):
        raise ArgumentError(
            f"model is {kind(model_or_state)}; an instance of an eqx.Module is needed, or a "
            "TrainState."
        )
    is_pair = isinstance(model_or_state, tuple) and model_or_state
    if is_pair and isinstance(model_or_state[0], TrainState):
        raise ArgumentError(
            "model is a tuple, with a TrainState: what fit and step return."
            "\n  Unpack it: state, history = trainer.fit(...), or state, info = trainer.step(...)."
        )
    if isinstance(getattr(model_or_state, "state", None), TrainState):
        name = type(model_or_state).__name__.lower()
        raise ArgumentError(
            f"model is {kind(model_or_state)}, which has a TrainState.\n  Pass {name}.state."
        )
    if is_pair and isinstance(model_or_state[-1], eqx.nn.State):
        raise ArgumentError(
            "model is a tuple, with an eqx.nn.State; a model is needed, or a TrainState."
            "\n  Try trainer.init(model, model_state=model_state)."
        )
    return model_or_state, None


def check_state(state: Any) -> None:
    """Raise `ArgumentError` if this is not a `TrainState`, which a step needs."""
    if not isinstance(state, TrainState):
        raise ArgumentError(
            f"step needs a TrainState; it is given {kind(state)}."
            "\n  Try trainer.step(trainer.init(model), batch)."
        )


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

        def picked(leaf: Any) -> bool:
            return bool(choice(leaf) if callable(choice) else choice)

        return [eqx.is_inexact_array(leaf) and picked(leaf) for leaf in jax.tree.leaves(part)]

    try:
        return tuple(jax.tree.leaves(jax.tree.map(picks, trainable, model)))
    except ValueError as error:
        raise ArgumentError(
            f"trainable is {kind(trainable)}; a function of an array is needed, or a PyTree of "
            f"True and False with the structure of the model, {kind(model)}."
            "\n  Make one from the model: jax.tree.map(lambda _: False, model), then eqx.tree_at."
        ) from error


def choices_for(
    optimizer: Optimizer, objective: Objective, trainable: PyTree, model: PyTree
) -> Choices:
    """Make out a trainer's choices for a model.

    Raises:
        ArgumentError: If the model has nothing to train.
    """
    trained = trained_leaves(model, trainable)
    if not any(trained):
        raise ArgumentError(
            f"model is {kind(model)}, without a float array to train."
            "\n  Pass an instance of an eqx.Module, and see what `trainable` picks of it."
        )
    return Choices(optimizer, objective, trained)
