"""The models of the workloads, of Equinox's layers, as several rivals train them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from workloads import LENGTH


class Convolutional(eqx.Module):
    """Twice a convolution and pooling, then a dense layer: 8 × 8 pixels to 10 logits."""

    convolutions: list[eqx.nn.Conv2d]
    pool: eqx.nn.MaxPool2d
    last: eqx.nn.Linear

    def __init__(self, sizes, *, key):
        keys = jax.random.split(key, len(sizes))
        self.convolutions = [
            eqx.nn.Conv2d(i, o, 3, padding=1, key=k)
            for i, o, k in zip(sizes[:-1], sizes[1:], keys[1:], strict=True)
        ]
        self.pool = eqx.nn.MaxPool2d(2, 2)
        self.last = eqx.nn.Linear(sizes[-1] * 4, 10, key=keys[0])

    def __call__(self, x):
        for convolution in self.convolutions:
            x = self.pool(jax.nn.relu(convolution(x)))
        return self.last(x.ravel())


class Block(eqx.Module):
    """Attention to what came before, then two dense layers; each with a norm before it."""

    norms: list[eqx.nn.LayerNorm]
    attention: eqx.nn.MultiheadAttention
    wide: eqx.nn.Linear
    narrow: eqx.nn.Linear

    def __init__(self, width, heads, *, key):
        keys = jax.random.split(key, 3)
        self.norms = [eqx.nn.LayerNorm(width), eqx.nn.LayerNorm(width)]
        self.attention = eqx.nn.MultiheadAttention(heads, width, key=keys[0])
        self.wide = eqx.nn.Linear(width, 4 * width, key=keys[1])
        self.narrow = eqx.nn.Linear(4 * width, width, key=keys[2])

    def __call__(self, x):
        normed = jax.vmap(self.norms[0])(x)
        x = x + self.attention(normed, normed, normed, mask=jnp.tri(len(x), dtype=bool))
        hidden = jax.nn.relu(jax.vmap(self.wide)(jax.vmap(self.norms[1])(x)))
        return x + jax.vmap(self.narrow)(hidden)


class Transformer(eqx.Module):
    """A sequence of tokens to the logits of the token after each."""

    tokens: eqx.nn.Embedding
    places: eqx.nn.Embedding
    blocks: list[Block]
    norm: eqx.nn.LayerNorm
    last: eqx.nn.Linear

    def __init__(self, sizes, *, key):
        vocabulary, width, heads, blocks = sizes
        keys = jax.random.split(key, blocks + 3)
        self.tokens = eqx.nn.Embedding(vocabulary, width, key=keys[0])
        self.places = eqx.nn.Embedding(LENGTH, width, key=keys[1])
        self.blocks = [Block(width, heads, key=k) for k in keys[3:]]
        self.norm = eqx.nn.LayerNorm(width)
        self.last = eqx.nn.Linear(width, vocabulary, key=keys[2])

    def __call__(self, x):
        x = jax.vmap(self.tokens)(x) + self.places.weight
        for block in self.blocks:
            x = block(x)
        return jax.vmap(self.last)(jax.vmap(self.norm)(x))


def activation(workload):
    """The function between dense layers."""
    return {"relu": jax.nn.relu, "tanh": jnp.tanh}[workload.activation]


@eqx.filter_jit
def model(workload, key):
    """A model of Equinox's own layers."""
    if workload.kind == "convolutional":
        return Convolutional(workload.sizes, key=key)
    if workload.kind == "transformer":
        return Transformer(workload.sizes, key=key)
    first, *hidden, last = workload.sizes
    if len(set(hidden)) <= 1:
        width = hidden[0] if hidden else 1
        return eqx.nn.MLP(first, last, width, len(hidden), activation(workload), key=key)
    keys = jax.random.split(key, len(workload.sizes) - 1)
    layers = []
    for i, o, k in zip(workload.sizes[:-1], workload.sizes[1:], keys, strict=True):
        layers += [eqx.nn.Linear(i, o, key=k), eqx.nn.Lambda(activation(workload))]
    return eqx.nn.Sequential(layers[:-1])


def optimizer(workload):
    """Optax's optimizer."""
    return {"adam": optax.adam, "sgd": optax.sgd}[workload.optimizer](workload.rate)


def error(workload):
    """The loss of one example's prediction and target."""
    if workload.classifies:
        return optax.losses.softmax_cross_entropy_with_integer_labels
    return optax.losses.squared_error
