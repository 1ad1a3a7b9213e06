"""Averages over batches, by the batches' weights, in double precision."""

import jax
import numpy as np
from jaxtyping import PyTree

from vernal.metrics import AbstractMetric


def mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The average over the leading axis; 0 if the weights are all zero."""
    return np.tensordot(weights, values, 1) / (weights.sum() or 1.0)


def combined(metric: AbstractMetric, averages: PyTree[np.ndarray], weights: np.ndarray):
    """A metric over all batches, of the averages that it took over each."""
    means = jax.tree.map(lambda values: mean(values, weights), averages)
    spread = lambda values, mean_: mean((values - mean_) ** 2, weights)
    return metric.value(means, jax.tree.map(spread, averages, means), weights.sum())
