"""`step` inside of JAX's own transformations: there it is the plain update, in float64 to 1e-10."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import as_float64, assert_close, assert_float64, filled, float64

import vernal
from vernal import losses

KEY = jax.random.key(3)


@pytest.fixture(autouse=True)
def in_float64():
    with float64():
        yield


def data():
    x = np.linspace(-2, 2, 12)[:, None]
    return jnp.asarray(x), jnp.asarray(np.sin(x))


def model():
    return as_float64(filled(lambda: eqx.nn.MLP(1, 1, 5, 1, jnp.tanh, key=KEY)))


def by_hand(optimizer, model, batches):
    """Return the model after some steps, and each step's loss."""
    params, static = eqx.partition(model, eqx.is_inexact_array)
    opt_state, measured = optimizer.init(params), []

    def loss(params, x, y):
        return jnp.mean((jax.vmap(eqx.combine(params, static))(x) - y) ** 2)

    @jax.jit
    def step(params, opt_state, x, y):
        value, grads = jax.value_and_grad(loss)(params, x, y)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    for x, y in batches:
        params, opt_state, value = step(params, opt_state, x, y)
        measured.append(value)
    return eqx.combine(params, static), jnp.stack(measured)


def arrays_of(tree):
    return eqx.filter(tree, eqx.is_array)


def test_under_jit():
    trainer = vernal.Trainer(optax.adam(1e-2), losses.MeanSquaredError())
    state, info = eqx.filter_jit(trainer.step)(trainer.init(model()), data())
    expected, measured = by_hand(optax.adam(1e-2), model(), [data()])
    assert_float64(state.model)
    assert_close(arrays_of(state.model), arrays_of(expected))
    assert_close(info["loss"], measured[0])


def test_under_jit_with_a_state_from_outside():
    trainer = vernal.Trainer(optax.adam(1e-2), losses.MeanSquaredError())
    state = trainer.init(model())
    inside = eqx.filter_jit(lambda y: trainer.step(state, (data()[0], y))[0])(data()[1])
    assert_close(arrays_of(inside.model), arrays_of(trainer.step(state, data())[0].model))


def test_under_scan():
    trainer = vernal.Trainer(optax.adam(1e-2), losses.MeanSquaredError())
    arrays, static = eqx.partition(trainer.init(model()), eqx.is_array)

    def body(arrays, _):
        state, info = trainer.step(eqx.combine(arrays, static), data())
        return arrays_of(state), info["loss"]

    arrays, measured = jax.lax.scan(body, arrays, None, length=5)
    expected, by_steps = by_hand(optax.adam(1e-2), model(), [data()] * 5)
    assert_close(arrays.model, arrays_of(expected))
    assert_close(measured, by_steps)


def test_under_vmap():
    trainer = vernal.Trainer(optax.sgd(1e-1), losses.MeanSquaredError())
    x, y = data()
    targets = jnp.stack([y, 2 * y, y - 1])
    step = eqx.filter_vmap(trainer.step, in_axes=(None, (None, 0)))
    states, info = step(trainer.init(model()), (x, targets))
    for i, target in enumerate(targets):
        expected, measured = by_hand(optax.sgd(1e-1), model(), [(x, target)])
        one = jax.tree.map(lambda leaf, i=i: leaf[i], arrays_of(states.model))
        assert_close(one, arrays_of(expected))
        assert_close(info["loss"][i], measured[0])


@pytest.mark.parametrize("of", ["targets", "the learning rate"])
def test_under_grad(of):
    """Through two steps: of the last loss by the targets, and by a rate inside of the optimizer."""
    x, y = data()

    def last_loss(value, train):
        rate, targets = (0.1, value) if of == "targets" else (value, y)
        return train(optax.sgd(rate), targets)

    def by_steps(optimizer, targets):
        trainer = vernal.Trainer(optimizer, losses.MeanSquaredError())
        state, _ = trainer.step(trainer.init(model()), (x, targets))
        return trainer.step(state, (x, targets))[1]["loss"]

    def hand(optimizer, targets):
        return by_hand(optimizer, model(), [(x, targets)] * 2)[1][-1]

    value = y if of == "targets" else jnp.asarray(0.1)
    found, expected = (jax.grad(last_loss)(value, train) for train in (by_steps, hand))
    assert np.all(np.isfinite(expected)) and np.any(expected != 0)
    assert_close(found, expected)


def test_under_jit_no_batch_is_transposed():
    trainer = vernal.Trainer(optax.sgd(1e-2), losses.MeanSquaredError())
    x, y = data()

    def step(params, x, y):
        return trainer.step(trainer.init(eqx.combine(params, static)), (x, y))[1]["loss"]

    params, static = eqx.partition(model(), eqx.is_array)
    program = jax.make_jaxpr(step)(params, x, y)
    assert "dot_general" in str(program)
    assert f"{len(x)}] = transpose" not in str(program)
    assert f",{len(x)}]" not in str(program)
