"""A run ends before the update after which numbers would not be finite, and loses nothing."""

import functools
import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_same_bits, few_optimizations, filled, numbers

import vernal
from vernal import losses, nn
from vernal._limits import limits
from vernal._training import nonfinite

RNG = np.random.default_rng(0)
X = RNG.normal(size=(53, 4)).astype(np.float32)
Y = X.sum(axis=1, keepdims=True)
DATA = (X, Y)
MSE = losses.MeanSquaredError()
VALUES = (np.nan, np.inf, -np.inf)


@pytest.fixture
def fast():
    """Few optimizations, where no bits are compared. `TRAINER` is not for such tests."""
    with few_optimizations():
        yield


@functools.cache
def mlp():
    return filled(lambda: nn.MLP(4, 1, 8, 1, key=jax.random.key(0)))


def fails(trainer, start, data=DATA, **kwargs):
    with pytest.raises(vernal.NonFiniteError) as caught:
        trainer.fit(start, data, **({"epochs": 1000, "batch_size": 10} | kwargs))
    error: Any = caught.value
    return error


def finite(tree):
    floats = [leaf for leaf in numbers(tree) if np.issubdtype(leaf.dtype, np.floating)]
    return all(np.isfinite(leaf).all() for leaf in floats)


@jax.custom_vjp
def spoil(x, bad):
    """The number itself, with a gradient that is `bad`, unless that is 1."""
    return x


spoil.defvjp(lambda x, bad: (x, bad), lambda bad, grad: (grad * bad, jnp.zeros_like(bad)))


class Spoilt(eqx.Module):
    """A model whose loss or gradient stops being finite at one update, which `count` counts.

    `counter` has a gradient of -1 throughout, so that SGD of rate 1 counts updates with it.
    """

    mlp: nn.MLP
    counter: jax.Array
    at: jax.Array
    value: jax.Array  # which of VALUES
    in_loss: jax.Array  # whether it is the loss: an array, so that one program serves both

    def __call__(self, x):
        now = jax.lax.stop_gradient(self.counter) == self.at
        value = jnp.array(VALUES)[self.value]
        prediction = spoil(self.mlp(x), jnp.where(now & ~self.in_loss, value, 1.0))
        return prediction + jnp.where(now & self.in_loss, value, 0.0)


def counting(model, batch, key):
    return MSE(model, batch, key) - (model.counter - jax.lax.stop_gradient(model.counter))


def spoilt(at, what, value):
    which = next(i for i, v in enumerate(VALUES) if str(v) == str(value))
    flag = jnp.array(what == "loss")
    return Spoilt(mlp(), jnp.array(0.0), jnp.array(at), jnp.array(which), flag)


def by_layer(model):
    labels = jax.tree.map(lambda leaf: "mlp", eqx.filter(model, eqx.is_inexact_array))
    return eqx.tree_at(lambda m: m.counter, labels, "counter")


COUNTING = optax.multi_transform({"mlp": optax.adam(1e-3), "counter": optax.sgd(1.0)}, by_layer)
TRAINER = vernal.Trainer(COUNTING, counting)
TOO_FAST = vernal.Trainer(optax.sgd(50.0), MSE)
SLOW = optax.sgd(1e-3)
# Lion takes the gradient's sign: parameters stay finite, the momentum does not.
LION = optax.multi_transform({"mlp": optax.lion(1e-3), "counter": optax.sgd(1.0)}, by_layer)


BREAKS = [
    *((at, "loss", np.nan) for at in (0, 5, 300)),
    *((at, "gradient", np.nan) for at in (0, 6, 300)),
    *(
        pytest.param(*more, np.nan, marks=pytest.mark.long)
        for more in [(6, "loss"), (5, "gradient")]
    ),
    (1, "loss", np.inf),
    (1, "gradient", -np.inf),
]


@pytest.mark.parametrize(("at", "what", "value"), BREAKS, ids=str)
def test_the_update_is_found_and_not_made(at, what, value):
    """Six batches an epoch, the last of them smaller: update 5 is of the tail."""
    error = fails(TRAINER, spoilt(at, what, value))
    assert (error.update, error.epoch) == (at, at // 6)
    assert int(error.state.step) == at
    assert finite(error.state)
    assert len(error.history.steps["loss"]) == at
    assert np.isfinite(error.history.steps["loss"]).all()
    assert len(error.history.epochs.get("loss", ())) == at // 6
    if what == "gradient":
        assert error.path == "Spoilt.mlp.layers[0].weight"
    # The state is the one that a run of so many updates ends with.
    state = TRAINER.init(spoilt(at, what, value))
    for epoch in range(at // 6 + 1):
        for batch in vernal.batches(DATA, 10, epoch=epoch):
            if state.step < at:
                state, _ = TRAINER.step(state, batch)
    assert_same_bits(error.state.model, state.model)
    assert_same_bits(error.state.opt_state, state.opt_state)
    # Whoever goes on from it meets the same.
    again = fails(TRAINER, error.state)
    assert again.update == at
    assert_same_bits(again.state, error.state)


def test_the_norm_is_that_of_the_last_finite_gradients():
    gradients = eqx.filter_jit(eqx.filter_grad(lambda model, batch: counting(model, batch, None)))
    for at in (1, 6, 40):
        error = fails(TRAINER, spoilt(at, "gradient", np.nan))
        state = TRAINER.init(spoilt(at, "gradient", np.nan))
        made = []
        for epoch in range(at // 6 + 1):
            for batch in vernal.batches(DATA, 10, epoch=epoch):
                made.append((state, batch))
                state, _ = TRAINER.step(state, batch)
        before, batch = made[at - 1]
        grads = gradients(before.model, batch)
        expected = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in numbers(grads)))
        assert error.grad_norm == pytest.approx(expected, rel=1e-5)
        assert f"{error.grad_norm:.3g}" in str(error)
    assert fails(TRAINER, spoilt(0, "gradient", np.nan)).grad_norm is None


# The full batch is that of the optimizer that remembers, too.
@pytest.mark.parametrize(
    "batch_size",
    [
        pytest.param(None, marks=pytest.mark.long),
        10,
        pytest.param(53, marks=pytest.mark.long),
    ],
    ids=["full batch", "ragged", "one batch"],
)
def test_a_learning_rate_that_is_too_large(batch_size, fast):
    error = fails(TOO_FAST, mlp(), batch_size=batch_size)
    assert finite(error.state)
    assert error.history.steps["loss"][-1] > 1e3
    assert np.isfinite(error.grad_norm)
    assert error.path.startswith("MLP.layers[")
    # The update itself makes it so.
    state, batch = error.state, DATA
    if batch_size == 10:
        batches = list(vernal.batches(DATA, 10, epoch=error.epoch))
        batch = batches[int(state.batch)]
    after, info = TOO_FAST.step(state, batch)
    assert not (finite(after) and np.isfinite(info["loss"]))


@pytest.mark.parametrize("looks_on_host", [True, False], ids=["by NumPy", "by the device"])
def test_an_infinite_gradient_that_only_the_optimizer_remembers(looks_on_host, fast):
    trainer = vernal.Trainer(LION, counting)
    with limits(looks_on_host=looks_on_host):
        error = fails(trainer, spoilt(40, "gradient", np.inf), batch_size=None)
    assert error.update == 40
    assert "gradient" in str(error)


@pytest.mark.parametrize("looks_on_host", [True, False], ids=["by NumPy", "by the device"])
def test_arrays_of_every_type_are_looked_at(looks_on_host):
    floats = [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float8_e5m2, jnp.complex64]
    others = [jnp.arange(3), jnp.zeros(3, bool), jax.random.key(0), jnp.zeros(0)]
    arrays = [jnp.array([0, bad], dtype) for bad in VALUES for dtype in floats]
    finite = [jnp.array([0, 1], dtype) for dtype in floats] + others
    with limits(looks_on_host=looks_on_host):
        found = nonfinite.finite_arrays(arrays + finite)
    assert found.tolist() == [False] * len(arrays) + [True] * len(finite)


def test_many_arrays_are_looked_at_without_a_program(compiled):
    arrays = [jnp.full(3, i) for i in range(2_000)] + [jnp.array([1.0, np.inf])]
    compiled.clear()
    assert not nonfinite.finite_arrays(arrays).all()
    assert not compiled


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.contrib.reduce_on_plateau(patience=3),
        pytest.param(optax.sgd(1e-2), marks=pytest.mark.long),  # the mask alone
    ],
    ids=["reduce_on_plateau", "sgd"],
)
def test_what_never_was_finite_is_left_alone(optimizer, fast):
    """A mask of -inf among the parameters, or a best loss of inf in an optimizer's state."""

    class Masked(eqx.Module):
        mlp: nn.MLP
        mask: jax.Array

        def __call__(self, x):
            hidden = jnp.where(self.mask == 0, x, self.mask)
            return self.mlp(jnp.where(jnp.isfinite(hidden), hidden, 0.0))

    model = Masked(mlp(), jnp.array([0.0, -jnp.inf, 0.0, 0.0]))
    trainer = vernal.Trainer(optax.chain(optax.sgd(1e-2), optimizer), MSE)
    state, history = trainer.fit(model, DATA, epochs=60)
    assert len(history.steps["loss"]) == 60
    assert state.model.mask[1] == -np.inf


def test_training_without_trouble_is_the_same_run():
    adam = optax.adam(1e-2)
    run = lambda choice: vernal.Trainer(adam, MSE, on_nonfinite=choice).fit(
        mlp(), DATA, epochs=50, batch_size=10
    )
    (raising, history), (ignoring, same) = run("raise"), run("ignore")
    assert_same_bits(raising, ignoring)
    np.testing.assert_array_equal(history.steps["loss"], same.steps["loss"])


def test_ignore_goes_on(fast):
    trainer = vernal.Trainer(TOO_FAST.optimizer, MSE, on_nonfinite="ignore")
    state, history = trainer.fit(mlp(), DATA, epochs=50, batch_size=10)
    assert int(state.step) == 300
    assert np.isnan(history.steps["loss"][-1])


def test_the_callers_state_and_what_callbacks_kept_stay_usable():
    start = TRAINER.init(spoilt(40, "loss", np.nan))
    best = vernal.callbacks.BestState("loss")
    error = fails(TRAINER, start, callbacks=[best])
    assert finite(start)
    assert best.state is not None and finite(best.state)
    TRAINER.evaluate(best.state, DATA)
    TRAINER.evaluate(start, DATA)
    assert error.update == 40


def test_epochs_raises_it_too():
    seen = []
    with pytest.raises(vernal.NonFiniteError) as caught:
        for epoch in TRAINER.epochs(spoilt(40, "loss", np.nan), DATA, batch_size=10):
            seen.append(epoch)
    assert len(seen) == 6
    assert caught.value.update == 40
    assert len(caught.value.history.steps["loss"]) == 40


def test_a_batch_of_a_loader_that_holds_nan(fast):
    batches = [(X[:10], Y[:10]), (X[10:20], Y[10:20] * np.nan), (X[20:23], Y[20:23])]
    error = fails(vernal.Trainer(SLOW, MSE), mlp(), batches, batch_size=None)
    assert (error.update, error.epoch) == (1, 0)
    assert "the loss is nan" in str(error)


def test_a_models_state_that_stops_being_finite(fast):
    def loss(model, batch, key, model_state):
        level = model_state["level"] * 10.0
        return MSE(model, batch, key), {}, {"level": level}

    trainer = vernal.Trainer(SLOW, loss)
    start = trainer.init(mlp(), model_state={"level": jnp.array(1.0)})
    error = fails(trainer, start, batch_size=None)
    assert error.update == 38  # 10³⁸ is a float32, 10³⁹ is none
    assert error.path == "model_state['level']"


def test_trouble_in_a_later_chunk_of_several_calls():
    """A chunk of many small calls, and chunks of one step: where exactly is found in both."""
    whole = fails(TRAINER, spoilt(301, "loss", np.nan))
    with limits(superbatch_steps=12):
        of_small_calls = fails(TRAINER, spoilt(301, "loss", np.nan))
    with limits(chunk_steps=1):
        of_one_step = fails(TRAINER, spoilt(301, "loss", np.nan))
    for error in (whole, of_small_calls, of_one_step):
        assert error.update == 301
        assert len(error.history.steps["loss"]) == 301
        assert_same_bits(error.state, whole.state)


def test_a_large_state_that_is_not_copied_ends_the_run_all_the_same():
    """The error comes; the state may be a later one."""
    with limits(rewound_bytes=0):
        error = fails(TRAINER, spoilt(40, "loss", np.nan))
    assert isinstance(error, vernal.NonFiniteError)


def test_the_message(fast):
    error = fails(TOO_FAST, mlp())
    lines = str(error).splitlines()
    assert len(lines) <= 6 and max(map(len, lines)) <= 100
    text = " ".join(str(error).split())
    for fact in (f"{error.update:,}", f"{error.epoch:,}", "finite", f"{error.grad_norm:.3g}"):
        assert fact in text
    for fix in ("learning rate", "clip_by_global_norm", "on_nonfinite="):
        assert fix in text
    assert isinstance(error, vernal.VernalError) and isinstance(error, ArithmeticError)


def test_another_choice_is_none():
    with pytest.raises(vernal.ArgumentError, match='"raise" or "ignore" is needed'):
        vernal.Trainer(optax.sgd(0.1), MSE, on_nonfinite="warn")  # pyright: ignore


# ----- data that is not finite


def masked(model, batch, key):
    """The squared error where there is a target."""
    x, y = batch
    there = jnp.isfinite(y)
    error = jnp.where(there, jax.vmap(model)(x) - jnp.where(there, y, 0), 0)
    return jnp.sum(error**2) / jnp.sum(there)


class OwnCall(losses.MeanSquaredError):
    def __call__(self, model, batch, key, model_state=None):
        return masked(model, batch, key)


class OwnTerm(losses.MeanSquaredError):
    def of_example(self, prediction, target):
        return jnp.where(jnp.isfinite(target), (prediction - jnp.nan_to_num(target)) ** 2, 0)


def without_some_targets(value=np.nan):
    y = Y.copy()
    y[::3] = value
    return X, y


OWN = {
    "a function": masked,
    "a call of its own": OwnCall(),
    "a term of its own": OwnTerm(),
    "Supervised": losses.Supervised(lambda p, y: OwnTerm().of_example(p, y)),
}


@pytest.mark.parametrize("loss", OWN.values(), ids=OWN)
def test_a_loss_of_ones_own_decides_about_values_that_are_not_finite(loss, fast):
    trainer, data = vernal.Trainer(SLOW, loss), without_some_targets()
    state, history = trainer.fit(mlp(), data, epochs=2, batch_size=None, validation_data=data)
    assert finite(state.model)
    there = np.isfinite(data[1])
    errors = np.where(there, (jax.vmap(mlp())(X) - np.where(there, Y, 0)) ** 2, 0)
    by_example = loss in (OWN["a term of its own"], OWN["Supervised"])
    expected = errors.mean() if by_example else errors.sum() / there.sum()
    assert history.epochs["loss"][0] == pytest.approx(expected, rel=1e-5)
    measured = trainer.evaluate(state, data)["loss"]
    assert measured == pytest.approx(history.epochs["val_loss"][-1], rel=1e-5)


def test_an_additive_mask_may_be_infinite(fast):
    mask = np.where(np.arange(4) < 2, 0, -np.inf) * np.ones((53, 1))
    attend = lambda model, batch, key: jnp.mean(jax.nn.softmax(batch["x"] + batch["mask"])[:, 2:])
    trainer = vernal.Trainer(SLOW, lambda *args: attend(*args) + masked(args[0], DATA, None))
    measured = trainer.evaluate(mlp(), {"x": X, "mask": mask})["loss"]
    assert measured == pytest.approx(float(masked(mlp(), DATA, None)), rel=1e-5)


def test_a_model_decides_about_x_that_is_not_finite():
    predicted = vernal.Trainer(optax.sgd(0.1), MSE).predict(mlp(), np.where(X > 1, np.nan, X))
    assert (np.isnan(predicted).all(1) == (X > 1).any(1)).all()


def test_own_batches_have_what_the_data_has():
    x, y = without_some_targets()
    (batch,) = vernal.batches((x, y), shuffle=False)
    np.testing.assert_array_equal(batch[1], y)


DROPPED = {
    "x": lambda: (np.where(np.arange(53)[:, None] == [7, 9, 60, 60], np.nan, X), Y),
    "a list": lambda: (np.where(np.arange(53)[:, None] == [7, 9, 60, 60], np.inf, X).tolist(), Y),
    "y": without_some_targets,
    "y of inf": lambda: without_some_targets(np.inf),
    "sample_weight": lambda: (*DATA, np.where(np.arange(53) < 9, np.nan, 1)),
}


@pytest.mark.parametrize("what", DROPPED)
def test_the_lines_of_the_message_drop_the_examples(what, fast):
    """A loss of Vernal's has no meaning for NaN."""
    data = DROPPED[what]()
    trainer = vernal.Trainer(SLOW, MSE)
    for call in (trainer.evaluate, lambda *args: trainer.fit(*args, epochs=1)):
        with pytest.raises(vernal.DataError, match="not finite") as caught:
            call(mlp(), data)
    text = " ".join(str(caught.value).split())
    assert "where" not in text
    parts = dict(zip(("x", "y", "sample_weight"), data, strict=False))
    [code, line] = re.findall(r"keep = (.+) Then index .+, as in (.+)\[keep\]\.$", text)[0]
    keep = eval(code, {"np": np, **parts})
    every = {name: np.asarray(part)[keep] for name, part in parts.items()}
    name = line.removeprefix("np.asarray(").removesuffix(")")
    np.testing.assert_array_equal(eval(line, {"np": np, **parts})[keep], every[name])
    assert all(np.isfinite(part).all() for part in every.values())
    assert 0 < keep.sum() < 53
    assert np.isfinite(trainer.evaluate(mlp(), tuple(every.values()))["loss"])


def test_no_line_drops_every_example():
    x = X.copy()
    x[:, 1] = np.nan
    with pytest.raises(vernal.DataError, match="Every example has one") as caught:
        vernal.Trainer(optax.sgd(0.1), MSE).fit(mlp(), (x, Y), epochs=1)
    assert "keep" not in str(caught.value)


@pytest.mark.parametrize("batches", [False, True], ids=["arrays", "ready batches"])
def test_the_values_of_a_batch_that_are_not_finite_are_named(batches, fast):
    x, y = without_some_targets()
    data = [(X, Y), (x, y)] if batches else (x, y)
    loss = MSE if batches else lambda *args: losses.MeanSquaredError()(*args)
    error = fails(vernal.Trainer(SLOW, loss), mlp(), data, batch_size=None)
    assert error.update == batches
    assert "y has 18 values that are not finite, of 53: the first is y[0, 0], nan." in text_of(
        error
    )


def text_of(error):
    return " ".join(str(error).split())
