"""One pass over data without training: averages, and predictions."""

from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree

from vernal._data.array_source import ArraySource
from vernal._data.loader_source import LoaderSource
from vernal._data.superbatch import empty
from vernal._training.compilation import compiles
from vernal._training.objective import (
    Measured,
    Objective,
    combine_batches,
    mean_over_batches,
    measure,
    outputs,
)
from vernal._training.update import named_parts

AnySource = ArraySource | LoaderSource


def evaluate(
    objective: Objective,
    model: PyTree,
    model_state: PyTree,
    source: AnySource,
    *,
    loops: bool,
) -> dict[str, Any]:
    """Average a loss and its metrics over all examples, by their weights.

    Args:
        objective: What to measure.
        model: The model, which is put in inference mode.
        model_state: Its state, which stays as it is.
        source: The data.
        loops: Whether many batches may be measured in one compiled loop.
    """
    parts = []
    weights = []
    for arrays, count, size in _stacks(source, loops):
        made = _measure_batches(objective, model, model_state, arrays, np.int32(count), loops)
        part = jax.tree.map(lambda leaf, n=count: leaf[:n].astype(np.float64), jax.device_get(made))
        parts.append(part)
        weights.append(np.full(count, float(size)) if part.weight is None else part.weight)
    weights = np.concatenate(weights)
    measured = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)

    results = {name: mean_over_batches(x, weights) for name, x in measured.info.items()}
    for name, averages in measured.averages.items():
        results[name] = combine_batches(objective.metrics[name], averages, weights)
    return {name: float(x) if np.ndim(x) == 0 else np.asarray(x) for name, x in results.items()}


def predict(
    model: PyTree,
    model_state: PyTree,
    source: AnySource,
    *,
    compute_dtype: np.dtype | None,
    loops: bool,
) -> Array:
    """Apply a model, in inference mode, to all examples."""
    whole = None
    parts = []
    filled = 0
    for arrays, count, size in _stacks(source, loops):
        made = _predict_batches(model, model_state, arrays, np.int32(count), compute_dtype, loops)
        rows = count * size
        part = jax.tree.map(lambda leaf, rows=rows: leaf[:rows], made)
        if isinstance(source, LoaderSource):  # its number of examples is known at its end
            parts.append(part)
            continue
        if rows == source.examples:
            return part

        # Written in place, so that the outputs are in memory once.
        if whole is None:
            whole = jax.tree.map(lambda leaf: _empty_like(leaf, source.examples), part)
        for target, leaf in zip(jax.tree.leaves(whole), jax.tree.leaves(part), strict=True):
            target[filled : filled + rows] = leaf
        filled += rows

    if parts:
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    return jax.tree.map(jnp.asarray, whole)


def _empty_like(leaf: Array, examples: int) -> np.ndarray:
    return empty((examples, *leaf.shape[1:]), np.dtype(leaf.dtype))


def _stacks(source: AnySource, loops: bool) -> Iterator[tuple[PyTree, int, int]]:
    """Yield the batches of one pass, stacked: the arrays, how many are filled, their size."""
    for superbatch in source.one_pass():
        if superbatch.repeats:
            yield (
                jax.tree.map(lambda leaf: leaf[None], superbatch.batches),
                1,
                superbatch.batch_size,
            )
            continue

        if not loops:
            sizes = superbatch.sizes(superbatch.start, superbatch.stop)
            for cursor, size in zip(range(superbatch.start, superbatch.stop), sizes, strict=True):
                batch = superbatch.batch(cursor)
                yield jax.tree.map(lambda leaf: leaf[None], batch), 1, int(size)
            continue

        has_last = (
            superbatch.last_batches is not None and superbatch.stop == superbatch.epoch_length
        )
        full_batches = superbatch.stop - superbatch.start - has_last
        if full_batches:
            yield superbatch.batches, full_batches, superbatch.batch_size
        if has_last:
            yield superbatch.last_batches, 1, superbatch.last_size


@eqx.filter_jit
def _measure_batches(
    objective: Objective,
    model: PyTree,
    model_state: PyTree,
    batches: PyTree,
    count: Array,
    loops: bool,
) -> Measured:
    """Measure batch after batch, with dropout and the like switched off."""
    compiles(
        "evaluate",
        **named_parts(batches),
        model=model,
        model_state=model_state,
        **objective._asdict(),
    )
    inferring = eqx.nn.inference_mode(model)

    def measured(batch: PyTree) -> Measured:
        made = measure(objective, inferring, model_state, batch, jax.random.key(0))
        return made._replace(model_state=None)

    return _map_filled(measured, batches, count, loops)


@eqx.filter_jit
def _predict_batches(
    model: PyTree,
    model_state: PyTree,
    batches: PyTree,
    count: Array,
    compute_dtype: np.dtype | None,
    loops: bool,
) -> PyTree:
    """Predict batch after batch; the examples of all batches lie along the leading axis."""
    compiles(
        "predict", x=batches, model=model, model_state=model_state, compute_dtype=compute_dtype
    )
    inferring = eqx.nn.inference_mode(model)

    def predicted(x: PyTree) -> PyTree:
        return outputs(inferring, model_state, x, compute_dtype)

    made = _map_filled(predicted, batches, count, loops)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), made)


def _map_filled(function: Callable, batches: PyTree, count: Array, loops: bool) -> PyTree:
    """Apply a function to the first `count` batches of some arrays; the rest stays zero."""
    if not loops:
        only = jax.tree.map(lambda leaf: leaf[0], batches)
        return jax.tree.map(lambda result: jnp.asarray(result)[None], function(only))

    function = jax.jit(function, inline=True)  # traced once: here for the shapes, and in the loop
    capacity = len(jax.tree.leaves(batches)[0])

    def batch_at(i: Any) -> PyTree:
        return jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, i, keepdims=False), batches)

    def one_batch(i: Array, results: PyTree) -> PyTree:
        return jax.tree.map(
            lambda buffer, value: lax.dynamic_update_index_in_dim(buffer, value, i, 0),
            results,
            function(batch_at(i)),
        )

    shapes = jax.eval_shape(function, batch_at(0))
    empty = jax.tree.map(lambda s: jnp.zeros((capacity, *s.shape), s.dtype), shapes)
    return lax.fori_loop(0, count, one_batch, empty)
