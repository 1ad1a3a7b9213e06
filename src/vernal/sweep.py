"""Many models in one compiled program: seeds, hyperparameters, folds."""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from itertools import chain
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import ArrayLike, PRNGKeyArray, PyTree

from vernal import _arguments, _hosts, plot
from vernal._best import best_of
from vernal._checkpointing.named_arrays import digest
from vernal._data.arrays import number_of_examples
from vernal._members import Members, each_member, is_stacked, member
from vernal._shapes.jaxprs import text_of
from vernal._shapes.modules import shapes_of
from vernal._sharding import batch_shares, shardings_of
from vernal._sweep import measuring, models
from vernal._sweep.loop import run_steps_of_members
from vernal._sweep.recording import MemberCallbacks, MemberRecorders
from vernal._sweep.sources import of_each_member, side_by_side, weighted_source
from vernal._training import evaluate, fit
from vernal._training.checkpointer import Beginning, Checkpointing, NoCheckpoints
from vernal._training.chunks import TrainingRun
from vernal._training.interrupt import Interrupt
from vernal._training.objective import measure
from vernal._training.preflight.data import CheckedData, checked_data
from vernal._training.preflight.trace import Preflight
from vernal._training.progress import Progress
from vernal._training.state import TrainState
from vernal._training.trainer import Trainer
from vernal._training.update import changing_part, new_arrays
from vernal.errors import ArgumentError, did_you_mean, short_traceback, whole_number, wrong_argument
from vernal.history import History, counted

# So many operations in one model's step keep a core busy: with more, the members take turns, which
# is then as fast or faster. See benchmarks/sweep.py.
_MOST_AT_ONCE = 10**6


@dataclass(frozen=True)
class Sweep:
    """Trains many models at once: a `Trainer`, a function that makes a model, and a key for each.

    Each member is the model that `trainer.fit(make_model(key), data, key=key)` trains, up to
    rounding: with its own weights, optimizer state, dropout, order of the examples, history.

    Args:
        trainer: How each member is trained. Its `mesh`, if it has one, spreads the members over the
            devices of its first axis.
        make_model: Called as `make_model(key)`; returns a model, or a model and its state. All
            models have arrays of the same shapes.
        keys: A random key for each member, as from `jax.random.split(key, 8)`.
        hyperparams: name -> an array with a value for each member: of an argument of `make_model`,
            or of a hyperparameter that the optimizer's state shows, as with
            `optax.inject_hyperparams`.
        exact: Whether each member gets the bits that it gets alone. The members then take turns,
            many steps each. By default small models make each step at once, which is faster.

    Raises:
        ArgumentError: If one of them cannot be used.

    Example:
        >>> sweep = vernal.Sweep(
        ...     vernal.Trainer(optax.inject_hyperparams(optax.sgd)(0.1), losses.MeanSquaredError()),
        ...     lambda key: nn.Linear(1, 1, key=key),
        ...     keys=jax.random.split(jax.random.key(0), 3),
        ...     hyperparams={"learning_rate": [0.001, 0.01, 0.1]},
        ... )
        >>> result = sweep.fit((x, y), epochs=20)
        >>> len(result), result.ranked("loss")[0]
        (3, 2)
    """

    trainer: Trainer
    make_model: Callable[..., Any]
    _: KW_ONLY
    keys: PRNGKeyArray | Sequence[PRNGKeyArray]
    hyperparams: Mapping[str, Any] | None = None
    exact: bool = False

    @short_traceback
    def __post_init__(self):
        if not isinstance(self.trainer, Trainer):
            hint = "Try vernal.Trainer(optimizer, loss)."
            raise wrong_argument("trainer", self.trainer, "a vernal.Trainer", hint)
        if not callable(self.make_model) or isinstance(self.make_model, eqx.Module):
            hint = "Try lambda key: nn.MLP(2, 1, 32, 2, key=key)."
            raise wrong_argument("make_model", self.make_model, "a function of a key", hint)
        keys = models.checked_keys(self.keys)
        object.__setattr__(self, "keys", keys)
        models.checked_hyperparams(self.hyperparams, len(keys))
        if _hosts.are_several(self.trainer.mesh):
            hint = "Start a sweep on each host, with its own keys and a trainer without a mesh."
            given = "the mesh has devices of several hosts; those of one are needed for a sweep"
            raise ArgumentError(f"{given}.\n  {hint}")
        if self.trainer.mesh is not None and len(keys) % batch_shares(self.trainer.mesh):
            shares = batch_shares(self.trainer.mesh)
            given = f"keys has {len(keys)} keys, which the {shares} devices of the mesh"
            fitting = -(-len(keys) // shares) * shares
            raise ArgumentError(f"{given} cannot share evenly.\n  Try {fitting} keys.")

    @short_traceback
    def fit(
        self,
        data: PyTree | Iterable,
        *,
        epochs: int,
        steps_per_epoch: int | None = None,
        batch_size: int | None = None,
        shuffle: bool | Literal["shared"] = True,
        validation_data: PyTree | Iterable | None = None,
        validate_every: int = 1,
        weights: ArrayLike | None = None,
        validation_weights: ArrayLike | None = None,
        callbacks: Callable[[int], Iterable[Callable]] | None = None,
        checkpoints: Checkpointing | None = None,
        progress: bool | Literal["auto", "bar", "lines"] = "auto",
    ) -> "SweepResult":
        """Train all members for some epochs.

        A member ends before the others if its numbers stop being finite, or one of its callbacks
        ends it. It keeps its last good state; the others go on.

        Args:
            data: As in `Trainer.fit`.
            epochs: How many to train.
            steps_per_epoch: As in `Trainer.fit`, as the arguments that are not explained here.
            batch_size: Examples in a batch. By default all of them.
            shuffle: `True` gives each member an order of its own, that of its key; "shared" gives
                all of them one, which is faster; `False` keeps the order of the data.
            validation_data: As `data`.
            validate_every: Epochs between two validations.
            weights: The weights that each member gives the examples, as of folds: an array of the
                shape (members, examples), with `data` as arrays `(x, y)`. By default they are 1.
            validation_weights: The same for `validation_data`.
            callbacks: A function from a member's number to a list of its callbacks, such as
                `lambda i: [callbacks.EarlyStopping(patience=5)]`. One that returns `True` ends its
                member alone.
            checkpoints: Where the run is saved, and resumed.
            progress: How standard error shows the progress: the medians over the members.

        Returns:
            A `SweepResult`: the states and histories of the members.

        Raises:
            VernalError: As `Trainer.fit` does; and `ArgumentError` if the models cannot be stacked.
        """
        began = time.perf_counter()
        trainer, objective = self.trainer, self.trainer._objective.in_training
        epochs = whole_number("epochs", epochs, at_least=0)
        validate_every = whole_number("validate_every", validate_every, at_least=1)
        steps_per_epoch = _arguments.checked_steps_per_epoch(steps_per_epoch)
        _arguments.check_checkpoints(checkpoints)
        _arguments.check_progress(progress)
        if shuffle not in (True, False, "shared"):
            hint = 'Try shuffle="shared".'
            raise wrong_argument("shuffle", shuffle, 'True, False or "shared"', hint)
        data = models.with_weights(data, weights, len(self.keys), name="weights")
        validation_data = models.with_weights(
            validation_data, validation_weights, len(self.keys), name="validation_weights"
        )
        pairs, of_optimizer = self._models()
        alone = replace(trainer, mesh=None)
        first = alone.init(pairs[0][0], model_state=pairs[0][1], key=self.keys[0])
        checked, held_out = alone._checked(
            first,
            data if weights is None else models.with_first_weights(data),
            validation_data
            if validation_weights is None
            else models.with_first_weights(validation_data),
            batch_size=batch_size,
            shuffle=bool(shuffle),
        )
        start = self._start(first, pairs, of_optimizer, checked.source.example)
        one_by_one = self._one_by_one(first, checked)
        source, axes = side_by_side(
            checked.source,
            len(self.keys),
            weighted=None if weights is None else data,
            own_orders=shuffle is True,
        )
        members = Members(len(self.keys), one_by_one, axes, unrolled=not checked.loops)
        names = checked.recorded_names(first, validates=held_out is not None)
        own = self._callbacks(callbacks, names)
        settings = {
            "batch_size": None if batch_size is None else int(batch_size),
            "shuffle": shuffle,
            "steps_per_epoch": steps_per_epoch,
            "members": members.number,
            "weights": None if weights is None else digest(np.asarray(weights)),
        }
        beginning = Beginning(start, settings, objective, checked, held_out, of_one=first)

        checkpointer = NoCheckpoints() if checkpoints is None else checkpoints.open()
        with contextlib.closing(checkpointer):
            saved = checkpointer.restore(beginning)
            choices = alone._choices(first.model, first.model_state)._replace(members=members)
            if trainer.mesh is not None:
                changing, _ = changing_part(choices, start)
                choices = choices._replace(shardings=shardings_of(changing))
            run = TrainingRun(
                choices,
                start if saved is None else saved.state,
                replace(checked, source=source),
                given=None,
                rewinds=False,
                epochs=epochs,
                steps_per_epoch=steps_per_epoch,
                every_steps=checkpointer.every_steps,
                program=run_steps_of_members,
            )
            recorders: Any = MemberRecorders(objective.metrics, members.number)
            if saved is not None:
                recorders.restore(saved.record, checked.recorded_names(first))
            if trainer.on_nonfinite == "raise":
                recorders.end_lost(run)
            of_members = MemberCallbacks(own, recorders, names)
            saving = fit.Saving(checkpointer, run, recorders, [of_members], epochs=epochs)
            saving.begin(saved)

            shown = Progress(
                progress, run, recorders, last_epoch=saving.last_epoch, callbacks=list(chain(*own))
            )
            interrupt = Interrupt(saves=checkpointer.path is not None)
            keeping = fit.keeping_progress_in_errors(run, recorders, began)
            with keeping, interrupt, saving.when_interrupted(), shown:
                fit.train(
                    run,
                    recorders,
                    saving,
                    validate=self._validator(
                        run,
                        held_out,
                        members,
                        weighted=None if validation_weights is None else validation_data,
                    ),
                    validate_every=validate_every,
                    every_epochs=checkpointer.every_epochs,
                    callbacks=[of_members] if any(own) else [],
                    names=names,
                    progress=shown,
                    interrupt=interrupt,
                )

        interrupt.report(recorders.steps, saving.saved_steps, checkpointer.path)
        interrupt.end_process()
        ended = {i: each.reason for i, each in sorted(recorders.ended.items())}
        if progress:
            _report(ended, members.number)
        states = each_member(run.state_until_next_chunk(), members.number)
        states = [recorders.last_good(i, state) for i, state in enumerate(states)]
        states = [of_members.finished(i, state) for i, state in enumerate(states)]
        histories = recorders.history(time.perf_counter() - began)
        return SweepResult(trainer, states, histories, ended)

    def _models(self) -> tuple[list[tuple[PyTree, PyTree]], dict[str, Any]]:
        """Make the members' models, and their states; return the optimizer's hyperparameters."""
        keys = models.checked_keys(self.keys)
        hyperparams = models.checked_hyperparams(self.hyperparams, len(keys))
        return models.made(self.make_model, keys, hyperparams)

    def _start(
        self,
        first: TrainState,
        pairs: list[tuple[PyTree, PyTree]],
        hyperparams: dict[str, Any],
        batch: PyTree,
    ) -> TrainState:
        """Return the state that all members start from.

        Args:
            first: That of the first member.
            pairs: The members' models and their states.
            hyperparams: Those of the optimizer.
            batch: A batch of one member.
        """
        alone = replace(self.trainer, mesh=None)
        objective = self.trainer._objective.in_training

        def program_of(pair: tuple[PyTree, PyTree]) -> tuple[str, list]:
            def loss(pair: tuple[PyTree, PyTree], batch: PyTree) -> PyTree:
                model, model_state = pair
                return measure(objective, model, model_state, batch, jax.random.key(0)).info

            jaxpr, _, _ = eqx.filter_make_jaxpr(loss)(*shapes_of((pair, batch)))
            constants = [np.asarray(each).tolist() for each in jaxpr.consts]
            return text_of(jaxpr), constants

        stacked, stacked_state = models.stacked(pairs, program_of)
        choices = alone._choices(first.model, first.model_state)
        make = eqx.filter_vmap(lambda model, state, key: new_arrays(choices, model, state, key))
        model, model_state, opt_state, key = make(stacked, stacked_state, self.keys)
        opt_state = models.with_hyperparams(opt_state, hyperparams)
        start = replace(first, model=model, model_state=model_state, opt_state=opt_state, key=key)
        if self.trainer.mesh is not None:
            axis = self.trainer.mesh.axis_names[0]
            split = NamedSharding(self.trainer.mesh, PartitionSpec(axis))
            start = jax.tree.map(
                lambda leaf: jax.device_put(leaf, split) if is_stacked(leaf) else leaf, start
            )
        return start

    def _one_by_one(self, first: TrainState, checked: CheckedData) -> bool:
        """Return whether the members take turns: as asked, or where that is not slower."""
        if self.exact or not checked.loops:
            return True
        arrays = jax.tree.leaves(eqx.filter(first.model, eqx.is_inexact_array))
        examples = number_of_examples(checked.source.example) or 1
        # A product and a sum for each weight and example: forward, for the data, for the weights.
        operations = 6 * examples * sum(leaf.size for leaf in arrays)
        is_alone = jax.default_backend() == "cpu" and self.trainer.mesh is None
        return is_alone and operations > _MOST_AT_ONCE

    def _callbacks(self, callbacks: Any, names: list[str]) -> list[list[Callable]]:
        """Return each member's callbacks."""
        count = len(self.keys)
        if callbacks is None:
            return [[] for _ in range(count)]
        if not callable(callbacks):
            hint = "Write callbacks=lambda i: [...], so that each member has its own."
            raise wrong_argument("callbacks", callbacks, "a function of a member's number", hint)
        metrics = self.trainer._objective.in_training.metrics
        return [_arguments.checked_callbacks(callbacks(i), names, metrics) for i in range(count)]

    def _validator(
        self,
        run: TrainingRun,
        held_out: CheckedData | None,
        members: Members,
        *,
        weighted: PyTree | None,
    ) -> Callable[[], dict[str, Any]] | None:
        """Return what measures all members on validation data, if there is any."""
        if held_out is None:
            return None
        objective = self.trainer._objective.in_training
        source, axes = weighted_source(held_out.source, weighted)
        together = replace(held_out, source=source)
        measured = members._replace(batch_axes=axes)
        parts = of_each_member(source, axes, members.number)
        apart = [replace(held_out, source=part) for part in parts]

        def validate() -> dict[str, Any]:
            state = run.state_until_next_chunk()
            model, model_state = _eval_models(self.trainer, state), state.model_state
            if members.one_by_one:
                of_each = [
                    evaluate.evaluate(objective, member(model, i), member(model_state, i), data)
                    for i, data in enumerate(apart)
                ]
            else:
                of_each = measuring.evaluate_members(
                    objective, model, model_state, together, measured
                )
            return {
                f"val_{name}": np.array([each[name] for each in of_each]) for name in of_each[0]
            }

        return validate


class Prediction(NamedTuple):
    """What the members of a sweep predict together.

    Attributes:
        mean: The mean of their outputs.
        std: The standard deviation of their outputs, with their number as the divisor.
    """

    mean: PyTree
    std: PyTree


@dataclass(frozen=True, eq=False)
class SweepResult:
    """What a sweep has trained: `result[i]` is the state of member i, which `fit` goes on with.

    Attributes:
        histories: The record of each member.
        ended: Why members ended before the others, by their numbers.

    Example:
        >>> keys = jax.random.split(jax.random.key(0), 4)
        >>> sweep = vernal.Sweep(trainer, lambda key: nn.Linear(1, 1, key=key), keys=keys)
        >>> result = sweep.fit((x, y), epochs=10)
        >>> state = result.best("loss")
        >>> mean, std = result.predict(x)
        >>> mean.shape, std.shape
        ((40, 1), (40, 1))
    """

    trainer: Trainer = field(repr=False)
    states: list[TrainState]
    histories: list[History]
    ended: dict[int, str]

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, i: int) -> TrainState:
        return self.states[i]

    def __iter__(self) -> Iterator[TrainState]:
        return iter(self.states)

    @short_traceback
    def ranked(
        self, monitor: str = "val_loss", *, mode: Literal["auto", "min", "max"] = "auto"
    ) -> list[int]:
        """Return the members' numbers, the best first, by the last value of a metric.

        Members whose last value is NaN, or whose numbers stopped being finite, come last.

        Args:
            monitor: The name of the metric, as in the histories' `epochs`.
            mode: Whether "min" or "max" is best; "auto" knows this of Vernal's metrics, and of
                others by their names.

        Raises:
            ArgumentError: If nothing of this name was measured, or nobody knows which is best.
        """
        known = {name for history in self.histories for name in history.epochs}
        if monitor not in known:
            given = (
                f"monitor is {monitor!r}, and the sweep has measured {', '.join(sorted(known))}."
            )
            raise ArgumentError(given + did_you_mean(monitor, known))
        metric = self.trainer._objective.metrics.get(monitor.removeprefix("val_"))
        best = best_of(monitor, metric) if mode == "auto" else mode
        if best not in ("min", "max"):
            hint = f'Try ranked({monitor!r}, mode="max"), or mode="min".'
            raise ArgumentError(f"which values of {monitor!r} are best is not known.\n  {hint}")
        sign = -1 if best == "max" else 1

        def place(i: int) -> tuple[bool, float]:
            values = self.histories[i].epochs.get(monitor, np.empty(0))
            measured = values[~np.isnan(values)]
            is_lost = not len(measured) or "finite" in self.ended.get(i, "")
            return is_lost, math.inf if not len(measured) else sign * float(measured[-1])

        return sorted(range(len(self)), key=place)

    def best(
        self, monitor: str = "val_loss", *, mode: Literal["auto", "min", "max"] = "auto"
    ) -> TrainState:
        """Return the state of the best member; `ranked` has its number, and the arguments."""
        return self[self.ranked(monitor, mode=mode)[0]]

    @short_traceback
    def predict(self, x: PyTree, *, batch_size: int | None = None) -> Prediction:
        """Apply all models, in inference mode, to each example: their mean, and how they differ.

        Members whose numbers stopped being finite are left out.

        Args:
            x: As in `Trainer.predict`.
            batch_size: Examples at once. By default all of them.
        """
        outputs = self.predict_each(x, batch_size=batch_size)
        good = np.array([i for i in range(len(self)) if "finite" not in self.ended.get(i, "")])
        if not len(good):
            raise ArgumentError("the numbers of every member stopped being finite: see ended.")
        outputs = jax.tree.map(lambda leaf: leaf[good], outputs)
        return Prediction(
            mean=jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), outputs),
            std=jax.tree.map(lambda leaf: jnp.std(leaf, axis=0), outputs),
        )

    @short_traceback
    def predict_each(self, x: PyTree, *, batch_size: int | None = None) -> PyTree:
        """Apply each model; the members come along the leading axis of the outputs."""
        trainer = replace(self.trainer, mesh=None)
        state = _stacked_states(self.states)
        first = self.states[0]
        inferring = eqx.nn.inference_mode(first.model)
        preflight = Preflight(None, inferring, first.model_state, name="x")
        checked = checked_data(preflight, x, batch_size=batch_size)
        axes = (None,) * len(jax.tree.leaves(checked.source.example))
        return measuring.predict_members(
            _eval_models(trainer, state),
            state.model_state,
            checked,
            trainer._objective.compute_dtype,
            Members(len(self), one_by_one=False, batch_axes=axes),
        )

    def plot(self, ax: Any = None, metrics: str | Sequence[str] = ("loss",)) -> Any:
        """Draw the curves of all members in one picture; see `vernal.plot.history`.

        Returns:
            Matplotlib's axes.
        """
        return plot.histories(self.histories, ax=ax, metrics=metrics)

    def __repr__(self) -> str:
        measured = [history.epochs["loss"] for history in self.histories if history.epochs]
        last = [float(values[-1]) for values in measured if len(values)]
        losses = f", loss {min(last):.4g} to {max(last):.4g}" if last else ""
        early = f", {len(self.ended)} ended early" if self.ended else ""
        return f"SweepResult({counted(len(self), 'member')}{losses}{early})"


def _report(ended: dict[int, str], number: int) -> None:
    """Print which members ended before the others, if any did, and why the first of them."""
    if not ended or sys.stderr is None:
        return
    listed = "; ".join(f"{i}: {reason}" for i, reason in [*ended.items()][:3])
    more = f"; and {len(ended) - 3} more" if len(ended) > 3 else ""
    some = f"{counted(len(ended), 'member')} of {number} ended before the others"
    print(f"{some} ({listed}{more}).", file=sys.stderr)


def _eval_models(trainer: Trainer, state: TrainState) -> PyTree:
    """Return the models that the states of many are evaluated with."""
    if trainer.eval_params is None:
        return state.model
    alone = replace(trainer, mesh=None)
    axes = jax.tree.map(lambda leaf: 0 if is_stacked(leaf) else None, state)
    return eqx.filter_vmap(alone.eval_model, in_axes=(axes,))(state)


def _stacked_states(states: list[TrainState]) -> TrainState:
    """Stack the states of members; the counts are the first one's."""
    first = states[0]
    parts = [(each.model, each.model_state, each.opt_state) for each in states]
    model, model_state, opt_state = jax.tree.map(
        lambda leaf, *rest: jnp.stack([leaf, *rest]) if eqx.is_array(leaf) else leaf, *parts
    )
    key = jnp.stack([each.key for each in states])
    return replace(first, model=model, model_state=model_state, opt_state=opt_state, key=key)
