"""What was wrong with a step that ended a run: a number that is not finite, or a failure."""

import contextlib
import logging
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from vernal._data.arrays import as_arrays
from vernal.errors import CallError, DataError, NonFiniteError, first_line

_HINT = (
    "\n  Try a smaller learning rate, or optax.clip_by_global_norm(1.0) before the optimizer."
    '\n  Trainer(..., on_nonfinite="ignore") trains on regardless.'
)
# The last line of a traceback, in the text of an error that JAX raises for a callback's.
_RAISED = re.compile(r"^(?:[\w.]*\.)?_?(\w*(?:Error|Exception)): (.+)$", re.MULTILINE)


def nonfinite_step(
    state: Any, batch: PyTree, found: tuple[float, float, PyTree], last_norm: float | None
) -> NonFiniteError:
    """Make the error for a step that is not to be made.

    Args:
        state: The state before the step.
        batch: The step's batch.
        found: The loss, the norm of the gradients, and whether each array is finite, by what the
            arrays are.
        last_norm: The norm of the gradients of the step before, if there was one.
    """
    loss, norm, finite = found
    norm = float(norm) if np.isfinite(norm) else last_norm
    problems = [] if np.isfinite(loss) else [f"the loss is {loss}"]
    path = None
    for what, tree in finite.items():
        flat, _ = jax.tree_util.tree_flatten_with_path(tree)
        bad = [jax.tree_util.keystr(keys) for keys, is_finite in flat if not is_finite]
        if bad and path is None:
            part = what.partition("step ")[2]  # "opt_state", "model_state", or "" for the model
            path = (part or type(state.model).__name__) + bad[0]
            problems.append(f"{what.removesuffix(part)}{path} is not finite")

    step, epoch = int(state.step), int(state.epoch)
    last = "" if norm is None else f" The norm of the last finite gradients is {norm:.3g}."
    message = (
        f"in step {step}, of epoch {epoch}, {', and '.join(problems) or 'a number is not finite'}."
        f"{_not_finite_in(batch)}{last}\n  Vernal did not make this step: the error's `state` is "
        f"the one before it, its `history` the record up to there.{_HINT}"
    )
    return NonFiniteError(message, update=step, epoch=epoch, path=path, grad_norm=norm, state=state)


def _not_finite_in(batch: PyTree) -> str:
    """Say which values of a batch are not finite, if some are."""
    try:
        as_arrays(batch, finite=True, aligned=False)
    except DataError as error:
        return f" Of its batch, {error.args[0].splitlines()[0]}"
    return ""


def nonfinite_chunk(step: int, epoch: int, loss: float) -> NonFiniteError:
    """Make the error for a chunk that cannot be made again: no copy of the state was kept."""
    found = "the state is not finite" if np.isfinite(loss) else f"the loss is {loss}"
    message = (
        f"in step {step}, of epoch {epoch}, {found}.\n  The state is too large to be copied while "
        "it trains, so the error has no `state`: the last checkpoint is what there is. Its "
        f"`history` is the record up to the end of the chunk.{_HINT}"
    )
    return NonFiniteError(message, update=step, epoch=epoch, path=None, grad_norm=None, state=None)


def failed_step(error: Exception, *, step: int | None) -> CallError:
    """Make the error for a step that failed while it ran: in a check, a callback, for memory.

    Args:
        error: What JAX raised.
        step: Number of the step; `None` if the state before it is lost, and it is not known.
    """
    raised = _RAISED.findall(str(error))
    reason = ": ".join(raised[-1]) if raised else first_line(error)
    if step is None:
        return CallError(
            f"a step failed while it ran: {reason}\n  No copy of the state was kept, so the error "
            "has no `state`: the last checkpoint is what there is."
        )
    return CallError(
        f"step {step} failed while it ran: {reason}\n  Vernal did not make this step: the error's "
        "`state` is the one before it, its `history` the record up to there."
    )


@contextlib.contextmanager
def silent_callbacks() -> Iterator[None]:
    """Keep JAX from logging each failure of a callback again, while steps are made again."""
    logger = logging.getLogger("jax._src.callback")
    was_disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = was_disabled
