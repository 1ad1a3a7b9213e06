"""Many models in one program: each is the model that `fit` trains alone."""

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, assert_same_bits, few_optimizations, float64

import vernal
from vernal import callbacks, losses, metrics
from vernal._limits import limits

KEYS = jax.random.split(jax.random.key(4), 3)
ADAM = optax.adam(1e-2)
RATES = [1e-3, 1e-2, 3e-2]
# One of each, so that tests share what is compiled. SGD is for tests that do not compare with the
# bits of a run alone: they compile it fast.
RATED = optax.inject_hyperparams(optax.adam)(1e-2)
SGD = optax.inject_hyperparams(optax.sgd)(0.1)
OVERFLOWS = optax.sgd(1e30)


@pytest.fixture
def fast():
    with few_optimizations():
        yield


@pytest.fixture(scope="module")
def data():
    """Points of a plane; the last batch of 16 is smaller, and that of 21 is not."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(42, 3)).astype(np.float32)
    return x, np.sin(x.sum(axis=1, keepdims=True)).astype(np.float32)


def mlp(key):
    return eqx.nn.MLP(3, 1, 8, 1, activation=jnp.tanh, key=key)


def mlp_with_its_own_function(key):
    """A model whose activation is another function object for each key."""
    return eqx.nn.MLP(3, 1, 8, 1, activation=lambda x: jnp.tanh(x), key=key)


class Normalized(eqx.Module):
    """Batch normalization, dropout."""

    first: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    last: eqx.nn.Linear

    def __init__(self, key):
        k1, k2 = jax.random.split(key)
        self.first = eqx.nn.Linear(3, 8, use_bias=False, key=k1)
        self.norm = eqx.nn.BatchNorm(8, "batch", mode="batch")
        self.dropout = eqx.nn.Dropout(0.2)
        self.last = eqx.nn.Linear(8, 1, key=k2)

    def __call__(self, x, state, *, key):
        hidden, state = self.norm(self.first(x), state)
        return self.last(self.dropout(jax.nn.relu(hidden), key=key)), state


def sweep_of(optimizer=ADAM, make=mlp, *, exact=False, hyperparams=None, **choices):
    trainer = vernal.Trainer(optimizer, losses.MeanSquaredError(), **choices)
    return vernal.Sweep(trainer, make, keys=KEYS, exact=exact, hyperparams=hyperparams)


def alone(sweep, i, data, made=None, *, rate=None, **options):
    """Train one member as `fit` does.

    Args:
        sweep: That has the member.
        i: Its number.
        data: As `fit` takes it.
        made: Its model, or that and a state. By default what the sweep makes of its key.
        rate: Its learning rate, where the optimizer's state has it.
        **options: For `fit`.
    """
    made = sweep.make_model(sweep.keys[i]) if made is None else made
    model, model_state = made if isinstance(made, tuple) else (made, None)
    start = sweep.trainer.init(model, model_state=model_state, key=sweep.keys[i])
    if rate is not None:
        start.opt_state.hyperparams["learning_rate"] = jnp.float32(rate)
    return sweep.trainer.fit(start, data, progress=False, **options)


def assert_member_is(result, i, state, history, *, exact):
    """Assert that a member is what was trained alone: in its bits, or up to rounding."""
    found = (result[i], dict(result.histories[i].steps), dict(result.histories[i].epochs))
    expected = (state, dict(history.steps), dict(history.epochs))
    if exact:
        assert_same_bits(found, expected)
    else:
        assert_close(found, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("exact", [False, True], ids=["at once", "exact"])
@pytest.mark.parametrize("size", [16, None])
def test_each_member_is_the_model_that_fit_trains(data, exact, size):
    x, y = data
    options = {"epochs": 4, "batch_size": size, "validation_data": (x[:10], y[:10])}
    sweep = sweep_of(exact=exact, metrics={"r2": metrics.r2})
    result = sweep.fit(data, progress=False, **options)
    assert len(result) == 3 and not result.ended
    for i in range(3):
        assert_member_is(result, i, *alone(sweep, i, data, **options), exact=exact)


@pytest.mark.parametrize(
    ("optimizer", "size", "choices"),
    [
        (optax.MultiSteps(optax.sgd(1e-2), 2), 21, {}),
        pytest.param(
            vernal.average_weights(ADAM, decay=0.5),
            16,
            {"eval_params": vernal.averaged},
            marks=pytest.mark.long,
        ),
        pytest.param(
            optax.sgd(optax.cosine_decay_schedule(0.1, 8)),
            16,
            {"compute_dtype": jnp.bfloat16},
            marks=pytest.mark.long,
        ),
    ],
    ids=["accumulated", "averaged", "schedule"],
)
def test_members_with_a_state_and_dropout_are_exact_too(data, optimizer, size, choices):
    make = eqx.nn.make_with_state(Normalized)
    sweep = sweep_of(optimizer, make, exact=True, **choices)
    options = {"epochs": 3, "batch_size": size, "validation_data": data}
    result = sweep.fit(data, progress=False, **options)
    for i in range(3):
        state, history = alone(sweep, i, data, **options)
        assert_same_bits(result[i].model, state.model)
        assert_same_bits(result[i].opt_state, state.opt_state)
        np.testing.assert_array_equal(result.histories[i].steps["loss"], history.steps["loss"])
        found = result.histories[i].epochs["val_loss"]
        np.testing.assert_allclose(found, history.epochs["val_loss"], rtol=1e-5)


def test_members_agree_with_loops_by_hand_in_float64(data):
    with float64():
        x, y = (part.astype(np.float64) for part in data)
        sweep = sweep_of(optax.sgd(0.1), mlp_with_its_own_function)
        result = sweep.fit((x, y), epochs=3, progress=False)

        @eqx.filter_jit
        def step(model):
            grads = eqx.filter_grad(lambda m: jnp.mean((jax.vmap(m)(x) - y) ** 2))(model)
            return eqx.apply_updates(model, jax.tree.map(lambda g: -0.1 * g, grads))

        for i, key in enumerate(KEYS):
            model = mlp(key)
            for _ in range(3):
                model = step(model)
            assert_close(eqx.filter(result[i].model, eqx.is_array), eqx.filter(model, eqx.is_array))


def test_a_shared_order_is_the_first_keys(data):
    sweep = sweep_of(exact=True)
    result = sweep.fit(data, epochs=2, batch_size=21, shuffle="shared", progress=False)
    assert_member_is(result, 0, *alone(sweep, 0, data, epochs=2, batch_size=21), exact=True)
    # Another member has the same batches, and its own weights.
    batches = [b for e in range(2) for b in vernal.batches(data, 21, epoch=e, key=KEYS[0])]
    state = sweep.trainer.init(mlp(KEYS[1]), key=KEYS[1])
    for batch in batches:
        state, _ = sweep.trainer.step(state, batch)
    assert_same_bits(result[1].model, state.model)


def test_loaders_give_all_members_the_same_batches(data):
    x, y = data
    batches = [(x[:21], y[:21]), (x[21:], y[21:])]
    sweep = sweep_of(exact=True)
    result = sweep.fit(lambda: iter(batches), epochs=2, validation_data=batches, progress=False)
    for i in range(3):
        expected = alone(sweep, i, lambda: iter(batches), epochs=2, validation_data=batches)
        assert_same_bits(result[i].model, expected[0].model)


# ----- hyperparameters


def test_hyperparameters_of_the_optimizer_and_of_the_model(data):
    def scaled(key, scale):
        return jax.tree.map(lambda leaf: scale * leaf if eqx.is_array(leaf) else leaf, mlp(key))

    scales = jnp.array([0.1, 1.0, 2.0])
    sweep = sweep_of(
        RATED, scaled, exact=True, hyperparams={"learning_rate": RATES, "scale": scales}
    )
    options: dict[str, Any] = {"epochs": 2, "batch_size": 21}
    result = sweep.fit(data, progress=False, **options)
    for i in range(3):
        model = scaled(KEYS[i], scales[i])
        state, history = alone(sweep, i, data, model, rate=RATES[i], **options)
        assert_same_bits(result[i].model, state.model)
        shown = result.histories[i].steps["learning_rate"]
        np.testing.assert_array_equal(shown, history.steps["learning_rate"])


@pytest.mark.parametrize(
    ("size", "shuffle"),
    [(16, True), (16, "shared"), pytest.param(None, True, marks=pytest.mark.long)],
)
def test_folds_as_weights(data, size, shuffle):
    x, y = data
    fold = np.arange(len(x)) % 3
    trains = np.array([fold != i for i in range(3)], np.float32)
    sweep = sweep_of(exact=True)
    result = sweep.fit(
        (x, y),
        epochs=3,
        batch_size=size,
        shuffle=shuffle,
        weights=trains,
        validation_data=(x, y),
        validation_weights=1 - trains,
        progress=False,
    )
    for i in range(3 if shuffle is True else 1):
        state, _ = alone(
            sweep,
            i,
            (x, y, trains[i]),
            epochs=3,
            batch_size=size,
            validation_data=(x, y, 1 - trains[i]),
        )
        assert_same_bits(result[i].model, state.model)
        held_out = sweep.trainer.evaluate(state, (x[fold == i], y[fold == i]))["loss"]
        assert result.histories[i].epochs["val_loss"][-1] == pytest.approx(held_out, rel=1e-5)


# ----- members that end


def test_a_member_that_is_not_finite_keeps_its_last_good_state_and_the_others_go_on(
    data, fast, capsys
):
    sweep = sweep_of(SGD, hyperparams={"learning_rate": [0.1, 1e4, 0.01]})
    result = sweep.fit(data, epochs=30, batch_size=16)
    assert [*result.ended] == [1] and "finite" in result.ended[1]
    assert "1 of 3 members ended early" in capsys.readouterr().err
    with pytest.raises(vernal.NonFiniteError) as caught:
        alone(sweep, 1, data, rate=1e4, epochs=30, batch_size=16)
    # To the step: the good steps of one that trains alone, up to rounding that grows fast.
    assert abs(int(result[1].step) - int(caught.value.state.step)) <= 1
    assert len(result.histories[1].steps["loss"]) == int(result[1].step)
    assert np.isfinite(result.histories[1].steps["loss"]).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result[1].opt_state))
    assert all(len(result.histories[i].epochs["loss"]) == 30 for i in (0, 2))
    assert result.ranked("loss")[-1] == 1
    assert np.isfinite(result.predict(data[0]).mean).all()


def test_a_lost_member_does_not_depend_on_where_chunks_end(data, fast):
    results = []
    for steps in (1, 5, 1000):
        sweep = sweep_of(SGD, hyperparams={"learning_rate": [0.1, 9, 0.01]})
        with limits(chunk_steps=steps, first_steps=steps):
            results.append(sweep.fit(data, epochs=60, batch_size=16, progress=False))
    assert [*results[0].ended] == [1]
    for other in results[1:]:
        assert other.ended == results[0].ended
        assert_same_bits(other.states, results[0].states)


@pytest.mark.parametrize(
    "callbacks_of",
    [lambda i: [lambda epoch: False], None],
    ids=["callbacks", "none"],
)
def test_the_run_ends_when_every_member_has(data, fast, callbacks_of):
    passes = []

    def loader():
        passes.append(len(passes))
        yield data

    sweep = sweep_of(OVERFLOWS)
    result = sweep.fit(loader, epochs=500, callbacks=callbacks_of, progress=False)
    assert len(result.ended) == 3
    with pytest.raises(vernal.ArgumentError, match="every member"):
        result.predict(data[0])
    assert len(passes) < 50


def test_ignoring_what_is_not_finite(data, fast):
    sweep = sweep_of(OVERFLOWS, on_nonfinite="ignore")
    result = sweep.fit(data, epochs=9, progress=False)
    assert not result.ended and not np.isfinite(result.histories[0].steps["loss"]).all()


def test_early_stopping_and_best_states_are_each_members_own(data):
    x, y = data
    own = {}

    def callbacks_of(i):
        own[i] = [callbacks.BestState("val_loss"), callbacks.EarlyStopping(patience=2)]
        return own[i]

    rates = [1e-9, 0.3, 0.6]
    optimizer = optax.inject_hyperparams(optax.sgd)(0.1)
    sweep = sweep_of(optimizer, exact=True, hyperparams={"learning_rate": rates})
    options = {"epochs": 40, "batch_size": 21, "validation_data": (x[:10], y[:10])}
    result = sweep.fit(data, callbacks=callbacks_of, progress=False, **options)
    lengths = {len(history.epochs["loss"]) for history in result.histories}
    assert len(lengths) > 1  # they ended at different times
    for i, rate in enumerate(rates):
        two = [callbacks.BestState("val_loss"), callbacks.EarlyStopping(patience=2)]
        state, history = alone(sweep, i, data, rate=rate, callbacks=two, **options)
        assert len(history.epochs["loss"]) == len(result.histories[i].epochs["loss"])
        assert_same_bits(result[i].model, state.model)
        assert own[i][0].epoch == two[0].epoch


# ----- checkpoints


def swept(directory, break_in=-1, how=lambda: None):
    """Train four members, of which one stays as it is and one overflows; say what came of it.

    Args:
        directory: Where the checkpoints are.
        break_in: The number of an epoch, at whose end the run breaks off.
        how: Called to break it off.
    """

    def die(epoch):
        if epoch.index == break_in:
            how()

    rng = np.random.default_rng(0)
    x = rng.normal(size=(41, 3)).astype(np.float32)
    y = np.sin(x.sum(axis=1, keepdims=True)).astype(np.float32)
    sweep = vernal.Sweep(
        vernal.Trainer(RATED, losses.MeanSquaredError()),
        lambda key: eqx.nn.MLP(3, 1, 8, 1, key=key),
        keys=jax.random.split(jax.random.key(4), 4),
        hyperparams={"learning_rate": [1e-9, 1e-2, 1e30, 1e-1]},
    )
    best, stopping = callbacks.BestState, callbacks.EarlyStopping
    result = sweep.fit(
        (x, y),
        epochs=8,
        batch_size=16,
        validation_data=(x, y),
        progress=False,
        callbacks=lambda i: [best("loss"), stopping("loss", patience=2, min_delta=1e-6), die],
        checkpoints=vernal.Checkpoints(directory, every_epochs=1),
    )
    return {
        "ended": [[i, reason] for i, reason in result.ended.items()],
        "losses": [history.steps["loss"].tolist() for history in result.histories],
        "val": [list(history.epochs.get("val_loss", ())) for history in result.histories],
        "sums": [
            float(leaf.sum()) for state in result for leaf in jax.tree.leaves(state.opt_state)
        ],
    }


class Broken(Exception):
    pass


def fail():
    raise Broken


def test_a_sweep_that_failed_goes_on_with_the_same_bits(tmp_path, fast):
    whole = swept(tmp_path / "whole")
    assert {i for i, _ in whole["ended"]} >= {0, 2}
    with pytest.raises(Broken):
        swept(tmp_path / "failed", 5, fail)
    assert swept(tmp_path / "failed") == whole


@pytest.mark.long
def test_so_does_one_that_was_killed(tmp_path):
    kill = "lambda: os.kill(os.getpid(), signal.SIGKILL)"

    def run(arguments, code):
        program = (
            f"import json, os, signal, test_sweep as t; print(json.dumps(t.swept({arguments})))"
        )
        made = subprocess.run(
            [sys.executable, "-c", program],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
        assert made.returncode == code, made.stderr
        return made.stdout

    whole = json.loads(run(repr(str(tmp_path / "whole")), 0))
    killed = repr(str(tmp_path / "killed"))
    run(f"{killed}, 5, {kill}", -9)
    assert json.loads(run(killed, 0)) == whole


# ----- results


def test_results_rank_predict_and_go_on(data, fast):
    x, y = data
    sweep = sweep_of(
        SGD,
        hyperparams={"learning_rate": [1e-4, 0.1, 1e-2]},
        metrics={"r2": metrics.r2},
    )
    result = sweep.fit(data, epochs=9, validation_data=(x, y), progress=False)
    last = [history.epochs["val_loss"][-1] for history in result.histories]
    assert result.ranked() == np.argsort(last).tolist()
    assert result.ranked("val_r2") == result.ranked()
    assert_same_bits(result.best(), result[result.ranked()[0]])
    outputs = np.stack([jax.vmap(state.model)(x) for state in result])
    mean, std = result.predict(x, batch_size=16)
    np.testing.assert_allclose(mean, outputs.mean(axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(std, outputs.std(axis=0), rtol=1e-4, atol=1e-6)
    assert result.predict_each(x).shape == (3, 42, 1)
    state, history = sweep.trainer.fit(result[2], data, epochs=1, progress=False)
    assert int(state.epoch) == 10 and len(history.steps["loss"]) == 1
    assert len(result.plot(metrics=("loss", "r2")).lines) == 12
    assert "3 members" in repr(result)
    with pytest.raises(vernal.ArgumentError, match="val_loss"):
        result.ranked("val_los")


# ----- what is refused, and how


def bad(**changes):
    trainer = vernal.Trainer(ADAM, losses.MeanSquaredError())
    return vernal.Sweep(**({"trainer": trainer, "make_model": mlp, "keys": KEYS} | changes))


def different(part):
    """Make models of which the second is another one."""
    counter = itertools.count()

    def make(key):
        is_second = next(counter) == 1
        match part:
            case "width":
                return eqx.nn.MLP(3, 1, 9 if is_second else 8, 1, key=key)
            case "depth":
                return eqx.nn.MLP(3, 1, 8, 2 if is_second else 1, key=key)
            case "activation":
                act = jax.nn.silu if is_second else jax.nn.sigmoid
                return eqx.nn.MLP(3, 1, 8, 1, activation=act, key=key)
            case "constant":
                scale = 2.0 if is_second else 1.0
                return eqx.nn.MLP(3, 1, 8, 1, activation=lambda x: scale * x, key=key)
            case _:
                return eqx.nn.Linear(3, 1, key=key) if is_second else mlp(key)

    return make


@pytest.mark.parametrize(
    ("changes", "options", "said"),
    [
        ({"keys": jax.random.key(0)}, {}, "jax.random.split"),
        ({"keys": 3}, {}, "jax.random.split"),
        ({"keys": KEYS[:0]}, {}, "keys"),
        ({"make_model": mlp(KEYS[0])}, {}, "make_model"),
        ({"trainer": ADAM}, {}, "vernal.Trainer"),
        ({"hyperparams": {"learning_rate": [1.0]}}, {}, "each of the 3 keys"),
        ({"hyperparams": [1.0]}, {}, "hyperparams"),
        ({"hyperparams": {"learning_rate": RATES}}, {}, "inject_hyperparams"),
        ({}, {"callbacks": [callbacks.EarlyStopping("loss")]}, "lambda i: [...]"),
        ({}, {"callbacks": lambda i: callbacks.EarlyStopping("loss")}, "callbacks"),
        ({}, {"weights": np.ones((42, 3))}, "(3, 42)"),
        ({"make_model": different("width")}, {}, "layers[0].weight"),
        ({"make_model": different("depth")}, {}, "layers"),
        ({"make_model": different("activation")}, {}, "activation"),
        ({"make_model": different("constant")}, {}, "activation"),
        ({"make_model": different("class")}, {}, "layers[0].weight"),
        ({"make_model": lambda: None}, {}, "make_model"),
        ({}, {"epochs": -1}, "epochs"),
        ({}, {"shuffle": "own"}, "shared"),
    ],
)
def test_what_cannot_be_trained_together_is_explained(data, changes, options, said):
    with pytest.raises(vernal.VernalError) as caught, vernal.no_recompilation():
        bad(**changes).fit(data, **({"epochs": 1, "progress": False} | options))
    assert said in " ".join(str(caught.value).split())


def test_another_number_of_members_is_another_run(data, fast, tmp_path):
    checkpoints = vernal.Checkpoints(tmp_path)
    sweep_of(SGD).fit(data, epochs=1, progress=False, checkpoints=checkpoints)
    trainer = vernal.Trainer(SGD, losses.MeanSquaredError())
    with pytest.raises(vernal.CheckpointError):
        vernal.Sweep(trainer, mlp, keys=KEYS[:2]).fit(
            data, epochs=1, progress=False, checkpoints=checkpoints
        )
