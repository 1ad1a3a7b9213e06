"""The figures of the first tutorial: linear regression."""

import re

import jax
import numpy as np
import optax
from tutorial import assert_pictures, tutorial

import vernal
from vernal import losses, nn

FIRST_ANSWERS = [-10.59475724, 17.04473623, -6.31740492, -7.89437163, 25.45635331]


def test_leaves_pictures_only_where_it_says():
    assert_pictures("01", tutorial("01"))


def linear_data():
    rng = np.random.default_rng(12345)
    x = rng.uniform(-10, 10, (200, 2))
    y = x @ [[1.1], [2.1]] + 3.1
    return x, y, y + rng.normal(0, 0.5, y.shape)


def test_prints_the_published_figures():
    printed, _, _ = tutorial("01")
    (answers,) = re.findall(r"first five answers: \[(.*)\]", printed)
    assert answers.split() == [f"{answer:.8f}" for answer in FIRST_ANSWERS]
    # By hand, and with Vernal: the same digits.
    exact = "weights 1.0531881 2.0895174 bias 0.5365327"
    assert f"After 100 steps by hand:\n  {exact}\n" in printed
    assert f"After 100 steps with Vernal:\n  {exact}\n" in printed
    (products,) = re.findall(r"with einsum:\n(.*)\n", printed)
    assert products.split() == 3 * [f"{FIRST_ANSWERS[0] - 3.1:.8f}"]
    assert "All 200 agree: True True" in printed
    assert "squared error, by hand 112.2489 and from Optax 112.2489" in printed
    assert re.search(r"^Linear +Linear +f32\[2\] +f32\[1\] +3 +12 B +5$", printed, re.MULTILINE)
    assert "\nParameters: 3, 12 B." in printed


def test_recovers_the_parameters_from_noisy_answers():
    printed, variables, _ = tutorial("01")
    x, _, y = linear_data()
    best = np.linalg.lstsq(np.column_stack([x, np.ones(200)]), y)[0][:, 0]
    model = variables["state"].model
    found = np.array([*model.weight[0], *model.bias])
    np.testing.assert_allclose(found, best, atol=1e-4)
    np.testing.assert_allclose(found, [1.1, 2.1, 3.1], atol=0.01)
    # The published 1.10, 2.09, 3.14 are of other noise: 0.035 is the bias's standard error.
    np.testing.assert_allclose(found, [1.10, 2.09, 3.14], atol=0.05)
    assert f"weights {best[0]:.4f} {best[1]:.4f} bias {best[2]:.4f}" in printed


def test_the_trainer_gives_the_published_weights_after_100_steps():
    x, y, _ = linear_data()
    np.testing.assert_allclose(y[:5, 0], FIRST_ANSWERS, rtol=0, atol=5e-9)
    model = nn.Linear(2, 1, weight_init=jax.nn.initializers.zeros, key=jax.random.key(0))
    trainer = vernal.Trainer(optax.sgd(0.001), losses.MeanSquaredError())
    state, history = trainer.fit(model, (x, y), epochs=100)
    assert [str(number) for number in state.model.weight[0]] == ["1.0531881", "2.0895174"]
    assert state.model.bias is not None
    assert str(state.model.bias[0]) == "0.5365327"

    # The losses on the way, from the gradient as it is worked out on paper.
    weights, bias, expected = np.zeros((2, 1)), 0.0, []
    for _ in range(100):
        error = x @ weights + bias - y
        expected.append(np.mean(error**2))
        weights -= 0.001 * 2 * x.T @ error / 200
        bias -= 0.001 * 2 * error.mean()
    np.testing.assert_allclose(history.steps["loss"], expected, rtol=1e-5)
