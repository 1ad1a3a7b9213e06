"""What happens between epochs: stopping early, keeping the best state, logging.

A callback is any callable that takes an `Epoch`; `True` from it ends the run. A few things more are
used where a callback has them: `fit` calls `start()` before the first epoch, and `finish(state)` at
the end, also after Ctrl-C, and returns the state that comes back from it. `monitor` is the name of
a metric that the callback cannot do without: `fit` checks it before it trains. Where a run is
saved, so is what a callback's `state_dict()` returns; when the run goes on, `load_state_dict` gets
it back, in place of `start()`.
"""

import csv
import io
import math
import os
import time
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

from vernal._checks import whole_number
from vernal._errors import ArgumentError, MissingExtraError, kind
from vernal._state import TrainState
from vernal._trainer import Epoch

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


class CSVLog:
    """Writes a table with one row an epoch: its index, its seconds and its metrics.

    A row is in the file as soon as its epoch is over, so a run that is killed leaves all that it
    measured. Numbers read back exactly; where an epoch did not measure something, nothing stands.

    **Arguments:**

    - `path`: of the file; directories that are missing are made.
    - `append`: whether to add rows to a file that is there already, in place of beginning it anew.

    **Raises:** `ArgumentError` if the file cannot be written or gone on with: before training.
    """

    def __init__(self, path: str | os.PathLike[str], *, append: bool = False):
        self.path = Path(_path("path", path))
        self.append = append
        self._columns: list[str] | None = None

    def start(self) -> None:
        """Begin the file, or read what it has."""
        self._begin(self._read if self.append else list)

    def state_dict(self) -> dict[str, Any]:
        """How much of the file is of the run so far."""
        return {"rows": 0 if self._columns is None else len(self._read())}

    def load_state_dict(self, kept: dict[str, Any]) -> None:
        """Go on with the file as it was, without the rows of epochs that will be trained again."""
        self._begin(lambda: self._read()[: kept["rows"]])

    def _begin(self, rows_there: Callable[[], list[list[str]]]) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists() and not self.path.is_file():
                raise FileExistsError(0, "it is there, and is no file")
            self.path.open("a").close()  # fails where a file may not be written
            rows = rows_there() or [["epoch", "seconds"]]
            if rows[0][:2] != ["epoch", "seconds"]:
                raise ArgumentError(
                    f"{self.path} has the columns {', '.join(rows[0])}; CSVLog goes on with a file "
                    "of its own, whose columns begin with epoch, seconds."
                    "\n  Pass another path, or append=False, which overwrites the file."
                )
            self._rewrite(rows)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        self._columns = rows[0]

    def __call__(self, epoch: Epoch) -> None:
        """Write an epoch's row."""
        if self._columns is None:
            self.start()
        assert self._columns is not None
        new = [name for name in epoch.metrics if name not in self._columns]
        if new:
            self._columns += new
            self._rewrite([self._columns, *self._read()[1:]])
        values = {name: float(value) for name, value in epoch.metrics.items()}
        values |= {"epoch": epoch.index, "seconds": float(epoch.seconds)}
        row = [repr(values[name]) if name in values else "" for name in self._columns]
        # Opened for each row: nothing is left open, and nothing unwritten, if the run is killed.
        with self.path.open("a", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(row)

    def _read(self) -> list[list[str]]:
        text = self.path.read_bytes().decode("utf-8", errors="replace")
        rows = list(csv.reader(io.StringIO(text, newline="")))
        # A row without its end is what was being written when the machine went down.
        return rows if text.endswith("\n") else rows[:-1]

    def _rewrite(self, rows: list[list[str]]) -> None:
        """Replace the file at once, so that at any time it is the old one or the new one."""
        target = self.path.resolve()  # a link stays a link
        temporary = target.with_name(f"{target.name}.tmp")
        width = len(rows[0])
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows(row + [""] * (width - len(row)) for row in rows)
        os.replace(temporary, target)

    def __repr__(self) -> str:
        return f"CSVLog({str(self.path)!r}, append={self.append})"


class TensorBoard:
    """Writes the metrics of each epoch for TensorBoard, with the epoch's index as the step.

    Each run adds a file to the directory; what was there stays. Look at it with
    `tensorboard --logdir DIRECTORY`.

    **Arguments:**

    - `directory`: where the files go; made if it is missing.

    **Raises:** `MissingExtraError` without tensorboardX; `ArgumentError`, before training, if the
    directory cannot be written to.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        self.directory = _path("directory", directory)
        _tensorboardx()
        self._writer: Any = None

    def start(self) -> None:
        """Begin a new file."""
        self._close()
        try:
            # The names of tensorboardX's files tell seconds apart, and no more: the later of two
            # would overwrite the earlier one.
            suffix = f".{time.time_ns()}"
            begin = _tensorboardx().SummaryWriter
            self._writer = begin(self.directory, flush_secs=10, filename_suffix=suffix)
        except OSError as error:
            raise _unwritable(self.directory, error) from error

    def __call__(self, epoch: Epoch) -> None:
        """Write an epoch's metrics."""
        if self._writer is None:
            self.start()
        assert self._writer is not None
        for name, value in epoch.metrics.items():
            self._writer.add_scalar(name, value, epoch.index)

    def finish(self, state: TrainState) -> TrainState:
        """Close the file. **Returns:** the state, as it is."""
        self._close()
        return state

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __repr__(self) -> str:
        return f"TensorBoard({self.directory!r})"


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


def _path(name: str, value) -> str:
    if not isinstance(value, str | os.PathLike):
        raise ArgumentError(f"{name} is {kind(value)}; a path is needed, as a str or a Path.")
    return os.fsdecode(value)


def _unwritable(path, error: OSError) -> ArgumentError:
    return ArgumentError(
        f"{path} cannot be written: {error.strerror or error}."
        "\n  Pass a path in a directory that you may write to."
    )


def _tensorboardx():
    try:
        import tensorboardX
    except ImportError as error:
        raise MissingExtraError(
            "callbacks.TensorBoard needs tensorboardX, which is not installed."
            "\n  Run: pip install 'vernal[tensorboard]'"
        ) from error
    return tensorboardX
