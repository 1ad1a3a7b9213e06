"""The loop behind `fit`: train, validate, call back, save."""

import time
from collections.abc import Callable, Iterator

from vernal._checkpointing.manager import Unsaved
from vernal._training.chunks import Loop
from vernal._training.history import Epoch, Recorder
from vernal._training.progress import Interrupt, Progress, kept_in_errors


def run(
    loop: Loop,
    recorder: Recorder,
    saver: Unsaved,
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
    for start in hooks(saver.go_on(loop, recorder, callbacks), "start"):
        start()
    epoch = loop.place[0]
    last = epoch + epochs
    # The run is cut only where something happens between two updates.
    every = 1 if callbacks else validate_every if validate else max(1, last)
    cut = lambda epoch: min((epoch // n + 1) * n for n in (every, saver.every_epochs or every))
    pending, stopped = saver.pending, saver.stopped
    epoch_began = time.perf_counter()
    save = lambda: saver.save(loop, recorder, callbacks, began, pending=pending, stopped=stopped)
    bar = Progress(progress, loop.updates_to(last))
    saves = saver.path is not None
    with kept_in_errors(loop, recorder, began), Interrupt(saves) as interrupt, bar:
        # Whatever keeps checkpoints from being written shows before there is anything to lose.
        save()
        saver.wait()
        while (epoch < last or pending) and not (stopped or interrupt.requested):
            # 1. Train, to the next cut. An epoch that was saved between that and step 2 waits.
            stop = epoch if pending else min(last, cut(epoch))
            for chunk in loop.chunks(stop, lambda: interrupt.requested):
                recorder.add(chunk)
                bar.show(chunk)
                if saves and (state := loop.saved()).epoch < stop and saver.due(state):
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
            if saves and saver.due(loop.saved()):
                save()
        save()
        saver.wait()
    with kept_in_errors(loop, recorder, began):
        recorder.add_all(loop.drain())
    return interrupt


def hooks(callbacks: list, name: str) -> Iterator[Callable]:
    """The methods of this name that callbacks have."""
    return (getattr(callback, name) for callback in callbacks if hasattr(callback, name))
