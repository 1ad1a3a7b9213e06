"""Model, loss and data checked together, before anything compiles; and what is said if they differ.

The check is a trace on shapes alone. Only if that fails is it traced again, and watched, to find
the layer that is at odds with its input; and then once more for each line that might mend it.
"""

import functools
import itertools
import re
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np
import optax
from jaxtyping import PyTree

from vernal._calls import Calls, watched
from vernal._errors import ExamplesError, ShapeError, VernalError, first_line, joined
from vernal._jit import pack, shapes_of, signature
from vernal._layers import Unmet, needs, unmet
from vernal._mends import Mend, as_line, mends
from vernal._update import measure
from vernal.losses import (
    AbstractSupervised,
    BinaryCrossEntropy,
    CrossEntropy,
    Supervised,
    predictions,
)

# How long to look for a line that mends, in seconds: a large model takes its time to trace.
_PATIENCE = 5.0


def preflight(
    loss: Callable | None,
    model: PyTree,
    batch: PyTree,
    *,
    name: str = "data",
    given: PyTree = None,
) -> PyTree:
    """Trace a loss, or a model alone, on the shapes of a batch.

    **Arguments:**

    - `loss`: as `Trainer` takes it; `None` to apply the model to each example.
    - `batch`: of which values are looked at only if there is something to explain.
    - `name`: the argument that the batch was taken from.
    - `given`: that argument, where the batch was made from it: of lists, say, or data frames.

    **Returns:** what `measure` returns, or the model's outputs, as shapes.

    **Raises:** `ShapeError`, with a line that mends the data if one was found to work; any other
    of Vernal's errors as it is.
    """
    try:
        return _trace(signature((pack((loss, model)), batch)))
    except Exception as error:
        if isinstance(error, VernalError) and not isinstance(error, ShapeError):
            raise
        message, calls = _described(loss, model, batch)
        hint = _for_given(given, suggestion(loss, model, batch, _blamed(calls)))
        raise ShapeError(about(name, message + hint)) from error


def about(name: str, message: str) -> str:
    """A message with the argument that it is about, if that is not the main one."""
    if name in ("data", "x") or name in message:
        return message
    fits = len(f"in {name}, {message}".partition("\n")[0]) <= 100
    return f"in {name}, {message}" if fits else f"in {name},\n  {message}"


@functools.lru_cache(maxsize=256)
def _trace(of) -> PyTree:
    # Tracing takes milliseconds; a trace that went well is not made again for the same program.
    def run(packed, batch):
        loss, model = packed.unpack()
        return _run(loss, model, batch)

    return jax.eval_shape(run, *shapes_of(of))


def _run(loss: Callable | None, model: PyTree, batch: PyTree) -> PyTree:
    if loss is None:
        return predictions(model, batch)
    return measure(loss, model, batch, jax.random.key(0))


def _traced(function: Callable, *args: PyTree) -> PyTree:
    """What a function returns, as shapes; `None` if it raises."""
    try:
        return eqx.filter_eval_shape(function, *args)
    except Exception:
        return None


# What is wrong.


def _described(loss: Callable | None, model: PyTree, batch: PyTree) -> tuple[str, Calls]:
    """What went wrong, in terms of the data where a layer is at odds with it."""
    _, calls, error = watched(lambda model, batch: _run(loss, model, batch), model, batch)
    x = _x(batch)
    blamed = _blamed(calls)
    if blamed is not None:
        return _at_odds(blamed, calls, model, x), calls
    if isinstance(error, ShapeError):
        return str(error), calls
    reason = first_line(error) if error else "it fails only when it is compiled"
    if calls.failed is not None:
        given = [
            f"{name} of shape {value.shape}"
            for name, value in calls.failed.arguments.items()
            if hasattr(value, "shape") and name != "key"
        ]
        message = f"{_where(model, calls.failed)} fails on {' and '.join(given) or 'its input'}:"
        return joined(message, reason), calls
    if loss is None or (isinstance(loss, AbstractSupervised) and not calls.made):
        return joined(f"{type(model).__name__} fails on an example of {_data(x)}:", reason), calls
    named = type(loss).__name__ if isinstance(loss, AbstractSupervised) else "the loss"
    return joined(f"{named} fails on a batch:", reason), calls


def _blamed(calls: Calls) -> Unmet | None:
    """The outermost of the calls that failed whose layer is known to need something else."""
    found, call = None, calls.failed
    while call is not None:
        found, call = unmet(call) or found, call.outer
    return found


def _is_of_data(blamed: Unmet, calls: Calls, x: Any) -> bool:
    """Whether the layer was given the examples themselves, and not what another made of them."""
    given = (x.shape[1:], jax.dtypes.canonicalize_dtype(x.dtype)) if hasattr(x, "shape") else ()
    return blamed.given in given and all(call.result is None for call in calls.made)


def _at_odds(blamed: Unmet, calls: Calls, model: PyTree, x: Any) -> str:
    where = _where(model, blamed.call)
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
    return joined(f"{where} needs {what}, and is given {blamed.given};", f"{_data(x)}.")


def _where(model: PyTree, call: Any) -> str:
    name = type(call.module).__name__
    return f"{type(model).__name__}{call.path} ({name})" if call.path else name


def _data(x: Any) -> str:
    return f"x has shape {x.shape}" if hasattr(x, "shape") else f"x is a {type(x).__name__}"


def _x(batch: PyTree) -> Any:
    return batch[0] if isinstance(batch, tuple | list) and batch else batch


# What mends it.


def suggestion(
    loss: Callable | None, model: PyTree, batch: PyTree, blamed: Unmet | None = None
) -> str:
    """A line that mends the data, the model's use or the loss, tried by tracing; or nothing."""
    until = time.perf_counter() + _PATIENCE
    if loss is None:
        for x in _fitting(_options("x", batch), batch, blamed):
            if x and _predicted(model, x.array, None) is not None:
                return f"\n  {as_line([x])}"
        return ""
    if isinstance(loss, AbstractSupervised):
        if blamed is not None and (line := _whole_batch_loss(loss, model, batch)):
            return line
        found = _for_supervised(loss, model, batch, blamed, until)
        return f"\n  {as_line(found)}" if found else _other_loss(loss, model, batch)
    if _traced(lambda batch: measure(loss, jax.vmap(model), batch, jax.random.key(0)), batch):
        return "\n  Try jax.vmap(model) in the loss: the model takes one example."
    found = _for_custom(loss, model, batch, until)
    return f"\n  {as_line(found)}" if found else ""


def _options(name: str, array: Any, classes: tuple[int, ...] = ()) -> list[Mend]:
    """Changes of one array of a batch; none if it is not an array."""
    options = mends(name, array, classes) if hasattr(array, "shape") else []
    return [mend for mend in options if mend.array.shape]


def _fitting(options: list[Mend], x: Any, blamed: Unmet | None) -> list[Mend]:
    """Of changes of x those whose examples are just what the layer needs that was given them."""
    if blamed is None or not hasattr(x, "shape") or blamed.given != x.shape[1:]:
        return options
    need = needs(blamed.call.module)[blamed.argument]
    return [x for x in options if need.takes_shape(x.array.shape[1:], leading=False)]


def _predicted(model: PyTree, x: PyTree, key: Any) -> Any:
    """A model's predictions, as shapes; `None` if a layer gets another shape than it is made for.

    Equinox's layers let some through: a matrix times a matrix, and a bias that is broadcast.
    """
    made, calls, _ = watched(lambda model, x: predictions(model, x, key), model, x)
    return None if any(map(unmet, calls.made)) else made


def _for_supervised(
    loss: AbstractSupervised, model: PyTree, batch: PyTree, blamed: Unmet | None, until: float
) -> tuple[Mend, ...] | None:
    if not (isinstance(batch, tuple | list) and len(batch) in (2, 3)):
        return None
    x, y, *weight = batch
    key = jax.random.key(0)
    best: tuple[Mend, ...] | None = None
    cost = lambda choice: sum(mend.cost for mend in choice)
    weights = [_options("sample_weight", w) for w in weight]
    for x_mend in _fitting(_options("x", x), x, blamed):
        if (best and x_mend.cost >= cost(best)) or time.perf_counter() > until:
            break
        made = _predicted(model, x_mend.array, key)
        if not hasattr(made, "shape") or not made.shape:
            continue
        y_options = _options("y", y, made.shape[-1:])
        for choice in itertools.product([x_mend], y_options, *weights):
            if best and cost(choice) >= cost(best):
                continue
            lengths = {mend.array.shape[0] for mend in choice}
            arrays = [mend.array for mend in choice[1:]]
            if len(lengths) == 1 and _traced(loss.average, made, *arrays) is not None:
                best = choice
    return best if best and any(best) else None


def _for_custom(
    loss: Callable, model: PyTree, batch: PyTree, until: float
) -> tuple[Mend, ...] | None:
    arrays = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
    if len(arrays) > 3 or not all(hasattr(array, "shape") for array in arrays):
        return None
    names = ("x", "y", "sample_weight")
    options = [_options(name, array) for name, array in zip(names, arrays, strict=False)]
    choices = itertools.product(*options)
    for choice in sorted(choices, key=lambda choice: sum(mend.cost for mend in choice))[1:]:
        if time.perf_counter() > until:
            break
        changed = tuple(mend.array for mend in choice)
        mended = type(batch)(changed) if isinstance(batch, tuple | list) else changed[0]
        same_length = len({array.shape[0] for array in changed}) == 1
        if same_length and _traced(lambda batch: _run(loss, model, batch), mended) is not None:
            return choice
    return None


def _other_loss(loss: AbstractSupervised, model: PyTree, batch: PyTree) -> str:
    """Where the data is fine: a loss that suits it."""
    soft = "optax.losses.softmax_cross_entropy"
    others = {
        "losses.CrossEntropy()": CrossEntropy(),
        f"losses.Supervised({soft})": Supervised(optax.losses.softmax_cross_entropy),
    }
    if isinstance(loss, CrossEntropy) and set(np.unique(np.asarray(batch[1])).tolist()) <= {0, 1}:
        others["losses.BinaryCrossEntropy()"] = BinaryCrossEntropy()
    for code, other in others.items():
        if type(other) is not type(loss) and _traced(functools.partial(_run, other, model), batch):
            return f"\n  Try Trainer(optimizer, {code})."
    return ""


def _whole_batch_loss(loss: AbstractSupervised, model: PyTree, batch: PyTree) -> str:
    """Where the model takes a whole batch: the same loss, called in another way."""
    x, *others = batch
    if len(jax.tree.leaves(x)[0]) == 1:  # what one example is and what a batch, nobody can tell
        return ""
    if _traced(lambda x, *others: loss.average(model(x), *others), x, *others) is None:
        return ""
    named = (
        f"Supervised({getattr(loss.fn, '__name__', 'fn')})"
        if isinstance(loss, Supervised)
        else repr(loss)
    )
    return (
        "\n  The model takes a whole batch. Try this loss:"
        f"\n  lambda model, batch, key: losses.{named}.average(model(batch[0]), *batch[1:])"
    )


def examples_error(
    error: ExamplesError, loss: Callable | None, model: PyTree, given: PyTree, name: str = "data"
) -> ExamplesError:
    """The same error, with a line that mends the data if one was found to work."""
    arrays, hint = error.arrays, ""
    if arrays is not None and all(np.size(leaf) for leaf in jax.tree.leaves(arrays)):
        hint = _for_given(given, suggestion(loss, model, arrays))
    return ExamplesError(about(name, str(error) + hint))


def _for_given(given: PyTree, line: str) -> str:
    """A suggestion for what the caller has: a list or a data frame does not index as arrays do."""
    parts = given if isinstance(given, tuple) else (given,)
    for name, part in zip(("x", "y", "sample_weight"), parts, strict=False):
        if part is not None and not isinstance(part, np.ndarray | np.generic | jax.Array | dict):
            code = rf"((?:Try|and) [\w.]*\(?)\b{name}\b"
            line = re.sub(code, rf"\1np.asarray({name})", line, count=1)
    return line


def label_check(loss: Callable | None, model: PyTree, batch: PyTree, name: str) -> Callable:
    """What raises `ExamplesError` for a batch with labels that a loss has no place for."""
    if not isinstance(loss, CrossEntropy | BinaryCrossEntropy):
        return lambda batch: None
    made = _traced(lambda x: predictions(model, x, jax.random.key(0)), batch[0])

    def check(batch: PyTree) -> None:
        try:
            loss.check_labels(batch[1], made.shape)
        except ExamplesError as error:
            raise ExamplesError(about(name, str(error))) from None

    return check
