"""Model, loss and data are checked together, before anything compiles: a trace on shapes alone.

Only if the trace fails is anything explained, by `vernal._explain`.
"""

import functools
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from vernal import _limits, errors
from vernal._data.arrays import as_arrays, signature
from vernal._data.loader_source import LoaderSource
from vernal._data.sources import Source, as_source, is_loader
from vernal._optimizers import Optimizer, initial_opt_state, learning_rate
from vernal._shapes.jaxprs import holds
from vernal._shapes.modules import shapes_of
from vernal._training.objective import Measured, Objective, measure
from vernal._training.state import TrainState
from vernal._training.update import Choices, trained_leaves
from vernal.losses import BinaryCrossEntropy, CrossEntropy, predictions


class Traced(NamedTuple):
    """What a trace says.

    Attributes:
        shapes: What the traced function returns, as shapes.
        convolves: Whether it has convolutions.
    """

    shapes: PyTree
    convolves: bool


def preflight(
    objective: Objective | None,
    model: PyTree,
    model_state: PyTree,
    batch: PyTree,
    *,
    name: str = "data",
    given: PyTree = None,
) -> Traced:
    """Trace a loss with its metrics, or a model alone, on the shapes of a batch.

    Args:
        objective: What to measure; `None` to apply the model to each example.
        model: The model.
        model_state: The model's state, or `None`.
        batch: Its values are read only if there is something to explain.
        name: The argument that the batch was taken from.
        given: That argument, where the batch was made from it: of lists, say, or data frames.

    Returns:
        What `measure` returns, or the model's outputs, as shapes; and whether there are
        convolutions on the way.

    Raises:
        ShapeError: With a fix for the data, if one was found to work.
        VernalError: Any other of Vernal's errors, as it is.
    """
    try:
        return _trace(_measured, objective, model, model_state, batch)
    except Exception as error:
        if isinstance(error, errors.VernalError) and not isinstance(error, errors.ShapeError):
            raise
        explanation = explained(error, objective, model, model_state, batch, name=name, given=given)
        raise explanation from explanation.__cause__


def explained(
    error: Exception,
    objective: Objective | None,
    model: PyTree,
    model_state: PyTree,
    batch: PyTree = None,
    *,
    name: str = "data",
    given: PyTree = None,
) -> errors.ShapeError | errors.CallError:
    """Explain why model, loss and data do not fit, with a fix if one was found to work.

    Args:
        error: What was raised: in a trace, or, an `ExamplesError`, while the data was read.
        objective: As in `preflight`, as the next five.
        model: The model.
        model_state: The model's state.
        batch: What the trace failed on; an `ExamplesError` has its own arrays.
        name: The argument that the data was passed as.
        given: What was passed.

    Returns:
        The error to raise, from its `__cause__`.
    """
    # Only a program that has failed pays for this import.
    from vernal._explain.messages import Attempt, examples_error, shape_error

    loss = None if objective is None else objective.loss

    def measured(loss: Callable | None, model: PyTree, batch: PyTree) -> PyTree:
        # Not in another dtype: the layers of a cast model would be others than those watched.
        tried = objective
        if tried is not None:
            tried = tried._replace(loss=loss, compute_dtype=None)
        return _measured(tried, model, model_state, batch)

    attempt = Attempt(loss, model, model_state, measured)
    if isinstance(error, errors.ExamplesError):
        return examples_error(attempt, error, name=name, given=given)
    return shape_error(attempt, batch, error, name=name, given=given)


def _measured(
    objective: Objective | None, model: PyTree, model_state: PyTree, batch: PyTree
) -> PyTree:
    """Measure a batch as in training; or apply the model, if nothing is measured."""
    if objective is None:
        return predictions(model, batch, model_state=model_state)
    measured = measure(objective, model, model_state, batch, jax.random.key(0))
    return measured._replace(model_state=None)  # an `eqx.nn.State` is not only arrays


def _predicted(model: PyTree, model_state: PyTree, x: PyTree) -> PyTree:
    return predictions(model, x, jax.random.key(0), model_state)


def _trace(function: Callable, *args: Any) -> Traced:
    leaves, structure = jax.tree.flatten(shapes_of(args))
    return _cached_trace(function, structure, tuple(leaves))


@functools.lru_cache(maxsize=256)
def _cached_trace(function: Callable, structure: Any, leaves: tuple) -> Traced:
    # Tracing takes milliseconds; a trace that went well is not made again for the same program.
    args = structure.unflatten(leaves)
    jaxpr, shapes, _ = eqx.filter_make_jaxpr(function)(*args)
    return Traced(shapes, convolves=holds(jaxpr.jaxpr, "conv_general_dilated"))


def label_check(
    objective: Objective | None, model: PyTree, model_state: PyTree, batch: PyTree, name: str
) -> Callable[[PyTree], None]:
    """Make the check that raises `ExamplesError` for a batch with labels out of a loss's range.

    Args:
        objective: The loss; only classification losses have such a range.
        model: The model.
        model_state: The model's state, or `None`.
        batch: A batch that `preflight` has accepted.
        name: The argument that the batches are taken from.
    """
    loss: Any = None if objective is None else objective.loss
    if not isinstance(loss, CrossEntropy | BinaryCrossEntropy):
        return lambda batch: None
    prediction = _trace(_predicted, model, model_state, batch[0]).shapes

    def check(batch: PyTree) -> None:
        try:
            loss.check_labels(batch[1], prediction.shape)
        except errors.ExamplesError as error:
            raise errors.ExamplesError(errors.about(name, error.args[0])) from None

    return check


@dataclass(frozen=True)
class CheckedData:
    """Data that fits a model and a loss.

    Attributes:
        source: The batches.
        loops: Whether many batches may be used in one compiled loop.
        measured: What is measured of a batch, as shapes.
    """

    source: Source
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
    except errors.ExamplesError as error:
        raise explained(error, objective, model, model_state, name=name, given=data) from None
    except errors.DataError as error:
        raise errors.DataError(errors.about(name, error.args[0])) from None

    check_shapes = functools.partial(preflight, objective, model, model_state, name=name)
    of_arrays = None if isinstance(source, LoaderSource) else data
    traced = check_shapes(source.example, given=of_arrays)
    check_labels = label_check(objective, model, model_state, source.example, name)
    if isinstance(source, LoaderSource):
        source.check_each_batch(shapes=check_shapes, labels=check_labels)
    else:
        check_labels(source.example)
    loops = _limits.current().loops_convolutions or not traced.convolves
    return CheckedData(source, loops, traced.shapes)


def checked_run(
    objective: Objective,
    model: PyTree,
    model_state: PyTree,
    data: PyTree | Iterable,
    validation_data: PyTree | Iterable | None,
    *,
    batch_size: int | None,
    shuffle: bool,
) -> tuple[CheckedData, CheckedData | None]:
    """Check the data that a run trains on, and its validation data if there is any."""
    check = functools.partial(checked_data, objective, model, model_state)
    checked = check(data, batch_size=batch_size, shuffle=shuffle, trains=True)
    if validation_data is None:
        return checked, None

    size = None if is_loader(validation_data) else batch_size
    return checked, check(validation_data, batch_size=size, name="validation_data")


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
        raise errors.ArgumentError(
            f"trainable is {errors.kind(trainable)}; a function of an array is needed, or a PyTree "
            f"of True and False with the structure of the model, {errors.kind(model)}."
            "\n  Make one from the model: jax.tree.map(lambda _: False, model), then eqx.tree_at."
        ) from error
    if not any(trained):
        raise errors.ArgumentError(
            f"model is {errors.kind(model)}, without a float array to train."
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
        raise errors.ArgumentError(
            "state.opt_state was made by another optimizer, or for other trainable parameters."
            f"\n  Begin anew with the model: trainer.init({arguments})."
        )
    return state


@functools.lru_cache(maxsize=256)
def _opt_state_signature(optimizer: Optimizer, params: Any) -> Hashable:
    treedef, leaves = params
    shapes = treedef.unflatten([jax.ShapeDtypeStruct(*leaf) for leaf in leaves])
    made = eqx.filter_eval_shape(initial_opt_state, optimizer, shapes)
    return signature(eqx.filter(made, lambda leaf: hasattr(leaf, "dtype")))


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
