"""Model, loss and data are checked together, before anything compiles: a trace on shapes alone.

Only if the trace fails is anything explained, by `vernal._explain`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
from jaxtyping import PyTree

from vernal import errors
from vernal._shapes.jaxprs import holds
from vernal._shapes.modules import shapes_of
from vernal._training.objective import Objective, measure
from vernal.losses import predictions


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
        return trace(objective, model, model_state, batch)
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


def trace(objective: Objective | None, model: PyTree, model_state: PyTree, batch: PyTree) -> Traced:
    """Trace what `preflight` does; what is raised is not explained."""
    return _trace(_measured, objective, model, model_state, batch)


def trace_predictions(model: PyTree, model_state: PyTree, x: PyTree) -> PyTree:
    """Return the predictions that a model makes in training, as shapes."""
    return _trace(_predicted, model, model_state, x).shapes


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
