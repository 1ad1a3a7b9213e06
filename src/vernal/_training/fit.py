"""The loop behind `fit`: train, validate, call back, save."""

import contextlib
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, cast

from vernal import _arguments, _hosts
from vernal._arguments import Plan
from vernal._training import hooks
from vernal._training.checkpointer import Beginning, NoCheckpoints
from vernal._training.chunks import TrainingRun
from vernal._training.epochs import Epoch
from vernal._training.interrupt import Interrupt
from vernal._training.preflight.data import CheckedData
from vernal._training.progress import Progress
from vernal._training.recorder import Recorder
from vernal._training.saving import Saving
from vernal.errors import NonFiniteError

Validate = Callable[[], dict[str, Any]]


def train(
    plan: Plan,
    beginning: Beginning,
    recorder: Recorder,
    callbacks: list[Callable],
    make_run: Callable[..., TrainingRun],
    make_validate: Callable[[TrainingRun, CheckedData], Validate],
) -> TrainingRun:
    """Train a run to its end, or until a callback or the user ends it.

    Args:
        plan: What is asked for.
        beginning: What the run begins with, if it was not saved before.
        recorder: Takes what is measured; it is empty.
        callbacks: Called with each `Epoch`.
        make_run: Makes a `TrainingRun` that goes on from a state, for so many epochs.
        make_validate: Makes what measures a run on validation data.

    Returns:
        The run, which is over.
    """
    held_out = beginning.validation_data
    names = beginning.recorded_names(validates=held_out is not None)
    with _begun(plan, beginning, recorder, callbacks, make_run) as (saving, progress, interrupt):
        run = saving.run
        validate = None if held_out is None else make_validate(run, held_out)
        # Training stops after every so many epochs: to save, to validate, to call back.
        intervals = [saving.every_epochs, validate and plan.validate_every, callbacks and 1]
        epoch_began = time.perf_counter()

        def next_stop() -> int:
            if saving.pending:  # the run was saved before step 2
                return run.epoch
            return min([saving.last_epoch, *((run.epoch // n + 1) * n for n in intervals if n)])

        def is_stopped() -> bool:
            stopped = interrupt.requested or saving.stopped or recorder.is_over
            return _hosts.any_ones(run.mesh, stopped)

        # A problem with the checkpoints shows before there is anything to lose.
        saving.save_now()

        while (run.epoch < saving.last_epoch or saving.pending) and not saving.stopped:
            # 1. Train.
            stop = next_stop()
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
            if validate is not None and run.epoch % plan.validate_every == 0:
                recorder.add_to_epoch(validate())

            # 3. Let every callback see the epoch. Each of them may end the run.
            if callbacks:
                now = time.perf_counter()
                epoch = Epoch.with_state_on_demand(
                    run.state,
                    index=run.epoch - 1,
                    metrics=recorder.latest,
                    seconds=now - epoch_began,
                )
                epoch_began = now
                for callback in callbacks:
                    if recorder.epochs == 1:
                        _arguments.check_monitored(
                            callback, {**dict.fromkeys(names), **epoch.metrics}
                        )
                    if hooks.ends_run(callback, interrupt.held(callback, epoch)):
                        saving.stopped = True
                        progress.stopped_because = hooks.reason(callback)
                saving.stopped = _hosts.any_ones(run.mesh, saving.stopped)
                recorder.add_to_epoch(epoch.metrics)
                # A callback that keeps the epoch may read its state after the run has gone on.
                kept = weakref.ref(epoch)
                del epoch
                if kept() is not None:
                    _ = cast(Epoch, kept()).state
            saving.pending = False
            progress.show()

            # 4. Save, if it is time.
            saving.save_if_due()

        saving.save_now()
    return run


@contextlib.contextmanager
def _begun(
    plan: Plan,
    beginning: Beginning,
    recorder: Recorder,
    callbacks: list[Callable],
    make_run: Callable[..., TrainingRun],
) -> Iterator[tuple[Saving, Progress, Interrupt]]:
    """Begin a run, or go on from its last checkpoint; and end it, whatever comes."""
    checkpointer = NoCheckpoints() if plan.checkpoints is None else plan.checkpoints.open()
    with contextlib.closing(checkpointer):
        saved = checkpointer.restore(beginning)
        state = beginning.state if saved is None else saved.state
        run = make_run(state, epochs=plan.epochs, every_steps=checkpointer.every_steps)
        if saved is not None:
            recorder.restore(saved.record, beginning.recorded_names())
            beginning.resume_data(saved)
        saving = Saving(checkpointer, beginning, run, recorder, callbacks, epochs=plan.epochs)
        saving.begin(saved)

        last_epoch = saving.last_epoch
        shown = Progress(plan.progress, run, recorder, last_epoch=last_epoch, callbacks=callbacks)
        interrupt = Interrupt(saves=checkpointer.path is not None)
        keeping = keeping_progress_in_errors(run, recorder, plan.began)
        with keeping, interrupt, saving.when_interrupted(interrupt), shown:
            yield saving, shown, interrupt

    interrupt.report(recorder.steps, saving.saved_steps, checkpointer.path)
    interrupt.end_process()


@contextlib.contextmanager
def keeping_progress_in_errors(
    run: TrainingRun, recorder: Recorder, began: float
) -> Iterator[None]:
    """Give an error that ends the run the state and the record so far, as attributes."""
    try:
        yield
    except Exception as error:
        attributes = vars(error)
        if attributes.get("_run", id(run)) != id(run):  # of a run in a callback
            attributes.pop("state", None)
            attributes.pop("history", None)
        attributes["_run"] = id(run)
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
