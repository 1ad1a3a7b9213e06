"""What is saved of a run, and when: state, record, callbacks."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from vernal import _hosts
from vernal._training import hooks
from vernal._training.checkpointer import Beginning, Checkpointer, RunState
from vernal._training.chunks import TrainingRun
from vernal._training.interrupt import Interrupt
from vernal._training.progress import report_finished
from vernal._training.recorder import Recorder


class Saving:
    """What is saved of a run, and when.

    Args:
        checkpointer: Where the run is saved.
        beginning: What the run began with.
        run: The run in progress.
        recorder: Holds what the run has measured.
        callbacks: The run's callbacks.
        epochs: How many epochs the whole run is to train.

    Attributes:
        run: The run in progress.
        recorder: Holds what the run has measured.
        callbacks: The run's callbacks.
        every_epochs: Epochs between two checkpoints; or `None`.
        last_epoch: Number of the epoch that the run ends before.
        pending: Whether the last epoch is not validated yet, nor seen by the callbacks.
        stopped: Whether a callback has ended the run.
        saved_steps: Number of the run's steps when it was saved last.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        beginning: Beginning,
        run: TrainingRun,
        recorder: Recorder,
        callbacks: list[Any],
        *,
        epochs: int,
    ):
        self._checkpointer = checkpointer
        self._beginning = beginning
        self.run = run
        self.recorder = recorder
        self.callbacks = callbacks
        self._since = time.perf_counter()
        # What the whole run began with.
        self._first_step = run.step - recorder.steps
        self._first_epoch = run.epoch - recorder.epochs
        self.last_epoch = self._first_epoch + epochs
        self.every_epochs = checkpointer.every_epochs
        self.pending = False
        self.stopped = False
        self.saved_steps = recorder.steps

    def begin(self, saved: RunState | None) -> None:
        """Give the callbacks what was saved of them; the others begin.

        A run that a callback ended goes on if more epochs are asked for than before, or if the
        callback says so.

        Args:
            saved: The run as it was saved; `None` if it is new.
        """
        if saved is not None:
            self.pending = saved.pending
            self.stopped = saved.stopped and self.last_epoch <= saved.last_epoch
        callback_states = iter(() if saved is None else saved.callbacks)
        for callback in self.callbacks:
            kept = next(callback_states, None) if hooks.saves(callback) else None
            start = hooks.hook(callback, "start")
            if kept is not None:
                self.stopped &= callback.load_state_dict(kept[1]) is not True
            elif start is not None:
                start()

        if saved is None:
            return
        is_over = self.stopped or self.run.epoch >= self.last_epoch
        if not is_over or self.pending:
            self._checkpointer.check_room()
        else:
            trained, epochs = self.recorder.epochs, self.last_epoch - self._first_epoch
            report_finished(self._checkpointer.path, trained, epochs, stopped=self.stopped)

    def save(self) -> None:
        """Save the run as it is now."""
        if self._checkpointer.path is None:
            return

        saving = [callback for callback in self.callbacks if hooks.saves(callback)]
        now = RunState(
            state=self.run.state_until_next_chunk(),
            last_epoch=self.last_epoch,
            record=self.recorder.kept(time.perf_counter() - self._since),
            callbacks=[(type(callback).__name__, callback.state_dict()) for callback in saving],
            pending=self.pending,
            stopped=self.stopped,
            **self._beginning.kept_of_data(),
        )
        self._checkpointer.save(now)
        self.saved_steps = self.recorder.steps

    def save_if_due(self) -> None:
        """Save the run if it is time to."""
        is_due = self._checkpointer.due(step=self.run.step, epoch=self.run.epoch)
        if _hosts.first_ones(self.run.mesh, is_due):
            self.save()

    def save_now(self) -> None:
        """Save the run, and wait until that is written."""
        self.save()
        self._checkpointer.wait()

    @contextlib.contextmanager
    def when_interrupted(self, interrupt: Interrupt) -> Iterator[None]:
        """Save a run that a signal ends, unless that came in the midst of a step."""
        try:
            yield
        except (KeyboardInterrupt, Exception) as error:
            # The signal may have ended what a loader needs, too.
            if not interrupt.ends_process and not isinstance(error, KeyboardInterrupt):
                raise
            self.recorder.add([])  # a metric's code may have been interrupted
            made = self.run.step - self._first_step, self.run.epoch - self._first_epoch
            recorded = self.recorder.steps, self.recorder.epochs
            if self.run.is_between_steps and made == recorded:
                self.save_now()
            raise
