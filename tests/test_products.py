"""Products the fast way round: the same numbers, for models as people write them."""

import os
import subprocess
import sys
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import KEY, as_float64, assert_turned_products_agree, filled, float64

import vernal
from vernal import losses
from vernal._limits import limits

TRAINER = vernal.Trainer(optax.sgd(0.1), losses.MeanSquaredError())
EXAMPLES = 50


def linear(n_in=3, n_out=2, **options):
    return filled(lambda: eqx.nn.Linear(n_in, n_out, key=KEY, **options))


def data(*shape, outputs=(2,)):
    rng = np.random.default_rng(0)
    return rng.normal(size=(EXAMPLES, *shape)), rng.normal(size=(EXAMPLES, *outputs))


def plain_and_turned(model, batch, trainer=TRAINER):
    """Trace a step with its products as the model has them, and with turned ones."""
    with limits(turns_products=False):
        plain = vernal.update_jaxpr(trainer, model, batch)
    return plain, vernal.update_jaxpr(trainer, model, batch)


def batches_transposed(program) -> int:
    """Count the transpositions of arrays that hold each example."""
    transposed = [e.invars[0].aval.shape for e in program.eqns if e.primitive.name == "transpose"]
    return sum(EXAMPLES in shape for shape in transposed)


def products(program) -> int:
    return sum(e.primitive.name == "dot_general" for e in program.eqns)


# ----- what is won


class Own(eqx.Module):
    """A layer as people write it, with `weight @ x`."""

    weight: jax.Array
    bias: jax.Array

    def __call__(self, x):
        return self.weight @ x + self.bias


def own():
    return Own(jnp.ones((2, 3)), jnp.zeros(2))


def mlp():
    return filled(lambda: eqx.nn.MLP(3, 2, 8, 2, jnp.tanh, key=KEY))


def normed():
    return eqx.nn.Sequential([linear(3, 5), eqx.nn.LayerNorm(5), linear(5, 2)])


@pytest.mark.parametrize("make", [mlp, normed, own])
def test_a_step_transposes_no_batch(make):
    plain, turned = plain_and_turned(make(), data(3))
    assert batches_transposed(plain) > 0
    assert batches_transposed(turned) == 0
    assert products(turned) == products(plain) > 0


def test_a_layer_under_an_inner_vmap_transposes_no_batch():
    model = Called((linear(),), lambda parts, x: jax.vmap(parts[0])(x))
    plain, turned = plain_and_turned(model, data(7, 3, outputs=(7, 2)))
    assert batches_transposed(plain) > batches_transposed(turned) == 0


# ----- what stays right


class Called(eqx.Module):
    """A model that is made of parts, and calls them by a function."""

    parts: tuple
    call: Callable = eqx.field(static=True)

    def __call__(self, x):
        return self.call(self.parts, x)


class Doubled(eqx.nn.Linear):
    def __call__(self, x, *, key=None):
        return 2 * super().__call__(x)


def by_type(parts, x):
    """A model may ask what its layers are."""
    layer = parts[0]
    return layer(x) if type(layer) is eqx.nn.Linear else 1000 * layer(x)


def shared():
    layers = eqx.nn.Sequential([linear(3, 3), linear(3, 3), linear()])
    get = lambda sequential: sequential.layers[0].weight
    where = lambda sequential: sequential.layers[1].weight
    return Called((eqx.nn.Shared(layers, where, get),), lambda parts, x: parts[0]()(x))


def ensemble():
    keys = jax.random.split(KEY, 4)
    layers = filled(lambda: eqx.filter_vmap(lambda key: eqx.nn.Linear(3, 2, key=key))(keys))
    call = eqx.filter_vmap(lambda layer, x: layer(x), in_axes=(eqx.if_array(0), None))
    return Called((layers,), lambda parts, x: call(parts[0], x).mean(axis=0))


def on_columns(parts, x):
    """A layer called with many examples at once, as columns: `weight @ x` allows it."""
    return parts[0](jnp.stack([x, 2 * x, x**2], axis=1)).sum(axis=1)


def product_used_twice(parts, x):
    made = parts[0] @ jnp.outer(x, x)
    return made.sum(axis=1) + jnp.tanh(made.T).sum(axis=0)


def in_loops(parts, x):
    def turn(carry, x):
        return eqx.filter_checkpoint(parts[0])(carry) + x, None

    carry, _ = jax.lax.scan(turn, jnp.zeros(3), jnp.stack([x, -x]))
    return parts[1](jax.lax.cond(carry[0] > 0, lambda x: parts[0](x), jnp.tanh, carry))


@jax.custom_jvp
def halved(weight, x):
    return (weight @ x) / 2


@halved.defjvp
def _(primals, tangents):
    (weight, x), (d_weight, d_x) = primals, tangents
    return halved(weight, x), (d_weight @ x + weight @ d_x) / 2


def attention():
    attend = filled(lambda: eqx.nn.MultiheadAttention(2, 4, key=KEY))
    return Called((attend,), lambda parts, x: parts[0](x, x, x))


MODELS = {
    "a subclass": lambda: filled(lambda: Doubled(3, 2, key=KEY)),  # pyright: ignore[reportCallIssue]
    "asked for its type": lambda: Called((linear(),), by_type),
    "shared": shared,
    "an ensemble": ensemble,
    "columns": lambda: Called((linear(use_bias=False),), on_columns),
    "a product used twice": lambda: Called((jnp.arange(6.0).reshape(2, 3),), product_used_twice),
    "loops": lambda: Called((linear(3, 3), linear()), in_loops),
    "a rule of its own": lambda: Called((jnp.ones((2, 3)),), lambda parts, x: halved(parts[0], x)),
    "high precision": lambda: Called(
        (jnp.ones((2, 3)), jnp.zeros(2)),
        lambda parts, x: jnp.matmul(parts[0], x, precision=("high", "highest")) + parts[1],
    ),
    "own": own,
    "mlp": mlp,
    "normed": normed,
    "vernal's": lambda: filled(lambda: vernal.nn.MLP(3, 2, 8, 2, key=KEY)),
}


@pytest.mark.parametrize("name", MODELS)
def test_values_and_gradients_are_those_of_the_plain_program(name):
    with float64():
        model = as_float64(MODELS[name]())
        assert_turned_products_agree(TRAINER, TRAINER.init(model), data(3))


def test_attention_computes_the_same():
    with float64():
        model = as_float64(attention())
        assert_turned_products_agree(TRAINER, TRAINER.init(model), data(7, 4, outputs=(7, 4)))


@pytest.mark.parametrize("name", ["loops", "an ensemble", "columns", "a rule of its own"])
def test_measuring_and_predicting_are_those_of_the_model(name):
    with float64():
        model, (x, y) = as_float64(MODELS[name]()), data(3)
        expected = jax.vmap(model)(x)
        predicted = TRAINER.predict(model, x, batch_size=20)
        np.testing.assert_allclose(predicted, expected, rtol=1e-12, atol=1e-12)
        measured = TRAINER.evaluate(model, (x, y), batch_size=20)
        np.testing.assert_allclose(measured["loss"], np.mean((expected - y) ** 2), rtol=1e-12)


@pytest.mark.parametrize(
    ("value", "is_plain"),
    # Without a value is as without the variable, which is how all other tests run.
    [("1", "True"), pytest.param("", "False", marks=pytest.mark.long)],
)
def test_the_environment_asks_for_the_plain_program(value, is_plain):
    code = """
import equinox, jax, numpy, optax, vernal
layer = equinox.nn.Linear(3, 2, key=jax.random.key(0))
trainer = vernal.Trainer(optax.sgd(0.1), vernal.losses.MeanSquaredError())
data = numpy.ones((50, 3), "float32"), numpy.ones((50, 2), "float32")
print("2,50" in str(vernal.update_jaxpr(trainer, layer, data)))
"""
    environment = {**os.environ, "VERNAL_PLAIN_PRODUCTS": value}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert ran.stdout.strip() == is_plain, ran.stderr
