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
_KEPT = "Vernal did not make this step: the error has the `state` and the `history` before it."
_LOST = "The error has no `state`, as no copy was kept: the last checkpoint is what there is."
# The last line of a traceback, in the text of an error that JAX raises for a callback's.
_RAISED = re.compile(r"^(?:[\w.]*\.)?_?(\w*(?:Error|Exception)): (.+)$", re.MULTILINE)


def nonfinite_step(
    state: Any, batch: PyTree, found: tuple[float, float, PyTree], last_norm: float | None
) -> NonFiniteError:
    """Make the error for a step that is not to be made.

    Args:
        state: The state before the step.
        batch: The step's batch.
        found: The loss, the norm of the gradients, and whether each array is finite, by when it
            is looked at and by which part of the state has it; "" is the model.
        last_norm: The norm of the gradients of the step before, if there was one.
    """
    loss, norm, finite = found
    norm = float(norm) if np.isfinite(norm) else last_norm
    problems = [] if np.isfinite(loss) else [f"the loss is {loss}"]
    bad = [keys for keys, is_finite in jax.tree_util.tree_leaves_with_path(finite) if not is_finite]
    path = None
    if bad:
        when, part = bad[0][0].key
        path = (part or type(state.model).__name__) + jax.tree_util.keystr(bad[0][1:])
        problems.append(f"{when} {path} is not finite")

    step, epoch = int(state.step), int(state.epoch)
    last = "" if norm is None else f" The norm of the last finite gradients is {norm:.3g}."
    message = (
        f"in step {step}, of epoch {epoch}, {', and '.join(problems) or 'a number is not finite'}."
        f"{_not_finite_in(batch)}{last}\n  {_KEPT}{_HINT}"
    )
    return NonFiniteError(message, update=step, epoch=epoch, path=path, grad_norm=norm, state=state)


def _not_finite_in(batch: PyTree) -> str:
    """Say which values of a batch are not finite, if some are."""
    try:
        as_arrays(batch, finite=True, aligned=False)
    except DataError as error:
        return f" Of its batch, {error.args[0].splitlines()[0]}"
    return ""


def nonfinite_chunk(call: Any, offset: int) -> NonFiniteError:
    """Make the error for a chunk that cannot be made again: no copy of the state was kept.

    Args:
        call: The measurements of the call that made the first bad step.
        offset: Which of the call's steps that is, counted from 0.
    """
    step, loss = call.first_step + offset, call.measured.info["loss"][offset]
    epoch = call.epoch + int(np.sum(call.epoch_ends <= offset))
    found = "the state is not finite" if np.isfinite(loss) else f"the loss is {loss}"
    message = f"in step {step}, of epoch {epoch}, {found}.\n  {_LOST}{_HINT}"
    return NonFiniteError(message, update=step, epoch=epoch, path=None, grad_norm=None, state=None)


def failed_step(error: Exception, *, step: int | None, rest: str = "") -> CallError:
    """Make the error for a step that failed while it ran: in a check, a callback, for memory.

    Args:
        error: What JAX raised.
        step: Number of the step; `None` if the state before it is lost, and it is not known.
        rest: What became of the state. By default what `fit` makes of it.
    """
    raised = _RAISED.findall(str(error))
    reason = ": ".join(raised[-1]) if raised else first_line(error)
    which, usual = ("a step", _LOST) if step is None else (f"step {step}", _KEPT)
    return CallError(f"{which} failed while it ran: {reason}\n  {rest or usual}")


@contextlib.contextmanager
def silent_callbacks() -> Iterator[None]:
    """Keep JAX from logging each failure of a callback again, while steps are made again."""
    logger = logging.getLogger("jax._src.callback")
    was_disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = was_disabled
