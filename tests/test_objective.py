"""What users write themselves is called as it is written: losses, metrics, models, optimizers."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import KEY, assert_same_bits, filled

import vernal
from vernal import losses, metrics

pytestmark = pytest.mark.usefixtures("compiled_fast")

RNG = np.random.default_rng(0)
X: Any = RNG.normal(size=(10, 3)).astype(np.float32)
Y = X.sum(axis=1, keepdims=True)
MSE = losses.MeanSquaredError()


def linear(inputs=3, outputs=1):
    return filled(lambda: eqx.nn.Linear(inputs, outputs, key=KEY))


def params_of(model):
    return eqx.filter(model, eqx.is_inexact_array)


# ----- losses


class Shifted(losses.MeanSquaredError):
    """A built-in loss with a `__call__` of the user's own."""

    def __call__(self, model, batch, key, model_state=None):
        return 1000 + super().__call__(model, batch, key)


def test_a_built_in_loss_with_a_call_of_its_own_is_called_as_written():
    model = linear()
    trainer = vernal.Trainer(
        optax.sgd(0.1), Shifted(), metrics={"mae": metrics.mean_absolute_error}
    )
    plain = vernal.Trainer(optax.sgd(0.1), MSE, metrics={"mae": metrics.mean_absolute_error})
    expected = plain.evaluate(model, (X, Y))
    result = trainer.evaluate(model, (X, Y))
    np.testing.assert_allclose(result["loss"], 1000 + expected["loss"], rtol=1e-6)
    assert result["mae"] == expected["mae"]
    _, history = trainer.fit(model, (X, Y), epochs=2, progress=False)
    _, of_plain = plain.fit(model, (X, Y), epochs=2, progress=False)
    np.testing.assert_allclose(history.steps["loss"], 1000 + of_plain.steps["loss"], rtol=1e-6)


def test_its_metrics_in_lower_precision_compare_with_the_targets_as_they_are():
    of_each = []
    for loss in (Shifted(), MSE):
        mae = {"mae": metrics.mean_absolute_error}
        trainer = vernal.Trainer(optax.sgd(0.1), loss, metrics=mae, compute_dtype=jnp.bfloat16)
        of_each.append(trainer.evaluate(linear(), (X, Y))["mae"])
    assert of_each[0] == of_each[1]


class ShiftedEntropy(losses.CrossEntropy):
    def __call__(self, model, batch, key, model_state=None):
        return 1000 + super().__call__(model, batch, key)


def test_a_call_of_its_own_leaves_the_weights_of_examples_whatever_the_batches():
    weight = RNG.uniform(0, 5, 10).astype(np.float32)
    labels = RNG.integers(0, 2, 10)
    for loss, outputs, data in [
        (Shifted(), 1, (X, Y, weight)),
        (ShiftedEntropy(ignore_index=1), 2, (X, labels)),
    ]:
        trainer = vernal.Trainer(optax.sgd(0.0), loss)
        model = linear(outputs=outputs)
        expected = loss(model, jax.tree.map(jnp.asarray, data), None)
        measured = trainer.evaluate(model, data, batch_size=3)["loss"]
        np.testing.assert_allclose(measured, expected, rtol=1e-6)


def test_a_weighted_loss_makes_evaluate_exact_whatever_the_batches():
    tokens = RNG.integers(0, 5, size=10)  # of each example

    def mean_over_tokens(model, batch, key):
        error = jnp.abs(jax.vmap(model)(batch["x"])[:, 0] - batch["y"][:, 0])
        total = jnp.sum(batch["tokens"])
        value = jnp.sum(error * batch["tokens"]) / jnp.maximum(total, 1)
        return losses.Weighted(value, total), {"twice": 2 * value}

    model = linear()
    error = np.abs(np.asarray(jax.vmap(model)(X)) - Y)[:, 0]
    expected = np.sum(error * tokens) / np.sum(tokens)
    trainer = vernal.Trainer(optax.sgd(0.0), mean_over_tokens)
    data = {"x": X, "y": Y, "tokens": tokens}
    for size in (None, 1, 3):
        results = trainer.evaluate(model, data, batch_size=size)
        np.testing.assert_allclose(results["loss"], expected, rtol=1e-6)
        np.testing.assert_allclose(results["twice"], 2 * expected, rtol=1e-6)
    _, history = trainer.fit(model, data, epochs=1, batch_size=3, progress=False)
    np.testing.assert_allclose(history.epochs["loss"], expected, rtol=1e-6)


def test_a_weighted_loss_beside_metrics_with_weights_of_their_own_is_refused():
    class Tokens(losses.MeanSquaredError):
        def __call__(self, model, batch, key, model_state=None):
            return losses.Weighted(super().__call__(model, batch, key), jnp.ones(()))

    trainer = vernal.Trainer(optax.sgd(0.1), Tokens(), metrics={"mae": metrics.mean_absolute_error})
    with pytest.raises(vernal.ShapeError, match=r"Weighted, beside metrics"):
        trainer.evaluate(linear(), (X, Y))


# ----- models


class Noisy(eqx.Module):
    """Hands all keywords on to a layer that needs a key."""

    dropout: eqx.nn.Dropout
    linear: eqx.nn.Linear

    def __call__(self, x, **kwargs):
        return self.linear(self.dropout(x, **kwargs))


class NamesItsKey(eqx.Module):
    dropout: eqx.nn.Dropout
    linear: eqx.nn.Linear

    def __call__(self, x, *, key=None):
        return self.linear(self.dropout(x, key=key))


class Keyless(eqx.Module):
    """Hands all keywords on to a function that takes none."""

    linear: eqx.nn.Linear

    def __call__(self, x, **kwargs):
        def apply(x):
            return self.linear(x)

        return apply(x, **kwargs)


def test_a_model_with_keywords_gets_the_key_that_its_layers_need():
    parts = eqx.nn.Dropout(0.5), linear()
    trainer = vernal.Trainer(optax.sgd(0.1), MSE)
    named, _ = trainer.fit(NamesItsKey(*parts), (X, Y), epochs=3, progress=False)
    state, _ = trainer.fit(Noisy(*parts), (X, Y), epochs=3, progress=False)
    assert_same_bits(state.model.linear, named.model.linear)
    right, _ = trainer.fit(parts[1], (X, Y), epochs=3, progress=False)
    state, _ = trainer.fit(Keyless(parts[1]), (X, Y), epochs=3, progress=False)
    assert_same_bits(state.model.linear, right.model)


class Scaled(eqx.Module):
    """Its optional second argument is not a state."""

    linear: eqx.nn.Linear

    def __call__(self, x, scale=2.0):
        return scale * self.linear(x)


def test_an_optional_second_argument_is_no_model_state():
    outputs, state = losses.forward(Scaled(linear()), jnp.asarray(X), None, jnp.ones(()))
    np.testing.assert_allclose(outputs, 2 * jax.vmap(linear())(X), rtol=1e-6)
    assert state == 1


def test_a_part_of_the_model_state_that_is_no_array_cannot_change():
    def loss(model, batch, key, model_state):
        return jnp.mean(jax.vmap(model)(batch) ** 2), {}, {**model_state, "phase": "later"}

    trainer = vernal.Trainer(optax.sgd(0.1), loss)
    state = trainer.init(linear(), model_state={"count": jnp.zeros(()), "phase": "first"})
    with pytest.raises(vernal.ShapeError, match=r"phase.*cannot\s+change"):
        trainer.fit(state, X, epochs=1, progress=False)


# ----- complex numbers


class Spectral(eqx.Module):
    weight: jax.Array

    def __call__(self, x):
        return jnp.fft.irfft(jnp.fft.rfft(x) * self.weight, n=8)


@pytest.mark.parametrize(
    "optimizer",
    [optax.sgd(0.3), optax.adam(0.05), optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.3))],
    ids=["sgd", "adam", "clipped"],
)
def test_complex_parameters_train_downhill_as_by_hand(optimizer):
    with jax.enable_x64(True):
        x = RNG.normal(size=(16, 8))
        true = RNG.normal(size=5) + 1j * RNG.normal(size=5)
        y = np.fft.irfft(np.fft.rfft(x) * true, n=8)
        model = Spectral(jnp.full(5, 0.1j))
        params: Any = model
        opt_state = optimizer.init(params)

        @jax.jit
        def step(params, opt_state):
            grads = jax.grad(lambda model: jnp.mean((jax.vmap(model)(x) - y) ** 2))(params)
            grads = jax.tree.map(jnp.conj, grads)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state

        for _ in range(20):
            params, opt_state = step(params, opt_state)
        state, history = vernal.Trainer(optimizer, MSE).fit(
            model, (x, y), epochs=20, progress=False
        )
    assert history.steps["loss"][-1] < history.steps["loss"][0]
    np.testing.assert_allclose(state.model.weight, params.weight, rtol=1e-10)


def test_complex_numbers_stay_complex_in_a_lower_precision():
    class Modulus(Spectral):
        def __call__(self, x):
            return jnp.abs(jnp.sum(x * self.weight))

    trainer = vernal.Trainer(optax.sgd(0.1), MSE, compute_dtype=jnp.bfloat16)
    predicted = trainer.predict(Modulus(jnp.array([3.0, 4.0j])), np.ones((2, 2), np.float32))
    np.testing.assert_allclose(predicted, [5, 5], rtol=1e-2)


def test_a_complex_metric_is_refused_by_name():
    def loss(model, batch, key):
        value = jnp.mean(jax.vmap(model)(batch) ** 2)
        return value, {"phase": 1j * value}

    with pytest.raises(vernal.ShapeError, match="phase is complex64"):
        vernal.Trainer(optax.sgd(0.1), loss).fit(linear(), X, epochs=1, progress=False)


# ----- whoever failed is named


def forgets(prediction, target):
    jnp.abs(prediction - target)


def branches(prediction, target):
    return 1.0 if prediction[0] > target[0] else 0.0


def uses_numpy(prediction, target):
    return np.maximum(prediction, target)


@pytest.mark.parametrize("metric", [forgets, branches, uses_numpy])
def test_a_metric_that_fails_is_named_with_its_line(metric):
    trainer = vernal.Trainer(optax.sgd(0.1), MSE, metrics={"mine": metric})
    with pytest.raises(vernal.VernalError) as caught:
        trainer.fit(linear(), (X, Y), epochs=1, progress=False)
    message = " ".join(str(caught.value).split())
    assert "'mine'" in message
    if metric is branches:
        assert f"line {metric.__code__.co_firstlineno + 1} of test_objective.py" in message
        assert "jnp.where" in message
    if metric is uses_numpy:
        assert "jnp.maximum" in message


# ----- optimizers


def test_an_optimizer_state_that_changes_its_dtype_trains_as_by_hand():
    first = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), linear(3, 4))
    model = eqx.nn.Sequential([first, eqx.nn.Lambda(jnp.tanh), linear(4, 1)])
    optimizer = optax.contrib.prodigy()
    state, history = vernal.Trainer(optimizer, MSE).fit(model, (X, Y), epochs=5, progress=False)
    params, opt_state, by_hand = model, optimizer.init(params_of(model)), []

    @eqx.filter_jit
    def step(params, opt_state):
        value, grads = eqx.filter_value_and_grad(lambda p: MSE(p, (X, Y), None))(params)
        updates, opt_state = optimizer.update(grads, opt_state, params_of(params))
        return eqx.apply_updates(params, updates), opt_state, value

    for _ in range(5):
        params, opt_state, value = step(params, opt_state)
        by_hand.append(value)
    assert np.isfinite(by_hand).all()
    np.testing.assert_allclose(history.steps["loss"], np.array(by_hand), rtol=1e-2)
    again, _ = vernal.Trainer(optimizer, MSE).fit(state, (X, Y), epochs=1, progress=False)
    assert int(again.step) == 6


def test_optimizers_get_the_loss_and_its_gradient_as_functions_by_name():
    params: Any = linear()

    def objective(model):
        return MSE(model, (jnp.asarray(X), jnp.asarray(Y)), None)

    inner = optax.sgd(0.1), optax.sgd(0.05)
    for optimizer, extra in [
        (optax.contrib.sophia(1e-2), {"obj_fn": objective}),
        (
            optax.contrib.sam(*inner, opaque_mode=True),
            {"grad_fn": lambda params, _: jax.grad(objective)(params)},
        ),
    ]:
        trained: Any = params
        opt_state = optimizer.init(params)

        @jax.jit
        def step(trained, opt_state, optimizer=optimizer, extra=extra):
            grads = jax.grad(objective)(trained)
            updates, opt_state = optimizer.update(grads, opt_state, trained, **extra)
            return optax.apply_updates(trained, updates), opt_state

        for _ in range(3):
            trained, opt_state = step(trained, opt_state)
        state, _ = vernal.Trainer(optimizer, MSE).fit(params, (X, Y), epochs=3, progress=False)
        np.testing.assert_allclose(state.model.weight, trained.weight, rtol=1e-4)


def mislabelled(params):
    return {"weight": params.kernel}


@pytest.mark.parametrize(
    ("optimizer", "says"),
    [
        (optax.masked(optax.adam(1e-2), mislabelled), "kernel"),
        (optax.multi_transform({"all": optax.adam(1e-2)}, mislabelled), "kernel"),
        (optax.lookahead(optax.adam(1e-2), 5, 0.5), "fast"),
    ],
    ids=["mask", "labels", "lookahead"],
)
def test_an_optimizer_that_fails_is_named_with_the_users_line(optimizer, says):
    with pytest.raises(vernal.CallError) as caught:
        vernal.Trainer(optimizer, MSE).fit(linear(), (X, Y), epochs=1, progress=False)
    message = " ".join(str(caught.value).split())
    assert message.startswith("the optimizer fails")
    assert says in message
    if says == "kernel":
        line = mislabelled.__code__.co_firstlineno + 1
        assert f"in line {line} of test_objective.py" in message
