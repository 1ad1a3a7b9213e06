"""The figures of the second tutorial: shape fixing."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tutorial import assert_pictures, tutorial

import vernal
from vernal import losses, nn


def test_leaves_pictures_only_where_it_says():
    assert_pictures("02", tutorial("02", ranks="allow"))


def test_shows_both_mistakes_and_what_mends_them():
    printed, variables, _ = tutorial("02", ranks="allow")
    assert "weight has shape (1, 100) instead of (1, 1)" in printed
    assert "(100, 1) minus (100,) has shape (100, 100)" in printed
    flat, right, column = printed.split("ShapeError: ")[1:]
    assert "each of its 100 examples is a single number, but Linear needs (100,)" in flat
    assert "Try x[:, None] and y[:, None]" in right
    assert "Try y[:, None], which has shape (100, 1)" in column
    assert "rises by 0.0000." in printed  # what broadcasting makes of a line that rises by 3
    assert "rises by 3.0000\n" in printed
    assert variables["EXAMPLES"] == 100


def test_lists_the_operations_that_make_a_table_and_what_they_cost():
    printed, variables, _ = tutorial("02", ranks="allow")
    (listed,) = re.findall(r"make a table:\n((?:  .*\n)+)", printed)
    lines = listed.splitlines()
    assert len(lines) == len(variables["tables"]) >= 3
    assert all(re.match(r"  \w+:f32\[100,100\] = \w", line) for line in lines)
    assert " = sub " in lines[0]
    # Of 100 numbers and not of 100 times 100 in the loss that is right.
    data = variables["x_column"], variables["line"][:, None]
    trainer = vernal.Trainer(optax.adam(0.001), losses.MeanSquaredError())
    assert "[100,100]" not in str(vernal.update_jaxpr(trainer, variables["model"], data))
    broken, right = re.findall(r": 1 step on a batch of 100: ([\d.,]+ k?)FLOP", printed)
    flops = lambda text: float(text.replace(",", "").replace(" k", "e3"))
    assert flops(broken) > 20 * flops(right)


def test_prints_the_published_terrible_fit():
    printed, variables, _ = tutorial("02", ranks="allow")
    assert "bias 9.870098\n" in printed
    assert "predictions from 9.87010 to 9.87010" in printed
    model = variables["state"].model
    assert str(model.bias[0]) == "9.870098"
    assert abs(model.weight[0, 0]) < 1e-6


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
