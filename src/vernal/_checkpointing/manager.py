"""The checkpoints of one run: restored at its beginning, written while it goes on."""

import contextlib
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from vernal._checkpointing.config import Checkpoints
from vernal._checkpointing.format import newest_good, orbax_args, read_run
from vernal._checkpointing.same_run import check_same_run, described
from vernal._checkpointing.storage import for_orbax, orbax
from vernal._training.checkpointer import Beginning, RunState
from vernal.errors import CheckpointError, first_line, shown


class _Progress(NamedTuple):
    """How far a run was when it was saved."""

    step: int
    epoch: int
    pending: bool
    stopped: bool


class Manager:
    """Restores and saves a run; the `Checkpointer` that `Checkpoints.open` makes.

    Args:
        choices: The directory, which is made if it is missing, and when to save.

    Raises:
        CheckpointError: If the directory cannot be used.
    """

    def __init__(self, choices: Checkpoints):
        self.path = choices.path
        self.every_seconds = choices.every_seconds
        self.every_steps = choices.every_steps
        self.every_epochs = choices.every_epochs
        # The last checkpoint, and when it was begun. Before the first one, a checkpoint is due.
        self._last = _Progress(step=-1, epoch=-1, pending=False, stopped=False)
        self._time = time.monotonic()
        self._described: dict[str, Any] = {}  # what the run began with
        self._exits = contextlib.ExitStack()
        ocp = orbax()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=choices.keep,
            cleanup_tmp_directories=True,
            # If a directory cannot be made, threads would wait for it for minutes.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            link = self._exits.enter_context(for_orbax(self.path))
            self._orbax = ocp.CheckpointManager(link, options=options)
        except Exception as error:
            self._exits.close()
            raise CheckpointError(
                f"{shown(self.path)} cannot hold checkpoints: {first_line(error)}."
                "\n  Pass a directory that you may write to."
            ) from error

    def restore(self, beginning: Beginning) -> RunState | None:
        """Read the newest good checkpoint, and rename newer ones, which are damaged.

        Args:
            beginning: What the run begins with if there is no checkpoint. A restored state has the
                structure of its state, its kinds of arrays and their devices.

        Returns:
            The run as it was saved; `None` if there is no checkpoint.

        Raises:
            CheckpointError: If the checkpoint belongs to another run, if all checkpoints are
                damaged, or if there is no room for another one.
        """
        self._described = described(beginning)
        template = replace(beginning.state, data_state=None)
        found = newest_good(self.path, lambda path: read_run(path, template), rename_damaged=True)
        if found is None:
            return None
        newest, (run, before) = found
        check_same_run(before, self._described, self.path)
        self._orbax.reload()  # damaged ones have other names now
        self._check_room(newest)
        self._last, self._time = _progress(run), time.monotonic()
        return run

    def due(self, *, step: int, epoch: int) -> bool:
        """Return whether it is time to save.

        Raises:
            CheckpointError: If the last checkpoint could not be written.
        """
        writing = self._orbax.is_saving_in_progress()
        if not writing:
            self.wait()
        if _passed(self.every_steps, self._last.step, step):
            return True
        if _passed(self.every_epochs, self._last.epoch, epoch):
            return True
        if self.every_seconds is None or writing:
            return False
        return time.monotonic() - self._time >= self.every_seconds

    def save(self, run: RunState) -> None:
        """Begin to write a checkpoint in the background, if there is anything new.

        Raises:
            CheckpointError: If this checkpoint, or the one before, cannot be written.
        """
        if _progress(run) == self._last:
            return
        self.wait()  # an error names the step of the checkpoint before
        self._last, self._time = _progress(run), time.monotonic()
        args = orbax_args(run, self._described)
        try:
            number = max(self._orbax.all_steps(), default=0) + 1
            self._orbax.save(number, args=args, force=True)
        except Exception as error:
            raise self._not_written(error) from error

    def wait(self) -> None:
        """Wait until the last checkpoint is written.

        Raises:
            CheckpointError: If it could not be written.
        """
        try:
            self._orbax.wait_until_finished()
            self._orbax.check_for_errors()
        except Exception as error:
            raise self._not_written(error) from error

    def close(self) -> None:
        """Wait for what is being written, and end Orbax's threads. Never raises."""
        with contextlib.suppress(Exception):
            self.wait()
        with contextlib.suppress(Exception):
            self._orbax.close()
        self._exits.close()

    def _not_written(self, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"the checkpoint of step {self._last.step:,} could not be written to "
            f"{shown(self.path)}: {first_line(error)}.\n  Earlier checkpoints are whole. Free some "
            "space, or make the directory writable, and start the script again: it resumes from "
            "the last checkpoint."
        )

    def _check_room(self, newest: Path) -> None:
        """Check that another checkpoint fits; without one to resume, saving the first one does."""
        size = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
        free = shutil.disk_usage(self.path).free
        if free < size or not os.access(self.path, os.W_OK):
            raise CheckpointError(
                f"{shown(self.path)} has no room for another checkpoint of {size:,} bytes: "
                f"{free:,} bytes are free, or the directory cannot be written to.\n  Free some "
                "space, or make the directory writable, and start the script again."
            )


def _progress(run: RunState) -> _Progress:
    return _Progress(int(run.state.step), int(run.state.epoch), run.pending, run.stopped)


def _passed(every: int | None, before: int, now: int) -> bool:
    """Return whether there is a multiple of `every` after `before`, up to `now`."""
    return every is not None and now // every > before // every
