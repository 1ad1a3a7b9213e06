"""The checkpoints of one run: where and how often; restored at its beginning, written later."""

import contextlib
import math
import os
import shutil
import time
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

from vernal import _hosts, errors
from vernal._checkpointing import durable
from vernal._checkpointing.format import is_checkpoint, newest_good, orbax_args, read_run
from vernal._checkpointing.same_run import check_same_run, described
from vernal._checkpointing.storage import for_orbax, orbax
from vernal._training.checkpointer import Beginning, Checkpointer, RunState

# How much of a checkpoint is written at once, in bytes, unless it holds larger arrays.
_FIRST_MOST_BYTES = 2**26


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

    Example:
        >>> checkpoints = vernal.Checkpoints("runs/line", every_epochs=5)
        >>> state, history = trainer.fit(model, (x, y), epochs=10, checkpoints=checkpoints)
        >>> state, history = trainer.fit(model, (x, y), epochs=20, checkpoints=checkpoints)
        >>> len(history.epochs["loss"])
        20
    """

    directory: str | os.PathLike[str]
    _: KW_ONLY
    every_seconds: float | None = 60
    every_steps: int | None = None
    every_epochs: int | None = None
    keep: int = 2

    def __post_init__(self):
        object.__setattr__(self, "directory", errors.checked_path("directory", self.directory))
        if self.every_seconds is not None:
            errors.check_finite("every_seconds", self.every_seconds, "Try every_seconds=60.")
        for name in ("every_steps", "every_epochs"):
            if getattr(self, name) is not None:
                errors.whole_number(name, getattr(self, name), at_least=1)
        errors.whole_number("keep", self.keep, at_least=1)
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
        return Manager(self)


class Manager:
    """Restores and saves a run; the `Checkpointer` that `Checkpoints.open` makes.

    Args:
        choices: The directory, which is made if it is missing, and when to save.

    Raises:
        CheckpointError: If the directory cannot be used.
    """

    def __init__(self, choices: Checkpoints):
        self.path = choices.path
        self._every_seconds = math.inf if choices.every_seconds is None else choices.every_seconds
        self.every_steps = choices.every_steps
        self.every_epochs = choices.every_epochs
        # How far the run was at the last checkpoint, and when that was begun. Before the first one,
        # there is something new to save.
        self._last = (-1, -1, False, False)
        self._step = 0  # of the checkpoint that is written
        self._number = 0  # of the checkpoint that was begun last
        self._time = time.monotonic()
        self._described: dict[str, Any] = {}  # what the run began with
        self._keep = choices.keep
        self._has_old = False  # whether there may be more checkpoints than are to be kept
        self._most_bytes = _FIRST_MOST_BYTES  # that Orbax writes at once
        self._exits = contextlib.ExitStack()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if _hosts.is_first():
                self._exits.enter_context(durable.locked(self.path))
            self._link = self._exits.enter_context(for_orbax(self.path))
            try:
                self._orbax = self._opened()
            except ValueError:
                _set_damaged_notes_aside(self._link)
                self._orbax = self._opened()
            self._exits.callback(lambda: self._orbax.close())
        except errors.CheckpointError:
            self._exits.close()
            raise
        except Exception as error:
            self._exits.close()
            problem = f"{errors.shown(self.path)} cannot hold checkpoints"
            message = f"{problem}: {errors.first_line(error)}.\n  Pass a writable directory."
            raise errors.CheckpointError(message) from error

    def _opened(self) -> Any:
        """Open the directory by Orbax."""
        ocp = orbax()
        options = ocp.CheckpointManagerOptions(
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(
                # If a directory cannot be made, threads would wait for it for minutes.
                create_directories_asynchronously=False,
                # Called by the thread that writes, before the directory gets its name.
                post_finalization_callback=self._sync_unnamed,
            ),
        )
        # Orbax copies each array that it is writing.
        arrays = ocp.StandardCheckpointHandler(save_concurrent_gb=self._most_bytes / 10**9)
        handlers = {"arrays": arrays, "description": ocp.JsonCheckpointHandler()}
        return ocp.CheckpointManager(self._link, options=options, item_handlers=handlers)

    def _make_room_for(self, nbytes: int) -> None:
        """Let Orbax write arrays of so many bytes: it takes none that is above its limit."""
        if nbytes >= self._most_bytes:
            self._orbax.close()
            self._most_bytes = 2 * nbytes
            self._orbax = self._opened()

    def restore(self, beginning: Beginning) -> RunState | None:
        """Read the newest good checkpoint, and rename newer ones, which are damaged.

        Args:
            beginning: What the run begins with if there is no checkpoint. A restored state has the
                structure of its state, its kinds of arrays and their devices.

        Returns:
            The run as it was saved; `None` if there is no checkpoint.

        Raises:
            CheckpointError: If the checkpoint belongs to another run, or all are damaged.
        """
        self._described = described(beginning)
        found = newest_good(self.path, lambda path: read_run(path, beginning.state), rename=True)
        if found is None:
            return None
        self._newest, (run, before) = found
        _hosts.wait_for_all("restored")
        check_same_run(before, self._described, self.path)
        self._orbax.reload()  # damaged ones have other names now
        self._last, self._time = _progress(run), time.monotonic()
        return run

    def check_room(self) -> None:
        """Check that another checkpoint fits beside the newest one.

        Raises:
            CheckpointError: If it does not.
        """
        size = sum(path.stat().st_size for path in self._newest.rglob("*") if path.is_file())
        free = shutil.disk_usage(self.path).free
        if free < size or not os.access(self.path, os.W_OK):
            raise errors.CheckpointError(
                f"{errors.shown(self.path)} has no room for another checkpoint of {size:,} bytes, "
                f"or cannot be written to; {free:,} are free.\n  Free some space, and start again."
            )

    def due(self, *, step: int, epoch: int) -> bool:
        """Return whether it is time to save.

        Raises:
            CheckpointError: If the last checkpoint could not be written.
        """
        writing = self._orbax.is_saving_in_progress()
        if not writing:
            self.wait()
        intervals = self.every_steps, self.every_epochs
        for every, before, now in zip(intervals, self._last[:2], (step, epoch), strict=True):
            # Is there a multiple of `every` after `before`, up to `now`?
            if every is not None and now // every > before // every:
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
        self._step, self._time = int(run.state.step), time.monotonic()
        args, most_bytes = orbax_args(run, self._described)
        try:
            self._make_room_for(most_bytes)
            # The number of one that an interrupt cut off is taken, too.
            self._number = max([self._number, *self._orbax.all_steps()]) + 1
            self._orbax.save(self._number, args=args, force=True)
        except Exception as error:
            raise self._not_written(error) from error
        self._last, self._has_old = _progress(run), True

    def wait(self) -> None:
        """Wait until the last checkpoint is written.

        Raises:
            CheckpointError: If it could not be written.
        """
        try:
            self._orbax.wait_until_finished()
            self._orbax.check_for_errors()
            self._delete_old()
        except Exception as error:
            raise self._not_written(error) from error

    def _sync_unnamed(self) -> None:
        """Have the disk hold the checkpoint that is written, before it gets its name."""
        for path in self.path.glob("*.orbax-checkpoint-tmp*"):
            durable.sync_all(path)

    def _delete_old(self) -> None:
        """Delete checkpoints that are not to be kept, once the newest one will not be lost."""
        if not self._has_old or not _hosts.is_first():
            return
        self._has_old = False
        durable.sync(self.path)
        ours = [path for path in self.path.iterdir() if is_checkpoint(path)]
        for path in sorted(ours, key=lambda path: int(path.name))[: -self._keep]:
            shutil.rmtree(path)

    def close(self) -> None:
        """Wait for what is being written, and end Orbax's threads. Never raises."""
        with contextlib.suppress(Exception), self._exits:
            self.wait()

    def _not_written(self, error: Exception) -> errors.CheckpointError:
        return errors.CheckpointError(
            f"the checkpoint of step {self._step:,} could not be written to "
            f"{errors.shown(self.path)}: {errors.first_line(error)}.\n  Free some space, or make "
            "the directory writable, and start the script again: it resumes from the one before."
        )


def _set_damaged_notes_aside(directory: Path) -> None:
    """Rename what Orbax noted of each checkpoint, such as its time, where that is damaged.

    Orbax reads the notes on all checkpoints before it opens a directory. It fails where they make
    no sense, and can do without them; Vernal needs none.
    """
    for checkpoint in orbax().path.step.standard_name_format().find_all(directory):
        try:
            _ = checkpoint.commit_timestamp
        except ValueError:
            notes = Path(checkpoint.path, "_CHECKPOINT_METADATA")
            notes.rename(notes.with_name(f"damaged-{notes.name}"))


def _progress(run: RunState) -> tuple[int, int, bool, bool]:
    return int(run.state.step), int(run.state.epoch), run.pending, run.stopped
