"""Callbacks that watch a metric: stop early, keep the best state."""

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, fields
from typing import Any, Literal, cast

from vernal._best import best_of
from vernal._training.epochs import Epoch
from vernal._training.state import TrainState
from vernal.errors import ArgumentError, CheckpointError, check_finite, whole_number, wrong_argument
from vernal.history import counted
from vernal.metrics import AbstractMetric

Mode = Literal["auto", "min", "max"]


class _AbstractWatcher:
    """A dataclass that watches a metric. Its fields that are no arguments hold what it found."""

    monitor: str
    mode: Mode
    best: float | None
    epoch: int | None

    def start(self) -> None:
        """Forget an earlier run."""
        self._take({each.name: each.default for each in fields(cast(Any, self))})

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to know of the run so far, and the arguments."""
        return {each.name: getattr(self, each.name) for each in fields(cast(Any, self))}

    def load_state_dict(self, saved: dict[str, Any]) -> bool | None:
        """Continue from what `state_dict` returned. The arguments stay.

        Raises:
            CheckpointError: If it was of another metric, or of another mode.
        """
        before, now = ([each[name] for name in ("monitor", "mode")] for each in (saved, vars(self)))
        if before != now:
            name = type(self).__name__
            problem = f"a {name} was saved of {before[0]!r} ({before[1]}); it is of {now[0]!r}"
            hint = "Pass the callbacks as they were, in their order; or another directory."
            raise CheckpointError(f"{problem} ({now[1]}) now.\n  {hint}")
        self._take(saved)

    def _take(self, saved: Mapping[str, Any]) -> None:
        """Take over the fields that are no arguments."""
        for each in fields(cast(Any, self)):
            if not each.init:
                setattr(self, each.name, saved[each.name])

    def decide_mode(self, metrics: Mapping[str, AbstractMetric]) -> None:
        """Decide an automatic mode, before a run.

        Args:
            metrics: The run's metrics by name.

        Raises:
            ArgumentError: Neither the metric nor its name tells which values are best.
        """
        if not self._is_chosen:
            metric = metrics.get(self.monitor.removeprefix("val_"))
            self.mode = best_of(self.monitor, metric) or self.mode
        if self.mode == "auto":
            name = type(self).__name__
            problem = f"{name} monitors {self.monitor!r}, and does not know which values are best."
            hint = f'Try {name}({self.monitor!r}, mode="max"), or mode="min".'
            raise ArgumentError(f"{problem}\n  {hint}")

    def __post_init__(self):
        """Check both arguments; an automatic mode becomes the one that the metric's name tells."""
        if not isinstance(self.monitor, str):
            hint = 'Try monitor="val_loss".'
            raise wrong_argument("monitor", self.monitor, "the name of a metric", hint)
        if self.mode not in ("min", "max", "auto"):
            raise wrong_argument("mode", self.mode, '"min", "max" or "auto"', 'Try mode="auto".')
        self._is_chosen = self.mode != "auto"
        if not self._is_chosen:
            self.mode = best_of(self.monitor) or "auto"

    def _improves(self, epoch: Epoch, min_delta: float = 0.0) -> bool:
        """Return whether an epoch is the best by more than `min_delta`, and remember it if it is.

        NaN never is.
        """
        if self.mode == "auto":  # in a loop of the user's own, where nobody has decided
            self.decide_mode({})
        value = float(epoch.metrics.get(self.monitor, math.nan))
        gain = math.inf
        if self.best is not None:
            gain = self.best - value if self.mode == "min" else value - self.best
        improves = gain > min_delta and not math.isnan(value)
        if improves:
            self.best, self.epoch = value, epoch.index
        return improves


@dataclass(eq=False)
class EarlyStopping(_AbstractWatcher):
    """Stops a run that no longer improves.

    Epochs that did not measure `monitor` do not count. NaN is never an improvement. A run that it
    stopped, and that is resumed with more epochs, is given its patience again.

    Args:
        monitor: The name of the metric to watch.
        patience: How many measured epochs in a row may bring no improvement; the last one stops
            the run.
        min_delta: An improvement on the best value is larger than this.
        mode: Whether `"min"` or `"max"` is best. The default, `"auto"`, knows this of Vernal's own
            metrics, and of others by a word in their names, such as `loss`, `auc` or `f1`.

    Attributes:
        best: The best value of the run so far; `None` before the first.
        epoch: The index of the best epoch, or `None`.
        waited: How many measured epochs there were since the best one.
        stopped_epoch: The index of the epoch that stopped the run; `None` if none did.

    Raises:
        ArgumentError: `monitor` is not a string, `patience` is not a whole number from 1,
            `min_delta` is negative or not finite, or `mode` is not one of the three; or, raised
            before training, `mode` is `"auto"` and neither the metric nor its name is known.

    Example:
        >>> stopping = callbacks.EarlyStopping("val_loss", patience=3, min_delta=1e-4)
        >>> state, history = trainer.fit(
        ...     model, (x, y), epochs=1_000, validation_data=(x, y), callbacks=[stopping]
        ... )
        >>> len(history.epochs["loss"]) < 1_000
        True
    """

    monitor: str = "val_loss"
    patience: int = 5
    min_delta: float = 0.0
    _: KW_ONLY
    mode: Mode = "auto"
    best: float | None = field(default=None, init=False)
    epoch: int | None = field(default=None, init=False)
    waited: int = field(default=0, init=False)
    stopped_epoch: int | None = field(default=None, init=False)

    def __post_init__(self):
        super().__post_init__()
        self.patience = whole_number("patience", self.patience, at_least=1)
        check_finite("min_delta", self.min_delta, "Try min_delta=0.0.")

    def load_state_dict(self, saved: dict[str, Any]) -> bool:
        """Continue from what `state_dict` returned.

        Returns:
            Whether a run that was stopped is to go on: with more patience, or another `min_delta`,
            by which epochs are counted anew.
        """
        super().load_state_dict(saved)
        if saved["min_delta"] != self.min_delta:
            self.waited = 0
        goes_on = self.stopped_epoch is not None and self.waited < self.patience
        if goes_on:
            self.stopped_epoch = None
        return goes_on

    def __call__(self, epoch: Epoch) -> bool:
        """Look at an epoch, and return whether to stop."""
        if self.stopped_epoch is not None:  # the run went on: for more epochs, it is given time
            self.waited, self.stopped_epoch = 0, None
        if self.monitor not in epoch.metrics:
            return False
        self.waited = 0 if self._improves(epoch, self.min_delta) else self.waited + 1
        if self.waited >= self.patience:
            self.stopped_epoch = epoch.index
        return self.waited >= self.patience

    @property
    def reason(self) -> str:
        """Why it stopped the run, and what was best."""
        if self.epoch is None or self.stopped_epoch is None:
            return f"{self.monitor} was never a number"
        epochs = counted(self.stopped_epoch - self.epoch, "epoch")
        best = f"best {self.best:.4g} in epoch {self.epoch + 1:,}"
        return f"{self.monitor} did not improve for {epochs}; {best}"


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
        ArgumentError: `monitor` is not a string, `mode` is not one of the three, or it is not
            known, as in `EarlyStopping`.

    Example:
        >>> best = callbacks.BestState("loss")
        >>> state, history = trainer.fit(model, (x, y), epochs=10, callbacks=[best])
        >>> bool(best.best == history.epochs["loss"].min())
        True
    """

    monitor: str = "val_loss"
    _: KW_ONLY
    mode: Mode = "auto"
    best: float | None = field(default=None, init=False)
    epoch: int | None = field(default=None, init=False)
    state: TrainState | None = field(default=None, init=False, repr=False)

    def __call__(self, epoch: Epoch) -> None:
        """Keep the epoch's state if it is the best so far."""
        if self._improves(epoch):
            self.state = None  # before the copy is made: one of a large state is enough
            try:
                self.state = epoch.state
            finally:
                if self.state is None:  # an interrupt, or too little memory
                    self.best = self.epoch = None

    def finish(self, state: TrainState) -> TrainState:
        """Return the best state, or the given one if no epoch measured the metric."""
        return state if self.state is None else self.state
