"""The loop behind `fit`: train, validate, call back, save."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from vernal._training.checkpointer import Checkpointer, RunState, check_same_run
from vernal._training.chunks import Loop
from vernal._training.history import Epoch, Recorder
from vernal._training.progress import Interrupt, Progress, kept_in_errors


def run(
    loop: Loop,
    recorder: Recorder,
    checkpointer: Checkpointer,
    resumed: RunState | None,
    first: RunState,
    callbacks: list[Callable[[Epoch], bool | None]],
    began: float,
    *,
    epochs: int,
    validate: Callable[[], dict[str, float]] | None,
    validate_every: int,
    progress: bool,
) -> Interrupt:
    """Train for some epochs, or until a callback or the user ends the run.

    **Arguments:** as in `Trainer.fit`, checked and made; `began`, when it was called.

    **Returns:** whether the run was interrupted, to be told.
    """
    # What is saved goes on where it was; whatever is not begins.
    keeping: list[Any] = [callback for callback in callbacks if hasattr(callback, "state_dict")]
    begins = callbacks
    if resumed:
        names = [type(callback).__name__ for callback in keeping]
        check_same_run(resumed, first.batching, names, checkpointer.path)
        for callback, (_, kept) in zip(keeping, resumed.callbacks, strict=True):
            callback.load_state_dict(kept)
        recorder.restore(resumed.record, loop.averages)
        begins = [callback for callback in callbacks if callback not in keeping]
    for start in hooks(begins, "start"):
        start()
    epoch = loop.place[0]
    last = epoch + epochs
    # The run is cut only where something happens between two updates.
    every = 1 if callbacks else validate_every if validate else max(1, last)
    cut = lambda epoch: min(
        (epoch // n + 1) * n for n in (every, checkpointer.every_epochs or every)
    )
    pending = resumed is not None and resumed.pending
    stopped = resumed is not None and resumed.stopped
    epoch_began = time.perf_counter()

    def save() -> None:
        if not saves:
            return
        now = replace(
            first,
            state=loop.saved(),
            record=recorder.kept(time.perf_counter() - began),
            callbacks=[(type(callback).__name__, callback.state_dict()) for callback in keeping],
            pending=pending,
            stopped=stopped,
        )
        checkpointer.save(now)

    def due() -> bool:
        state = loop.saved()
        return checkpointer.due(step=int(state.step), epoch=int(state.epoch))

    bar = Progress(progress, loop.updates_to(last))
    saves = checkpointer.path is not None
    with kept_in_errors(loop, recorder, began), Interrupt(saves) as interrupt, bar:
        # Whatever keeps checkpoints from being written shows before there is anything to lose.
        save()
        checkpointer.wait()
        while (epoch < last or pending) and not (stopped or interrupt.requested):
            # 1. Train, to the next cut. An epoch that was saved between that and step 2 waits.
            stop = epoch if pending else min(last, cut(epoch))
            for chunk in loop.chunks(stop, lambda: interrupt.requested):
                recorder.add(chunk)
                bar.show(chunk)
                if saves and loop.saved().epoch < stop and due():
                    save()
            epoch = loop.place[0]
            pending = epoch == stop
            if interrupt.requested:
                break
            # 2. Validate.
            if validate and epoch % validate_every == 0:
                results = validate()
                recorder.add_validation(results)
                bar.show([], results)
            # 3. Let the callbacks see the epoch, each of them; any may end the run.
            if callbacks:
                now = time.perf_counter()
                done = Epoch(epoch - 1, loop.state(), recorder.latest, now - epoch_began)
                epoch_began = now
                stopped = any([callback(done) is True for callback in callbacks])
            pending = False
            # 4. Save, if it is time.
            if saves and due():
                save()
        save()
        checkpointer.wait()
    with kept_in_errors(loop, recorder, began):
        recorder.add_all(loop.drain())
    return interrupt


def hooks(callbacks: list, name: str) -> Iterator[Callable]:
    """The methods of this name that callbacks have."""
    return (getattr(callback, name) for callback in callbacks if hasattr(callback, name))
