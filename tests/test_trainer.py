"""The Trainer against loops written by hand: the same numbers, to the last bit."""

import signal
import sys
import threading

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vernal
from vernal import losses, nn
from vernal._training.chunks import Loop

KEY = jax.random.key(7)
MODELS = {
    "Linear": lambda: nn.Linear(3, 1, key=jax.random.key(1)),
    "MLP": lambda: nn.MLP(3, 1, 16, 2, key=jax.random.key(1)),
    "MLP tanh": lambda: nn.MLP(3, 1, 8, 1, jnp.tanh, key=jax.random.key(1)),
    "eqx MLP": lambda: eqx.nn.MLP(3, 1, 16, 2, key=jax.random.key(1)),
}
OPTIMIZERS = {
    "sgd": optax.sgd(1e-2, momentum=0.9),
    "adam": optax.adam(1e-3),
    "clipped schedule": optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(optax.cosine_decay_schedule(1e-2, 500))
    ),
}


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(106, 3)).astype(np.float32)
    y = np.sin(x.sum(axis=1, keepdims=True)).astype(np.float32)
    return x, y


def by_hand(model, optimizer, batches):
    """The loop that Equinox's documentation teaches."""

    @eqx.filter_jit
    def step(model, opt_state, x, y):
        def loss(model):
            return jnp.mean(optax.losses.squared_error(jax.vmap(model)(x), y))

        value, grads = eqx.filter_value_and_grad(loss)(model)
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return eqx.apply_updates(model, updates), opt_state, value

    opt_state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
    values = []
    for x, y in batches:
        model, opt_state, value = step(model, opt_state, x, y)
        values.append(value)
    return model, np.array(values)


def arrays(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree) if eqx.is_inexact_array(leaf)]


def assert_same_bits(one, other):
    ones, others = arrays(one), arrays(other)
    assert len(ones) == len(others) > 0
    for a, b in zip(ones, others, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def assert_as_by_hand(one, other):
    """The same bits on a CPU; elsewhere XLA may choose another way to compute them."""
    if jax.default_backend() == "cpu":
        return assert_same_bits(one, other)
    for a, b in zip(arrays(one), arrays(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=0.02, atol=0.002)


def batches_of(data, size, epochs, key=KEY):
    for epoch in range(epochs):
        yield from vernal.batches(data, size, epoch=epoch, key=key)


# 106 examples in batches of 10: eleven updates an epoch, the last on 6 examples.
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_fit_epochs_step_and_a_loop_by_hand_agree_to_the_bit(make, optimizer, data):
    trainer = vernal.Trainer(optimizer, losses.MeanSquaredError())
    start = trainer.init(make(), key=KEY)
    epochs, size = 46, 10  # 506 updates

    fitted, history = trainer.fit(start, data, epochs=epochs, batch_size=size)
    run = trainer.epochs(start, data, batch_size=size)
    epoch = next(epoch for epoch in run if epoch.index == epochs - 1)
    stepped, values = start, []
    for batch in batches_of(data, size, epochs):
        stepped, info = trainer.step(stepped, batch)
        values.append(info["loss"])
    model, hand_values = by_hand(make(), optimizer, batches_of(data, size, epochs))

    assert int(fitted.step) == int(epoch.state.step) == int(stepped.step) == epochs * 11
    for other in (epoch.state.model, stepped.model):
        assert_same_bits(fitted.model, other)
    assert_same_bits(fitted.opt_state, stepped.opt_state)
    np.testing.assert_array_equal(history.steps["loss"], np.array(values))
    assert_as_by_hand(fitted.model, model)
    assert_as_by_hand(jnp.asarray(history.steps["loss"]), jnp.asarray(hand_values))


@pytest.mark.parametrize("features", [1, 3])
@pytest.mark.parametrize("examples", [3, 10])
def test_a_handful_of_numbers_rounds_alike_too(examples, features):
    # XLA may make one kernel of a loop this small, and round in another way in it.
    x = np.random.default_rng(examples).normal(size=(examples, features)).astype(np.float32)
    data = x, np.sin(x.sum(axis=1, keepdims=True))
    model, optimizer = nn.Linear(features, 1, key=KEY), optax.adam(1e-3)
    trainer = vernal.Trainer(optimizer, losses.MeanSquaredError())
    fitted, history = trainer.fit(model, data, epochs=300)
    expected, values = by_hand(model, optimizer, [data] * 300)
    assert_as_by_hand(fitted.model, expected)
    assert_as_by_hand(jnp.asarray(history.steps["loss"]), jnp.asarray(values))


@pytest.mark.parametrize("size", [None, 10, 53])
def test_updates_elsewhere_than_on_a_cpu_are_as_good(size, data, monkeypatch):
    """Of several in a turn, in a loop of its own; on a CPU, which rounds otherwise there."""
    trainer = vernal.Trainer(optax.adam(1e-3), losses.MeanSquaredError())
    start = trainer.init(MODELS["MLP"](), key=KEY)
    here = trainer.fit(start, data, epochs=40, batch_size=size)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    elsewhere = trainer.fit(start, data, epochs=40, batch_size=size)
    for a, b in zip(arrays(here[0]), arrays(elsewhere[0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(here[1].steps["loss"], elsewhere[1].steps["loss"], rtol=1e-3)


@pytest.mark.parametrize("size", [None, 10, 53])
def test_chunks_of_1_7_and_1000_make_the_same_bits(size, data, monkeypatch):
    trainer = vernal.Trainer(optax.adam(1e-3), losses.MeanSquaredError())
    start = trainer.init(MODELS["MLP"](), key=KEY)
    results = []
    for chunk in (1, 7, 1000):
        pace = property(lambda self, chunk=chunk: chunk, lambda self, value: None)
        monkeypatch.setattr(Loop, "_updates", pace, raising=False)
        results.append(trainer.fit(start, data, epochs=40, batch_size=size))
    for state, history in results[1:]:
        assert_same_bits(results[0][0], state)
        np.testing.assert_array_equal(results[0][1].steps["loss"], history.steps["loss"])
        np.testing.assert_array_equal(results[0][1].epochs["loss"], history.epochs["loss"])


@pytest.mark.parametrize("size", [None, 10, 53])
def test_seven_epochs_are_three_and_then_four(size, data):
    trainer = vernal.Trainer(optax.adam(1e-3), losses.MeanSquaredError())
    start = trainer.init(MODELS["MLP"](), key=KEY)
    seven, history = trainer.fit(start, data, epochs=7, batch_size=size)
    three, first = trainer.fit(start, data, epochs=3, batch_size=size)
    four, second = trainer.fit(three, data, epochs=4, batch_size=size)
    assert_same_bits(seven, four)
    assert (int(four.epoch), int(four.batch)) == (7, 0)
    for name in ("steps", "epochs"):
        joined = np.concatenate([getattr(h, name)["loss"] for h in (first, second)])
        np.testing.assert_array_equal(getattr(history, name)["loss"], joined)


@pytest.mark.parametrize("stop", range(0, 23, 4))
def test_a_run_goes_on_in_the_middle_of_an_epoch(stop, data):
    trainer = vernal.Trainer(optax.adam(1e-3), losses.MeanSquaredError())
    start = trainer.init(MODELS["MLP"](), key=KEY)
    whole, history = trainer.fit(start, data, epochs=3, batch_size=10)
    state = start
    for _, batch in zip(range(stop), batches_of(data, 10, 3), strict=False):
        state, _ = trainer.step(state, batch)
    rest, after = trainer.fit(state, data, epochs=3 - stop // 11, batch_size=10)
    assert_same_bits(whole, rest)
    np.testing.assert_array_equal(history.steps["loss"][stop:], after.steps["loss"])


def test_full_batch_makes_one_update_an_epoch(data):
    optimizer = optax.adam(1e-2)
    trainer = vernal.Trainer(optimizer, losses.MeanSquaredError())
    state, history = trainer.fit(MODELS["MLP"](), data, epochs=500)
    model, values = by_hand(MODELS["MLP"](), optimizer, [data] * 500)
    assert_same_bits(state.model, model)
    np.testing.assert_array_equal(history.steps["loss"], values)
    np.testing.assert_array_equal(history.epochs["loss"], values)


def test_a_loader_trains_like_the_arrays_it_cuts(data):
    trainer = vernal.Trainer(optax.adam(1e-3), losses.MeanSquaredError())
    ready = list(vernal.batches(data, 10, shuffle=False))

    class Loader:
        def __iter__(self):
            return iter(ready)

    from_arrays, history = trainer.fit(
        MODELS["MLP"](), data, epochs=5, batch_size=10, shuffle=False
    )
    for loader in (ready, Loader()):
        state, loaded = trainer.fit(MODELS["MLP"](), loader, epochs=5)
        assert_same_bits(from_arrays, state)
        np.testing.assert_array_equal(history.epochs["loss"], loaded.epochs["loss"])


def test_parts_of_large_epochs_are_the_same_run(data, monkeypatch):
    trainer = vernal.Trainer(optax.adam(1e-3), losses.MeanSquaredError())
    whole, history = trainer.fit(MODELS["MLP"](), data, epochs=3, batch_size=10)
    monkeypatch.setattr("vernal._data.superbatch.STACK_BYTES", 4 * 10 * 16)  # four batches
    parts, in_parts = trainer.fit(MODELS["MLP"](), data, epochs=3, batch_size=10)
    assert_same_bits(whole, parts)
    np.testing.assert_array_equal(history.steps["loss"], in_parts.steps["loss"])
    np.testing.assert_allclose(history.epochs["loss"], in_parts.epochs["loss"], rtol=1e-12)


def test_what_is_passed_in_stays_valid(data):
    trainer = vernal.Trainer(optax.adam(1e-3), losses.MeanSquaredError())
    model = MODELS["MLP"]()
    before = [np.array(leaf) for leaf in arrays(model)]
    x, y = map(jnp.asarray, data)
    start = trainer.init(model, key=KEY)
    first, _ = trainer.fit(start, (x, y), epochs=3)
    again, _ = trainer.fit(start, (x, y), epochs=3)
    assert_same_bits(first, again)
    seen = []
    for epoch in trainer.epochs(first, (x, y)):
        seen.append((epoch.state, epoch.metrics["loss"]))
        if len(seen) == 3:
            break
    for state, _ in seen:  # an earlier epoch's state is there after later ones were trained
        trainer.step(state, (x, y))
    for leaf, old in zip(arrays(model), before, strict=True):
        np.testing.assert_array_equal(leaf, old)
    assert not any(
        leaf.is_deleted() for leaf in jax.tree.leaves((x, y, start)) if hasattr(leaf, "is_deleted")
    )


def test_the_key_of_an_update_is_folded_from_the_run_and_the_step(data):
    def noisy(model, batch, key):
        x, y = batch
        noise = jax.random.normal(key, y.shape)
        return jnp.mean((jax.vmap(model)(x) - y - 0.1 * noise) ** 2), {"noise": noise[0, 0]}

    trainer = vernal.Trainer(optax.sgd(1e-2), noisy)
    start = trainer.init(MODELS["Linear"](), key=KEY)
    state, history = trainer.fit(start, data, epochs=2, batch_size=53)
    expected = [
        jax.random.normal(jax.random.fold_in(KEY, step), (53, 1))[0, 0] for step in range(4)
    ]
    np.testing.assert_array_equal(history.steps["noise"], np.array(expected))
    np.testing.assert_allclose(
        history.epochs["noise"], np.reshape(expected, (2, 2)).mean(axis=1), rtol=1e-6
    )
    other, _ = trainer.fit(trainer.init(MODELS["Linear"](), key=KEY), data, epochs=2, batch_size=53)
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


def test_a_model_that_takes_a_key_gets_one_for_each_example(data):
    x, y = data
    trainer = vernal.Trainer(optax.sgd(1e-2), losses.MeanSquaredError())
    start = trainer.init(Dropped(jax.random.key(3)), key=KEY)
    state, history = trainer.fit(start, data, epochs=2)

    def loss(model, step):
        keys = jax.random.split(jax.random.fold_in(KEY, step), len(x))
        predictions = jax.vmap(lambda x, key: model(x, key=key))(x, keys)
        return jnp.mean((predictions - y) ** 2)

    assert history.steps["loss"][0] == pytest.approx(float(loss(start.model, 0)), rel=1e-6)
    np.testing.assert_array_equal(state.model.counts, np.arange(3))
    # Measured and applied without dropout: the same twice, and what the linear layer gives.
    expected = np.asarray(jax.vmap(state.model.linear)(x)) + 3
    np.testing.assert_allclose(trainer.predict(state, x), expected, rtol=1e-5)
    assert trainer.evaluate(state, data)["loss"] == pytest.approx(
        np.mean((expected - y) ** 2), rel=1e-5
    )


@pytest.mark.parametrize("size", [None, 1, 7, 10, 53, 105, 106, 1000])
@pytest.mark.parametrize("weighted", [False, True])
def test_evaluate_is_exact_and_predict_complete_for_any_batch_size(size, weighted, data):
    x, y = data
    trainer = vernal.Trainer(optax.sgd(1e-2), losses.MeanSquaredError())
    model = MODELS["MLP"]()
    weight = np.linspace(0, 2, len(x)).astype(np.float32) if weighted else None
    given = (x, y, weight) if weighted else (x, y)
    predictions = np.asarray(jax.vmap(model)(x), dtype=np.float64)
    expected = np.average(((predictions - y) ** 2)[:, 0], weights=weight)
    result = trainer.evaluate(model, given, batch_size=size)
    assert set(result) == {"loss"} and type(result["loss"]) is float
    assert result["loss"] == pytest.approx(expected, rel=1e-6)
    out = trainer.predict(model, x, batch_size=size)
    assert isinstance(out, jax.Array)
    np.testing.assert_allclose(out, predictions, rtol=1e-5, atol=1e-6)


def test_predict_takes_parts_of_large_data_in_order(data, monkeypatch):
    x, y = data
    monkeypatch.setattr("vernal._data.superbatch.STACK_BYTES", 4 * 10 * 12)
    trainer = vernal.Trainer(optax.sgd(1e-2), losses.MeanSquaredError())
    model = MODELS["MLP"]()
    expected = np.asarray(jax.vmap(model)(x))
    np.testing.assert_allclose(trainer.predict(model, x, batch_size=10), expected, rtol=1e-5)
    loss = trainer.evaluate(model, (x, y), batch_size=10)["loss"]
    assert loss == pytest.approx(np.mean((expected - y) ** 2), rel=1e-6)


def test_validation_is_measured_every_so_many_epochs(data):
    x, y = data
    trainer = vernal.Trainer(optax.adam(1e-2), losses.MeanSquaredError())
    held_out = (x[:20], y[:20])
    state, history = trainer.fit(
        MODELS["MLP"](), data, epochs=7, batch_size=32, validation_data=held_out, validate_every=3
    )
    assert list(np.isfinite(history.epochs["val_loss"])) == [False, False, True] * 2 + [False]
    sixth, _ = trainer.fit(MODELS["MLP"](), data, epochs=6, batch_size=32)
    assert history.epochs["val_loss"][5] == trainer.evaluate(sixth, held_out, batch_size=32)["loss"]
    metrics = next(iter(trainer.epochs(state, data, validation_data=held_out))).metrics
    assert set(metrics) == {"loss", "val_loss"}


def test_validation_does_not_change_the_run(data):
    trainer = vernal.Trainer(optax.adam(1e-2), losses.MeanSquaredError())
    seen = []
    watched, _ = trainer.fit(
        MODELS["MLP"](),
        data,
        epochs=5,
        batch_size=32,
        validation_data=data,
        callbacks=[seen.append],
    )
    alone, _ = trainer.fit(MODELS["MLP"](), data, epochs=5, batch_size=32)
    assert_same_bits(watched, alone)
    assert [epoch.index for epoch in seen] == [0, 1, 2, 3, 4]
    assert all(epoch.seconds > 0 for epoch in seen)


def test_every_callback_sees_an_epoch_and_any_may_end_the_run(data):
    trainer = vernal.Trainer(optax.adam(1e-2), losses.MeanSquaredError())
    seen = []
    stop = lambda epoch: epoch.index == 2
    state, history = trainer.fit(
        MODELS["MLP"](), data, epochs=100, callbacks=[stop, lambda epoch: seen.append(epoch.index)]
    )
    assert seen == [0, 1, 2]
    assert int(state.epoch) == len(history.epochs["loss"]) == 3


def test_no_epochs_change_nothing(data):
    trainer = vernal.Trainer(optax.adam(1e-2), losses.MeanSquaredError())
    start = trainer.init(MODELS["MLP"](), key=KEY)
    state, history = trainer.fit(start, data, epochs=0)
    assert_same_bits(start, state)
    assert history.steps == {} and history.epochs == {}


@pytest.mark.parametrize(
    "trainable",
    [
        lambda leaf: leaf.ndim == 1,
        "last layer",
    ],
)
def test_frozen_arrays_never_change_and_take_no_optimizer_memory(trainable, data):
    model = MODELS["MLP"]()
    if trainable == "last layer":
        trainable = eqx.tree_at(lambda m: m.layers[-1], jax.tree.map(lambda _: False, model), True)
        trains = [model.layers[-1].weight, model.layers[-1].bias]
    else:
        trains = [layer.bias for layer in model.layers]
    trainer = vernal.Trainer(
        optax.adamw(1e-2, weight_decay=0.1), losses.MeanSquaredError(), trainable=trainable
    )
    start = trainer.init(model)
    assert sum(leaf.size for leaf in arrays(start.opt_state)) == 2 * sum(t.size for t in trains)
    state, _ = trainer.fit(start, data, epochs=5, batch_size=10)
    changed = [
        not np.array_equal(old, new)
        for old, new in zip(arrays(model), arrays(state.model), strict=True)
    ]
    expected = [
        any(leaf is t for t in trains) for leaf in jax.tree.leaves(model) if eqx.is_array(leaf)
    ]
    assert changed == expected


def test_ctrl_c_returns_the_work_so_far(data, capsys):
    trainer = vernal.Trainer(optax.adam(1e-2), losses.MeanSquaredError())
    before = signal.getsignal(signal.SIGINT)

    def interrupt(epoch):
        if epoch.index == 3:
            signal.raise_signal(signal.SIGINT)

    state, history = trainer.fit(
        MODELS["MLP"](), data, epochs=1000, batch_size=10, callbacks=[interrupt]
    )
    assert signal.getsignal(signal.SIGINT) is before
    assert int(state.step) == len(history.steps["loss"]) == 44
    assert "44 updates" in capsys.readouterr().err
    resumed, _ = trainer.fit(state, data, epochs=2, batch_size=10)
    whole, _ = trainer.fit(MODELS["MLP"](), data, epochs=6, batch_size=10)
    assert_same_bits(resumed, whole)


def test_ctrl_c_is_heard_in_the_middle_of_an_epoch(data, monkeypatch, capsys):
    trainer = vernal.Trainer(optax.adam(1e-2), losses.MeanSquaredError())
    monkeypatch.setattr(Loop, "_updates", property(lambda s: 3, lambda s, v: None), raising=False)
    calls, call = [], Loop._call

    def counted(self, *args):
        calls.append(1)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGINT)
        return call(self, *args)

    monkeypatch.setattr(Loop, "_call", counted)
    state, history = trainer.fit(MODELS["MLP"](), data, epochs=1000, batch_size=10)
    assert int(state.step) == len(history.steps["loss"]) == 15
    assert (int(state.epoch), int(state.batch)) == (1, 4)
    assert "15 updates" in capsys.readouterr().err
    monkeypatch.undo()
    resumed, _ = trainer.fit(state, data, epochs=2, batch_size=10)
    whole, _ = trainer.fit(MODELS["MLP"](), data, epochs=3, batch_size=10)
    assert_same_bits(resumed, whole)


def test_a_second_ctrl_c_raises_at_once_and_handlers_are_restored(data):
    trainer = vernal.Trainer(optax.adam(1e-2), losses.MeanSquaredError())
    before = signal.getsignal(signal.SIGINT)

    def twice(epoch):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trainer.fit(MODELS["MLP"](), data, epochs=1000, callbacks=[twice])
    assert signal.getsignal(signal.SIGINT) is before


def test_fit_works_in_a_thread_that_may_not_set_handlers(data):
    trainer = vernal.Trainer(optax.adam(1e-2), losses.MeanSquaredError())
    results = []
    thread = threading.Thread(
        target=lambda: results.append(trainer.fit(MODELS["MLP"](), data, epochs=3))
    )
    thread.start()
    thread.join()
    alone, _ = trainer.fit(MODELS["MLP"](), data, epochs=3)
    assert_same_bits(results[0][0], alone)


def test_a_callback_that_raises_leaves_what_it_was_given_usable(data):
    trainer = vernal.Trainer(optax.adam(1e-2), losses.MeanSquaredError())
    start, kept = trainer.init(MODELS["MLP"]()), []

    def fails(epoch):
        kept.append(epoch.state)
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        trainer.fit(start, data, epochs=3, callbacks=[fails])
    again, _ = trainer.fit(start, data, epochs=1)
    assert_same_bits(again, kept[0])


def test_progress_shows_loss_and_speed_on_a_terminal_only(data, terminal, monkeypatch, capsys):
    trainer = vernal.Trainer(optax.adam(1e-2), losses.MeanSquaredError())
    run = lambda **options: trainer.fit(
        MODELS["MLP"](), data, epochs=4, batch_size=10, validation_data=data, **options
    )
    run()
    out, err = capsys.readouterr()
    assert out == err == ""  # captured: not a terminal
    monkeypatch.setattr(sys, "stderr", terminal)
    run(progress=False)
    assert terminal.text == ""
    run()
    last = terminal.text.split("\r")[-1]
    assert "44.0/44.0" in last and "updates/s" in last
    assert all(name in last for name in ("loss=", "val_loss=", "examples/s="))
