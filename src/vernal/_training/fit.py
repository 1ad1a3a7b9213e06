"""The loop behind `fit`: train, validate, call back, save."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from vernal import _arguments, _hosts
from vernal._training import hooks
from vernal._training.checkpointer import Checkpointer, RunState
from vernal._training.chunks import TrainingRun
from vernal._training.epochs import Epoch
from vernal._training.interrupt import Interrupt
from vernal._training.progress import Progress, report_finished
from vernal._training.recorder import Recorder
from vernal.errors import NonFiniteError


class Saving:
    """What is saved of a run, and when.

    Args:
        checkpointer: Where the run is saved.
        run: The run in progress.
        recorder: Holds what the run has measured.
        callbacks: The run's callbacks.
        epochs: How many epochs the whole run is to train.

    Attributes:
        last_epoch: Number of the epoch that the run ends before.
        pending: Whether the last epoch is not validated yet, nor seen by the callbacks.
        stopped: Whether a callback has ended the run.
        saved_steps: Number of the run's steps when it was saved last.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        run: TrainingRun,
        recorder: Recorder,
        callbacks: list[Any],
        *,
        epochs: int,
    ):
        self._checkpointer = checkpointer
        self._run = run
        self._recorder = recorder
        self._callbacks = callbacks
        self._since = time.perf_counter()
        # What the whole run began with.
        self._first_step = run.step - recorder.steps
        self._first_epoch = run.epoch - recorder.epochs
        self.last_epoch = self._first_epoch + epochs
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
        for callback in self._callbacks:
            start = hooks.hook(callback, "start")
            if saved is not None and hooks.saves(callback):
                _, state = next(callback_states)
                self.stopped &= callback.load_state_dict(state) is not True
            elif start is not None:
                start()

        is_over = self.stopped or self._run.epoch >= self.last_epoch
        if saved is not None and is_over and not self.pending:
            trained, epochs = self._recorder.epochs, self.last_epoch - self._first_epoch
            report_finished(self._checkpointer.path, trained, epochs, stopped=self.stopped)

    def save(self) -> None:
        """Save the run as it is now."""
        if self._checkpointer.path is None:
            return

        saving = [callback for callback in self._callbacks if hooks.saves(callback)]
        now = RunState(
            state=self._run.state_until_next_chunk(),
            last_epoch=self.last_epoch,
            record=self._recorder.kept(time.perf_counter() - self._since),
            callbacks=[(type(callback).__name__, callback.state_dict()) for callback in saving],
            pending=self.pending,
            stopped=self.stopped,
        )
        self._checkpointer.save(now)
        self.saved_steps = self._recorder.steps

    def save_if_due(self) -> None:
        """Save the run if it is time to."""
        is_due = self._checkpointer.due(step=self._run.step, epoch=self._run.epoch)
        if _hosts.first_ones(self._run.mesh, is_due):
            self.save()

    def save_now(self) -> None:
        """Save the run, and wait until that is written."""
        self.save()
        self._checkpointer.wait()

    @contextlib.contextmanager
    def when_interrupted(self) -> Iterator[None]:
        """Save a run that a `KeyboardInterrupt` ends, unless it came in the midst of a step."""
        try:
            yield
        except KeyboardInterrupt:
            self._recorder.add([])  # a metric's code may have been interrupted
            made = self._run.step - self._first_step, self._run.epoch - self._first_epoch
            recorded = self._recorder.steps, self._recorder.epochs
            if self._run.is_between_steps and made == recorded:
                self.save_now()
            raise


def train(
    run: TrainingRun,
    recorder: Recorder,
    saving: Saving,
    *,
    validate: Callable[[], dict[str, float]] | None,
    validate_every: int,
    every_epochs: int | None,
    callbacks: list[Callable],
    names: list[str],
    progress: Progress,
    interrupt: Interrupt,
) -> None:
    """Train to the end of the run, or until a callback or the user ends it.

    Args:
        run: The run in progress.
        recorder: Takes what is measured.
        saving: Saves the run.
        validate: Measures the model on validation data; or `None`.
        validate_every: Epochs between two validations.
        every_epochs: Epochs between two checkpoints; or `None`.
        callbacks: Called with each `Epoch`.
        names: What the run measures.
        progress: Shows how far the run is.
        interrupt: Says whether the user wants the run to end.
    """
    # Training stops after every so many epochs: to call back, to validate, to save.
    intervals = [1 if callbacks else None, validate_every if validate else None, every_epochs]
    epoch_began = time.perf_counter()

    def is_stopped() -> bool:
        return _hosts.any_ones(run.mesh, interrupt.requested or saving.stopped)

    # A problem with the checkpoints shows before there is anything to lose.
    saving.save_now()

    while (run.epoch < saving.last_epoch or saving.pending) and not saving.stopped:
        # 1. Train. An epoch that was saved before step 2 is complete already.
        stop = run.epoch if saving.pending else _next_stop(run.epoch, intervals, saving.last_epoch)
        for chunk in run.chunks(stop, is_stopped):
            saving.pending = run.epoch == stop
            recorder.add(chunk)
            progress.count(chunk)
            if not saving.pending:
                progress.show()
                saving.save_if_due()
        if is_stopped():
            break

        # 2. Validate.
        if validate is not None and run.epoch % validate_every == 0:
            recorder.add_to_epoch(validate())

        # 3. Let every callback see the epoch. Each of them may end the run.
        if callbacks:
            now = time.perf_counter()
            epoch = Epoch(run.epoch - 1, run.state(), recorder.latest, now - epoch_began)
            epoch_began = now
            for callback in callbacks:
                if recorder.epochs == 1:
                    _arguments.check_monitored(callback, {**dict.fromkeys(names), **epoch.metrics})
                if hooks.ends_run(callback, interrupt.held(callback, epoch)):
                    saving.stopped = True
                    progress.stopped_because = hooks.reason(callback)
            saving.stopped = _hosts.any_ones(run.mesh, saving.stopped)
            recorder.add_to_epoch(epoch.metrics)
        saving.pending = False
        progress.show()

        # 4. Save, if it is time.
        saving.save_if_due()

    saving.save_now()


def _next_stop(epoch: int, intervals: list[int | None], last_epoch: int) -> int:
    """Return the next number of completed epochs at which something happens."""
    stops = [(epoch // every + 1) * every for every in intervals if every is not None]
    return min([last_epoch, *stops])


@contextlib.contextmanager
def keeping_progress_in_errors(
    run: TrainingRun, recorder: Recorder, began: float
) -> Iterator[None]:
    """Give an error that ends the run the state and the record so far, as attributes."""
    try:
        yield
    except Exception as error:
        attributes = vars(error)
        has_state = attributes.get("state") is not None or isinstance(error, NonFiniteError)
        if not has_state and run.is_intact:
            attributes["state"] = run.state()
            error.add_note(
                f"Training made {recorder.steps:,} steps before: the error's `state` is the one "
                "after them, its `history` the record."
            )
        if attributes.get("history") is None:
            attributes["history"] = recorder.history(time.perf_counter() - began)
        raise
