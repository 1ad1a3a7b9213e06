"""The figures of the eighth tutorial: three loops with the same weights, and a run that resumes."""

import re

import equinox as eqx
import jax
import numpy as np
import optax
import pytest
from helpers import assert_same_bits
from tutorial import assert_pictures, tutorial

import vernal
from vernal import losses


@pytest.fixture(scope="module")
def done():
    return tutorial("08")


def test_leaves_pictures_only_where_it_says(done):
    assert_pictures("08", done, others=r"build/tutorials/08_job/.*")


def test_three_ways_give_one_set_of_bits(done):
    states = [done.variables[f"by_{name}"] for name in ("fit", "epochs", "steps")]
    for state in states[1:]:
        assert_same_bits((state.model, state.opt_state), (states[0].model, states[0].opt_state))
    assert done.printed.count("the same weights: True") == 4
    assert int(states[0].step) == 300


def test_they_are_the_weights_of_a_loop_by_hand(done):
    # Ten epochs with Equinox and Optax alone, in float64.
    x, y = done.variables["data"]
    with jax.enable_x64(True):
        model = jax.tree.map(
            lambda leaf: np.float64(leaf) if eqx.is_array(leaf) else leaf, done.variables["model"]
        )
        optimizer = optax.adam(0.01)
        opt_state = optimizer.init(eqx.filter(model, eqx.is_array))

        def loss(model, x, y):
            logits = jax.vmap(model)(x)
            return optax.sigmoid_binary_cross_entropy(logits, y).mean()

        @eqx.filter_jit
        def step(model, opt_state, x, y):
            grads = eqx.filter_grad(loss)(model, x, y)
            updates, opt_state = optimizer.update(grads, opt_state)
            return eqx.apply_updates(model, updates), opt_state

        for epoch in range(10):
            for rows in vernal.batches(np.arange(300), 32, epoch=epoch):
                model, opt_state = step(model, opt_state, x[rows], np.float64(y[rows]))
        by_hand = [np.asarray(layer.weight) for layer in model.layers]
    for expected, layer in zip(by_hand, done.variables["kept"][10].model.layers, strict=True):
        np.testing.assert_allclose(layer.weight, expected, atol=2e-3)


def test_it_learns_the_spirals(done):
    accuracies = [float(a) for a in re.findall(r"epoch +\d+: accuracy ([\d.]+)", done.printed)]
    assert len(accuracies) == 4
    assert accuracies[0] < 0.7 < 0.97 < accuracies[-1]


def test_a_killed_run_goes_on_from_its_checkpoint(done):
    assert "The first run ended by SIGKILL after epoch 12\n" in done.printed
    assert "Is there a model? False\n" in done.printed
    began, ended = re.findall(r"(?:began|ended) with epoch (\d+)", done.printed)
    assert 2 <= int(began) <= 13
    assert int(ended) == 30
    assert "finished; the history has 30 epochs\n" in done.printed
    assert_same_bits(done.variables["resumed"], done.variables["by_fit"].model)


def test_steps_leave_the_state_as_it_was(done):
    assert "steps: 300 301 301\n" in done.printed
    assert "the same weights after other batches: False\n" in done.printed


def test_exercises(done):
    epoch = done.variables["epoch"]
    assert epoch.metrics["accuracy"] > 0.95
    assert done.variables["stopped_after"] == epoch.index + 1 <= 30
    assert_same_bits(done.variables["gone_on"].model, done.variables["in_one_go"].model)
    # The slope by hand: after a step of SGD the weights are w - rate * g.
    model, data = done.variables["model"], done.variables["data"]
    loss = losses.BinaryCrossEntropy()
    params, rest = eqx.partition(model, eqx.is_array)
    grads = jax.grad(lambda p: loss(eqx.combine(p, rest), data, jax.random.key(0)))(params)
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(grads), strict=True)
    w, g = (np.concatenate([np.ravel(a) for a in part]) for part in zip(*pairs, strict=True))
    expected = -(w - 0.1 * g) @ g / np.linalg.norm(w - 0.1 * g)
    assert float(done.variables["slope"]) == pytest.approx(expected, rel=1e-3)
