"""What users wrote that went wrong in silence, or without a word that helps: one test of each."""

import contextlib
import dataclasses
import functools
import os
import signal
import sys
import threading
import time
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_same_bits
from sklearn.datasets import load_digits

import vernal
from vernal import callbacks, losses, metrics, nn

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(24, 4)).astype(np.float32)
Y = X.sum(axis=1, keepdims=True)
SGD, MSE = optax.sgd(0.1), losses.MeanSquaredError()
TRAINER = vernal.Trainer(SGD, MSE)


def linear(outputs=1):
    return eqx.nn.Linear(4, outputs, key=KEY)


def fit(*arguments, trainer=TRAINER, **options):
    return trainer.fit(*arguments, **{"epochs": 2, "progress": False} | options)


# ----- numbers


def test_numbers_put_into_a_state_by_hand_are_arrays_in_a_step_too():
    trainer = vernal.Trainer(optax.inject_hyperparams(optax.sgd)(0.1), MSE)
    state = trainer.init(linear())
    quicker = trainer.init(linear())
    quicker.opt_state.hyperparams["learning_rate"] = 0.5
    quicker = dataclasses.replace(quicker, epoch=3, step=0)
    batch = X, Y
    moved, info = trainer.step(quicker, batch)
    assert info["learning_rate"] == 0.5 and int(moved.epoch) == 3 and int(moved.step) == 1
    step = trainer.step(state, batch)[0].model.weight - state.model.weight
    np.testing.assert_allclose(moved.model.weight - quicker.model.weight, 5 * step, rtol=1e-4)


class Logged(losses.MeanSquaredError):
    def __call__(self, model, batch, key, model_state=None):
        x, y, weight = batch
        assert (x.dtype, y.dtype, weight.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
        return super().__call__(model, batch, key, model_state)


def test_a_loss_around_a_built_in_one_measures_the_same_in_low_precision():
    data = (X, Y, np.arange(24.0, dtype=np.float32))
    plain, around = (
        vernal.Trainer(SGD, loss, compute_dtype=jnp.bfloat16).evaluate(linear(), data)["loss"]
        for loss in (MSE, Logged())
    )
    assert around == pytest.approx(plain, rel=1e-2)


class Plainer(losses.CrossEntropy):
    pass


class Shifted(losses.CrossEntropy):
    def of_example(self, prediction, target):
        return super().of_example(prediction, target - 1)


def test_labels_are_looked_at_for_a_subclass_that_takes_the_same():
    labels = np.arange(24) % 3 + 1
    with pytest.raises(vernal.DataError, match=r"y\[2\] is 3, .*0 to 2[^T]*Try y - 1"):
        fit(linear(3), (X, labels), trainer=vernal.Trainer(SGD, Plainer()))
    _, history = fit(linear(3), (X, labels), trainer=vernal.Trainer(SGD, Shifted()))
    assert np.isfinite(history.steps["loss"]).all()


def test_weights_of_half_precision_add_up():
    x, weight = np.ones((70_000, 1), np.float32), np.ones(70_000, np.float16)
    model = eqx.nn.Linear(1, 1, key=KEY)
    weighted, plain = (x, 3 * x, weight), (x, 3 * x)
    assert TRAINER.evaluate(model, weighted)["loss"] == pytest.approx(
        TRAINER.evaluate(model, plain)["loss"], rel=1e-5
    )
    losses_ = [fit(model, data)[1].steps["loss"] for data in (weighted, plain)]
    np.testing.assert_allclose(*losses_, rtol=1e-5)


class Root(metrics.Mean):
    def value(self, mean, spread, total):
        return mean**0.5


def test_a_metric_with_a_value_of_its_own_does_not_depend_on_batches():
    root = Root(lambda prediction, target: jnp.mean((prediction - target) ** 2))
    trainer = vernal.Trainer(SGD, MSE, metrics={"root": root})
    outputs = np.asarray(jax.vmap(linear())(jnp.asarray(X)))
    expected = np.sqrt(np.mean((outputs - Y) ** 2))
    for size in (None, 5):
        found = trainer.evaluate(linear(), (X, Y), batch_size=size)
        assert found["root"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("loss", "labels", "line"),
    [
        (losses.BinaryCrossEntropy(), np.array([0, 255], np.uint8), "y / 255"),
        (losses.BinaryCrossEntropy(), np.array([-1, 0]), "y + 1"),
        (losses.BinaryCrossEntropy(), np.array([-1, 1]), "(y + 1) / 2"),
        (losses.BinaryCrossEntropy(), np.array([1, 2]), "y - 1"),
        (losses.CrossEntropy(), np.array([1, 2, 3, 5]), "y - 1"),
        (losses.CrossEntropy(), np.array([0, 1, 2, 255], np.uint8), "ignore_index=255"),
    ],
)
def test_a_line_for_labels_keeps_their_order(loss, labels, line):
    y = np.resize(labels, 24)
    outputs = 1 if isinstance(loss, losses.BinaryCrossEntropy) else 5
    y = y[:, None] if outputs == 1 else y
    trainer = vernal.Trainer(SGD, loss)
    with pytest.raises(vernal.DataError) as caught:
        trainer.evaluate(linear(outputs), (X, y))
    assert str(caught.value).rstrip(".").endswith(line) or line in str(caught.value)
    if line.startswith(("y", "(")):
        fixed = eval(line, {"y": y})
        assert len(np.unique(fixed)) == len(labels)
        trainer.evaluate(linear(outputs), (X, fixed))


def test_a_partial_of_optax_does_not_broadcast():
    loss = losses.Supervised(functools.partial(optax.losses.huber_loss, delta=0.5))
    with pytest.raises(vernal.ShapeError):
        vernal.Trainer(SGD, loss).evaluate(linear(), (X, np.ones((24, 3), np.float32)))


def test_accuracy_takes_one_class_an_example():
    tags = (np.random.default_rng(1).random((24, 3)) > 0.5).astype(np.float32)
    bce = losses.BinaryCrossEntropy()
    trainer = vernal.Trainer(SGD, bce, metrics={"accuracy": metrics.accuracy})
    with pytest.raises(vernal.DataError, match=r"metrics\['accuracy'\] takes one class"):
        trainer.evaluate(linear(3), (X, tags))
    one_hot = np.eye(3, dtype=np.float32)[np.arange(24) % 3]
    trainer.evaluate(linear(3), (X, one_hot))
    each = {"accuracy": lambda p, t: jnp.mean((p > 0) == (t > 0.5))}
    found = vernal.Trainer(SGD, bce, metrics=each).evaluate(linear(3), (X, tags))["accuracy"]
    outputs = np.asarray(jax.vmap(linear(3))(jnp.asarray(X)))
    assert found == pytest.approx(np.mean((outputs > 0) == tags), rel=1e-5)


# ----- answers, counts, names


def test_a_number_ends_no_run():
    with pytest.warns(RuntimeWarning, match="only True ends the run"):
        _, history = fit(linear(), (X, Y), callbacks=[lambda epoch: 1])
    assert len(history.epochs["loss"]) == 2
    assert len(fit(linear(), (X, Y), callbacks=[lambda epoch: np.True_])[1].epochs["loss"]) == 1


def test_a_step_counts_from_a_number():
    state = dataclasses.replace(TRAINER.init(linear()), step=0)
    for _ in range(3):
        state, _ = TRAINER.step(state, (X, Y))
    assert int(state.step) == 3


def test_a_metric_has_a_name_and_a_number():
    with pytest.raises(vernal.ArgumentError, match="metrics cannot be called ''"):
        vernal.Trainer(SGD, MSE, metrics={"": metrics.r2})
    with pytest.raises(vernal.ArgumentError, match=r"epoch.metrics\['note'\] is 'hi'"):
        fit(linear(), (X, Y), callbacks=[lambda epoch: epoch.metrics.update(note="hi")])


class Ridge:
    strength: float = 0.1

    def __call__(self, model, batch, key):
        return MSE(model, batch, key) + self.strength * jnp.sum(model.weight**2)


def test_a_loss_without_a_hash_is_named():
    with pytest.raises(vernal.ArgumentError, match=r"frozen=True"):
        vernal.Trainer(SGD, dataclasses.dataclass(type("Open", (Ridge,), {}))())
    frozen = dataclasses.dataclass(frozen=True)(type("Frozen", (Ridge,), {}))
    fit(linear(), (X, Y), trainer=vernal.Trainer(SGD, frozen()))


def test_without_jit_a_run_is_the_same():
    expected = fit(linear(), (X, Y))[1].steps["loss"]
    with jax.disable_jit():
        found = fit(linear(), (X, Y))[1].steps["loss"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_inside_of_jit_it_is_said():
    with pytest.raises(vernal.ArgumentError, match=r"jax.vmap\(model\)\(x\)"):
        jax.jit(lambda x: TRAINER.predict(linear(), x))(X)


def test_a_mapping_that_is_no_dict_is_named():
    with pytest.raises(vernal.DataError, match=r"Bunch; arrays are needed.\s+Try .*data\['data'\]"):
        fit(linear(), load_digits())


# ----- checkpoints


def test_a_model_of_some_size_is_saved(tmp_path):
    model = nn.MLP(4, 1, 2100, 2, key=KEY)  # of more than is looked at
    state, _ = fit(model, (X, Y), epochs=1, checkpoints=vernal.Checkpoints(tmp_path))
    again, _ = fit(model, (X, Y), epochs=1, checkpoints=vernal.Checkpoints(tmp_path))
    assert_same_bits(again, state)


def test_a_number_in_a_batch_is_no_hindrance(tmp_path):
    def loss(model, batch, key):
        return jnp.mean((jax.vmap(model)(batch["x"]) * batch["t"]) ** 2)

    trainer = vernal.Trainer(SGD, loss)
    saving = vernal.Checkpoints(tmp_path)
    fit(linear(), [{"x": X, "t": 0.5}], trainer=trainer, checkpoints=saving)


def test_somebody_elses_folders_stay(tmp_path):
    (tmp_path / "2024").mkdir()
    (tmp_path / "2024" / "notes.txt").write_text("mine")
    saving = vernal.Checkpoints(tmp_path, every_seconds=None, every_epochs=1)
    for epochs in (2, 5):
        fit(linear(), (X, Y), epochs=epochs, checkpoints=saving)
    assert (tmp_path / "2024" / "notes.txt").read_text() == "mine"
    assert int(vernal.load(tmp_path, TRAINER.init(linear())).epoch) == 5


def test_a_rate_in_the_optimizers_state_is_told(tmp_path):
    for rate in (0.1, 0.001):
        trainer = vernal.Trainer(optax.inject_hyperparams(optax.sgd)(rate), MSE)
        saving = vernal.Checkpoints(tmp_path)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            fit(linear(), (X, Y), trainer=trainer, checkpoints=saving)
        assert [("optimizer's first" in str(each.message)) for each in told] == [True] * (
            rate < 0.1
        )


class Probe:
    """Keeps a state of another model."""

    def __init__(self):
        self.state = vernal.Trainer(SGD, MSE).init(linear(3))

    def __call__(self, epoch):
        pass

    def state_dict(self):
        return {"state": self.state}

    def load_state_dict(self, saved):
        self.state = saved["state"]


def test_a_state_of_another_model_is_refused_before_it_is_lost(tmp_path):
    with pytest.raises(vernal.CheckpointError, match=r"Probe holds a TrainState of another"):
        fit(linear(), (X, Y), callbacks=[Probe()], checkpoints=vernal.Checkpoints(tmp_path))


class Slow:
    """Has much to save; sends a Ctrl-C, and another one while that is saved."""

    def __call__(self, epoch):
        if epoch.index == 10:
            os.kill(os.getpid(), signal.SIGINT)
            threading.Thread(target=self.again).start()

    def again(self):
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    def state_dict(self):
        return {"a": np.zeros(20_000_000, np.float32)}

    def load_state_dict(self, saved):
        pass


def test_a_second_ctrl_c_while_the_first_is_saved_loses_nothing(tmp_path):
    saving = vernal.Checkpoints(tmp_path)
    with contextlib.suppress(KeyboardInterrupt):
        fit(linear(), (X, Y), epochs=100, callbacks=[Slow()], checkpoints=saving)
    assert int(vernal.load(tmp_path, TRAINER.init(linear())).epoch) == 11


def test_the_outer_run_of_two_keeps_its_own_progress():
    def breaking():
        yield X, Y
        raise OSError("inner")

    def callback(epoch):
        if epoch.index == 2:
            fit(nn.MLP(4, 1, 8, 1, key=KEY), breaking)

    with pytest.raises(OSError, match="inner") as caught:
        fit(linear(), (X, Y), epochs=5, callbacks=[callback])
    error: object = caught.value
    assert isinstance(vars(error)["state"].model, eqx.nn.Linear)
    assert int(vars(error)["state"].epoch) == 3
    assert len(vars(error)["history"].epochs["loss"]) == 3


def test_a_numpy_number_comes_back_from_a_file(tmp_path):
    vernal.save(tmp_path / "s", {"mean": np.float32(0.5)})
    loaded = vernal.load(tmp_path / "s", {"mean": np.float32(0)})
    assert type(loaded["mean"]) is np.float32 and loaded["mean"] == 0.5


def test_a_part_is_no_name_of_an_array(tmp_path):
    two = {"a": linear(), "b": linear()}
    vernal.save(tmp_path / "s", two)
    with pytest.raises(vernal.ArgumentError, match="names names 'a'"):
        vernal.load(tmp_path / "s", two, names={"a": "b"})


# ----- sweeps


def sweep(optimizer=SGD, *, hyperparams=None, exact=False, **choices):
    trainer = vernal.Trainer(optimizer, MSE, **choices)
    return vernal.Sweep(
        trainer,
        lambda key: nn.Linear(4, 1, key=key),
        keys=[KEY, KEY],
        hyperparams=hyperparams,
        exact=exact,
    )


class Told:
    """A metric with the values that it is given, one for each epoch."""

    def __init__(self, values):
        self.values = values

    def __call__(self, epoch):
        epoch.metrics["q"] = float(self.values[epoch.index])


def test_who_ends_with_nan_comes_last():
    values = [(3, 2), (1, np.nan)]
    result = sweep().fit((X, Y), epochs=2, progress=False, callbacks=lambda i: [Told(values[i])])
    assert result.ranked("q", mode="min") == [0, 1]
    assert result.ranked("q", mode="max") == [0, 1]


def test_a_metric_may_have_any_name():
    infinite = {"infinite_norm": lambda p, t: jnp.abs(p).max() * 0}
    result = sweep(metrics=infinite).fit(
        (X, Y),
        epochs=3,
        validation_data=(X, Y),
        progress=False,
        callbacks=lambda i: [callbacks.EarlyStopping("val_infinite_norm", mode="min", patience=1)],
    )
    assert len(result.ended) == 2
    assert result.predict(X).mean.shape == (24, 1)


class Advancing:
    """Validation data that is another part of the examples in each pass."""

    def __init__(self):
        self.passes = 0

    def __iter__(self):
        rows = np.random.default_rng(self.passes).permutation(24)[:10]
        self.passes += 1
        yield X[rows], Y[rows]

    def state_dict(self):
        return {"passes": self.passes}

    def load_state_dict(self, state):
        self.passes = state["passes"]


def test_all_members_are_validated_on_the_same_batches():
    result = sweep(exact=True).fit((X, Y), epochs=3, validation_data=Advancing(), progress=False)
    model = nn.Linear(4, 1, key=KEY)
    _, alone = fit(model, (X, Y), epochs=3, validation_data=Advancing(), key=KEY)
    for history in result.histories:
        np.testing.assert_allclose(history.epochs["val_loss"], alone.epochs["val_loss"], rtol=1e-5)


def unpacked(model, x, y):
    return jnp.mean((jax.vmap(model)(x) - y) ** 2)


@pytest.mark.parametrize(
    ("loss", "data", "said"),
    [
        (MSE, list(zip(X, Y, strict=True)), r"Try tuple\(map\(np.stack, zip\(\*data\)\)\)"),
        (unpacked, (X, Y), r"called as loss\(model, batch, key\): unpack x, y = batch"),
        (MSE, (jnp.ones((24, 4), jnp.int4), Y), r'Try x.astype\("float32"\)'),
    ],
    ids=["a list of examples", "a loss of x and y", "four bits"],
)
def test_the_way_out_is_said(loss, data, said):
    with pytest.raises((vernal.ShapeError, vernal.DataError), match=said):
        fit(linear(), data, trainer=vernal.Trainer(SGD, loss))


def test_a_trainer_with_metrics_has_a_hash():
    measured = {"error": lambda prediction, target: jnp.mean(prediction - target)}
    first, second = (vernal.Trainer(SGD, MSE, metrics=measured) for _ in range(2))
    assert {first: 1}[second] == 1


@pytest.mark.parametrize(
    ("path", "what", "said"),
    [
        ("model", jax.ShapeDtypeStruct((2,), np.float32), "Save a model"),
        ("", linear(), "Add the name|add the name"),
    ],
)
def test_what_cannot_be_saved_is_told(tmp_path, path, what, said):
    with pytest.raises(vernal.VernalError, match=said):
        vernal.save(tmp_path / path, what)


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        (optax.inject_hyperparams(optax.sgd)(1), "Write learning_rate=1.0"),
        (optax.inject_hyperparams(optax.sgd)(optax.constant_schedule(0.1)), "a schedule sets"),
    ],
    ids=["a whole number", "a schedule"],
)
def test_a_hyperparameter_without_effect_is_refused(optimizer, said):
    with pytest.raises(vernal.ArgumentError, match=said):
        sweep(optimizer, hyperparams={"learning_rate": [0.1, 0.01]}).fit((X, Y), epochs=1)


def test_other_hyperparameters_are_another_run(tmp_path):
    optimizer = optax.inject_hyperparams(optax.sgd)(0.1)
    saving = vernal.Checkpoints(tmp_path)
    rates = {"learning_rate": [0.1, 0.01]}
    sweep(optimizer, hyperparams=rates).fit((X, Y), epochs=1, progress=False, checkpoints=saving)
    other = {"learning_rate": [0.01, 0.1]}
    with pytest.raises(vernal.CheckpointError, match="hyperparams"):
        sweep(optimizer, hyperparams=other).fit((X, Y), epochs=2, checkpoints=saving)


def test_members_do_not_share_what_keeps_something():
    one = [callbacks.BestState("loss")]
    with pytest.raises(vernal.ArgumentError, match="the same object"):
        sweep().fit((X, Y), epochs=1, callbacks=lambda i: one)
    sweep().fit((X, Y), epochs=1, progress=False, callbacks=lambda i: [sys.stdout.flush and print])
