"""How bad is it: losses over one example, averaged over the examples.

A loss is any callable `loss(model, batch, key)` that returns a scalar, or a scalar and a dict of
scalar metrics. Those below take a batch `(x, y)` or `(x, y, sample_weight)`.
"""

import abc
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PRNGKeyArray, PyTree

from vernal._data.files import blocks
from vernal.errors import DataError, ExamplesError, ShapeError, joined, kind


def forward(
    model: Callable, x: PyTree[Array], key: PRNGKeyArray | None = None, model_state: PyTree = None
) -> tuple[Array, PyTree]:
    """Apply a model of one example to each of a batch, under `jax.vmap(..., axis_name="batch")`.

    **Arguments:**

    - `model`: called as `model(example)`, with `key=...` if it takes a `key`; or, if there is a
      `model_state` and it takes a second argument, as `model(example, model_state)`, which returns
      `(output, model_state)`.
    - `x`: an array, or PyTree of arrays, with the examples along the leading axis.
    - `key`: split into one key an example; `None` gives the model no key, unless it needs one.
    - `model_state`: such as the running statistics of `eqx.nn.BatchNorm`.

    **Returns:** the outputs, with the examples along the leading axis, and the new model state.

    **Raises:** `ShapeError` if the new state is not the same for all examples, or not returned.
    """
    parameters = _parameters(model)
    parameter = parameters.get("key")
    if key is None and parameter is not None and parameter.default is parameter.empty:
        key = jax.random.key(0)
    keys = None
    if key is not None and parameter is not None:
        keys = jax.random.split(key, jax.tree.leaves(x)[0].shape[0])

    stateful = model_state is not None and _is_stateful(parameters)

    def of_example(example, key):
        named = {} if key is None else {"key": key}
        if not stateful:
            return model(example, **named), None
        # A copy: an `eqx.nn.State` serves once.
        result = model(example, jax.tree.map(lambda leaf: leaf, model_state), **named)
        if not isinstance(result, tuple) or len(result) != 2:
            raise ShapeError(
                f"a model with a model_state needs to return (output, model_state); "
                f"{type(model).__name__} returns {kind(result)}."
            )
        return result

    try:
        outputs, new = jax.vmap(of_example, out_axes=(0, None), axis_name="batch")(x, keys)
        return outputs, new if stateful else model_state
    except ValueError as error:
        if "out_axes" not in str(error):
            raise
        raise ShapeError(
            f"the model_state that {type(model).__name__} returns differs from example to example."
            '\n  Average it over the batch: jax.lax.pmean(value, "batch").'
        ) from error


def predictions(
    model: Callable, x: PyTree[Array], key: PRNGKeyArray | None = None, model_state: PyTree = None
) -> Array:
    """The outputs of `forward`, without the new model state."""
    return forward(model, x, key, model_state)[0]


def _parameters(model: Callable) -> Mapping[str, inspect.Parameter]:
    call = model if inspect.isfunction(model) else type(model).__call__
    parameters = inspect.signature(call).parameters
    return parameters if inspect.isfunction(model) else dict(list(parameters.items())[1:])


def _is_stateful(parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Whether there is a second positional argument, besides a key."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [name for name, p in parameters.items() if p.kind in positional and name != "key"]
    return len(names) > 1


def weighted_mean(values: Array, weight: Array | None) -> Array:
    """The average over examples, each first averaged itself; 0 if the weights are all zero."""
    if weight is None:
        return jnp.mean(values)
    per_example = jnp.mean(values.reshape(len(values), -1), axis=1)
    total = jnp.sum(weight)
    return jnp.sum(weight * per_example) / jnp.where(total == 0, 1, total)


class AbstractSupervised(eqx.Module):
    """A loss over one example's prediction and target, averaged over the batch's examples.

    With sample weights w the average is sum(w * loss) / sum(w); a batch whose weights are all zero
    has the loss 0.
    """

    @abc.abstractmethod
    def of_example(self, prediction: Array, target: Array) -> Array:
        """The loss of one example: a scalar, or an array that is averaged."""

    def target_shape(self, prediction_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that a batch's targets need, given its predictions'."""
        return prediction_shape

    def __call__(
        self,
        model: Callable,
        batch: tuple[Array, ...],
        key: PRNGKeyArray | None,
        model_state: PyTree = None,
    ) -> Any:
        """Average the loss over a batch.

        **Arguments:**

        - `model`: a model of one example.
        - `batch`: `(x, y)` or `(x, y, sample_weight)`, with the examples along the leading axes.
        - `key`: for models that take one, such as those with dropout.
        - `model_state`: for models that have one.

        **Returns:** a scalar; with a `model_state`, `(scalar, {}, model_state)`.

        **Raises:** `ShapeError` if predictions and targets differ in shape; `DataError` if the
        batch is not such a tuple.
        """
        x, y, weight = self.parts_of(batch)
        prediction, new_state = forward(model, x, key, model_state)
        value = self.average(prediction, y, weight)
        return value if model_state is None else (value, {}, new_state)

    def average(self, prediction: Array, y: Array, weight: Array | None = None) -> Array:
        """Average the loss over a batch of predictions, already made, and their targets."""
        self._check(prediction, y, weight)
        return weighted_mean(jax.vmap(self.of_example)(prediction, y), weight)

    def parts_of(self, batch: PyTree) -> tuple[PyTree, Array, Array | None]:
        """A batch's x, y and sample weights, or `None`; `DataError` if it is no such tuple."""
        return _unpack(batch, type(self).__name__)

    def _check(self, prediction, y, weight):
        # Never a broadcast: (N,) against (N, 1) would train on N x N differences, in silence.
        name = type(self).__name__
        for what, array in {"predictions are": prediction, "y is": y}.items():
            if not eqx.is_array(array):
                raise ShapeError(f"{what} {kind(array)}, but {name} needs one array.")
        needed = self.target_shape(prediction.shape)
        if y.shape != needed:
            raise ShapeError(
                joined(
                    f"y has shape {y.shape},",
                    f"but {name} needs {needed} for predictions of shape {prediction.shape}.",
                )
            )
        if weight is not None and weight.shape != y.shape[:1]:
            raise ShapeError(
                joined(
                    f"sample_weight has shape {weight.shape},",
                    f"but {name} needs {y.shape[:1]}, one weight an example.",
                )
            )


def _unpack(batch, name: str):
    if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
        raise DataError(
            f"{name} needs batches (x, y) or (x, y, sample_weight); it is given "
            f"{kind(batch)}.\n  For other batches write a function loss(model, batch, key)."
        )
    x, y, weight = (*batch, None)[:3]
    if y is None:
        raise DataError(f"{name} needs targets; y is None.")
    return x, y, weight


class Supervised(AbstractSupervised):
    """The average of any `fn(prediction, target)` of one example, such as Optax's losses.

    `Supervised(optax.losses.cosine_distance)` trains on the mean cosine distance.
    """

    fn: Callable[[Array, Array], Array]

    def of_example(self, prediction, target):
        return self.fn(prediction, target)


class MeanSquaredError(AbstractSupervised):
    """The mean of (prediction - target)²: `optax.losses.squared_error`."""

    def of_example(self, prediction, target):
        return optax.losses.squared_error(prediction, target)


class MeanAbsoluteError(AbstractSupervised):
    """The mean of |prediction - target|."""

    def of_example(self, prediction, target):
        return jnp.abs(prediction - target)


class Huber(AbstractSupervised):
    """Half the squared error up to `delta`, linear beyond: `optax.losses.huber_loss`."""

    delta: float = 1.0

    def of_example(self, prediction, target):
        return optax.losses.huber_loss(prediction, target, delta=self.delta)


class BinaryCrossEntropy(AbstractSupervised):
    """Sigmoid cross-entropy of logits with labels in [0, 1], of the logits' shape.

    `optax.losses.sigmoid_binary_cross_entropy`: the model has no sigmoid of its own.
    """

    def check_labels(self, y: Array, prediction_shape: tuple[int, ...]) -> None:
        """Raise `ExamplesError` if not all labels are from 0 to 1."""
        _check_range("BinaryCrossEntropy", y, 1, "", two="(y + 1) / 2")

    def of_example(self, prediction, target):
        label = jnp.asarray(target, prediction.dtype)
        return optax.losses.sigmoid_binary_cross_entropy(prediction, label)


class CrossEntropy(AbstractSupervised):
    """Softmax cross-entropy of logits with integer labels: `y` lacks the logits' last axis.

    `optax.losses.softmax_cross_entropy_with_integer_labels`: the model has no softmax of its own.
    """

    def target_shape(self, prediction_shape):
        if len(prediction_shape) < 2:
            given = f"predictions have shape {prediction_shape},"
            raise ShapeError(joined(given, "but CrossEntropy needs a logit for each class, last."))
        return prediction_shape[:-1]

    def check_labels(self, y: Array, prediction_shape: tuple[int, ...]) -> None:
        """Raise `ExamplesError` if there is a label without a logit."""
        why = f" for predictions of shape {prediction_shape}"
        _check_range("CrossEntropy", y, prediction_shape[-1] - 1, why, two="(y + 1) // 2")

    def of_example(self, prediction, target):
        if not jnp.issubdtype(target.dtype, jnp.integer):
            raise ShapeError(f"y is {target.dtype}, but CrossEntropy needs integer labels.")
        return optax.losses.softmax_cross_entropy_with_integer_labels(prediction, target)


def _check_range(name: str, y: Array, most: int, why: str, two: str) -> None:
    """Raise `ExamplesError` if labels are not from 0 to `most`; `two` mends those of -1 and 1."""
    for start, labels in blocks(y):
        if len(bad := np.argwhere((labels < 0) | (labels > most))):
            where = ", ".join(map(str, [start + bad[0][0], *bad[0][1:]]))
            given = f"y[{where}] is {labels[tuple(bad[0])]},"
            break
    else:
        return
    low = float(min(part.min() for _, part in blocks(y)))
    high = float(max(part.max() for _, part in blocks(y)))
    signs = (low, high) == (-1, 1) and all(np.all(np.abs(part) == 1) for _, part in blocks(y))
    fits = {
        "y - 1": low == 1 and high <= most + 1,
        two: signs,
        "y + 1": low == -1 and high <= most - 1,
    }
    hint = next((f"\n  Try {line}." for line, does in fits.items() if does), "")
    if most == 0:
        hint = "\n  Two classes and one logit are for losses.BinaryCrossEntropy()."
    raise ExamplesError(joined(given, f"but {name} needs 0 to {most}{why}.") + hint)
