"""How a run is stopped from outside: Ctrl-C, and SIGTERM."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vernal import _hosts
from vernal.errors import shown


class Interrupt:
    """Holds back a first Ctrl-C until `fit` looks at `requested`; a second one raises.

    So no step is cut in half, and what was trained so far can be returned. Where the run is saved,
    SIGTERM, which schedulers send, is held back as well; a second one ends the process at once. In
    a thread that may not set handlers it does nothing: Python delivers signals to the main thread.

    Args:
        saves: Whether the run is saved.

    Attributes:
        requested: Whether the run is to end.
    """

    def __init__(self, *, saves: bool):
        self._signals = [signal.SIGINT, signal.SIGTERM] if saves else [signal.SIGINT]
        self._previous: dict[int, Any] = {}
        self._process = os.getpid()
        self._terminated = False
        self._again = False  # whether a callback was interrupted once the run was to end
        self.requested = False

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            for number in self._signals:
                previous = signal.getsignal(number)
                # A handler that another language set is None here, and could not be put back.
                if previous not in (None, signal.SIG_IGN):
                    self._previous[number] = previous
                    signal.signal(number, self._hold)
        return self

    def __exit__(self, kind: Any, *_: Any) -> bool:
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        # One that came another way, from a callback say, ends the run like a first one.
        is_first = kind is KeyboardInterrupt and not self.requested
        self.requested |= is_first
        is_moot = self.ends_process and kind is not None and issubclass(kind, Exception)
        # A `fit` around this one, in whose callback this one ran, ends too.
        outer = getattr(self._previous.get(signal.SIGINT), "__self__", None)
        if self.requested and isinstance(outer, Interrupt):
            outer.requested = True
        if kind is None and self._again:
            raise KeyboardInterrupt
        return is_first or is_moot

    def held(self, callback: Callable, epoch: Any) -> Any:
        """Call a callback. An interrupt in it ends the run once the others have seen the epoch."""
        try:
            return callback(epoch)
        except KeyboardInterrupt:
            self._again |= self.requested
            self.requested = True

    def report(self, steps: int, saved_steps: int, checkpoints: Path | None) -> None:
        """Print that the run was interrupted after so many steps, if it was."""
        if not self.requested or not _hosts.is_first():
            return
        kept = "fit returns the state and the history so far"
        if checkpoints is not None:
            place = "" if steps == saved_steps else f" after step {saved_steps:,}"
            kept = f"the same script resumes{place} from {shown(checkpoints)}"
        print(f"Interrupted after {steps:,} steps: {kept}.", file=sys.stderr)

    @property
    def ends_process(self) -> bool:
        """Whether the process is to end with the run."""
        return self._terminated

    def end_process(self) -> None:
        """After SIGTERM, do what its former handler does, which is to end the process."""
        if self._terminated and callable(self._previous[signal.SIGTERM]):
            signal.raise_signal(signal.SIGTERM)
        elif self._terminated:
            raise SystemExit(128 + signal.SIGTERM)

    def _hold(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:
            # A worker, which a loader has forked. Ctrl-C reaches it, too, but the steps under way
            # still need it.
            if number == signal.SIGTERM:
                signal.signal(number, self._previous[number])
                signal.raise_signal(number)
            return
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self._terminated and number == signal.SIGTERM:  # nobody waits any longer
            signal.signal(number, self._previous[number])
            signal.raise_signal(number)
        self.requested = True
        self._terminated |= number == signal.SIGTERM
