"""What is wrong where model, loss and data do not fit, in terms of the data."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from vernal._explain.suggestions import Attempt, suggestion, whole_batch
from vernal._shapes.calls import Calls, located
from vernal._shapes.layer_shapes import Unmet, at_fault, needs
from vernal.errors import CallError, ExamplesError, ShapeError, about, call_error, first_line, kind
from vernal.losses import AbstractSupervised


def explanation(
    attempt: Attempt, batch: PyTree, error: Exception, *, name: str, given: PyTree = None
) -> ShapeError | CallError:
    """Explain why a trace failed: trace it again, and watch the calls of the model's modules.

    Args:
        attempt: What was traced.
        batch: The arrays that it failed on; an `ExamplesError` has its own.
        error: What was raised: in the trace, or, an `ExamplesError`, while the data was read.
        name: The argument that the batch was taken from.
        given: That argument, where the batch was made from it: of lists, say, or data frames.

    Returns:
        The error to raise, with a fix if one was found. Its cause is the original error where no
        layer is at fault: it shows the line of the user's program that failed.
    """
    is_built_in = isinstance(attempt.loss, AbstractSupervised | None)
    if isinstance(error, ExamplesError):
        hint = ""
        if all(np.size(leaf) for leaf in jax.tree.leaves(error.arrays)):
            hint = suggestion(attempt, error.arrays, given)
            if not is_built_in and attempt.works(error.arrays):
                hint = f"\n  Try [{name}]: a list of ready batches, which are taken as they are."
        return ExamplesError(about(name, error.args[0] + hint))

    if is_built_in and not callable(attempt.model):
        given = f"the model is {kind(attempt.model)}, which cannot be called."
        return CallError(given + _call_hint(attempt.model))
    _, calls, again = attempt.traced(batch)
    error = again or error
    fault = at_fault(calls)
    if fault is not None:
        message = _of_layer(fault, calls, attempt.model, batch)
    elif isinstance(error, ShapeError):
        message = error.args[0]
    else:
        what, on = _where(attempt, batch, calls)
        if not _may_be_of_shapes(error):
            return call_error(what, on, error)
        # What JAX calls a tracer is an array to the user.
        reason = re.sub(r"\w*Tracer", "array", first_line(error))
        message = f"{what} fails{on}: {reason}"
    hint = whole_batch(attempt, batch) if calls.failed else ""
    hint = hint or suggestion(attempt, batch, given, of_layer=fault is not None)
    explained = ShapeError(about(name, message + hint))
    if fault is None and not isinstance(error, ShapeError):
        explained.__cause__ = error
    return explained


def _call_hint(model: PyTree) -> str:
    """Say how to make a model that can be called."""
    if isinstance(model, list | tuple):
        return "\n  Try eqx.nn.Sequential(model)."
    name = "Rename forward to __call__" if hasattr(model, "forward") else "Give it a __call__"
    return f"\n  {name}: it takes one example, and Vernal maps it over the batch."


def _may_be_of_shapes(error: Exception) -> bool:
    """Return whether an error can be about shapes, and not about another mistake in the program."""
    if isinstance(error, jax.errors.JAXTypeError | jax.errors.JAXIndexError):
        return False  # of values that are not known while the program is compiled
    is_of_structure = isinstance(error, ValueError) and "pytree" in str(error)
    is_of_call = "PRNG key" in str(error) or "unexpected keyword" in str(error)
    is_other = is_of_structure or is_of_call
    return isinstance(error, TypeError | ValueError | IndexError) and not is_other


def _where(attempt: Attempt, batch: PyTree, calls: Calls) -> tuple[str, str]:
    """Say what failed, a module, the model, or the loss; and on what, if that is known."""
    if calls.failed:
        call = calls.failed[-1]
        arrays = {name: x for name, x in call.arguments.items() if hasattr(x, "shape")}
        given = [f"{name} of shape {x.shape}" for name, x in arrays.items()]
        on = " and ".join(given) or "its input"
        return located(attempt.model, call.path, call.module), f" on {on}"
    if isinstance(attempt.loss, AbstractSupervised | None) and not calls.made:
        x = _x_of(batch)
        given_x = f"x of shape {x.shape}" if hasattr(x, "shape") else f"x, {kind(x)}"
        return type(attempt.model).__name__, f" on {given_x}"
    is_built_in = isinstance(attempt.loss, AbstractSupervised)
    return type(attempt.loss).__name__ if is_built_in else "the loss", " on a batch"


def _of_layer(fault: Unmet, calls: Calls, model: PyTree, batch: PyTree) -> str:
    """Say what a layer needs and is given, in terms of x where the layer was given x."""
    x = _x_of(batch)
    call = fault.call
    layer = located(model, call.path, call.module)
    is_of_data = (
        hasattr(x, "shape")
        and fault.given in (x.shape[1:], jax.dtypes.canonicalize_dtype(x.dtype))
        # The calls around it began before it. If others did, they may have made its input.
        and calls.made[call.depth] is call
    )
    is_of_dtype = isinstance(fault.given, np.dtype)
    which = f"{fault.argument} of shape " if len(needs(call.module)) > 1 else ""
    needed = f"{which}{fault.need}"
    if is_of_dtype:
        needed = "integers" if fault.need.dtype is jnp.integer else "floats"

    if is_of_data and is_of_dtype:
        return f"x is {fault.given}, but {layer} needs {needed}."
    if is_of_data:
        n, *example = x.shape
        each = f"has shape {tuple(example)}" if example else "is a single number"
        its = "its one example" if n == 1 else f"each of its {n} examples"
        return f"x has shape {x.shape}: {its} {each}, but {layer} needs {needed}."
    name = "the batch" if x is batch else "x"
    data = f"x has shape {x.shape}" if hasattr(x, "shape") else f"{name} is {kind(x)}"
    return f"{layer} needs {needed}, and is given {fault.given}; {data}."


def _x_of(batch: PyTree) -> Any:
    return batch[0] if isinstance(batch, tuple | list) and batch else batch
