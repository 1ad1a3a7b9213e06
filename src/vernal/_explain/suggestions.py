"""Which line to suggest where model, loss and data disagree: each is tried before it is said."""

import functools
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from vernal import losses
from vernal._data.arrays import PARTS
from vernal._shapes.calls import Calls, watched
from vernal._shapes.fixes import Fix, all_blocks, as_line, fixes_of
from vernal._shapes.layer_shapes import unmet

# How long to look for a fix, in seconds of this thread: a large model takes its time to trace.
_PATIENCE = 5.0
# In place of a `CrossEntropy`: other losses, and whether the values of y suit them.
_LOSSES = {
    "losses.Supervised(optax.losses.softmax_cross_entropy)": lambda rows: (
        np.all(rows >= 0) and np.allclose(rows.sum(-1), 1, atol=1e-3)
    ),
    "losses.BinaryCrossEntropy()": lambda y: np.all((y >= 0) & (y <= 1)),
}


@dataclass(frozen=True)
class Attempt:
    """What was traced, so that it can be traced again with something else in a part's place.

    Attributes:
        loss: The loss; `None` where the model alone is applied to a batch.
        model: The model, as it is called.
        model_state: The model's state, or `None`.
        measured: Called as `measured(loss, model, batch)`: runs what training would run.
    """

    loss: Any
    model: PyTree
    model_state: PyTree
    measured: Callable[[Callable | None, PyTree, PyTree], PyTree]

    def traced(self, batch: PyTree) -> tuple[Any, Calls, Exception | None]:
        """Trace on the shapes of a batch, and watch the model's modules: see `watched`."""
        return watched(functools.partial(self.measured, self.loss), self.model, batch)

    def works(self, batch: PyTree) -> bool:
        """Say whether a batch can be measured, with the shapes that the layers are made for."""
        return _made(self.traced(batch)) is not None

    def predicted(self, x: PyTree) -> Any:
        """Trace the model's predictions, as shapes; `None` if a layer is not made for them."""

        def apply(model, x):
            return losses.predictions(model, x, jax.random.key(0), self.model_state)

        return _made(watched(apply, self.model, x))


def _made(traced: tuple[Any, Calls, Exception | None]) -> Any:
    """Return what a trace returned; `None` if it failed, or a layer is not made for its shapes."""
    # Equinox's layers let some shapes through that they are not made for: a matrix times a matrix,
    # and a bias that is broadcast.
    made, calls, _ = traced
    return None if any(map(unmet, calls.made)) else made


def _traces(function: Callable, *args: PyTree) -> bool:
    """Say whether a function can be traced on shapes."""
    _, _, error = watched(lambda _, *args: function(*args), None, *args)
    return error is None


def suggestion(attempt: Attempt, batch: PyTree, given: PyTree, *, of_layer: bool = False) -> str:
    """Find a line that fixes the data, the use of the model or the loss.

    Args:
        attempt: What failed.
        batch: The arrays that it failed on.
        given: What the user passed, where the batch was made from it: lists do not index as arrays.
        of_layer: Whether a layer was given what it is not made for.

    Returns:
        The line of the message, after a line break; or nothing.
    """
    loss = attempt.loss
    at_most = 3
    if not isinstance(loss, losses.AbstractSupervised | None):
        if isinstance(given, list) and len(given) <= len(PARTS) and attempt.works(tuple(given)):
            return "\n  Pass a tuple, (x, y): a list holds ready batches."
        if isinstance(batch, tuple) and replace(attempt, loss=_unpacking(loss)).works(batch):
            return "\n  The loss is called as loss(model, batch, key): unpack x, y = batch in it."
        if replace(attempt, model=jax.vmap(attempt.model)).works(batch):
            return "\n  Try jax.vmap(model) in the loss: the model takes one example."
        # Such a loss may fail for any reason: the more changes, the less likely that they help.
        at_most = 2 if of_layer else 1

    if isinstance(given, list) and _are_examples(attempt, given):
        return "\n  A list holds ready batches. Try tuple(map(np.stack, zip(*data)))."
    found = _found(attempt, batch, names=_names(given), at_most=at_most)
    if found:
        return f"\n  {as_line(found)}"
    has_classes = isinstance(loss, losses.CrossEntropy) and isinstance(batch, tuple)
    return _other_loss(attempt, batch) if has_classes else ""


def _are_examples(attempt: Attempt, given: list) -> bool:
    """Say whether a list holds examples, each with its target."""
    try:
        x, *_ = map(np.stack, zip(*given[:2], strict=True))
    except (TypeError, ValueError):
        return False
    return attempt.predicted(x) is not None


def _unpacking(loss: Callable) -> Callable:
    """Make a loss that takes the parts of a batch one by one, in the place of the key."""
    return lambda model, batch, key: loss(model, *batch)


def _names(given: PyTree) -> list[str]:
    """Name x, y and sample_weight so that the user's own can be indexed as arrays are."""
    parts = given if isinstance(given, tuple) else (given,)
    named = zip(PARTS, [*parts, None, None], strict=False)
    indexed = np.ndarray | np.generic | jax.Array | dict | None
    return [name if isinstance(part, indexed) else f"np.asarray({name})" for name, part in named]


def _found(attempt: Attempt, batch: PyTree, *, names: list[str], at_most: int) -> Sequence[Fix]:
    """Find the likeliest changes, of at most so many arrays, with which the batch can be measured.

    Returns:
        A fix for each array; nothing if none was found, or none is needed.
    """
    until = time.thread_time() + _PATIENCE
    loss = attempt.loss
    is_supervised = isinstance(loss, losses.AbstractSupervised)
    has_parts = loss is not None and isinstance(batch, tuple | list)
    arrays = batch if has_parts else (batch,)
    if len(arrays) > len(names) or not all(hasattr(array, "shape") for array in arrays):
        return ()
    predicted = functools.cache(attempt.predicted)

    def works(choice: Sequence[Fix]) -> bool:
        x, *others = [fix.array for fix in choice]
        if not is_supervised:
            return attempt.works(jax.tree.structure(batch).unflatten([x, *others]))
        made = predicted(x)
        return made is not None and _traces(attempt.loss.average, made, *others)

    options = [fixes_of(names[0], arrays[0])]
    classes = 0
    if is_supervised:
        made = (predicted(fix.array) for fix in options[0] if time.thread_time() < until)
        shapes = (getattr(prediction, "shape", None) for prediction in made)
        classes = next(filter(None, shapes), (0,))[-1]
    for name, array in zip(names[1:], arrays[1:], strict=False):
        options.append(fixes_of(name, array, classes))

    choices = itertools.product(*options)
    for choice in sorted(choices, key=lambda choice: sum(fix.cost for fix in choice)):
        if time.thread_time() > until:
            break
        changes = sum(fix.cost > 0 for fix in choice)
        # An axis more in both x and y makes a batch of each example: no mistake is so large.
        is_deeper = 1 < len(getattr(arrays[0], "shape", ())) < len(choice[0].array.shape)
        if changes > 1 and is_deeper:
            continue
        lengths = {fix.array.shape[:1] for fix in choice}
        if changes <= at_most and len(lengths) == 1 and () not in lengths and works(choice):
            return choice if changes else ()
    return ()


def _other_loss(attempt: Attempt, batch: PyTree) -> str:
    """Find a loss that suits the data as it is, or an order of the predictions' axes."""
    predicted = attempt.predicted(batch[0])
    if len(getattr(predicted, "shape", ())) > 2:
        moved = jax.eval_shape(lambda array: jnp.moveaxis(array, 1, -1), predicted)
        if _traces(attempt.loss.average, moved, *batch[1:]):
            return "\n  The classes go last: return jnp.moveaxis(prediction, 0, -1) from the model."

    for code, suits in _LOSSES.items():
        if replace(attempt, loss=eval(code)).works(batch) and all_blocks(batch[1], suits):
            return f"\n  Try Trainer(optimizer, {code})."
    return ""


def whole_batch(attempt: Attempt, batch: PyTree) -> str:
    """Suggest another loss, as `suggestion` does, where the model takes a whole batch."""
    loss, model = attempt.loss, attempt.model
    # One example and a batch of one look alike.
    if not isinstance(loss, losses.AbstractSupervised) or len(jax.tree.leaves(batch)[0]) == 1:
        return ""
    if not _traces(lambda x, *y: loss.average(model(x), *y), *batch):
        return ""
    code = repr(loss)
    if isinstance(loss, losses.Supervised):
        name = getattr(loss.fn, "__name__", "")
        if loss.fn is not getattr(optax.losses, name, None):
            return "\n  The model takes a whole batch: give it one in a loss(model, batch, key)."
        code = f"Supervised(optax.losses.{name})"
    line = f"lambda model, b, key: losses.{code}.average(model(b[0]), *b[1:])"
    return f"\n  The model takes a whole batch. Try this loss:\n  {line}"
