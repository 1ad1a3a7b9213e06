"""Steps that fail while they run: a check in the model, a callback to Python, memory."""

import contextlib
import logging
import re
from collections.abc import Iterator

from vernal.errors import CallError, first_line

# The last line of a traceback, in the text of an error that JAX raises for a callback's.
_RAISED = re.compile(r"^(?:[\w.]*\.)?_?(\w*(?:Error|Exception)): (.+)$", re.MULTILINE)


def step_error(error: Exception, *, step: int | None) -> CallError:
    """Make the error for a step that failed while it ran.

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
