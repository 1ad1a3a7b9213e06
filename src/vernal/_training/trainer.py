"""The trainer: the choices of a training, and what can be done with them."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial
from typing import Any, Literal

import equinox as eqx
import numpy as np
import optax
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, PRNGKeyArray, PyTree

from vernal import _arguments, _sharding, errors
from vernal._data.arrays import as_batch
from vernal._data.sources import is_loader
from vernal._products import with_turned_products
from vernal._shapes.jaxprs import in_outer_trace
from vernal._training import evaluate, fit, hooks
from vernal._training.checkpointer import Beginning, Checkpointing
from vernal._training.chunks import TrainingRun
from vernal._training.compiled_loop import step_by_loop
from vernal._training.epochs import Epoch
from vernal._training.fit import Validate
from vernal._training.objective import Objective
from vernal._training.preflight.data import CheckedData, checked_data
from vernal._training.preflight.failed_step import explain_failed_step
from vernal._training.preflight.model import check_state, choices_for, model_of
from vernal._training.preflight.opt_state import with_checked_opt_state
from vernal._training.preflight.trace import Preflight
from vernal._training.recorder import Recorder
from vernal._training.state import COUNTS, Model, TrainState, with_numbers_as_arrays
from vernal._training.update import Choices, new_arrays, on_mesh, update
from vernal.errors import short_traceback
from vernal.history import History
from vernal.losses import Loss
from vernal.metrics import AbstractMetric


@dataclass(frozen=True)
class Trainer:
    """Trains any Equinox module: holds the choices, and nothing that changes.

    Args:
        optimizer: From Optax, such as `optax.adam(1e-3)`. Keep it, or this trainer: a new optimizer
            is a new program, and compiles again.
        loss: One of `vernal.losses`; or any `loss(model, batch, key)` that returns a scalar, or
            `(scalar, dict of scalar metrics)`; for a model with a state `loss(model, batch, key,
            model_state)`, which returns `(scalar, dict of scalar metrics, model_state)`.
        metrics: name -> a function of one example's prediction and target, such as
            `vernal.metrics.accuracy`, to be averaged; or a `vernal.metrics.AbstractMetric`.
        trainable: Which of the model's float arrays to train: a function of a leaf, or a PyTree of
            bools or such functions that is a prefix of the model. By default all of them.
        compute_dtype: Such as `jnp.bfloat16`: the model and x (the whole batch, for a loss of your
            own) are cast to it, forward and backward; parameters, losses and metrics stay as they
            are. By default nothing is cast.
        on_nonfinite: What a run does when the loss, a gradient or the state stops being finite:
            "raise" ends it with `NonFiniteError`, before that step; "ignore" goes on.
        eval_params: Called as `eval_params(opt_state, params)`; returns the parameters to validate,
            evaluate and predict with, such as `vernal.averaged` or
            `optax.contrib.schedule_free_eval_params`. By default those that are trained.
        mesh: A `jax.sharding.Mesh` of devices that train together, with Auto axes. They share each
            batch, along the mesh's first axis. Each has all of the state, but for arrays to which
            you gave a `NamedSharding` on this mesh: they stay split as they are. By default one
            device trains alone.

    Raises:
        ArgumentError: If one of them cannot be used.

    Example:
        >>> trainer = vernal.Trainer(optax.sgd(0.1), losses.MeanSquaredError())
        >>> state, history = trainer.fit(model, (x, y), epochs=100)
        >>> print(f"{trainer.predict(state, x[:1])[0, 0]:.2f}")
        -1.00
    """

    optimizer: optax.GradientTransformation | optax.MultiSteps
    loss: Loss
    _: KW_ONLY
    metrics: Mapping[str, Callable | AbstractMetric] | None = field(default=None, hash=False)
    trainable: PyTree = eqx.is_inexact_array
    compute_dtype: DTypeLike | None = None
    on_nonfinite: Literal["raise", "ignore"] = "raise"
    eval_params: Callable[[Any, PyTree], PyTree] | None = None
    mesh: Mesh | None = None
    _objective: Objective = field(init=False, repr=False, compare=False)

    @short_traceback
    def __post_init__(self):
        _arguments.check_optimizer(self.optimizer)
        _arguments.check_loss(self.loss)
        _arguments.check_hashable("loss", self.loss)
        _arguments.check_on_nonfinite(self.on_nonfinite)
        _arguments.check_eval_params(self.eval_params)
        _sharding.check_mesh(self.mesh)
        objective = Objective(
            loss=self.loss,
            metrics=_arguments.checked_metrics(self.metrics, self.loss),
            compute_dtype=_arguments.checked_dtype(self.compute_dtype),
        )
        object.__setattr__(self, "_objective", objective)

    @short_traceback
    def init(
        self, model: Model, *, model_state: PyTree = None, key: PRNGKeyArray | None = None
    ) -> TrainState[Model]:
        """Make the state that training starts from.

        Args:
            model: Any Equinox module. It stays the caller's: training works on copies.
            model_state: What a model keeps beside its parameters: the second of what
                `eqx.nn.make_with_state` makes, or any PyTree for a loss that takes one.
            key: Where all randomness comes from. By default `jax.random.key(0)`.

        Raises:
            ArgumentError: If the model has nothing to train, or the loss does not take a model
                state.
            CallError: If the optimizer fails on the model's parameters.

        Example:
            >>> state = trainer.init(model, key=jax.random.key(1))
            >>> int(state.step)
            0
        """
        choices = self._choices(model, model_state)
        _arguments.check_key(key)
        model, model_state, key = _sharding.placed(self.mesh, (model, model_state, key))
        with errors.calling("the optimizer"):
            model, model_state, opt_state, key = new_arrays(choices, model, model_state, key)
        params = eqx.filter(model, choices.trained_mask(model))
        opt_state = _sharding.split_like_params(self.mesh, opt_state, params)
        zeros = dict.fromkeys(COUNTS, np.zeros((), np.int32))
        return TrainState(
            model=model, model_state=model_state, opt_state=opt_state, key=key, **zeros
        )

    @short_traceback
    def step(
        self, state: TrainState[Model], batch: PyTree
    ) -> tuple[TrainState[Model], dict[str, Array]]:
        """Make one step: pure, and compiled once for each shape of batch.

        Inside of `jax.jit`, `jax.lax.scan`, `jax.vmap` or `jax.grad` it is a plain function of
        arrays, which these compile, map and differentiate.

        Args:
            state: From `init`, or from a step before; it stays valid.
            batch: As the loss takes it, such as `(x, y)`; for a loss of your own, any PyTree of
                arrays and numbers.

        Returns:
            The new state; and a dict of the loss, as `"loss"`, and of metrics.

        Raises:
            ShapeError: Before compiling, if model, loss and batch do not fit.
            DataError: Before compiling, if the batch is not made of arrays, or has numbers that do
                not fit in JAX's dtypes. Nothing else is looked for, which would take longer than
                the step: NaN, and labels out of range, are for `fit` to find.
            CallError: If the step fails while it runs, by `eqx.error_if` say; on an accelerator
                JAX raises its own error, when a result is read.

        Example:
            >>> state = trainer.init(model)
            >>> for batch in vernal.batches((x, y), batch_size=10):
            ...     state, info = trainer.step(state, batch)
            >>> int(state.step), info["loss"].shape
            (4, ())
        """
        check_state(state)
        if any(isinstance(getattr(state, name), int) for name in COUNTS):
            state = with_numbers_as_arrays(state)
        objective = self._objective.in_training
        preflight = Preflight(objective, state.model, state.model_state)
        try:
            arrays = as_batch(batch, aligned=preflight.takes_examples)
        except errors.ExamplesError as error:
            raise preflight.explained(error, given=batch) from None

        choices = choices_for(self.optimizer, objective, self.trainable, state.model)
        choices = choices._replace(mesh=self.mesh)
        try:
            if in_outer_trace():
                new, measured, _ = with_turned_products(update)(choices, state, arrays)
                return new, measured.info
            choices, state, arrays = on_mesh(choices, state, arrays)
            return step_by_loop(choices, state, arrays)
        except Exception as error:
            # Not looked for before: in a large state that takes as long as a small step.
            in_arrays = with_numbers_as_arrays(state)
            if in_arrays is not state:
                return self.step(in_arrays, batch)
            explain_failed_step(error, preflight, choices, state, arrays, given=batch)
            raise

    @short_traceback
    def epochs(
        self,
        model_or_state: Model | TrainState[Model],
        data: PyTree | Iterable,
        *,
        batch_size: int | None = None,
        shuffle: bool = True,
        validation_data: PyTree | Iterable | None = None,
        steps_per_epoch: int | None = None,
    ) -> Iterator[Epoch]:
        """Train epoch after epoch, without end: leave the loop with `break`.

        Args:
            model_or_state: As in `fit`, as the other arguments.
            data: The data to train on.
            batch_size: Examples in a batch. By default all of them.
            shuffle: Whether each epoch takes the examples in another order.
            validation_data: Measured after each epoch.
            steps_per_epoch: Steps in an epoch, as in `fit`.

        Returns:
            An iterator of `Epoch`s. Their states are the caller's to keep.

        Raises:
            VernalError: As `fit` does, at the call and not at the first epoch.

        Example:
            >>> for epoch in trainer.epochs(model, (x, y), batch_size=10):
            ...     if epoch.metrics["loss"] < 0.01:
            ...         break
            >>> state = epoch.state
        """
        checked, held_out = self._checked(
            model_or_state, data, validation_data, batch_size=batch_size, shuffle=shuffle
        )
        steps_per_epoch = _arguments.checked_steps_per_epoch(steps_per_epoch)
        state = self._state_of(model_or_state)
        run = self._make_run(state, checked, given=model_or_state, steps_per_epoch=steps_per_epoch)
        validate = None if held_out is None else self._make_validate(run, held_out)
        return self._train_epochs(run, validate)

    def _train_epochs(self, run: TrainingRun, validate: Validate | None) -> Iterator[Epoch]:
        recorder = Recorder(self._objective.in_training.metrics)
        run_began = time.perf_counter()

        @short_traceback
        def next_epoch() -> Epoch:
            began = time.perf_counter()
            index = run.epoch
            with fit.keeping_progress_in_errors(run, recorder, run_began):
                for chunk in run.chunks(index + 1):
                    recorder.add(chunk)
            if validate is not None:
                recorder.add_to_epoch(validate())
            return Epoch(index, run.state(), recorder.latest, time.perf_counter() - began)

        while True:
            yield next_epoch()

    @short_traceback
    def fit(
        self,
        model_or_state: Model | TrainState[Model],
        data: PyTree | Iterable,
        *,
        epochs: int,
        steps_per_epoch: int | None = None,
        batch_size: int | None = None,
        shuffle: bool = True,
        validation_data: PyTree | Iterable | None = None,
        validate_every: int = 1,
        callbacks: Iterable[Callable[[Epoch], bool | None]] = (),
        checkpoints: Checkpointing | None = None,
        progress: bool | Literal["auto", "bar", "lines"] = "auto",
        key: PRNGKeyArray | None = None,
    ) -> tuple[TrainState[Model], History]:
        """Train for some epochs.

        Ctrl-C ends the run early: `fit` returns the state and history so far, and prints a line
        that says so. With `checkpoints` they are saved first; SIGTERM does the same, and ends the
        process.

        Args:
            model_or_state: A model, or a state to go on from. Its arrays stay valid.
            data: A tuple `(x, y)` or `(x, y, sample_weight)` of arrays with equal leading axes; for
                a loss of your own, any PyTree of such arrays; or ready batches, taken in their own
                order: a list, a data loader, or a function that yields them, anew at each call.
                Vernal's own losses refuse NaN; to a loss of your own it may mean something.
            epochs: How many this call trains. What is left of an epoch under way counts as one.
            steps_per_epoch: Steps in an epoch: then validation, callbacks, records and
                `every_epochs` of `checkpoints` come after each so many steps, and a pass over the
                data may take several epochs, or a part of one. Ready batches need not end. By
                default an epoch is one pass over the data.
            batch_size: Examples in a batch. By default all of them, which are the most. The last
                batch of an epoch may be smaller, and is trained on as it is.
            shuffle: Whether each pass over the data takes the examples in another order, fixed by
                the state's key and the number of the pass.
            validation_data: As `data`, measured every `validate_every` epochs.
            validate_every: Epochs between two validations.
            callbacks: Called with each `Epoch`; one that returns `True` ends the run. One may also
                have `start()`, called before the run, and `finish(state)`, called after it, which
                may return another state for `fit` to return. What its `state_dict()` returns is
                saved, and given to its `load_state_dict`, in place of `start()`, when a run is
                resumed. See `vernal.callbacks.Callback`.
            checkpoints: Where the run is saved. If it was saved there before, it goes on from
                there, to the same end: the history is that of the whole run. See
                `vernal.Checkpoints`.
            progress: How standard error shows the progress. `"auto"` or `True` is a bar in a
                terminal and in a notebook; elsewhere, as in a log file, it is a line for an epoch,
                at most every three seconds, and for the last one. `"bar"` or `"lines"` decides
                this; `False` shows nothing.
            key: Where all randomness of a new run comes from, as in `init`. A `TrainState` has a
                key already.

        Returns:
            The new state, and the `History` of this call.

        Raises:
            ArgumentError: Before compiling, if an argument cannot be used.
            DataError: Before compiling, if the data cannot be used.
            ShapeError: Before compiling, if model, loss and data do not fit.
            NonFiniteError: When numbers stop being finite.
            CheckpointError: If a checkpoint cannot be written, or belongs to another run.
            Exception: What a loader or a callback raises, as it is. An error that ends the run has
                the last good state as its `state`, and the record as its `history`.

        Example:
            >>> state, history = trainer.fit(
            ...     model, (x, y), epochs=5, batch_size=10, validation_data=(x, y)
            ... )
            >>> history.steps["loss"].shape, history.epochs["val_loss"].shape
            ((20,), (5,))
        """
        plan = _arguments.Plan(
            epochs, steps_per_epoch, batch_size, shuffle, validate_every, checkpoints, progress
        )
        checked, held_out = self._checked(
            model_or_state, data, validation_data, batch_size=batch_size, shuffle=shuffle
        )
        objective = self._objective.in_training
        start = self._state_of(model_or_state, key)
        names = checked.recorded_names(start, validates=held_out is not None)
        callbacks = _arguments.checked_callbacks(callbacks, names, objective.metrics)
        settings = plan.settings([each for each in callbacks if hooks.saves(each)])
        beginning = Beginning(start, settings, objective, checked, held_out)
        recorder = Recorder(objective.metrics)
        make_run = partial(
            self._make_run,
            data=checked,
            given=model_or_state,
            steps_per_epoch=plan.steps_per_epoch,
        )
        run = fit.train(plan, beginning, recorder, callbacks, make_run, self._make_validate)
        history = recorder.history(plan.seconds)
        with fit.keeping_progress_in_errors(run, recorder, plan.began):
            return hooks.finished(run.state_until_next_chunk(), callbacks), history

    def _make_run(self, state: TrainState, data: CheckedData, **arguments: Any) -> TrainingRun:
        """Begin a run of this trainer; see `TrainingRun` for the arguments."""
        choices = self._choices(state.model, state.model_state)
        rewinds = self.on_nonfinite == "raise"
        return TrainingRun(choices, state, data, rewinds=rewinds, **arguments)

    def _make_validate(self, run: TrainingRun, held_out: CheckedData) -> Validate:
        """Return what measures a run's model on validation data."""
        objective = self._objective.in_training

        def validate() -> dict[str, float]:
            state = run.state_until_next_chunk()
            model = self.eval_model(state)
            results = evaluate.evaluate(objective, model, state.model_state, held_out)
            return {f"val_{name}": value for name, value in results.items()}

        self.eval_model(run.state_until_next_chunk())  # a mistake shows before anything is trained
        return validate

    @short_traceback
    def evaluate(
        self,
        model_or_state: PyTree | TrainState,
        data: PyTree | Iterable,
        *,
        batch_size: int | None = None,
    ) -> dict[str, Any]:
        """Measure the loss, and its metrics, on data.

        The averages are over all examples, by their weights: exact whatever the batch size.

        Args:
            model_or_state: A model, or a state with one; the model is put in inference mode.
            data: As in `fit`.
            batch_size: Examples at once. By default all of them.

        Returns:
            A dict with `"loss"`, and each of the metrics.

        Raises:
            VernalError: `ArgumentError`, `DataError` or `ShapeError`, before compiling.

        Example:
            >>> trainer.evaluate(model, (x, y)).keys()
            dict_keys(['loss'])
        """
        model, model_state = self._evaluated(model_or_state)
        _arguments.check_stateful(self.loss, model, model_state)
        preflight = Preflight(self._objective, model, model_state, mesh=self.mesh)
        checked = checked_data(preflight, data, batch_size=batch_size)
        return evaluate.evaluate(self._objective, model, model_state, checked)

    @short_traceback
    def predict(
        self,
        model_or_state: PyTree | TrainState,
        x: PyTree,
        *,
        batch_size: int | None = None,
    ) -> Array:
        """Apply the model, in inference mode, to each example.

        Args:
            model_or_state: A model, or a state with one.
            x: An array, or a PyTree of arrays, with the examples along the leading axis.
            batch_size: Examples at once. By default all of them.

        Returns:
            The outputs, with the examples along the leading axis.

        Raises:
            VernalError: `ArgumentError`, `DataError` or `ShapeError`, before compiling.

        Example:
            >>> trainer.predict(model, x).shape
            (40, 1)
        """
        model, model_state = self._evaluated(model_or_state)
        _arguments.check_stateful(None, model, model_state)
        inferring = eqx.nn.inference_mode(model)
        preflight = Preflight(None, inferring, model_state, name="x", mesh=self.mesh)
        checked = checked_data(preflight, x, batch_size=batch_size)
        return evaluate.predict(model, model_state, checked, self._objective.compute_dtype)

    @short_traceback
    def eval_model(self, state: TrainState[Model]) -> Model:
        """Return the model that a state is evaluated with: see `eval_params`.

        Args:
            state: From `init`, `step` or `fit`. Its `model` stays the one that is trained.

        Raises:
            ArgumentError: If `eval_params` returns other parameters than it is given.
            CallError: If `eval_params` fails.

        Example:
            >>> optimizer = vernal.average_weights(optax.sgd(0.1))
            >>> averaging = vernal.Trainer(
            ...     optimizer, losses.MeanSquaredError(), eval_params=vernal.averaged
            ... )
            >>> state, _ = averaging.fit(model, (x, y), epochs=5)
            >>> bool(averaging.eval_model(state).weight == state.model.weight)
            False
        """
        if self.eval_params is None:
            return state.model

        choices = self._choices(state.model, state.model_state)
        params, frozen = eqx.partition(state.model, choices.trained_mask(state.model))
        with errors.calling("eval_params"):
            evaluated = eqx.filter_jit(self.eval_params)(state.opt_state, params)
        _arguments.check_same_params(evaluated, params)
        return eqx.combine(evaluated, frozen)

    def _evaluated(self, model_or_state: PyTree | TrainState) -> tuple[PyTree, PyTree]:
        """Return the model to evaluate, and its state."""
        model, model_state = model_of(model_or_state)
        if isinstance(model_or_state, TrainState):
            model = self.eval_model(model_or_state)
        return model, model_state

    def _choices(self, model: PyTree, model_state: PyTree) -> Choices:
        _arguments.check_stateful(self.loss, model, model_state)
        objective = self._objective.in_training
        choices = choices_for(self.optimizer, objective, self.trainable, model)
        return choices._replace(mesh=self.mesh)

    def _checked(
        self, model_or_state: Any, data: Any, held_out: Any, *, batch_size: Any, shuffle: bool
    ) -> tuple[CheckedData, CheckedData | None]:
        """Check everything that a run is given, before anything is made of it."""
        model, model_state = model_of(model_or_state)
        self._choices(model, model_state)
        objective = self._objective.in_training
        preflight = Preflight(objective, model, model_state, mesh=self.mesh)
        checked = checked_data(preflight, data, batch_size=batch_size, shuffle=shuffle, trains=True)
        if held_out is None:
            return checked, None

        preflight = replace(preflight, name="validation_data")
        size = None if is_loader(held_out) else batch_size
        return checked, checked_data(preflight, held_out, batch_size=size)

    def _state_of(self, model_or_state: PyTree | TrainState, key: Any = None) -> TrainState:
        """Return a given state, checked; or the one that training a model starts from."""
        model, model_state = model_of(model_or_state)
        if not isinstance(model_or_state, TrainState):
            return self.init(model, key=key)

        _arguments.check_no_key(key)
        state = with_checked_opt_state(self._choices(model, model_state), model_or_state)
        return _sharding.placed(self.mesh, state)
