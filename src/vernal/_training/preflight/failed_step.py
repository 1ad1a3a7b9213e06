"""Why `trainer.step` failed: asked only then, because it takes as long as a small step."""

import jax
from jaxtyping import PyTree

from vernal import _arguments
from vernal._training.preflight.opt_state import with_checked_opt_state
from vernal._training.preflight.trace import Preflight
from vernal._training.state import TrainState
from vernal._training.update import Choices


def explain_failed_step(
    error: Exception,
    preflight: Preflight,
    choices: Choices,
    state: TrainState,
    batch: PyTree,
    *,
    given: PyTree,
) -> None:
    """Raise what explains the failure of a step, if something does.

    Args:
        error: What was raised while the step was traced, or ran.
        preflight: The model and the loss.
        choices: The trainer's choices.
        state: The state that the step was given.
        batch: The batch, as arrays.
        given: The batch as the user passed it.

    Raises:
        VernalError: `ArgumentError` for the loss or the optimizer's state; `ShapeError`, or
            another of the trace's errors; `CallError` for a step that failed while it ran.
    """
    _arguments.check_stateful(preflight.loss, state.model, state.model_state)
    preflight.check(batch, given=given)
    with_checked_opt_state(choices, state)
    # A call that JAX's C++ makes raises a ValueError for what a callback raised.
    is_callback = isinstance(error, ValueError) and "CpuCallback error" in str(error)
    if is_callback or isinstance(error, jax.errors.JaxRuntimeError):
        from vernal._explain.bad_steps import failed_step  # only where something failed

        rest = "The state that was passed is as it was."
        raise failed_step(error, step=int(state.step), rest=rest) from error
