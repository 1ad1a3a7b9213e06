"""The figures of the second tutorial: shape fixing."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tutorial import assert_pictures, tutorial

import vernal
from vernal import nn


def test_leaves_pictures_only_where_it_says():
    assert_pictures("02", tutorial("02", ranks="allow"))


def test_shows_both_mistakes_and_what_mends_them():
    printed, variables, _ = tutorial("02", ranks="allow")
    assert "weight has shape (1, 100) instead of (1, 1)" in printed
    assert "100 numbers go in, and 1 comes out" in printed
    assert "(100, 1) minus (100,) is (100, 100)" in printed
    column, right, flat, row = printed.split("ShapeError: ")[1:]
    assert "Try x[:, None] and y[:, None]" in right
    assert "Try y[:, None], which has shape (100, 1)" in column
    assert "each of its 100 examples is a single number, but Linear needs (100,)" in flat
    assert "has shape (1, 100)" in row
    assert "Try x.T and y.T" in row
    # What broadcasting makes of a line that rises by 3, though the loss falls.
    assert re.search(r"^The line rises by -?0\.0000$", printed, re.MULTILINE)
    (falls,) = re.findall(r"The loss falls: \[(.*)\]\n", printed)
    assert (np.diff([float(loss) for loss in falls.split()]) < 0).all()
    assert "rises by 3.0000\n" in printed
    assert variables["x"].shape == (100,)
    # The best against all answers at once is their average.
    broken = variables["broken_state"].model(variables["x_column"])
    np.testing.assert_allclose(broken, 0, atol=1e-2)


def test_draws_the_table_on_three_numbers():
    printed, variables, _ = tutorial("02", ranks="allow")
    expected = np.subtract.outer([1, 2, 3], [1, 2, 3])
    np.testing.assert_array_equal(variables["table"], expected)
    assert str(expected.astype(float)) in printed


def test_layers_of_both_libraries_give_a_column():
    printed, variables, _ = tutorial("02", ranks="allow")
    for library in ("vernal.nn", "equinox.nn"):
        assert re.search(rf"^{library}, one example: +\(1,\)$", printed, re.MULTILINE)
        assert re.search(rf"^{library}, a batch: +\(100, 1\)$", printed, re.MULTILINE)
    with pytest.raises(Exception, match=r"shape|dimension"):  # one example, and no batch
        variables["equinox_layer"](variables["x_column"])


def test_the_table_costs_more():
    printed, _, _ = tutorial("02", ranks="allow")
    broken, right = re.findall(r": 1 step on a batch of 100: ([\d.,]+ k?)FLOP", printed)
    flops = lambda text: float(text.replace(",", "").replace(" k", "e3"))
    assert flops(broken) > 20 * flops(right)


def test_prints_the_published_terrible_fit():
    printed, variables, _ = tutorial("02", ranks="allow")
    assert "bias 9.870098\n" in printed
    assert "predictions from 9.87010 to 9.87010" in printed
    assert "on average 68.01347" in printed  # 2 times 100 times 101 / 297: by the sum of squares
    model = variables["state"].model
    assert str(model.bias[0]) == "9.870098"
    assert abs(model.weight[0, 0]) < 1e-6


def test_more_speed_and_a_bent_input_mend_the_fit():
    printed, _, _ = tutorial("02", ranks="allow")
    (average,) = re.findall(r"Ten times the rate: bias (.*), almost", printed)
    assert abs(float(average) - np.mean(2 * np.linspace(-10, 10, 100) ** 2)) < 1
    ((weight, bias),) = re.findall(r"With squares: weight (.*), bias (.*), a perfect", printed)
    np.testing.assert_allclose([float(weight), float(bias)], [2, 0], atol=2e-3)


def test_the_trainer_gives_the_published_terrible_fit():
    x = np.linspace(-10, 10, 100)[:, None]
    y = 2 * x**2

    def half_squared_error(model, batch, key):
        x, y = batch
        return 0.5 * jnp.sum((jax.vmap(model)(x) - y) ** 2)

    start = jax.nn.initializers.constant(-0.92962414)
    model = nn.Linear(1, 1, weight_init=start, key=jax.random.key(0))
    trainer = vernal.Trainer(optax.adam(0.001), half_squared_error)
    state, history = trainer.fit(model, (x, y), epochs=10_000)
    assert state.model.bias is not None
    assert str(state.model.bias[0]) == "9.870098"
    assert abs(state.model.weight[0, 0]) < 1e-6
    predictions = np.asarray(trainer.predict(state, x))
    np.testing.assert_allclose(predictions, 9.870098, rtol=0, atol=2e-6)
    assert history.steps["loss"].shape == (10_000,)
    first = 0.5 * np.sum((-0.92962414 * x - y) ** 2)
    last = 0.5 * np.sum((9.870098 - y) ** 2)
    np.testing.assert_allclose(history.steps["loss"][[0, -1]], [first, last], rtol=1e-4)
