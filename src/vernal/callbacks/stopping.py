"""Callbacks that watch a metric: stop early, keep the best state."""

import math
from dataclasses import KW_ONLY, Field, dataclass, field, fields
from typing import Any, Literal, cast

from vernal._training.history import Epoch
from vernal._training.state import TrainState
from vernal.errors import ArgumentError, check_finite, kind, whole_number

Mode = Literal["auto", "min", "max"]

# The largest value is the best for metrics whose names begin so.
_RISING = ("accuracy", "top_", "r2")


class _AbstractWatcher:
    """A dataclass that watches a metric. Its fields that are no arguments hold what it found."""

    monitor: str
    mode: Mode
    best: float | None

    def start(self) -> None:
        """Forget an earlier run."""
        self.load_state_dict({each.name: each.default for each in self._found()})

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to know of the run so far."""
        return {each.name: getattr(self, each.name) for each in self._found()}

    def load_state_dict(self, saved: dict[str, Any]) -> bool | None:
        """Continue from what `state_dict` returned."""
        vars(self).update(saved)
        return None

    def _found(self) -> list[Field]:
        return [each for each in fields(cast(Any, self)) if not each.init]

    def _check_monitor(self) -> None:
        """Check both arguments; an automatic mode becomes the one in which the metric is best."""
        if not isinstance(self.monitor, str):
            raise ArgumentError(
                f"monitor is {kind(self.monitor)}; the name of a metric is needed."
                '\n  Try monitor="val_loss".'
            )
        if self.mode not in ("min", "max", "auto"):
            raise ArgumentError(
                f'mode is {kind(self.mode)}; "min", "max" or "auto" is needed.\n  Try mode="auto".'
            )
        if self.mode == "auto":
            rises = self.monitor.removeprefix("val_").startswith(_RISING)
            self.mode = "max" if rises else "min"

    def _improves(self, value: float, min_delta: float = 0.0) -> bool:
        """Return whether a value is better than the best by more than `min_delta`; NaN never is."""
        if self.best is None:
            return not math.isnan(value)
        gain = self.best - value if self.mode == "min" else value - self.best
        return gain > min_delta


@dataclass(eq=False)
class EarlyStopping(_AbstractWatcher):
    """Stops a run that no longer improves.

    Epochs that did not measure `monitor` do not count. NaN is never an improvement.

    Args:
        monitor: The name of the metric to watch.
        patience: How many measured epochs in a row may bring no improvement; the last one stops
            the run.
        min_delta: An improvement on the best value is larger than this.
        mode: Whether `"min"` or `"max"` is best. The default, `"auto"`, is `"max"` for metrics
            whose names begin with `accuracy`, `top_` or `r2`, with or without `val_` before it, and
            `"min"` for all others.

    Attributes:
        best: The best value of the run so far; `None` before the first.
        waited: How many measured epochs there were since the best one.
        stopped_epoch: The index of the epoch that stopped the run; `None` if none did.

    Raises:
        ArgumentError: `monitor` is not a string, `patience` is not a whole number from 1,
            `min_delta` is negative or not finite, or `mode` is not one of the three.
    """

    monitor: str = "val_loss"
    patience: int = 5
    min_delta: float = 0.0
    _: KW_ONLY
    mode: Mode = "auto"
    best: float | None = field(default=None, init=False)
    waited: int = field(default=0, init=False)
    stopped_epoch: int | None = field(default=None, init=False)

    def __post_init__(self):
        self._check_monitor()
        self.patience = whole_number("patience", self.patience, at_least=1)
        hint = "Try min_delta=0.0, where every improvement counts."
        check_finite("min_delta", self.min_delta, hint)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to know of the run so far, and the `min_delta` of it."""
        return super().state_dict() | {"min_delta": self.min_delta}

    def load_state_dict(self, saved: dict[str, Any]) -> bool:
        """Continue from what `state_dict` returned.

        Returns:
            Whether a run that was stopped is to go on: with more patience, or another `min_delta`,
            by which epochs are counted anew.
        """
        min_delta = self.min_delta
        super().load_state_dict(saved)
        if self.min_delta != min_delta:
            self.min_delta, self.waited = min_delta, 0
        goes_on = self.stopped_epoch is not None and self.waited < self.patience
        if goes_on:
            self.stopped_epoch = None
        return goes_on

    def __call__(self, epoch: Epoch) -> bool:
        """Look at an epoch, and return whether to stop."""
        if self.monitor not in epoch.metrics:
            return False
        value = epoch.metrics[self.monitor]
        if self._improves(value, self.min_delta):
            self.best = value
            self.waited = 0
            return False
        self.waited += 1
        if self.waited < self.patience:
            return False
        self.stopped_epoch = epoch.index
        return True


@dataclass(eq=False)
class BestState(_AbstractWatcher):
    """Makes `fit` return the best epoch's state instead of the last one's. Never stops a run.

    Args:
        monitor: The name of the metric to watch.
        mode: Whether its smallest or its largest value is best, as in `EarlyStopping`.

    Attributes:
        best: The best value of the run so far; `None` before the first.
        epoch: The index of the best epoch, or `None`.
        state: The state at the end of the best epoch, or `None`.

    Raises:
        ArgumentError: `monitor` is not a string, or `mode` is not one of the three.
    """

    monitor: str = "val_loss"
    _: KW_ONLY
    mode: Mode = "auto"
    best: float | None = field(default=None, init=False)
    epoch: int | None = field(default=None, init=False)
    state: TrainState | None = field(default=None, init=False, repr=False)

    def __post_init__(self):
        self._check_monitor()

    def __call__(self, epoch: Epoch) -> None:
        """Keep the epoch's state if it is the best so far."""
        value = epoch.metrics.get(self.monitor, math.nan)
        if self._improves(value):
            self.best = value
            self.epoch = epoch.index
            self.state = epoch.state

    def finish(self, state: TrainState) -> TrainState:
        """Return the best state, or the given one if no epoch measured the metric."""
        return state if self.state is None else self.state
