import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Any, Literal

import equinox as eqx
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, PRNGKeyArray, PyTree

from vernal._data.arrays import as_arrays
from vernal._training import checks as _checks
from vernal._training.checkpointer import (
    Checkpointing,
    NoCheckpoints,
    RunState,
    check_checkpoints,
)
from vernal._training.checks import checked_source, model_of, whole_number
from vernal._training.chunks import Loop
from vernal._training.evaluate import evaluate, predict
from vernal._training.fit import hooks, run
from vernal._training.history import Epoch, History, Recorder
from vernal._training.jit import pack
from vernal._training.objective import Objective
from vernal._training.preflight import examples_error, preflight
from vernal._training.progress import kept_in_errors
from vernal._training.setup import choices_for, start, with_checked_opt_state
from vernal._training.state import TrainState, with_data_state
from vernal._training.update import Choices, compiled_step, new_state
from vernal.errors import ArgumentError, ExamplesError, kind


@dataclass(frozen=True)
class Trainer:
    """Trains any Equinox module: holds the choices, and nothing that changes.

    **Arguments:**

    - `optimizer`: from Optax, such as `optax.adam(1e-3)`. Keep it, or this trainer: a new
      optimizer is a new program, and compiles again.
    - `loss`: one of `vernal.losses`, or any `loss(model, batch, key)` that returns a scalar, or
      `(scalar, dict of scalar metrics)`; for a model with a state `loss(model, batch, key,
      model_state)`, which returns `(scalar, dict of scalar metrics, model_state)`.
    - `metrics`: name -> a function of one example's prediction and target, such as
      `vernal.metrics.accuracy`, to be averaged; or a `vernal.metrics.AbstractMetric`.
    - `trainable`: which of the model's float arrays to train: a predicate of a leaf, or a PyTree
      of bools or predicates that is a prefix of the model.
    - `compute_dtype`: such as `jnp.bfloat16`: the model and x (the whole batch, for a loss of your
      own) are cast to it, forward and backward; parameters, losses and metrics stay as they are.
    - `on_nonfinite`: what a run does if the loss, a gradient or the state stops being finite:
      "raise" ends it with `NonFiniteError`, before that update; "ignore" goes on.

    **Raises:** `ArgumentError` if one of them cannot be used.
    """

    optimizer: optax.GradientTransformation | optax.MultiSteps
    loss: Callable
    _: KW_ONLY
    metrics: Mapping[str, Callable] | None = None
    trainable: PyTree = eqx.is_inexact_array
    compute_dtype: DTypeLike | None = None
    on_nonfinite: Literal["raise", "ignore"] = "raise"

    def __post_init__(self):
        _checks.check_optimizer(self.optimizer)
        _checks.check_on_nonfinite(self.on_nonfinite)
        _ = self._objective

    @cached_property
    def _objective(self) -> Objective:
        return _checks.checked_objective(self.loss, self.metrics, self.compute_dtype)

    def init(
        self, model: PyTree, *, model_state: PyTree = None, key: PRNGKeyArray | None = None
    ) -> TrainState:
        """Make the state that training starts from.

        **Arguments:**

        - `model`: any Equinox module. It stays the caller's: training works on copies.
        - `model_state`: what a model keeps beside its parameters: the second of what
          `eqx.nn.make_with_state` makes, or any PyTree for a loss that takes one.
        - `key`: where all randomness comes from; `None` is `jax.random.key(0)`.

        **Raises:** `ArgumentError` if the model has nothing to train, or the loss does not take a
        model state.
        """
        return new_state(self._choices(model, model_state), model, model_state, key).unpack()

    def _choices(self, model: PyTree, model_state: PyTree) -> Choices:
        _checks.check_stateful(self.loss, model, model_state)
        return choices_for(self.optimizer, self._objective.recorded, self.trainable, model)

    def step(self, state: TrainState, batch: PyTree) -> tuple[TrainState, dict[str, Array]]:
        """Make one update: pure, and compiled once for each shape of batch.

        **Arguments:**

        - `state`: from `init`, or from an update before; it stays valid.
        - `batch`: as the loss takes it, such as `(x, y)`.

        **Returns:** the new state; a dict of the loss, as `"loss"`, and of metrics.

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
            raise examples_error(error, self._objective.recorded, *model_of(state), given) from None
        choices = self._choices(*model_of(state))
        try:
            packed = pack(with_data_state(state, None))
            new, info = compiled_step(pack(choices), packed, batch)
        except Exception:
            # Only tracing can have failed.
            preflight(self._objective.recorded, *model_of(state), batch, given=given)
            with_checked_opt_state(choices, state)
            raise
        return with_data_state(new.unpack(), state.data_state), info

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
        loop, validate = self._start(model_or_state, data, batch_size, shuffle, validation_data)
        return self._epochs(loop, validate)

    def _epochs(self, loop: Loop, validate: Callable | None) -> Iterator[Epoch]:
        recorder = Recorder(self._objective.recorded.metrics)
        begun = time.perf_counter()
        while True:
            started = time.perf_counter()
            index = loop.place[0]
            with kept_in_errors(loop, recorder, begun):
                recorder.add_all(loop.chunks(index + 1))
            if validate:
                recorder.add_validation(validate())
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
        checkpoints: Checkpointing | None = None,
        progress: bool = True,
    ) -> tuple[TrainState, History]:
        """Train for some epochs.

        Ctrl-C ends the run early: the state and history so far are returned, and a line says so.
        With `checkpoints` they are saved first; SIGTERM does the same, and ends the process.

        **Arguments:**

        - `model_or_state`: a model, or a state to go on from. Its arrays stay valid.
        - `data`: a tuple `(x, y)` or `(x, y, sample_weight)` of arrays with equal leading axes; for
          a loss of your own, any PyTree of such arrays; or ready batches, taken in their own order:
          a list, a data loader, or a function that yields them, anew at each call.
        - `epochs`: how many this call trains, counting as one what is left of an epoch under way.
        - `batch_size`: examples in a batch; `None` is all of them. The last batch of an epoch may
          be smaller, and is trained on as it is.
        - `shuffle`: whether each epoch takes the examples in another order, fixed by the state's
          key and the epoch's number.
        - `validation_data`: as `data`, measured every `validate_every` epochs.
        - `callbacks`: called with each `Epoch`; one that returns `True` ends the run. One may also
          have `start()`, called before the run, and `finish(state)`, called after it, which
          returns the state that `fit` is to return. What its `state_dict()` returns is saved, and
          goes to its `load_state_dict`, in place of `start()`, when a run goes on.
        - `checkpoints`: where the run is saved. If it was before, it goes on from there, to the
          same end: the history is that of the whole run. See `vernal.Checkpoints`.
        - `progress`: whether to show a progress bar, where standard error is a terminal.

        **Returns:** the new state, and the `History` of this call.

        **Raises:** `ArgumentError`, `DataError` or `ShapeError` before compiling; `NonFiniteError`
        where numbers stop being finite; `CheckpointError` if a checkpoint cannot be written, or is
        of another run; and what a loader or a callback raises, as it is. The error has the last
        good state as its `state`, and the record as its `history`.
        """
        epochs = whole_number("epochs", epochs, at_least=0)
        validate_every = whole_number("validate_every", validate_every, at_least=1)
        check_checkpoints(checkpoints)
        began = time.perf_counter()
        checkpointer = checkpoints.open() if checkpoints else NoCheckpoints()
        with contextlib.closing(checkpointer):
            start_from, resumed, counted = model_or_state, None, (0, 0, 0)
            if checkpoints:
                first_state = self._state(model_or_state)
                resumed = checkpointer.restore(first_state)
                counted = (int(first_state.step), int(first_state.epoch), int(first_state.batch))
            if resumed:
                start_from = resumed.state
                left = max(0, resumed.began[1] + epochs - int(resumed.state.epoch))
                epochs = 0 if resumed.stopped else left
            loop, validate = self._start(
                *(start_from, data, batch_size, shuffle, validation_data),
                epochs=epochs,
                saves=checkpoints is not None,
                every=checkpointer.every_steps or sys.maxsize,
            )
            batching = {
                "batch_size": batch_size,
                "shuffle": shuffle,
                "batches an epoch": loop.length,
            }
            first = RunState(loop.finish(), counted, batching, {}, [], False, False)
            callbacks = _checks.checked_callbacks(callbacks, loop.measures(validate is not None))
            recorder = Recorder(self._objective.recorded.metrics)
            interrupt = run(
                *(loop, recorder, checkpointer, resumed, first, callbacks, began),
                epochs=epochs,
                validate=validate,
                validate_every=validate_every,
                progress=progress,
            )
        interrupt.tell(recorder.updates, checkpointer.path)
        interrupt.leave()
        state = loop.finish()
        for finish in hooks(callbacks, "finish"):
            state = finish(state)
        return state, recorder.history(time.perf_counter() - began)

    def evaluate(
        self,
        model_or_state: PyTree | TrainState,
        data: PyTree | Iterable,
        *,
        batch_size: int | None = None,
    ) -> dict[str, Any]:
        """Measure the loss, and its metrics, on data.

        The averages are over all examples, by their weights: exact whatever the batch size.

        **Arguments:** as in `fit`; the model is put in inference mode.

        **Returns:** a dict with `"loss"`, and each of the metrics.

        **Raises:** `ArgumentError`, `DataError` or `ShapeError` before compiling.
        """
        learned = model_of(model_or_state)
        _checks.check_stateful(self.loss, *learned)
        source, _ = checked_source(self._objective, *learned, data, batch_size)
        return evaluate(self._objective, *learned, source)

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
        model, model_state = model_of(model_or_state)
        _checks.check_stateful(None, model, model_state)
        inferring = eqx.nn.inference_mode(model), model_state
        source, _ = checked_source(None, *inferring, x, batch_size, name="x")
        return predict(model, model_state, source, self._objective.compute_dtype)

    def _start(self, model_or_state, *data, **run) -> tuple[Loop, Callable | None]:
        choices, rewinds = self._choices(*model_of(model_or_state)), self.on_nonfinite == "raise"
        return start(choices, model_or_state, *data, rewinds=rewinds, **run)

    def _state(self, model_or_state: PyTree | TrainState) -> TrainState:
        is_state = isinstance(model_or_state, TrainState)
        return model_or_state if is_state else self.init(model_of(model_or_state)[0])
