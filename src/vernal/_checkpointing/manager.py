"""The checkpoints of one run: restored at its beginning, written while it goes on."""

import contextlib
import math
import os
import shutil
import time
from dataclasses import replace

from vernal._checkpointing.config import Checkpoints
from vernal._checkpointing.format import newest_good, orbax_args, read_run
from vernal._checkpointing.storage import for_orbax, orbax
from vernal._training.checkpointer import RunState
from vernal._training.state import TrainState
from vernal.errors import CheckpointError, first_line, shown


class Manager:
    """Restores and saves a run; the `Checkpointer` that `Checkpoints.open` makes.

    Args:
        choices: The directory, which is made if it is missing, and when to save.

    Raises:
        CheckpointError: If the directory cannot be used.
    """

    def __init__(self, choices: Checkpoints):
        self.path = choices.path
        seconds = choices.every_seconds
        self._every_seconds = math.inf if seconds is None else seconds
        self.every_steps = choices.every_steps
        self.every_epochs = choices.every_epochs
        # How far the run was at the last checkpoint, and when that was begun. Before the first one,
        # a checkpoint is due.
        self._last = (-1, -1, False, False)
        self._time = time.monotonic()
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

    def restore(self, start: TrainState) -> RunState | None:
        """Read the newest good checkpoint, and rename newer ones, which are damaged.

        Args:
            start: The state that the run begins with if there is no checkpoint. A restored state
                has its structure, its kinds of arrays and their devices.

        Returns:
            The run as it was saved; `None` if there is no checkpoint.

        Raises:
            CheckpointError: If the checkpoint belongs to another run, if all checkpoints are
                damaged, or if there is no room for another one.
        """
        template = replace(start, data_state=None)
        found = newest_good(self.path, lambda path: read_run(path, template), rename_damaged=True)
        if found is None:
            return None
        newest, run = found
        self._orbax.reload()  # damaged ones have other names now
        # Where there is no checkpoint, saving the first one shows whether it fits.
        size = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
        free = shutil.disk_usage(self.path).free
        if free < size or not os.access(self.path, os.W_OK):
            raise CheckpointError(
                f"{shown(self.path)} has no room for another checkpoint of {size:,} bytes: "
                f"{free:,} bytes are free, or the directory cannot be written to.\n  Free some "
                "space, or make the directory writable, and start the script again."
            )
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
        if _passed(self.every_steps, self._last[0], step):
            return True
        if _passed(self.every_epochs, self._last[1], epoch):
            return True
        return not writing and time.monotonic() - self._time >= self._every_seconds

    def save(self, run: RunState) -> None:
        """Begin to write a checkpoint in the background, if there is anything new.

        Raises:
            CheckpointError: If this checkpoint, or the one before, cannot be written.
        """
        if _progress(run) == self._last:
            return
        self.wait()  # an error names the step of the checkpoint before
        self._last, self._time = _progress(run), time.monotonic()
        args = orbax_args(run)
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
            f"the checkpoint of step {self._last[0]:,} could not be written to "
            f"{shown(self.path)}: {first_line(error)}.\n  Free some space, or make the directory "
            "writable, and start the script again: it resumes from the checkpoint before."
        )


def _progress(run: RunState) -> tuple[int, int, bool, bool]:
    return int(run.state.step), int(run.state.epoch), run.pending, run.stopped


def _passed(every: int | None, before: int, now: int) -> bool:
    """Return whether there is a multiple of `every` after `before`, up to `now`."""
    return every is not None and now // every > before // every
