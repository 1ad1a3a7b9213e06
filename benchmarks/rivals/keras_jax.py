"""Keras 3 on JAX: `model.fit`, and the same with many steps an execution."""

import os

os.environ["KERAS_BACKEND"] = "jax"

import keras
import numpy as np
from workloads import LENGTH, Unfit


def _transformer(sizes):
    vocabulary, width, heads, blocks = sizes
    tokens = keras.Input((LENGTH,), dtype="int32")
    places = keras.ops.arange(LENGTH)
    x = keras.layers.Embedding(vocabulary, width)(tokens)
    x = x + keras.layers.Embedding(LENGTH, width)(places)
    for _ in range(blocks):
        normed = keras.layers.LayerNormalization()(x)
        attention = keras.layers.MultiHeadAttention(heads, width // heads)
        x = x + attention(normed, normed, use_causal_mask=True)
        hidden = keras.layers.Dense(4 * width, "relu")(keras.layers.LayerNormalization()(x))
        x = x + keras.layers.Dense(width)(hidden)
    logits = keras.layers.Dense(vocabulary)(keras.layers.LayerNormalization()(x))
    return keras.Model(tokens, logits)


def _model(workload):
    first, *hidden, last = workload.sizes
    layers = keras.layers
    if workload.kind == "transformer":
        return _transformer(workload.sizes)
    if workload.kind == "convolutional":
        stack = [keras.Input((8, 8, 1))]
        for channels in (*hidden, last):
            stack += [layers.Conv2D(channels, 3, padding="same", activation="relu")]
            stack += [layers.MaxPooling2D()]
        return keras.Sequential([*stack, layers.Flatten(), layers.Dense(10)])
    dense = [layers.Dense(size, workload.activation) for size in hidden]
    return keras.Sequential([keras.Input((first,)), *dense, layers.Dense(last)])


def _prepare(workload, steps):
    x, y = workload.data()
    turn = (lambda x: np.moveaxis(x, 1, -1)) if workload.kind == "convolutional" else lambda x: x
    x, size = turn(x), workload.batch_size or workload.examples
    make = {"adam": keras.optimizers.Adam, "sgd": keras.optimizers.SGD}[workload.optimizer]
    crossed = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    keras.utils.set_random_seed(0)
    # Compiled programs belong to a model, so that one is trained again, from where it began.
    model = _model(workload)
    optimizer = make(workload.rate)
    loss = crossed if workload.classifies else "mse"
    model.compile(optimizer, loss, steps_per_execution=steps)
    optimizer.build(model.trainable_variables)
    variables = [*model.variables, *optimizer.variables]
    first = [np.array(variable) for variable in variables]

    def run():
        for variable, value in zip(variables, first, strict=True):
            variable.assign(value)
        model.fit(x, y, size, workload.epochs, verbose=0)

    return run, lambda x: model.predict(turn(x), 1000, verbose=0)


def prepare(workload):
    """One step an execution, the default."""
    return _prepare(workload, 1)


def prepare_many(workload):
    """As many steps an execution as there are in an epoch, to 100."""
    steps = workload.steps // workload.epochs
    if steps == 1:
        raise Unfit("an execution ends with its epoch, which has one step")
    return _prepare(workload, min(100, steps))
