"""The Trainer: three tiers that make one run, which is that of a loop written by hand."""

import functools
import signal
import threading
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import (
    KEY,
    as_float64,
    assert_close,
    assert_float64,
    assert_same_bits,
    batches_of,
    few_optimizations,
    filled,
    float64,
    loop_by_hand,
    numbers,
    squared_error,
    stepped,
)

import vernal
from vernal import losses, nn
from vernal._limits import limits

RNG = np.random.default_rng(0)
X = RNG.normal(size=(106, 3)).astype(np.float32)
Y = np.sin(X.sum(axis=1, keepdims=True)).astype(np.float32)
DATA = (X, Y)
# 106 examples in batches of 10: eleven steps an epoch, the last on 6 examples.
SIZE, LENGTH = 10, 11
BATCH_BYTES = SIZE * 4 * 4
MSE = losses.MeanSquaredError()
ADAM = vernal.Trainer(optax.adam(1e-2), MSE)


@functools.cache
def mlp():
    return filled(lambda: nn.MLP(3, 1, 8, 1, key=KEY))


def start(trainer=ADAM):
    return trainer.init(mlp(), key=KEY)


def objective(model, batch, key, model_state):
    return squared_error(model, batch), {}, model_state


@pytest.fixture(scope="module")
def run():
    """Three epochs in batches, with a ragged tail."""
    return ADAM.fit(start(), DATA, epochs=3, batch_size=SIZE)


# ----- the tiers, and a loop written by hand

# A model, an optimizer, and the sizes of batches in the tiers and by hand.
RUNS = {
    "Linear, momentum": (
        lambda: filled(lambda: nn.Linear(3, 1, key=KEY)),
        optax.sgd(1e-2, momentum=0.9),
        (53, None),
    ),
    "MLP, Adam": (mlp, ADAM.optimizer, (SIZE, SIZE)),
    "eqx MLP, clipped schedule": (
        lambda: filled(lambda: eqx.nn.MLP(3, 1, 8, 1, jnp.tanh, key=KEY)),
        optax.chain(
            optax.clip_by_global_norm(1.0), optax.adamw(optax.cosine_decay_schedule(1e-2, 100))
        ),
        (53, 53),
    ),
}


@pytest.mark.parametrize(("make", "optimizer", "sizes"), RUNS.values(), ids=RUNS)
def test_fit_epochs_and_step_make_the_same_bits(make, optimizer, sizes):
    size, length = sizes[0], LENGTH if sizes[0] == SIZE else 2
    trainer = vernal.Trainer(optimizer, MSE)
    begin = trainer.init(make(), key=KEY)
    fitted, history = trainer.fit(begin, DATA, epochs=9, batch_size=size)
    epochs = trainer.epochs(begin, DATA, batch_size=size)
    ninth = next(epoch for epoch in epochs if epoch.index == 8)
    by_steps, measured = stepped(trainer, begin, batches_of(DATA, size, 9))

    assert int(fitted.step) == int(ninth.state.step) == int(by_steps.step) == 9 * length
    for other in (ninth.state, by_steps):
        assert_same_bits((fitted.model, fitted.opt_state), (other.model, other.opt_state))
    np.testing.assert_array_equal(history.steps["loss"], measured["loss"])


@pytest.mark.parametrize(("make", "optimizer", "sizes"), RUNS.values(), ids=RUNS)
def test_fit_is_the_loop_by_hand(make, optimizer, sizes):
    size = sizes[1]
    with float64():
        model, data = as_float64((make(), DATA))
        trainer = vernal.Trainer(optimizer, MSE)
        begin = trainer.init(model, key=KEY)
        state, history = trainer.fit(begin, data, epochs=5, batch_size=size)
        expected = loop_by_hand(objective, optimizer, model, batches_of(data, size, 5))
        assert_float64((state.model, history.steps))
        assert_close((state.model, state.opt_state), (expected.model, expected.opt_states[-1]))
        assert_close(history.steps, expected.steps)


@pytest.mark.parametrize(("examples", "features"), [(3, 1), (10, 3)])
def test_a_handful_of_numbers_rounds_alike_too(examples, features):
    # XLA may make one kernel of a loop this small, and round in another way in it.
    x = np.random.default_rng(examples).normal(size=(examples, features)).astype(np.float32)
    data = x, np.sin(x.sum(axis=1, keepdims=True))
    begin = ADAM.init(filled(lambda: nn.Linear(features, 1, key=KEY)))
    fitted, history = ADAM.fit(begin, data, epochs=100)
    by_steps, measured = stepped(ADAM, begin, [data] * 100)
    assert_same_bits(fitted.model, by_steps.model)
    np.testing.assert_array_equal(history.steps["loss"], measured["loss"])


def last_layer(model):
    frozen = jax.tree.map(lambda _: False, model)
    return eqx.tree_at(lambda m: m.layers[-1], frozen, True)


@pytest.mark.parametrize(
    ("dtype", "size", "epochs"),
    [
        (jnp.float32, None, 10),
        (jnp.bfloat16, 53, 5),
        pytest.param(jnp.float32, 53, 5, marks=pytest.mark.long),
        pytest.param(jnp.bfloat16, None, 10, marks=pytest.mark.long),
    ],
)
def test_a_frozen_backbone_makes_the_same_bits_in_each_tier_and_chunk(dtype, size, epochs):
    """What is frozen does not change in the loop, and must not be computed otherwise for that."""
    model = filled(lambda: nn.MLP(3, 1, 16, 2, dtype=dtype, key=KEY))
    data = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), DATA)
    trainer = vernal.Trainer(ADAM.optimizer, MSE, trainable=last_layer(model))
    begin = trainer.init(model, key=KEY)
    fitted, history = trainer.fit(begin, data, epochs=epochs, batch_size=size)
    by_steps, measured = stepped(trainer, begin, batches_of(data, size, epochs))
    with limits(chunk_steps=1):
        in_chunks, _ = trainer.fit(begin, data, epochs=epochs, batch_size=size)
    assert_same_bits(fitted.model, by_steps.model)
    assert_same_bits(fitted.model, in_chunks.model)
    np.testing.assert_array_equal(history.steps["loss"], measured["loss"])


# ----- where a run is cut

CHUNKS = {
    "of one step": {"chunk_steps": 1},
    "of seven": {"chunk_steps": 7},
    "of calls of seven": {"steps_per_call": 7, "superbatch_bytes": 7 * BATCH_BYTES},
    "of a thousand": {"chunk_seconds": 1e3, "chunk_steps": 1000},
    "of few bytes": {"chunk_bytes": 3 * BATCH_BYTES, "superbatch_bytes": 2 * BATCH_BYTES},
    "of one batch": {"superbatch_bytes": 1, "superbatch_steps": 1},
}


@pytest.mark.parametrize("size", [None, SIZE], ids=["full batch", "ragged batches"])
def test_chunks_of_any_length_make_the_same_bits(size):
    epochs = 30 if size is None else 3
    state, history = ADAM.fit(start(), DATA, epochs=epochs, batch_size=size)
    for changes in CHUNKS.values():
        with limits(**changes):
            other, in_chunks = ADAM.fit(start(), DATA, epochs=epochs, batch_size=size)
        assert_same_bits(state, other)
        np.testing.assert_array_equal(history.steps["loss"], in_chunks.steps["loss"])
        np.testing.assert_allclose(history.epochs["loss"], in_chunks.epochs["loss"], rtol=1e-12)


@pytest.mark.parametrize("size", [None, SIZE], ids=["full batch", "ragged batches"])
def test_turns_of_several_steps_and_gathering_on_the_device_train_as_well(size):
    """As on an accelerator; on a CPU, which rounds otherwise in such a loop."""
    state, history = ADAM.fit(start(), DATA, epochs=9, batch_size=size)
    with limits(steps_per_turn=16, gathers_on_host=False), few_optimizations():
        trainer = vernal.Trainer(optax.adam(1e-2), MSE)  # nothing is compiled for it yet
        other, in_turns = trainer.fit(start(trainer), DATA, epochs=9, batch_size=size)
        by_steps, _ = stepped(trainer, start(trainer), batches_of(DATA, size, 9))
    assert_close(state.model, other.model, rtol=1e-3, atol=1e-5)
    assert_close(other.model, by_steps.model, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(history.steps["loss"], in_turns.steps["loss"], rtol=1e-3)


@pytest.mark.parametrize("size", [None, SIZE], ids=["full batch", "ragged batches"])
def test_seven_epochs_are_three_and_then_four(size):
    seven, history = ADAM.fit(start(), DATA, epochs=7, batch_size=size)
    three, first = ADAM.fit(start(), DATA, epochs=3, batch_size=size)
    four, second = ADAM.fit(three, DATA, epochs=4, batch_size=size)
    assert_same_bits(seven, four)
    assert (int(four.epoch), int(four.batch)) == (7, 0)
    for name in ("steps", "epochs"):
        joined = np.concatenate([getattr(h, name)["loss"] for h in (first, second)])
        np.testing.assert_array_equal(getattr(history, name)["loss"], joined)


@pytest.mark.parametrize("stop", [0, 4, 10, 11, 20])
def test_a_run_goes_on_in_the_middle_of_an_epoch(stop, run):
    whole, history = run
    state = start()
    for _, batch in zip(range(stop), batches_of(DATA, SIZE, 3), strict=False):
        state, _ = ADAM.step(state, batch)
    rest, after = ADAM.fit(state, DATA, epochs=3 - stop // LENGTH, batch_size=SIZE)
    assert_same_bits(whole, rest)
    np.testing.assert_array_equal(history.steps["loss"][stop:], after.steps["loss"])


def test_the_full_batch_is_one_step_an_epoch():
    _, history = ADAM.fit(start(), DATA, epochs=50)
    assert len(history.steps["loss"]) == 50
    np.testing.assert_array_equal(history.epochs["loss"], history.steps["loss"])


def test_a_loader_trains_like_the_arrays_it_cuts():
    ready = list(vernal.batches(DATA, SIZE, shuffle=False))

    class Loader:
        def __iter__(self):
            return iter(ready)

    from_arrays, history = ADAM.fit(start(), DATA, epochs=3, batch_size=SIZE, shuffle=False)
    for loader in (ready, Loader()):
        state, loaded = ADAM.fit(start(), loader, epochs=3)
        assert_same_bits(from_arrays, state)
        np.testing.assert_array_equal(history.epochs["loss"], loaded.epochs["loss"])


# ----- the caller's arrays


def test_what_is_passed_in_stays_valid():
    model = mlp()
    before = [np.array(leaf) for leaf in numbers(model)]
    x, y = map(jnp.asarray, DATA)
    begin = ADAM.init(model, key=KEY)
    first, _ = ADAM.fit(begin, (x, y), epochs=3)
    again, _ = ADAM.fit(begin, (x, y), epochs=3)
    assert_same_bits(first, again)
    seen = []
    for epoch in ADAM.epochs(first, (x, y)):
        seen.append(epoch.state)
        if len(seen) == 3:
            break
    for state in seen:  # an earlier epoch's state is there after later ones were trained
        ADAM.step(state, (x, y))
    assert_same_bits(before, model)
    leaves = [leaf for leaf in jax.tree.leaves((x, y, begin)) if isinstance(leaf, jax.Array)]
    assert leaves and not any(leaf.is_deleted() for leaf in leaves)


@pytest.mark.parametrize("given", ["a model", "a state"])
def test_a_run_holds_the_state_once_beside_what_it_was_given(given):
    """A model is one copy of the parameters; a state of Adam, and the run's own, are three."""
    model = filled(lambda: nn.Linear(61, 67, key=KEY))
    trainer = vernal.Trainer(ADAM.optimizer, MSE, on_nonfinite="ignore")
    begin: Any = model if given == "a model" else trainer.init(model)
    before, counts = _weights(), []

    def batches():
        counts.append(_weights() - before)
        yield np.ones((5, 61), np.float32), np.ones((5, 67), np.float32)

    state, _ = trainer.fit(begin, batches, epochs=6)
    assert counts[-1] == 3
    assert np.isfinite(begin.weight if given == "a model" else begin.model.weight).all()
    assert not np.array_equal(state.model.weight, model.weight)


def _weights() -> int:
    """Return how many arrays there are that are as large as the weight."""
    return sum(leaf.shape == (67, 61) for leaf in jax.live_arrays())


def remembers(constant):
    """An optimizer whose state begins with the parameters, and with an array of its own."""

    def init(params):
        return params, jax.tree.map(lambda _: constant, params)

    def update(updates, state, params=None):
        return jax.tree.map(lambda update: -0.1 * update, updates), state

    return optax.GradientTransformation(init, update)


def test_what_an_optimizer_puts_in_its_state_stays_its_own():
    constant, model = jnp.arange(3.0), mlp()
    trainer = vernal.Trainer(remembers(constant), MSE)
    first, _ = trainer.fit(model, DATA, epochs=2, batch_size=SIZE)
    second, _ = trainer.fit(model, DATA, epochs=2, batch_size=SIZE)
    assert_same_bits(first, second)
    assert not constant.is_deleted()
    assert_same_bits(first.opt_state[0], eqx.filter(model, eqx.is_array))


def test_no_epochs_change_nothing():
    state, history = ADAM.fit(start(), DATA, epochs=0)
    assert_same_bits(start(), state)
    assert history.steps == {} and history.epochs == {}


# ----- keys


def test_the_key_of_a_step_is_folded_from_the_run_and_the_step():
    def noisy(model, batch, key):
        x, y = batch
        noise = jax.random.normal(key, y.shape)
        return jnp.mean((jax.vmap(model)(x) - y - 0.1 * noise) ** 2), {"noise": noise[0, 0]}

    trainer = vernal.Trainer(optax.sgd(1e-2), noisy)
    state, history = trainer.fit(start(trainer), DATA, epochs=2, batch_size=53)
    expected = [
        jax.random.normal(jax.random.fold_in(KEY, step), (53, 1))[0, 0] for step in range(4)
    ]
    np.testing.assert_array_equal(history.steps["noise"], np.array(expected))
    averages = np.reshape(expected, (2, 2)).mean(axis=1)
    np.testing.assert_allclose(history.epochs["noise"], averages, rtol=1e-6)
    other, _ = trainer.fit(start(trainer), DATA, epochs=2, batch_size=53)
    assert_same_bits(state, other)


class Dropped(eqx.Module):
    linear: nn.Linear
    dropout: eqx.nn.Dropout
    counts: np.ndarray  # not trained: no floats
    name: str = "dropped"

    def __init__(self, key):
        self.linear = nn.Linear(3, 1, key=key)
        self.dropout = eqx.nn.Dropout(0.5)
        self.counts = np.arange(3)

    def __call__(self, x, *, key=None):
        return self.linear(self.dropout(x, key=key)) + self.counts.sum()


def test_a_model_that_takes_a_key_gets_one_for_each_example():
    trainer = vernal.Trainer(optax.sgd(1e-2), MSE)
    begin = trainer.init(Dropped(jax.random.key(3)), key=KEY)
    state, history = trainer.fit(begin, DATA, epochs=2)

    keys = jax.random.split(jax.random.fold_in(KEY, 0), len(X))
    predictions = jax.vmap(lambda x, key: begin.model(x, key=key))(X, keys)
    first = np.mean((predictions - Y) ** 2)
    assert history.steps["loss"][0] == pytest.approx(float(first), rel=1e-6)
    np.testing.assert_array_equal(state.model.counts, np.arange(3))
    # Measured and applied without dropout: the same twice, and what the linear layer gives.
    expected = np.asarray(jax.vmap(state.model.linear)(X)) + 3
    np.testing.assert_allclose(trainer.predict(state, X), expected, rtol=1e-5)
    loss = np.mean((expected - Y) ** 2)
    assert trainer.evaluate(state, DATA)["loss"] == pytest.approx(loss, rel=1e-5)


# ----- evaluate, predict, validation


@pytest.mark.parametrize(
    ("size", "weighted"),
    [(None, False), (1, False), (10, True), (53, False), (105, True), (1000, False)],
)
def test_evaluate_is_exact_and_predict_complete_for_any_batch_size(size, weighted):
    model = mlp()
    weight = np.linspace(0, 2, len(X)).astype(np.float32) if weighted else None
    given = (X, Y, weight) if weighted else (X, Y)
    predictions = np.asarray(jax.vmap(model)(X), dtype=np.float64)
    expected = np.average(((predictions - Y) ** 2)[:, 0], weights=weight)
    result = ADAM.evaluate(model, given, batch_size=size)
    assert set(result) == {"loss"} and type(result["loss"]) is float
    assert result["loss"] == pytest.approx(expected, rel=1e-6)
    out = ADAM.predict(model, X, batch_size=size)
    assert isinstance(out, jax.Array)
    np.testing.assert_allclose(out, predictions, rtol=1e-5, atol=1e-6)


def test_predict_takes_parts_of_large_data_in_order():
    expected = np.asarray(jax.vmap(mlp())(X))
    with limits(superbatch_bytes=4 * SIZE * 12):
        predicted = ADAM.predict(mlp(), X, batch_size=SIZE)
        loss = ADAM.evaluate(mlp(), DATA, batch_size=SIZE)["loss"]
    np.testing.assert_allclose(predicted, expected, rtol=1e-5, atol=1e-6)
    assert loss == pytest.approx(np.mean((expected - Y) ** 2), rel=1e-6)


def test_validation_is_measured_every_so_many_epochs(run):
    held_out = (X[:20], Y[:20])
    state, history = ADAM.fit(
        start(),
        DATA,
        epochs=7,
        batch_size=SIZE,
        validation_data=held_out,
        validate_every=3,
    )
    assert list(np.isfinite(history.epochs["val_loss"])) == [False, False, True] * 2 + [False]
    third, _ = run
    loss = ADAM.evaluate(third, held_out, batch_size=SIZE)["loss"]
    assert history.epochs["val_loss"][2] == loss
    metrics = next(iter(ADAM.epochs(state, DATA, validation_data=held_out))).metrics
    assert set(metrics) == {"loss", "val_loss"}


def test_validation_does_not_change_the_run(run):
    seen = []
    watched, _ = ADAM.fit(
        start(),
        DATA,
        epochs=3,
        batch_size=SIZE,
        validation_data=DATA,
        callbacks=[seen.append],
    )
    assert_same_bits(watched, run[0])
    assert [epoch.index for epoch in seen] == [0, 1, 2]
    assert all(epoch.seconds > 0 for epoch in seen)


# ----- what is trained


@pytest.mark.parametrize("trains", ["biases", "last layer"])
def test_frozen_arrays_never_change_and_take_no_optimizer_memory(trains):
    model = mlp()
    if trains == "last layer":
        trainable = last_layer(model)
        trained = jax.tree.leaves(eqx.filter(model.layers[-1], eqx.is_array))
    else:
        trainable = lambda leaf: leaf.ndim == 1
        trained = jax.tree.leaves([layer.bias for layer in model.layers])
    optimizer = optax.adamw(1e-2, weight_decay=0.1)
    trainer = vernal.Trainer(optimizer, MSE, trainable=trainable)
    begin = trainer.init(model)
    kept = [leaf for leaf in numbers(begin.opt_state) if np.issubdtype(leaf.dtype, np.floating)]
    assert sum(leaf.size for leaf in kept) == 2 * sum(leaf.size for leaf in trained)
    state, _ = trainer.fit(begin, DATA, epochs=5)
    changed = [
        not np.array_equal(old, new)
        for old, new in zip(numbers(model), numbers(state.model), strict=True)
    ]
    arrays = [leaf for leaf in jax.tree.leaves(model) if eqx.is_array(leaf)]
    assert changed == [any(leaf is t for t in trained) for leaf in arrays]


# ----- callbacks, interrupts, threads


def test_every_callback_sees_an_epoch_and_any_may_end_the_run():
    seen = []
    stop = lambda epoch: epoch.index == 2
    state, history = ADAM.fit(
        start(), DATA, epochs=100, callbacks=[stop, lambda epoch: seen.append(epoch.index)]
    )
    assert seen == [0, 1, 2]
    assert int(state.epoch) == len(history.epochs["loss"]) == 3


def test_a_callback_that_raises_leaves_what_it_was_given_usable():
    begin, kept = start(), []

    def fails(epoch):
        kept.append(epoch.state)
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        ADAM.fit(begin, DATA, epochs=3, callbacks=[fails])
    again, _ = ADAM.fit(begin, DATA, epochs=1)
    assert_same_bits(again, kept[0])


def test_ctrl_c_returns_the_work_so_far(run, capsys):
    before = signal.getsignal(signal.SIGINT)

    def interrupt(epoch):
        if epoch.index == 1:
            signal.raise_signal(signal.SIGINT)

    state, history = ADAM.fit(start(), DATA, epochs=1000, batch_size=SIZE, callbacks=[interrupt])
    assert signal.getsignal(signal.SIGINT) is before
    assert int(state.step) == len(history.steps["loss"]) == 22
    assert "22 " in capsys.readouterr().err
    resumed, _ = ADAM.fit(state, DATA, epochs=1, batch_size=SIZE)
    assert_same_bits(resumed, run[0])


def test_ctrl_c_is_heard_in_the_middle_of_an_epoch(capsys):
    """The run ends with the steps whose batches were read before it."""
    ready = list(batches_of(DATA, SIZE, 1))[:-1]  # the full batches: ten an epoch
    read = []

    def loader():
        for batch in ready:
            read.append(batch)
            if len(read) == 15:
                signal.raise_signal(signal.SIGINT)
            yield batch

    with limits(loader_batches=1, chunk_steps=1):
        state, history = ADAM.fit(start(), loader, epochs=1000)
    done = int(state.step)
    assert 12 <= done == len(history.steps["loss"]) < 20
    assert (int(state.epoch), int(state.batch)) == (1, done - 10)
    assert f"{done} " in capsys.readouterr().err
    whole, record = ADAM.fit(start(), ready, epochs=3)
    np.testing.assert_array_equal(history.steps["loss"], record.steps["loss"][:done])
    resumed, _ = ADAM.fit(state, ready, epochs=2)
    assert_same_bits(resumed, whole)


def test_a_second_ctrl_c_raises_at_once_and_handlers_are_restored():
    before = signal.getsignal(signal.SIGINT)

    def twice(epoch):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        ADAM.fit(start(), DATA, epochs=1000, callbacks=[twice])
    assert signal.getsignal(signal.SIGINT) is before


def test_fit_works_in_a_thread_that_may_not_set_handlers(run):
    results = []
    thread = threading.Thread(
        target=lambda: results.append(ADAM.fit(start(), DATA, epochs=3, batch_size=SIZE))
    )
    thread.start()
    thread.join()
    assert_same_bits(results[0][0], run[0])
