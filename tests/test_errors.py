"""What goes wrong is said before anything compiles, in a few lines, and breaks nothing."""

import functools
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from types import SimpleNamespace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from jax.nn.initializers import constant

import vernal
from vernal import (
    ArgumentError,
    CallError,
    DataError,
    ExamplesError,
    ShapeError,
    Trainer,
    losses,
    nn,
)

pytestmark = pytest.mark.usefixtures("compiled_fast")

KEY = jax.random.key(2)
N = 6
ADAM = optax.adam(1e-2)
MSE = losses.MeanSquaredError()
TRAINER = Trainer(ADAM, MSE)
CLASSIFIER = Trainer(ADAM, losses.CrossEntropy())
BINARY = Trainer(ADAM, losses.BinaryCrossEntropy())
MADE: Any = Trainer  # of what a type checker would not let through


class Outer(eqx.Module):
    """Vernal's layers further in."""

    net: nn.MLP

    def __call__(self, x):
        return self.net(x)


@pytest.fixture(scope="module")
def states():
    """Made before anything goes wrong: making a state compiles the optimizer's."""
    mlp = functools.partial(nn.MLP, width_size=4, depth=1, weight_init=constant(0.3), key=KEY)
    models = {
        "two": mlp(2, 1),  # takes two features to one
        "one": mlp(1, 1),
        "scalar": mlp("scalar", "scalar"),
        "classes": mlp(2, 3),
        "outer": Outer(mlp(2, 1)),
        "theirs": eqx.nn.MLP(2, 1, 4, 1, key=KEY),
    }
    return {name: TRAINER.init(model, key=KEY) for name, model in models.items()}


def good_world(states):
    """Good data, and the states."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(N, 2)).astype(np.float32)
    y = rng.normal(size=(N, 1)).astype(np.float32)
    labels = np.array([0, 1, 2, 0, 1, 2])
    return SimpleNamespace(x=x, y=y, w=np.ones(N, np.float32), labels=labels, **states)


@pytest.fixture
def world(states):
    return good_world(states)


def fit(w, data, state=None, **options: Any):
    options = {"epochs": 2} | options
    return TRAINER.fit(w.two if state is None else state, data, **options)


def validate(w, data, **options):
    return fit(w, (w.x, w.y), validation_data=data, **options)


def signs(w):
    """Binary labels, of the shape of `y`."""
    return np.where(w.labels > 0, -1, 1)[:, None]


def put(array, where, value):
    array = array.copy()
    array[where] = value
    return array


def ones(*shape):
    return np.ones(shape, np.float32)


# What each mistake is, and what the message about it has to say, between the bars. `w` is a world.
ARGUMENTS = {
    **{
        f"batch_size={size!r}": (
            lambda w, size=size: fit(w, (w.x, w.y), batch_size=size),
            f"batch_size | whole number from 1; | it is {size!r} | None is the full batch",
        )
        for size in (0, -1, 1.5, 2.0, True, "2")
    },
    **{
        f"epochs={epochs!r}": (
            lambda w, epochs=epochs: fit(w, (w.x, w.y), epochs=epochs),
            f"epochs | whole number from 0 | it is {epochs!r}",
        )
        for epochs in (-1, 1.5, 3.0, "3", None, True)
    },
    **{
        f"validate_every={every!r}": (
            lambda w, every=every: validate(w, (w.x, w.y), validate_every=every),
            f"validate_every | whole number from 1 | it is {every!r}",
        )
        for every in (0, -1, 0.5, None)
    },
    "no batch of size 0 to measure": (
        lambda w: TRAINER.evaluate(w.two, (w.x, w.y), batch_size=0),
        "batch_size | whole number from 1 | it is 0",
    ),
    "no batch of size 0 to predict": (
        lambda w: TRAINER.predict(w.two, w.x, batch_size=0),
        "batch_size | whole number from 1 | it is 0",
    ),
    "no batch of size 0 in vernal.batches": (
        lambda w: list(vernal.batches((w.x, w.y), 0)),
        "batch_size | whole number from 1; | it is 0",
    ),
    "batch_size with a loader": (
        lambda w: fit(w, [(w.x, w.y)], batch_size=3),
        "batch_size=3 | loader | Leave batch_size out",
    ),
    "loss as a class": (
        lambda w: MADE(ADAM, losses.Huber),
        "the class Huber | Try losses.Huber()",
    ),
    "loss as in Keras": (
        lambda w: MADE(ADAM, "mse"),
        "'mse' | loss(model, batch, key) | losses.MeanSquaredError()",
    ),
    "no loss": (lambda w: MADE(ADAM, None), "None | loss(model, batch, key)"),
    "Optax's loss": (
        lambda w: MADE(ADAM, optax.losses.squared_error),
        "squared_error | loss(model, batch, key) | losses.Supervised(squared_error)",
    ),
    "Optax's loss of three arguments": (
        lambda w: MADE(ADAM, optax.losses.cosine_distance),
        "cosine_distance | losses.Supervised(cosine_distance)",
    ),
    "a loss of two arguments": (
        lambda w: MADE(ADAM, lambda prediction, target: 0.0),
        "loss(model, batch, key) | losses.Supervised",
    ),
    "optimizer as in Keras": (
        lambda w: MADE("adam", MSE),
        "'adam' | Optax optimizer | optax.adam(1e-3)",
    ),
    "optimizer as a function": (
        lambda w: MADE(optax.adam, MSE),
        "the function adam | Optax optimizer | adam(...)",
    ),
    "optimizer as a class": (
        lambda w: MADE(optax.GradientTransformation, MSE),
        "the class GradientTransformation | Optax optimizer | optax.adam(1e-3)",
    ),
    "learning rate as optimizer": (
        lambda w: MADE(1e-3, MSE),
        "0.001 | Optax optimizer | optax.adam(1e-3)",
    ),
    "loss and optimizer swapped": (
        lambda w: MADE(MSE, ADAM),
        "MeanSquaredError | Optax optimizer",
    ),
    "a model's class": (lambda w: fit(w, (w.x, w.y), state=nn.MLP), "the class MLP | instance"),
    "a model's class in init": (lambda w: TRAINER.init(nn.MLP), "the class MLP | instance"),
    "a model's class in epochs": (
        lambda w: TRAINER.epochs(nn.MLP, (w.x, w.y)),
        "the class MLP | instance",
    ),
    "a model without parameters": (
        lambda w: fit(w, (w.x, w.y), state=eqx.nn.Identity()),
        "Identity | train",
    ),
    "a function as a model": (lambda w: fit(w, (w.x, w.y), state=jnp.sin), "train"),
    "no model": (lambda w: TRAINER.fit(None, (w.x, w.y), epochs=2), "None | train"),
    "nothing is trainable": (
        lambda w: MADE(ADAM, MSE, trainable=False).init(w.two.model),
        "MLP | trainable",
    ),
    "a model without a state in step": (
        lambda w: TRAINER.step(w.two.model, (w.x, w.y)),
        "MLP | trainer.init",
    ),
    "a class to measure": (
        lambda w: TRAINER.evaluate(nn.MLP, (w.x, w.y)),
        "the class MLP | instance",
    ),
    "a class to predict": (lambda w: TRAINER.predict(nn.MLP, w.x), "the class MLP | instance"),
}

EXAMPLES = {
    "fewer targets": (
        lambda w: fit(w, (w.x, w.y[:-1])),
        "as many examples of each | x has 6 | y has 5",
    ),
    "fewer weights": (
        lambda w: fit(w, (w.x, w.y, w.w[:-1])),
        "x has 6 | y has 6 | sample_weight has 5",
    ),
    "unequal lengths of a dict": (
        lambda w: fit(w, {"a": w.x, "b": w.y[:2]}),
        "['a'] has 6 | ['b'] has 2",
    ),
    "unequal lengths in step": (lambda w: TRAINER.step(w.two, (w.x, w.y[:-1])), "6 | 5"),
    "unequal lengths to measure": (
        lambda w: TRAINER.evaluate(w.two, (w.x, w.y[:-1])),
        "x has 6 | y has 5",
    ),
    "unequal lengths to validate": (
        lambda w: validate(w, (w.x, w.y[:3])),
        "validation_data | 6 | 3",
    ),
    "a batch of several lengths": (lambda w: fit(w, [(w.x, w.y[:-1])]), "6 | 5"),
    "x transposed": (
        lambda w: fit(w, (w.x.T, w.y)),
        "x has 2 | y has 6 | Try x.T, which has shape (6, 2).",
    ),
    "x transposed, of epochs": (
        lambda w: TRAINER.epochs(w.two, (w.x.T, w.y)),
        "x has 2 | y has 6 | Try x.T, which has shape (6, 2).",
    ),
    "x transposed to measure": (
        lambda w: TRAINER.evaluate(w.two, (w.x.T, w.y)),
        "x has 2 | y has 6 | Try x.T, which has shape (6, 2).",
    ),
    "x transposed in step": (
        lambda w: TRAINER.step(w.two, (w.x.T, w.y)),
        "x has 2 | y has 6 | Try x.T, which has shape (6, 2).",
    ),
    "no examples": (lambda w: fit(w, (w.x[:0], w.y[:0])), "no examples | (0, 2)"),
    "no examples to predict": (lambda w: TRAINER.predict(w.two, w.x[:0]), "no examples | (0, 2)"),
    "no examples to validate": (
        lambda w: validate(w, (w.x[:0], w.y[:0])),
        "validation_data | no examples | (0, 2)",
    ),
    "a number": (lambda w: fit(w, 3.0), "data is a single number"),
    "two numbers": (lambda w: fit(w, (1.0, 2.0)), "x is a single number"),
    "a single example to predict": (lambda w: TRAINER.predict(w.two, 1.0), "x is a single number"),
}

LABELS = {
    **{
        f"labels from 1, {name}": (
            run,
            "y[2] is 3, but CrossEntropy needs 0 to 2 for predictions of shape (6, 3). | "
            "Try y - 1.",
        )
        for name, run in {
            "to fit": lambda w: CLASSIFIER.fit(w.classes, (w.x, w.labels + 1), epochs=2),
            "of epochs": lambda w: CLASSIFIER.epochs(w.classes, (w.x, w.labels + 1)),
            "to measure": lambda w: CLASSIFIER.evaluate(w.classes, (w.x, w.labels + 1)),
            "to validate": lambda w: CLASSIFIER.fit(
                w.classes, (w.x, w.labels), epochs=2, validation_data=(w.x, w.labels + 1)
            ),
            "weighted": lambda w: CLASSIFIER.fit(w.classes, (w.x, w.labels + 1, w.w), epochs=2),
            "in a loader": lambda w: CLASSIFIER.fit(w.classes, [(w.x, w.labels + 1)], epochs=2),
        }.items()
    },
    **{
        f"labels of -1 and 1, {name}": (
            run,
            "y[1, 0] is -1, but BinaryCrossEntropy needs 0 to 1. | Try (y + 1) / 2.",
        )
        for name, run in {
            "to fit": lambda w: BINARY.fit(w.two, (w.x, signs(w)), epochs=2),
            "of epochs": lambda w: BINARY.epochs(w.two, (w.x, signs(w))),
            "to measure": lambda w: BINARY.evaluate(w.two, (w.x, signs(w))),
        }.items()
    },
    "a negative label": (
        lambda w: CLASSIFIER.fit(w.classes, (w.x, put(w.labels, 4, -1)), epochs=2),
        "y[4] is -1, but CrossEntropy needs 0 to 2 for predictions of shape (6, 3).",
    ),
    "a label of more than 1": (
        lambda w: BINARY.fit(w.two, (w.x, put(w.y * 0, (3, 0), 1.5)), epochs=2),
        "y[3, 0] is 1.5, but BinaryCrossEntropy needs 0 to 1.",
    ),
}

DATA = {
    "nothing at all": (lambda w: fit(w, ()), "no arrays"),
    "None": (lambda w: fit(w, None), "None | (x, y)"),
    "a file's name": (lambda w: fit(w, "data.csv"), "data.csv | numbers"),
    "strings": (lambda w: fit(w, (np.array([["a", "b"]] * N), w.y)), "x needs numbers | 'a'"),
    "strings as labels": (
        lambda w: fit(w, (w.x, ["cat", "dog", "cow"] * 2)),
        "y needs numbers | 'cat'",
    ),
    "a column of strings": (
        lambda w: fit(w, (pd.DataFrame({"a": list("uvwxyz"), "b": range(N)}), w.y)),
        "x needs numbers | 'u'",
    ),
    "objects": (lambda w: fit(w, (w.x, np.array([{}] * N))), "y needs numbers | object"),
    "dates": (
        lambda w: fit(w, (np.array(["2020-01-01"] * N, "M8[D]"), w.y)),
        "x needs numbers | datetime64",
    ),
    "lists of several lengths": (lambda w: fit(w, ([[1.0, 2.0], [3.0]], w.y)), "x | array"),
    "no targets": (lambda w: fit(w, (w.x, None)), "y | None"),
    "a generator": (lambda w: fit(w, ((w.x, w.y) for _ in range(3))), "generator | once | list"),
    "a spent generator": (lambda w: fit(w, iter([])), "list_iterator | once | list"),
    "a generator to measure": (
        lambda w: TRAINER.evaluate(w.two, iter([(w.x, w.y)])),
        "list_iterator | once",
    ),
    "an empty list": (lambda w: fit(w, []), "list | without a single batch"),
    "a list of x and y": (
        lambda w: fit(w, [w.x, w.y]),
        "(x, y) | (6, 2) | Pass a tuple, (x, y): a list holds ready batches.",
    ),
    "a list of x and y to validate": (lambda w: validate(w, [w.x, w.y]), "Pass a tuple, (x, y)"),
    "x alone": (lambda w: fit(w, w.x), "(x, y) | (6, 2)"),
    "x alone in a tuple": (lambda w: fit(w, (w.x,)), "(x, y) | a tuple of 1"),
    "four arrays": (lambda w: fit(w, (w.x, w.y, w.w, w.w)), "(x, y, sample_weight) | a tuple of 4"),
    "a dict": (lambda w: fit(w, {"x": w.x, "y": w.y}), "(x, y) | a dict | loss(model, batch, key)"),
}

NOT_FINITE = {
    "NaN in x": (
        lambda w: fit(w, (put(w.x, (4, 1), np.nan), w.y)),
        "x has 1 value | x[4, 1] | nan",
    ),
    "inf in x": (
        lambda w: fit(w, (put(w.x, (0, 0), np.inf), w.y)),
        "x has 1 value | x[0, 0] | inf",
    ),
    "NaNs in x": (
        lambda w: fit(w, (put(w.x, (slice(2, 5), 1), np.nan), w.y)),
        "x has 3 values | of 12 | x[2, 1] | nan",
    ),
    "NaN in y": (
        lambda w: fit(w, (w.x, put(w.y, (3, 0), np.nan))),
        "y has 1 value | of 6 | y[3, 0]",
    ),
    "-inf in y": (
        lambda w: fit(w, (w.x, put(w.y, (3, 0), -np.inf))),
        "y has 1 value | y[3, 0] | -inf",
    ),
    "inf and -inf": (
        lambda w: fit(w, (w.x, put(w.y, ([1, 3], 0), [[np.inf, -np.inf]]))),
        "y has 2 values | y[1, 0] | inf",
    ),
    "NaN weight": (
        lambda w: fit(w, (w.x, w.y, put(w.w, 2, np.nan))),
        "sample_weight has 1 value | sample_weight[2] | nan",
    ),
    "NaN in double precision": (
        lambda w: fit(w, (put(w.x.astype(float), (4, 1), np.nan), w.y)),
        "x has 1 value | x[4, 1]",
    ),
    "NaN in half precision": (
        lambda w: fit(w, (put(w.x.astype(np.float16), (4, 1), np.nan), w.y)),
        "x has 1 value | x[4, 1]",
    ),
    "NaN in bfloat16": (
        lambda w: fit(w, (put(w.x.astype(jnp.bfloat16), (4, 1), np.nan), w.y)),
        "x has 1 value | x[4, 1]",
    ),
    "a gap in a frame": (
        lambda w: fit(w, (pd.DataFrame({"a": [1, 2, None, 4, 5, 6], "b": range(N)}), w.y)),
        "x has 1 value | x[2, 0]",
    ),
    "NaN in a dict": (
        lambda w: fit(w, {"a": put(w.x, (4, 1), np.nan)}),
        "['a'] has 1 value | [4, 1]",
    ),
    "NaN to measure": (
        lambda w: TRAINER.evaluate(w.two, (w.x, put(w.y, (4, 0), np.nan))),
        "y has 1 value | y[4, 0]",
    ),
    "NaN to validate": (
        lambda w: validate(w, (w.x, put(w.y, (4, 0), np.nan))),
        "validation_data | 1 value | [4, 0]",
    ),
}

VALIDATION = {
    "a generator to validate": (
        lambda w: validate(w, iter([(w.x, w.y)])),
        "validation_data | list_iterator | once",
    ),
    "an empty list to validate": (lambda w: validate(w, []), "validation_data | list | batch"),
    "x alone to validate": (lambda w: validate(w, w.x), "(x, y) | (6, 2)"),
}

SHAPES = {
    "x lacks an axis": (
        lambda w: fit(w, (w.x[:, 0], w.y), w.one),
        "x has shape (6,) | MLP.layers[0] (Linear) needs (1,) | Try x[:, None], which has shape (6",
    ),
    "y lacks an axis": (
        lambda w: fit(w, (w.x, w.y[:, 0])),
        "y has shape (6,), but MeanSquaredError needs (6, 1) for predictions of shape (6, 1). | "
        "Try y[:, None], which has shape (6, 1).",
    ),
    "both lack an axis": (
        lambda w: fit(w, (w.x[:, 0], w.y[:, 0]), w.one),
        "x has shape (6,) | (1,) | Try x[:, None] and y[:, None] | (6, 1) and (6, 1)",
    ),
    "y has an axis too many": (
        lambda w: fit(w, (w.x[:, 0], w.y), w.scalar),
        "y has shape (6, 1), but MeanSquaredError needs (6,) for predictions of shape (6,). | "
        "Try y.squeeze(1), which has shape (6,).",
    ),
    "both transposed": (lambda w: fit(w, (w.x.T, w.x.T), w.one), "x has shape (2, 6) | (1,)"),
    "x transposed, as long as y": (
        lambda w: fit(w, (ones(2, 6), ones(2, 1))),
        "x has shape (2, 6) | its 2 examples | (6,) | needs (2,)",
    ),
    "x and y transposed": (
        lambda w: fit(w, (ones(1, 6), ones(1, 6)), w.one),
        "x has shape (1, 6) | needs (1,) | Try x.T and y.T | (6, 1) and (6, 1)",
    ),
    "another number of features": (
        lambda w: fit(w, (ones(N, 3), w.y)),
        "x has shape (6, 3): each of its 6 examples has shape (3,), "
        "but MLP.layers[0] (Linear) needs (2,).",
    ),
    "of a model further in": (
        lambda w: fit(w, (ones(N, 3), w.y), w.outer),
        "x has shape (6, 3) | Outer.net.layers[0] (Linear) needs (2,)",
    ),
    "of Equinox's model": (
        lambda w: fit(w, (ones(N, 3), w.y), w.theirs),
        "x has shape (6, 3) | MLP.layers[0] (Linear) needs (2,)",
    ),
    "integers": (
        lambda w: fit(w, (w.x.astype(int), w.y)),
        'x is int32, but MLP.layers[0] (Linear) needs floats. | Try x.astype("float32").',
    ),
    "integers and an axis missing": (
        lambda w: fit(w, (np.arange(N), w.y), w.one),
        "x has shape (6,) | MLP.layers[0] (Linear) needs (1,). | "
        'Try x[:, None].astype("float32"), which has shape (6, 1).',
    ),
    "targets of another width": (
        lambda w: fit(w, (w.x, ones(N, 2))),
        "y has shape (6, 2), but MeanSquaredError needs (6, 1) for predictions of shape (6, 1).",
    ),
    "a column of weights": (
        lambda w: CLASSIFIER.fit(w.classes, (w.x, w.labels, ones(N, 1)), epochs=2),
        "sample_weight has shape (6, 1), but CrossEntropy needs (6,): one weight an example. | "
        "Try sample_weight.squeeze(1), which has shape (6,).",
    ),
    "float labels": (
        lambda w: CLASSIFIER.fit(w.classes, (w.x, w.labels.astype(np.float32)), epochs=2),
        "y is float32, but CrossEntropy needs integer labels. | Try y.astype(int)",
    ),
    "one-hot labels": (
        lambda w: CLASSIFIER.fit(w.classes, (w.x, np.eye(3)[w.labels]), epochs=2),
        "y has shape (6, 3), but CrossEntropy needs (6,) for predictions of shape (6, 3). | "
        "Try y.argmax(-1), which has shape (6,).",
    ),
    "one-hot integer labels": (
        lambda w: CLASSIFIER.fit(w.classes, (w.x, np.eye(3, dtype=int)[w.labels]), epochs=2),
        "y has shape (6, 3), but CrossEntropy needs (6,) for predictions of shape (6, 3). | "
        "Try y.argmax(-1), which has shape (6,).",
    ),
    "a column of labels": (
        lambda w: CLASSIFIER.fit(w.classes, (w.x, w.labels[:, None]), epochs=2),
        "y has shape (6, 1), but CrossEntropy needs (6,) for predictions of shape (6, 3). | "
        "Try y.squeeze(1), which has shape (6,).",
    ),
    "binary labels without an axis": (
        lambda w: BINARY.fit(w.two, (w.x, w.labels > 0), epochs=2),
        "y has shape (6,), but BinaryCrossEntropy needs (6, 1) | Try y[:, None]",
    ),
    "a batch of a loader": (
        lambda w: fit(w, [(w.x, w.y[:, 0])]),
        "y has shape (6,) | Try y[:, None]",
    ),
    "to predict": (lambda w: TRAINER.predict(w.two, ones(N, 3)), "x has shape (6, 3) | needs (2,)"),
    "to predict, an axis missing": (
        lambda w: TRAINER.predict(w.one, w.x[:, 0]),
        "x has shape (6,) | needs (1,) | Try x[:, None], which has shape (6, 1)",
    ),
    "to predict, transposed": (
        lambda w: TRAINER.predict(w.two, w.x.T),
        "x has shape (2, 6) | Try x.T",
    ),
    "to predict, one example": (
        lambda w: TRAINER.predict(w.two, w.x[0]),
        "x has shape (2,) | needs (2,) | Try x[None], which has shape (1, 2).",
    ),
    "to predict, with y": (
        lambda w: TRAINER.predict(w.two, (w.x, w.y)),
        "MLP.layers[0] (Linear) needs (2,) | a tuple of 2",
    ),
    "to measure": (
        lambda w: TRAINER.evaluate(w.two, (w.x, w.y[:, 0])),
        "y has shape (6,) | Try y[:, None]",
    ),
    "in a step": (
        lambda w: TRAINER.step(w.two, (w.x, w.y[:, 0])),
        "y has shape (6,) | Try y[:, None]",
    ),
    "in a step, x": (
        lambda w: TRAINER.step(w.two, (ones(N, 3), w.y)),
        "x has shape (6, 3) | needs (2,)",
    ),
    "of epochs": (
        lambda w: TRAINER.epochs(w.two, (w.x, w.y[:, 0])),
        "y has shape (6,) | Try y[:, None]",
    ),
    "to validate": (
        lambda w: validate(w, (w.x, w.y[:, 0])),
        "validation_data | y has shape (6,) | Try y[:, None]",
    ),
    "to validate, x": (
        lambda w: validate(w, (ones(4, 3), ones(4, 1))),
        "validation_data | x has shape (4, 3) | needs (2,)",
    ),
}


def own(returns):
    """A run with a loss of one's own, that returns something of the model's errors."""

    def loss(model, batch, key):
        x, y = batch
        return returns(jax.vmap(model)(x) - y)

    return lambda w: Trainer(ADAM, loss).fit(w.two, (w.x, w.y), epochs=2)


LOSSES = {
    "a vector": (own(lambda e: e[:, 0] ** 2), "one number | loss has shape (6,) | jnp.mean"),
    "a matrix": (own(lambda e: e**2), "one number | loss has shape (6, 1) | jnp.mean"),
    "a vector of one": (own(lambda e: jnp.mean(e**2, axis=0)), "one number | loss has shape (1,)"),
    "a vector as a metric": (
        own(lambda e: (jnp.mean(e**2), {"mae": jnp.abs(e)})),
        "one number | mae has shape (6, 1)",
    ),
    "three values": (own(lambda e: (jnp.mean(e**2), {}, 1)), "scalar | dict | tuple | int"),
    "two numbers returned": (own(lambda e: (jnp.mean(e**2), jnp.mean(e))), "scalar | dict | tuple"),
    "metrics first": (own(lambda e: ({}, jnp.mean(e**2))), "scalar | dict | tuple"),
    "a metric called loss": (
        own(lambda e: (jnp.mean(e**2), {"loss": jnp.mean(e)})),
        'dict | "loss"',
    ),
    "an integer": (own(lambda e: jnp.sum(e > 0)), "real number | int32"),
    "a complex number": (own(lambda e: jnp.mean(e) * 1j), "real number | complex64"),
    "no loss at all": (own(lambda e: None), "None"),
    "a string": (own(lambda e: "mse"), "loss | str"),
}


def branches(error):
    return jnp.mean(error) if error[0, 0] > 0 else jnp.mean(-error)


def as_float(error):
    return float(jnp.mean(error))


def with_numpy(error):
    return np.maximum(error, 0).mean()


def of_two_trees(error):
    return jax.tree.map(jnp.add, {"a": error}, {"b": error})


class Keyless(eqx.Module):
    dropout: eqx.nn.Dropout
    net: eqx.Module

    def __call__(self, x):
        return self.dropout(x)


# Mistakes in a program, and not about shapes: the line of the user's, and JAX's own words.
CALLS = {
    "a mistake": (own(lambda e: {}["weight"]), "the loss fails | KeyError | weight"),
    "an `if`": (own(branches), "line | boolean conversion | jnp.where"),
    "a float of Python": (own(as_float), "line | concrete value | jnp.asarray"),
    "NumPy": (own(with_numpy), "line | __array__ | jnp.maximum"),
    "two structures": (own(of_two_trees), "line | ValueError | pytree"),
    "dropout without a key": (
        lambda w: fit(w, (w.x, w.x), Keyless(eqx.nn.Dropout(0.5), w.two.model)),
        "Dropout | requires a key | key=key",
    ),
}

TABLES = [
    (ArgumentError, ARGUMENTS),
    (ExamplesError, EXAMPLES),
    (ExamplesError, LABELS),
    (DataError, DATA),
    (DataError, NOT_FINITE),
    (DataError, VALIDATION),
    (ShapeError, SHAPES),
    (ShapeError, LOSSES),
    (CallError, CALLS),
]
# Tried with `--long`: another of the table is explained in the same way, or `test_shapes.py` has
# it. Each way to call a trainer stays, and each kind of message.
ALIKE = {
    *("x lacks an axis", "y has an axis too many", "both transposed", "x transposed, as long as y"),
    *("x and y transposed", "another number of features", "of Equinox's model", "integers"),
    *("targets of another width", "float labels", "one-hot integer labels", "a column of labels"),
    *("binary labels without an axis", "to predict, an axis missing", "to predict, transposed"),
    *("in a step", "to validate", "a matrix", "a vector of one", "two numbers returned"),
    *("a complex number", "a string"),
}


def unless_alike(name, alike=ALIKE):
    """The marks of a case: `long` where another case says the same."""
    return [pytest.mark.long] * (name in alike)


CASES = [
    pytest.param(error, mistake, says.split(" | "), id=name, marks=unless_alike(name))
    for error, table in TABLES
    for name, (mistake, says) in table.items()
]


def copies(tree):
    """The values of every array, the user's own and the states'."""
    arrays = [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype")]
    is_key = lambda array: jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
    return [np.array(jax.random.key_data(a) if is_key(a) else a) for a in arrays]


@pytest.fixture(scope="module")
def expected(states):
    """What a run with good data gives; no part of it compiles again."""
    return good_run(good_world(states))


def good_run(w):
    return fit(w, (w.x, w.y), epochs=3)[1].steps["loss"]


@pytest.mark.parametrize(("error", "mistake", "says"), CASES)
def test_a_mistake_is_explained_before_anything_compiles(
    error, mistake, says, world, expected, compiled
):
    before = copies(vars(world))
    compiled.clear()
    with pytest.raises(vernal.VernalError) as caught:
        mistake(world)
    assert compiled == []
    assert type(caught.value) is error
    text = in_one_line(caught.value)
    for part in says:
        assert part in text
    assert_readable(caught.value)
    # And nothing is broken: what was passed in trains as it does without, and stays as it is.
    np.testing.assert_array_equal(good_run(world), expected)
    assert compiled == []
    for array, copy in zip(copies(vars(world)), before, strict=True):
        np.testing.assert_array_equal(array, copy)


def in_one_line(error):
    """The message, wherever its lines are broken."""
    return " ".join(str(error).split())


def assert_readable(error):
    message = str(error)
    lines = message.splitlines()
    assert len(lines) <= 6
    assert max(map(len, lines)) <= 100
    assert "Tracer" not in message
    assert "0x" not in message  # no addresses


@pytest.mark.parametrize(
    ("error", "families"),
    [
        (ArgumentError, (ValueError,)),
        (DataError, (ValueError,)),
        (ShapeError, (ValueError,)),
        (ExamplesError, (ShapeError, DataError, ValueError)),
        (vernal.MissingExtraError, (ImportError,)),
    ],
)
def test_errors_belong_to_pythons_families(error, families):
    for family in (vernal.VernalError, *families):
        assert issubclass(error, family)


def test_values_on_the_device_are_looked_at_too(world):
    """This takes a compiled sum, of which nothing is left to compile the second time."""
    for make in (jnp.asarray, lambda a: jnp.asarray(a, jnp.bfloat16)):
        x = make(put(world.x, (4, 1), np.nan))
        with pytest.raises(DataError, match=r"x has 1 value .* x\[4, 1\]"):
            fit(world, (x, world.y))


LATER = {
    "to fit": lambda w, data: fit(w, data),
    "of Equinox's model": lambda w, data: fit(w, data, w.theirs),
    "of epochs": lambda w, data: next(iter(TRAINER.epochs(w.two, data))),
    "to measure": lambda w, data: TRAINER.evaluate(w.two, data),
    "to validate": lambda w, data: validate(w, data),
}


LATER_BATCHES = {
    "x": (
        ones(5, 3),
        ones(5, 1),
        "x has shape (5, 3): each of its 5 examples has shape (3,), "
        "but MLP.layers[0] (Linear) needs (2,).",
    ),
    "y": (
        ones(4, 2),
        ones(4),
        "y has shape (4,), but MeanSquaredError needs (4, 1) for predictions of shape (4, 1). "
        "Try y[:, None], which has shape (4, 1).",
    ),
}
# Each way stays, with one of the two.
ALIKE_LATER = {"x-to fit", "x-of epochs", "x-to measure", "y-of Equinox's model", "y-to validate"}


@pytest.mark.parametrize(
    ("name", "which"),
    [
        pytest.param(
            name, which, id=f"{which}-{name}", marks=unless_alike(f"{which}-{name}", ALIKE_LATER)
        )
        for which in LATER_BATCHES
        for name in LATER
    ],
)
def test_a_later_batch_of_another_shape_is_explained(name, which, world, expected):
    """It is met in the middle of a run, which breaks nothing, either."""
    x, y, says = LATER_BATCHES[which]
    data = [(ones(5, 2), ones(5, 1)), (x, y)]
    before = copies((vars(world), data))
    with pytest.raises(ShapeError) as caught:
        LATER[name](world, data)
    assert type(caught.value) is ShapeError
    where = "in validation_data, " if name == "to validate" else ""
    assert in_one_line(caught.value) == where + says
    assert_readable(caught.value)
    np.testing.assert_array_equal(good_run(world), expected)
    _, history = fit(world, data[:1])
    assert np.isfinite(history.steps["loss"]).all()
    for array, copy in zip(copies((vars(world), data)), before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_large_values_are_finite(world):
    """Their sum is not, but they are."""
    x = np.full((N, 2), 3e38, np.float32)
    loss = lambda model, batch, key: jnp.mean(model.layers[0].weight ** 2)
    _, history = Trainer(ADAM, loss).fit(world.two, (x, world.y), epochs=1)
    assert np.isfinite(history.steps["loss"]).all()


def test_integers_and_bools_have_no_nan(world):
    data = (world.x, world.labels, world.labels > 0)
    assert len(list(vernal.batches(data, 2))) == 3


# ----- suggestions


SUGGESTIONS = {
    "x lacks an axis": (TRAINER, "one", lambda w: (w.x[:, 0], w.y)),
    "y lacks an axis": (TRAINER, "two", lambda w: (w.x, w.y[:, 0])),
    "both lack an axis": (TRAINER, "one", lambda w: (w.x[:, 0], w.y[:, 0])),
    "both lack an axis, weighted": (TRAINER, "one", lambda w: (w.x[:, 0], w.y[:, 0], w.w)),
    "y has an axis too many": (TRAINER, "scalar", lambda w: (w.x[:, 0], w.y)),
    "x and y transposed": (TRAINER, "one", lambda w: (w.x[:, :1].T, w.y.T)),
    "x transposed": (TRAINER, "two", lambda w: (w.x.T, w.y)),
    "x transposed, weighted": (TRAINER, "two", lambda w: (w.x.T, w.y, w.w)),
    "integers": (TRAINER, "two", lambda w: (w.x.astype(int), w.y)),
    "integers and an axis missing": (TRAINER, "one", lambda w: (np.arange(N), w.y)),
    "a column of weights": (CLASSIFIER, "classes", lambda w: (w.x, w.labels, w.w[:, None])),
    "an axis in the middle": (TRAINER, "two", lambda w: (w.x[:, None], w.y)),
    "of Equinox's model": (TRAINER, "theirs", lambda w: (w.x, w.y[:, 0])),
    "float labels": (CLASSIFIER, "classes", lambda w: (w.x, w.labels.astype(float))),
    "one-hot labels": (CLASSIFIER, "classes", lambda w: (w.x, np.eye(3)[w.labels])),
    "a column of labels": (CLASSIFIER, "classes", lambda w: (w.x, w.labels[:, None])),
    "binary labels": (BINARY, "two", lambda w: (w.x, w.labels > 0)),
}


# The others are fixed in `test_shapes.py`, too.
FEW_SUGGESTIONS = {
    *("both lack an axis, weighted", "integers and an axis missing", "a column of weights"),
    *("x transposed, weighted", "one-hot labels"),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=unless_alike(name, {*SUGGESTIONS} - FEW_SUGGESTIONS))
        for name in SUGGESTIONS
    ],
)
def test_a_suggested_line_does_it(name, world):
    """Every line of code that a message suggests is run on the data; then the data is good."""
    trainer, state, make = SUGGESTIONS[name]
    data = dict(zip(("x", "y", "sample_weight"), make(world), strict=False))
    with pytest.raises(vernal.VernalError) as caught:
        trainer.fit(getattr(world, state), tuple(data.values()), epochs=1)
    assert_readable(caught.value)
    text = in_one_line(caught.value)
    suggestion = re.search(r"(?:Try|or try) (.+?)(?:, which .*)?\.$", text)
    assert suggestion, text
    shapes = re.search(r", which (?:has shape|have shapes) (.+)\.$", text)
    dtypes = re.search(r", which (?:is|are) (.+)\.$", text)
    fixed = {}
    for code in suggestion[1].split(" and "):
        [name] = [name for name in data if re.search(rf"\b{name}\b", code)]
        fixed[name] = eval(code, {"np": np, **data})
    if shapes:
        assert shapes[1] == " and ".join(str(array.shape) for array in fixed.values())
    if dtypes:  # as JAX takes them
        taken = [jax.dtypes.canonicalize_dtype(array.dtype) for array in fixed.values()]
        assert dtypes[1] == " and ".join(map(str, taken))
    fixed_data = tuple((data | fixed).values())
    _, history = trainer.fit(getattr(world, state), fixed_data, epochs=2)
    assert np.isfinite(history.steps["loss"]).all()


@pytest.mark.parametrize(
    ("trainer", "state", "bad", "line", "good"),
    [
        pytest.param(
            *(CLASSIFIER, "classes", lambda w: w.labels + 1, "y - 1", lambda w: w.labels),
            marks=pytest.mark.long,  # the bytes and the array on the device are counted from 1, too
        ),
        (CLASSIFIER, "classes", lambda w: (w.labels + 1).astype("u1"), "y - 1", lambda w: w.labels),
        (CLASSIFIER, "classes", lambda w: jnp.asarray(w.labels + 1), "y - 1", lambda w: w.labels),
        (CLASSIFIER, "classes", lambda w: w.labels - 1, "y + 1", lambda w: w.labels),
        (CLASSIFIER, "classes", lambda w: put(w.labels, 2, 9), None, None),
        pytest.param(
            *(BINARY, "two", signs, "(y + 1) / 2", lambda w: signs(w) > 0),
            marks=pytest.mark.long,
        ),
        (BINARY, "two", lambda w: signs(w).astype("f4"), "(y + 1) / 2", lambda w: signs(w) > 0),
        (BINARY, "two", lambda w: (signs(w) > 0) + 1, "y - 1", lambda w: signs(w) > 0),
        (BINARY, "two", lambda w: put(signs(w), 2, 3), None, None),
    ],
)
def test_the_line_that_fixes_labels_fixes_them(trainer, state, bad, line, good, world):
    """Out of range, JAX would take another label's logit, or none: the loss is NaN, or negative."""
    state, y = getattr(world, state), bad(world)
    with pytest.raises(ExamplesError) as caught:
        trainer.fit(state, (world.x, y), epochs=2)
    text = in_one_line(caught.value)
    assert re.search(r"^y\[.+\] is .+, but \w+ needs 0 to ", text)
    found = re.search(r"Try (.+)\.$", text)
    assert (found and found[1]) == line
    if line is not None:
        fixed = eval(line, {"y": y})
        np.testing.assert_array_equal(fixed, good(world))
        losses_of = lambda y: trainer.fit(state, (world.x, y), epochs=3)[1].steps["loss"]
        np.testing.assert_array_equal(losses_of(fixed), losses_of(good(world)))
        assert np.isfinite(losses_of(fixed)).all()


@pytest.mark.parametrize(
    "loss", [losses.Huber, optax.losses.squared_error, "mse"], ids=["Huber", "squared_error", "mse"]
)
def test_a_suggested_loss_does_it(loss, world):
    with pytest.raises(ArgumentError) as caught:
        MADE(ADAM, loss)
    [code] = re.findall(r"Try (losses\.\w+\(\w*\))", str(caught.value))
    suggested = eval(code, {"losses": losses, getattr(loss, "__name__", ""): loss})
    measured = Trainer(ADAM, suggested).evaluate(world.two, (world.x, world.y))
    assert np.isfinite(measured["loss"])


def test_a_missing_extra_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(vernal.MissingExtraError) as caught:
        vernal.History().plot()
    assert type(caught.value) is vernal.MissingExtraError
    assert "pip install 'vernal[plot]'" in str(caught.value)
    assert_readable(caught.value)


# ----- what a terminal shows

PROGRAM = """
import sys, equinox as eqx, jax, jax.numpy as jnp, numpy as np, optax, vernal
from vernal import losses, nn

class Block(eqx.Module):
    linear: eqx.nn.Linear

    def __call__(self, x):
        return self.linear(x)

class Deep(eqx.Module):
    blocks: list

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return x

key = jax.random.key(0)
x, y = np.ones((8, 3), np.float32), np.ones((8, 1), np.float32)
blocks = [Block(eqx.nn.Linear(3, 3, key=key)), eqx.nn.MLP(5, 1, 4, 1, key=key)]
deep, mlp = Deep(blocks), nn.MLP(3, 1, 4, 1, key=key)
trainer = vernal.Trainer(optax.sgd(0.1), losses.MeanSquaredError())
state, _ = trainer.fit(mlp, (x, y), epochs=1, progress=False)
vernal.summary(mlp, x)
print(sorted(name for name in sys.modules if name.startswith("vernal._explain")))

def loss(model, batch, key):
    return jnp.mean(batch["inputs"])

def stop(epoch):
    return trainer.evaluate(epoch.state, (x, y[:, 0]))

def batches():
    yield x, y
    raise OSError("the disk is gone")

@LINE@
"""
# A line, the message's first words, and what else has to be there.
TERMINAL = {
    "trainer.fit(mlp, (x, y[:, 0]), epochs=1)": "vernal.ShapeError: y has shape (8,)",
    "trainer.fit(deep, (x, y), epochs=1)": "vernal.ShapeError: Deep.blocks[1].layers[0] (Linear)",
    "trainer.step(state, (x[:, :2], y))": "vernal.ShapeError: x has shape (8, 2)",
    "trainer.step(state, (x[:2], y))": "vernal.ExamplesError: data needs as many examples",
    "trainer.predict(mlp, x[:, :2])": "vernal.ShapeError: x has shape (8, 2)",
    "trainer.evaluate(mlp, (x, y[:, 0]))": "vernal.ShapeError: y has shape (8,)",
    "trainer.epochs(mlp, (x, y[:, 0]))": "vernal.ShapeError: y has shape (8,)",
    "list(trainer.epochs(mlp, [(x, y), (x, y[:, 0])]))": "vernal.ShapeError: y has shape (8,)",
    "nn.Linear(4, 1, key=key)(x)": "vernal.ShapeError: x has shape (8, 3), but Linear needs (4,)",
    "mlp(x[:, :2])": "vernal.ShapeError: x has shape (8, 2), but MLP.layers[0] (Linear)",
    "jax.vmap(mlp)(x[:, :2])": "vernal.ShapeError: x has shape (2,), but MLP.layers[0] (Linear)",
    "vernal.summary(mlp, x[:, :2])": "vernal.ShapeError: x has shape (8, 2)",
    "vernal.update_cost(trainer, mlp, (x, y[:, 0]))": "vernal.ShapeError: y has shape (8,)",
    "vernal.plot.predictions(mlp, (x[:, 0], y))": "vernal.ShapeError: x has shape (500,)",
    "trainer.fit(mlp, (x, y), epochs=-1)": "vernal.ArgumentError: epochs needs to be",
    "vernal.Trainer('adam', loss)": "vernal.ArgumentError: optimizer is 'adam'",
}
# The lines of the user's program that failed stay, wherever they are called from.
THEIR_OWN = {
    "vernal.Trainer(optax.sgd(0.1), loss).fit(mlp, (x, y), epochs=1)": (
        'return jnp.mean(batch["inputs"])',
        "vernal.ShapeError: the loss fails on a batch: TypeError",
    ),
    "trainer.fit(mlp, (x, y), epochs=1, callbacks=[stop], progress=False)": (
        "return trainer.evaluate(epoch.state, (x, y[:, 0]))",
        "vernal.ShapeError: y has shape (8,)",
    ),
}


# Tried with `--long`: another line calls the same function.
ALIKE_LINES = {
    "trainer.fit(mlp, (x, y[:, 0]), epochs=1)",
    "trainer.step(state, (x[:2], y))",
    "trainer.epochs(mlp, (x, y[:, 0]))",
    "mlp(x[:, :2])",
    "trainer.fit(mlp, (x, y), epochs=-1)",
}
BROKEN_LOADER = "trainer.fit(mlp, batches, epochs=1, progress=False)"


def printed(lines: list[str]) -> tuple[list[str], str]:
    """What each line prints to standard error, in one process, and what is printed before them."""
    program = PROGRAM.replace("@LINE@", "LINES = " + repr(lines))
    program += """
import pathlib, tempfile, traceback
for line in LINES:
    path = pathlib.Path(tempfile.mkdtemp()) / "program.py"
    path.write_text(line + "\\n")
    try:
        exec(compile(line, str(path), "exec"))
    except Exception:
        traceback.print_exc()
    print("=== next", file=sys.stderr)
"""
    path = pathlib.Path(tempfile.mkdtemp()) / "main.py"
    path.write_text(program)
    run = [sys.executable, str(path)]
    fast = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    done = subprocess.run(run, env=fast, capture_output=True, text=True, check=True)
    return done.stderr.split("=== next\n")[:-1], done.stdout


@pytest.fixture(scope="module")
def tracebacks(long):
    """The traceback of every line that is tried; and what a right program before them imported."""
    lines = [line for line in TERMINAL if long or line not in ALIKE_LINES]
    lines += [*THEIR_OWN, BROKEN_LOADER]
    shown, imported = printed(lines)
    return {"imported": imported} | dict(zip(lines, shown, strict=True))


@pytest.mark.parametrize(
    "line", [pytest.param(line, marks=unless_alike(line, ALIKE_LINES)) for line in TERMINAL]
)
def test_a_traceback_is_short_and_ends_in_the_message(line, tracebacks):
    shown = tracebacks[line].splitlines()
    # One line is that of the test's own `exec`, which a user's program does not have.
    assert len(shown) <= 15, tracebacks[line]
    assert TERMINAL[line] in tracebacks[line]
    _, _, after = tracebacks[line].partition(TERMINAL[line])
    assert "File " not in after
    assert f"    {line}" in shown


@pytest.mark.parametrize("line", THEIR_OWN)
def test_the_users_own_lines_stay_in_a_traceback(line, tracebacks):
    own, message = THEIR_OWN[line]
    assert own in tracebacks[line]
    assert message in tracebacks[line]
    assert "jax/_src" not in tracebacks[line]


def test_a_program_that_is_right_never_imports_what_explains(tracebacks):
    assert tracebacks["imported"] == "[]\n"


def test_a_loaders_own_error_keeps_its_traceback(tracebacks):
    shown = tracebacks[BROKEN_LOADER]
    assert 'raise OSError("the disk is gone")' in shown
    assert "\nOSError: the disk is gone" in shown


TWO_DEVICES = """
import equinox as eqx, jax, numpy as np, optax, vernal
from vernal import losses, nn

here, there = jax.devices()
trainer = vernal.Trainer(optax.sgd(1e-2), losses.MeanSquaredError())
arrays, rest = eqx.partition(nn.Linear(2, 1, key=jax.random.key(0)), eqx.is_array)
model = eqx.combine(jax.device_put(arrays, there), rest)
ones = np.ones((8, 2), np.float32), np.ones((8, 1), np.float32)
data = jax.device_put(ones, here)

def train_and_validate():
    trainer.fit(model, ones, epochs=2, validation_data=data)

for call in (
    lambda: trainer.fit(model, data, epochs=2),
    lambda: trainer.step(trainer.init(model), data),
    lambda: trainer.evaluate(model, data),
    lambda: trainer.predict(model, data[0]),
    train_and_validate,
):
    try:
        call()
    except vernal.ArgumentError as error:
        assert "different devices: CPU [1] and CPU [0]" in str(error), error
        assert "jax.device_put(x, jax.devices()[0])" in str(error), error
        kept = vars(error)
    else:
        raise AssertionError("it ran")
# The last one had made an epoch before it was validated.
assert int(kept["state"].step) == len(kept["history"].steps["loss"]) == 1
state, _ = trainer.fit(model, ones, epochs=2)  # NumPy's arrays go where the model is
assert state.model.weight.devices() == {there}
"""


def test_arrays_on_different_devices_are_told_apart():
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", TWO_DEVICES], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


class TwoDropouts(eqx.Module):
    layer: eqx.nn.Linear
    dropout: eqx.nn.Dropout

    def __call__(self, x, key: Any = None):
        one, other = jax.random.split(key)
        return self.dropout(self.dropout(self.layer(x), key=one), key=other)


class Forward(eqx.Module):
    layer: eqx.nn.Linear

    def forward(self, x):
        return self.layer(x)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda layer: TwoDropouts(layer, eqx.nn.Dropout(0.1)), "key is None .* make it required"),
        (lambda layer: Forward(layer), "Rename forward to __call__"),
        (lambda layer: [layer], r"Try eqx.nn.Sequential\(model\)"),
        (
            lambda layer: eqx.nn.Sequential([layer, jax.nn.relu]),
            r"Wrap a function: eqx.nn.Lambda\(jax.nn.relu\)",
        ),
    ],
    ids=["a key that is None", "forward", "a list", "a function in a Sequential"],
)
def test_habits_from_elsewhere_are_told_what_to_write(model, said):
    trainer = vernal.Trainer(optax.sgd(0.1), losses.CrossEntropy())
    data = np.ones((6, 4), np.float32), np.zeros(6, int)
    model = model(eqx.nn.Linear(4, 3, key=jax.random.key(0)))
    with pytest.raises(vernal.CallError) as caught:
        trainer.fit(model, data, epochs=1)
    assert re.search(said, " ".join(str(caught.value).split()))
