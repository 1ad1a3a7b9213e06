"""What a run shows while it runs."""

import sys
import time
from typing import Any

from vernal._training.measurements import Measurements


class Progress:
    """A progress bar with the loss and the examples a second; silent where nobody would see it.

    Args:
        shown: Whether to show it, if standard error is a terminal.
        total: Number of steps of the run; `None` if it is not known.
    """

    def __init__(self, shown: bool, total: int | None):
        self._wanted = shown and sys.stderr.isatty()
        self._total = total
        self._bar: Any = None
        self._since = time.perf_counter()
        self._shown: dict[str, str] = {}

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.close()

    def show_chunk(self, chunk: list[Measurements]) -> None:
        """Move on by the steps of a chunk."""
        steps = sum(call.steps for call in chunk)
        if not self._wanted or steps == 0:
            return

        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=self._total, unit=" steps", unit_scale=True, dynamic_ncols=True)
        now = time.perf_counter()
        sizes = [call.superbatch.sizes(call.cursor, call.cursor + call.steps) for call in chunk]
        rate = sum(int(size.sum()) for size in sizes) / (now - self._since)
        self._since = now
        latest = {name: values[-1] for name, values in chunk[-1].measured.info.items()}
        self._shown["loss"] = f"{latest['loss']:.4g}"
        if "learning_rate" in latest:
            self._shown["lr"] = f"{latest['learning_rate']:.3g}"
        self._shown["examples/s"] = self._bar.format_sizeof(rate)
        self._refresh(steps)

    def show_validation(self, results: dict[str, float]) -> None:
        """Show what validation measured."""
        if self._bar is not None:
            self._shown |= {f"val_{name}": f"{value:.4g}" for name, value in results.items()}
            self._refresh(0)

    def _refresh(self, steps: int) -> None:
        self._bar.set_postfix(self._shown, refresh=False)
        self._bar.update(steps)
