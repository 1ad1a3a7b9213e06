"""Epochs of a number of steps: records, validation, callbacks and checkpoints follow them."""

import equinox as eqx
import jax
import numpy as np
import optax
import pytest
from helpers import (
    KEY,
    as_float64,
    assert_close,
    assert_same_bits,
    batches_of,
    filled,
    float64,
    loop_by_hand,
)
from helpers import squared_error as mse

import vernal
from vernal import callbacks, losses
from vernal._limits import limits

RNG = np.random.default_rng(0)
X = RNG.normal(size=(22, 3)).astype(np.float32)
Y = np.sin(X.sum(axis=1, keepdims=True))
SIZES = [5, 5, 5, 5, 2]  # of the batches in a pass
MODEL = filled(lambda: eqx.nn.MLP(3, 1, 4, 1, key=KEY))
TRAINER = vernal.Trainer(optax.adam(1e-2), losses.MeanSquaredError())


def fit(start, data=(X, Y), **options):
    batch_size = 5 if isinstance(data, tuple) else None
    return TRAINER.fit(start, data, batch_size=batch_size, progress=False, **options)


def endless():
    """Yield batches without end."""
    number = 0
    while True:
        rows = np.arange(number, number + 4) % len(X)
        yield X[rows], Y[rows]
        number += 4


def endless_as_list(steps):
    batches = endless()
    return [next(batches) for _ in range(steps)]


@pytest.mark.parametrize("steps", [1, 3, 5, 10, 15])
def test_epochs_of_any_length_are_the_same_steps(steps):
    state, history = fit(MODEL, epochs=6)
    other, recorded = fit(MODEL, epochs=30 // steps, steps_per_epoch=steps)
    assert_same_bits(other.model, state.model)
    np.testing.assert_array_equal(recorded.steps["loss"], history.steps["loss"])
    weights = np.array(SIZES * 6)
    expected = [
        np.average(history.steps["loss"][start : start + steps], weights=weights[start:][:steps])
        for start in range(0, 30, steps)
    ]
    np.testing.assert_allclose(recorded.epochs["loss"], expected, rtol=1e-12)
    assert int(other.epoch) == 30 // steps
    assert (int(other.data_pass), int(other.batch), int(other.epoch_step)) == (6, 0, 0)


def test_steps_and_validations_are_those_of_a_loop_by_hand():
    with float64():
        model, data, held_out = as_float64((MODEL, (X, Y), (X[:7], Y[:7])))
        optimizer = optax.adam(1e-2)
        batches = list(batches_of(data, 5, 3))[:14]

        def objective(model, batch, key, model_state):
            return mse(model, batch), {"before": mse(model, held_out)}, None

        trained = loop_by_hand(objective, optimizer, model, batches)
        validated = [trained.steps["before"][7], mse(trained.model, held_out)]
        start = TRAINER.init(model, key=KEY)
        state, history = fit(start, data, epochs=2, steps_per_epoch=7, validation_data=held_out)
    assert_close(state.model, trained.model)
    np.testing.assert_allclose(history.epochs["val_loss"], validated, rtol=1e-10)


@pytest.mark.parametrize("steps", [3, 5, 7, None])
def test_a_run_may_go_on_with_other_epochs(steps):
    state, _ = fit(MODEL, epochs=3, steps_per_epoch=4)  # twelve steps: two passes and two batches
    state, history = fit(state, epochs=2, steps_per_epoch=steps)
    made = len(history.steps["loss"])
    assert made == (2 * steps if steps else 3 + 5)
    assert int(state.epoch) == 5
    right, _ = fit(MODEL, epochs=1, steps_per_epoch=12 + made)
    assert_same_bits(state.model, right.model)


def test_ready_batches_need_not_end_and_may_end_within_an_epoch():
    with limits(loader_batches=4):  # one program for all
        state, history = fit(MODEL, endless, epochs=3, steps_per_epoch=6)
        right, _ = fit(MODEL, endless_as_list(18), epochs=1)
        assert_same_bits(state.model, right.model)
        assert len(history.epochs["loss"]) == 3
        state, _ = fit(MODEL, endless_as_list(4), epochs=2, steps_per_epoch=5)
        right, _ = fit(MODEL, endless_as_list(4) * 2 + endless_as_list(2), epochs=1)
        assert_same_bits(state.model, right.model)
    assert (int(state.data_pass), int(state.batch)) == (2, 2)


def test_the_visible_loop_has_the_same_epochs():
    ends, state = [], None
    for epoch in TRAINER.epochs(MODEL, (X, Y), batch_size=5, steps_per_epoch=7):
        ends.append((epoch.index, int(epoch.state.step), int(epoch.state.epoch)))
        if epoch.index == 2:
            state = epoch.state
            break
    assert ends == [(0, 7, 1), (1, 14, 2), (2, 21, 3)]
    right, _ = fit(MODEL, epochs=3, steps_per_epoch=7)
    assert state is not None
    assert_same_bits(state.model, right.model)


def test_callbacks_and_stopping_count_these_epochs():
    seen = []
    state, history = fit(
        MODEL,
        epochs=10,
        steps_per_epoch=3,
        validation_data=(X, Y),
        validate_every=2,
        callbacks=[
            lambda epoch: seen.append(int(epoch.state.step)),
            lambda epoch: epoch.index == 5,
        ],
    )
    assert seen == [3, 6, 9, 12, 15, 18]
    assert np.isnan(history.epochs["val_loss"]).tolist() == [True, False] * 3
    assert int(state.step) == 18


class Fails:
    """A callback that fails once, after some epochs."""

    def __init__(self, after):
        self.after = after

    def __call__(self, epoch):
        if epoch.index == self.after:
            self.after = None
            raise ConnectionError


@pytest.mark.parametrize("every", [{"every_steps": 4}, {"every_epochs": 2}], ids=str)
def test_a_run_that_failed_resumes_to_the_same_bits(tmp_path, every):
    best = callbacks.BestState("loss")
    right, history = fit(MODEL, epochs=6, steps_per_epoch=7, callbacks=[best])
    checkpoints = vernal.Checkpoints(tmp_path, every_seconds=None, **every)
    fails = Fails(3)

    def run():
        best = callbacks.BestState("loss")
        options = {"epochs": 6, "steps_per_epoch": 7, "checkpoints": checkpoints}
        return fit(MODEL, callbacks=[fails, best], **options)

    with pytest.raises(ConnectionError):
        run()
    state, recorded = run()
    assert_same_bits(state, right)
    for name, values in history.epochs.items():
        np.testing.assert_array_equal(recorded.epochs[name], values)
    with pytest.raises(vernal.CheckpointError, match="steps_per_epoch"):
        fit(MODEL, epochs=6, steps_per_epoch=8, callbacks=[fails, best], checkpoints=checkpoints)


@pytest.mark.parametrize("steps", [0, -1, 2.5, "ten", True])
def test_a_number_of_steps_is_needed(steps):
    with pytest.raises(vernal.ArgumentError, match="steps_per_epoch"):
        fit(MODEL, epochs=1, steps_per_epoch=steps)


# ----- the key of a run


def test_fit_takes_the_key_that_init_takes():
    state, _ = fit(MODEL, epochs=2, key=jax.random.key(3))
    right, _ = fit(TRAINER.init(MODEL, key=jax.random.key(3)), epochs=2)
    assert_same_bits(state, right)
    other, _ = fit(MODEL, epochs=2)
    assert np.any(other.model.layers[0].weight != state.model.layers[0].weight)


@pytest.mark.parametrize("key", [0, "seed", np.random.default_rng(0), jax.random.split(KEY)])
def test_another_thing_than_a_key_is_refused_with_the_line(key):
    for call in (lambda: fit(MODEL, epochs=1, key=key), lambda: TRAINER.init(MODEL, key=key)):
        with pytest.raises(vernal.ArgumentError, match=r"Try jax.random.key\(0\)"):
            call()


def test_a_state_has_a_key_already():
    with pytest.raises(vernal.ArgumentError, match=r"trainer.init\(model, key=key\)"):
        fit(TRAINER.init(MODEL), epochs=1, key=KEY)
