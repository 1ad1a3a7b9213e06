"""Which line to suggest where model, loss and data disagree: each is tried before it is said."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import numpy as np
import optax
from jaxtyping import PyTree

from vernal._data.arrays import PARTS
from vernal._data.files import blocks
from vernal._shapes.calls import Calls, watched
from vernal._shapes.fixes import Fix, as_line, fixes_of
from vernal._shapes.layer_shapes import Unmet, at_fault, needs, unmet
from vernal._shapes.structs import shapes_of
from vernal.losses import (
    AbstractSupervised,
    BinaryCrossEntropy,
    CrossEntropy,
    Supervised,
    predictions,
)

# How long to look for a fix, in seconds: a large model takes its time to trace.
_PATIENCE = 5.0


@dataclass(frozen=True)
class Attempt:
    """What was traced, so that it can be traced again with something else in a part's place.

    Attributes:
        loss: The loss; `None` where the model alone is applied to a batch.
        model: The model, as it is called.
        model_state: The model's state, or `None`.
        measured: Called as `measured(loss, model, batch)`: runs what training would run.
    """

    loss: Callable | None
    model: PyTree
    model_state: PyTree
    measured: Callable[[Callable | None, PyTree, PyTree], PyTree]

    def works(self, batch: PyTree, *, loss: Any = None, model: PyTree = None) -> bool:
        """Say whether a batch can be measured, perhaps with another loss or model."""
        loss = self.loss if loss is None else loss
        model = self.model if model is None else model
        return _traced(lambda batch: self.measured(loss, model, batch), batch) is not None

    def predicted(self, x: PyTree) -> Any:
        """Trace the model's predictions, as shapes.

        Returns:
            `None` if a layer gets another shape than it is made for. Equinox's layers let some
            through: a matrix times a matrix, and a bias that is broadcast.
        """

        def apply(model, x):
            key = None if self.loss is None else jax.random.key(0)
            return predictions(model, x, key, self.model_state)

        made, calls, _ = watched(apply, self.model, x)
        return None if any(unmet(call) for call in calls.made) else made


def _traced(function: Callable, *args: PyTree) -> PyTree:
    """Trace a function on shapes; `None` if it raises."""
    try:
        return eqx.filter_eval_shape(function, *shapes_of(args))
    except Exception:
        return None


def suggestion(attempt: Attempt, batch: PyTree, given: PyTree, calls: Calls | None = None) -> str:
    """Find a line that fixes the data, the use of the model or the loss.

    Args:
        attempt: What failed.
        batch: The arrays that it failed on.
        given: What the user passed, where the batch was made from it: lists do not index as arrays.
        calls: The calls of the model's modules, if they were watched.

    Returns:
        The line of the message, after a line break; or nothing.
    """
    until = time.perf_counter() + _PATIENCE
    fault = None if calls is None else at_fault(calls)
    names = _names(given)
    if attempt.loss is None:
        fix = _for_x_alone(attempt, batch, names[0], fault)
        return f"\n  {as_line([fix])}" if fix else ""

    if isinstance(attempt.loss, AbstractSupervised):
        if calls is not None and calls.failed:
            line = _whole_batch(attempt.loss, attempt.model, batch)
            if line:
                return line
        found = _for_supervised(attempt, batch, names, fault, until)
        return f"\n  {as_line(found)}" if found else _other_loss(attempt, batch)

    if attempt.works(batch, model=jax.vmap(attempt.model)):
        return "\n  Try jax.vmap(model) in the loss: the model takes one example."
    at_most = 1 if calls is not None and fault is None else 2
    found = _for_custom(attempt, batch, names, at_most, until)
    return f"\n  {as_line(found)}" if found else ""


def _names(given: PyTree) -> list[str]:
    """Name x, y and sample_weight so that the user's own can be indexed as arrays are."""
    names: list[str] = list(PARTS)
    indexed = (np.ndarray, np.generic, jax.Array, dict)
    parts = given if isinstance(given, tuple) else (given,)
    for i, part in enumerate(parts[: len(names)]):
        if part is not None and not isinstance(part, indexed):
            names[i] = f"np.asarray({names[i]})"
    return names


def _options(name: str, array: Any, classes: Sequence[int] = ()) -> list[Fix]:
    """List changes of one array of a batch; none if it is not an array."""
    if not hasattr(array, "shape"):
        return []
    return [fix for fix in fixes_of(name, array, classes) if fix.array.shape]


def _x_options(name: str, x: Any, fault: Unmet | None) -> list[Fix]:
    """List changes of x; only those that the layer takes, where a layer was given the examples."""
    options = _options(name, x)
    if fault is None or not hasattr(x, "shape") or fault.given != x.shape[1:]:
        return options
    need = needs(fault.call.module)[fault.argument]
    return [fix for fix in options if need.takes_shape(fix.array.shape[1:], leading=False)]


def _for_x_alone(attempt: Attempt, x: PyTree, name: str, fault: Unmet | None) -> Fix | None:
    for fix in _x_options(name, x, fault):
        if fix.changes and attempt.predicted(fix.array) is not None:
            return fix
    return None


def _cost(choice: Sequence[Fix]) -> int:
    return sum(fix.cost for fix in choice)


def _same_length(choice: Sequence[Fix]) -> bool:
    return len({fix.array.shape[0] for fix in choice}) == 1


def _for_supervised(
    attempt: Attempt, batch: PyTree, names: list[str], fault: Unmet | None, until: float
) -> Sequence[Fix] | None:
    """Find the likeliest changes of x, y and the weights with which the loss can be averaged."""
    if not (isinstance(batch, tuple | list) and len(batch) in (2, 3)):
        return None
    x, y, *weights = batch
    loss: Any = attempt.loss
    weight_options = [_options(names[2], weight) for weight in weights]
    best: Sequence[Fix] | None = None
    for x_fix in _x_options(names[0], x, fault):
        if (best and x_fix.cost >= _cost(best)) or time.perf_counter() > until:
            break
        prediction = attempt.predicted(x_fix.array)
        if not hasattr(prediction, "shape") or not prediction.shape:
            continue
        y_options = _options(names[1], y, prediction.shape[-1:])
        for choice in itertools.product([x_fix], y_options, *weight_options):
            if (best and _cost(choice) >= _cost(best)) or not _same_length(choice):
                continue
            targets = [fix.array for fix in choice[1:]]
            if _traced(loss.average, prediction, *targets) is not None:
                best = choice
    return best if best and any(fix.changes for fix in best) else None


def _for_custom(
    attempt: Attempt, batch: PyTree, names: list[str], at_most: int, until: float
) -> Sequence[Fix] | None:
    """Find the likeliest change of at most so many arrays: such a loss may fail for any reason."""
    for choice in _choices(batch, names, at_most):
        if time.perf_counter() > until:
            return None
        arrays = tuple(fix.array for fix in choice)
        changed = type(batch)(arrays) if isinstance(batch, tuple | list) else arrays[0]
        if attempt.works(changed):
            return choice
    return None


def _choices(batch: PyTree, names: list[str], at_most: int) -> Iterator[Sequence[Fix]]:
    """Go through changes of at most so many arrays of a batch, the likeliest first."""
    arrays = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
    if len(arrays) > len(names) or not all(hasattr(array, "shape") for array in arrays):
        return
    options = [_options(name, array) for name, array in zip(names, arrays, strict=False)]
    for choice in sorted(itertools.product(*options), key=_cost):
        changes = sum(fix.changes for fix in choice)
        if 0 < changes <= at_most and _same_length(choice):
            yield choice


def _other_loss(attempt: Attempt, batch: PyTree) -> str:
    """Find a loss that suits the data as it is."""
    others = {
        "losses.CrossEntropy()": CrossEntropy(),
        "losses.Supervised(optax.losses.softmax_cross_entropy)": Supervised(
            optax.losses.softmax_cross_entropy
        ),
    }
    if isinstance(attempt.loss, CrossEntropy) and _is_binary(batch[1]):
        others["losses.BinaryCrossEntropy()"] = BinaryCrossEntropy()
    for code, other in others.items():
        if type(other) is not type(attempt.loss) and attempt.works(batch, loss=other):
            return f"\n  Try Trainer(optimizer, {code})."
    return ""


def _is_binary(labels: Any) -> bool:
    return all(set(np.unique(part).tolist()) <= {0, 1} for _, part in blocks(labels))


def _whole_batch(loss: AbstractSupervised, model: PyTree, batch: PyTree) -> str:
    """Suggest another loss where the model takes a whole batch."""
    x, *others = batch
    if len(jax.tree.leaves(x)[0]) == 1:  # one example and a batch of one look alike
        return ""
    averaged = _traced(lambda x, *others: loss.average(model(x), *others), x, *others)
    if averaged is None:
        return ""
    code = repr(loss)
    if isinstance(loss, Supervised):
        name = getattr(loss.fn, "__name__", "")
        if loss.fn is not getattr(optax.losses, name, None):
            return "\n  The model takes a whole batch: give it one in a loss(model, batch, key)."
        code = f"Supervised(optax.losses.{name})"
    line = f"lambda model, b, key: losses.{code}.average(model(b[0]), *b[1:])"
    return f"\n  The model takes a whole batch. Try this loss:\n  {line}"
