"""Checkpoints: how often a run is saved, and where."""

import math
import os
from dataclasses import KW_ONLY, dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from vernal._training.checks import whole_number
from vernal.errors import ArgumentError, MissingExtraError, kind


@dataclass(frozen=True)
class Checkpoints:
    """Saves a run while it goes on; the same script, started again, finishes the same run.

    `Trainer.fit(..., checkpoints=...)` begins with what it finds in the directory: the state, the
    place in the data, the history and the callbacks are as they were, and what is left of the run
    comes out as it would have, bit for bit. A run that was finished is returned as it is. A
    checkpoint is written by Orbax, in the background, and is there as a whole or not at all.

    An interval of `None` does not count; whichever comes first saves. In any case a run is saved
    before its first update, and at its end.

    **Arguments:**

    - `directory`: of this run alone; made if it is missing.
    - `every_seconds`: training does not wait: one that is still being written is not overtaken.
    - `every_steps`: save after each update whose number is a multiple of this. Training waits for
      the checkpoint before.
    - `every_epochs`: the same, for epochs, with validation and callbacks done.
    - `keep`: how many checkpoints to keep, the latest; one alone is not safe from a damaged disk.

    **Raises:** `MissingExtraError` without Orbax; `ArgumentError` if an argument is none of these.
    """

    directory: str | os.PathLike[str]
    _: KW_ONLY
    every_seconds: float | None = 60
    every_steps: int | None = None
    every_epochs: int | None = None
    keep: int = 2

    def __post_init__(self):
        if not isinstance(self.directory, str | os.PathLike):
            raise ArgumentError(
                f"directory is {kind(self.directory)}; a path is needed, as a str or a Path."
            )
        seconds = self.every_seconds
        if seconds is not None and (not isinstance(seconds, Real) or not 0 <= seconds < math.inf):
            raise ArgumentError(
                f"every_seconds is {kind(seconds)}; a finite number from 0 is needed, or None."
            )
        for name in ("every_steps", "every_epochs"):
            if (interval := getattr(self, name)) is not None:
                whole_number(name, interval, at_least=1)
        whole_number("keep", self.keep, at_least=1)
        orbax()

    @property
    def path(self) -> Path:
        """Where the checkpoints are."""
        return Path(self.directory).expanduser()


def checked_checkpoints(checkpoints: Any) -> Checkpoints | None:
    """What `fit` was given as its checkpoints; `ArgumentError` if it is none."""
    if checkpoints is None or isinstance(checkpoints, Checkpoints):
        return checkpoints
    path = checkpoints if isinstance(checkpoints, str) else "runs/1"
    raise ArgumentError(
        f"checkpoints is {kind(checkpoints)}; a vernal.Checkpoints is needed."
        f"\n  Try checkpoints=vernal.Checkpoints({path!r})."
    )


def orbax():
    """Orbax's module; `MissingExtraError` if it is not installed."""
    try:
        import orbax.checkpoint
    except ImportError as error:
        raise MissingExtraError(
            "vernal.Checkpoints needs Orbax, which is not installed."
            "\n  Run: pip install 'vernal[checkpoint]'"
        ) from error
    return orbax.checkpoint
