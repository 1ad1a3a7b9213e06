"""The loop behind `fit`: train, validate, call back, save."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxtyping import PyTree

from vernal import _arguments
from vernal._training import hooks
from vernal._training.checkpointer import Checkpointer, RunState, check_same_run
from vernal._training.chunks import TrainingRun
from vernal._training.evaluate import evaluate
from vernal._training.fingerprint import warn_of_changes
from vernal._training.history import Epoch, Recorder, counted
from vernal._training.interrupt import Interrupt
from vernal._training.objective import Objective
from vernal._training.preflight.data import CheckedData
from vernal._training.progress import Progress
from vernal._training.state import TrainState
from vernal.errors import NonFiniteError, shown

Callback = Callable[[Epoch], bool | None]


class Saving:
    """What is saved of a run, and when; and what was saved of it before.

    Args:
        checkpointer: Where the run is saved.
        start: The state that the run begins with, unless it was saved before.
        batching: How the data is cut into batches, by the names that users know.
        made_of: What `fingerprint` returned; or `None` if nothing is saved.

    Attributes:
        state: The state to go on from.
        began: The step, epoch and batch that the run began with, when it was new.
        first_epoch: Number of the epoch that the run began in, when it was new.
        last_epoch: Number of the epoch that the run ends before.
        every_epochs: Epochs between two checkpoints; or `None`.
        pending: Whether the last epoch is not validated yet, nor seen by the callbacks.
        stopped: Whether a callback has ended the run.
        saved_steps: Number of the run's steps when it was saved last.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        start: TrainState,
        batching: dict[str, Any],
        made_of: dict[str, str] | None,
    ):
        self._checkpointer = checkpointer
        self._saves = checkpointer.path is not None
        self.every_epochs = checkpointer.every_epochs
        self._batching = batching
        self._made_of: Any = made_of
        self._callbacks: list[Any] = []
        self._since = time.perf_counter()

        self._restored = restored = checkpointer.restore(start)
        self.state = start if restored is None else restored.state
        counts = int(start.step), int(start.epoch), int(start.batch)
        self.began = counts if restored is None else restored.began
        self.pending = restored is not None and restored.pending
        self.stopped = restored is not None and restored.stopped
        self.first_epoch = self.last_epoch = 0  # `begin` says which
        self.saved_steps = 0

    def begin(
        self,
        run: TrainingRun,
        recorder: Recorder,
        callbacks: list[Any],
        *,
        epochs: int,
        names: list[str],
    ) -> None:
        """Give the record and the callbacks what was saved of them; the others begin.

        A run that a callback ended goes on if more epochs are asked for than before, or if the
        callback says so.

        Args:
            run: The run in progress.
            recorder: Takes what is measured.
            callbacks: The run's callbacks.
            epochs: How many epochs the whole run is to train.
            names: What an epoch measures now, validation aside.
        """
        self._batching = {**self._batching, "batches in a pass": run.pass_length}
        self.first_epoch = run.epoch if self._restored is None else self._restored.first_epoch
        self.last_epoch = self.first_epoch + epochs
        self._callbacks = [callback for callback in callbacks if hooks.saves(callback)]
        beginning = callbacks
        if self._restored is not None:
            path: Any = self._checkpointer.path
            classes = [type(callback).__name__ for callback in self._callbacks]
            check_same_run(self._restored, self._batching, classes, path)
            warn_of_changes(self._restored.made_of, self._made_of, path)
            self.stopped &= self.last_epoch <= self._restored.last_epoch
            states = [state for _, state in self._restored.callbacks]
            for callback, state in zip(self._callbacks, states, strict=True):
                self.stopped &= callback.load_state_dict(state) is not True
            recorder.restore(self._restored.record, names)
            self.saved_steps = recorder.steps
            if not self.pending and (self.stopped or run.epoch >= self.last_epoch):
                _report_finished(path, recorder.epochs, epochs, stopped=self.stopped)
            beginning = [callback for callback in callbacks if callback not in self._callbacks]

        for callback in beginning:
            start = hooks.hook(callback, "start")
            if start is not None:
                start()

    def save(self, run: TrainingRun, recorder: Recorder) -> None:
        """Save the run as it is now."""
        if not self._saves:
            return

        now = RunState(
            state=run.state_until_next_chunk(),
            began=self.began,
            first_epoch=self.first_epoch,
            last_epoch=self.last_epoch,
            batching=self._batching,
            made_of=self._made_of,
            record=recorder.kept(time.perf_counter() - self._since),
            callbacks=[(type(saved).__name__, saved.state_dict()) for saved in self._callbacks],
            pending=self.pending,
            stopped=self.stopped,
        )
        self._checkpointer.save(now)
        self.saved_steps = recorder.steps

    def save_if_due(self, run: TrainingRun, recorder: Recorder) -> None:
        """Save the run if it is time to."""
        if self._saves and self._checkpointer.due(step=run.step, epoch=run.epoch):
            self.save(run, recorder)

    def wait(self) -> None:
        """Wait until what was saved is written."""
        self._checkpointer.wait()


def _report_finished(path: Path, trained: int, epochs: int, *, stopped: bool) -> None:
    run = "run that a callback ended after" if stopped else "finished run of"
    wanted = f" ({epochs} were asked for)" if epochs < trained else ""
    held = f"{run} {counted(trained, 'epoch')}{wanted}"
    print(f"{shown(path)} holds a {held}; nothing was trained.", file=sys.stderr)


def train(
    run: TrainingRun,
    recorder: Recorder,
    saving: Saving,
    *,
    last_epoch: int,
    validate: Callable[[], dict[str, float]] | None,
    validate_every: int,
    callbacks: list[Callback],
    names: list[str],
    progress: Progress,
    interrupt: Interrupt,
) -> None:
    """Train to the start of an epoch, or until a callback or the user ends the run.

    Args:
        run: The run in progress.
        recorder: Takes what is measured.
        saving: Saves the run.
        last_epoch: Number of the epoch that the run ends before.
        validate: Measures the model on validation data; or `None`.
        validate_every: Epochs between two validations.
        callbacks: Called with each `Epoch`.
        names: What the run measures.
        progress: Shows how far the run is.
        interrupt: Says whether the user wants the run to end.
    """
    # Training stops after every so many epochs: to call back, to validate, to save.
    intervals = [
        1 if callbacks else None,
        validate_every if validate else None,
        saving.every_epochs,
    ]
    epoch_began = time.perf_counter()
    # A problem with the checkpoints shows before there is anything to lose.
    saving.save(run, recorder)
    saving.wait()

    while (run.epoch < last_epoch or saving.pending) and not saving.stopped:
        # 1. Train. An epoch that was saved before step 2 is complete already.
        stop = run.epoch if saving.pending else _next_stop(run.epoch, intervals, last_epoch)
        for chunk in run.chunks(stop, lambda: interrupt.requested):
            saving.pending = run.epoch == stop
            recorder.add(chunk)
            progress.count(chunk)
            if not saving.pending:
                progress.show()
                saving.save_if_due(run, recorder)
        if interrupt.requested:
            break

        # 2. Validate.
        if validate is not None and run.epoch % validate_every == 0:
            recorder.add_validation(validate())

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
            recorder.add_to_epoch(epoch.metrics)
        saving.pending = False
        progress.show()

        # 4. Save, if it is time.
        saving.save_if_due(run, recorder)

    saving.save(run, recorder)
    saving.wait()


def _next_stop(epoch: int, intervals: list[int | None], last_epoch: int) -> int:
    """Return the next number of completed epochs at which something happens."""
    stops = [(epoch // every + 1) * every for every in intervals if every is not None]
    return min([last_epoch, *stops])


@contextlib.contextmanager
def saving_when_interrupted(run: TrainingRun, recorder: Recorder, saving: Saving) -> Iterator[None]:
    """Save a run that a `KeyboardInterrupt` ends, unless it came in the midst of a step."""
    try:
        yield
    except KeyboardInterrupt:
        recorder.add([])  # a metric's code may have been interrupted
        made = run.step - saving.began[0], run.epoch - saving.first_epoch
        if run.is_between_steps and made == (recorder.steps, recorder.epochs):
            saving.save(run, recorder)
            saving.wait()
        raise


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


def validator(
    objective: Objective,
    run: TrainingRun,
    held_out: CheckedData | None,
    eval_model: Callable[[TrainState], PyTree],
) -> Callable[[], dict[str, float]] | None:
    """Return what measures a run's model on validation data, if there is any."""
    if held_out is None:
        return None

    eval_model(run.state_until_next_chunk())  # a mistake shows before anything is trained

    def validate() -> dict[str, float]:
        state = run.state_until_next_chunk()
        return evaluate(objective, eval_model(state), state.model_state, held_out)

    return validate
