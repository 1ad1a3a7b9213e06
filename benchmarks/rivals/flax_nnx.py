"""Flax NNX, as its documentation trains: `nnx.jit` around a step, called in a Python loop."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from workloads import LENGTH

from rivals.equinox_models import activation, error, optimizer


class _Dense(nnx.Module):
    def __init__(self, workload, rngs):
        sizes = workload.sizes
        pairs = itertools.pairwise(sizes)
        self.layers = nnx.List([nnx.Linear(i, o, rngs=rngs) for i, o in pairs])
        self.activation = activation(workload)

    def __call__(self, x):
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


class _Convolutional(nnx.Module):
    def __init__(self, workload, rngs):
        pairs = zip(workload.sizes[:-1], workload.sizes[1:], strict=True)
        self.convolutions = nnx.List([nnx.Conv(i, o, (3, 3), rngs=rngs) for i, o in pairs])
        self.last = nnx.Linear(4 * workload.sizes[-1], 10, rngs=rngs)

    def __call__(self, x):
        x = jnp.moveaxis(x, 1, -1)  # Flax has channels last
        for convolution in self.convolutions:
            x = nnx.max_pool(nnx.relu(convolution(x)), (2, 2), (2, 2))
        return self.last(x.reshape(len(x), -1))


class _Block(nnx.Module):
    def __init__(self, width, heads, rngs):
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
        self.wide = nnx.Linear(width, 4 * width, rngs=rngs)
        self.narrow = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x):
        mask = nnx.make_causal_mask(x[..., 0])
        x = x + self.attention(self.norms[0](x), mask=mask)
        return x + self.narrow(nnx.relu(self.wide(self.norms[1](x))))


class _Transformer(nnx.Module):
    def __init__(self, workload, rngs):
        vocabulary, width, heads, blocks = workload.sizes
        self.tokens = nnx.Embed(vocabulary, width, rngs=rngs)
        self.places = nnx.Embed(LENGTH, width, rngs=rngs)
        self.blocks = nnx.List([_Block(width, heads, rngs) for _ in range(blocks)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.last = nnx.Linear(width, vocabulary, rngs=rngs)

    def __call__(self, x):
        x = self.tokens(x) + self.places(jnp.arange(LENGTH))
        for block in self.blocks:
            x = block(x)
        return self.last(self.norm(x))


_KINDS = {"dense": _Dense, "convolutional": _Convolutional, "transformer": _Transformer}


def prepare(workload):
    """Train on batches cut on the host."""
    tx, of_example, (x, y) = optimizer(workload), error(workload), workload.data()
    size, trained = workload.batch_size or workload.examples, []

    @nnx.jit
    def step(model, held, x, y):
        def objective(model):
            return jnp.mean(of_example(model(x), y))

        loss, grads = nnx.value_and_grad(objective)(model)
        held.update(model, grads)
        return loss

    @nnx.jit
    def applied(model, x):
        return model(x)

    def run():
        model = _KINDS[workload.kind](workload, nnx.Rngs(0))
        held = nnx.Optimizer(model, tx, wrt=nnx.Param)
        for index in range(workload.epochs):
            order = workload.order(index)
            for start in range(0, workload.examples, size):
                rows = order[start : start + size]
                batch = (x, y) if size == len(x) else (x[rows], y[rows])
                loss = step(model, held, *batch)
        jax.block_until_ready(loss)
        trained[:] = [model]

    def outputs(x):
        parts = np.array_split(x, -(-len(x) // 1000))
        return np.concatenate([applied(trained[0], part) for part in parts])

    return run, outputs
