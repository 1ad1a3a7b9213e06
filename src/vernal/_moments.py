"""What batches measured, joined: as much memory as for one of them, however many there are."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from vernal.metrics import AbstractMetric


class Moments(NamedTuple):
    """What was measured of some batches, with their weights: as much as of one of them.

    Attributes:
        weight: The sum of their weights.
        mean: The weighted averages; 0 if the weights are all zero.
        spread: The weighted sums of the squared distances from these averages.
    """

    weight: float
    mean: PyTree
    spread: PyTree


def moments(measured: PyTree, weights: np.ndarray) -> Moments:
    """Return the moments of batches, which lie along the leading axis of each array."""
    total = weights.sum()

    def mean(values: np.ndarray) -> np.ndarray:
        return np.tensordot(weights, values, 1) / (total or 1.0)

    means = jax.tree.map(mean, measured)
    spread = jax.tree.map(lambda x, m: np.tensordot(weights, (x - m) ** 2, 1), measured, means)
    return Moments(total, means, spread)


def joined(one: Moments, other: Moments) -> Moments:
    """Return the moments of the batches of both (Chan, Golub and LeVeque, 1979)."""
    total = one.weight + other.weight
    first, second = one.weight / (total or 1.0), other.weight / (total or 1.0)
    between = jax.tree.map(lambda a, b: total * first * second * (a - b) ** 2, one.mean, other.mean)
    return Moments(
        weight=total,
        mean=jax.tree.map(lambda a, b: first * a + second * b, one.mean, other.mean),
        spread=jax.tree.map(lambda a, b, c: a + b + c, one.spread, other.spread, between),
    )


def combine_batches(metric: AbstractMetric, averages: Moments) -> Any:
    """Return a metric over all batches, from the averages that it took over each.

    Args:
        metric: The metric.
        averages: The moments of what its `of_batch` returned.
    """
    spread = jax.tree.map(lambda total: total / (averages.weight or 1.0), averages.spread)
    return metric.value(averages.mean, spread, averages.weight)
