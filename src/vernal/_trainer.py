import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import KW_ONLY, dataclass

import equinox as eqx
import optax
from jaxtyping import Array, PRNGKeyArray, PyTree

from vernal._arrays import as_arrays
from vernal._checks import check_loss, check_optimizer, checked_source, model_of, whole_number
from vernal._data import Source, is_loader
from vernal._errors import ArgumentError, ExamplesError, kind
from vernal._evaluate import evaluate, predict
from vernal._history import History, Recorder
from vernal._jit import Packed, pack
from vernal._loop import Loop
from vernal._preflight import examples_error, preflight
from vernal._progress import Interrupt, Progress
from vernal._state import TrainState, put_counts
from vernal._update import (
    Choices,
    compiled_init,
    compiled_step,
    trained_leaves,
)


@dataclass(frozen=True)
class Epoch:
    """One epoch of a run, completed."""

    index: int  # counted from 0 over the state's whole life
    state: TrainState
    metrics: dict[str, float]  # averages over the epoch: "loss", ...; validation's as "val_loss"
    seconds: float


@dataclass(frozen=True)
class Trainer:
    """Trains any Equinox module: holds the choices, and nothing that changes.

    **Arguments:**

    - `optimizer`: from Optax, such as `optax.adam(1e-3)`. Keep it, or this trainer: a new
      optimizer is a new program, and compiles again.
    - `loss`: one of `vernal.losses`, or any `loss(model, batch, key)` that returns a scalar, or
      `(scalar, dict of scalar metrics)`.
    - `trainable`: which of the model's float arrays to train: a predicate of a leaf, or a PyTree
      of bools or predicates that is a prefix of the model.

    **Raises:** `ArgumentError` if the optimizer or the loss is not one.
    """

    optimizer: optax.GradientTransformation
    loss: Callable
    _: KW_ONLY
    trainable: PyTree = eqx.is_inexact_array

    def __post_init__(self):
        check_optimizer(self.optimizer)
        check_loss(self.loss)

    def init(self, model: PyTree, *, key: PRNGKeyArray | None = None) -> TrainState:
        """Make the state that training starts from.

        **Arguments:**

        - `model`: any Equinox module. It stays the caller's: training works on copies.
        - `key`: where all randomness comes from; `None` is `jax.random.key(0)`.

        **Raises:** `ArgumentError` if the model has nothing to train.
        """
        return _init(self._choices(model), model, key).unpack()

    def _choices(self, model: PyTree) -> Choices:
        choices = Choices(self.optimizer, self.loss, trained_leaves(model, self.trainable))
        if not any(choices.trained):
            raise ArgumentError(
                f"model is {kind(model)}, without a float array to train."
                "\n  Pass an instance of an eqx.Module, and see what `trainable` picks of it."
            )
        return choices

    def step(self, state: TrainState, batch: PyTree) -> tuple[TrainState, dict[str, Array]]:
        """Make one update: pure, and compiled once for each shape of batch.

        **Arguments:**

        - `state`: from `init`, or from an update before; it stays valid.
        - `batch`: as the loss takes it, such as `(x, y)`.

        **Returns:** the new state; a dict of the loss, as `"loss"`, and of its own metrics.

        **Raises:** `ShapeError` or `DataError`, before compiling. Values are not looked at, which
        would take longer than the update: NaN, and labels out of range, are `fit`'s to find.
        """
        if not isinstance(state, TrainState):
            raise ArgumentError(
                f"step needs a TrainState; it is given {kind(state)}."
                "\n  Try trainer.step(trainer.init(model), batch)."
            )
        given = batch
        try:
            batch = as_arrays(batch, finite=False)
        except ExamplesError as error:
            raise examples_error(error, self.loss, state.model, given) from None
        try:
            new, info = compiled_step(pack(self._choices(state.model)), pack(state), batch)
        except Exception:
            preflight(self.loss, state.model, batch, given=given)  # only tracing can have failed
            raise
        return new.unpack(), info

    def epochs(
        self,
        model_or_state: PyTree | TrainState,
        data: PyTree | Iterable,
        *,
        batch_size: int | None = None,
        shuffle: bool = True,
        validation_data: PyTree | Iterable | None = None,
    ) -> Iterator[Epoch]:
        """Train epoch after epoch, without end: leave the loop with `break`.

        **Arguments:** as in `fit`.

        **Returns:** an iterator of `Epoch`s. Their states are the caller's to keep.

        **Raises:** as `fit` does, at the call and not at the first epoch.
        """
        loop, validation = self._start(model_or_state, data, batch_size, shuffle, validation_data)
        return self._epochs(loop, validation)

    def _epochs(self, loop: Loop, validation: Source | None) -> Iterator[Epoch]:
        recorder = Recorder()
        while True:
            started = time.perf_counter()
            index = loop.place[0]
            for chunk in loop.chunks(index + 1):
                recorder.add(chunk)
            if validation:
                recorder.add_validation(evaluate(self.loss, loop.model(), validation))
            seconds = time.perf_counter() - started
            yield Epoch(index, loop.state(), recorder.latest, seconds)

    def fit(
        self,
        model_or_state: PyTree | TrainState,
        data: PyTree | Iterable,
        *,
        epochs: int,
        batch_size: int | None = None,
        shuffle: bool = True,
        validation_data: PyTree | Iterable | None = None,
        validate_every: int = 1,
        callbacks: Iterable[Callable[[Epoch], bool | None]] = (),
        progress: bool = True,
    ) -> tuple[TrainState, History]:
        """Train for some epochs.

        Ctrl-C ends the run early: the state and history so far are returned, and a line says so.

        **Arguments:**

        - `model_or_state`: a model, or a state to go on from. Its arrays stay valid.
        - `data`: a tuple `(x, y)` or `(x, y, sample_weight)` of arrays with equal leading axes; for
          a loss of your own, any PyTree of such arrays; or a re-iterable of ready batches, such as
          a list or a data loader, taken in its own order.
        - `epochs`: how many this call trains, counting as one what is left of an epoch under way.
        - `batch_size`: examples in a batch; `None` is all of them. The last batch of an epoch may
          be smaller, and is trained on as it is.
        - `shuffle`: whether each epoch takes the examples in another order, fixed by the state's
          key and the epoch's number.
        - `validation_data`: as `data`, measured every `validate_every` epochs.
        - `callbacks`: called with each `Epoch`; one that returns `True` ends the run.
        - `progress`: whether to show a progress bar, where standard error is a terminal.

        **Returns:** the new state, and the `History` of this call.

        **Raises:** `ArgumentError`, `DataError` or `ShapeError` before compiling.
        """
        epochs = whole_number("epochs", epochs, at_least=0)
        validate_every = whole_number("validate_every", validate_every, at_least=1)
        started = epoch_started = time.perf_counter()
        loop, validation = self._start(model_or_state, data, batch_size, shuffle, validation_data)
        recorder = Recorder()
        epoch = loop.place[0]
        last = epoch + epochs
        # The run is cut only where something happens between two updates.
        every = 1 if callbacks else validate_every if validation else epochs
        stopped = False
        with Interrupt() as interrupt, Progress(progress, loop.updates_to(last)) as bar:
            while epoch < last and not stopped:
                # 1. Train, to the next cut.
                stop = min(last, (epoch // every + 1) * every)
                for chunk in loop.chunks(stop, lambda: interrupt.requested):
                    recorder.add(chunk)
                    bar.show(chunk)
                epoch = loop.place[0]
                if interrupt.requested:
                    break
                # 2. Validate.
                if validation and epoch % validate_every == 0:
                    results = evaluate(self.loss, loop.model(), validation)
                    recorder.add_validation(results)
                    bar.show([], results)
                # 3. Let the callbacks see the epoch, each of them; any may end the run.
                if callbacks:
                    now = time.perf_counter()
                    done = Epoch(epoch - 1, loop.state(), recorder.latest, now - epoch_started)
                    epoch_started = now
                    stopped = any([callback(done) is True for callback in callbacks])
        if interrupt.requested:
            recorder.add(loop.drain())
            print(
                f"Interrupted after {recorder.updates:,} updates: fit returns the state and the "
                "history so far.",
                file=sys.stderr,
            )
        return loop.finish(), recorder.history(time.perf_counter() - started)

    def evaluate(
        self,
        model_or_state: PyTree | TrainState,
        data: PyTree | Iterable,
        *,
        batch_size: int | None = None,
    ) -> dict[str, float]:
        """Measure the loss, and its metrics, on data.

        The averages are over all examples, by their weights: exact whatever the batch size.

        **Arguments:** as in `fit`; the model is put in inference mode.

        **Returns:** a dict with `"loss"`, and a number for each of the loss's own metrics.

        **Raises:** `ArgumentError`, `DataError` or `ShapeError` before compiling.
        """
        model = model_of(model_or_state)
        source, _ = checked_source(self.loss, model, data, batch_size)
        return evaluate(self.loss, model, source)

    def predict(
        self,
        model_or_state: PyTree | TrainState,
        x: PyTree,
        *,
        batch_size: int | None = None,
    ) -> Array:
        """Apply the model, in inference mode, to each example.

        **Arguments:**

        - `model_or_state`: a model, or a state with one.
        - `x`: an array, or a PyTree of arrays, with the examples along the leading axis.
        - `batch_size`: examples at once; `None` is all of them.

        **Returns:** the outputs, with the examples along the leading axis.

        **Raises:** `ArgumentError`, `DataError` or `ShapeError` before compiling.
        """
        model = model_of(model_or_state)
        source, _ = checked_source(None, eqx.nn.inference_mode(model), x, batch_size, name="x")
        return predict(model, source)

    def _start(self, model_or_state, data, batch_size, shuffle, validation_data):
        """Check everything, and make what a run needs: its loop, and its validation's source."""
        model = model_of(model_or_state)
        choices = self._choices(model)
        order = {"endless": True, "shuffle": shuffle}
        source, (info, weight) = checked_source(self.loss, model, data, batch_size, **order)
        validation = None
        if validation_data is not None:
            size = None if is_loader(validation_data) else batch_size
            name = "validation_data"
            validation, _ = checked_source(self.loss, model, validation_data, size, name=name)
        fresh = not isinstance(model_or_state, TrainState)
        state = _init(choices, model, None) if fresh else pack(model_or_state)
        source.order_by(state.arrays[-1])
        return Loop(choices, state, source, info, weight is not None), validation


def _init(choices: Choices, model: PyTree, key: PRNGKeyArray | None) -> Packed:
    packed = compiled_init(pack((choices, model)), key)
    put_counts(packed.arrays, 0, 0, 0)
    return packed
