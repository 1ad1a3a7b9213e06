"""The figures of the sixth tutorial: polynomial regression."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tutorial import assert_pictures, tutorial

import vernal
from vernal import losses, nn

POLYNOMIAL_LOSSES = {
    False: "2.650 0.100 0.079 0.070 0.062 0.057 0.052 0.047 0.044 0.040",
    True: "1.608 0.102 0.071 0.062 0.055 0.050 0.045 0.042 0.039 0.036",
}


@pytest.mark.parametrize("partitionable", [pytest.param(False, marks=pytest.mark.long), True])
def test_the_trainer_gives_the_published_losses_on_a_polynomial(partitionable):
    # JAX has two ways to derive random numbers from a key; the losses of both are published.
    with jax.threefry_partitionable(partitionable):
        key, noise_key = jax.random.split(jax.random.key(21))
        x = jnp.linspace(-10, 10, 1000)
        y = jnp.polyval(jnp.array([1.0, -2.0, 1.0, -2.0]), x)
        y += jax.random.normal(noise_key, x.shape)
        standardised = lambda a: ((a - a.mean()) / a.std())[:, None]

        weights = [
            jax.random.normal(layer_key, (n_out, n_in)) * (5 / 3) / n_in**0.5
            for layer_key, n_in, n_out in zip(
                jax.random.split(key), (1, 128), (128, 1), strict=True
            )
        ]
        model = nn.MLP(1, 1, 128, 1, activation=jnp.tanh, key=key)
        model = eqx.tree_at(lambda m: [layer.weight for layer in m.layers], model, weights)
        trainer = vernal.Trainer(optax.sgd(0.01), losses.MeanSquaredError())
        _, history = trainer.fit(model, (standardised(x), standardised(y)), epochs=1_000)
    printed = " ".join(f"{loss:.3f}" for loss in history.steps["loss"][::100])
    assert printed == POLYNOMIAL_LOSSES[partitionable]


@pytest.fixture(scope="module")
def done():
    return tutorial("06")


def test_leaves_pictures_only_where_it_says(done):
    assert_pictures("06", done)


def test_prints_the_published_losses_by_hand_and_by_vernal(done):
    assert f"by jit {POLYNOMIAL_LOSSES[True]}\n" in done.printed
    assert f"Vernal {POLYNOMIAL_LOSSES[True]}\n" in done.printed
    np.testing.assert_allclose(
        done.variables["slow_curve"], done.variables["jit_curve"][:50], rtol=1e-4
    )


def test_keys_repeat_and_data_is_standardised(done):
    first, again, one, other = re.findall(r"(?:From|again|part).*: +(\[.*\])", done.printed)
    assert first == again
    assert len({first, one, other}) == 3
    x, y = (np.asarray(done.variables[name], np.float64) for name in "xy")
    raw = np.linspace(-10, 10, 1000)
    np.testing.assert_allclose(x[:, 0], (raw - raw.mean()) / raw.std(), atol=1e-6)
    # The noise, with deviation 1, is small against the polynomial.
    exact = np.polyval([1, -2, 1, -2], raw)
    assert np.abs(y[:, 0] - (exact - exact.mean()) / exact.std()).max() < 0.02
    low, high = float(done.variables["y_raw"].min()), float(done.variables["y_raw"].max())
    assert (round(low, -2), round(high, -2)) == (-1200, 800)


def test_counts_the_parameters_of_the_tree(done):
    assert "sizes: [128, 128, 128, 1] and their sum: 385\n" in done.printed
    assert "4 leaves; the first one again: (128, 1)\n" in done.printed
    assert "the same structure: True\n" in done.printed


def test_the_step_by_hand_is_a_step_of_sgd(done):
    # In NumPy, with the derivative as it is worked out on paper, in float64.
    model, (x, y) = (
        done.variables["model"],
        (np.asarray(done.variables[n], np.float64) for n in "xy"),
    )
    first, second = (
        [np.asarray(leaf, np.float64) for leaf in (layer.weight, layer.bias)]
        for layer in model.layers
    )
    hidden = np.tanh(x @ first[0].T + first[1])
    error = hidden @ second[0].T + second[1] - y
    back = 2 * error / len(x)
    into = (back @ second[0]) * (1 - hidden**2)
    stepped = done.variables["stepped"].layers
    for layer, before, change in [
        (stepped[0], first, (into.T @ x, into.sum(0))),
        (stepped[1], second, (back.T @ hidden, back.sum(0))),
    ]:
        np.testing.assert_allclose(layer.weight, before[0] - 0.01 * change[0], atol=1e-5)
        np.testing.assert_allclose(layer.bias, before[1] - 0.01 * change[1], atol=1e-5)


def test_jit_is_faster_and_the_table_says_by_how_much(done):
    slow, jitted, fit = (done.variables[f"{name}_seconds"] for name in ("slow", "jit", "fit"))
    assert slow > jitted  # not a limit: without the compiler, it is tens of times as slow
    assert f"1,000 steps, jitted: {jitted:.2f} s, {slow / jitted:.0f} times as fast" in done.printed
    assert f"1,000 steps by Vernal: {fit:.2f} s, {slow / fit:.0f} times as fast" in done.printed


def test_the_jaxpr_of_a_prediction_has_two_products_and_a_tanh(done):
    operations = done.variables["operations"]
    assert operations.count("dot_general") == 2
    assert operations.count("tanh") == 1
    order = [name for name in operations if name in ("dot_general", "tanh", "add")]
    assert order == ["dot_general", "add", "tanh", "dot_general", "add"]
    one, step = re.findall(r"one .*: +(\d+) operations", done.printed)
    assert int(one) == len(operations) < int(step)


def test_exercises(done):
    ((by_hand, by_optax),) = re.findall(r"by hand (\S+), by Optax (\S+)\n", done.printed)
    assert float(by_hand) == pytest.approx(float(by_optax), rel=1e-5)
    history, longer = done.variables["history"], done.variables["long_history"]
    assert longer.steps["loss"][-1] < history.steps["loss"][-1] / 4
    # (4 standard deviations of x) cubed and so on, in float64.
    raw = np.linspace(-10, 10, 1000)
    exact = np.polyval([1, -2, 1, -2], raw)
    truth = (np.polyval([1, -2, 1, -2], 4 * raw.std()) - exact.mean()) / exact.std()
    assert done.variables["truth"] == pytest.approx(truth, rel=0.01)
    assert done.variables["guess"] < truth / 2
