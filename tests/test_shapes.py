"""Wrong programs: each is explained before anything compiles, and the line it suggests fixes it.

All of the messages are written to build/errors.txt, to be read from start to end as a user would.
"""

import ast
import cProfile
import functools
import pathlib
import pstats
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import filled

import vernal
from vernal import CallError, ExamplesError, ShapeError, Trainer, losses, nn

pytestmark = pytest.mark.usefixtures("compiled_fast")

KEY = jax.random.key(0)
SGD = optax.sgd(1e-3)
MSE, CE, BCE = losses.MeanSquaredError(), losses.CrossEntropy(), losses.BinaryCrossEntropy()
SOFT = losses.Supervised(optax.losses.softmax_cross_entropy)
SPARSE = losses.Supervised(optax.losses.softmax_cross_entropy_with_integer_labels)
NAMES = {"np": np, "jax": jax, "jnp": jnp, "losses": losses, "optax": optax}
ROOT = pathlib.Path(vernal.__file__).parent
GALLERY = pathlib.Path(__file__).parents[1] / "build" / "errors.txt"
N = 20
RNG = np.random.default_rng(0)


def f(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def i(n, *shape):
    """Integers below `n`, each of them there."""
    return (np.arange(np.prod(shape, dtype=int)) % n).reshape(shape)


# ----- models of one example


class Recurrent(eqx.Module):
    cell: Any
    out: eqx.nn.Linear

    def __call__(self, xs):
        zero = jnp.zeros(self.cell.hidden_size)
        start = (zero, zero) if isinstance(self.cell, eqx.nn.LSTMCell) else zero
        end, _ = jax.lax.scan(lambda h, x: (self.cell(x, h), None), start, xs)
        return self.out(end[0] if isinstance(end, tuple) else end)


class Pixelwise(eqx.Module):
    linear: eqx.nn.Linear

    def __call__(self, x):
        return jax.vmap(jax.vmap(self.linear))(x)


def pixelwise(inputs, outputs):
    return lambda: Pixelwise(eqx.nn.Linear(inputs, outputs, key=KEY))


class Block(eqx.Module):
    attention: eqx.nn.MultiheadAttention
    norm: eqx.nn.LayerNorm

    def __call__(self, x):
        return jax.vmap(self.norm)(x + self.attention(x, x, x))


class Model(eqx.Module):
    blocks: list[Block]
    heads: dict[str, eqx.nn.Linear]

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return self.heads["value"](x.mean(0))


class Words(eqx.Module):
    embedding: eqx.nn.Embedding
    out: eqx.nn.Linear

    def __call__(self, x):
        return self.out(jax.vmap(self.embedding)(x).mean(0))


class WholeBatch(eqx.Module):
    inner: eqx.nn.Linear

    def __call__(self, x):
        return jax.vmap(self.inner)(x)


class Whitened(eqx.Module):
    inner: nn.Linear

    def __call__(self, x):
        return self.inner((x - x.mean(0)) / x.shape[1])


class Outer(eqx.Module):
    net: Any

    def __call__(self, x):
        return self.net(x)


class NotCallable(eqx.Module):
    weight: jax.Array


def mlp(n_in, n_out):
    return lambda: eqx.nn.MLP(n_in, n_out, 4, 1, key=KEY)


def ours(n_in, n_out):
    return lambda: nn.MLP(n_in, n_out, 4, 1, key=KEY)


def linear(n_in, n_out, layer: Any = eqx.nn.Linear):
    return lambda: layer(n_in, n_out, key=KEY)


def chain(*layers):
    """A `Sequential` of what makes a layer, and of functions of one array."""
    as_layer = lambda part: part() if isinstance(part, functools.partial) else eqx.nn.Lambda(part)
    return lambda: eqx.nn.Sequential([as_layer(part) for part in layers])


def layer(kind, *args, **kwargs):
    return functools.partial(kind, *args, **kwargs, key=KEY)


plain = functools.partial  # of a layer that takes no key


def recurrent(cell, size):
    return lambda: Recurrent(cell(size, 4, key=KEY), eqx.nn.Linear(4, 1, key=KEY))


def attention(*sizes, out):
    block = lambda n: Block(eqx.nn.MultiheadAttention(2, n, key=KEY), eqx.nn.LayerNorm(n))
    head = lambda: {"value": eqx.nn.Linear(out, 1, key=KEY)}
    return lambda: Model([block(size) for size in sizes], head())


def words():
    return Words(eqx.nn.Embedding(10, 4, key=KEY), eqx.nn.Linear(4, 3, key=KEY))


def whole_batch(n_out=1):
    return lambda: WholeBatch(eqx.nn.Linear(3, n_out, key=KEY))


CNN = chain(
    layer(eqx.nn.Conv2d, 1, 2, 3),
    jax.nn.relu,
    plain(eqx.nn.MaxPool2d, 2, 2),
    jnp.ravel,
    layer(eqx.nn.Linear, 18, 3),
)
RGB = chain(layer(eqx.nn.Conv2d, 3, 2, 3), jnp.ravel, layer(eqx.nn.Linear, 72, 3))
CONV1 = chain(layer(eqx.nn.Conv1d, 1, 2, 3), jnp.ravel, layer(eqx.nn.Linear, 12, 1))
UP1 = chain(layer(eqx.nn.ConvTranspose1d, 1, 2, 3), jnp.ravel, layer(eqx.nn.Linear, 20, 1))
UP2 = chain(layer(eqx.nn.ConvTranspose2d, 3, 1, 3), jnp.ravel, layer(eqx.nn.Linear, 36, 1))
POOL1 = chain(plain(eqx.nn.AvgPool1d, 2, 2), jnp.ravel, layer(eqx.nn.Linear, 4, 1))
POOL2 = chain(plain(eqx.nn.MaxPool2d, 2, 2), jnp.ravel, layer(eqx.nn.Linear, 4, 1))
ADAPTIVE = chain(plain(eqx.nn.AdaptiveAvgPool2d, (2, 2)), jnp.ravel, layer(eqx.nn.Linear, 4, 1))
MISFIT_CNN = chain(layer(eqx.nn.Conv2d, 1, 2, 3), layer(eqx.nn.Conv2d, 3, 2, 3))


def normed(kind, *args):
    return chain(plain(kind, *args), layer(eqx.nn.Linear, 4, 1))


# ----- losses of one's own


def forgot_vmap(model, batch, key):
    x, y = batch
    return jnp.mean((model(x) - y) ** 2)


def forgot_mean(model, batch, key):
    x, y = batch
    return (jax.vmap(model)(x) - y) ** 2


def too_many(model, batch, key):
    return jnp.mean((jax.vmap(model)(batch[0]) - batch[2]) ** 2)


def right(model, batch, key):
    x, y = batch
    predictions = jax.vmap(model)(x)
    assert predictions.shape == y.shape
    return jnp.mean((predictions - y) ** 2)


def of_a_dict(model, batch, key):
    return jnp.mean((jax.vmap(model)(batch["a"]) - batch["b"]) ** 2)


# ----- wrong programs


class Wrong(NamedTuple):
    """A program, and what its message has to say, between the bars."""

    model: Callable[[], Any]
    data: Any  # for `predict` the x alone
    says: str
    fix: str | None = None  # the suggested line; None if nothing is to be suggested
    loss: Callable = MSE
    call: str = "fit"
    error: type = ShapeError
    validation: bool = False  # whether this is the validation set of a good training set


def per(shape):
    """How a message puts the shape of x."""
    its = "its one example" if shape[0] == 1 else f"each of its {shape[0]} examples"
    each = f"has shape {shape[1:]}" if shape[1:] else "is a single number"
    return f"x has shape {shape}: {its} {each}"


FEATURES = {
    "x lacks the feature axis": Wrong(
        linear(1, 1, nn.Linear),
        (f(N), f(N, 1)),
        f"{per((20,))} | but Linear needs (1,)",
        "x[:, None]",
    ),
    "x lacks the feature axis, Equinox's layer": Wrong(
        linear(1, 1), (f(N), f(N, 1)), f"{per((20,))} | but Linear needs (1,)", "x[:, None]"
    ),
    "y lacks the feature axis": Wrong(
        ours(3, 1),
        (f(N, 3), f(N)),
        "y has shape (20,) | MeanSquaredError needs (20, 1) for predictions of shape (20, 1)",
        "y[:, None]",
    ),
    "x and y lack the feature axis": Wrong(
        mlp(1, 1),
        (f(N), f(N)),
        f"{per((20,))} | MLP.layers[0] (Linear) needs (1,)",
        "x[:, None] and y[:, None]",
    ),
    "x and y lack the feature axis, with weights": Wrong(
        ours(1, 1),
        (f(N), f(N), np.ones(N, np.float32)),
        f"{per((20,))} | MLP.layers[0] (Linear) needs (1,)",
        "x[:, None] and y[:, None]",
    ),
    "x is transposed": Wrong(
        mlp(3, 1), (f(3, N), f(N, 1)), "x has 3, y has 20", "x.T", error=ExamplesError
    ),
    "y is transposed": Wrong(
        ours(3, 2), (f(N, 3), f(2, N)), "x has 20, y has 2", "y.T", error=ExamplesError
    ),
    "x and y are transposed": Wrong(
        mlp(1, 1),
        (f(1, N), f(1, N)),
        f"{per((1, 20))} | MLP.layers[0] (Linear) needs (1,)",
        "x.T and y.T",
    ),
    "x is transposed, and as long as y": Wrong(
        ours(3, 1), (f(3, N), f(3, 1)), f"{per((3, 20))} | MLP.layers[0] (Linear) needs (3,)"
    ),
    "a unit axis in x": Wrong(
        mlp(3, 1),
        (f(N, 1, 3), f(N, 1)),
        f"{per((20, 1, 3))} | MLP.layers[0] (Linear) needs (3,)",
        "x.squeeze(1)",
    ),
    "a unit axis in x, Vernal's layer": Wrong(
        ours(3, 1), (f(N, 1, 3), f(N, 1)), "y has shape (20, 1) | (20, 1, 1)", "x.squeeze(1)"
    ),
    "a unit axis at the end of x": Wrong(
        ours(3, 1),
        (f(N, 3, 1), f(N, 1)),
        f"{per((20, 3, 1))} | MLP.layers[0] (Linear) needs (3,)",
        "x.squeeze(2)",
    ),
    "two unit axes in x": Wrong(
        ours(3, 1),
        (f(N, 3, 1, 1), f(N, 1)),
        f"{per((20, 3, 1, 1))} | MLP.layers[0] (Linear) needs (3,)",
        "x.squeeze(2).squeeze(2)",
    ),
    "a unit axis in y": Wrong(
        mlp(3, 2),
        (f(N, 3), f(N, 1, 2)),
        "y has shape (20, 1, 2) | MeanSquaredError needs (20, 2)",
        "y.squeeze(1)",
    ),
    "too many features": Wrong(
        ours(3, 1), (f(N, 5), f(N, 1)), f"{per((20, 5))} | MLP.layers[0] (Linear) needs (3,)"
    ),
    "too few features, Equinox's MLP": Wrong(
        mlp(3, 1), (f(N, 2), f(N, 1)), f"{per((20, 2))} | MLP.layers[0] (Linear) needs (3,)"
    ),
    "features of a model inside": Wrong(
        lambda: Outer(ours(3, 1)()),
        (f(N, 2), f(N, 1)),
        f"{per((20, 2))} | Outer.net.layers[0] (Linear) needs (3,)",
    ),
    "y has too many columns": Wrong(
        mlp(3, 1), (f(N, 3), f(N, 2)), "y has shape (20, 2) | needs (20, 1) | of shape (20, 1)"
    ),
    "x is a row where a scalar is needed": Wrong(
        mlp("scalar", "scalar"),
        (f(N, 1), f(N, 1)),
        f"{per((20, 1))} | MLP.layers[0] (Linear) needs ()",
        "x.squeeze(1) and y.squeeze(1)",
    ),
    "y has an axis that a scalar model lacks": Wrong(
        ours("scalar", "scalar"), (f(N), f(N, 1)), "y has shape (20, 1) | (20,)", "y.squeeze(1)"
    ),
    "two features into a scalar model": Wrong(
        mlp("scalar", 1), (f(N, 2), f(N, 1)), f"{per((20, 2))} | MLP.layers[0] (Linear) needs ()"
    ),
}

SILENT = {
    "one example, y without its axis": Wrong(
        ours(3, 1), (f(1, 3), f(1)), "y has shape (1,) | needs (1, 1)", "y[:, None]"
    ),
    "one example, x and y without their axes": Wrong(
        mlp(1, 1), (f(1), f(1)), f"{per((1,))} | needs (1,)", "x[:, None] and y[:, None]"
    ),
    "one example given to fit": Wrong(
        mlp(3, 1), (f(3), f(1)), "x has 3, y has 1", "x[None] and y[:, None]", error=ExamplesError
    ),
    "as many outputs as examples": Wrong(
        mlp(3, N), (f(N, 3), f(N)), "y has shape (20,) | needs (20, 20) | of shape (20, 20)"
    ),
    "as many targets as examples": Wrong(
        ours(3, 1), (f(N, 3), f(N, N)), "y has shape (20, 20) | needs (20, 1)"
    ),
    "as many features as examples, y a row": Wrong(
        ours(3, 1), (f(3, 3), f(1, 3)), "x has 3, y has 1", "y.T", error=ExamplesError
    ),
    "a row of targets for a scalar model": Wrong(
        mlp("scalar", "scalar"),
        (f(N), f(1, N)),
        "x has 20, y has 1",
        "y.squeeze(0)",
        error=ExamplesError,
    ),
    "a square x of too many features": Wrong(
        mlp(3, 1), (f(N, N), f(N, 1)), f"{per((20, 20))} | MLP.layers[0] (Linear) needs (3,)"
    ),
    "a log-cosh that would broadcast": Wrong(
        mlp(3, 1),
        (f(N, 3), f(N)),
        "y has shape (20,), but Supervised needs (20, 1)",
        "y[:, None]",
        losses.Supervised(optax.losses.log_cosh),
    ),
    "a Huber loss that would broadcast": Wrong(
        mlp(3, "scalar"),
        (f(N, 3), f(N, 1)),
        "y has shape (20, 1), but Huber needs (20,)",
        "y.squeeze(1)",
        losses.Huber(2.0),
    ),
}

CLASSES = {
    "one-hot labels for integer ones": Wrong(
        ours(3, 4),
        (f(N, 3), np.eye(4)[i(4, N)]),
        "y has shape (20, 4), but CrossEntropy needs (20,)",
        "y.argmax(-1)",
        CE,
    ),
    "integer labels for one-hot ones": Wrong(
        mlp(3, 4), (f(N, 3), i(4, N)), "y has shape (20,) | (20, 4)", "jax.nn.one_hot(y, 4)", SOFT
    ),
    "integer labels for a regression": Wrong(
        ours(3, 4), (f(N, 3), i(4, N)), "y has shape (20,) | (20, 4)", "jax.nn.one_hot(y, 4)"
    ),
    "soft labels": Wrong(
        mlp(3, 4),
        (f(N, 3), np.full((N, 4), 0.25, np.float32)),
        "y has shape (20, 4), but CrossEntropy needs (20,)",
        "Trainer(optimizer, losses.Supervised(optax.losses.softmax_cross_entropy))",
        CE,
    ),
    "float labels": Wrong(
        ours(3, 4),
        (f(N, 3), i(4, N).astype(np.float32)),
        "y is float32, but CrossEntropy needs integer labels",
        "y.astype(int)",
        CE,
    ),
    "bool labels": Wrong(
        mlp(3, 2), (f(N, 3), i(2, N) > 0), "y is bool | integer labels", "y.astype(int)", CE
    ),
    "a column of labels": Wrong(
        ours(3, 4), (f(N, 3), i(4, N, 1)), "y has shape (20, 1) | (20,)", "y.squeeze(1)", CE
    ),
    "a column of float labels": Wrong(
        mlp(3, 4),
        (f(N, 3), i(4, N, 1).astype(np.float32)),
        "y has shape (20, 1) | (20,)",
        "y.squeeze(1).astype(int)",
        CE,
    ),
    "float labels that are no labels": Wrong(
        mlp(3, 4), (f(N, 3), f(N)), "y is float32, but CrossEntropy needs integer labels", None, CE
    ),
    "numbers that are no labels, for classes": Wrong(
        mlp(3, 4),
        (f(N, 3), 100.0 * i(4, N)),
        "y is float32, but CrossEntropy needs integer labels",
        None,
        CE,
    ),
    "real targets, for classes": Wrong(
        mlp(3, 4), (f(N, 3), f(N, 4)), "y has shape (20, 4) | CrossEntropy needs (20,)", None, CE
    ),
    "whole targets for a regression of another width": Wrong(
        ours(3, 4), (f(N, 3), i(N, N)), "y has shape (20,) | (20, 4)"
    ),
    "labels counted from one": Wrong(
        mlp(3, 4),
        (f(N, 3), i(4, N) + 1),
        "y[3] is 4 | 0 to 3 | (20, 4)",
        "y - 1",
        CE,
        error=ExamplesError,
    ),
    "more labels than classes": Wrong(
        ours(3, 4),
        (f(N, 3), i(7, N)),
        "y[4] is 4, but CrossEntropy needs 0 to 3 for predictions of shape (20, 4)",
        None,
        CE,
        error=ExamplesError,
    ),
    "labels of -1 and 1": Wrong(
        mlp(3, 1),
        (f(N, 3), i(2, N, 1) * 2 - 1),
        "y[0, 0] is -1, but BinaryCrossEntropy needs 0 to 1",
        "(y + 1) / 2",
        BCE,
        error=ExamplesError,
    ),
    "binary labels without the feature axis": Wrong(
        ours(3, 1), (f(N, 3), i(2, N)), "y has shape (20,) | (20, 1)", "y[:, None]", BCE
    ),
    "a scalar as logits": Wrong(
        mlp(3, "scalar"),
        (f(N, 3), i(2, N)),
        "predictions have shape (20,), but CrossEntropy needs a logit for each class, last",
        "Trainer(optimizer, losses.BinaryCrossEntropy())",
        CE,
    ),
    "one logit": Wrong(
        mlp(3, 1),
        (f(N, 3), i(2, N)),
        "y[1] is 1 | 0 to 0 | predictions of shape (20, 1) | losses.BinaryCrossEntropy()",
        None,
        CE,
        error=ExamplesError,
    ),
    "one logit, and three classes": Wrong(
        ours(3, 1), (f(N, 3), i(3, N)), "y[1] is 1 | 0 to 0", None, CE, error=ExamplesError
    ),
}

DTYPES = {
    "integer features": Wrong(
        ours(3, 1),
        (i(5, N, 3), f(N, 1)),
        "x is int32, but MLP.layers[0] (Linear) needs floats",
        'x.astype("float32")',
    ),
    "bool features": Wrong(
        linear(3, 1, nn.Linear),
        (i(2, N, 3) > 0, f(N, 1)),
        "x is bool, but Linear needs floats",
        'x.astype("float32")',
    ),
    "integers without the feature axis": Wrong(
        ours(1, 1), (i(5, N), f(N, 1)), "x has shape (20,)", 'x[:, None].astype("float32")'
    ),
    "bytes of images": Wrong(
        CNN,
        (i(256, N, 1, 8, 8).astype(np.uint8), i(3, N)),
        "x is uint8, but Sequential.layers[0] (Conv2d) needs floats",
        'x.astype("float32")',
        CE,
    ),
    "bytes of images without a channel": Wrong(
        CNN,
        (i(256, N, 8, 8).astype(np.uint8), i(3, N)),
        f"{per((20, 8, 8))} | Sequential.layers[0] (Conv2d) needs (1, height, width)",
        'x[:, None].astype("float32")',
        CE,
    ),
    "float words": Wrong(
        words,
        (i(10, N, 5).astype(np.float32), i(3, N)),
        "x is float32, but Words.embedding (Embedding) needs integers",
        "x.astype(int)",
        CE,
    ),
    "words that are no whole numbers": Wrong(
        words,
        (f(N, 5), i(3, N)),
        "x is float32, but Words.embedding (Embedding) needs integers",
        None,
        CE,
    ),
    "bools inside": Wrong(
        chain(lambda x: x > 0, layer(nn.Linear, 3, 1)),
        (f(N, 3), f(N, 1)),
        "Sequential.layers[1] (Linear) needs floats | bool",
    ),
}

LAYERS = {
    "Conv1d without a channel": Wrong(
        CONV1,
        (f(N, 8), f(N, 1)),
        f"{per((20, 8))} | Sequential.layers[0] (Conv1d) needs (1, length)",
        "x[:, None]",
    ),
    "channels first, for a layer of the last axis": Wrong(
        pixelwise(3, 2),
        (f(N, 3, 4, 5), f(N, 4, 5, 2)),
        "Pixelwise.linear (Linear) needs (3,)",
        "np.moveaxis(x, 1, -1)",
    ),
    "targets with channels first": Wrong(
        pixelwise(3, 2),
        (f(N, 4, 5, 3), f(N, 2, 4, 5)),
        "y has shape (20, 2, 4, 5), but MeanSquaredError needs (20, 4, 5, 2)",
        "np.moveaxis(y, 1, -1)",
    ),
    "Conv1d, channels last": Wrong(
        CONV1,
        (f(N, 8, 1), f(N, 1)),
        f"{per((20, 8, 1))} | Sequential.layers[0] (Conv1d) needs (1, length)",
        "np.moveaxis(x, -1, 1)",
    ),
    "Conv2d without a channel": Wrong(
        CNN,
        (f(N, 8, 8), i(3, N)),
        f"{per((20, 8, 8))} | Sequential.layers[0] (Conv2d) needs (1, height, width)",
        "x[:, None]",
        CE,
    ),
    "Conv2d, channels last": Wrong(
        RGB,
        (f(N, 8, 8, 3), i(3, N)),
        f"{per((20, 8, 8, 3))} | Sequential.layers[0] (Conv2d) needs (3, height, width)",
        "np.moveaxis(x, -1, 1)",
        CE,
    ),
    "Conv2d, one channel for three": Wrong(
        RGB,
        (f(N, 1, 8, 8), i(3, N)),
        f"{per((20, 1, 8, 8))} | Sequential.layers[0] (Conv2d) needs (3, height, width)",
        None,
        CE,
    ),
    "Conv2d, larger images": Wrong(
        CNN,
        (f(N, 1, 12, 12), i(3, N)),
        "Sequential.layers[4] (Linear) needs (18,), and is given (50,) | (20, 1, 12, 12)",
        None,
        CE,
    ),
    "Conv2d after Conv2d": Wrong(
        MISFIT_CNN,
        (f(N, 1, 8, 8), f(N, 2, 4, 4)),
        "Sequential.layers[1] (Conv2d) needs (3, height, width), and is given (2, 6, 6)",
    ),
    "ConvTranspose1d without a channel": Wrong(
        UP1,
        (f(N, 8), f(N, 1)),
        f"{per((20, 8))} | Sequential.layers[0] (ConvTranspose1d) needs (1, length)",
        "x[:, None]",
    ),
    "ConvTranspose2d, channels last": Wrong(
        UP2,
        (f(N, 4, 4, 3), f(N, 1)),
        f"{per((20, 4, 4, 3))} | layers[0] (ConvTranspose2d) needs (3, height, width)",
        "np.moveaxis(x, -1, 1)",
    ),
    "AvgPool1d without a channel": Wrong(
        POOL1,
        (f(N, 8), f(N, 1)),
        f"{per((20, 8))} | Sequential.layers[0] (AvgPool1d) needs (channels, length)",
        "x[:, None]",
    ),
    "MaxPool2d without a channel": Wrong(
        POOL2,
        (f(N, 4, 4), f(N, 1)),
        f"{per((20, 4, 4))} | layers[0] (MaxPool2d) needs (channels, height, width)",
        "x[:, None]",
    ),
    "AdaptiveAvgPool2d without a channel": Wrong(
        ADAPTIVE,
        (f(N, 4, 4), f(N, 1)),
        f"{per((20, 4, 4))} | layers[0] (AdaptiveAvgPool2d) needs (channels, height, width)",
        "x[:, None]",
    ),
    "LayerNorm of another size": Wrong(
        normed(eqx.nn.LayerNorm, 4),
        (f(N, 3), f(N, 1)),
        f"{per((20, 3))} | Sequential.layers[0] (LayerNorm) needs (4,)",
    ),
    "LayerNorm of a sequence": Wrong(
        normed(eqx.nn.LayerNorm, 4),
        (f(N, 5, 4), f(N, 5, 1)),
        f"{per((20, 5, 4))} | Sequential.layers[0] (LayerNorm) needs (4,)",
    ),
    "RMSNorm without the feature axis": Wrong(
        chain(plain(eqx.nn.RMSNorm, 1), layer(eqx.nn.Linear, 1, 1)),
        (f(N), f(N, 1)),
        f"{per((20,))} | Sequential.layers[0] (RMSNorm) needs (1,)",
        "x[:, None]",
    ),
    "GroupNorm, channels last": Wrong(
        chain(plain(eqx.nn.GroupNorm, 2, 4), layer(eqx.nn.Conv1d, 4, 1, 1)),
        (f(N, 6, 4), f(N, 1, 6)),
        f"{per((20, 6, 4))} | Sequential.layers[0] (GroupNorm) needs (4, ...)",
        "np.moveaxis(x, -1, 1)",
    ),
    "Embedding of a column": Wrong(
        lambda: eqx.nn.Embedding(10, 3, key=KEY),
        (i(10, N, 1), i(3, N)),
        f"{per((20, 1))} | Embedding needs an integer",
        "x.squeeze(1)",
        CE,
    ),
    "words without an axis": Wrong(words, (i(10, N), i(3, N)), "Words | ()", "x[:, None]", CE),
    "GRUCell without the feature axis": Wrong(
        recurrent(eqx.nn.GRUCell, 1),
        (f(N, 7), f(N, 1)),
        "Recurrent.cell (GRUCell) needs input of shape (1,), and is given () | (20, 7)",
        "x[..., None]",
    ),
    "GRUCell, other features": Wrong(
        recurrent(eqx.nn.GRUCell, 2),
        (f(N, 7, 3), f(N, 1)),
        "Recurrent.cell (GRUCell) needs input of shape (2,), and is given (3,) | (20, 7, 3)",
    ),
    "LSTMCell without the axis of time": Wrong(
        recurrent(eqx.nn.LSTMCell, 3),
        (f(N, 3), f(N, 1)),
        "Recurrent.cell (LSTMCell) needs input of shape (3,), and is given () | (20, 3)",
        "x[:, None]",
    ),
    "LSTMCell, features before time": Wrong(
        recurrent(eqx.nn.LSTMCell, 3),
        (f(N, 3, 7), f(N, 1)),
        "Recurrent.cell (LSTMCell) needs input of shape (3,), and is given (7,) | (20, 3, 7)",
        "np.moveaxis(x, -1, 1)",
    ),
    "attention without the axis of time": Wrong(
        attention(6, out=6),
        (f(N, 6), f(N, 1)),
        f"{per((20, 6))} | Model.blocks[0].attention (MultiheadAttention) | of shape (length, 6)",
        "x[:, None]",
    ),
    "attention, other features": Wrong(
        attention(6, out=6),
        (f(N, 5, 4), f(N, 1)),
        f"{per((20, 5, 4))} | Model.blocks[0].attention (MultiheadAttention) | (length, 6)",
    ),
    "a head that does not fit": Wrong(
        attention(6, out=4),
        (f(N, 5, 6), f(N, 1)),
        "Model.heads['value'] (Linear) needs (4,), and is given (6,) | (20, 5, 6)",
    ),
    "layers that do not fit each other": Wrong(
        chain(layer(eqx.nn.Linear, 3, 4), layer(nn.Linear, 5, 1)),
        (f(N, 3), f(N, 1)),
        "Sequential.layers[1] (Linear) needs (5,), and is given (4,) | (20, 3)",
    ),
    "images into an MLP": Wrong(
        mlp(64, 3),
        (f(N, 8, 8), i(3, N)),
        f"{per((20, 8, 8))} | MLP.layers[0] (Linear) needs (64,)",
        "x.reshape(len(x), -1)",
        CE,
    ),
    "images into Vernal's MLP": Wrong(
        ours(64, 3),
        (f(N, 8, 8), i(3, N)),
        f"{per((20, 8, 8))} | MLP.layers[0] (Linear) needs (64,)",
        "x.reshape(len(x), -1)",
        CE,
    ),
    "colour images into an MLP": Wrong(
        mlp(48, 3),
        (f(N, 4, 4, 3), i(3, N)),
        f"{per((20, 4, 4, 3))} | MLP.layers[0] (Linear) needs (48,)",
        "x.reshape(len(x), -1)",
        CE,
    ),
}

MODELS = {
    "a model that takes a whole batch": Wrong(
        whole_batch(),
        (f(N, 3), f(N, 1)),
        "WholeBatch.inner (Linear) needs (3,), and is given () | whole batch",
        "lambda model, b, key: losses.MeanSquaredError().average(model(b[0]), *b[1:])",
    ),
    "a classifier of a whole batch, with weights": Wrong(
        whole_batch(4),
        (f(N, 3), i(4, N), np.ones(N, np.float32)),
        "WholeBatch.inner (Linear) needs (3,), and is given () | whole batch",
        "lambda model, b, key: losses.CrossEntropy().average(model(b[0]), *b[1:])",
        CE,
    ),
    "an output of two": Wrong(
        chain(layer(eqx.nn.Linear, 3, 1), lambda x: (x, x)),
        (f(N, 3), f(N, 1)),
        "predictions are a tuple of 2, but MeanSquaredError needs one array",
    ),
    "an output of none": Wrong(
        chain(layer(eqx.nn.Linear, 3, 1), lambda x: None),
        (f(N, 3), f(N, 1)),
        "predictions are None, but MeanSquaredError needs one array",
    ),
    "an output in a dict": Wrong(
        chain(layer(nn.Linear, 3, 4), lambda x: {"logits": x}),
        (f(N, 3), i(4, N)),
        "predictions are a dict, but CrossEntropy needs one array",
        None,
        CE,
    ),
    "an input in a dict": Wrong(mlp(3, 1), ({"a": f(N, 3)}, f(N, 1)), "MLP | x is a dict"),
}

LOSSES = {
    "a loss that forgets vmap": Wrong(
        mlp(3, 1),
        (f(N, 3), f(N, 1)),
        "MLP.layers[0] (Linear) needs (3,), and is given (20, 3) | the model takes one example",
        "jax.vmap(model)",
        forgot_vmap,
    ),
    "a loss without a mean": Wrong(
        ours(3, 1), (f(N, 3), f(N, 1)), "one number | shape (20, 1) | jnp.mean", None, forgot_mean
    ),
    "a loss of what the batch has not": Wrong(
        mlp(3, 1), (f(N, 3), f(N, 1)), "the loss fails | IndexError", None, too_many
    ),
    "x transposed, and a loss of one's own": Wrong(
        mlp(3, 1), (f(3, N), f(N, 1)), "x has 3, y has 20", "x.T", right, error=ExamplesError
    ),
    "x lacks an axis, and a loss of one's own": Wrong(
        ours(1, 1),
        (f(N), f(N, 1)),
        f"{per((20,))} | MLP.layers[0] (Linear) needs (1,)",
        "x[:, None]",
        right,
    ),
}  # fmt: skip

CALLS = {
    "one example to step": Wrong(
        mlp(3, 1),
        (f(3), f(1)),
        "x has 3, y has 1",
        "x[None] and y[:, None]",
        call="step",
        error=ExamplesError,
    ),
    "one example to step, y a number": Wrong(
        ours(3, 1),
        (f(3), np.float32(1)),
        "y is a single number",
        "x[None] and y[None, None]",
        call="step",
        error=ExamplesError,
    ),
    "y lacks an axis in step": Wrong(
        ours(3, 1), (f(N, 3), f(N)), "y has shape (20,) | (20, 1)", "y[:, None]", call="step"
    ),
    "other features in step": Wrong(
        mlp(3, 1), (f(N, 4), f(N, 1)), f"{per((20, 4))} | needs (3,)", call="step"
    ),
    "labels out of range in evaluate": Wrong(
        mlp(3, 4), (f(N, 3), i(4, N) + 1), "y[3] is 4 | 0 to 3", "y - 1", CE, "evaluate",
        ExamplesError,
    ),
    "one example to predict": Wrong(
        mlp(3, 1),
        f(3),
        f"{per((3,))} | MLP.layers[0] (Linear) needs (3,)",
        "x[None]",
        call="predict",
    ),
    "one example to predict, Vernal's layer": Wrong(
        ours(3, 1),
        f(3),
        f"{per((3,))} | MLP.layers[0] (Linear) needs (3,)",
        "x[None]",
        call="predict",
    ),
    "x transposed to predict": Wrong(
        ours(3, 1),
        f(3, 50),
        f"{per((3, 50))} | MLP.layers[0] (Linear) needs (3,)",
        "x.T",
        call="predict",
    ),
    "x lacks an axis to predict": Wrong(
        mlp(1, 1), f(N), f"{per((20,))} | needs (1,)", "x[:, None]", call="predict"
    ),
    "one image to predict": Wrong(
        RGB, f(3, 8, 8), "Sequential.layers[0] (Conv2d) needs (3, height, width)", "x[None]",
        call="predict",
    ),
    "y lacks an axis in evaluate": Wrong(
        mlp(3, 1), (f(N, 3), f(N)), "y has shape (20,) | (20, 1)", "y[:, None]", call="evaluate"
    ),
    "x lacks an axis in epochs": Wrong(
        ours(1, 1), (f(N), f(N, 1)), f"{per((20,))} | needs (1,)", "x[:, None]", call="epochs"
    ),
    "other features to validate": Wrong(
        mlp(3, 1),
        (f(8, 4), f(8, 1)),
        f"in validation_data | {per((8, 4))} | MLP.layers[0] (Linear) needs (3,)",
        validation=True,
    ),
    "y lacks an axis to validate": Wrong(
        ours(3, 1),
        (f(8, 3), f(8)),
        "in validation_data | y has shape (8,) | (8, 1)",
        "y[:, None]",
        validation=True,
    ),
    "x lacks an axis to validate, in epochs": Wrong(
        mlp(1, 1),
        (f(8), f(8, 1)),
        f"in validation_data | {per((8,))} | MLP.layers[0] (Linear) needs (1,)",
        "x[:, None]",
        call="epochs",
        validation=True,
    ),
    "x and y of different lengths": Wrong(
        ours(3, 1), (f(N, 3), f(N - 1, 1)), "x has 20, y has 19", error=ExamplesError
    ),
    "a batch of a loader": Wrong(
        mlp(3, 1), [(f(5, 3), f(5)), (f(5, 3), f(5))], "y has shape (5,) | (5, 1)", "y[:, None]"
    ),
    "too few weights": Wrong(
        mlp(3, 1), (f(N, 3), f(N, 1), f(10)), "y has 20, sample_weight has 10", error=ExamplesError
    ),
    "weights with two axes too many": Wrong(
        ours(3, 1),
        (f(N, 3), f(N, 1), np.ones((N, 1, 1), np.float32)),
        "sample_weight has shape (20, 1, 1), but MeanSquaredError needs (20,) or (20, 1)",
        "sample_weight.squeeze(1)",
    ),
    "x and y of different lengths to validate": Wrong(
        mlp(3, 1),
        (f(8, 3), f(7, 1)),
        "validation_data | x has 8, y has 7",
        error=ExamplesError,
        validation=True,
    ),
    "x transposed to validate": Wrong(
        ours(3, 1),
        (f(3, 8), f(8, 1)),
        "validation_data | x has 3, y has 8",
        "x.T",
        error=ExamplesError,
        validation=True,
    ),
    "labels out of range to validate": Wrong(
        mlp(3, 4),
        (f(8, 3), i(4, 8) + 1),
        "in validation_data | y[3] is 4 | 0 to 3",
        "y - 1",
        CE,
        error=ExamplesError,
        validation=True,
    ),
    "a list without the feature axis": Wrong(
        mlp(1, 1),
        (f(N).tolist(), f(N).tolist()),
        f"{per((20,))} | needs (1,)",
        "np.asarray(x)[:, None] and np.asarray(y)[:, None]",
    ),
}  # fmt: skip

# What the messages below say is not yet what they have to say.
OPEN = {
    "a unit axis at the end of x and y": Wrong(
        mlp(3, 1),
        (f(N, 3, 1), f(N, 1, 1)),
        f"{per((20, 3, 1))} | MLP.layers[0] (Linear) needs (3,)",
        "x.squeeze(2) and y.squeeze(1)",
    ),
    "a function that fails": Wrong(
        chain(layer(eqx.nn.Linear, 3, 1), lambda x: x.foo),
        (f(N, 3), f(N, 1)),
        "Sequential.layers[1] (Lambda) fails on x of shape (1,) | AttributeError | foo",
        error=CallError,
    ),
    "a block after another that does not fit": Wrong(
        attention(6, 4, out=4),
        (f(N, 5, 6), f(N, 1)),
        "Model.blocks[1].attention (MultiheadAttention) | (length, 4) | given (5, 6)",
    ),
    "a model that cannot be called": Wrong(
        lambda: NotCallable(jnp.ones(3)),
        (f(N, 3), f(N, 1)),
        "the model is a NotCallable | cannot be called | __call__: it takes one example",
        error=vernal.CallError,
    ),
    "complex features": Wrong(
        ours(3, 1),
        (f(N, 3) + 1j, f(N, 1)),
        "x is complex64, but MLP.layers[0] (Linear) needs floats",
    ),
    "a dict of a loss of one's own": Wrong(
        mlp(3, 1),
        {"a": f(N, 2), "b": f(N, 1)},
        "MLP.layers[0] (Linear) needs (3,) | (2,) | the batch is a dict",
        None,
        of_a_dict,
    ),
    "a whole batch, and Optax's loss": Wrong(
        whole_batch(),
        (f(N, 3), f(N, 1)),
        "WholeBatch.inner (Linear) needs (3,), and is given () | whole batch",
        "lambda model, b, key: "
        "losses.Supervised(optax.losses.log_cosh).average(model(b[0]), *b[1:])",
        losses.Supervised(optax.losses.log_cosh),
    ),
    "a whole batch, and a loss without a name": Wrong(
        whole_batch(),
        (f(N, 3), f(N, 1)),
        "WholeBatch.inner (Linear) needs (3,), and is given ()",
        None,
        losses.Supervised(lambda prediction, target: (prediction - target) ** 2),
    ),
    "a whole batch through Vernal's layer": Wrong(
        lambda: Whitened(nn.Linear(3, 1, key=KEY)),
        (f(N, 3), f(N, 1)),
        "Whitened | whole batch",
        "lambda model, b, key: losses.MeanSquaredError().average(model(b[0]), *b[1:])",
    ),
    "a list without the feature axis to predict": Wrong(
        ours(1, 1),
        f(N).tolist(),
        f"{per((20,))} | needs (1,)",
        "np.asarray(x)[:, None]",
        call="predict",
    ),
}

TABLE = FEATURES | SILENT | CLASSES | DTYPES | LAYERS | MODELS | LOSSES | CALLS | OPEN

# Tried with `--long`: each has a harder one of its kind beside it, which is tried always.
ALIKE = {
    # of features: the same with weights, of another layer, of more examples
    *("x lacks the feature axis", "x and y lack the feature axis", "a unit axis in x"),
    *("a unit axis at the end of x", "too many features", "y has too many columns"),
    "features of a model inside",  # it is in `test_errors.py`, too
    *("x is transposed, and as long as y", "y has an axis that a scalar model lacks"),
    *("a square x of too many features", "one example, y without its axis"),
    *("two features into a scalar model", "a log-cosh that would broadcast"),
    # of labels: a column of floats, and what is no label
    *("a column of labels", "float labels that are no labels", "integer labels for a regression"),
    *("bool features", "bytes of images", "bool labels", "real targets, for classes"),
    # of layers: the same of another layer, or in more dimensions
    *("Conv1d without a channel", "Conv1d, channels last", "AvgPool1d without a channel"),
    *("ConvTranspose2d, channels last", "MaxPool2d without a channel", "LayerNorm of another size"),
    *("Conv2d, larger images", "GRUCell, other features", "LSTMCell without the axis of time"),
    *("images into an MLP", "layers that do not fit each other"),
    # of calls: what `fit` says, in a call of which another mistake is tried
    *("one example to step", "y lacks an axis in step", "one example to predict"),
    *("x lacks an axis to predict", "y lacks an axis in evaluate", "other features to validate"),
    *("x lacks an axis in epochs", "y lacks an axis to validate"),
    *("a list without the feature axis to predict", "x transposed, and a loss of one's own"),
}

# These messages are tried always; the code that they suggest is tried for others that suggest it.
ALIKE_FIXES = {
    *("x lacks the feature axis, Equinox's layer", "Conv2d without a channel"),
    *("ConvTranspose1d without a channel", "AdaptiveAvgPool2d without a channel"),
    *("RMSNorm without the feature axis", "GroupNorm, channels last", "Conv2d, channels last"),
    *("y lacks the feature axis", "binary labels without the feature axis"),
    *("colour images into an MLP", "one example to predict, Vernal's layer", "x is transposed"),
    "a model that takes a whole batch",
}


def tried(names, alike):
    """What to parametrize with: names, some of them for `--long` alone."""
    return [pytest.param(name, marks=[pytest.mark.long] * (name in alike)) for name in names]


@pytest.fixture(scope="module", autouse=True)
def as_users_have_it():
    """Ranks are promoted, as JAX does it of itself: what hides a mistake is not to hide it here."""
    with jax.numpy_rank_promotion("allow"):
        jax.random.key(0)  # as users have it, too: their model was made with one
        yield


@functools.cache
def made(name: str) -> tuple[Trainer, Any]:
    """A program's trainer and model, and all compiled that does not depend on the data."""
    trainer, model = Trainer(SGD, TABLE[name].loss), filled(TABLE[name].model)
    trainer.init(model)
    return trainer, model


def run(wrong: Wrong, trainer: Trainer, model, data) -> Any:
    """Run a program, and return the numbers that it ends with."""
    options = {}
    if wrong.validation:
        y = i(4, N) if wrong.loss is CE else f(N, 1)
        data, options = (f(N, model.in_size), y), {"validation_data": data}
    match wrong.call:
        case "step":
            return trainer.step(trainer.init(model), data)[1]["loss"]
        case "epochs":
            metrics = next(iter(trainer.epochs(model, data, **options))).metrics
            return list(metrics.values())
        case "evaluate":
            return trainer.evaluate(model, data)["loss"]
        case "predict":
            return trainer.predict(model, data)
    return list(trainer.fit(model, data, epochs=2, **options)[1].epochs.values())


def suggested(message: str) -> tuple[str | None, str]:
    """The line of code that a message suggests, and what it says that this gives."""
    found = re.search(r"\bTry (?:this loss: )?(.+)$", re.sub(r"\s+", " ", message))
    if found is None:
        return None, ""
    code, _, gives = found[1].removesuffix(".").partition(", which ")
    return code.partition(" in the loss: ")[0], gives


def fixed(code: str, gives: str, trainer: Trainer, data: Any) -> tuple[Trainer, Any]:
    """Do what a line says: change the data, or the loss, or the trainer."""
    if code == "jax.vmap(model)":
        loss = trainer.loss
        return Trainer(SGD, lambda model, *args: loss(jax.vmap(model), *args)), data
    if code.startswith("lambda"):
        return Trainer(SGD, eval(code, dict(NAMES))), data
    if code.startswith("Trainer("):
        return eval(code, NAMES | {"Trainer": Trainer, "optimizer": SGD}), data
    if isinstance(data, list) and isinstance(data[0], tuple):
        return trainer, [fixed(code, gives, trainer, batch)[1] for batch in data]
    alone = not isinstance(data, tuple)
    arrays = dict(zip(("x", "y", "sample_weight"), (data,) if alone else data, strict=False))
    changed = {}
    for line in code.split(" and "):
        used = {node.id for node in ast.walk(ast.parse(line)) if isinstance(node, ast.Name)}
        [name] = used & set(arrays)
        changed[name] = eval(line, NAMES | arrays)
    shapes = " and ".join(str(array.shape) for array in changed.values())
    dtypes = " and ".join(str(jnp.asarray(array).dtype) for array in changed.values())
    plural = len(changed) > 1
    has, are = ("have shapes", "are") if plural else ("has shape", "is")
    assert gives in ("", f"{has} {shapes}", f"{are} {dtypes}")
    arrays |= changed
    return trainer, arrays["x"] if alone else tuple(arrays.values())


@pytest.fixture(scope="module")
def explained():
    """A program's error, and how often was compiled before it; each is run once for all tests."""
    found = {}

    def run_once(name: str, compiled: list) -> tuple[Exception, int]:
        if name not in found:
            program = made(name)
            compiled.clear()
            with pytest.raises(Exception) as caught:
                run(TABLE[name], *program, TABLE[name].data)
            found[name] = caught.value, len(compiled)
        return found[name]

    return run_once


@pytest.mark.parametrize("name", tried(TABLE, ALIKE))
def test_a_wrong_program_is_explained(name, explained, compiled):
    wrong = TABLE[name]
    error, compilations = explained(name, compiled)
    message = str(error)
    assert type(error) is wrong.error, message
    for part in wrong.says.split(" | "):
        assert part in re.sub(r"\s+", " ", message), f"{part!r} not in:\n{message}"
    assert suggested(message)[0] == wrong.fix, message
    assert compilations == 0
    assert_readable(message)
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    assert pathlib.Path(raised_in).is_relative_to(ROOT), raised_in


def assert_readable(message: str) -> None:
    lines = message.splitlines()
    assert len(lines) <= 6
    for line in lines:
        assert len(line) <= 100, line
        assert line.count("(") == line.count(")"), f"broken within a shape:\n{message}"
    assert message.count("Try ") <= 1, message
    for word in ("Tracer", "ShapeDtypeStruct", "0x", "<", "of x has shape"):
        assert word not in message, message


@pytest.mark.parametrize(
    "name", tried([name for name, wrong in TABLE.items() if wrong.fix], ALIKE | ALIKE_FIXES)
)
def test_the_suggested_line_fixes_it(name, explained, compiled):
    """The code is taken from the message and run; then the program trains."""
    wrong = TABLE[name]
    code, gives = suggested(str(explained(name, compiled)[0]))
    assert code is not None
    trainer, model = made(name)
    trainer, data = fixed(code, gives, trainer, wrong.data)
    assert np.isfinite(run(wrong, trainer, model, data)).all()
    if wrong.call in ("step", "epochs", "evaluate") and not wrong.validation:
        assert np.isfinite(trainer.fit(model, data, epochs=2)[1].steps["loss"]).all()


def test_the_gallery_has_every_message(explained, compiled, long):
    """Every one that is tried: all of them with `--long`."""
    names = [name for name in TABLE if long or name not in ALIKE]
    GALLERY.parent.mkdir(exist_ok=True)
    messages = {name: explained(name, compiled)[0] for name in names}
    entries = [f"--- {name}\n{type(e).__name__}: {e}\n" for name, e in messages.items()]
    GALLERY.write_text("\n".join(entries))
    written = re.findall(r"^--- (.+)\n(?:Shape|Examples|Call)Error: .+", GALLERY.read_text(), re.M)
    assert written == names
    assert len(TABLE) >= 65


# ----- a part of the data


def of_pairs(model, batch, key):
    """A loss that needs an even number of examples."""
    pairs = jax.vmap(model)(batch).reshape(-1, 2, 1)
    return jnp.mean((pairs[:, 0] - pairs[:, 1]) ** 2)


def of_eight(model, batch, key):
    """A loss that needs batches of 8."""
    return jnp.mean((jax.vmap(model)(batch) - jnp.ones((8, 1))) ** 2)


def a_line():
    return eqx.nn.Linear(3, 1, key=KEY)


WAYS = {
    "fit": lambda trainer, x, size: trainer.fit(a_line(), x, epochs=1, batch_size=size),
    "epochs": lambda trainer, x, size: next(trainer.epochs(a_line(), x, batch_size=size)),
    "evaluate": lambda trainer, x, size: trainer.evaluate(a_line(), x, batch_size=size),
    "validation_data": lambda trainer, x, size: trainer.fit(
        a_line(), x[:size], epochs=1, batch_size=size, validation_data=x
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_loss_that_needs_its_batch_size_has_it(way):
    """All of the data at once would not fit."""
    WAYS[way](Trainer(SGD, of_eight), f(24, 3), 8)


@pytest.mark.parametrize(
    ("loss", "way"),
    [
        *((of_eight, "fit"), (of_pairs, "epochs"), (of_pairs, "evaluate")),
        (of_eight, "validation_data"),
        *(
            pytest.param(*other, marks=pytest.mark.long)
            for other in [(of_pairs, "fit"), (of_eight, "epochs"), (of_eight, "evaluate")]
        ),
        pytest.param(of_pairs, "validation_data", marks=pytest.mark.long),
    ],
)
def test_a_last_batch_that_does_not_fit_is_explained(way, loss, compiled):
    trainer, x = Trainer(SGD, loss), f(27, 3)
    trainer.init(a_line())
    compiled.clear()
    with pytest.raises(ShapeError) as caught:
        WAYS[way](trainer, x, 8)
    assert compiled == []
    message = re.sub(r"\s+", " ", str(caught.value))
    assert "The last batch of an epoch has 3 of the 27 examples" in message
    assert_readable(str(caught.value))
    assert message.startswith("in validation_data") == (way == "validation_data")
    [line] = re.findall(r"Leave them out, as in (.+)\.$", message)
    WAYS[way](trainer, eval(line, {"x": x}), 8)


@pytest.mark.parametrize("way", WAYS)
def test_a_batch_that_does_not_fit_is_explained_in_its_own_numbers(way):
    with pytest.raises(ShapeError) as caught:
        WAYS[way](Trainer(SGD, of_eight), f(24, 3), 6)
    message = re.sub(r"\s+", " ", str(caught.value))
    assert "(6, 1), (8, 1)" in message
    if way != "validation_data":  # there, all of the data is one batch
        assert "A batch has 6 of the 24 examples." in message


def test_a_batch_that_fits_all_examples_and_no_batch_is_explained():
    with pytest.raises(ShapeError, match="A batch has 7 of the 28 examples"):
        Trainer(SGD, of_pairs).fit(a_line(), f(28, 3), epochs=1, batch_size=7)


# ----- classes


def test_classes_on_the_first_axis_are_to_be_moved_to_the_last():
    convolution = eqx.nn.Conv2d(2, 3, 1, key=KEY)
    images, labels = f(4, 2, 5, 6), i(3, 4, 5, 6)
    trainer = Trainer(SGD, CE, metrics={"accuracy": vernal.metrics.accuracy})
    with pytest.raises(ShapeError) as caught:
        trainer.fit(convolution, (images, labels), epochs=1)
    [line] = re.findall(r"return (.+) from the model", str(caught.value))

    class Fixed(eqx.Module):
        convolution: eqx.nn.Conv2d

        def __call__(self, x):
            return eval(line, NAMES | {"prediction": self.convolution(x)})

    measured = trainer.evaluate(Fixed(convolution), (images, labels))
    logits = np.moveaxis(np.asarray(jax.vmap(convolution)(jnp.asarray(images))), 1, -1)
    assert measured["accuracy"] == pytest.approx(np.mean(logits.argmax(-1) == labels))


# ----- a profile of one's own


def called_afterwards():
    return sum(range(9))


def a_wrong_run():
    with pytest.raises(ShapeError, match="each of its 20 examples"):
        Trainer(SGD, MSE).fit(a_line(), (f(N, 5), f(N, 1)), epochs=1)


def test_a_running_profile_goes_on_after_an_explanation():
    with cProfile.Profile() as profile:
        a_wrong_run()
        called_afterwards()
    stats: Any = pstats.Stats(profile)
    assert "called_afterwards" in {name for _, _, name in stats.stats}

    seen = []
    own = lambda frame, event, result: seen.append(frame.f_code.co_name)
    sys.setprofile(own)
    try:
        a_wrong_run()
        called_afterwards()
        assert sys.getprofile() is own
    finally:
        sys.setprofile(None)
    assert "called_afterwards" in seen


# ----- x and y


def test_a_list_of_x_and_y_is_explained_for_a_loss_of_ones_own():
    def loss(model, batch, key):
        x, y = batch
        return jnp.mean((jax.vmap(model)(x) - y) ** 2)

    with pytest.raises(ShapeError, match=r"Pass a tuple, \(x, y\)"):
        Trainer(SGD, loss).fit(a_line(), [f(N, 3), f(N, 1)], epochs=1)


def test_a_line_for_the_arrays_of_ready_batches_names_them():
    with pytest.raises(ShapeError) as caught:
        Trainer(SGD, MSE).fit(eqx.nn.Linear(1, 1, key=KEY), [(f(N), f(N, 1))], epochs=1)
    assert suggested(str(caught.value))[0] == "x[:, None]"


def test_parts_of_several_lengths_are_a_ready_batch_for_a_loss_of_ones_own():
    def loss(model, batch, key):
        return jnp.mean(jax.vmap(model)(batch["inside"])) + jnp.mean(batch["edge"])

    trainer, data = Trainer(SGD, loss), {"inside": f(N, 3), "edge": f(2)}
    with pytest.raises(ExamplesError) as caught:
        trainer.fit(a_line(), data, epochs=1)
    [line] = re.findall(r"Try (.+?):", str(caught.value))
    state, _ = trainer.fit(a_line(), eval(line, {"data": data}), epochs=3)
    assert int(state.step) == 3
