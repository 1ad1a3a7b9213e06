"""Vernal: everything on that is on by default, the progress bar too."""

import contextlib
import io
from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
from workloads import LENGTH, Unfit

import vernal
from rivals.equinox_models import activation, model, optimizer
from vernal import losses, nn


class Terminal(io.StringIO):
    """What a progress bar is shown on."""

    def isatty(self):
        return True


class Attention(eqx.Module):
    """What `equinox.nn.MultiheadAttention` computes, of layers that take all tokens at once."""

    qkv: nn.Linear
    out: nn.Linear
    heads: int = eqx.field(static=True)

    def __init__(self, heads, width, *, key):
        keys = jax.random.split(key)
        self.qkv = nn.Linear(width, 3 * width, use_bias=False, key=keys[0])
        self.out = nn.Linear(width, width, use_bias=False, key=keys[1])
        self.heads = heads

    def __call__(self, x):
        q, k, v = jnp.split(self.qkv(x).reshape(len(x), 3 * self.heads, -1), 3, axis=1)
        return self.out(jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(x.shape))


class Block(eqx.Module):
    """As the block of Equinox's layers, without a `jax.vmap` around dense ones."""

    norms: list[eqx.nn.LayerNorm]
    attention: Attention
    wide: nn.Linear
    narrow: nn.Linear

    def __init__(self, width, heads, *, key):
        keys = jax.random.split(key, 3)
        self.norms = [eqx.nn.LayerNorm(width), eqx.nn.LayerNorm(width)]
        self.attention = Attention(heads, width, key=keys[0])
        self.wide = nn.Linear(width, 4 * width, key=keys[1])
        self.narrow = nn.Linear(4 * width, width, key=keys[2])

    def __call__(self, x):
        x = x + self.attention(jax.vmap(self.norms[0])(x))
        return x + self.narrow(jax.nn.relu(self.wide(jax.vmap(self.norms[1])(x))))


class Transformer(eqx.Module):
    """As the transformer of Equinox's layers."""

    tokens: eqx.nn.Embedding
    places: eqx.nn.Embedding
    blocks: list[Block]
    norm: eqx.nn.LayerNorm
    last: nn.Linear

    def __init__(self, sizes, *, key):
        vocabulary, width, heads, blocks = sizes
        keys = jax.random.split(key, blocks + 3)
        self.tokens = eqx.nn.Embedding(vocabulary, width, key=keys[0])
        self.places = eqx.nn.Embedding(LENGTH, width, key=keys[1])
        self.blocks = [Block(width, heads, key=k) for k in keys[3:]]
        self.norm = eqx.nn.LayerNorm(width)
        self.last = nn.Linear(width, vocabulary, key=keys[2])

    def __call__(self, x):
        x = jax.vmap(self.tokens)(x) + self.places.weight
        for block in self.blocks:
            x = block(x)
        return self.last(jax.vmap(self.norm)(x))


def loss_of(workload):
    """The loss."""
    return losses.CrossEntropy() if workload.classifies else losses.MeanSquaredError()


def _prepare(workload, make):
    trainer = vernal.Trainer(optimizer(workload), loss_of(workload))
    data, trained = workload.data(), []
    if jax.default_backend() != "cpu":  # there from the start, as with the loops written by hand
        data = jax.device_put(data)
    epochs, size = workload.epochs, workload.batch_size
    first_model = cache(lambda: make(workload, jax.random.key(0)))

    def run():
        with contextlib.redirect_stderr(Terminal()):
            trained[:] = trainer.fit(first_model(), data, epochs=epochs, batch_size=size)
        jax.block_until_ready(jax.tree.leaves(trained[0].opt_state))

    return run, lambda x: trainer.predict(trained[0], x, batch_size=256)


def prepare(workload):
    """A model of Equinox's own layers."""
    return _prepare(workload, model)


def _own(workload, key):
    if workload.kind == "transformer":
        return Transformer(workload.sizes, key=key)
    first, *hidden, last = workload.sizes
    if workload.kind != "dense" or len(set(hidden)) > 1:
        raise Unfit("vernal.nn has dense layers of one width")
    if not hidden:
        return nn.Linear(first, last, key=key)
    return nn.MLP(first, last, hidden[0], len(hidden), activation(workload), key=key)


def prepare_own(workload):
    """A model of `vernal.nn`."""
    _own(workload, jax.random.key(0))
    return _prepare(workload, _own)
