"""What a run needs, checked and made."""

import functools
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from vernal import _limits
from vernal._data.arrays import as_arrays, signature
from vernal._data.loader_source import LoaderSource
from vernal._data.sources import as_source
from vernal._training.chunks import TrainingRun
from vernal._training.evaluate import AnySource, evaluate
from vernal._training.objective import Measured, Objective
from vernal._training.preflight import explained, label_check, preflight
from vernal._training.state import TrainState
from vernal._training.update import Choices, Optimizer, learning_rate, trained_leaves
from vernal.errors import ArgumentError, DataError, ExamplesError, about, kind


@dataclass(frozen=True)
class CheckedData:
    """Data that fits a model and a loss.

    Attributes:
        source: The batches.
        loops: Whether many batches may be used in one compiled loop.
        measured: What is measured of a batch, as shapes.
    """

    source: AnySource
    loops: bool
    measured: Any


def checked_data(
    objective: Objective | None,
    model: PyTree,
    model_state: PyTree,
    data: PyTree | Iterable,
    *,
    batch_size: int | None,
    shuffle: bool = False,
    trains: bool = False,
    name: str = "data",
) -> CheckedData:
    """Make data a source of batches, and check it against the model and the loss.

    Args:
        objective: What is measured; `None` to apply the model to each example.
        model: The model.
        model_state: Its state.
        data: Arrays, or a loader of ready batches.
        batch_size: Examples in a batch; `None` is all of them.
        shuffle: Whether an epoch takes the examples in an order of its own.
        trains: Whether the batches are trained on.
        name: The argument that `data` is, for messages.

    Raises:
        ArgumentError: If `batch_size` cannot be used.
        DataError: If the data cannot be used.
        ShapeError: If model, loss and data do not fit.
    """
    try:
        # A list of batches is a loader. But a list that a model is applied to is an array.
        is_array = name == "x" and isinstance(data, list)
        given = as_arrays(data, name=name) if is_array else data
        source = as_source(given, batch_size, shuffle=shuffle, trains=trains, name=name)
    except ExamplesError as error:
        raise explained(error, objective, model, model_state, name=name, given=data) from None
    except DataError as error:
        raise DataError(about(name, str(error))) from None

    check_shapes = functools.partial(preflight, objective, model, model_state, name=name)
    check_labels = label_check(objective, model, model_state, source.example, name)
    if isinstance(source, LoaderSource):
        traced = check_shapes(source.example)
        source.check_each_batch(shapes=check_shapes, labels=check_labels)
    else:
        traced = check_shapes(source.example, given=data)
        check_labels(source.example)
    loops = _limits.current().loops_convolutions or not traced.convolves
    return CheckedData(source, loops, traced.shapes)


def choices_for(
    optimizer: Optimizer, objective: Objective, trainable: PyTree, model: PyTree
) -> Choices:
    """Make out a trainer's choices for a model.

    Raises:
        ArgumentError: If the model has nothing to train.
    """
    try:
        trained = trained_leaves(model, trainable)
    except ValueError as error:
        raise ArgumentError(
            f"trainable is {kind(trainable)}; a function of an array is needed, or a PyTree of "
            f"True and False with the structure of the model, {kind(model)}."
            "\n  Make one from the model: jax.tree.map(lambda _: False, model), then eqx.tree_at."
        ) from error
    if not any(trained):
        raise ArgumentError(
            f"model is {kind(model)}, without a float array to train."
            "\n  Pass an instance of an eqx.Module, and see what `trainable` picks of it."
        )
    return Choices(optimizer, objective, trained)


def with_checked_opt_state(choices: Choices, state: TrainState) -> TrainState:
    """Return the state, with arrays for numbers that were put into the optimizer's state by hand.

    Raises:
        ArgumentError: If the optimizer's state was made by another optimizer, or for other
            parameters.
    """
    arrays, rest = eqx.partition(state.opt_state, eqx.is_array_like)
    if not all(map(eqx.is_array, jax.tree.leaves(arrays))):
        arrays = jax.tree.map(lambda leaf: np.asarray(leaf, jnp.result_type(leaf)), arrays)
        state = replace(state, opt_state=eqx.combine(arrays, rest))

    params = eqx.filter(state.model, choices.trained_mask(state.model))
    if _opt_state_signature(choices.optimizer, signature(params)) != signature(arrays):
        arguments = "state.model"
        if state.model_state is not None:
            arguments += ", model_state=state.model_state"
        raise ArgumentError(
            "state.opt_state was made by another optimizer, or for other trainable parameters."
            f"\n  Begin anew with the model: trainer.init({arguments})."
        )
    return state


@functools.lru_cache(maxsize=256)
def _opt_state_signature(optimizer: Optimizer, params: Any) -> Hashable:
    treedef, leaves = params
    shapes = treedef.unflatten([jax.ShapeDtypeStruct(*leaf) for leaf in leaves])
    made = eqx.filter_eval_shape(optimizer.init, shapes)
    return signature(eqx.filter(made, lambda leaf: hasattr(leaf, "dtype")))


def validator(
    objective: Objective, run: TrainingRun, held_out: CheckedData | None
) -> Callable[[], dict[str, float]] | None:
    """Return what measures a run's model on validation data, if there is any."""
    if held_out is None:
        return None

    def validate() -> dict[str, float]:
        state = run.state_until_next_chunk()
        return evaluate(
            objective, state.model, state.model_state, held_out.source, loops=held_out.loops
        )

    return validate


def recorded_names(measured: Measured, state: TrainState, *, validates: bool) -> list[str]:
    """Return the names of what a run records of an epoch.

    Args:
        measured: What is measured of a batch, as shapes.
        state: The state that the run begins with.
        validates: Whether there is validation data.
    """
    names = [*measured.info]
    validated = [f"val_{name}" for name in names] if validates else []
    shown = [] if learning_rate(state.opt_state) is None else ["learning_rate"]
    return [*names, *shown, *validated]
