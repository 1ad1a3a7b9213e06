"""One pass over data without training: averages, and predictions."""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from vernal import _limits
from vernal._data.arrays import nbytes, row_of
from vernal._members import Members, at_once
from vernal._moments import Moments, combine_batches, joined, moments
from vernal._products import with_turned_products
from vernal._sharding import placed, seen_by_all, split_batch
from vernal._training.compilation import compiles
from vernal._training.objective import Measured, Objective, cast, measure, predicted
from vernal._training.preflight.data import CheckedData


class _Measure(eqx.Module):
    """Measures a batch, with dropout and the like switched off."""

    objective: Objective
    model: PyTree
    model_state: PyTree
    mesh: Mesh | None
    members: Members | None

    def __call__(self, batch: PyTree) -> Measured:
        def of_one(batch: PyTree, model: PyTree, model_state: PyTree) -> Measured:
            model = eqx.nn.inference_mode(model)
            measured = measure(self.objective, model, model_state, batch, jax.random.key(0))
            return measured._replace(model_state=None)

        batch = split_batch(self.mesh, batch)
        return at_once(self.members, of_one, batch, self.model, self.model_state)


class Predict(eqx.Module):
    """Applies a model to the examples of a batch, with dropout and the like switched off."""

    model: PyTree
    model_state: PyTree
    compute_dtype: np.dtype | None
    mesh: Mesh | None
    members: Members | None

    def __call__(self, x: PyTree) -> PyTree:
        def of_one(x: PyTree, model: PyTree, model_state: PyTree) -> PyTree:
            model = cast(eqx.nn.inference_mode(model), self.compute_dtype)
            return predicted(model, model_state, x, None, self.compute_dtype)[0]

        x = split_batch(self.mesh, x)
        outputs = at_once(self.members, of_one, x, self.model, self.model_state)
        return seen_by_all(self.mesh, outputs)


def evaluate(
    objective: Objective, model: PyTree, model_state: PyTree, data: CheckedData
) -> dict[str, Any]:
    """Average a loss and its metrics over all examples, by their weights.

    Args:
        objective: What to measure.
        model: The model, which is put in inference mode.
        model_state: Its state, which stays as it is.
        data: The examples.
    """
    batches = measured_batches(objective, model, model_state, data)
    return combined(objective, functools.reduce(joined, itertools.starmap(moments, batches)))


def measured_batches(
    objective: Objective,
    model: PyTree,
    model_state: PyTree,
    data: CheckedData,
    members: Members | None = None,
) -> Iterator[tuple[Measured, np.ndarray]]:
    """Measure the batches of one pass over data, of one model or of many.

    Args:
        objective: As in `evaluate`, as the others.
        model: The model.
        model_state: Its state.
        data: The examples.
        members: How many models there are; `None` is one alone.

    Yields:
        What was measured of several batches, and their weights, along the leading axis.
    """
    model, model_state = placed(data.mesh, (model, model_state))
    function = _Measure(objective, model, model_state, data.mesh, members)
    for made, filled, size in each_batch(function, data):
        part = jax.tree.map(lambda x, n=filled: x[:n].astype(np.float64), jax.device_get(made))
        weights = np.full(filled, float(size)) if part.weight is None else part.weight
        yield part._replace(weight=None), weights


def combined(objective: Objective, total: Moments) -> dict[str, Any]:
    """Return the loss and its metrics, by name, from the moments of what batches measured."""
    results = dict(total.mean.info)
    for name, mean in total.mean.averages.items():
        averages = Moments(total.weight, mean, total.spread.averages[name])
        results[name] = combine_batches(objective.metrics[name], averages)
    return {name: float(x) if np.ndim(x) == 0 else np.asarray(x) for name, x in results.items()}


def predict(
    model: PyTree, model_state: PyTree, data: CheckedData, compute_dtype: np.dtype | None
) -> PyTree:
    """Apply a model, in inference mode, to all examples."""
    parts = []
    model, model_state = placed(data.mesh, (model, model_state))
    for made, filled, size in each_batch(
        Predict(model, model_state, compute_dtype, data.mesh, None), data
    ):
        rows = filled * size
        parts.append(jax.tree.map(lambda x, n=rows: x.reshape(-1, *x.shape[2:])[:n], made))
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def each_batch(function: Callable, data: CheckedData) -> Iterator[tuple[PyTree, int, int]]:
    """Apply a function of a batch to all batches of one pass.

    Yields:
        Results for several batches, which lie along the leading axis; how many of them are filled;
        and how many examples each batch has.
    """
    bytes_of_one, most = nbytes(data.measured), _limits.current().superbatch_bytes
    for superbatch in data.source.one_pass():
        is_large = bytes_of_one * superbatch.capacity > most
        if superbatch.repeats or not data.loops or is_large:
            for cursor in range(superbatch.start, min(superbatch.stop, superbatch.pass_length)):
                made = _of_one_batch(function, superbatch.batch(cursor))
                yield made, 1, int(superbatch.sizes(cursor, cursor + 1)[0])
            continue

        ends_pass = superbatch.stop == superbatch.pass_length
        has_last = superbatch.last_batches is not None and ends_pass
        full_batches = superbatch.stop - superbatch.start - has_last
        if full_batches:
            made = _of_batches(function, superbatch.batches, np.array(full_batches))
            yield made, full_batches, superbatch.batch_size
        if has_last:
            last = jax.tree.map(lambda x: x[0], superbatch.last_batches)
            yield _of_one_batch(function, last), 1, superbatch.last_size


@eqx.filter_jit
def _of_one_batch(function: Callable, batch: PyTree) -> PyTree:
    _compiles(function, batch)
    made = with_turned_products(function)(batch)
    return jax.tree.map(lambda x: jnp.asarray(x)[None], made)


@eqx.filter_jit
def _of_batches(function: Callable, batches: PyTree, count: Any) -> PyTree:
    """Apply a function to the first `count` batches of some arrays; the rest stays zero."""

    def one_batch(i: Array, results: PyTree) -> PyTree:
        made = once(row_of(batches, i))
        put = lax.dynamic_update_index_in_dim
        return jax.tree.map(lambda buffer, value: put(buffer, value, i, 0), results, made)

    # Traced once: for the shapes, and in the loop.
    once = jax.jit(with_turned_products(function), inline=True)
    _compiles(function, row_of(batches, 0))
    capacity = len(jax.tree.leaves(batches)[0])
    shapes = jax.eval_shape(once, row_of(batches, 0))
    nothing = jax.tree.map(lambda s: jnp.zeros((capacity, *s.shape), s.dtype), shapes)
    return lax.fori_loop(0, count, one_batch, nothing)


def _compiles(function: Callable, batch: PyTree) -> None:
    measures = isinstance(function, _Measure)
    program, name = ("evaluate", "batch") if measures else ("predict", "x")
    compiles(program, **{name: batch}, **vars(function))
