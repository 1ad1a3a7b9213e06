"""Averaged weights against a loop by hand; what is evaluated with them, and what is not."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import KEY, as_float64, assert_close, assert_same_bits, batches_of, filled
from helpers import squared_error as mse

import vernal
from vernal import callbacks, losses

# Bits are compared of one program with itself.
pytestmark = pytest.mark.usefixtures("compiled_fast")

RNG = np.random.default_rng(0)
X: Any = RNG.normal(size=(22, 3)).astype(np.float32)
Y: Any = np.sin(X.sum(axis=1, keepdims=True))
MODEL = filled(lambda: eqx.nn.MLP(3, 1, 4, 1, key=KEY))
DECAY = 0.9


def trainer_of(optimizer, **choices):
    choices = {"eval_params": vernal.averaged, **choices}
    return vernal.Trainer(optimizer, losses.MeanSquaredError(), **choices)


def fit(trainer, start, data=(X, Y), **options):
    return trainer.fit(start, data, batch_size=5, progress=False, **options)


AVERAGED = trainer_of(vernal.average_weights(optax.adam(1e-2), DECAY))


def params_of(model):
    return eqx.filter(model, eqx.is_inexact_array)


def average_by_hand(optimizer, model, batches, every=1):
    """Train; average the weights after each `every` steps, each so many as its formula says."""
    opt_state = optimizer.init(params_of(model))
    trained, kept = model, []

    @eqx.filter_jit
    def step(model, opt_state, batch):
        grads = eqx.filter_grad(mse)(model, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params_of(model))
        return eqx.apply_updates(model, updates), opt_state

    for number, batch in enumerate(batches, 1):
        trained, opt_state = step(trained, opt_state, batch)
        if number % every == 0:
            kept.append(trained)
    weights = np.array([DECAY ** (len(kept) - k) for k in range(1, len(kept) + 1)])
    weights /= weights.sum()

    def average(*leaves):
        return sum(weight * leaf for weight, leaf in zip(weights, leaves, strict=True))

    arrays = jax.tree.map(average, *map(params_of, kept))
    return trained, eqx.combine(arrays, model)


@pytest.mark.parametrize("every", [1, 3])
def test_the_average_is_that_of_a_loop_by_hand(every):
    with jax.enable_x64(True):
        model, data, held_out = as_float64((MODEL, (X, Y), (X[:7], Y[:7])))
        plain = optax.adam(1e-2)
        if every > 1:
            plain = optax.MultiSteps(plain, every).gradient_transformation()
        optimizers: list[Any] = [vernal.average_weights(plain, DECAY)]
        if every > 1:  # on either side
            inner = vernal.average_weights(optax.adam(1e-2), DECAY)
            optimizers.append(optax.MultiSteps(inner, every).gradient_transformation())
        batches = batches_of(data, 5, 4)
        trained, averaged = average_by_hand(plain, model, batches, every)
        for optimizer in optimizers:
            trainer = trainer_of(optimizer)
            start = trainer.init(model, key=KEY)
            state, history = fit(trainer, start, data, epochs=4, validation_data=held_out)
            assert_close(state.model, trained)
            assert_close(trainer.eval_model(state), averaged)
            expected = mse(averaged, held_out)
            np.testing.assert_allclose(history.epochs["val_loss"][-1], expected, rtol=1e-10)
            np.testing.assert_allclose(trainer.evaluate(state, held_out)["loss"], expected)
            predicted = jax.vmap(averaged)(held_out[0])
            np.testing.assert_allclose(trainer.predict(state, held_out[0]), predicted)


def test_training_is_as_without_an_average_and_a_model_is_evaluated_as_it_is():
    state, history = fit(AVERAGED, MODEL, epochs=3)
    plain = trainer_of(optax.adam(1e-2), eval_params=None)
    right, plain_history = fit(plain, MODEL, epochs=3)
    assert_close(state.model, right.model, rtol=1e-5)
    np.testing.assert_allclose(history.steps["loss"], plain_history.steps["loss"], rtol=1e-5)
    of_model = AVERAGED.evaluate(state.model, (X, Y))
    assert of_model == plain.evaluate(state.model, (X, Y))
    assert of_model != AVERAGED.evaluate(state, (X, Y))


def test_the_average_is_kept_in_single_precision():
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params_of(MODEL))
    model = eqx.combine(half, MODEL)
    state, _ = fit(AVERAGED, model, epochs=2)
    averages = jax.tree.leaves(state.opt_state.average)
    assert {leaf.dtype for leaf in averages} == {np.dtype(np.float32)}
    assert jax.tree.structure(AVERAGED.eval_model(state)) == jax.tree.structure(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(params_of(AVERAGED.eval_model(state)))} == {
        jnp.dtype(jnp.bfloat16)
    }


def test_frozen_weights_are_those_of_the_model():
    mask = eqx.tree_at(lambda m: m.layers[0], jax.tree.map(lambda _: False, MODEL), True)
    trainer = trainer_of(AVERAGED.optimizer, trainable=mask)
    state, _ = fit(trainer, MODEL, epochs=1)
    evaluated = trainer.eval_model(state)
    assert_same_bits(evaluated.layers[1], MODEL.layers[1])
    assert np.any(evaluated.layers[0].weight != state.model.layers[0].weight)


def test_the_best_state_is_the_best_by_its_average_and_a_run_resumes_to_the_same_bits(tmp_path):
    def run(checkpoints=None, fails=None):
        best = callbacks.BestState("val_loss")
        watching = [best] if fails is None else [best, fails]
        options: dict[str, Any] = {"validation_data": (X[:7], Y[:7]), "checkpoints": checkpoints}
        return fit(AVERAGED, MODEL, epochs=6, callbacks=watching, **options), best

    (right, history), best = run()
    assert best.best == history.epochs["val_loss"].min()
    assert AVERAGED.evaluate(right, (X[:7], Y[:7]), batch_size=5)["loss"] == best.best
    checkpoints = vernal.Checkpoints(tmp_path, every_seconds=None, every_steps=4)

    def fails(epoch):
        if epoch.index == 3:
            raise ConnectionError

    with pytest.raises(ConnectionError):
        run(checkpoints, fails)
    (state, recorded), _ = run(checkpoints)
    assert_same_bits(state, right)
    np.testing.assert_array_equal(recorded.epochs["val_loss"], history.epochs["val_loss"])


def test_the_visible_loop_validates_with_the_average():
    _, history = fit(AVERAGED, MODEL, epochs=2, validation_data=(X, Y))
    epochs = AVERAGED.epochs(MODEL, (X, Y), batch_size=5, validation_data=(X, Y))
    for expected, epoch in zip(history.epochs["val_loss"], epochs, strict=False):
        assert epoch.metrics["val_loss"] == expected


def test_schedule_free_weights_are_optax_s():
    trainer = trainer_of(
        optax.contrib.schedule_free_adamw(1e-2),
        eval_params=optax.contrib.schedule_free_eval_params,
    )
    state, _ = fit(trainer, MODEL, epochs=2)
    expected = optax.contrib.schedule_free_eval_params(state.opt_state, params_of(state.model))
    assert_close(params_of(trainer.eval_model(state)), expected, rtol=1e-6)


# ----- errors


@pytest.mark.parametrize("decay", [0, 1.0, -0.1, 1.5, "slow"])
def test_a_decay_that_is_no_share_is_refused(decay):
    with pytest.raises(vernal.ArgumentError, match="decay"):
        vernal.average_weights(optax.adam(1e-2), decay)


def test_what_is_no_optimizer_is_refused():
    with pytest.raises(vernal.ArgumentError, match="optimizer is the function adam"):
        vernal.average_weights(optax.adam)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("optimizer", "says"),
    [
        (optax.adam(1e-2), "keeps no average"),
        (optax.chain(vernal.average_weights(optax.adam(1e-2)), optax.scale(0.5)), "after"),
    ],
    ids=["none", "behind"],
)
def test_an_average_that_is_missing_or_wrong_is_refused_before_training(optimizer, says):
    trainer = trainer_of(optimizer)
    with pytest.raises(vernal.ArgumentError, match=says) as caught:
        fit(trainer, MODEL, epochs=1, validation_data=(X, Y))
    assert len(getattr(caught.value, "history").steps) == 0  # noqa: B009
    with pytest.raises(vernal.ArgumentError, match=says):
        trainer.evaluate(trainer.init(MODEL), (X, Y))


def test_eval_params_is_called_as_written_or_named():
    with pytest.raises(vernal.ArgumentError, match="eval_params is"):
        trainer_of(optax.adam(1e-2), eval_params="averaged")

    def fails(opt_state, params):
        return opt_state.mean

    trainer = trainer_of(optax.adam(1e-2), eval_params=fails)
    with pytest.raises(vernal.CallError, match="eval_params fails in line"):
        trainer.evaluate(trainer.init(MODEL), (X, Y))

    def halves(opt_state, params):
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float16), params)

    trainer = trainer_of(optax.adam(1e-2), eval_params=halves)
    with pytest.raises(vernal.ArgumentError, match="other parameters"):
        trainer.eval_model(trainer.init(MODEL))
