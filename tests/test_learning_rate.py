"""The range test is a run of ordinary steps, and what it suggests trains well."""

import itertools
import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import pytest
from helpers import few_optimizations

import vernal
from vernal import ArgumentError, DataError, Trainer, find_learning_rate, losses, nn

KEY = jax.random.key(3)
MSE = losses.MeanSquaredError()
SHOWN = optax.inject_hyperparams
N = 106  # of which no size of batch below is a divisor
RNG = np.random.default_rng(0)
X = RNG.uniform(-3, 3, (N, 2)).astype(np.float32)
Y = (np.sin(X[:, :1]) * X[:, 1:] + RNG.normal(scale=0.1, size=(N, 1))).astype(np.float32)
DATA = (X, Y)
FIND: Any = find_learning_rate  # of what a type checker would not let through


def mlp(seed=0):
    return nn.MLP(2, 1, 16, 1, key=jax.random.key(seed))


def adam():
    """An optimizer of its own, for which nothing is compiled."""
    return SHOWN(optax.adam)(learning_rate=1e-3)


def trainer_of(optimizer, loss: Any = MSE, **options):
    return Trainer(optimizer, loss, **options)


ADAM = adam()
SGD = SHOWN(optax.sgd)(learning_rate=0.1)
TRAINER = trainer_of(ADAM, on_nonfinite="ignore")


def full_batches(data, size, first=0, key=None):
    """Epoch after epoch, without the smaller last batches."""
    for epoch in itertools.count(first):
        for batch in vernal.batches(data, size, epoch=epoch, key=key):
            if len(jax.tree.leaves(batch)[0]) == (size or N):
                yield batch


def inner(opt_state):
    """Where in an optimizer's state `inject_hyperparams` keeps its rates."""
    is_one = lambda node: hasattr(node, "hyperparams")
    [found] = [node for node in jax.tree.leaves(opt_state, is_leaf=is_one) if is_one(node)]
    return found


def by_steps(trainer, state, batches, rates):
    """The losses of one update after another."""
    found = []
    for rate, batch in zip(rates, batches, strict=False):
        at = lambda s: inner(s.opt_state).hyperparams["learning_rate"]
        state, info = trainer.step(eqx.tree_at(at, state, jnp.asarray(rate)), batch)
        found.append(info["loss"])
    return np.array(found)


def by_hand(optimizer, model, batches, rates):
    """The losses of a loop that owes nothing to Vernal but the batches."""

    @eqx.filter_jit
    def update(model, opt_state, x, y):
        objective = lambda model: jnp.mean((jax.vmap(model)(x) - y) ** 2)
        loss, grads = eqx.filter_value_and_grad(objective)(model)
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return eqx.apply_updates(model, updates), opt_state, loss

    opt_state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
    found = []
    for rate, (x, y) in zip(rates, batches, strict=False):
        inner(opt_state).hyperparams["learning_rate"] = jnp.asarray(rate)
        model, opt_state, loss = update(model, opt_state, x, y)
        found.append(loss)
    return np.array(found)


def average(values, updates):
    """The exponential average, and where it is first 4 times its lowest."""
    memory, total, found = 1 - 10 / updates, 0.0, []
    for i, value in enumerate(values):
        total = memory * total + (1 - memory) * value
        found.append(total / (1 - memory ** (i + 1)))
    above = [value > 4 * min(found[: i + 1]) for i, value in enumerate(found)]
    return np.array(found), above.index(True) if True in above else None


# Of no other test: what is compiled for them with few optimizations serves no comparison of bits.
OPTIMIZERS = {
    "sgd": SHOWN(optax.sgd)(learning_rate=1e-3, momentum=0.9),
    "adam": adam(),
    "a chain": optax.chain(optax.clip_by_global_norm(1.0), adam(), optax.scale(0.5)),
    "several steps": optax.MultiSteps(adam(), every_k_schedule=2),
    "a whole number": SHOWN(optax.sgd)(learning_rate=1),
    "apply_if_finite": optax.apply_if_finite(adam(), 3),
}


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *((name, 32) for name in OPTIMIZERS if name not in ("sgd", "adam")),
        ("adam", None),
        *(  # "a whole number" is of SGD, too, and the others of Adam
            pytest.param(*each, marks=pytest.mark.long)
            for each in [("sgd", 32), ("adam", 32), ("sgd", None)]
        ),
    ],
)
def test_it_is_a_loop_by_hand_that_sets_the_rate(name, size):
    optimizer, model = OPTIMIZERS[name], mlp()
    rates = np.geomspace(1e-7, 10, 60).astype(np.float32)
    with few_optimizations():
        found = find_learning_rate(trainer_of(optimizer), model, DATA, batch_size=size, updates=60)
        expected = by_hand(optimizer, model, full_batches(DATA, size), rates)
    smoothed, end = average(expected, 60)
    made = 60 if end is None else end + 1
    np.testing.assert_array_equal(found.rates, rates[:made])
    # Above the rate that diverges, roundings grow as the loss does.
    np.testing.assert_allclose(found.losses, expected[:made], rtol=1e-3)
    np.testing.assert_allclose(found.smoothed, smoothed[:made], rtol=1e-3)


def test_it_ends_where_the_average_is_4_times_its_lowest():
    found = find_learning_rate(TRAINER, mlp(), DATA, batch_size=32, highest=100.0)
    expected, end = average(found.losses.astype(float), 100)
    assert end == len(found.rates) - 1 < 99
    assert found.losses.shape == found.smoothed.shape == found.rates.shape
    np.testing.assert_allclose(found.smoothed, expected, rtol=1e-5)


def wall(model, batch, key):
    """As the mean squared error, but not finite where the weights are large."""
    x, y = batch
    mean = jnp.mean((jax.vmap(model)(x) - y) ** 2)
    return jnp.where(jnp.abs(model.layers[0].weight).max() > 2.0, jnp.nan, mean)


def test_it_ends_before_a_loss_that_is_not_finite():
    trainer, model = trainer_of(ADAM, wall), mlp()
    found = find_learning_rate(trainer, model, DATA)
    n = len(found.rates)
    assert 40 < n < 99 and np.isfinite(found.losses).all() and np.isfinite(found.smoothed).all()
    rates = np.geomspace(1e-7, 10, 100).astype(np.float32)
    quiet = trainer_of(trainer.optimizer, wall, on_nonfinite="ignore")
    expected = by_steps(quiet, trainer.init(model), itertools.repeat(DATA), rates[: n + 1])
    np.testing.assert_array_equal(found.losses, expected[:-1])
    assert np.isnan(expected[-1])


def test_a_loss_that_is_never_finite_is_told():
    never = lambda model, batch, key: model.layers[0].weight.sum() * jnp.nan
    with few_optimizations():
        found = find_learning_rate(trainer_of(ADAM, never), mlp(), DATA)
    assert found.suggestion is None
    assert len(found.rates) == len(found.losses) == len(found.smoothed) == 0
    assert repr(found) == "LearningRates(no suggestion: the first loss is not finite)"
    found.plot()
    plt.close("all")


def test_a_negative_loss_does_not_end_it():
    """Four times a lowest of −20 would be less than any loss."""
    shifted = lambda model, batch, key: MSE(model, batch, key) - 20.0
    found = find_learning_rate(trainer_of(ADAM, shifted), mlp(), DATA)
    plain = find_learning_rate(TRAINER, mlp(), DATA)
    assert len(found.rates) >= len(plain.rates) > 50
    np.testing.assert_allclose(found.losses[:50] + 20, plain.losses[:50], rtol=1e-3)


@pytest.mark.parametrize("updates", [10, 100, 250])
def test_the_suggestion_is_where_the_average_falls_most(updates):
    found = find_learning_rate(trainer_of(SGD), mlp(), DATA, batch_size=32, updates=updates)
    tenth, lowest = updates // 10, np.argmin(found.smoothed[updates // 10 :]) + updates // 10
    falls = {
        i: found.smoothed[i] - found.smoothed[i + tenth]
        for i in range(tenth, len(found.smoothed) - tenth)
        if i + tenth <= lowest
    }
    assert found.suggestion == found.rates[max(falls, key=lambda i: falls[i]) + tenth // 2]
    assert repr(found) == (
        f"LearningRates({len(found.rates)} rates 1e-07 → {found.rates[-1]:.2g}, "
        f"suggestion {found.suggestion:.2g})"
    )


def test_a_loss_that_never_falls_has_no_suggestion():
    climbs = optax.chain(SHOWN(optax.sgd)(learning_rate=0.1), optax.scale(-1.0))
    with few_optimizations():
        found = find_learning_rate(trainer_of(climbs), mlp(), DATA)
    assert len(found.rates) > 20 and found.suggestion is None
    rates = f"{len(found.rates)} rates 1e-07 → {found.rates[-1]:.2g}"
    assert repr(found) == f"LearningRates({rates}, no suggestion: the loss never falls)"


# ----- the same steps as a run's


@pytest.mark.parametrize("size", [pytest.param(None, marks=pytest.mark.long), 32])
def test_the_losses_are_those_of_a_fit_of_the_same_rates(size):
    """To the bit: a schedule sets in `fit` the rates that the range test sets by hand."""
    rates = np.geomspace(1e-7, 1e-2, 30).astype(np.float32)
    scheduled = SHOWN(optax.adam)(learning_rate=lambda count: jnp.asarray(rates)[count])
    data = DATA if size is None else tuple(array[:96] for array in DATA)
    run = trainer_of(scheduled).init(mlp(), key=KEY)
    _, history = trainer_of(scheduled).fit(run, data, epochs=30, batch_size=size, progress=False)
    start = TRAINER.init(mlp(), key=KEY)
    bounds: Any = {"lowest": 1e-7, "highest": 1e-2, "updates": 30}
    found = find_learning_rate(TRAINER, start, data, batch_size=size, **bounds)
    assert len(found.losses) == 30
    np.testing.assert_array_equal(history.steps["learning_rate"][:30], found.rates)
    np.testing.assert_array_equal(history.steps["loss"][:30], found.losses)


def test_a_second_call_compiles_nothing(compiled):
    trainer = TRAINER
    state, other = trainer.init(mlp()), trainer.init(mlp(1), key=KEY)
    for size in (None, 32):
        first = find_learning_rate(trainer, state, DATA, batch_size=size)
        compiled.clear()
        with vernal.no_recompilation():
            bounds: Any = {"lowest": 1e-5, "highest": 1e-1}
            second = find_learning_rate(trainer, other, (X + 1, Y), batch_size=size, **bounds)
            find_learning_rate(trainer, mlp(2), DATA, batch_size=size)
        assert compiled == []
        assert (second.rates[0], second.rates[-1]) == (np.float32(1e-5), np.float32(1e-1))
        assert not np.array_equal(first.losses, second.losses)


# ----- the suggestion


def line(seed):
    """Linear regression, and the rate above which gradient descent diverges.

    All x are as large, so that of each batch the loss is as steep: x² = 4 and the slope's second
    derivative 8. The noise keeps gradient descent from coming to rest before it diverges.
    """
    rng = np.random.default_rng(seed)
    x = rng.choice([-2, 2], (200, 1)).astype(np.float32)
    y = 5 * x + rng.normal(scale=0.5, size=x.shape).astype(np.float32)
    return (x, y), 2 / 8


def trained(trainer, model, data, rate, **options):
    """The loss after training at a rate."""
    state = trainer.init(model)
    state = eqx.tree_at(lambda s: inner(s.opt_state).hyperparams["learning_rate"], state, rate)
    state, _ = trainer.fit(state, data, progress=False, **options)
    loss = trainer.evaluate(state, data)["loss"]
    return loss if np.isfinite(loss) else np.inf


def assert_trains_well(trainer, model, data, suggestion, **options):
    rates = [jnp.float32(suggestion * factor) for factor in (1, 0.01, 100)]
    at, below, above = (trained(trainer, model, data, rate, **options) for rate in rates)
    assert at < 0.7 * below and at < 0.7 * above


@pytest.mark.parametrize("seed", range(2))
def test_gradient_descent_diverges_above_2_over_the_largest_eigenvalue(seed):
    data, limit = line(seed)
    trainer = trainer_of(SGD, on_nonfinite="ignore")
    model = nn.Linear(1, 1, use_bias=False, key=jax.random.key(seed))
    bounds: Any = {"lowest": limit / 1e3, "highest": limit * 10, "updates": 200}
    found = find_learning_rate(trainer, model, data, batch_size=20, **bounds)
    assert limit < found.rates[-1] < 2 * limit
    assert found.suggestion is not None and limit / 100 < found.suggestion < limit
    assert_trains_well(trainer, model, data, found.suggestion, epochs=2, batch_size=20)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("size", [None, 32])
def test_a_network_trains_well_at_the_suggestion(size, seed):
    trainer = TRAINER
    found = find_learning_rate(trainer, mlp(seed), DATA, batch_size=size)
    assert found.suggestion is not None
    options: Any = {"epochs": 200 if size is None else 40, "batch_size": size}
    assert_trains_well(trainer, mlp(seed), DATA, found.suggestion, **options)


# ----- models and data


@pytest.mark.parametrize("of", ["a model", "a state"])
def test_the_callers_model_state_and_data_stay_as_they_are(of):
    trainer = TRAINER
    model = mlp() if of == "a model" else trainer.fit(mlp(), DATA, epochs=3, batch_size=32)[0]
    arrays = [leaf for leaf in jax.tree.leaves((model, DATA)) if eqx.is_array(leaf)]
    is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    plain = lambda leaf: np.array(jax.random.key_data(leaf) if is_key(leaf) else leaf)
    values = lambda: [plain(leaf) for leaf in arrays]
    before = values()
    first = find_learning_rate(trainer, model, DATA, batch_size=32)
    second = find_learning_rate(trainer, model, DATA, batch_size=32)
    for old, new in zip(before, values(), strict=True):
        np.testing.assert_array_equal(old, new)
    np.testing.assert_array_equal(first.losses, second.losses)


class Normed(eqx.Module):
    """A network with batch normalisation and dropout."""

    layers: list
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout

    def __init__(self, key):
        keys = jax.random.split(key)
        self.layers = [nn.Linear(2, 8, key=keys[0]), nn.Linear(8, 1, key=keys[1])]
        self.norm = eqx.nn.BatchNorm(8, "batch", mode="batch")
        self.dropout = eqx.nn.Dropout(0.3)

    def __call__(self, x, state, *, key):
        x, state = self.norm(jax.nn.relu(self.layers[0](x)), state)
        return self.layers[1](self.dropout(x, key=key)), state


class Convolved(eqx.Module):
    """A convolution over six places of one channel."""

    layers: list

    def __init__(self, key):
        keys = jax.random.split(key)
        self.layers = [eqx.nn.Conv1d(1, 4, 3, key=keys[0]), nn.Linear(16, 1, key=keys[1])]

    def __call__(self, x):
        x = jnp.outer(x, jnp.array([1.0, 2.0, 3.0])).reshape(1, 6)
        return self.layers[1](jax.nn.relu(self.layers[0](x)).ravel())


def own(model, batch, key):
    """A loss of one's own, of a dict."""
    keys = jax.random.split(key, len(batch["in"]))
    noise = jax.vmap(lambda key: jax.random.normal(key, (2,)))(keys)
    mean = jnp.mean((jax.vmap(model)(batch["in"] + 0.1 * noise) - batch["out"]) ** 2)
    return mean, {"rmse": jnp.sqrt(mean)}


def normed(trainer):
    model, model_state = eqx.nn.make_with_state(Normed)(jax.random.key(1))
    return trainer.init(model, model_state=model_state, key=KEY)


FIRST = eqx.tree_at(lambda m: m.layers[0], jax.tree.map(lambda _: False, mlp()), True)
WEIGHTED = (X, Y, np.linspace(0, 1, N, dtype=np.float32))
KINDS = {
    "BatchNorm and dropout": (TRAINER, normed, DATA),
    "a convolution": (TRAINER, lambda t: t.init(Convolved(KEY), key=KEY), DATA),
    "a loss of one's own": (trainer_of(ADAM, own), None, {"in": X, "out": Y}),
    "metrics": (trainer_of(ADAM, metrics={"r2": vernal.metrics.R2()}), None, WEIGHTED),
    "lower precision": (trainer_of(ADAM, compute_dtype=jnp.bfloat16), None, DATA),
    "one layer": (trainer_of(ADAM, trainable=FIRST), None, DATA),
}


ALIKE = {"a convolution", "metrics", "lower precision"}  # tried with `--long`


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name in ALIKE)) for name in KINDS]
)
def test_any_run_can_be_tested_from_a_state_on(name):
    """Of the same dropout, and the same order of examples, as the run would go on with."""
    trainer, make, data = KINDS[name]
    start = trainer.init(mlp(), key=KEY) if make is None else make(trainer)
    state = eqx.tree_at(lambda s: (s.step, s.data_pass), start, (np.int32(8), np.int32(2)))
    found = find_learning_rate(trainer, state, data, batch_size=32, updates=50)
    assert len(found.rates) > 20
    batches = full_batches(data, 32, 2, KEY)
    expected = by_steps(trainer, state, batches, found.rates)
    np.testing.assert_array_equal(found.losses, expected)


def test_low_precision_of_the_parameters_is_that_of_the_rates():
    half = jax.tree.map(
        lambda leaf: leaf.astype(jnp.bfloat16) if eqx.is_array(leaf) else leaf, mlp()
    )
    found = find_learning_rate(trainer_of(SHOWN(optax.sgd)(learning_rate=0.1)), half, DATA)
    np.testing.assert_array_equal(found.rates, found.rates.astype(jnp.bfloat16))
    assert [array.dtype for array in (found.rates, found.losses, found.smoothed)] == [
        np.float32
    ] * 3
    assert found.suggestion is not None
    found.plot()
    plt.close("all")


class Loader:
    """Batches of 32 in an order that each epoch has for itself, then one of 10."""

    def __init__(self):
        self.epoch = 0

    def __iter__(self):
        self.epoch += 1
        yield from self.batches(self.epoch)

    @staticmethod
    def batches(epoch):
        order = np.random.default_rng(epoch).permutation(N)
        return [(X[rows], Y[rows]) for rows in np.split(order, [32, 64, 96])]


@pytest.mark.parametrize("kind", ["list", "loader"])
def test_a_loaders_batches_are_taken_epoch_after_epoch(kind):
    trainer, loader = TRAINER, Loader()
    data: Any = Loader.batches(1) if kind == "list" else loader
    found = find_learning_rate(trainer, mlp(), data, updates=50)
    passes = -(-len(found.rates) // 3)
    epochs = itertools.repeat(1) if kind == "list" else itertools.count(loader.epoch - passes + 1)
    batches = (batch for epoch in epochs for batch in Loader.batches(epoch)[:3])
    expected = by_steps(trainer, trainer.init(mlp()), batches, found.rates)
    np.testing.assert_array_equal(found.losses, expected)
    assert len(found.rates) > 30


# ----- errors


def test_a_loader_that_is_empty_later_is_refused():
    class Once:
        def __init__(self):
            self.left = [DATA, DATA]

        def __iter__(self):
            if self.left:
                yield self.left.pop()

    with pytest.raises(DataError, match="no batch"):
        find_learning_rate(TRAINER, mlp(), Once())


SCHEDULE = optax.cosine_decay_schedule(1e-2, 100)
LINE = "Try optax.inject_hyperparams(optax.adam)(learning_rate=1e-3)."
HIDDEN = "the optimizer does not show its learning rate, which a range test sets."
SCHEDULED = "the optimizer takes its learning rate from a schedule; a range test sets a number."
LABELS = lambda params: jax.tree.map(lambda leaf: "ab"[leaf.ndim > 1], params)


class Stateless(optax._src.base.StatefulSchedule):  # pyright: ignore
    """A schedule without a state."""

    def init(self):
        return ()

    def update(self, state, **extra_args):
        return state

    def __call__(self, state, **extra_args):
        return 1e-3


@pytest.mark.parametrize(
    ("optimizer", "problem"),
    [
        (optax.adam(1e-3), HIDDEN),
        (optax.adam(SCHEDULE), HIDDEN),
        (optax.MultiSteps(optax.sgd(0.1), 2), HIDDEN),
        (optax.lbfgs(), HIDDEN),  # shows what its line search has found
        (SHOWN(optax.adam, static_args="learning_rate")(1e-3), HIDDEN),
        (SHOWN(optax.adam)(learning_rate=SCHEDULE), SCHEDULED),
        (SHOWN(optax.adam)(learning_rate=Stateless()), SCHEDULED),
        (optax.chain(optax.clip(1.0), SHOWN(optax.adam)(learning_rate=SCHEDULE)), SCHEDULED),
        (optax.MultiSteps(SHOWN(optax.adam)(learning_rate=SCHEDULE), 2), SCHEDULED),
        (
            optax.partition({"a": ADAM, "b": ADAM}, LABELS),
            "the optimizer shows 2 learning rates; a range test sets one.",
        ),
    ],
)
def test_an_optimizer_whose_rate_cannot_be_set_is_refused(optimizer, problem, compiled):
    with few_optimizations():
        state = trainer_of(optimizer).init(mlp())
    for model in (mlp(), state):
        compiled.clear()
        with pytest.raises(ArgumentError) as caught:
            find_learning_rate(trainer_of(optimizer), model, DATA)
        assert str(caught.value) == f"{problem}\n  {LINE}"
        assert compiled == []


def test_the_line_that_fixes_an_optimizer_fixes_it():
    with pytest.raises(ArgumentError) as caught:
        find_learning_rate(trainer_of(optax.adam(1e-3)), mlp(), DATA)
    [code] = re.findall(r"Try (.+)\.$", str(caught.value))
    with few_optimizations():
        found = find_learning_rate(trainer_of(eval(code, {"optax": optax})), mlp(), DATA)
    assert found.suggestion is not None


def test_a_schedule_would_not_heed_what_is_set():
    """Why it is refused: the same loss whatever rate is set."""
    trainer = trainer_of(SHOWN(optax.adam)(learning_rate=SCHEDULE))
    state = trainer.init(mlp())
    low, high = (by_steps(trainer, state, [DATA] * 3, [rate] * 3) for rate in (1e-7, 10.0))
    np.testing.assert_array_equal(low, high)


BOUNDS = "lowest and highest need to be positive numbers, highest the larger; they are {} and {}."


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lowest": 1.0, "highest": 1.0}, BOUNDS.format(1.0, 1.0)),
        ({"lowest": 1.0, "highest": 0.1}, BOUNDS.format(1.0, 0.1)),
        ({"lowest": 0.0}, BOUNDS.format(0.0, 10.0)),
        ({"lowest": -1e-3}, BOUNDS.format(-1e-3, 10.0)),
        ({"highest": np.inf}, BOUNDS.format(1e-7, "inf")),
        ({"highest": np.nan}, BOUNDS.format(1e-7, "nan")),
        ({"lowest": "1e-3"}, BOUNDS.format("'1e-3'", 10.0)),
        ({"lowest": None}, BOUNDS.format(None, 10.0)),
        ({"highest": [1.0]}, BOUNDS.format(1e-7, [1.0])),
        ({"updates": 9}, "updates needs to be a whole number from 10; it is 9."),
        ({"updates": 50.0}, "updates needs to be a whole number from 10; it is 50.0."),
    ],
)
def test_bounds_that_cannot_be_are_refused(options, message):
    with pytest.raises(ArgumentError) as caught:
        FIND(TRAINER, mlp(), DATA, **options)
    line = "" if "updates" in options else "\n  Try lowest=1e-7, highest=10.0."
    assert str(caught.value) == message + line


def test_the_line_that_fixes_bounds_fixes_them():
    with pytest.raises(ArgumentError) as caught:
        find_learning_rate(TRAINER, mlp(), DATA, lowest=20.0)
    [code] = re.findall(r"Try (.+)\.$", str(caught.value))
    fixed = eval(f"dict({code})")
    assert find_learning_rate(TRAINER, mlp(), DATA, **fixed).suggestion is not None


def test_bounds_may_be_any_numbers():
    bounds = {"lowest": np.float32(1e-3), "highest": jnp.float32(1.0)}
    trainer = TRAINER
    assert FIND(trainer, mlp(), DATA, updates=10, **bounds).rates[0] == bounds["lowest"]
    assert FIND(trainer, mlp(), DATA, updates=10, lowest=1, highest=2).rates[0] == 1


@pytest.mark.parametrize(
    ("model", "data", "options"),
    [
        (mlp(), (X, Y[:, 0]), {}),
        pytest.param(mlp(), (X[:, :1], Y), {}, marks=pytest.mark.long),
        (mlp(), [(X[:, :1], Y)], {}),
        (mlp(), (X, Y[:-1]), {}),
        (mlp(), (X * np.nan, Y), {}),
        (mlp(), DATA, {"batch_size": 0}),
        (mlp(), [DATA], {"batch_size": 3}),
        (mlp(), [], {}),
        (nn.MLP, DATA, {}),
        (None, DATA, {}),
    ],
)
def test_all_else_is_checked_as_fit_checks_it(model, data, options, compiled):
    trainer, told = TRAINER, []
    trainer.init(mlp())
    fit = lambda: trainer.fit(model, data, epochs=1, **options)
    for call in (fit, lambda: find_learning_rate(trainer, model, data, **options)):
        compiled.clear()
        with pytest.raises(vernal.VernalError) as caught:
            call()
        told.append((type(caught.value), str(caught.value)))
    assert told[0] == told[1]
    assert compiled == []


# ----- the picture


@pytest.mark.parametrize("axes", ["new", "the caller's"])
def test_the_picture_has_labels_and_the_suggestion(axes):
    found = find_learning_rate(TRAINER, mlp(), DATA, batch_size=32)
    given = None if axes == "new" else plt.subplots()[1]
    ax = found.plot(ax=given)
    assert given is None or ax is given
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("learning rate", "loss")
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    curves = {str(curve.get_label()): np.asarray(curve.get_xydata()).T for curve in ax.lines}
    name = f"suggestion: {found.suggestion:.2g}"
    assert list(curves) == ["loss", "smoothed loss", name]
    np.testing.assert_array_equal(curves["loss"], [found.rates, found.losses])
    np.testing.assert_array_equal(curves["smoothed loss"], [found.rates, found.smoothed])
    assert list(curves[name][0]) == [found.suggestion] * 2
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == list(curves)
    ax.figure.canvas.draw()
    plt.close("all")


def test_the_picture_without_a_suggestion_has_none():
    falling = np.linspace(1, -1, 20)
    found = vernal.LearningRates(np.geomspace(1e-3, 1, 20), falling, falling, None)
    ax = vernal.plot.learning_rates(found)
    assert [curve.get_label() for curve in ax.lines] == ["loss", "smoothed loss"]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "linear")
    plt.close("all")
