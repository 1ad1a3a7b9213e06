"""A run's checkpoints: what was saved before, and what is saved while it goes on."""

import contextlib
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vernal._checkpointing import format as _stored
from vernal._checkpointing.config import Checkpoints, orbax
from vernal._checkpointing.run_state import Saved, read_run, written
from vernal._training.chunks import Loop
from vernal._training.history import Recorder
from vernal._training.jit import pack
from vernal._training.state import TrainState, counts, with_data_state
from vernal.errors import CheckpointError, first_line


class Unsaved:
    """A run without checkpoints: there is nothing to go on from, and nothing is written."""

    path: Path | None = None  # where checkpoints are
    pending = False  # an epoch was saved before it was validated, and seen by the callbacks
    stopped = False  # a callback had ended the run that was saved
    every_steps: int = sys.maxsize  # a chunk ends where a checkpoint is due
    every_epochs: int | None = None

    def __enter__(self):
        return self

    def __exit__(self, kind, *_) -> None:
        pass

    def left(self, start: Any, epochs: int) -> tuple[Any, int]:
        """Of a run of so many epochs what to train, and how many are left."""
        return start, epochs

    def go_on(self, loop: Loop, recorder: Recorder, callbacks: list) -> list:
        """Give back what was saved. **Returns:** the callbacks that begin."""
        return callbacks

    def due(self, state: TrainState) -> bool:
        """Whether it is time to save; `CheckpointError` if what was begun has failed."""
        return False

    def save(
        self,
        loop: Loop,
        recorder: Recorder,
        callbacks: list,
        began: float,
        *,
        pending: bool = False,
        stopped: bool = False,
    ) -> None:
        """Begin to write a checkpoint, in the background, if there is anything new.

        **Raises:** `CheckpointError` if it cannot be written, or the one before could not.
        """

    def wait(self) -> None:
        """Wait for what is being written; `CheckpointError` if it cannot be."""


class Saver(Unsaved):
    """Reads a run's checkpoints, and writes them.

    **Arguments:**

    - `choices`: how often, and where.
    - `state`: what the run begins with where there is no checkpoint.
    - `cut`: how the data is cut into batches, by the names that users know.

    **Raises:** `CheckpointError` if the directory cannot be used, holds checkpoints of another run,
    or only damaged ones.
    """

    def __init__(self, choices: Checkpoints, state: TrainState, cut: dict[str, Any]):
        self.path = self._directory = choices.path
        self._every_seconds = choices.every_seconds
        self.every_steps = choices.every_steps or sys.maxsize
        self.every_epochs = choices.every_epochs
        self._cut = cut
        self._template = pack(with_data_state(state, None))
        self._began = list(counts(self._template.arrays))
        ocp = orbax()
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(
                self._directory.absolute(),
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=choices.keep,
                    cleanup_tmp_directories=True,
                    # If one could not be made, threads would wait for it for minutes.
                    async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
                ),
            )
        except Exception as error:
            raise CheckpointError(
                f"{self.path} cannot hold checkpoints: {first_line(error)}."
                "\n  Pass a directory that you may write to."
            ) from error
        self._saved = saved = self._restored()
        latest = saved.state if saved else state
        # When, at which step and epoch, the latest was begun; and what it is a checkpoint of.
        self._latest = time.monotonic(), int(latest.step), int(latest.epoch)
        self._mark = saved and (int(latest.step), saved.pending, saved.stopped)
        if saved:
            self.pending, self.stopped = saved.pending, saved.stopped
            self._check_room()

    def __exit__(self, kind, *_) -> None:
        # An error on its way is not hidden by one of a checkpoint.
        with contextlib.suppress(*([Exception] if kind else [])):
            self.wait()
        with contextlib.suppress(Exception):
            self._manager.close()

    def left(self, start: Any, epochs: int) -> tuple[Any, int]:
        """Of a run of so many epochs what to train, and how many are left."""
        if self._saved is None:
            return start, epochs
        state = self._saved.state
        left = max(0, self._saved.began[1] + epochs - int(state.epoch))
        return state, 0 if self.stopped else left

    def go_on(self, loop: Loop, recorder: Recorder, callbacks: list) -> list:
        """Give back what was saved. **Returns:** the callbacks that begin.

        **Raises:** `CheckpointError` if the callbacks, or the data, are others.
        """
        self._cut = {**self._cut, "batches an epoch": loop.length}
        if self._saved is None:
            return callbacks
        now = {**self._cut, "callbacks": [type(c).__name__ for c in keeping(callbacks)]}
        kept = {**self._saved.cut, "callbacks": [name for name, _ in self._saved.callbacks]}
        for what, before in kept.items():
            if before != now[what]:
                raise CheckpointError(
                    f"the run in {self.path} was trained with {what} = {before!r}; now it is "
                    f"{now[what]!r}.\n  Go on as it was, or pass another directory for another run."
                )
        for callback, (_, its) in zip(keeping(callbacks), self._saved.callbacks, strict=True):
            callback.load_state_dict(its)
        recorder.restore(self._saved.recorder, loop.averages)
        return [callback for callback in callbacks if not hasattr(callback, "state_dict")]

    def due(self, state: TrainState) -> bool:
        """Whether it is time to save; `CheckpointError` if what was begun has failed."""
        if not self._manager.is_saving_in_progress():
            self.wait()
        when, step, epoch = self._latest
        passed = lambda every, last, now: every is not None and int(now) // every > last // every
        return (
            passed(self.every_steps, step, state.step)
            or passed(self.every_epochs, epoch, state.epoch)
            or (
                self._every_seconds is not None
                and time.monotonic() - when >= self._every_seconds
                and not self._manager.is_saving_in_progress()
            )
        )

    def save(
        self,
        loop: Loop,
        recorder: Recorder,
        callbacks: list,
        began: float,
        *,
        pending: bool = False,
        stopped: bool = False,
    ) -> None:
        """Begin to write a checkpoint, in the background, if there is anything new.

        **Raises:** `CheckpointError` if it cannot be written, or the one before could not.
        """
        state = loop.saved()
        step, epoch = int(state.step), int(state.epoch)
        mark = step, bool(pending), stopped
        if mark == self._mark:
            return
        self.wait()  # an error is of the checkpoint before, and names its step
        self._latest, self._mark = (time.monotonic(), step, epoch), mark
        run = Saved(
            *(state, self._began, self._cut, recorder.kept(time.perf_counter() - began)),
            [(type(callback).__name__, callback.state_dict()) for callback in keeping(callbacks)],
            *(bool(pending), stopped),
        )
        parts = written(run)
        try:
            number = max(self._manager.all_steps(), default=0) + 1
            self._manager.save(number, args=parts, force=True)
        except Exception as error:
            raise self._unwritten(error) from error

    def wait(self) -> None:
        """Wait for what is being written; `CheckpointError` if it cannot be."""
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            raise self._unwritten(error) from error

    def _unwritten(self, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"the checkpoint of step {self._latest[1]:,} could not be written to {self.path}: "
            f"{first_line(error)}.\n  Those before it are as they were. Make room, or see to the "
            "directory, and start the script again: it goes on from the last one."
        )

    def _check_room(self) -> None:
        """See whether another checkpoint can be written; a run's first one is, before it trains."""
        newest = _stored.checkpoints(self._directory)[0]
        size = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
        free = shutil.disk_usage(self._directory).free
        if free < size or not os.access(self._directory, os.W_OK):
            raise CheckpointError(
                f"{self.path} has no room for another checkpoint of {size:,} bytes: {free:,} are "
                "free, or it cannot be written to.\n  Make room, and start the script again."
            )

    def _restored(self) -> Saved | None:
        """The run as its newest good checkpoint has it. Newer ones are put aside."""
        damaged: list[tuple[Path, str]] = []
        for number in sorted(self._manager.all_steps(), reverse=True):
            checkpoint = self._directory / str(number)
            try:
                saved = read_run(checkpoint, self._template, self._began)
            except CheckpointError:
                raise
            except Exception as error:
                damaged.append((checkpoint, first_line(error)))
                continue
            self._put_aside(damaged, checkpoint)
            return saved
        if damaged:
            raise CheckpointError(
                f"of the checkpoints in {self.path} none is whole: {damaged[0][0].name} is damaged "
                f"({damaged[0][1]}).\n  Pass another directory, to begin anew."
            )
        return None

    def _put_aside(self, damaged: list[tuple[Path, str]], used: Path) -> None:
        for path, why in damaged:
            aside = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            warnings.warn(
                f"the checkpoint {path} is damaged ({why}): it is {aside.name} now, and training "
                f"goes on from {used.name}, the one before.",
                RuntimeWarning,
                stacklevel=6,
            )
        if damaged:
            self._manager.reload()


def keeping(callbacks: list) -> list:
    """The callbacks that keep something of a run."""
    return [callback for callback in callbacks if hasattr(callback, "state_dict")]


def saver_for(
    checkpoints: Checkpoints | None, begin: Callable[[], TrainState], cut: dict[str, Any]
) -> Unsaved:
    """What saves a run that begins with a state, if it is to be saved."""
    return Unsaved() if checkpoints is None else Saver(checkpoints, begin(), cut)
