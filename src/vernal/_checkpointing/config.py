"""Checkpoints: how often a run is saved, and where."""

import os
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from vernal._checkpointing.storage import orbax
from vernal._training.checkpointer import Checkpointer
from vernal.errors import check_finite, checked_path, whole_number


@dataclass(frozen=True)
class Checkpoints:
    """Saves a run while it goes on. The same script, started again, resumes the run.

    `Trainer.fit(..., checkpoints=...)` begins with what it finds in the directory. The state, the
    place in the data, the history and the callbacks are as they were, so the rest of the run gives
    the same bits as without the break. A finished run is returned as it is. Orbax writes each
    checkpoint in the background, and writes it whole or not at all.

    Whichever interval passes first saves; `None` switches an interval off. In any case `fit` saves
    before the first step and at the end.

    Args:
        directory: The directory of this run alone; made if it is missing. `~` is expanded, and a
            relative path counts from the working directory of now.
        every_seconds: Save after so many seconds, default 60. Training does not wait: if the last
            checkpoint is still being written, the next one waits for its end.
        every_steps: Save after each step whose number is a multiple of this. Training waits for
            the checkpoint before.
        every_epochs: Save after each epoch whose number is a multiple of this, once it is
            validated and seen by the callbacks. Training waits for the checkpoint before.
        keep: How many checkpoints to keep, default 2. The older ones are deleted. With one alone,
            a damaged disk may cost the run.

    Raises:
        MissingExtraError: If Orbax is not installed.
        ArgumentError: If `directory` is not a path of the file system, an interval is not a number
            in its range, or `keep` is below 1.
    """

    directory: str | os.PathLike[str]
    _: KW_ONLY
    every_seconds: float | None = 60
    every_steps: int | None = None
    every_epochs: int | None = None
    keep: int = 2

    def __post_init__(self):
        object.__setattr__(self, "directory", checked_path("directory", self.directory))
        if self.every_seconds is not None:
            hint = "Try every_seconds=60, or None to leave this interval out."
            check_finite("every_seconds", self.every_seconds, hint)
        if self.every_steps is not None:
            whole_number("every_steps", self.every_steps, at_least=1)
        if self.every_epochs is not None:
            whole_number("every_epochs", self.every_epochs, at_least=1)
        whole_number("keep", self.keep, at_least=1)
        orbax()

    @property
    def path(self) -> Path:
        """The directory of the checkpoints."""
        return Path(self.directory)

    def open(self) -> Checkpointer:
        """Open the directory, to restore a run and to save it. `fit` calls this.

        Raises:
            CheckpointError: If the directory cannot be used.
        """
        from vernal._checkpointing.manager import Manager  # it imports this module

        return Manager(self)
