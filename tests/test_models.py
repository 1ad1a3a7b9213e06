"""Models as people build them with Equinox: the same bits in each tier, and a loop by hand.

Each model trains in float32, and in float64 by `fit` and by a loop written by hand, up to rounding.
In float32, `fit`, `step`, and chunks of one step have to agree bit for bit: here for each kind of
program, and with `--long` for each model.
"""

import contextlib
import math

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
    assert_turned_products_agree,
    batches_of,
    filled,
    loop_by_hand,
    numbers,
    stepped,
)
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import vernal
from vernal import losses, metrics
from vernal._limits import limits

# Numbers of different programs are compared up to rounding. See `for_bits` for the others.
pytestmark = pytest.mark.usefixtures("compiled_fast")

ONE_STEP = {"chunk_steps": 1}  # a chunk
ADAM = optax.adam(1e-2)


compares_products = False  # which takes two programs more for each model


@pytest.fixture(autouse=True)
def long_runs_compare_products(long):
    """Compare turned products for each model with `--long`; test_products.py has short ones."""
    global compares_products
    compares_products = long


@contextlib.contextmanager
def for_bits():
    """Compile as for users, where bits are compared."""
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", True)


def momentum():
    """Make an optimizer that compiles in less time than Adam; test_optimizers.py has the others.

    Each is a new one, so that no program that was compiled fast serves where bits are compared.
    """
    return optax.sgd(0.05, momentum=0.9)


# Of some models, the long run alone compares the tiers: `nox -s faults` runs what is marked.
may_compare_tiers = pytest.mark.parametrize(
    "tiers", [False, pytest.param(True, marks=pytest.mark.long)], ids=["", "tiers"]
)


def mean_of(error):
    """By hand: the mean error of a batch (x, y), each example with a key of its own."""

    def objective(model, batch, key, state):
        x, y = batch
        keys = jax.random.split(key, len(x))
        if state is None:
            outputs = jax.vmap(lambda x, key: model(x, key=key))(x, keys)
        else:
            outputs, state = jax.vmap(
                lambda x, key: model(x, state, key=key), out_axes=(0, None), axis_name="batch"
            )(x, keys)
        return jnp.mean(jax.vmap(error)(outputs, y)), {}, state

    return objective


def own(loss):
    """By hand: a loss(model, batch, key) that returns a scalar, or that and a dict of metrics."""

    def objective(model, batch, key, state):
        returned = loss(model, batch, key)
        value, info = returned if isinstance(returned, tuple) else (returned, {})
        return value, info, state

    return objective


cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels
squared_error = optax.losses.squared_error


def changing(state):
    """What training changes."""
    return state.model, state.model_state, state.opt_state


def trained(trainer, made, data, objective, *, epochs: int, size: int | None = 53, tiers=True):
    """Train, and compare with `step` and with a loop written by hand.

    Args:
        trainer: Of the model.
        made: The model, or `(model, model_state)`.
        data: As `fit` takes it.
        objective: The loss, as `loop_by_hand` takes it.
        epochs: To train. The comparisons are over the first few steps.
        size: Examples in a batch.
        tiers: Whether to compare with `step`, and with a run in chunks of one step.

    Returns:
        The state and the history of the run, in float32.
    """
    start = started(trainer, made)
    with for_bits() if tiers else contextlib.nullcontext():
        state, history = trainer.fit(start, data, epochs=epochs, batch_size=size)
        if tiers:
            compare_tiers(trainer, start, data, history, size=size)
    compare_with_a_loop_by_hand(trainer, made, data, objective, epochs=few(data, size), size=size)
    return state, history


def few(data, size: int | None) -> int:
    """How many epochs make six steps or more."""
    examples = len(jax.tree.leaves(data)[0])
    return math.ceil(6 / math.ceil(examples / (size or examples)))


def compare_tiers(trainer, start, data, history, *, size: int | None):
    """Compare a run with `step`, and with a run in chunks of one step, bit for bit."""
    epochs = few(data, size)
    by_steps, measured = stepped(trainer, start, batches_of(data, size, epochs))
    with limits(**ONE_STEP):
        in_chunks, _ = trainer.fit(start, data, epochs=epochs, batch_size=size)
    assert_same_bits(changing(by_steps), changing(in_chunks))
    for name, values in measured.items():
        np.testing.assert_array_equal(history.steps[name][: len(values)], values)


def started(trainer, made):
    """The state that a model starts from, or a model and its state."""
    model, model_state = made if isinstance(made, tuple) else (made, None)
    return trainer.init(model, model_state=model_state, key=KEY)


def compare_with_a_loop_by_hand(trainer, made, data, objective, *, epochs, size):
    """Compare a run in float64 with the same steps by hand."""
    with jax.enable_x64(True):
        data, start = as_float64(data), started(trainer, as_float64(made))
        batches = batches_of(data, size, epochs)
        if compares_products:
            assert_turned_products_agree(trainer, start, next(batches_of(data, size, 1)))
        state, history = trainer.fit(start, data, epochs=epochs, batch_size=size)
        expected = loop_by_hand(
            objective,
            trainer.optimizer,
            start.model,
            batches,
            model_state=start.model_state,
            trainable=trainer.trainable,
        )
        assert_float64((state.model, history.steps["loss"]))
        assert len(numbers(expected.model)) == len(numbers(start.model))
        assert_close(
            changing(state), (expected.model, expected.model_state, expected.opt_states[-1])
        )
        for name, values in expected.steps.items():
            np.testing.assert_allclose(history.steps[name], values, rtol=1e-10, atol=1e-12)


def fell(history, to):
    """Whether the loss fell to such a part of what it was."""
    of_epochs = history.epochs["loss"]
    return of_epochs[-1] < to * of_epochs[0]


# Batches of 53 are two an epoch. A smaller last batch, which is another program to compile, has
# tests of its own.
@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(106, 3)).astype(np.float32)
    return x, np.sin(x.sum(axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def digits():
    """Images of digits and their labels, and some that are held out."""
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    x, held_x, y, held_y = train_test_split(
        x, y.astype(np.int32), test_size=0.2, random_state=0, stratify=y
    )
    return (x, y), (held_x, held_y)


@filled
def dropped_out():
    k1, k2 = jax.random.split(jax.random.key(1))
    return eqx.nn.Sequential(
        [
            eqx.nn.Linear(3, 32, key=k1),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.Dropout(0.3),
            eqx.nn.Linear(32, 1, key=k2),
        ]
    )


def test_an_mlp_with_dropout_trains_as_by_hand_and_the_key_decides(data):
    trainer = vernal.Trainer(momentum(), losses.MeanSquaredError())
    _, history = trained(trainer, dropped_out, data, mean_of(squared_error), epochs=40)
    assert fell(history, 0.7)
    start = trainer.init(dropped_out, key=KEY)
    # In the same order: what may differ is what is dropped out.
    run = lambda s: trainer.fit(s, data, epochs=1, batch_size=53, shuffle=False)[1].steps["loss"]
    other = trainer.init(dropped_out, key=jax.random.key(8))
    np.testing.assert_array_equal(run(start), run(start))
    assert (run(start) != run(other)).all()


def test_dropout_is_off_in_evaluate_and_predict(data):
    x, y = data
    trainer = vernal.Trainer(optax.adam(1e-2), losses.MeanSquaredError())
    model = dropped_out
    expected = jax.vmap(eqx.nn.inference_mode(model))(x)
    np.testing.assert_allclose(trainer.predict(model, x), expected, rtol=1e-5, atol=1e-6)
    loss = trainer.evaluate(model, data, batch_size=10)["loss"]
    assert loss == pytest.approx(float(np.mean((expected - y) ** 2)), rel=1e-5)


class CNN(eqx.Module):
    convolutions: list[eqx.nn.Conv2d]
    norms: list[eqx.nn.BatchNorm]
    pool: eqx.nn.MaxPool2d
    last: eqx.nn.Linear

    def __init__(self, *channels, key):
        *keys, last = jax.random.split(key, len(channels) + 1)
        ins = (1, *channels)
        self.convolutions = [
            eqx.nn.Conv2d(i, o, 3, padding=1, key=k)
            for i, o, k in zip(ins, channels, keys, strict=False)
        ]
        self.norms = [
            eqx.nn.BatchNorm(size, "batch", momentum=0.9, mode="batch") for size in channels
        ]
        self.pool = eqx.nn.MaxPool2d(2, 2)
        self.last = eqx.nn.Linear(channels[-1] * (8 // 2 ** len(channels)) ** 2, 10, key=last)

    def __call__(self, x, state, *, key=None):
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x, state = norm(convolution(x), state)
            x = self.pool(jax.nn.relu(x))
        return self.last(x.ravel()), state


def cnn(*channels):
    return eqx.nn.make_with_state(CNN)(*channels, key=jax.random.key(0))


@pytest.fixture(scope="module")
def reader(digits):
    """A trainer, and what it made of 1,408 images: in batches of 64, 22 steps an epoch."""
    images, labels = (leaf[: 22 * 64] for leaf in digits[0])
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-2, 6 * 22))
    measured = {"accuracy": metrics.accuracy}
    trainer = vernal.Trainer(optimizer, losses.CrossEntropy(), metrics=measured)
    state, history = trainer.fit(
        started(trainer, cnn(8, 16)), (images, labels), epochs=6, batch_size=64
    )
    return trainer, state, history


def test_a_cnn_with_batch_norm_reads_held_out_digits(reader, digits):
    trainer, state, history = reader
    assert trainer.evaluate(state, digits[1])["accuracy"] >= 0.95
    assert history.epochs["accuracy"][-1] >= 0.95


@pytest.mark.parametrize(
    ("channels", "size"),
    [((4,), 20), pytest.param((4, 4), None, marks=pytest.mark.long)],
    ids=["ragged batches", "full batch"],
)
def test_convolutions_and_batch_norm_are_the_same_in_each_tier(channels, size, digits):
    data = (digits[0][0][:50], digits[0][1][:50])
    trainer = vernal.Trainer(momentum(), losses.CrossEntropy())
    start = started(trainer, cnn(*channels))
    with for_bits():
        _, history = trainer.fit(start, data, epochs=6, batch_size=size)
        compare_tiers(trainer, start, data, history, size=size)


def test_convolutions_and_batch_norm_are_those_of_a_loop_by_hand(digits):
    data = (digits[0][0][:40], digits[0][1][:40])
    # Not Adam: a bias before a batch norm has a gradient of 0, and Adam would scale its rounding.
    trainer = vernal.Trainer(momentum(), losses.CrossEntropy())
    objective = mean_of(cross_entropy)
    compare_with_a_loop_by_hand(trainer, cnn(4), data, objective, epochs=2, size=20)


def test_measuring_uses_batch_norms_running_statistics_and_leaves_them_alone(reader, digits):
    (trainer, state, _), (x, y) = reader, digits[1]
    before = [np.array(leaf) for leaf in numbers(state.model_state)]
    assert not np.array_equal(before[1], numbers(cnn(8, 16)[1])[1])
    model = eqx.nn.inference_mode(state.model)
    outputs = jax.vmap(model, in_axes=(0, None), out_axes=(0, None), axis_name="batch")
    clone = jax.tree.map(lambda leaf: leaf, state.model_state)
    expected = jax.jit(lambda x: outputs(x, clone)[0])(x)
    np.testing.assert_allclose(trainer.predict(state, x), expected, rtol=1e-4, atol=1e-4)
    result = trainer.evaluate(state, (x, y))
    assert result["loss"] == pytest.approx(float(cross_entropy(expected, y).mean()), rel=1e-4)
    assert_same_bits(before, state.model_state)


def test_convolutions_measure_and_predict_the_same_in_batches(reader, digits):
    """Of 360 images, in batches of 100 and one of 60."""
    (trainer, state, _), (x, y) = reader, digits[1]
    whole, parts = (trainer.evaluate(state, (x, y), batch_size=size) for size in (None, 100))
    assert parts == pytest.approx(whole, rel=1e-4)
    predictions = [trainer.predict(state, x, batch_size=size) for size in (None, 100)]
    assert predictions[0].shape == (360, 10)
    np.testing.assert_allclose(*predictions, rtol=1e-4, atol=1e-3)


def test_convolutions_that_overflow_end_before_that_step(digits):
    trainer = vernal.Trainer(optax.sgd(1e30), losses.CrossEntropy())
    start = started(trainer, cnn(4))
    data = (digits[0][0][:80], digits[0][1][:80])
    state, made = start, []
    for batch in batches_of(data, 40, 3):
        new, info = trainer.step(state, batch)
        if not all(np.isfinite(leaf).all() for leaf in numbers((info, changing(new)))):
            break
        state = new
        made.append(info["loss"])
    with pytest.raises(vernal.NonFiniteError) as raised:
        trainer.fit(start, data, epochs=3, batch_size=40)
    error = raised.value
    assert error.update == len(made) < 6
    assert_same_bits(error.history.steps["loss"], np.array(made))
    assert_same_bits(changing(error.state), changing(state))


class Recurrent(eqx.Module):
    cell: eqx.nn.GRUCell
    last: eqx.nn.Linear

    def __init__(self, key):
        cell, last = jax.random.split(key)
        self.cell = eqx.nn.GRUCell(2, 16, key=cell)
        self.last = eqx.nn.Linear(16, 1, key=last)

    def __call__(self, sequence, *, key=None):
        forward = lambda hidden, x: (self.cell(x, hidden), None)
        hidden, _ = jax.lax.scan(forward, jnp.zeros(16), sequence)
        return self.last(hidden)


def test_a_gru_trains_as_by_hand():
    x = np.random.default_rng(0).normal(size=(100, 12, 2)).astype(np.float32)
    y = (x[..., 0].sum(axis=1) > 0).astype(np.float32)[:, None]
    trainer = vernal.Trainer(
        momentum(), losses.BinaryCrossEntropy(), metrics={"accuracy": metrics.accuracy}
    )
    objective = mean_of(optax.losses.sigmoid_binary_cross_entropy)
    model = filled(lambda: Recurrent(jax.random.key(1)))
    _, history = trained(trainer, model, (x, y), objective, epochs=40, size=25)
    assert history.epochs["accuracy"][-1] > 0.9


class Block(eqx.Module):
    """A causal transformer of one block."""

    token: eqx.nn.Embedding
    place: eqx.nn.Embedding
    norms: list[eqx.nn.LayerNorm]
    attention: eqx.nn.MultiheadAttention
    mlp: eqx.nn.MLP
    last: eqx.nn.Linear

    def __init__(self, tokens, length, width, key):
        keys = jax.random.split(key, 5)
        self.token = eqx.nn.Embedding(tokens, width, key=keys[0])
        self.place = eqx.nn.Embedding(length, width, key=keys[1])
        self.norms = [eqx.nn.LayerNorm(width) for _ in range(2)]
        self.attention = eqx.nn.MultiheadAttention(2, width, key=keys[2])
        self.mlp = eqx.nn.MLP(width, width, 2 * width, 1, jax.nn.gelu, key=keys[3])
        self.last = eqx.nn.Linear(width, tokens, key=keys[4])

    def __call__(self, tokens, *, key=None):
        first, second = (jax.vmap(norm) for norm in self.norms)
        places = jnp.arange(len(tokens))
        x = jax.vmap(self.token)(tokens) + jax.vmap(self.place)(places)
        seen = places[:, None] >= places[None, :]
        normed = first(x)
        x = x + self.attention(normed, normed, normed, mask=seen)
        return jax.vmap(self.last)(x + jax.vmap(self.mlp)(second(x)))


@may_compare_tiers
def test_a_transformer_block_learns_to_label_a_sequence_as_by_hand(tiers):
    tokens = np.random.default_rng(0).integers(0, 6, size=(100, 9)).astype(np.int32)
    data = tokens, np.roll(tokens, 1, axis=1) * (np.arange(9, dtype=np.int32) > 0)  # the one before
    trainer = vernal.Trainer(
        momentum(), losses.CrossEntropy(), metrics={"accuracy": metrics.accuracy}
    )
    model = filled(lambda: Block(6, 9, 16, key=jax.random.key(1)))
    objective = mean_of(cross_entropy)
    _, history = trained(trainer, model, data, objective, epochs=60, size=25, tiers=tiers)
    assert history.epochs["accuracy"][-1] > 0.95


# Its parts are in short tests: batches of one array with a key, and a loss of one's own.
@pytest.mark.long
def test_a_denoising_autoencoder_trains_as_by_hand(digits):
    images = digits[0][0][:100].reshape(-1, 64)

    def make():
        encoder, decoder = jax.random.split(jax.random.key(1))
        return eqx.nn.Sequential(
            [
                eqx.nn.Linear(64, 16, key=encoder),
                eqx.nn.Lambda(jnp.tanh),
                eqx.nn.Linear(16, 64, key=decoder),
                eqx.nn.Lambda(jax.nn.sigmoid),
            ]
        )

    def reconstruction(model, images, key):
        noisy = images + 0.1 * jax.random.normal(key, images.shape, images.dtype)
        return jnp.mean((jax.vmap(model)(noisy) - images) ** 2)

    trainer = vernal.Trainer(optax.adam(3e-3), reconstruction)
    state, history = trained(trainer, filled(make), images, own(reconstruction), epochs=50, size=25)
    assert fell(history, 0.4)
    assert trainer.predict(state, images).shape == images.shape


@may_compare_tiers
def test_a_network_solves_a_differential_equation_as_by_hand(tiers):
    def residuals(u, t, key):
        """Of u'' = -u, u(0) = 0, u'(0) = 1: the sine."""
        slope = jax.grad(u)
        inside = jax.vmap(jax.grad(slope))(t) + jax.vmap(u)(t)
        return jnp.mean(inside**2) + 10 * (u(0.0) ** 2 + (slope(0.0) - 1) ** 2)

    t = np.linspace(0, np.pi, 32, dtype=np.float32)
    model = filled(lambda: eqx.nn.MLP("scalar", "scalar", 32, 1, jnp.tanh, key=KEY), seed=4)
    trainer = vernal.Trainer(optax.adam(optax.cosine_decay_schedule(1e-2, 2000)), residuals)
    state, _ = trained(trainer, model, t, own(residuals), epochs=2000, size=None, tiers=tiers)
    np.testing.assert_allclose(trainer.predict(state, t), np.sin(t), atol=1e-2)


@may_compare_tiers
def test_a_fine_tune_takes_no_work_no_memory_and_no_decay_for_frozen_layers(data, tiers):
    model = filled(lambda: eqx.nn.MLP(3, 1, 16, 3, key=KEY))
    last = eqx.tree_at(lambda m: m.layers[-1], jax.tree.map(lambda _: False, model), True)
    optimizer = optax.adamw(1e-2, weight_decay=0.1)
    trainer = vernal.Trainer(optimizer, losses.MeanSquaredError(), trainable=last)
    objective = mean_of(squared_error)
    state, history = trained(trainer, model, data, objective, epochs=25, tiers=tiers)
    assert fell(history, 0.9)
    assert_same_bits(model.layers[:-1], state.model.layers[:-1])
    assert not np.array_equal(model.layers[-1].weight, state.model.layers[-1].weight)
    # Adam keeps two numbers for each that is trained, and one for all.
    assert sum(leaf.size for leaf in numbers(state.opt_state)) == 2 * (16 + 1) + 1

    whole = vernal.Trainer(optimizer, losses.MeanSquaredError())
    products = lambda t: str(vernal.update_jaxpr(t, model, data)).count("dot_general[")
    # Forward one a layer; backward one for each weight, and one for each layer's input but x.
    assert products(whole) == 4 + 4 + 3
    assert products(trainer) == 4 + 1


# A loss of one's own with metrics is in a short test: that of a moving average.
@pytest.mark.long
def test_a_contrastive_loss_over_pairs_trains_as_by_hand():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(100, 4))
    seen = lambda: (hidden @ rng.normal(size=(4, 6))).astype(np.float32)
    pairs = {"one": seen(), "other": seen()}
    model = filled(lambda: {name: eqx.nn.MLP(6, 4, 32, 1, key=KEY) for name in pairs})

    def info_nce(model, pairs, key):
        unit = lambda v: v / jnp.linalg.norm(v)
        one, other = (jax.vmap(lambda x, n=n: unit(model[n](x)))(pairs[n]) for n in sorted(pairs))
        logits = one @ other.T / 0.2
        labels = jnp.arange(len(logits))
        accuracy = jnp.mean(jnp.argmax(logits, axis=1) == labels)
        return jnp.mean(cross_entropy(logits, labels)), {"accuracy": accuracy}

    trainer = vernal.Trainer(momentum(), info_nce)
    state, history = trained(trainer, model, pairs, own(info_nce), epochs=15, size=20)
    assert history.epochs["accuracy"][-1] > 0.8 > history.epochs["accuracy"][0]
    value, measured = eqx.filter_jit(info_nce)(state.model, pairs, KEY)
    expected = {"loss": float(value), "accuracy": float(measured["accuracy"])}
    assert trainer.evaluate(state, pairs) == pytest.approx(expected, rel=1e-5)


@may_compare_tiers
def test_an_ensemble_trains_as_by_hand_and_each_member_as_alone(data, tiers):
    models = [filled(lambda: eqx.nn.MLP(3, 1, 16, 1, key=KEY), seed=i) for i in range(3)]
    as_one = lambda *leaves: np.stack(leaves) if eqx.is_array(leaves[0]) else leaves[0]

    def error(member, batch, key):
        x, y = batch
        return jnp.mean((jax.vmap(member)(x) - y) ** 2)

    def of_members(members, batch, key):
        each = eqx.filter_vmap(error, in_axes=(eqx.if_array(0), None, None))
        return jnp.sum(each(members, batch, key))

    trainer = vernal.Trainer(ADAM, of_members)
    members = jax.tree.map(as_one, *models)
    state, history = trained(trainer, members, data, own(of_members), epochs=25, tiers=tiers)
    alone, of_losses = vernal.Trainer(ADAM, error), []
    for i, model in enumerate(models):
        member = jax.tree.map(
            lambda leaf, i=i: leaf[i] if eqx.is_array(leaf) else leaf, state.model
        )
        one, of_one = alone.fit(alone.init(model, key=KEY), data, epochs=25, batch_size=53)
        of_losses.append(of_one.steps["loss"])
        # Not to the bit: the products of all members are one, which rounds in another way.
        assert_close(member, one.model, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(history.steps["loss"], np.sum(of_losses, axis=0), rtol=1e-4)


class Tied(eqx.Module):
    """Says which token follows: one table embeds tokens and reads them off again."""

    shared: eqx.nn.Shared
    turn: eqx.nn.Linear

    def __init__(self, key):
        first, second, third = jax.random.split(key, 3)
        pair = eqx.nn.Embedding(8, 6, key=first), eqx.nn.Linear(6, 8, use_bias=False, key=second)
        self.shared = eqx.nn.Shared(pair, lambda pair: pair[1].weight, lambda pair: pair[0].weight)
        self.turn = eqx.nn.Linear(6, 6, key=third)

    def __call__(self, token, *, key=None):
        embedding, linear = self.shared()
        return linear(jnp.tanh(self.turn(embedding(token))))


@may_compare_tiers
def test_tied_weights_stay_tied_and_train_as_one_table_by_hand(tiers):
    tokens = np.random.default_rng(0).integers(0, 8, size=100).astype(np.int32)
    data = tokens, (tokens + 1) % 8
    trainer = vernal.Trainer(momentum(), losses.CrossEntropy())
    model, objective = filled(lambda: Tied(jax.random.key(1))), mean_of(cross_entropy)
    state, history = trained(trainer, model, data, objective, epochs=40, size=25, tiers=tiers)
    assert fell(history, 0.5)
    embedding, linear = state.model.shared()
    assert embedding.weight is linear.weight

    def with_a_table(params, batch, key, _):
        table, weight, bias = params
        x, y = batch
        logits = jax.vmap(lambda x: table @ jnp.tanh(weight @ table[x] + bias))(x)
        return jnp.mean(cross_entropy(logits, y)), {}, None

    with jax.enable_x64(True):
        start = trainer.init(as_float64(model), key=KEY)
        fitted, _ = trainer.fit(start, data, epochs=2, batch_size=25)
        turn = start.model.turn
        plain = start.model.shared()[0].weight, turn.weight, turn.bias
        learned = loop_by_hand(with_a_table, trainer.optimizer, plain, batches_of(data, 25, 2))
        assert_close((fitted.model.shared()[0].weight, fitted.model.turn), learned.model)


# Batch normalization and a layer of one's own have a state, too, and short tests.
@pytest.mark.long
def test_spectral_norm_trains_as_by_hand_and_bounds_the_model(data):
    keys = jax.random.split(jax.random.key(1), 4)

    def make():
        return eqx.nn.Sequential(
            [
                eqx.nn.SpectralNorm(eqx.nn.Linear(3, 16, key=keys[0]), "weight", key=keys[1]),
                eqx.nn.Lambda(jnp.tanh),
                eqx.nn.SpectralNorm(eqx.nn.Linear(16, 1, key=keys[2]), "weight", key=keys[3]),
            ]
        )

    trainer = vernal.Trainer(momentum(), losses.MeanSquaredError())
    made, objective = filled(eqx.nn.make_with_state(make)), mean_of(squared_error)
    state, history = trained(trainer, made, data, objective, epochs=50)
    assert fell(history, 0.95)
    # No two outputs are further apart than their inputs.
    x = np.random.default_rng(1).normal(size=(50, 3)).astype(np.float32)
    out = np.asarray(trainer.predict(state, x))
    apart = lambda v: np.linalg.norm(v[:, None] - v[None], axis=-1)
    assert (apart(out) <= 1.01 * apart(x)).all()


class Student(eqx.Module):
    encoder: eqx.nn.MLP
    predictor: eqx.nn.Linear

    def __init__(self, key):
        first, second = jax.random.split(key)
        self.encoder = eqx.nn.MLP(3, 4, 16, 1, key=first)
        self.predictor = eqx.nn.Linear(4, 4, key=second)


@may_compare_tiers
def test_a_moving_average_teaches_as_by_hand(data, tiers):
    x, _ = data

    def objective(model, x, key, teacher):
        one, other = x[None] + 0.1 * jax.random.normal(key, (2, *x.shape), x.dtype)
        target = jax.vmap(teacher)(other)
        out = jax.vmap(lambda x: model.predictor(model.encoder(x)))(one)
        loss = jnp.mean((out - jax.lax.stop_gradient(target)) ** 2)
        # A module has leaves that are no arrays, such as its activation.
        moved = lambda old, new: 0.9 * old + 0.1 * new if eqx.is_array(old) else old
        return loss, {"spread": jnp.std(target)}, jax.tree.map(moved, teacher, model.encoder)

    trainer = vernal.Trainer(momentum(), objective)

    student = filled(lambda: Student(jax.random.key(1)))
    made = student, student.encoder
    state, history = trained(trainer, made, x, objective, epochs=50, tiers=tiers)
    assert fell(history, 0.5)
    teacher, encoder = numbers(state.model_state), numbers(state.model.encoder)
    assert not any(np.array_equal(a, b) for a, b in zip(teacher, encoder, strict=True))
    before = [np.array(leaf) for leaf in teacher]
    assert set(trainer.evaluate(state, x)) == {"loss", "spread"}
    assert_same_bits(before, state.model_state)


class Warmed(eqx.Module):
    """A layer of one's own with a state: grows in over the first updates, which it counts."""

    count: eqx.nn.StateIndex
    linear: eqx.nn.Linear

    def __init__(self, key):
        self.count = eqx.nn.StateIndex(jnp.array(0))
        self.linear = eqx.nn.Linear(3, 1, key=key)

    def __call__(self, x, state, *, key=None):
        count = state.get(self.count)
        share = jnp.minimum((count + 1) / 20, 1.0)
        return share * self.linear(x), state.set(self.count, count + 1)


def test_a_layer_of_ones_own_counts_the_updates_and_nothing_else(data):
    model, model_state = eqx.nn.make_with_state(Warmed)(jax.random.key(1))
    trainer = vernal.Trainer(optax.sgd(1e-2), losses.MeanSquaredError())
    start = trainer.init(model, model_state=model_state, key=KEY)
    state, _ = trainer.fit(start, data, epochs=3, batch_size=10)
    trainer.evaluate(state, data, batch_size=10)
    trainer.predict(state, data[0], batch_size=10)
    assert int(state.model_state.get(model.count)) == 33
    more, _ = trainer.fit(state, data, epochs=1, batch_size=10, validation_data=data)
    assert int(more.model_state.get(model.count)) == 44
    made = eqx.nn.make_with_state(Warmed)(jax.random.key(1))
    objective = mean_of(squared_error)
    compare_with_a_loop_by_hand(trainer, made, data, objective, epochs=2, size=53)
    assert int(start.model_state.get(model.count)) == int(model_state.get(model.count)) == 0


def test_arithmetic_in_bfloat16_is_that_of_casts_by_hand(data):
    model = filled(lambda: eqx.nn.MLP(3, 1, 16, 1, key=KEY))
    trainer = vernal.Trainer(momentum(), losses.MeanSquaredError(), compute_dtype=jnp.bfloat16)
    cast = lambda leaf: leaf.astype(jnp.bfloat16) if eqx.is_inexact_array(leaf) else leaf

    def objective(model, batch, key, state):
        x, y = batch
        out = jax.vmap(jax.tree.map(cast, model))(x.astype(jnp.bfloat16))
        assert out.dtype == jnp.bfloat16
        return jnp.mean(squared_error(out.astype(jnp.float32), y)), {}, state

    start = started(trainer, model)
    with for_bits():
        state, history = trainer.fit(start, data, epochs=50, batch_size=53)
        compare_tiers(trainer, start, data, history, size=53)
    assert fell(history, 0.9)
    assert {leaf.dtype for leaf in numbers(state.model)} == {np.dtype(np.float32)}
    # Another program may round bfloat16 at other places.
    expected = loop_by_hand(objective, trainer.optimizer, model, batches_of(data, 53, 5))
    np.testing.assert_allclose(history.steps["loss"][:10], expected.steps["loss"], rtol=2e-2)
    # Measured in float32, of numbers that were not.
    out, full = trainer.predict(state, data[0]), jax.jit(jax.vmap(state.model))(data[0])
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, full, atol=0.05)
    assert not np.allclose(out, full, rtol=1e-4)
