"""Epochs: a pass over the data each, or a number of steps."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vernal._data.superbatch import Superbatch
from vernal._training.state import TrainState


@dataclass(frozen=True)
class Epoch:
    """One completed epoch of a run.

    Attributes:
        index: Number of the epoch, counted from 0 over the state's whole life.
        state: The state at its end.
        metrics: Averages over the epoch: `"loss"`, ...; the validation's as `"val_loss"`, .... A
            callback may add what it measures, for the callbacks after it and for the history.
        seconds: How long the epoch took.

    Example:
        >>> for epoch in trainer.epochs(model, (x, y)):
        ...     if epoch.index == 2:
        ...         break
        >>> sorted(epoch.metrics)
        ['loss']
    """

    index: int
    state: TrainState
    metrics: dict[str, float]
    seconds: float

    @classmethod
    def with_state_on_demand(cls, make_state: Callable[[], TrainState], **others: Any) -> "Epoch":
        """Make an epoch of a run in progress, whose state is copied when somebody asks for it.

        Args:
            make_state: Returns the state. Not to be called once the run has gone on.
            **others: The other attributes.
        """
        epoch = object.__new__(cls)
        vars(epoch).update(others, _make_state=make_state)
        return epoch

    def __getattr__(self, name: str) -> Any:
        """Make the state, once; Python comes here while there is none."""
        make_state = vars(self).pop("_make_state", None) if name == "state" else None
        if make_state is None:
            raise AttributeError(f"an Epoch has no attribute {name!r}")
        state = vars(self)["state"] = make_state()
        return state

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy of the epoch holds, here or in another process: its state, too."""
        _ = self.state
        return vars(self)


class Epochs:
    """How a run counts epochs, from the place on where it begins.

    Args:
        state: The state that the run begins with.
        steps_per_epoch: Steps in an epoch; `None` if an epoch is one pass over the data.
    """

    def __init__(self, state: TrainState, steps_per_epoch: int | None):
        self.steps_per_epoch = steps_per_epoch
        self._step, self._epoch = int(state.step), int(state.epoch)
        self._epoch_step, self._data_pass = int(state.epoch_step), int(state.data_pass)

    def at(self, step: int, data_pass: int, batch: int) -> tuple[int, int]:
        """Return how many epochs are completed at a step, and the steps made since."""
        made = self._epoch_step + step - self._step
        if self.steps_per_epoch is not None:
            epochs, made = divmod(made, self.steps_per_epoch)
            return self._epoch + epochs, made

        passes = data_pass - self._data_pass
        return self._epoch + passes, batch if passes else made

    def steps_until(self, epoch: int, step: int, superbatch: Superbatch, cursor: int) -> int:
        """Return how many steps there are from a place in the data to the start of an epoch.

        The result is huge while the length of a pass is not known.
        """
        epochs = epoch - self._epoch
        if self.steps_per_epoch is not None:
            return epochs * self.steps_per_epoch - (self._epoch_step + step - self._step)

        passes = self._data_pass + epochs - superbatch.data_pass
        return passes * superbatch.pass_length - cursor

    def ends(self, step: int, superbatch: Superbatch, cursor: int, steps: int) -> np.ndarray:
        """Return after how many of the next steps an epoch ends."""
        length, made = superbatch.pass_length, cursor
        if self.steps_per_epoch is not None:
            length, made = self.steps_per_epoch, self._epoch_step + step - self._step
        return np.arange(length - made % length, steps + 1, length)

    def last_pass(self, epochs: int, batch: int, pass_length: int) -> int:
        """Return the number of the pass that a run of so many epochs ends before."""
        if self.steps_per_epoch is not None:
            return self._data_pass - (-(batch + epochs * self.steps_per_epoch) // pass_length)
        return self._data_pass + batch // pass_length + epochs
