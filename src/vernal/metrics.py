"""What else to measure: functions of one example's prediction and target.

`Trainer(..., metrics={"accuracy": metrics.accuracy})` takes any `fn(prediction, target)` of one
example, and averages it over the examples, by their weights. What is no such average is an
`AbstractMetric`.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from vernal.errors import ShapeError, joined
from vernal.losses import weighted_mean


class AbstractMetric(eqx.Module):
    """A quantity that is made from averages over examples, but is not one itself.

    The averages are taken batch by batch. Put together by the batches' weights they are those over
    all examples, however these were divided.
    """

    # Whether `fit` records it, a number an update; otherwise only `evaluate` measures it.
    recorded: ClassVar[bool] = True

    @abc.abstractmethod
    def of_batch(self, prediction: Array, target: Array, weight: Array | None) -> PyTree[Array]:
        """Averages over one batch.

        **Arguments:**

        - `prediction`, `target`: with the examples along the leading axis.
        - `weight`: one weight an example, or `None`.
        """

    @abc.abstractmethod
    def value(self, mean: PyTree, spread: PyTree, total) -> Any:
        """The quantity itself. Uses arithmetic only, which JAX's and NumPy's arrays share.

        **Arguments:**

        - `mean`: the averages of `of_batch` over all batches.
        - `spread`: their variances from batch to batch; 0 for a single one.
        - `total`: the sum of the examples' weights.
        """


class Mean(AbstractMetric):
    """The average of a function of one example's prediction and target."""

    fn: Callable[[Array, Array], Array]

    def of_batch(self, prediction, target, weight):
        return weighted_mean(jax.vmap(self.fn)(prediction, target), weight)

    def value(self, mean, spread, total):
        return mean


def accuracy(prediction: Array, target: Array) -> Array:
    """Whether the largest logit is the target's; of a single logit, whether its sign is right.

    **Arguments:**

    - `prediction`: logits or probabilities of shape `(..., classes)`; or single logits.
    - `target`: labels, without the last axis, or one-hot, with it; for single logits 0 or 1.

    **Raises:** `ShapeError` for any other shapes.
    """
    chosen, label = _classes("accuracy", prediction, target)[1:]
    return jnp.asarray(chosen == label, jnp.float32)


class _TopK(eqx.Module):
    k: int

    def __call__(self, prediction: Array, target: Array) -> Array:
        logits, _, label = _classes("top_k", prediction, target)
        own = jnp.take_along_axis(logits, label[..., None], axis=-1)
        # Counted like this, a nan is above every logit.
        above = jnp.sum(~(logits <= own), axis=-1)
        return jnp.asarray(above < self.k, jnp.float32)


def top_k(k: int) -> Callable[[Array, Array], Array]:
    """Whether the target's logit is among the `k` largest: a metric, as in `accuracy`."""
    return _TopK(k)


def mean_absolute_error(prediction: Array, target: Array) -> Array:
    """|prediction - target|.

    **Raises:** `ShapeError` if they differ in shape.
    """
    _same_shape("mean_absolute_error", prediction, target)
    return jnp.abs(prediction - target)


class R2(AbstractMetric):
    """The coefficient of determination R² = 1 - Σ(target - prediction)² / Σ(target - mean)².

    The mean is that of all targets, so R² is no average over examples or batches. By the law of
    total variance the variance of all targets is the average of the batches' variances and the
    variance of their means. The average over outputs if an example has several. Where the targets
    do not vary it is 1 for perfect predictions, else 0, as in scikit-learn's `r2_score`.
    """

    def of_batch(self, prediction, target, weight):
        _same_shape("r2", prediction, target)
        target = jnp.asarray(target, prediction.dtype)
        average = lambda values: _average(values, weight)
        mean = average(target)
        return {
            "residual": average((target - prediction) ** 2),
            "mean": mean,
            "variance": average((target - mean[None]) ** 2),
        }

    def value(self, mean, spread, total):
        variance = mean["variance"] + spread["mean"]
        constant = variance == 0
        residual = mean["residual"]
        unexplained = residual / (variance + constant)
        score = 1 - unexplained * (1 - constant) - constant * (residual != 0)
        return score.mean()


class ConfusionMatrix(AbstractMetric):
    """How many examples of each class, a row, were taken for which, a column.

    With sample weights the sums of these. Measured by `evaluate`, and not recorded by `fit`.
    """

    recorded = False

    def of_batch(self, prediction, target, weight):
        logits, chosen, label = jax.vmap(lambda p, t: _classes("confusion_matrix", p, t))(
            prediction, target
        )
        one_hot = lambda classes: jax.nn.one_hot(classes, logits.shape[-1], dtype=logits.dtype)
        taken = lambda label, chosen: jnp.einsum("...i,...j->ij", one_hot(label), one_hot(chosen))
        return _average(jax.vmap(taken)(label, chosen), weight)

    def value(self, mean, spread, total):
        counts = mean * total
        whole = np.rint(counts)
        return np.where(np.isclose(counts, whole, rtol=1e-6), whole, counts)


r2 = R2()
confusion_matrix = ConfusionMatrix()


def _average(values: Array, weight: Array | None) -> Array:
    """The average over the examples alone."""
    if weight is None:
        return jnp.mean(values, axis=0)
    total = jnp.sum(weight)
    return jnp.tensordot(weight, values, 1) / jnp.where(total == 0, 1, total)


def _classes(name: str, prediction: Array, target: Array) -> tuple[Array, Array, Array]:
    """Logits of shape `(..., classes)`, the chosen classes, the labels: each of shape `(...)`."""
    shape = jnp.shape(prediction)
    if shape == jnp.shape(target) and shape[-1:] in ((), (1,)):
        logits = jnp.stack([jnp.zeros_like(prediction), prediction], axis=-1)
        # A nan is in neither class.
        chosen = jnp.where(jnp.isnan(prediction), -1, prediction > 0)
        return logits, chosen, jnp.asarray(target > 0.5, jnp.int32)
    if shape == jnp.shape(target):
        target = jnp.argmax(target, axis=-1)
    elif shape[:-1] != jnp.shape(target) or not shape:
        raise ShapeError(
            joined(
                f"y has shape {jnp.shape(target)} an example,",
                f"but {name} needs {shape[:-1]}, or one-hot {shape}, for predictions of {shape}.",
            )
        )
    if not jnp.issubdtype(target.dtype, jnp.integer):
        raise ShapeError(f"y is {target.dtype}, but {name} needs integer labels.")
    return prediction, jnp.argmax(prediction, axis=-1), target


def _same_shape(name: str, prediction: Array, target: Array) -> None:
    if jnp.shape(prediction) != jnp.shape(target):
        raise ShapeError(
            joined(
                f"y has shape {jnp.shape(target)},",
                f"but {name} needs {jnp.shape(prediction)}, the shape of the predictions.",
            )
        )
