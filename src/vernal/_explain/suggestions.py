"""Which line to suggest where model, loss and data disagree: each is tried before it is said."""

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

from vernal._data.arrays import PARTS
from vernal._data.files import as_shapes, blocks
from vernal._shapes.calls import Calls, watched
from vernal._shapes.fixes import Mend, as_line, mends
from vernal._shapes.layer_shapes import Unmet, at_fault, needs, unmet
from vernal._training.objective import Objective, measure
from vernal.losses import (
    AbstractSupervised,
    BinaryCrossEntropy,
    CrossEntropy,
    Supervised,
    predictions,
)

# How long to look for a line that mends, in seconds: a large model takes its time to trace.
_PATIENCE = 5.0


def run(objective: Objective | None, model: PyTree, model_state: PyTree, batch: PyTree) -> PyTree:
    """What is measured of a batch, as in training; or a model's predictions, if nothing is."""
    if objective is None:
        return predictions(model, batch, model_state=model_state)
    measured = measure(objective, model, model_state, batch, jax.random.key(0))
    return measured._replace(model_state=None)  # which may hold what is no array


def traced(function: Callable, *args: PyTree) -> PyTree:
    """What a function returns, as shapes; `None` if it raises."""
    try:
        return eqx.filter_eval_shape(function, *as_shapes(args))
    except Exception:
        return None


def suggestion(
    objective: Objective | None,
    model: PyTree,
    model_state: PyTree,
    batch: PyTree,
    calls: Calls | None = None,
) -> str:
    """A line that mends the data, the model's use or the loss, tried by tracing; or nothing."""
    until = time.perf_counter() + _PATIENCE
    blamed = calls and at_fault(calls)
    predicted = functools.partial(_predicted, model, model_state)
    if objective is None:
        for x in _fitting(_options("x", batch), batch, blamed):
            if x and predicted(x.array, None) is not None:
                return f"\n  {as_line([x])}"
        return ""
    measured = lambda model, batch: run(objective, model, model_state, batch)
    if isinstance(loss := objective.loss, AbstractSupervised):
        if calls is not None and calls.failed and (line := _whole_batch(loss, model, batch)):
            return line
        found = _for_supervised(loss, predicted, batch, blamed, until)
        other = functools.partial(_other_loss, objective, model, model_state, batch)
        return f"\n  {as_line(found)}" if found else other()
    if traced(lambda batch: measured(jax.vmap(model), batch), batch):
        return "\n  Try jax.vmap(model) in the loss: the model takes one example."
    at_most = 2 if blamed or calls is None else 1
    found = _for_custom(functools.partial(measured, model), batch, until, at_most)
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


def _predicted(model: PyTree, model_state: PyTree, x: PyTree, key: Any) -> Any:
    """A model's predictions, as shapes; `None` if a layer gets another shape than it is made for.

    Equinox's layers let some through: a matrix times a matrix, and a bias that is broadcast.
    """
    made, calls, _ = watched(lambda model, x: predictions(model, x, key, model_state), model, x)
    return None if any(map(unmet, calls.made)) else made


def _for_supervised(
    loss: AbstractSupervised, predicted: Callable, batch: PyTree, blamed: Unmet | None, until: float
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
        made = predicted(x_mend.array, key)
        if not hasattr(made, "shape") or not made.shape:
            continue
        y_options = _options("y", y, made.shape[-1:])
        for choice in itertools.product([x_mend], y_options, *weights):
            if best and cost(choice) >= cost(best):
                continue
            lengths = {mend.array.shape[0] for mend in choice}
            arrays = [mend.array for mend in choice[1:]]
            if len(lengths) == 1 and traced(loss.average, made, *arrays) is not None:
                best = choice
    return best if best and any(best) else None


def _for_custom(
    measured: Callable, batch: PyTree, until: float, at_most: int
) -> tuple[Mend, ...] | None:
    """The likeliest change of at most so many arrays: such a loss may fail for any reason."""
    arrays = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
    if len(arrays) > 3 or not all(hasattr(array, "shape") for array in arrays):
        return None
    options = [_options(name, array) for name, array in zip(PARTS, arrays, strict=False)]
    choices = itertools.product(*options)
    for choice in sorted(choices, key=lambda choice: sum(mend.cost for mend in choice))[1:]:
        if time.perf_counter() > until:
            break
        changed = tuple(mend.array for mend in choice)
        mended = type(batch)(changed) if isinstance(batch, tuple | list) else changed[0]
        fits = len({array.shape[0] for array in changed}) == 1 and sum(map(bool, choice)) <= at_most
        if fits and traced(measured, mended) is not None:
            return choice
    return None


def _other_loss(objective: Objective, model: PyTree, model_state: PyTree, batch: PyTree) -> str:
    """Where the data is fine: a loss that suits it."""
    loss = objective.loss
    soft = "optax.losses.softmax_cross_entropy"
    others = {
        "losses.CrossEntropy()": CrossEntropy(),
        f"losses.Supervised({soft})": Supervised(optax.losses.softmax_cross_entropy),
    }
    is_binary = lambda labels: set(np.unique(labels).tolist()) <= {0, 1}
    if isinstance(loss, CrossEntropy) and all(is_binary(part) for _, part in blocks(batch[1])):
        others["losses.BinaryCrossEntropy()"] = BinaryCrossEntropy()
    for code, other in others.items():
        measured = functools.partial(run, objective._replace(loss=other), model, model_state)
        if type(other) is not type(loss) and traced(measured, batch):
            return f"\n  Try Trainer(optimizer, {code})."
    return ""


def _whole_batch(loss: AbstractSupervised, model: PyTree, batch: PyTree) -> str:
    """Where the model takes a whole batch: the same loss, called in another way."""
    x, *others = batch
    if len(jax.tree.leaves(x)[0]) == 1:  # what one example is and what a batch, nobody can tell
        return ""
    if traced(lambda x, *others: loss.average(model(x), *others), x, *others) is None:
        return ""
    fn = getattr(loss, "fn", None)
    name = getattr(fn, "__name__", "")
    if fn is not None and fn is not getattr(optax.losses, name, None):
        return "\n  The model takes a whole batch: give it one in a loss(model, batch, key)."
    named = repr(loss) if fn is None else f"Supervised(optax.losses.{name})"
    line = f"lambda model, b, key: losses.{named}.average(model(b[0]), *b[1:])"
    return f"\n  The model takes a whole batch. Try this loss:\n  {line}"


def for_given(given: PyTree, line: str) -> str:
    """A suggestion for what the caller has: a list or a data frame does not index as arrays do."""
    parts = given if isinstance(given, tuple) else (given,)
    for name, part in zip(PARTS, parts, strict=False):
        if part is not None and not isinstance(part, np.ndarray | np.generic | jax.Array | dict):
            code = rf"((?:Try|and) [\w.]*\(?)\b{name}\b"
            line = re.sub(code, rf"\1np.asarray({name})", line, count=1)
    return line
