"""Model, loss and data checked together, before anything compiles; and what is said if they differ.

The check is a trace on shapes alone. Only if that fails is it traced again, and watched, to find
the layer that is at odds with its input; and then once more for each line that might mend it.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from vernal._explain.suggestions import for_given, run, suggestion
from vernal._shapes.calls import Calls, located, watched
from vernal._shapes.layer_shapes import Unmet, at_fault
from vernal._training.jit import LOOPS, holds, pack, shapes_of, signature
from vernal._training.objective import Objective
from vernal.errors import ExamplesError, ShapeError, VernalError, first_line, joined, kind
from vernal.losses import AbstractSupervised, BinaryCrossEntropy, CrossEntropy, predictions


class Traced(NamedTuple):
    """What a trace says."""

    shapes: PyTree  # of what was returned
    convolves: bool  # whether there are convolutions
    goes_round: bool  # whether there are loops


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

    **Arguments:**

    - `objective`: what to measure; `None` to apply the model to each example.
    - `batch`: of which values are looked at only if there is something to explain.
    - `name`: the argument that the batch was taken from.
    - `given`: that argument, where the batch was made from it: of lists, say, or data frames.

    **Returns:** what `measure` returns, or the model's outputs, as shapes; and whether there are
    convolutions, or loops, on the way.

    **Raises:** `ShapeError`, with a line that mends the data if one was found to work; any other
    of Vernal's errors as it is.
    """
    try:
        return _trace(run, signature((pack((objective, model, model_state)), batch)))
    except Exception as error:
        if isinstance(error, VernalError) and not isinstance(error, ShapeError):
            raise
        if objective is not None:  # a cast model's layers would be others than those watched
            objective = objective._replace(compute_dtype=None)
        measured = lambda model, batch: run(objective, model, model_state, batch)
        _, calls, again = watched(measured, model, batch)
        loss = objective and objective.loss
        message = _described(loss, model, batch, calls, again or error)
        hint = for_given(given, suggestion(objective, model, model_state, batch, calls))
        if isinstance(again or error, NameError) and "axis name" in str(again or error):
            hint = '\n  The axis of the examples is called "batch": give the layer that name.'
        raise ShapeError(about(name, message + hint)) from error


def about(name: str, message: str) -> str:
    """A message with the argument that it is about, if that is not the main one."""
    if name in ("data", "x") or name in message:
        return message
    fits = len(f"in {name}, {message}".partition("\n")[0]) <= 100
    return f"in {name}, {message}" if fits else f"in {name},\n  {message}"


@functools.lru_cache(maxsize=256)
def _trace(function: Callable, of) -> Traced:
    # Tracing takes milliseconds; a trace that went well is not made again for the same program.
    def unpacked(packed, batch):
        return function(*packed.unpack(), batch)

    jaxpr, shapes = jax.make_jaxpr(unpacked, return_shape=True)(*shapes_of(of))
    return Traced(shapes, holds(jaxpr.jaxpr, "conv_general_dilated"), holds(jaxpr.jaxpr, *LOOPS))


def _described(
    loss: Callable | None, model: PyTree, batch: PyTree, calls: Calls, error: Exception
) -> str:
    """What went wrong, in terms of the data where a layer is at odds with it."""
    blamed = at_fault(calls)
    if blamed is not None:
        return _at_odds(blamed, calls, model, batch)
    if isinstance(error, ShapeError):
        return str(error)
    if calls.failed is not None:
        given = [
            f"{name} of shape {value.shape}"
            for name, value in calls.failed.arguments.items()
            if hasattr(value, "shape") and name != "key"
        ]
        layer = located(model, calls.failed.path, calls.failed.module)
        where = f"{layer} fails on {' and '.join(given) or 'its input'}:"
    elif isinstance(loss, AbstractSupervised | None) and not calls.made:
        x = _x(batch)
        what = f"x of shape {x.shape}" if hasattr(x, "shape") else f"x, {kind(x)}"
        where = f"{type(model).__name__} fails on {what}:"
    else:
        named = type(loss).__name__ if isinstance(loss, AbstractSupervised) else "the loss"
        where = f"{named} fails on a batch:"
    return joined(where, first_line(error))


def _is_of_data(blamed: Unmet, calls: Calls, x: Any) -> bool:
    """Whether the layer was given the examples themselves, and not what another made of them."""
    given = (x.shape[1:], jax.dtypes.canonicalize_dtype(x.dtype)) if hasattr(x, "shape") else ()
    before = itertools.takewhile(lambda call: call is not blamed.call, calls.made)
    outer, outers = blamed.call.outer, []
    while outer is not None:
        outers, outer = [*outers, outer], outer.outer
    return blamed.given in given and all(any(call is o for o in outers) for call in before)


def _at_odds(blamed: Unmet, calls: Calls, model: PyTree, batch: PyTree) -> str:
    x = _x(batch)
    where = located(model, blamed.call.path, blamed.call.module)
    what = blamed.needed if blamed.alone else f"{blamed.argument} of shape {blamed.needed}"
    if isinstance(blamed.given, np.dtype):
        if _is_of_data(blamed, calls, x):
            return joined(f"x is {blamed.given},", f"but {where} needs {blamed.needed}.")
        return f"{where} needs {blamed.needed}; its {blamed.argument} is {blamed.given}."
    if _is_of_data(blamed, calls, x):
        n, *example = x.shape
        each = f"has shape {tuple(example)}" if example else "is a single number"
        its = "its one example" if n == 1 else f"each of its {n} examples"
        return joined(f"x has shape {x.shape}: {its} {each},", f"but {where} needs {what}.")
    data = f"x has shape {x.shape}" if hasattr(x, "shape") else f"x is {kind(x)}"
    data = f"the batch is {kind(batch)}" if x is batch and not hasattr(x, "shape") else data
    return joined(f"{where} needs {what},", f"and is given {blamed.given}; {data}.")


def _x(batch: PyTree) -> Any:
    return batch[0] if isinstance(batch, tuple | list) and batch else batch


def examples_error(
    error: ExamplesError,
    objective: Objective | None,
    model: PyTree,
    model_state: PyTree,
    given: PyTree,
    name: str = "data",
) -> ExamplesError:
    """The same error, with a line that mends the data if one was found to work."""
    arrays, hint = error.arrays, ""
    if arrays is not None and all(np.size(leaf) for leaf in jax.tree.leaves(arrays)):
        hint = for_given(given, suggestion(objective, model, model_state, arrays))
    return ExamplesError(about(name, str(error) + hint))


def _outputs(_, model: PyTree, model_state: PyTree, x: PyTree) -> PyTree:
    return predictions(model, x, jax.random.key(0), model_state)


def label_check(
    objective: Objective | None, model: PyTree, model_state: PyTree, batch: PyTree, name: str
) -> Callable:
    """What raises `ExamplesError` for a batch with labels that a loss has no place for."""
    loss = objective and objective.loss
    if not isinstance(loss, CrossEntropy | BinaryCrossEntropy):
        return lambda batch: None
    made = _trace(_outputs, signature((pack((None, model, model_state)), batch[0])))

    def check(batch: PyTree) -> None:
        try:
            loss.check_labels(batch[1], made.shapes.shape)
        except ExamplesError as error:
            raise ExamplesError(about(name, str(error))) from None

    return check
