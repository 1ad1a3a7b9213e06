"""Choices, models and states that do not go together: told at once, with the line that mends it."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_same_bits, filled

import vernal
from vernal import callbacks, losses, nn

RNG = np.random.default_rng(0)
X = RNG.normal(size=(50, 4)).astype(np.float32)
DATA = (X, X.sum(axis=1, keepdims=True))
KEY = jax.random.key(0)
MSE = losses.MeanSquaredError()
MLP = filled(lambda: nn.MLP(4, 1, 8, 1, key=KEY))
ADAM = optax.adam(1e-3)


def trainer(loss: Any = MSE, **choices):
    return vernal.Trainer(ADAM, loss, **choices)


class Net(eqx.Module):
    hidden: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    out: eqx.nn.Linear

    def __init__(self, axis_name="batch"):
        self.hidden = eqx.nn.Linear(4, 8, key=KEY)
        self.norm = eqx.nn.BatchNorm(8, axis_name, mode="batch")
        self.out = eqx.nn.Linear(8, 1, key=KEY)

    def __call__(self, x, state):
        x, state = self.norm(self.hidden(x), state)
        return self.out(x), state


class ReturnsNoState(Net):
    def __call__(self, x, state):  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.out(self.hidden(x))


class Last(eqx.Module):
    """Remembers the last example, which is not the same for all of a batch."""

    out: eqx.nn.Linear
    last: eqx.nn.StateIndex

    def __init__(self):
        self.out, self.last = eqx.nn.Linear(4, 1, key=KEY), eqx.nn.StateIndex(jnp.zeros(4))

    def __call__(self, x, state):
        return self.out(x), state.set(self.last, x)


def made(model_class, *args):
    model, model_state = eqx.nn.make_with_state(model_class)(*args)
    return trainer().init(model, model_state=model_state)


def three(model, batch, key):
    return jnp.mean(jax.vmap(model)(batch[0]) ** 2)


def four(model, batch, key, model_state):
    return three(model, batch, key), {}, model_state


def with_state(returned):
    """A fit with a loss that returns these, after the loss itself."""
    loss = lambda model, batch, key, model_state: (three(model, batch, key), *returned)
    start = trainer(loss).init(MLP, model_state={"a": 0.0})
    return trainer(loss).fit(start, DATA, epochs=1)


def wrong(argument) -> Any:
    """An argument of a type that a type checker knows to be wrong."""
    return argument


FROZEN = jax.tree.map(lambda _: False, MLP)
WRONG = {
    "a model with a state, alone": (
        lambda: trainer().fit(eqx.nn.make_with_state(Net)()[0], DATA, epochs=1),
        "trainer.init(model, model_state=model_state) in place of the model",
    ),
    "made without its state": (
        lambda: trainer().fit(Net(), DATA, epochs=1),
        "eqx.nn.make_with_state(Net)(...)",
    ),
    "predict without the state": (
        lambda: trainer().predict(eqx.nn.make_with_state(Net)()[0], X),
        "Net has layers with a state",
    ),
    "evaluate without the state": (
        lambda: trainer().evaluate(eqx.nn.make_with_state(Net)()[0], DATA),
        "Net has layers with a state",
    ),
    "both as a tuple": (
        lambda: trainer().fit(eqx.nn.make_with_state(Net)(), DATA, epochs=1),
        "Try trainer.init(model, model_state=model_state)",
    ),
    "a loss without a place for the state": (
        lambda: trainer(three).init(MLP, model_state={"a": 0.0}),
        "with a model_state the loss is called as loss(model, batch, key, model_state)",
    ),
    "a loss that needs a state": (
        lambda: trainer(four).fit(MLP, DATA, epochs=1),
        "with no model_state the loss is called as loss(model, batch, key), which four is not made",
    ),
    "one callback and no list": (
        lambda: trainer().fit(MLP, DATA, epochs=1, callbacks=wrong(callbacks.EarlyStopping())),
        "Try callbacks=[callback]",
    ),
    "a callback's class": (
        lambda: trainer().fit(MLP, DATA, epochs=1, callbacks=wrong([callbacks.EarlyStopping])),
        "callbacks[0] is the class EarlyStopping",
    ),
    "what is not measured is watched": (
        lambda: trainer().fit(MLP, DATA, epochs=1, callbacks=[callbacks.EarlyStopping()]),
        "'val_loss', which is not measured; there are loss.\n  Pass validation_data.",
    ),
    "trainable of another model": (
        lambda: trainer(
            trainable=jax.tree.map(lambda _: True, filled(lambda: nn.MLP(4, 1, 8, 2, key=KEY)))
        ).init(MLP),
        "jax.tree.map(lambda _: False, model), then eqx.tree_at",
    ),
    "trainable by name": (
        lambda: trainer(trainable="layers").init(MLP),
        "trainable is 'layers'",
    ),
    "nothing to train": (lambda: trainer(trainable=FROZEN).init(MLP), "`trainable` picks"),
    "a dtype that is none": (lambda: trainer(compute_dtype="bf16"), "compute_dtype is 'bf16'"),
    "a dtype of integers": (lambda: trainer(compute_dtype=int), "jnp.bfloat16"),
    "another optimizer's state": (
        lambda: trainer().fit(vernal.Trainer(optax.sgd(0.1), MSE).init(MLP), DATA, epochs=1),
        "Begin anew with the model: trainer.init(state.model).",
    ),
    "another optimizer's state, in step": (
        lambda: trainer().step(vernal.Trainer(optax.sgd(0.1), MSE).init(MLP), DATA),
        "state.opt_state was made by another optimizer",
    ),
    "a state of other trainable parameters": (
        lambda: trainer(trainable=lambda leaf: leaf.ndim == 1).fit(
            trainer().init(MLP), DATA, epochs=1
        ),
        "or for other trainable parameters",
    ),
    "no tuple": (
        lambda: trainer().fit(made(ReturnsNoState), DATA, epochs=1),
        "needs to return (output, model_state); ReturnsNoState returns",
    ),
    "a state that differs by example": (
        lambda: trainer().fit(made(Last), DATA, epochs=1),
        'jax.lax.pmean(value, "batch")',
    ),
    "another name of the batch's axis": (
        lambda: trainer().fit(made(Net, "devices"), DATA, epochs=1),
        'is called "batch"',
    ),
    "x of another shape": (
        lambda: trainer().fit(made(Net), (X[:, :3], DATA[1]), epochs=1),
        "but Net.hidden (Linear) needs (4,)",
    ),
    "a flat y": (
        lambda: trainer().fit(made(Net), (X, DATA[1][:, 0]), epochs=1),
        "Try y[:, None], which has shape (50, 1).",
    ),
    "x of another shape, in lower precision": (
        lambda: trainer(compute_dtype=jnp.bfloat16).fit(MLP, (X[:, :3], DATA[1]), epochs=1),
        "but MLP.layers[0] (Linear) needs (4,)",
    ),
    "a state that is not returned": (lambda: with_state([{}]), "(scalar, dict of metrics, model_"),
    "a state of another shape": (
        lambda: with_state([{}, {"a": jnp.zeros(3)}]),
        "model_state['a'] comes back with shape (3,), and had ().",
    ),
    "a state of another structure": (
        lambda: with_state([{}, {"b": 0.0}]),
        "the model_state that comes back is another PyTree",
    ),
    "a metric called loss": (
        lambda: with_state([{"loss": 0.0}, {"a": 0.0}]),
        'No metric may be called "loss"',
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_go_together_is_told(name):
    program, message = WRONG[name]
    with pytest.raises(vernal.VernalError) as caught:
        program()
    assert message in str(caught.value)
    lines = str(caught.value).splitlines()
    assert len(lines) <= 6 and max(map(len, lines)) <= 100


@pytest.mark.parametrize("batch_size", [None, 20], ids=["full batch", "ragged"])
def test_data_may_be_a_single_array(batch_size):
    """What an autoencoder learns from; it is divided as any other."""
    autoencoder = filled(lambda: nn.MLP(4, 4, 2, 1, key=KEY))
    loss = lambda model, x, key: jnp.mean((jax.vmap(model)(x) - x) ** 2)
    state, history = trainer(loss).fit(autoencoder, X, epochs=3, batch_size=batch_size)
    by_steps = trainer(loss).init(autoencoder)
    for epoch in range(3):
        for batch in vernal.batches(X, batch_size, epoch=epoch):
            by_steps, _ = trainer(loss).step(by_steps, batch)
    assert_same_bits((state.model, state.opt_state), (by_steps.model, by_steps.opt_state))
    assert len(history.epochs["loss"]) == 3


def test_a_model_that_needs_a_key_is_given_one_everywhere():
    class Noisy(eqx.Module):
        layer: eqx.nn.Linear

        def __call__(self, x, key):
            return self.layer(x) + jax.random.normal(key, (1,))

    model = Noisy(eqx.nn.Linear(4, 1, key=KEY))
    state, _ = trainer().fit(model, DATA, epochs=1)
    first = trainer().predict(state, X)
    np.testing.assert_array_equal(first, trainer().predict(state, X))
    assert np.std(first - jax.vmap(state.model.layer)(jnp.asarray(X))) > 0.5
    assert np.isfinite(trainer().evaluate(state, DATA)["loss"])


def test_a_model_without_a_state_may_have_a_loss_with_one():
    start = trainer(four).init(MLP, model_state={"updates": jnp.array(0)})
    state, _ = trainer(four).fit(start, DATA, epochs=2)
    assert trainer(four).predict(state, X).shape == (50, 1)
    assert set(trainer(four).evaluate(state, DATA)) == {"loss"}
    assert state.model_state["updates"] == 0


def test_the_state_of_one_run_serves_again():
    """An `eqx.nn.State` may be used once in Equinox; here it is a value like any other."""
    start = made(Net)
    runs = [trainer().fit(start, DATA, epochs=2, batch_size=20)[0] for _ in "ab"]
    assert_same_bits(*runs)
