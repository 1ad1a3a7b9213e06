"""What a run shows while it runs, and how it is stopped."""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from vernal._training.chunks import Loop
from vernal._training.history import Recorder
from vernal._training.records import Records


class Interrupt:
    """Holds back a first Ctrl-C until the loop looks at `requested`; a second one raises.

    So no update is cut in half, and what was trained so far can be returned. Where the run is
    saved, SIGTERM, which schedulers send, is held back as well. In a thread that may not set
    handlers it does nothing: Python delivers signals to the main thread.
    """

    requested = False

    def __init__(self, saves: bool):
        self._signals = [signal.SIGINT, *([signal.SIGTERM] if saves else [])]
        self._previous: dict[int, Any] = {}
        self._terminated = False

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            for number in self._signals:
                previous = signal.getsignal(number)
                # None was set by another language, and could not be put back.
                if previous not in (None, signal.SIG_IGN):
                    self._previous[number] = previous
                    signal.signal(number, self._hold)
        return self

    def __exit__(self, kind, *_) -> bool:
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        # One that came another way, from a callback say, ends the run like a first one.
        first = kind is KeyboardInterrupt and not self.requested
        self.requested |= first
        return first

    def tell(self, updates: int, checkpoints: Any) -> None:
        """Say that the run was interrupted, if it was, after so many updates."""
        if not self.requested:
            return
        kept = (
            "fit returns the state and the history so far"
            if checkpoints is None
            else f"the same script goes on from {checkpoints}"
        )
        print(f"Interrupted after {updates:,} updates: {kept}.", file=sys.stderr)

    def leave(self) -> None:
        """After SIGTERM: do what was to be done at one, which is to end the process."""
        if self._terminated:
            if callable(self._previous[signal.SIGTERM]):
                signal.raise_signal(signal.SIGTERM)
            else:
                raise SystemExit(128 + signal.SIGTERM)

    def _hold(self, signum, frame) -> None:
        if self.requested and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        self._terminated |= signum == signal.SIGTERM


class Progress:
    """A progress bar with the loss and the examples a second; silent where nobody would see it."""

    def __init__(self, shown: bool, total: int | None):
        self._wanted, self._total = shown and sys.stderr.isatty(), total
        self._bar: Any = None
        self._since = time.perf_counter()
        self._shown: dict[str, str] = {}

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, chunk: list[Records], validation: dict[str, float] | None = None) -> None:
        """Move on by a chunk of updates, and show what validation measured."""
        if not self._wanted:
            return
        if self._bar is None:  # not before: the device is busy now
            from tqdm import tqdm

            self._bar = tqdm(
                total=self._total, unit=" updates", unit_scale=True, dynamic_ncols=True
            )
        updates = sum(records.updates for records in chunk)
        if updates:
            now = time.perf_counter()
            examples = sum(r.stack.sizes(r.place, r.place + r.updates).sum() for r in chunk)
            rate, self._since = examples / (now - self._since), now
            latest = {name: values[-1] for name, values in chunk[-1].values.items()}
            self._shown |= {"loss": f"{latest['loss']:.4g}"}
            if "learning_rate" in latest:
                self._shown["lr"] = f"{latest['learning_rate']:.3g}"
            self._shown["examples/s"] = self._bar.format_sizeof(rate)
        self._shown |= {f"val_{name}": f"{x:.4g}" for name, x in (validation or {}).items()}
        self._bar.set_postfix(self._shown, refresh=False)
        self._bar.update(updates)


@contextlib.contextmanager
def kept_in_errors(loop: Loop, recorder: Recorder, started: float) -> Iterator[None]:
    """Give an error that ends the run the state and the record so far, as attributes."""
    try:
        yield
    except Exception as error:
        attributes = vars(error)
        if attributes.get("state") is None and loop.intact:
            attributes["state"] = loop.state()
            error.add_note(
                f"Training made {recorder.updates:,} updates before: the error's `state` is the "
                "one after them, its `history` the record."
            )
        if attributes.get("history") is None:
            attributes["history"] = recorder.history(time.perf_counter() - started)
        raise
