"""What a run calls of its callbacks, and what it makes of their answers."""

from collections.abc import Callable
from typing import Any

from vernal._training.state import TrainState
from vernal.errors import ArgumentError, kind, warn


def hook(callback: Any, name: str) -> Callable | None:
    """Return a method of a callback beside its call, or `None` if there is none."""
    # A mock has every attribute, and means nothing by it.
    has_every = hasattr(callback, "no_such_hook")
    method = getattr(callback, name, None)
    return method if callable(method) and not has_every else None


def saves(callback: Any) -> bool:
    """Say whether a callback can save what it keeps, and take it back."""
    return all(hook(callback, name) for name in ("state_dict", "load_state_dict"))


def ends_run(callback: Callable, answer: Any) -> bool:
    """Say whether a callback has answered that the run is to end."""
    if answer is None:
        return False
    is_truth = getattr(answer, "dtype", None) == "bool" and answer.size == 1
    if is_truth or isinstance(answer, bool):
        return bool(answer)
    ignored = "which is ignored: only True ends the run."
    warn(f"{kind(callback)} returned {kind(answer)}, {ignored}")
    return False


def reason(callback: Any) -> str:
    """Say why a callback has ended the run."""
    own = getattr(callback, "reason", None)
    return own if isinstance(own, str) else f"{kind(callback)} ended the run"


def finished(state: TrainState, callbacks: list[Callable]) -> TrainState:
    """Return the state that a run ends with, as the callbacks want it.

    Raises:
        ArgumentError: If one returns something else than a state or `None`.
        Exception: What a callback raises. Each error has the state.
    """
    for finish in filter(None, [hook(callback, "finish") for callback in callbacks]):
        try:
            returned = finish(state)
            if not isinstance(returned, TrainState | None):
                given = f"finish of a callback returned {kind(returned)}"
                raise ArgumentError(f"{given}; a TrainState is needed, or None to keep the state.")
        except Exception as error:
            vars(error).setdefault("state", state)
            raise
        if returned is not None:
            state = returned
    return state
