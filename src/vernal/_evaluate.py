"""One pass over data, without training: averages, and predictions."""

import collections
import functools
from collections.abc import Callable, Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree

from vernal._data import Source
from vernal._jit import Packed, pack
from vernal._recompile import compiles
from vernal._update import measure, named
from vernal.losses import predictions


def evaluate(loss: Callable, model: PyTree, source: Source) -> dict[str, float]:
    """Average a loss and its metrics over all examples, by their weights."""
    packed = pack((loss, model))
    sums: dict[str, float] = collections.defaultdict(float)
    total = 0.0
    apply = lambda batches, single: compiled_evaluate(packed, batches, single=single)
    for outputs, n, size in _each(apply, source):
        info, weights = jax.device_get(outputs)
        weights = np.full(n, float(size)) if weights is None else weights[:n].astype(np.float64)
        total += float(weights.sum())
        for name, values in info.items():
            sums[name] += float(values[:n] @ weights)
    return {name: value / (total or 1.0) for name, value in sums.items()}


def predict(model: PyTree, source: Source) -> Array:
    """Apply a model to all examples."""
    packed = pack(model)
    apply = lambda batches, single: compiled_predict(packed, batches, single=single)
    parts = [
        jax.tree.map(lambda leaf, n=n: leaf[:n].reshape(-1, *leaf.shape[2:]), outputs)
        for outputs, n, _ in _each(apply, source)
    ]
    return parts[0] if len(parts) == 1 else jax.tree.map(lambda *p: jnp.concatenate(p), *parts)


def _each(function: Callable, source: Source) -> Iterator[tuple[PyTree, int, int]]:
    """Apply a function of batches to each stack of one epoch, and to its tails.

    **Returns:** the outputs; how many of the batches are there, and not padding; their size.
    """
    for stack in source.one_pass():
        if stack.repeats:
            yield function(stack.batches, True), 1, stack.size
            continue
        has_tail = stack.tails is not None and stack.end == stack.length
        yield function(stack.batches, False), stack.end - stack.origin - has_tail, stack.size
        if has_tail:
            yield function(stack.tails, False), 1, stack.tail_size


@functools.partial(jax.jit, static_argnames="single")
def compiled_evaluate(loss_and_model: Packed, batches: PyTree, *, single: bool):
    """Each batch's loss and metrics, with dropout and the like switched off."""
    loss, model = loss_and_model.unpack()
    compiles("evaluate", **named(batches), model=model, loss=loss, one_batch=single)
    model = eqx.nn.inference_mode(model)
    return _map(lambda batch: measure(loss, model, batch, jax.random.key(0)), batches, single)


@jax.jit
def compiled_apply(packed_model: Packed, x: PyTree) -> PyTree:
    """A batch's predictions, with dropout and the like switched off."""
    return predictions(eqx.nn.inference_mode(packed_model.unpack()), x)


@functools.partial(jax.jit, static_argnames="single")
def compiled_predict(packed_model: Packed, batches: PyTree, *, single: bool) -> PyTree:
    """Each batch's predictions."""
    compiles("predict", x=batches, model=packed_model.unpack(), one_batch=single)
    return _map(lambda x: compiled_apply(packed_model, x), batches, single)


def _map(function: Callable, batches: PyTree, single: bool) -> PyTree:
    """Apply a function to batch after batch, or to the one that there is."""
    if single:
        return jax.tree.map(lambda result: jnp.asarray(result)[None], function(batches))
    return lax.map(function, batches)
