"""Callbacks that look at a metric: stop early, keep the best state."""

import math
from dataclasses import KW_ONLY, dataclass, field
from numbers import Real
from typing import Any

from vernal._training.checks import whole_number
from vernal._training.history import Epoch
from vernal._training.state import TrainState
from vernal.errors import ArgumentError, kind

# Metrics that are the better the larger they are begin with one of these.
_RISING = ("accuracy", "top_", "r2")


@dataclass(eq=False)
class EarlyStopping:
    """Stops a run that no longer gets better.

    Epochs in which `monitor` was not measured do not count, and nan is never an improvement.

    **Arguments:**

    - `monitor`: the name of the metric to watch.
    - `patience`: stop after this many epochs in a row without an improvement.
    - `min_delta`: what differs from the best by no more than this is no improvement.
    - `mode`: whether `"min"` or `"max"` is best; `"auto"` is `"max"` for metrics whose names begin
      with `accuracy`, `top_` or `r2`, with or without `val_` before it, and `"min"` for others.

    **Attributes:** of the run so far, `best`, the best value; `waited`, the epochs measured since;
    `stopped_epoch`, the index of the epoch that ended the run, `None` if none did.

    **Raises:** `ArgumentError` if an argument is none of these.
    """

    monitor: str = "val_loss"
    patience: int = 5
    min_delta: float = 0.0
    _: KW_ONLY
    mode: str = "auto"
    best: float | None = field(default=None, init=False)
    waited: int = field(default=0, init=False)
    stopped_epoch: int | None = field(default=None, init=False)

    def __post_init__(self):
        self.mode = _resolved(self.monitor, self.mode)
        self.patience = whole_number("patience", self.patience, at_least=1)
        if not isinstance(self.min_delta, Real) or not 0 <= self.min_delta < math.inf:
            raise ArgumentError(
                f"min_delta is {kind(self.min_delta)}; a finite number from 0 is needed."
                "\n  Try min_delta=0.0, where every improvement counts."
            )

    def start(self) -> None:
        """Forget the run before."""
        self.best, self.waited, self.stopped_epoch = None, 0, None

    def state_dict(self) -> dict[str, Any]:
        """What it keeps of the run so far."""
        return {"best": self.best, "waited": self.waited, "stopped_epoch": self.stopped_epoch}

    def load_state_dict(self, kept: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.best, self.waited = kept["best"], kept["waited"]
        self.stopped_epoch = kept["stopped_epoch"]

    def __call__(self, epoch: Epoch) -> bool:
        """Look at an epoch. **Returns:** whether to stop."""
        if self.monitor not in epoch.metrics:
            return False
        value = epoch.metrics[self.monitor]
        if _improves(value, self.best, self.mode, self.min_delta):
            self.best, self.waited = value, 0
            return False
        self.waited += 1
        stop = self.waited >= self.patience
        if stop:
            self.stopped_epoch = epoch.index
        return stop


@dataclass(eq=False)
class BestState:
    """Makes `fit` return the state of the best epoch, and not of the last. Never stops a run.

    **Arguments:**

    - `monitor`, `mode`: as in `EarlyStopping`.

    **Attributes:** of the run so far, `best`, the best value; `state` and `epoch`, the state and
    the index of the epoch that it was measured in. Each is `None` before there is one.

    **Raises:** `ArgumentError` if an argument is none of these.
    """

    monitor: str = "val_loss"
    _: KW_ONLY
    mode: str = "auto"
    best: float | None = field(default=None, init=False)
    epoch: int | None = field(default=None, init=False)
    state: TrainState | None = field(default=None, init=False, repr=False)

    def __post_init__(self):
        self.mode = _resolved(self.monitor, self.mode)

    def start(self) -> None:
        """Forget the run before."""
        self.best = self.epoch = self.state = None

    def state_dict(self) -> dict[str, Any]:
        """What it keeps of the run so far."""
        return {"best": self.best, "epoch": self.epoch, "state": self.state}

    def load_state_dict(self, kept: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.best, self.epoch, self.state = kept["best"], kept["epoch"], kept["state"]

    def __call__(self, epoch: Epoch) -> None:
        """Keep the epoch's state if it is the best so far."""
        value = epoch.metrics.get(self.monitor, math.nan)
        if _improves(value, self.best, self.mode):
            self.best, self.epoch, self.state = value, epoch.index, epoch.state

    def finish(self, state: TrainState) -> TrainState:
        """Choose what the run returns: the best state, or the given one where there is no best."""
        return state if self.state is None else self.state


def _resolved(monitor: str, mode: str) -> str:
    """The mode, `"min"` or `"max"`, in which this metric is best."""
    if not isinstance(monitor, str):
        raise ArgumentError(
            f"monitor is {kind(monitor)}; the name of a metric is needed."
            '\n  Try monitor="val_loss".'
        )
    if not isinstance(mode, str) or mode not in ("min", "max", "auto"):
        raise ArgumentError(
            f'mode is {kind(mode)}; "min", "max" or "auto" is needed.\n  Try mode="auto".'
        )
    rising = "max" if monitor.removeprefix("val_").startswith(_RISING) else "min"
    return rising if mode == "auto" else mode


def _improves(value: float, best: float | None, mode: str, min_delta: float = 0.0) -> bool:
    """Whether a value is better than the best by more than `min_delta`; nan never is."""
    if best is None:
        return not math.isnan(value)
    return (best - value if mode == "min" else value - best) > min_delta
