"""One pass over data, without training: averages, and predictions."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree

from vernal._data.array_source import Source
from vernal._data.loader_source import LoaderSource
from vernal._training.averages import combined, mean
from vernal._training.compilation import compiles
from vernal._training.jit import Packed, pack
from vernal._training.objective import Measured, Objective, measure, outputs
from vernal._training.update import named


def evaluate(
    objective: Objective, model: PyTree, model_state: PyTree, source: Source
) -> dict[str, Any]:
    """Average a loss and its metrics over all examples, by their weights."""
    packed = pack((objective, model, model_state))
    apply = lambda batches, single: compiled_evaluate(packed, batches, single=single)
    info, weights, averages = [], [], []
    for made, n, size in _each(apply, source):
        part = jax.tree.map(lambda leaf, n=n: leaf[:n].astype(np.float64), jax.device_get(made))
        info.append(part.info)
        weights.append(np.full(n, float(size)) if part.weight is None else part.weight)
        averages.append(part.averages)
    weights = np.concatenate(weights)
    join = lambda parts: jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    results = {name: mean(values, weights) for name, values in join(info).items()}
    for name, values in join(averages).items():
        results[name] = combined(objective.metrics[name], values, weights)
    return {name: float(x) if np.ndim(x) == 0 else np.asarray(x) for name, x in results.items()}


def predict(
    model: PyTree, model_state: PyTree, source: Source, dtype: np.dtype | None = None
) -> Array:
    """Apply a model to all examples.

    The outputs are in memory once, beside those of a stack or two.
    """
    packed = pack((model, model_state, dtype))
    apply = lambda batches, single: compiled_predict(packed, batches, single=single)
    parts = (
        jax.tree.map(lambda leaf, rows=n * size: leaf[:rows], made)
        for made, n, size in _each(apply, source)
    )
    if isinstance(source, LoaderSource):  # how many examples there are shows at its end
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    n, whole, before, start = len(jax.tree.leaves(source.arrays)[0]), None, None, 0
    for part in parts:
        rows = len(jax.tree.leaves(part)[0])
        if rows == n:
            return part
        if whole is None:
            room = lambda leaf: jnp.zeros((n, *leaf.shape[1:]), leaf.dtype)
            whole = jax.tree.map(room, part)
        # The next stack is gathered while this one is computed, but no more of them.
        jax.block_until_ready(before)
        before, whole = part, _with(whole, part, start)
        start += rows
    assert whole is not None
    return whole


@functools.partial(jax.jit, donate_argnums=0)
def _with(whole: PyTree, part: PyTree, start: int) -> PyTree:
    """Write a part of the outputs in its place."""
    put = lambda leaf, rows: lax.dynamic_update_slice_in_dim(leaf, rows, start, 0)
    return jax.tree.map(put, whole, part)


def _each(function: Callable, source: Source) -> Iterator[tuple[PyTree, int, int]]:
    """Apply a function of batches to each stack of one epoch, and to its tails.

    **Returns:** the outputs; how many of the batches are there, and not padding; their size.
    """
    for stack in source.one_pass():
        if stack.repeats:
            yield function(stack.batches, True), 1, stack.size
            continue
        if not source.loops:
            for place in range(stack.first, stack.end):
                yield function(stack.batch(place), True), 1, int(stack.sizes(place, place + 1)[0])
            continue
        has_tail = stack.tails is not None and stack.end == stack.length
        yield function(stack.batches, False), stack.end - stack.origin - has_tail, stack.size
        if has_tail:
            yield function(stack.tails, False), 1, stack.tail_size


@functools.partial(jax.jit, static_argnames="single")
def compiled_evaluate(packed: Packed, batches: PyTree, *, single: bool) -> Measured:
    """What each batch gives, with dropout and the like switched off; the model's state stays."""
    objective, model, model_state = packed.unpack()
    parts = {"model": model, "model_state": model_state, **objective._asdict()}
    compiles("evaluate", **named(batches), **parts, one_batch=single)
    model = eqx.nn.inference_mode(model)

    def of_batch(batch):
        measured = measure(objective, model, model_state, batch, jax.random.key(0))
        return measured._replace(model_state=None)

    return _map(of_batch, batches, single)


@jax.jit
def compiled_apply(packed: Packed, x: PyTree) -> PyTree:
    """A batch's predictions, with dropout and the like switched off."""
    model, model_state, dtype = packed.unpack()
    return outputs(eqx.nn.inference_mode(model), model_state, x, dtype)


@functools.partial(jax.jit, static_argnames="single")
def compiled_predict(packed: Packed, batches: PyTree, *, single: bool) -> PyTree:
    """All batches' predictions, one behind the other."""
    model, model_state, dtype = packed.unpack()
    parts = {"model": model, "model_state": model_state, "compute_dtype": dtype}
    compiles("predict", x=batches, **parts, one_batch=single)
    made = _map(lambda x: compiled_apply(packed, x), batches, single)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), made)


def _map(function: Callable, batches: PyTree, single: bool) -> PyTree:
    """Apply a function to batch after batch, or to the one that there is."""
    if single:
        return jax.tree.map(lambda result: jnp.asarray(result)[None], function(batches))
    return lax.map(function, batches)
