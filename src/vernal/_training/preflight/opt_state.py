"""The optimizer's state that a run goes on from is checked against the optimizer."""

import equinox as eqx

from vernal._data.arrays import signature
from vernal._optimizers import initial_opt_state
from vernal._training.state import TrainState, with_numbers_as_arrays
from vernal._training.update import Choices
from vernal.errors import ArgumentError

# Never compiled: JAX keeps the trace, and so has the shapes at once when they are asked for again.
_initial_opt_state = eqx.filter_jit(initial_opt_state)


def with_checked_opt_state(choices: Choices, state: TrainState) -> TrainState:
    """Return the state, with arrays for numbers that were put into the optimizer's state by hand.

    Raises:
        ArgumentError: If the optimizer's state was made by another optimizer, or for other
            parameters.
    """
    state = with_numbers_as_arrays(state)
    arrays = eqx.filter(state.opt_state, eqx.is_array_like)
    params = eqx.filter(state.model, choices.trained_mask(state.model))
    made = eqx.filter_eval_shape(_initial_opt_state, choices.optimizer, params)
    made = eqx.filter(made, lambda leaf: hasattr(leaf, "dtype"))
    if signature(made) != signature(arrays):
        stateful = "" if state.model_state is None else ", model_state=state.model_state"
        raise ArgumentError(
            "state.opt_state was made by another optimizer, or for other trainable parameters."
            f"\n  Begin anew with the model: trainer.init(state.model{stateful})."
        )
    return state
