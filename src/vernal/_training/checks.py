"""What a run is given is checked before anything is made of it: data, and the optimizer."""

import functools
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from vernal import _limits, errors
from vernal._data.array_source import ArraySource
from vernal._data.arrays import as_arrays, signature
from vernal._data.loader_source import LoaderSource
from vernal._data.sources import Source, as_source
from vernal._optimizers import Optimizer, initial_opt_state, learning_rate
from vernal._training.objective import Measured, Objective
from vernal._training.preflight import Traced, explained, preflight, trace, trace_predictions
from vernal._training.state import TrainState
from vernal._training.update import Choices, trained_leaves
from vernal.losses import AbstractSupervised, BinaryCrossEntropy, CrossEntropy, Supervised


def takes_examples(objective: Objective | None) -> bool:
    """Whether a loss, or a model alone, takes the examples of a batch one by one.

    Every part of a batch then needs as many. A loss of a user's own takes the batch as it is.
    """
    loss = None if objective is None else objective.loss
    return loss is None or (isinstance(loss, AbstractSupervised) and not loss.has_own_call)


def _is_built_in(loss: Callable | None) -> bool:
    return type(loss).__module__ == AbstractSupervised.__module__


def label_check(
    objective: Objective | None, model: PyTree, model_state: PyTree, batch: PyTree, name: str
) -> Callable[[PyTree], None]:
    """Make the check that raises `ExamplesError` for a batch with labels out of a loss's range.

    Args:
        objective: The loss; only classification losses have such a range.
        model: The model.
        model_state: The model's state, or `None`.
        batch: A batch that `preflight` has accepted, or its shapes.
        name: The argument that the batches are taken from.
    """
    loss: Any = None if objective is None else objective.loss
    if not isinstance(loss, CrossEntropy | BinaryCrossEntropy) or not _is_built_in(loss):
        return lambda batch: None
    _, *example = trace_predictions(model, model_state, batch[0]).shape

    def check(batch: PyTree) -> None:
        y = batch[1]
        try:
            loss.check_labels(y, (len(y), *example))
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
    loss = None if objective is None else objective.loss
    try:
        # A list of batches is a loader. But a list that a model is applied to is an array.
        is_array = name == "x" and isinstance(data, list)
        source = as_source(
            as_arrays(data, name=name) if is_array else data,
            batch_size,
            shuffle=shuffle,
            trains=trains,
            # NaN may mean something to any other loss, or to a model.
            finite=_is_built_in(loss) and not isinstance(loss, Supervised),
            aligned=takes_examples(objective),
            name=name,
        )
    except errors.ExamplesError as error:
        raise explained(error, objective, model, model_state, name=name, given=data) from None
    except errors.DataError as error:
        raise errors.DataError(errors.about(name, error.args[0])) from None

    check_shapes = functools.partial(preflight, objective, model, model_state, name=name)
    if isinstance(source, LoaderSource):
        # A list that a loss of one's own cannot take may be x and y.
        traced = check_shapes(source.example, given=None if takes_examples(objective) else data)
        check_labels = label_check(objective, model, model_state, source.example, name)
        source.check_each_batch(shapes=check_shapes, labels=check_labels)
    else:
        traced = _trace_batches(objective, model, model_state, source, name=name, given=data)
        label_check(objective, model, model_state, source.example, name)(source.arrays)
    loops = _limits.current().loops_convolutions or not traced.convolves
    return CheckedData(source, loops, traced.shapes)


def _trace_batches(
    objective: Objective | None,
    model: PyTree,
    model_state: PyTree,
    source: ArraySource,
    *,
    name: str,
    given: PyTree,
) -> Traced:
    """Trace a full batch of arrays, and the smaller last one; return the trace of the full one.

    Raises:
        ShapeError: With the shapes of all the data, for a loss of single examples.
        VernalError: As `preflight` does.
    """
    check = functools.partial(preflight, objective, model, model_state, name=name, given=given)
    traces = []
    for size in source.sizes:
        try:
            traces.append(trace(objective, model, model_state, source.shapes(size)))
        except Exception:
            if size == source.examples or takes_examples(objective):
                check(source.arrays)
            try:
                check(source.first(size))
            except errors.ShapeError as error:
                about = f"A batch has {size} of the {source.examples} examples."
                if size < source.batch_size:
                    rest = source.examples - size
                    about = f"The last batch of an epoch has {size} of the {source.examples}"
                    about += f" examples. Leave them out, as in x[:{rest}]."
                raise errors.ShapeError(f"{error.args[0]}\n  {about}") from error.__cause__
    return traces[0]


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
