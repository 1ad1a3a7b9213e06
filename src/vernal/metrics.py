"""Metrics: functions of one example's prediction and target.

`Trainer(..., metrics={"accuracy": metrics.accuracy})` takes any `fn(prediction, target)` of one
example, and averages it over the examples, by their weights. A metric that is not such an average
is an `AbstractMetric`.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from vernal.errors import ShapeError
from vernal.losses import weighted_mean


class AbstractMetric(eqx.Module):
    """A quantity that is made from averages over examples, but is not an average itself.

    The averages are taken batch by batch. Weighted by the batches' weights, they give the averages
    over all examples, however the examples were divided into batches.

    Attributes:
        recorded: Whether `fit` records it, one number a step; otherwise only `evaluate` measures
            it.
        best: Whether its smallest value is best, `"min"`, or its largest, `"max"`. By default its
            name tells.

    Example:
        >>> class RootMeanSquaredError(metrics.AbstractMetric):
        ...     def of_batch(self, prediction, target, weight):
        ...         return losses.weighted_mean((prediction - target) ** 2, weight)
        ...     def value(self, mean, spread, total):
        ...         return mean**0.5
        >>> judge = vernal.Trainer(
        ...     trainer.optimizer, trainer.loss, metrics={"root": RootMeanSquaredError()}
        ... )
        >>> measured = judge.evaluate(model, (x, y))
        >>> bool(jnp.isclose(measured["root"] ** 2, measured["loss"]))
        True
    """

    recorded: ClassVar[bool] = True
    best: ClassVar[Literal["min", "max"] | None] = None

    @abc.abstractmethod
    def of_batch(self, prediction: Array, target: Array, weight: Array | None) -> PyTree[Array]:
        """Average over one batch.

        Args:
            prediction: With the examples along the leading axis.
            target: With the examples along the leading axis.
            weight: One weight for each example, or for each term of the loss; or `None`.
        """

    @abc.abstractmethod
    def value(self, mean: PyTree, spread: PyTree, total) -> Any:
        """Compute the quantity, with arithmetic that JAX's and NumPy's arrays share.

        Args:
            mean: The averages of `of_batch` over all batches.
            spread: Their variances from batch to batch; 0 for a single batch.
            total: The sum of the examples' weights.
        """


class Mean(AbstractMetric):
    """The average of a function of one example's prediction and target.

    Example:
        >>> largest = metrics.Mean(lambda prediction, target: jnp.max(abs(prediction - target)))
        >>> judge = vernal.Trainer(trainer.optimizer, trainer.loss, metrics={"largest": largest})
        >>> sorted(judge.evaluate(model, (x, y)))
        ['largest', 'loss']
    """

    fn: Callable[[Array, Array], Array]

    def of_batch(self, prediction, target, weight):
        return weighted_mean(jax.vmap(self.fn)(prediction, target), weight)

    def value(self, mean, spread, total):
        return mean


def accuracy(prediction: Array, target: Array) -> Array:
    """Say whether the largest logit is the target's; of a single logit, whether its sign is right.

    Args:
        prediction: Logits or probabilities of shape `(..., classes)`; or single logits.
        target: Labels, without the last axis, or one-hot, with it; for single logits 0 or 1.

    Returns:
        1.0 or 0.0, of shape `(...)`.

    Raises:
        ShapeError: For any other shapes.

    Example:
        >>> metrics.accuracy(jnp.array([0.1, 2.0, -1.0]), jnp.array(1))
        Array(1., dtype=float32)
    """
    _, chosen, label = _classes("accuracy", prediction, target)
    return jnp.asarray(chosen == label, jnp.float32)


class _TopK(eqx.Module):
    k: int
    best: ClassVar = "max"

    def __call__(self, prediction: Array, target: Array) -> Array:
        logits, _, label = _classes("top_k", prediction, target)
        own = jnp.take_along_axis(logits, label[..., None], axis=-1)
        # Counted like this, NaN is above every logit.
        above = jnp.sum(~(logits <= own), axis=-1)
        return jnp.asarray(above < self.k, jnp.float32)


def top_k(k: int) -> Callable[[Array, Array], Array]:
    """Make the metric that says whether the target's logit is among the `k` largest.

    Args:
        k: From 1. The shapes are as in `accuracy`.

    Example:
        >>> metrics.top_k(2)(jnp.array([0.1, 2.0, -1.0]), jnp.array(0))
        Array(1., dtype=float32)
    """
    return _TopK(k)


def mean_absolute_error(prediction: Array, target: Array) -> Array:
    """Compute |prediction - target|.

    Raises:
        ShapeError: If the two differ in shape.

    Example:
        >>> metrics.mean_absolute_error(jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0]))
        Array([0., 2.], dtype=float32)
    """
    _same_shape("mean_absolute_error", prediction, target)
    return jnp.abs(prediction - target)


class R2(AbstractMetric):
    """The coefficient of determination R² = 1 - Σ(target - prediction)² / Σ(target - mean)².

    The mean is the mean of all targets, so R² is not an average over examples or batches. By the
    law of total variance, the variance of all targets is the average of the batches' variances plus
    the variance of their means. If an example has several outputs, R² is averaged over them. Where
    the targets do not vary, it is 1 for perfect predictions, else 0, as in scikit-learn's
    `r2_score`.

    Example:
        >>> judge = vernal.Trainer(trainer.optimizer, trainer.loss, metrics={"r2": metrics.r2})
        >>> state, _ = judge.fit(model, (x, y), epochs=200)
        >>> print(f"{judge.evaluate(state, (x, y))['r2']:.2f}")
        1.00
    """

    best = "max"

    def of_batch(self, prediction, target, weight):
        _same_shape("r2", prediction, target)
        prediction, target = _of_terms(weight, prediction, target)
        target = jnp.asarray(target, prediction.dtype)
        mean = _average(target, weight)
        residual = _average((target - prediction) ** 2, weight)
        variance = _average((target - mean[None]) ** 2, weight)
        return {"residual": residual, "mean": mean, "variance": variance}

    def value(self, mean, spread, total):
        variance = mean["variance"] + spread["mean"]
        constant = variance == 0
        unexplained = mean["residual"] / (variance + constant)
        score = 1 - unexplained * (1 - constant) - constant * (unexplained != 0)
        return score.mean()


class ConfusionMatrix(AbstractMetric):
    """Counts of examples: rows are true classes, columns are predicted classes.

    With sample weights, sums of weights. `evaluate` measures it; `fit` does not record it.

    Example:
        >>> measured = {"confusion": metrics.confusion_matrix}
        >>> judge = vernal.Trainer(optax.sgd(0.1), losses.CrossEntropy(), metrics=measured)
        >>> classifier, labels = nn.Linear(1, 2, key=jax.random.key(0)), (x[:, 0] > 0).astype(int)
        >>> judge.evaluate(classifier, (x, labels))["confusion"].sum(axis=1).tolist()
        [20.0, 20.0]
    """

    recorded = False

    def of_batch(self, prediction, target, weight):
        prediction, target = _of_terms(weight, prediction, target)

        def of_example(prediction, target):
            logits, chosen, label = _classes("confusion_matrix", prediction, target)
            classes = jnp.stack([label, chosen])
            rows, columns = jax.nn.one_hot(classes, logits.shape[-1], dtype=logits.dtype)
            return jnp.einsum("...i,...j->ij", rows, columns)

        return _average(jax.vmap(of_example)(prediction, target), weight)

    def value(self, mean, spread, total):
        counts = mean * total
        whole = np.rint(counts)
        return np.where(np.isclose(counts, whole, rtol=1e-6), whole, counts)


r2 = R2()
confusion_matrix = ConfusionMatrix()
vars(accuracy)["best"] = "max"
vars(mean_absolute_error)["best"] = "min"


def _average(values: Array, weight: Array | None) -> Array:
    """Average over the examples alone, or over all that has a weight."""
    if weight is None:
        return jnp.mean(values, axis=0)
    total = jnp.sum(weight)
    return jnp.tensordot(weight.ravel(), values, 1) / jnp.where(total == 0, 1, total)


def _of_terms(weight: Array | None, *arrays: Array) -> list[Array]:
    """Put all that has a weight of its own, such as the tokens of all examples, on one axis."""
    axes = 1 if weight is None else weight.ndim
    return [array.reshape(-1, *array.shape[axes:]) for array in arrays]


def _classes(name: str, prediction: Array, target: Array) -> tuple[Array, Array, Array]:
    """Return logits of shape `(..., classes)`; the chosen classes and labels of shape `(...)`."""
    shape = jnp.shape(prediction)
    if shape == jnp.shape(target) and shape[-1:] in ((), (1,)):
        logits = jnp.stack([jnp.zeros_like(prediction), prediction], axis=-1)
        # NaN is in neither class.
        chosen = jnp.where(jnp.isnan(prediction), -1, prediction > 0)
        return logits, chosen, jnp.asarray(target > 0.5, jnp.int32)
    if shape == jnp.shape(target):
        target = jnp.argmax(target, axis=-1)
    elif shape[:-1] != jnp.shape(target) or not shape:
        needed = f"{shape[:-1]}, or one-hot {shape}, for predictions of {shape}"
        raise ShapeError(f"y has shape {jnp.shape(target)} an example, but {name} needs {needed}.")
    if not jnp.issubdtype(target.dtype, jnp.integer):
        raise ShapeError(f"y is {target.dtype}, but {name} needs integer labels.")
    return prediction, jnp.argmax(prediction, axis=-1), target


def _same_shape(name: str, prediction: Array, target: Array) -> None:
    given, needed = jnp.shape(target), jnp.shape(prediction)
    if given != needed:
        raise ShapeError(f"y has shape {given}, but {name} needs {needed}, as predictions have.")
