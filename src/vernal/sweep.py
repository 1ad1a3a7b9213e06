"""Many models in one compiled program: seeds, hyperparameters, folds."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any, Literal

import equinox as eqx
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import ArrayLike, PRNGKeyArray, PyTree

from vernal import _arguments, _hosts
from vernal._checkpointing.named_arrays import digest, is_key
from vernal._data.arrays import number_of_examples
from vernal._data.loader_source import LoaderSource
from vernal._members import Members, each_member, is_stacked, member
from vernal._shapes.jaxprs import text_of
from vernal._shapes.modules import shapes_of
from vernal._sharding import batch_shares, shardings_of
from vernal._sweep import measuring, models
from vernal._sweep.loop import run_steps_of_members
from vernal._sweep.recording import MemberCallbacks, MemberRecorders
from vernal._sweep.result import Prediction, SweepResult
from vernal._sweep.sources import ReadOnce, of_each_member, side_by_side, weighted_source
from vernal._training import evaluate, fit, hooks
from vernal._training.checkpointer import Beginning, Checkpointing
from vernal._training.chunks import TrainingRun
from vernal._training.fit import Validate
from vernal._training.objective import measure
from vernal._training.preflight.data import CheckedData
from vernal._training.state import TrainState
from vernal._training.trainer import Trainer
from vernal._training.update import changing_part, new_arrays
from vernal.errors import ArgumentError, short_traceback, wrong_argument
from vernal.history import counted

__all__ = ["Prediction", "Sweep", "SweepResult"]

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
    _hyperparams: dict[str, Any] = field(init=False, repr=False, compare=False)

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
        hyperparams = models.checked_hyperparams(self.hyperparams, len(keys))
        object.__setattr__(self, "_hyperparams", hyperparams)
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
        plan = _arguments.Plan(
            epochs, steps_per_epoch, batch_size, shuffle, validate_every, checkpoints, progress
        )
        if shuffle not in (True, False, "shared"):
            hint = 'Try shuffle="shared".'
            raise wrong_argument("shuffle", shuffle, 'True, False or "shared"', hint)
        keys: Any = self.keys
        count, objective = len(keys), self.trainer._objective.in_training
        data = models.with_weights(data, weights, count, name="weights")
        validation_data = models.with_weights(
            validation_data, validation_weights, count, name="validation_weights"
        )
        alone = replace(self.trainer, mesh=None)
        pairs, of_optimizer = models.made(self.make_model, keys, self._hyperparams)
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
        source, axes = side_by_side(
            checked.source,
            count,
            weighted=None if weights is None else data,
            own_orders=shuffle is True,
        )
        one_by_one = self._one_by_one(first, checked)
        members = Members(count, one_by_one, axes, unrolled=not checked.loops)
        names = checked.recorded_names(first, validates=held_out is not None)
        own = self._callbacks(callbacks, names)
        recorders = MemberRecorders(objective.metrics, count)
        of_members = MemberCallbacks(own, recorders, names)
        settings = {
            **plan.settings(list(filter(hooks.saves, chain(*own)))),
            "members": count,
            "hyperparams": {name: _told(values) for name, values in self._hyperparams.items()},
            "weights": None if weights is None else digest(np.asarray(weights)),
        }
        start = self._start(first, pairs, of_optimizer, checked.source.example)

        def make_run(state: TrainState, **arguments: Any) -> TrainingRun:
            choices = alone._choices(first.model, first.model_state)._replace(members=members)
            if self.trainer.mesh is not None:
                changing, _ = changing_part(choices, start)
                choices = choices._replace(shardings=shardings_of(changing))
            run = TrainingRun(
                choices,
                state,
                replace(checked, source=source),
                given=None,
                rewinds=False,
                steps_per_epoch=plan.steps_per_epoch,
                program=run_steps_of_members,
                **arguments,
            )
            if self.trainer.on_nonfinite == "raise":
                recorders.end_lost(run)
            return run

        run = fit.train(
            plan,
            Beginning(start, settings, objective, checked, held_out, of_one=first),
            recorders,  # pyright: ignore[reportArgumentType]  # which has a Recorder's methods
            [of_members] if any(own) else [],
            make_run=make_run,
            make_validate=partial(
                self._make_validate,
                members=members,
                weighted=None if validation_weights is None else validation_data,
            ),
        )
        ended = {i: each.reason for i, each in sorted(recorders.ended.items())}
        lost = frozenset(i for i, each in recorders.ended.items() if each.is_lost)
        if progress:
            _report(ended, count)
        states = each_member(run.state_until_next_chunk(), count)
        states = [recorders.last_good(i, state) for i, state in enumerate(states)]
        states = [of_members.finished(i, state) for i, state in enumerate(states)]
        return SweepResult(self.trainer, states, recorders.history(plan.seconds), ended, lost)

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
        own = [_arguments.checked_callbacks(callbacks(i), names, metrics) for i in range(count)]
        keeping = [each for listed in own for each in listed if hooks.saves(each)]
        if len({id(each) for each in keeping}) < len(keeping):
            hint = "Make them in the function: lambda i: [callbacks.BestState()]."
            given = "callbacks gives two members the same object, which keeps something of each"
            raise ArgumentError(f"{given}.\n  {hint}")
        return own

    def _make_validate(
        self,
        run: TrainingRun,
        held_out: CheckedData,
        *,
        members: Members,
        weighted: PyTree | None,
    ) -> Validate:
        """Return what measures all members on validation data."""
        objective = self.trainer._objective.in_training
        source, axes = weighted_source(held_out.source, weighted)
        together = replace(held_out, source=source)
        measured = members._replace(batch_axes=axes)
        parts = of_each_member(source, axes, members.number)
        is_loader = isinstance(held_out.source, LoaderSource)
        apart = [replace(held_out, source=part) for part in parts]

        def validate() -> dict[str, Any]:
            state = run.state_until_next_chunk()
            model, model_state = measuring.eval_models(self.trainer, state), state.model_state
            if members.one_by_one:
                read = ReadOnce(held_out.source) if is_loader else None
                each = [replace(held_out, source=read)] * members.number if read else apart
                of_each = [
                    evaluate.evaluate(objective, member(model, i), member(model_state, i), data)
                    for i, data in enumerate(each)
                ]
            else:
                of_each = measuring.evaluate_members(
                    objective, model, model_state, together, measured
                )
            return {
                f"val_{name}": np.array([each[name] for each in of_each]) for name in of_each[0]
            }

        return validate


def _told(values: Any) -> list | str:
    """Return a few values as they are, or a digest of many, for a checkpoint to compare."""
    numbers = np.asarray(jax.random.key_data(values) if is_key(values) else values)
    return numbers.tolist() if numbers.size <= 32 else digest(numbers)


def _report(ended: dict[int, str], number: int) -> None:
    """Print which members ended early, if any did, and why the first of them."""
    if not ended or sys.stderr is None:
        return
    listed = "; ".join(f"{i}: {reason}" for i, reason in [*ended.items()][:3])
    more = f"; and {len(ended) - 3} more" if len(ended) > 3 else ""
    print(
        f"{len(ended)} of {counted(number, 'member')} ended early ({listed}{more}).",
        file=sys.stderr,
    )
