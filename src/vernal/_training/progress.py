"""What a run shows while it runs: a bar, or lines for a log."""

import contextlib
import math
import shutil
import sys
import time
from collections.abc import Sequence
from typing import Any

from vernal import _hosts
from vernal._training.chunks import TrainingRun
from vernal._training.measurements import Measurements
from vernal._training.recorder import Recorder
from vernal.errors import shown
from vernal.history import counted

# How often a bar moves, how often an epoch has a line, and nothing is shown, in seconds.
_SECONDS = {"bar": 0.1, "lines": 3.0, "": math.inf}
# Columns for a bar and the percentage.
_BAR_COLUMNS = 12


class Progress(contextlib.AbstractContextManager["Progress"]):
    """Shows where a run is, what it measured, and how many examples a second it trains on.

    A bar has the averages of the epoch so far. A line is for an epoch that is complete.

    Args:
        style: As in `Trainer.fit`.
        run: The run in progress.
        recorder: Holds what was measured.
        last_epoch: Number of the epoch that the run ends before.
        callbacks: What they monitor is shown first.

    Attributes:
        stopped_because: Why a callback ended the run; or `None`.
    """

    def __init__(
        self,
        style: bool | str,
        run: TrainingRun,
        recorder: Recorder,
        *,
        last_epoch: int,
        callbacks: Sequence[Any],
    ):
        self._in_notebook = "ipykernel" in sys.modules
        if style in ("auto", True):
            is_seen = self._in_notebook or (sys.stderr is not None and sys.stderr.isatty())
            style = "bar" if is_seen else "lines"
        is_shown = style and sys.stderr is not None and _hosts.is_first()
        self._style = str(style) if is_shown else ""
        self._run = run
        self._recorder = recorder
        self._last_epoch = last_epoch
        self._monitored = [getattr(callback, "monitor", None) for callback in callbacks]
        left = run.steps_until(last_epoch)
        self._total_steps = None if left is None else recorder.steps + left
        self.stopped_because: str | None = None

        self._bar: Any = None
        self._values: dict[str, float] = {}
        self._rate = 0.0
        self._counted_at = time.perf_counter()
        self._next_at = self._counted_at + _SECONDS[self._style]
        self._shown = recorder.epochs, recorder.steps

    def __exit__(self, kind: Any, *_: Any) -> None:
        if self._style and kind is None:
            self.show(is_end=True)
        if self._bar is not None:
            self._bar.close()
        if self._style and self.stopped_because is not None:
            _print(f"stopped after epoch {self._run.epoch:,}: {self.stopped_because}")

    def count(self, chunk: list[Measurements]) -> None:
        """Count the examples of a chunk, for the speed since the chunk before."""
        sizes = [call.superbatch.sizes(call.cursor, call.cursor + call.steps) for call in chunk]
        now = time.perf_counter()
        self._rate = float(sum(each.sum() for each in sizes)) / (now - self._counted_at)
        self._counted_at = now

    def show(self, *, is_end: bool = False) -> None:
        """Show how far the run is, if it is time to, or the run ends."""
        began = time.perf_counter()
        recorder, is_bar = self._recorder, self._style == "bar"
        now = recorder.epochs, recorder.steps
        has_news = now != self._shown if is_bar or is_end else recorder.epochs > self._shown[0]
        if not has_news or (began < self._next_at and not is_end):
            return
        values = recorder.so_far if is_bar or recorder.epochs == self._shown[0] else {}
        place = f"epoch {self._run.epoch + bool(values):,}/{self._last_epoch:,}"
        if self._total_steps is None:
            place += f"  {recorder.steps:,} steps"

        # In a bar, the last validation's stay.
        self._values = (self._values if is_bar else {}) | (values or recorder.latest)
        self._shown = now
        self._next_at = time.perf_counter() + _SECONDS[self._style]
        if is_bar:
            self._show_bar(place)
            # Many short calls take long to average: a fiftieth of the time at most.
            self._next_at += 50 * (time.perf_counter() - began)
        else:
            _print(place + self._text(math.inf))

    def _show_bar(self, place: str) -> None:
        from tqdm.auto import tqdm

        columns = shutil.get_terminal_size().columns
        bar = "" if self._total_steps is None else " {bar} {percentage:3.0f}%"
        parts = [place, self._text(columns - len(place) - _BAR_COLUMNS)]
        if self._bar is None:
            self._bar = tqdm(
                total=self._total_steps,
                ncols=None if self._in_notebook else columns,
                leave=None,
                bar_format=f"{{postfix[0]}}{bar}{{postfix[1]}}",
                postfix=parts,  # pyright: ignore[reportArgumentType]
            )
        self._bar.postfix = parts
        self._bar.n = self._recorder.steps
        self._bar.refresh()

    def _text(self, columns: float) -> str:
        """Return what was measured, the most important first, as far as there is space."""
        from tqdm import tqdm

        parts = {name: f"  {name} {value:.3g}" for name, value in self._values.items()}
        parts["examples/s"] = f"  {tqdm.format_sizeof(self._rate)} examples/s"
        monitored = [name for name in parts if name in self._monitored]
        validation = [name for name in parts if name.startswith("val_")]
        others = sorted(parts, key=lambda name: name == "learning_rate")  # which comes last
        order = dict.fromkeys([*monitored, "loss", "val_loss", *validation, *others])
        shown = [parts[name] for name in order if name in parts]
        while len(shown) > 1 and sum(map(len, shown)) > columns:
            shown.pop()
        return "".join(shown)


def _print(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
        if _hosts.is_first():
            print(line, file=sys.stderr)


def report_finished(path: Any, trained: int, epochs: int, *, stopped: bool) -> None:
    """Print that a directory holds a run with nothing left to train.

    Args:
        path: The directory of the checkpoints.
        trained: How many epochs the run has trained.
        epochs: How many are asked for.
        stopped: Whether a callback ended the run.
    """
    run = "run that a callback ended after" if stopped else "finished run of"
    wanted = f" ({epochs} were asked for)" if epochs < trained else ""
    held = f"{run} {counted(trained, 'epoch')}{wanted}"
    _print(f"{shown(path)} holds a {held}; nothing was trained.")
