"""Losses over one example, averaged over the examples of a batch.

A loss is any callable `loss(model, batch, key)` that returns a scalar, or a scalar and a dict of
scalar metrics; see `Loss`. The losses below take a batch `(x, y)` or `(x, y, sample_weight)`.
"""

import abc
import functools
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PRNGKeyArray, PyTree

from vernal._data.conversion import place
from vernal._data.files import blocks
from vernal.errors import DataError, ExamplesError, ShapeError, kind, whole_number, wrong_argument

# A loss is the extension point of a `Trainer`: `loss(model, batch, key)` returns a scalar, or
# `(scalar, dict of scalar metrics)`. For a model with a state, `loss(model, batch, key,
# model_state)` returns `(scalar, dict of scalar metrics, new model_state)`.
Loss: TypeAlias = Callable[[Any, Any, Any], Any] | Callable[[Any, Any, Any, Any], Any]


def forward(
    model: Callable, x: PyTree[Array], key: PRNGKeyArray | None = None, model_state: PyTree = None
) -> tuple[Array, PyTree]:
    """Apply a model of one example to each of a batch, under `jax.vmap(..., axis_name="batch")`.

    Args:
        model: Called as `model(example)`, with `key=...` if it takes a `key`, by name or among its
            `**kwargs`. If there is a `model_state`, and the model takes one, it is called as
            `model(example, model_state)` and returns `(output, model_state)`. A model takes a state
            if its second argument has no default, or has "state" in its name.
        x: An array, or PyTree of arrays, with the examples along the leading axis.
        key: Split into one key an example; `None` gives the model no key, unless it needs one.
        model_state: Such as the running statistics of `eqx.nn.BatchNorm`.

    Returns:
        The outputs, with the examples along the leading axis, and the new model state.

    Raises:
        ShapeError: If the new state is not the same for all examples, or not returned.

    Example:
        >>> outputs, model_state = losses.forward(model, x)
        >>> outputs.shape, model_state
        ((40, 1), None)
    """
    parameters = inspect.signature(model).parameters
    if key is None and needs_key(model):
        key = jax.random.key(0)
    has_kwargs = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    keys = None
    if key is not None and ("key" in parameters or has_kwargs):
        keys = jax.random.split(key, jax.tree.leaves(x)[0].shape[0])
    is_stateful = model_state is not None and _takes_state(parameters)

    def of_example(example, key):
        named = {} if key is None else {"key": key}
        if not is_stateful:
            return model(example, **named), None
        # A copy: an `eqx.nn.State` serves once.
        result = model(example, jax.tree.map(lambda leaf: leaf, model_state), **named)
        if not isinstance(result, tuple) or len(result) != 2:
            needed = "a model with a model_state needs to return (output, model_state)"
            raise ShapeError(f"{needed}; {type(model).__name__} returns {kind(result)}.")
        return result

    try:
        outputs, new = jax.vmap(of_example, out_axes=(0, None), axis_name="batch")(x, keys)
    except TypeError as error:
        # What takes `**kwargs` may hand them to a layer that takes no key.
        if "key" in parameters or keys is None or "argument 'key'" not in str(error):
            raise
        return forward(model, x, None, model_state)
    except ValueError as error:
        if "out_axes" not in str(error):
            raise
        hint = 'Average it over the batch: jax.lax.pmean(value, "batch").'
        given = f"the model_state that {type(model).__name__} returns differs by example"
        raise ShapeError(f"{given}.\n  {hint}") from error
    return outputs, new if is_stateful else model_state


def predictions(
    model: Callable, x: PyTree[Array], key: PRNGKeyArray | None = None, model_state: PyTree = None
) -> Array:
    """Apply a model to a batch, as `forward` does, and leave out the new model state.

    Example:
        >>> losses.predictions(model, x).shape
        (40, 1)
    """
    return forward(model, x, key, model_state)[0]


def needs_key(model: Callable) -> bool:
    """Return whether a model cannot be called without a key.

    Example:
        >>> losses.needs_key(model)  # its `key` has a default
        False
    """
    parameter = inspect.signature(model).parameters.get("key")
    return parameter is not None and parameter.default is parameter.empty


def _takes_state(parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Say whether the second positional argument, besides a key, is a model state."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    found = [p for name, p in parameters.items() if p.kind in positional and name != "key"]
    return len(found) > 1 and (found[1].default is found[1].empty or "state" in found[1].name)


def weighted_mean(values: Array, weight: Array | None) -> Array:
    """Average over examples, or over the parts of examples that have a weight each.

    Args:
        values: With the examples along the leading axis.
        weight: One for each example, or for each value; values between two weights are averaged
            first, and a value of several weights has their sum.

    Returns:
        A scalar; 0 if the weights are all zero.

    Example:
        >>> losses.weighted_mean(jnp.array([1.0, 5.0]), jnp.array([3.0, 1.0]))
        Array(2., dtype=float32)
    """
    if weight is None:
        return jnp.mean(values)
    axes = min(weight.ndim, values.ndim)
    values = jnp.mean(values, axis=tuple(range(axes, values.ndim)))
    weight = jnp.sum(weight, axis=tuple(range(axes, weight.ndim)))
    total = jnp.sum(weight)
    return jnp.sum(weight * values) / jnp.where(total == 0, 1, total)


class Weighted(eqx.Module):
    """What a loss of your own may return in place of a scalar: an average, and its weight.

    The averages over an epoch, and those of `evaluate`, weight each batch by its number of
    examples. Return `Weighted(value, weight)` where that is not right: for a mean over the tokens
    of a batch, the weight is their number. Then `evaluate` is exact, whatever the batches.

    Attributes:
        value: The loss of the batch: a scalar.
        weight: The batch's weight in averages over batches: a scalar from 0. It is a constant for
            the gradients.

    Example:
        >>> def where_positive(model, batch, key):
        ...     x, y = batch
        ...     counts = (y > 0).sum()
        ...     total = jnp.sum((y > 0) * (jax.vmap(model)(x) - y) ** 2)
        ...     return losses.Weighted(total / jnp.maximum(counts, 1), counts)
        >>> positive = vernal.Trainer(optax.sgd(0.1), where_positive)
        >>> all_at_once = positive.evaluate(model, (x, y))["loss"]
        >>> bool(jnp.isclose(positive.evaluate(model, (x, y), batch_size=7)["loss"], all_at_once))
        True
    """

    value: Array
    weight: Array


class AbstractSupervised(eqx.Module):
    """A loss over one example's prediction and target, averaged over the batch's examples.

    With sample weights w the average is sum(w * loss) / sum(w); a batch whose weights are all zero
    has the loss 0. There is one weight for each example; or one for each term of the loss, such as
    a token's or a pixel's.

    Example:
        >>> class LogCosh(losses.AbstractSupervised):
        ...     def of_example(self, prediction, target):
        ...         return optax.losses.log_cosh(prediction, target)
        >>> state, _ = vernal.Trainer(optax.sgd(0.1), LogCosh()).fit(model, (x, y), epochs=5)
    """

    @abc.abstractmethod
    def of_example(self, prediction: Array, target: Array) -> Array:
        """Measure one example: a scalar, or an array that is averaged."""

    def target_shape(self, prediction_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape that a batch's targets need, given its predictions' shape."""
        return prediction_shape

    def __call__(
        self, model: Callable, batch: PyTree, key: PRNGKeyArray | None, model_state: PyTree = None
    ) -> Any:
        """Average the loss over a batch.

        Args:
            model: A model of one example.
            batch: `(x, y)` or `(x, y, sample_weight)`, with the examples along the leading axes.
            key: For models that take one, such as those with dropout.
            model_state: For models that have one.

        Returns:
            A scalar; with a `model_state`, `(scalar, {}, model_state)`.

        Raises:
            ShapeError: If predictions and targets differ in shape.
            DataError: If the batch is not such a tuple.
        """
        x, y, weight = self.parts_of(batch)
        prediction, new_state = forward(model, x, key, model_state)
        value = self.average(prediction, y, weight)
        return value if model_state is None else (value, {}, new_state)

    def average(self, prediction: Array, y: Array, weight: Array | None = None) -> Array:
        """Average the loss over a batch of predictions, already made, and their targets."""
        self._check(prediction, y)
        terms = jax.vmap(self.of_example)(prediction, y)
        if weight is not None and weight.shape not in (terms.shape[:1], terms.shape):
            needed = f"{terms.shape[:1]}: one weight an example"
            if terms.ndim > 1:
                needed = f"{terms.shape[:1]} or {terms.shape}: one weight an example, or one a term"
            given = f"sample_weight has shape {weight.shape}"
            raise ShapeError(f"{given}, but {type(self).__name__} needs {needed}.")
        return weighted_mean(terms, self.weights_of(y, weight))

    def weights_of(self, y: Array, weight: Array | None) -> Array | None:
        """Return the weights of the terms of a batch's loss, given its sample weights."""
        return weight

    def parts_of(self, batch: PyTree) -> tuple[PyTree, Array, Array | None]:
        """Split a batch in x, y and sample weights, or `None`; `DataError` if it has not these."""
        name = type(self).__name__
        if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
            hint = "Pass a tuple, (x, y): a list holds ready batches."
            own = "For other batches write a function loss(model, batch, key)."
            needed = f"{name} needs batches (x, y) or (x, y, sample_weight)"
            raise DataError(f"{needed}; it is given {kind(batch)}.\n  {hint}\n  {own}")
        x, y, weight = (*batch, None)[:3]
        if y is None:
            raise DataError(f"{name} needs targets; y is None.")
        if weight is not None and jnp.issubdtype(weight.dtype, jnp.floating):
            # A sum of many is no number of half precision.
            weight = jnp.asarray(weight, jnp.promote_types(weight.dtype, jnp.float32))
        return x, y, weight

    def _check(self, prediction, y):
        # Never a broadcast: (N,) against (N, 1) would train on N x N differences, in silence.
        name = type(self).__name__
        for what, array in {"predictions are": prediction, "y is": y}.items():
            if not eqx.is_array(array):
                raise ShapeError(f"{what} {kind(array)}, but {name} needs one array.")
        needed = self.target_shape(prediction.shape)
        if y.shape != needed:
            given = f"for predictions of shape {prediction.shape}"
            raise ShapeError(f"y has shape {y.shape}, but {name} needs {needed} {given}.")


class Supervised(AbstractSupervised):
    """The average of any `fn(prediction, target)` of one example, such as Optax's losses.

    `Supervised(optax.losses.cosine_distance)` trains on the mean cosine distance. Prediction and
    target may be arrays of any shapes, or other PyTrees: they are the function's business. Only
    Optax's functions, which broadcast, are given arrays of one shape, or class labels.

    Example:
        >>> loss = losses.Supervised(optax.losses.log_cosh)
        >>> state, _ = vernal.Trainer(optax.sgd(0.1), loss).fit(model, (x, y), epochs=5)
    """

    fn: Callable[[PyTree, PyTree], Array]

    def of_example(self, prediction, target):
        return self.fn(prediction, target)

    def _check(self, prediction, y):
        # Optax's functions broadcast, so that shapes which differ make another loss in silence.
        fn = self.fn
        while isinstance(fn, functools.partial):
            fn = fn.func
        is_optax = (getattr(fn, "__module__", "") or "").startswith("optax")
        has_classes = re.search("integer_labels|multiclass", getattr(fn, "__name__", ""))
        if is_optax and not has_classes:
            super()._check(prediction, y)


class MeanSquaredError(AbstractSupervised):
    """The mean of |prediction - target|²: `optax.losses.squared_error`.

    Example:
        >>> losses.MeanSquaredError().average(jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0]))
        Array(2., dtype=float32)
    """

    def of_example(self, prediction, target):
        if jnp.iscomplexobj(prediction) or jnp.iscomplexobj(target):
            return jnp.abs(prediction - target) ** 2
        return optax.losses.squared_error(prediction, target)


class MeanAbsoluteError(AbstractSupervised):
    """The mean of |prediction - target|.

    Example:
        >>> losses.MeanAbsoluteError().average(jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0]))
        Array(1., dtype=float32)
    """

    def of_example(self, prediction, target):
        return jnp.abs(prediction - target)


class Huber(AbstractSupervised):
    """Half the squared error up to `delta`, linear beyond: `optax.losses.huber_loss`.

    Example:
        >>> losses.Huber(delta=1.0).average(jnp.array([0.0, 0.0]), jnp.array([1.0, 3.0]))
        Array(1.5, dtype=float32)
    """

    delta: float = 1.0

    def of_example(self, prediction, target):
        return optax.losses.huber_loss(prediction, target, delta=self.delta)


class BinaryCrossEntropy(AbstractSupervised):
    """Sigmoid cross-entropy of logits with labels in [0, 1], of the logits' shape.

    `optax.losses.sigmoid_binary_cross_entropy`: the model has no sigmoid of its own.

    Example:
        >>> logits, labels = jnp.array([[0.0], [0.0]]), jnp.array([[0.0], [1.0]])
        >>> print(f"{losses.BinaryCrossEntropy().average(logits, labels):.4f}")  # log 2
        0.6931
    """

    def check_labels(self, y: Array, prediction_shape: tuple[int, ...]) -> None:
        """Raise `ExamplesError` if not all labels are from 0 to 1."""
        lines = "y - 1", "(y + 1) / 2", "y + 1", "y / 255"
        _check_range(y, 1, "BinaryCrossEntropy needs 0 to 1", lines)

    def of_example(self, prediction, target):
        label = jnp.asarray(target, prediction.dtype)
        return optax.losses.sigmoid_binary_cross_entropy(prediction, label)


class CrossEntropy(AbstractSupervised):
    """Softmax cross-entropy of logits with integer labels: `y` lacks the logits' last axis.

    `optax.losses.softmax_cross_entropy_with_integer_labels`: the model has no softmax of its own.
    For weights of classes, pass them as sample weights: `(x, y, class_weight[y])`.

    Args:
        label_smoothing: The part α of a label's probability that all classes share alike: the
            loss is (1 - α) of the label's cross-entropy, and α of the mean over all classes.
        ignore_index: A label whose terms do not count, in the loss and in the metrics, such as
            that of padding. By default every label counts.

    Example:
        >>> logits, labels = jnp.zeros((5, 3)), jnp.array([0, 1, 2, 1, 0])
        >>> print(f"{losses.CrossEntropy().average(logits, labels):.4f}")  # log 3
        1.0986
    """

    label_smoothing: float = 0.0
    ignore_index: int | None = None

    def __check_init__(self):
        if not 0 <= self.label_smoothing <= 1:
            raise wrong_argument("label_smoothing", self.label_smoothing, "a number from 0 to 1")
        if self.ignore_index is not None:
            whole_number("ignore_index", self.ignore_index, at_least=-sys.maxsize)

    def weights_of(self, y, weight):
        if self.ignore_index is None:
            return weight
        counts = 1.0 - self._is_ignored(y)
        if weight is None:
            return counts
        return counts * weight.reshape(weight.shape + (1,) * (y.ndim - weight.ndim))

    def _is_ignored(self, y):
        # In 32 bits, for -100 is no number of 8 bits without a sign.
        return jnp.asarray(y, jnp.int32) == self.ignore_index

    def target_shape(self, prediction_shape):
        if len(prediction_shape) < 2:
            given = f"predictions have shape {prediction_shape}"
            raise ShapeError(f"{given}, but CrossEntropy needs a logit for each class, last.")
        return prediction_shape[:-1]

    def check_labels(self, y: Array, prediction_shape: tuple[int, ...]) -> None:
        """Raise `ExamplesError` if there is a label without a logit."""
        most = prediction_shape[-1] - 1
        needed = f"CrossEntropy needs 0 to {most} for predictions of shape {prediction_shape}"
        lines = "y - 1", "(y + 1) // 2", "y + 1"
        _check_range(y, most, needed, lines, ignored=self.ignore_index or 0)

    def of_example(self, prediction, target):
        if not jnp.issubdtype(target.dtype, jnp.integer):
            raise ShapeError(f"y is {target.dtype}, but CrossEntropy needs integer labels.")
        if self.ignore_index is not None:  # which may be no class
            target = jnp.where(self._is_ignored(target), 0, target)
        loss = optax.losses.softmax_cross_entropy_with_integer_labels(prediction, target)
        if self.label_smoothing:
            of_all = -jnp.mean(jax.nn.log_softmax(prediction), axis=-1)
            loss = (1 - self.label_smoothing) * loss + self.label_smoothing * of_all
        return loss


def _check_range(
    y: Array, most: int, needed: str, lines: tuple[str, ...], *, ignored: int = 0
) -> None:
    """Raise `ExamplesError` if labels are not from 0 to `most`.

    Args:
        y: The labels.
        most: The largest that is right.
        needed: What is needed, in words.
        lines: What may make such labels of others.
        ignored: A label that is right wherever it lies.
    """
    for start, labels in blocks(y):
        wrong = ((labels < 0) | (labels > most)) & (labels != ignored)
        if wrong.any():
            hint = _line_that_shifts(y, most, lines)
            first = f"y{place(wrong, start)} is {labels[wrong][0]}"
            raise ExamplesError(f"{first}, but {needed}.{hint}")


def _line_that_shifts(y: Array, most: int, lines: tuple[str, ...]) -> str:
    """Suggest the first line that maps labels to as many from 0 to `most`; nothing if none does."""
    if most == 0:
        return "\n  Two classes and one logit are for losses.BinaryCrossEntropy()."
    values = np.unique(np.concatenate([np.unique(part) for _, part in blocks(y)]))
    exact = values.astype(np.float64)  # in which 255 + 1 is 256
    for line in lines:
        shifted = eval(line, {"y": exact})
        # Two classes may come as any two numbers: they need to become 0 and 1.
        is_whole = len(values) != 2 or most > 1 or shifted[-1] == 1
        if shifted[0] == 0 and shifted[-1] <= most and is_whole and len(set(shifted)) == len(exact):
            return f"\n  Try {line}."
    if most > 1 and values[-1] == 255 and values[0] >= 0 and values[-2] <= most:
        return "\n  Try losses.CrossEntropy(ignore_index=255), if 255 is no class."
    return ""
