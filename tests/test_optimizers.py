"""All of Optax: each optimizer as in a loop written by hand, and the same in each tier."""

import sys
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import (
    KEY,
    Terminal,
    as_float64,
    assert_close,
    assert_float64,
    assert_same_bits,
    batches_of,
    few_optimizations,
    filled,
    float64,
    loop_by_hand,
    squared_error,
    stepped,
)

import vernal
from vernal import losses, nn
from vernal._limits import limits

EPOCHS, SIZE = 6, 13  # of 26 examples: two steps an epoch
SCHEDULE = optax.warmup_cosine_decay_schedule(0.0, 0.1, warmup_steps=5, decay_steps=15)

inject = optax.inject_hyperparams


# As functions of the parameters: a model of labels can be called itself, and Optax would do so.
def weights(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def layers(params):
    name = lambda path, _: "head" if ".layers[1]" in jax.tree_util.keystr(path) else "body"
    return jax.tree_util.tree_map_with_path(name, params)


def by_layer(body, head):
    return optax.multi_transform({"body": body, "head": head}, layers)


def plateau(**options):
    options = {"factor": 0.5, "patience": 2, "accumulation_size": 3} | options
    return optax.chain(optax.adam(1e-2), optax.contrib.reduce_on_plateau(**options))


class Case(NamedTuple):
    optimizer: optax.GradientTransformation | optax.MultiSteps
    needs: tuple[str, ...] = ()  # beside gradients and parameters
    rate: bool = False  # whether its state shows the learning rate
    size: int | None = SIZE


CASES = {
    "schedule": Case(optax.sgd(SCHEDULE, momentum=0.9)),
    "clipped": Case(optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(1e-2))),
    "clipped, injected": Case(
        optax.chain(optax.clip_by_global_norm(0.1), inject(optax.sgd)(SCHEDULE)), rate=True
    ),
    "weight decay": Case(optax.adamw(1e-2, weight_decay=0.1, mask=weights)),
    "MultiSteps": Case(optax.MultiSteps(optax.adam(1e-2), 4)),
    "MultiSteps, injected": Case(
        optax.MultiSteps(inject(optax.adam)(SCHEDULE), 4).gradient_transformation(), rate=True
    ),
    "MultiSteps, value": Case(optax.MultiSteps(plateau(), 4), ("value",)),
    "MultiSteps, transformation, value": Case(
        optax.MultiSteps(plateau(), 4).gradient_transformation(), ("value",)
    ),
    "masked": Case(
        optax.chain(optax.masked(optax.add_decayed_weights(0.1), weights), optax.sgd(1e-2))
    ),
    "by layer": Case(by_layer(optax.sgd(1e-2), optax.adam(1e-2))),
    "injected number": Case(inject(optax.adam)(1e-2), rate=True),
    "injected schedule": Case(inject(optax.adamw)(SCHEDULE), rate=True),
    # Two rates: none is shown, rather than a wrong one.
    "injected, by layer": Case(by_layer(inject(optax.sgd)(1e-2), inject(optax.adam)(SCHEDULE))),
    "schedule-free": Case(optax.contrib.schedule_free(optax.sgd(0.1), 0.1)),
    "schedule-free AdamW": Case(optax.contrib.schedule_free_adamw(1e-2, warmup_steps=5)),
    "plateau": Case(plateau(), ("value",)),
    "Polyak": Case(optax.polyak_sgd(0.5), ("value",)),
    "finite": Case(optax.apply_if_finite(inject(optax.adam)(1e-2), 3), rate=True),
    "SAM": Case(optax.contrib.sam(optax.sgd(1e-2), optax.sgd(0.05))),
    # The rate is how far the line search went.
    "L-BFGS": Case(optax.lbfgs(), ("value", "grad", "value_fn"), rate=True, size=None),
}


@filled
def the_model():
    return nn.MLP(3, 1, 8, 1, key=KEY)


@filled
def a_layer():
    return nn.Linear(3, 1, key=KEY)


def model_for(name):
    """A line search is a long program, and longer with each layer."""
    return a_layer if name == "L-BFGS" else the_model


def the_data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(26, 3)).astype(np.float32)
    return x, np.sin(x.sum(axis=1, keepdims=True))


@pytest.fixture(scope="module")
def data():
    return the_data()


@pytest.fixture
def fast():
    """Few optimizations, for optimizers that no test of bits has."""
    with few_optimizations():
        yield


def objective(model, batch, key, model_state):
    return squared_error(model, batch), {}, model_state


def rates_of(opt_states):
    rates = [optax.tree_utils.tree_get_all_with_path(s, "learning_rate") for s in opt_states]
    return np.concatenate([[leaf for _, leaf in found if eqx.is_array(leaf)] for found in rates])


# Others of the cases are made of these.
MORE = {
    *("clipped", "MultiSteps", "masked", "schedule-free", "plateau", "by layer"),
    *("injected number", "MultiSteps, transformation, value"),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name in MORE)) for name in CASES]
)
def test_fit_is_the_loop_by_hand(name, data):
    case = CASES[name]
    with float64():
        model, data = as_float64((model_for(name), data))
        trainer = vernal.Trainer(case.optimizer, losses.MeanSquaredError())
        start = trainer.init(model, key=KEY)
        fitted, history = trainer.fit(start, data, epochs=EPOCHS, batch_size=case.size)
        batches = batches_of(data, case.size, EPOCHS)
        expected = loop_by_hand(objective, case.optimizer, model, batches, needs=case.needs)
        assert_float64((fitted.model, history.steps["loss"]))
        assert_close(history.steps["loss"], expected.steps["loss"])
        # A line search decides by comparing numbers that are almost equal.
        tolerance = {"rtol": 1e-6, "atol": 1e-8} if name == "L-BFGS" else {}
        result, wanted = (fitted.model, fitted.opt_state), (expected.model, expected.opt_states[-1])
        assert_close(result, wanted, **tolerance)
        names = {"loss", "learning_rate"} if case.rate else {"loss"}
        assert set(history.steps) == set(history.epochs) == names
        if case.rate:
            rates = rates_of(expected.opt_states)
            np.testing.assert_allclose(history.steps["learning_rate"], rates, rtol=1e-6)


TIERS = ["MultiSteps, value", "injected schedule", "schedule-free", "L-BFGS"]
MORE_TIERS = [pytest.param(name, marks=pytest.mark.long) for name in ("schedule", "Polyak")]


@pytest.mark.parametrize("name", TIERS + MORE_TIERS)
def test_fit_epochs_and_step_are_the_same_run_and_a_second_compiles_nothing(name, data, compiled):
    case = CASES[name]
    trainer = vernal.Trainer(case.optimizer, losses.MeanSquaredError())
    start = trainer.init(model_for(name), key=KEY)
    fitted, history = trainer.fit(start, data, epochs=EPOCHS, batch_size=case.size)
    compiled.clear()
    again, _ = trainer.fit(start, data, epochs=EPOCHS, batch_size=case.size)
    trainer.fit(fitted, data, epochs=1, batch_size=case.size)
    assert compiled == []
    assert_same_bits(fitted, again)

    run = trainer.epochs(start, data, batch_size=case.size)
    epochs = [epoch for epoch, _ in zip(run, range(EPOCHS), strict=False)]
    by_steps, measured = stepped(trainer, start, batches_of(data, case.size, EPOCHS))
    for other in (epochs[-1].state, by_steps):
        assert_same_bits((fitted.model, fitted.opt_state), (other.model, other.opt_state))
    for name, column in history.steps.items():
        np.testing.assert_array_equal(column, measured[name])
    for name, column in history.epochs.items():
        np.testing.assert_array_equal(column, [epoch.metrics[name] for epoch in epochs])


# The learning rate.


@pytest.mark.parametrize(
    "name, rate",
    [("injected number", lambda step: 1e-2), ("injected schedule", SCHEDULE)],
    ids=["number", "schedule"],
)
def test_the_learning_rate_is_the_one_that_was_used(name, rate, data):
    trainer = vernal.Trainer(CASES[name].optimizer, losses.MeanSquaredError())
    start = trainer.init(the_model, key=KEY)
    seen = []
    _, history = trainer.fit(
        start, data, epochs=EPOCHS, batch_size=SIZE, callbacks=[lambda e: seen.append(e.metrics)]
    )
    rates = history.steps["learning_rate"]
    # Compiled with its surroundings, a cosine rounds in another way than by itself.
    by_itself = [float(rate(i)) for i in range(len(rates))]
    np.testing.assert_allclose(rates, by_itself, rtol=1e-6, atol=1e-8)

    averages = rates.reshape(EPOCHS, 2).mean(axis=1)
    np.testing.assert_allclose(history.epochs["learning_rate"], averages, rtol=1e-6)
    assert [metrics["learning_rate"] for metrics in seen] == list(history.epochs["learning_rate"])


class Rated(eqx.Module):
    parameters: dict

    def __call__(self, x):
        return self.parameters["learning_rate"] * x.sum(keepdims=True)


def test_a_parameter_of_that_name_is_no_learning_rate(data):
    trainer = vernal.Trainer(optax.sgd(1e-2, momentum=0.9), losses.MeanSquaredError())
    _, history = trainer.fit(Rated({"learning_rate": jnp.float32(0.5)}), data, epochs=3)
    assert set(history.steps) == {"loss"}


@pytest.mark.parametrize("rate", [1e-3, np.float32(1e-3), jnp.asarray(1e-3)], ids=type)
def test_a_learning_rate_may_be_set_by_hand_between_runs(rate, data):
    trainer = vernal.Trainer(CASES["injected number"].optimizer, losses.MeanSquaredError())
    state, _ = trainer.fit(the_model, data, epochs=2, batch_size=SIZE)
    state.opt_state.hyperparams["learning_rate"] = rate  # as Optax's documentation does
    _, history = trainer.fit(state, data, epochs=1, batch_size=SIZE)
    np.testing.assert_array_equal(history.steps["learning_rate"], np.full(2, 1e-3, np.float32))


def test_progress_shows_the_learning_rate(data, monkeypatch):
    terminal = Terminal()
    for name in ("injected schedule", "plateau"):
        trainer = vernal.Trainer(CASES[name].optimizer, losses.MeanSquaredError())
        terminal.text = ""
        monkeypatch.setattr(sys, "stderr", terminal)
        _, history = trainer.fit(the_model, data, epochs=4, batch_size=SIZE)
        last = terminal.text.split("\r")[-1]
        if CASES[name].rate:
            assert f"  learning_rate {history.epochs['learning_rate'][-1]:.3g}\n" in last
        else:
            assert "  loss " in last and "learning_rate" not in last


# What some of them are for.


def test_accumulated_gradients_are_those_of_the_batches_together(data, fast):
    x, y = (leaf[:20] for leaf in data)
    accumulated = vernal.Trainer(optax.MultiSteps(optax.sgd(0.1), 2), losses.MeanSquaredError())
    at_once = vernal.Trainer(optax.sgd(0.1), losses.MeanSquaredError())
    one, _ = accumulated.fit(the_model, (x, y), epochs=3, batch_size=10)
    other, _ = at_once.fit(the_model, (x, y), epochs=3)
    assert_close(one.model, other.model, rtol=1e-5, atol=1e-6)  # sums in another order


def test_layers_have_their_own_optimizers(data, fast):
    optimizer = by_layer(optax.set_to_zero(), inject(optax.adam)(1e-2))
    trainer = vernal.Trainer(optimizer, losses.MeanSquaredError())
    state, history = trainer.fit(the_model, data, epochs=3)
    np.testing.assert_array_equal(history.steps["learning_rate"], np.full(3, 1e-2, np.float32))
    assert_same_bits(state.model.layers[0], the_model.layers[0])
    assert (state.model.layers[1].weight != the_model.layers[1].weight).all()


def test_the_scale_falls_where_the_loss_stalls(data, fast):
    x, y = data
    scale = lambda state: optax.tree_utils.tree_get(state.opt_state, "scale")
    optimizer = plateau(patience=3, accumulation_size=1)
    trainer = vernal.Trainer(optimizer, lambda model, batch, key: 1 + 0 * jnp.sum(model.bias))
    state, _ = trainer.fit(a_layer, (x, y), epochs=10)
    assert scale(state) == 0.5**3
    learns = vernal.Trainer(optimizer, losses.MeanSquaredError())
    state, _ = learns.fit(a_layer, (x, y), epochs=10)
    assert scale(state) == 1


def test_l_bfgs_finds_the_least_squares(data):
    x, y = data
    trainer = vernal.Trainer(CASES["L-BFGS"].optimizer, losses.MeanSquaredError())
    state, history = trainer.fit(a_layer, data, epochs=30)
    ones = np.ones((len(x), 1))
    best, *_ = np.linalg.lstsq(np.hstack([x, ones]).astype(np.float64), y, rcond=None)
    np.testing.assert_allclose(state.model.weight[0], best[:3, 0], atol=1e-4)
    assert state.model.bias is not None
    np.testing.assert_allclose(state.model.bias, best[3], atol=1e-4)
    assert np.argmax(history.steps["loss"] < 1.0001 * history.steps["loss"].min()) < 20


def test_schedule_free_is_evaluated_at_other_parameters(data, fast):
    optimizer = optax.contrib.schedule_free_adamw(1e-2)
    trainer = vernal.Trainer(optimizer, losses.MeanSquaredError())
    state, _ = trainer.fit(the_model, data, epochs=30, batch_size=SIZE)
    params, static = eqx.partition(state.model, eqx.is_inexact_array)
    averaged = optax.contrib.schedule_free_eval_params(state.opt_state, params)
    model = eqx.combine(averaged, static)
    assert (model.layers[0].weight != state.model.layers[0].weight).any()
    before, after = (trainer.evaluate(m, data)["loss"] for m in (the_model, model))
    assert np.isfinite(after) and after < before
    # Back in the state, all of its methods take it.
    state = eqx.tree_at(lambda s: s.model, state, model)
    assert trainer.evaluate(state, data)["loss"] == after


def breaks_above_nine(model, batch, key=None):
    """A loss that is nan, as are its gradients, on a batch with a number above nine."""
    return squared_error(model, batch) * jnp.where(batch[0].max() > 9, jnp.nan, 1.0)


def test_updates_that_are_not_finite_are_skipped(data):
    batches, broken = list(vernal.batches(data, 13, shuffle=False)) * 4, [2, 4, 5]
    for i in broken:
        x, y = batches[i]
        batches[i] = x + 10, y
    optimizer = optax.apply_if_finite(optax.adam(1e-2), 3)
    trainer = vernal.Trainer(optimizer, breaks_above_nine, on_nonfinite="ignore")
    with limits(loader_batches=3):  # one program for each number of batches
        state, history = trainer.fit(the_model, batches, epochs=1)
    assert list(np.flatnonzero(np.isnan(history.steps["loss"]))) == broken
    assert state.opt_state.total_notfinite == len(broken)

    # The same as a run without these batches, and not what is asked for by default.
    kept = [batch for i, batch in enumerate(batches) if i not in broken]
    with limits(loader_batches=3):
        without, _ = trainer.fit(the_model, kept, epochs=1)
    assert_same_bits(without.model, state.model)
    with limits(loader_batches=3), pytest.raises(vernal.NonFiniteError) as raised:
        vernal.Trainer(optimizer, breaks_above_nine).fit(the_model, batches, epochs=1)
    assert raised.value.update == broken[0]
