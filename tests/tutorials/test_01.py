"""The figures of the first tutorial: linear regression."""

import re

import jax
import numpy as np
import optax
from tutorial import assert_pictures, tutorial

import vernal
from vernal import losses, nn

FIRST_ANSWERS = [-10.59475724, 17.04473623, -6.31740492, -7.89437163, 25.45635331]
AFTER_100_STEPS = [1.0531881, 2.0895174, 0.5365327]
TRUTH = [1.1, 2.1, 3.1]


def numbers(pattern: str, printed: str) -> np.ndarray:
    """The numbers in the one place where the pattern's group occurs."""
    (text,) = re.findall(pattern, printed)
    return np.array(re.findall(r"-?\d[\d,]*(?:\.\d+)?(?:e[+-]\d+)?", text.replace(",", "")), float)


def linear_data():
    rng = np.random.default_rng(12345)
    x = rng.uniform(-10, 10, (200, 2))
    y = x @ [[1.1], [2.1]] + 3.1
    return x, y, y + rng.normal(0, 0.5, y.shape)


def least_squares(x, y):
    return np.linalg.lstsq(np.column_stack([x, np.ones(len(x))]), y)[0][:, 0]


def descent(x, y, rate, steps, *, start=(0.0, 0.0, 0.0), adam=False):
    """The parameters and losses, from the gradient as it is worked out on paper, in 64 bits."""
    columns, params, curve = np.column_stack([x, np.ones(len(x))]), np.array(start, float), []
    first, second = np.zeros(3), np.zeros(3)
    for step in range(1, steps + 1):
        error = columns @ params - y[:, 0]
        curve.append(np.mean(error**2))
        gradient = 2 * columns.T @ error / len(x)
        if adam:
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            gradient = first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        params = params - rate * gradient
    return params, np.array(curve)


def steps_needed(curve):
    return np.flatnonzero(curve <= 1.01 * curve[-1])[0]


def random_start():
    model = nn.Linear(2, 1, key=jax.random.key(0))
    return [*np.asarray(model.weight[0], float), 0.0]


def test_leaves_pictures_only_where_it_says():
    assert_pictures("01", tutorial("01"))


def test_prints_the_published_figures():
    printed, _, _ = tutorial("01")
    (answers,) = re.findall(r"first five answers: \[(.*)\]", printed)
    assert answers.split() == [f"{answer:.8f}" for answer in FIRST_ANSWERS]
    (products,) = re.findall(r"with einsum:\n(.*)\n", printed)
    assert products.split() == 3 * [f"{FIRST_ANSWERS[0] - 3.1:.8f}"]
    assert "All agree: True True" in printed
    assert "squared error, by hand 112.2489 and from Optax 112.2489" in printed
    # Exact to six digits after the point: the seventh is the machine's rounding.
    for who in ("By hand,", "Vernal, "):
        found = numbers(rf"{who} 100 steps: (.*)\n", printed)
        np.testing.assert_allclose(found, AFTER_100_STEPS, rtol=0, atol=5e-7)


def test_shows_the_summary_after_the_loss():
    printed, _, _ = tutorial("01")
    row = re.search(r"^Linear +Linear +f32\[2\] +f32\[1\] +3 +12 B +5$", printed, re.MULTILINE)
    assert row is not None
    assert row.start() > printed.index("One squared error")
    assert "\nParameters: 3, 12 B." in printed


def test_measures_the_loss_of_three_choices():
    printed, _, _ = tutorial("01")
    x, y, _ = linear_data()
    assert numbers(r"parameters at zero: (.*)\n", printed) == np.round(np.mean(y**2), 1)
    assert numbers(r"The guess: +(.*)\n", printed) == np.round(
        np.mean((x @ [[1.5], [2.1]] - y) ** 2), 1
    )
    assert numbers(r"The true parameters: +(.*)\n", printed) == 0
    # On the map the bias is zero: the model of zeros lies between two rings, the guess near one.
    assert 128 < np.mean(y**2) < 256
    assert abs(np.mean((x @ [[1.5], [2.1]] - y) ** 2) - 16) < 1


def test_finds_the_same_slopes_twice():
    printed, _, _ = tutorial("01")
    x, y, _ = linear_data()
    expected = -2 * np.mean(np.hstack([x * y, y]), axis=0)
    by_difference = numbers(r"by a small difference: (.*)\n", printed)
    by_grad = numbers(r"from jax.grad: +(.*)\n", printed)
    np.testing.assert_array_equal(numbers(r"All slopes: (.*)\n", printed), by_grad)
    assert numbers(r"Slope along weight 1: (.*)\n", printed) == by_difference[0]
    np.testing.assert_allclose(by_difference, expected, rtol=0, atol=1e-3)
    np.testing.assert_allclose(by_grad, expected, rtol=0, atol=2e-3)


def test_recovers_the_parameters_from_noisy_answers():
    printed, _, _ = tutorial("01")
    x, _, y = linear_data()
    best = least_squares(x, y)
    np.testing.assert_allclose(best, TRUTH, atol=0.01)
    # The published 1.10, 2.09, 3.14 are of other noise: 0.035 is the bias's standard error.
    np.testing.assert_allclose(best, [1.10, 2.09, 3.14], atol=0.05)
    for who in ("Trained", "Least squares", "After 10,000 steps of Adam"):
        found = numbers(rf"{who}: +weights (.*)\n", printed)
        np.testing.assert_allclose(found, best, atol=2e-4)
    error = np.mean((np.column_stack([x, np.ones(200)]) @ best - y[:, 0]) ** 2)
    assert abs(numbers(r"The loss at the end: (.*)\n", printed) - error) < 2e-4
    assert abs(error - 0.25) < 0.03
    assert abs(numbers(r"The model says \[\[(.*)\]\]", printed) - best @ [1, 2, 1]) < 1e-3


def test_the_loss_stays_high_while_one_weight_moves():
    _, variables, _ = tutorial("01")
    assert 150 < min(variables["curve"]) < 170


def test_counts_the_steps_of_each_optimizer():
    printed, variables, _ = tutorial("01")
    x, _, y = linear_data()
    start, scaled = random_start(), (x - x.mean(axis=0)) / x.std(axis=0)
    sgd = numbers(r"SGD needed  (.*) steps", printed)
    adam = numbers(r"Adam needed (.*) steps\n", printed)
    slow = numbers(r"SGD at 0.001, inputs scaled: +(.*) steps", printed)
    fast = numbers(r"SGD at 0.1, inputs scaled: +(.*) steps", printed)
    assert abs(sgd - 2_064) <= 2  # the published counts
    assert abs(adam - 5_536) <= 2
    for found, inputs, rate, steps, kind in [
        (sgd, x, 0.001, 10_000, False),
        (adam, x, 0.001, 10_000, True),
        (slow, scaled, 0.001, 10_000, False),
        (fast, scaled, 0.1, 1_000, False),
        (variables["fast_adam_steps"], x, 0.1, 1_000, True),
    ]:
        _, curve = descent(inputs, y, rate, steps, start=start, adam=kind)
        assert abs(found - steps_needed(curve)) <= 2
    assert variables["fast_adam_steps"] < sgd < slow
    assert fast < sgd / 50


def test_diverges_at_a_high_rate():
    printed, _, _ = tutorial("01")
    x, y, _ = linear_data()
    params, curve = descent(x, y, 0.03, 100)
    for who in ("by hand", "with Vernal"):
        found = numbers(rf"  weights {who}: +(.*)\n", printed)
        np.testing.assert_allclose(found, params[:2], rtol=1e-5)
        np.testing.assert_allclose(found[0], 14829.95, rtol=1e-5)
    first, last = numbers(r"The loss grows from (.*): it", printed)
    np.testing.assert_allclose([first, last], curve[[0, -1]], rtol=0.02)


def test_the_trainer_gives_the_published_weights_after_100_steps():
    x, y, _ = linear_data()
    np.testing.assert_allclose(y[:5, 0], FIRST_ANSWERS, rtol=0, atol=5e-9)
    model = nn.Linear(2, 1, weight_init=jax.nn.initializers.zeros, key=jax.random.key(0))
    trainer = vernal.Trainer(optax.sgd(0.001), losses.MeanSquaredError())
    state, history = trainer.fit(model, (x, y), epochs=100)
    assert state.model.bias is not None
    found = [*state.model.weight[0], *state.model.bias]
    np.testing.assert_allclose(found, AFTER_100_STEPS, rtol=0, atol=5e-7)
    _, expected = descent(x, y, 0.001, 100)
    np.testing.assert_allclose(history.steps["loss"], expected, rtol=1e-5)
