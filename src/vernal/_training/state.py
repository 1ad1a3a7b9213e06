"""Everything that training changes."""

from typing import Any, Generic, TypeVar

import equinox as eqx
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from vernal.errors import ArgumentError, kind

Model = TypeVar("Model")


class TrainState(eqx.Module, Generic[Model]):
    """Everything that training changes; pass it back in to go on where it stopped.

    Attributes:
        model: The model as trained so far.
        model_state: What the model keeps beside its parameters, such as an `eqx.nn.State`; or
            `None`.
        opt_state: The optimizer's state, as Optax keeps it.
        step: Number of steps made: a scalar array, JAX's or NumPy's, as the next four.
        epoch: Number of epochs completed.
        epoch_step: Number of steps made in the epoch under way.
        data_pass: Number of passes over the data completed: the same as `epoch`, unless
            `steps_per_epoch` makes an epoch longer or shorter.
        batch: Number of steps made in the pass under way.
        key: Never changes. A step uses `fold_in(key, step)`, and the order of the examples in a
            pass is drawn from `key` and `data_pass`: so a resumed run is the same run.
        data_state: What a data loader with a state of its own needs to go on from this place; or
            `None`.
    """

    model: Model
    model_state: PyTree
    opt_state: Any
    step: Int[Array | np.ndarray, ""]
    epoch: Int[Array | np.ndarray, ""]
    epoch_step: Int[Array | np.ndarray, ""]
    data_pass: Int[Array | np.ndarray, ""]
    batch: Int[Array | np.ndarray, ""]
    key: PRNGKeyArray
    data_state: PyTree = None


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
