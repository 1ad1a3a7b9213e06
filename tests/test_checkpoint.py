"""Checkpoints as users meet them: when they are written, what they refuse, what they say."""

import contextlib
import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file, save_file

import vernal
from vernal import callbacks, losses, nn
from vernal._checkpointing import manager

X = np.linspace(-1, 1, 40, dtype=np.float32)[:, None]
Y = 2 * X
DATA = (X, Y)
TRAINER = vernal.Trainer(optax.adam(1e-2), losses.MeanSquaredError())


def model(width=4, seed=0):
    return nn.MLP(1, 1, width, 1, key=jax.random.key(seed))


def fit(checkpoints: Any, epochs=4, trainer=TRAINER, start: Any = None, data=DATA, **how: Any):
    how = {"batch_size": 10, "progress": False, **how}
    start = model() if start is None else start
    return trainer.fit(start, data, epochs=epochs, checkpoints=checkpoints, **how)


def arrays(tree):
    return jax.tree.leaves(eqx.filter(tree, eqx.is_array))


def assert_same_bits(one, other):
    for a, b in zip(arrays(one), arrays(other), strict=True):
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


def numbers(directory):
    return sorted(int(path.name) for path in directory.iterdir())


def step_of(directory, number):
    """The step after which one of the checkpoints in a directory was written."""
    return int(vernal.load(directory / str(number), TRAINER.init(model())).step)


def steps_of(directory):
    """The steps after which the checkpoints in a directory were written."""
    return [step_of(directory, number) for number in numbers(directory)]


@pytest.mark.parametrize(
    "intervals, steps",
    [
        pytest.param({"every_steps": 3}, [0, 3, 6, 9, 12, 15, 16], marks=pytest.mark.long),
        pytest.param({"every_epochs": 2}, [0, 8, 16], marks=pytest.mark.long),
        ({"every_steps": 5, "every_epochs": 1}, [0, 4, 5, 8, 10, 12, 15, 16]),
        ({}, [0, 16]),
    ],
    ids=["steps", "epochs", "both", "neither"],
)
def test_checkpoints_come_in_the_intervals_asked_for(tmp_path, intervals, steps):
    fit(vernal.Checkpoints(tmp_path, every_seconds=None, keep=99, **intervals))
    assert steps_of(tmp_path) == steps


def test_the_latest_are_kept(tmp_path):
    intervals = {"every_steps": 5, "every_epochs": 1}  # as above: nothing else compiles
    fit(vernal.Checkpoints(tmp_path, every_seconds=None, keep=3, **intervals))
    assert steps_of(tmp_path) == [12, 15, 16]


def test_seconds_do_not_stop_training(tmp_path):
    """With an interval of 0, they come as fast as they can be written, and training goes on."""
    state, history = fit(vernal.Checkpoints(tmp_path, every_seconds=0, keep=999), epochs=300)
    written = numbers(tmp_path)
    assert step_of(tmp_path, written[0]) == 0 and step_of(tmp_path, written[-1]) == 1200
    assert_same_bits(state, fit(None, epochs=300)[0])
    assert len(history.steps["loss"]) == 1200


def test_a_finished_run_comes_back_and_more_epochs_prolong_it(tmp_path, compiled):
    checkpoints = vernal.Checkpoints(tmp_path, every_seconds=None)
    state, history = fit(checkpoints)
    there = numbers(tmp_path)
    fit(checkpoints)  # restoring compiles something, once
    compiled.clear()
    again, record = fit(checkpoints)
    assert not compiled
    assert numbers(tmp_path) == there
    assert_same_bits(again, state)
    for name, values in history.epochs.items():
        np.testing.assert_array_equal(record.epochs[name], values)
    longer, record = fit(checkpoints, epochs=7)
    whole, expected = fit(None, epochs=7)
    assert_same_bits(longer, whole)
    np.testing.assert_array_equal(record.steps["loss"], expected.steps["loss"])
    assert record.seconds > 0


def test_a_run_that_begins_with_a_state_counts_its_own_epochs(tmp_path):
    first, _ = fit(None)
    checkpoints = vernal.Checkpoints(tmp_path, every_seconds=None)
    second, _ = fit(checkpoints, start=first, epochs=2)
    assert int(second.epoch) == 6
    assert_same_bits(fit(checkpoints, start=first, epochs=2)[0], second)
    assert_same_bits(fit(checkpoints, start=first, epochs=3)[0], fit(None, epochs=7)[0])


def test_a_run_that_a_callback_ended_is_done(tmp_path):
    checkpoints = vernal.Checkpoints(tmp_path, every_seconds=None)
    stopping = lambda: callbacks.EarlyStopping("loss", patience=2, min_delta=10.0)
    state, _ = fit(checkpoints, epochs=9, callbacks=[stopping()])
    assert int(state.epoch) == 3
    for epochs in (9, 5, 2):
        again = stopping()
        assert_same_bits(fit(checkpoints, epochs=epochs, callbacks=[again])[0], state)
        assert again.stopped_epoch == 2


def test_a_stopped_run_goes_on_with_more_patience_or_more_epochs(tmp_path):
    def go_on(epochs, **stopping):
        early = callbacks.EarlyStopping("loss", **{"patience": 2, "min_delta": 10.0, **stopping})
        checkpoints = vernal.Checkpoints(tmp_path, every_seconds=None)
        return int(fit(checkpoints, epochs=epochs, callbacks=[early])[0].epoch), early.stopped_epoch

    assert go_on(9) == (3, 2)
    assert go_on(9, patience=1) == (3, 2)
    assert go_on(9, patience=4) == (5, 4)
    assert go_on(9, patience=4) == (5, 4)
    assert go_on(20, patience=4) == (9, 8)  # it is given time again
    assert go_on(20, patience=4, min_delta=0.0) == (20, None)
    assert go_on(20, patience=4, min_delta=0.0) == (20, None)
    whole, _ = fit(None, epochs=20)
    assert_same_bits(vernal.load(tmp_path, TRAINER.init(model())), whole)


def test_a_run_that_another_callback_ended_stays_ended(tmp_path):
    checkpoints = vernal.Checkpoints(tmp_path, every_seconds=None)
    for patience in (5, 8):
        early = callbacks.EarlyStopping("loss", patience=patience)
        ends = lambda epoch: epoch.index == 2
        assert int(fit(checkpoints, epochs=9, callbacks=[early, ends])[0].epoch) == 3


@pytest.mark.parametrize("epochs, said", [(4, "4 epochs;"), (2, "4 epochs (2 were asked for);")])
def test_a_finished_run_says_that_nothing_was_trained(tmp_path, capsys, monkeypatch, epochs, said):
    monkeypatch.chdir(tmp_path)
    checkpoints = vernal.Checkpoints("runs/tab", every_seconds=None)
    fit(checkpoints, progress=False)
    assert capsys.readouterr().err == ""
    fit(checkpoints, epochs=epochs, progress=False)
    expected = f"runs/tab holds a finished run of {said} nothing was trained.\n"
    assert capsys.readouterr().err == expected
    fit(checkpoints, epochs=6, progress=False)
    assert capsys.readouterr().err == ""


def batches_of(y):
    return [(X[:20], y[:20]), (X[20:], y[20:])]


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "y": ({"data": (X, Y + 1)}, r" y of data."),
    "both": ({"data": (X + 1, 3 * Y)}, r" x of data, y of data."),
    "validation": ({"validation_data": (X, Y + 1)}, r" y of validation_data."),
    "loss": (
        {"trainer": vernal.Trainer(TRAINER.optimizer, losses.Huber(0.1))},
        "model and the loss.",
    ),
    "activation": (
        {"start": nn.MLP(1, 1, 4, 1, jnp.tanh, key=jax.random.key(0))},
        "model and the loss.",
    ),
    "loader": ({"data": batches_of(Y + 1), "batch_size": None}, r" y of data."),
    "weights": ({"start": model(seed=7)}, "the model's first numbers."),
}
# Each change to a run that is finished, or to one that goes on; with `--long`, to both.
SHORT = {("both", 4), ("validation", 4), ("loss", 2), ("loader", 4), ("weights", 2)}


@pytest.mark.parametrize(
    ("name", "epochs"),
    [
        pytest.param(
            name,
            epochs,
            id=f"{name}-{'finished' if epochs == 2 else 'goes on'}",
            marks=[pytest.mark.long] * ((name, epochs) not in SHORT),
        )
        for name in CHANGES
        for epochs in (2, 4)
    ],
)
def test_what_the_script_changed_is_named(tmp_path, name, epochs):
    changed, said = CHANGES[name]
    checkpoints = vernal.Checkpoints(tmp_path, every_seconds=None)
    how: dict[str, Any] = {"validation_data": DATA}
    if isinstance(changed.get("data"), list):
        how |= {"data": batches_of(Y), "batch_size": None}
    fit(checkpoints, epochs=2, **how)
    fit(checkpoints, epochs=2, **how)
    with pytest.warns(RuntimeWarning) as caught:
        state, _ = fit(checkpoints, epochs=epochs, **how | changed)
    [warning] = caught
    assert said in str(warning.message) and warning.filename == __file__
    assert int(state.epoch) == epochs
    if epochs == 4:
        fit(checkpoints, epochs=4, **how | changed)


def test_what_is_no_change_is_not_named(tmp_path):
    checkpoints = vernal.Checkpoints(tmp_path, every_seconds=None)
    fit(checkpoints, epochs=2)
    rate = vernal.Trainer(optax.adam(1e-3), TRAINER.loss, metrics={"r2": vernal.metrics.r2})
    copied = tuple(jnp.asarray(part) for part in DATA)
    fit(checkpoints, epochs=4, trainer=rate, data=copied, validation_data=DATA)


def test_of_other_versions_the_version_alone_is_named(tmp_path, monkeypatch):
    checkpoints = vernal.Checkpoints(tmp_path, every_seconds=None)
    fit(checkpoints, epochs=2)
    monkeypatch.setattr("vernal._checkpointing.same_run.version", lambda name: "9.9")
    huber = vernal.Trainer(TRAINER.optimizer, losses.Huber(0.1))
    with pytest.warns(RuntimeWarning, match=r"saved: the version of vernal,.* optax\.") as caught:
        fit(checkpoints, epochs=3, trainer=huber)
    assert "program" not in str(caught[0].message)


def test_of_large_data_a_part_is_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr("vernal._checkpointing.same_run._SAMPLED_BYTES", 64)
    np.save(tmp_path / "x.npy", X)
    data = np.load(tmp_path / "x.npy", mmap_mode="r"), Y
    checkpoints = vernal.Checkpoints(tmp_path / "run", every_seconds=None)
    fit(checkpoints, epochs=2, data=data)
    fit(checkpoints, epochs=2, data=data)
    for changed in ((X + 1, Y), (X, Y + 1)):
        with pytest.warns(RuntimeWarning, match="the script has changed"):
            fit(checkpoints, epochs=2, data=changed)


@jax.custom_vjp
def straight(x):
    return jnp.round(x)


straight.defvjp(lambda x: (straight(x), None), lambda _, grad: (grad,))


def addressed():
    """A model with functions in its program's text."""
    return nn.MLP(1, 1, 4, 1, straight, key=jax.random.key(0))


ELSEWHERE = """
import logging, sys
sys.path.insert(0, sys.argv[1])
import test_checkpoint as tests

def train(directory):
    tests.fit(tests.vernal.Checkpoints(directory), epochs=1, start=tests.addressed())
    tests.vernal.load(directory, tests.addressed())

def levels():
    loggers = logging.root, logging.getLogger("absl")
    return [(each.level, each.handlers[:], each.filters[:], each.propagate) for each in loggers]

import absl.logging
before = levels()
train(sys.argv[2] + "/1")
assert levels() == before and logging.root.handlers == [], levels()
logging.basicConfig(level="INFO", format="%(name)s", stream=sys.stdout)
train(sys.argv[2] + "/2")
absl.logging.info("the user's own")
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """The directory of a run that another process has begun, and what that process printed."""
    directory = tmp_path_factory.mktemp("elsewhere")
    command = [sys.executable, "-c", ELSEWHERE, str(Path(__file__).parent), str(directory)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return directory / "1", done.stdout


def test_the_fingerprint_is_the_same_in_another_process(elsewhere):
    """A warning is an error here. The program's text has addresses."""
    whole, _ = fit(None, start=addressed())
    assert_same_bits(fit(vernal.Checkpoints(elsewhere[0]), start=addressed())[0], whole)


class IsSmall(vernal.metrics.AbstractMetric):
    """A metric that makes a number of NaN."""

    def of_batch(self, prediction, target, weight):
        return jnp.mean(jnp.abs(prediction - target))

    def value(self, mean, spread, total):
        return (mean < 1.0) * 1.0


MEASURES = {
    "small": {"small": IsSmall()},
    "none": {},
    "mae": {"mae": vernal.metrics.mean_absolute_error},
    "renamed": {"absolute": vernal.metrics.mean_absolute_error},
    "r2": {"r2": vernal.metrics.r2},
    "another r2": {"r2": vernal.metrics.mean_absolute_error},
    "both": {"mae": vernal.metrics.mean_absolute_error, "r2": vernal.metrics.r2},
    "another mae": {"mae": vernal.metrics.r2},
}


def fails_once(pass_number, batch):
    """A loader that fails once, before a batch."""
    passes = []

    def batches():
        passes.append(None)
        for i in range(4):
            if (len(passes), i) == (pass_number, batch):
                raise RuntimeError("once")
            yield X[10 * i : 10 * i + 10], Y[10 * i : 10 * i + 10]

    return batches


@cache
def measuring(name):
    return vernal.Trainer(TRAINER.optimizer, TRAINER.loss, metrics=MEASURES[name])


@cache
def history_of(name):
    return fit(None, trainer=measuring(name), data=fails_once(9, 9), batch_size=None)[1]


@pytest.mark.parametrize(
    "before, after, at",
    [
        *(("both", "another mae", (2, 3)), ("none", "both", (3, 0))),
        *(
            pytest.param(*each, (2, 3), marks=pytest.mark.long)
            for each in (
                *(("none", "both"), ("mae", "renamed"), ("none", "small"), ("another r2", "r2")),
                *(("both", "none"), ("r2", "another r2")),
            )
        ),
    ],
)
def test_a_run_that_goes_on_with_other_metrics_has_nan_for_the_others(tmp_path, before, after, at):
    checkpoints = vernal.Checkpoints(tmp_path, every_seconds=None, every_steps=1)
    first, second = measuring(before), measuring(after)
    loader, seen = fails_once(*at), []
    with pytest.raises(RuntimeError):
        fit(checkpoints, trainer=first, data=loader, batch_size=None)
    _, history = fit(
        checkpoints,
        trainer=second,
        data=loader,
        batch_size=None,
        callbacks=[lambda epoch: seen.append(epoch.metrics)],
    )

    of_first, of_second = history_of(before), history_of(after)
    steps = 4 * at[0] - 4 + at[1]
    changed = {name for name in {**MEASURES[before], **MEASURES[after]}}
    for name in ("loss", *changed):
        nothing = np.full(16, np.nan)
        old, new = (each.steps.get(name, nothing) for each in (of_first, of_second))
        np.testing.assert_array_equal(history.steps[name], [*old[:steps], *new[steps:]])
        old, new = (each.epochs.get(name, nothing[:4]) for each in (of_first, of_second))
        expected = [*old[: at[0] - 1], *new[at[0] - 1 :]]
        if name in changed and at[1]:
            expected[at[0] - 1] = np.nan  # a part of the epoch did not measure it, or otherwise
        np.testing.assert_allclose(history.epochs[name], expected, rtol=1e-6)
    assert [{*metrics} for metrics in seen] == [{"loss", *MEASURES[after]}] * (5 - at[0])


def test_a_loss_may_measure_other_things_when_it_goes_on(tmp_path):
    squared_error: Any = TRAINER.loss

    def with_metrics(*names):
        def loss(model, batch, key):
            return squared_error(model, batch, key), {name: jnp.float32(3) for name in names}

        return vernal.Trainer(TRAINER.optimizer, loss)

    checkpoints = vernal.Checkpoints(tmp_path, every_seconds=None)
    fit(checkpoints, epochs=2, trainer=with_metrics("a", "c"), validation_data=DATA)
    _, history = fit(checkpoints, epochs=3, trainer=with_metrics("b", "c"))
    np.testing.assert_array_equal(history.epochs["a"], [3, 3, np.nan])
    np.testing.assert_array_equal(history.epochs["b"], [np.nan, np.nan, 3])
    np.testing.assert_array_equal(np.isnan(history.epochs["val_loss"]), [False, False, True])


class Told:
    """A callback that keeps which epochs it has seen, and is interrupted after one of them."""

    def __init__(self, seen, interrupted=None, times=1):
        self.seen, self.interrupted, self.times = seen, interrupted, times

    def __call__(self, epoch):
        self.seen.append(epoch.index)
        if epoch.index == self.interrupted:
            for _ in range(self.times):
                signal.raise_signal(signal.SIGINT)


def interrupts(callback):
    """The same callback, which raises the interrupt itself."""

    def raising(epoch):
        callback.seen.append(epoch.index)
        if epoch.index == callback.interrupted:
            raise KeyboardInterrupt

    return raising


@pytest.mark.parametrize("how", ["signal", "raised", "two signals"])
def test_an_interrupt_in_a_callback_loses_nothing(tmp_path, capsys, how):
    seen = [], [], []
    checkpoints = vernal.Checkpoints(tmp_path, every_seconds=None)
    middle = Told(seen[1], 1, times=2 if how == "two signals" else 1)
    listed = [Told(seen[0]), interrupts(middle) if how == "raised" else middle, Told(seen[2])]
    ends = pytest.raises(KeyboardInterrupt) if how == "two signals" else contextlib.nullcontext()
    with ends:
        state, history = fit(checkpoints, callbacks=listed, progress=False)
        assert int(state.epoch) == len(history.epochs["loss"]) == 2
        said = capsys.readouterr().err
        assert said == f"Interrupted after 8 steps: the same script resumes from {tmp_path}.\n"
    state, history = fit(checkpoints, callbacks=[Told(each) for each in seen])
    assert seen == ([0, 1, 2, 3],) * 3
    whole, expected = fit(None)
    assert_same_bits(state, whole)
    np.testing.assert_array_equal(history.epochs["loss"], expected.epochs["loss"])


class Interrupted(vernal.metrics.AbstractMetric):
    """R², one of whose values on the host is interrupted."""

    values: list = eqx.field(static=True)

    def of_batch(self, prediction, target, weight):
        return vernal.metrics.r2.of_batch(prediction, target, weight)

    def value(self, mean, spread, total):
        if isinstance(total, float):
            self.values.append(total)
            if len(self.values) == 3:  # of the second epoch; the first was validated, too
                raise KeyboardInterrupt
        return vernal.metrics.r2.value(mean, spread, total)


@pytest.mark.parametrize("where", ["loader", "first batch", "validation", "metric"])
def test_an_interrupt_in_the_users_code_loses_nothing(tmp_path, capsys, where):
    seen = []

    def interrupted(*, at):
        passes = []

        def batches():
            passes.append(None)
            for i, (start, stop) in enumerate([(0, 10), (10, 20), (20, 24), (24, 28)]):
                if (len(passes), i) == at:
                    raise KeyboardInterrupt
                yield X[start:stop], Y[start:stop]

        return batches

    never = (99, 0)
    data = interrupted(at={"loader": (2, 3), "first batch": (2, 0)}.get(where, never))
    held_out = interrupted(at=never)
    if where == "validation":
        held_out = interrupted(at=(3, 1))  # the first pass is for the shapes
    metric = Interrupted([]) if where == "metric" else vernal.metrics.r2
    trainer = vernal.Trainer(TRAINER.optimizer, TRAINER.loss, metrics={"r2": metric})
    how: dict[str, Any] = {"trainer": trainer, "batch_size": None, "callbacks": [Told(seen)]}
    how["progress"] = False
    checkpoints = vernal.Checkpoints(tmp_path, every_seconds=None)
    state, history = fit(checkpoints, data=data, validation_data=held_out, **how)
    assert 4 <= int(state.step) == len(history.steps["loss"]) < 16
    said = f"Interrupted after {int(state.step)} steps: the same script resumes from {tmp_path}.\n"
    assert capsys.readouterr().err == said

    state, history = fit(checkpoints, data=data, validation_data=held_out, **how)
    assert seen == [0, 1, 2, 3]
    data = interrupted(at=never)
    whole, expected = fit(None, data=data, validation_data=held_out, **{**how, "callbacks": []})
    assert_same_bits(state, whole)
    for name, values in expected.epochs.items():
        np.testing.assert_allclose(history.epochs[name], values, rtol=1e-6)


def test_a_csv_log_goes_on_where_the_run_does(tmp_path):
    path, checkpoints = tmp_path / "log.csv", vernal.Checkpoints(tmp_path / "run", every_epochs=2)

    def end(epoch):
        if epoch.index == 4:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fit(checkpoints, epochs=8, callbacks=[callbacks.CSVLog(path), end])
    assert len(path.read_text().splitlines()) == 6
    fit(checkpoints, epochs=8, callbacks=[callbacks.CSVLog(path)])
    rows = path.read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["epoch", *map(str, range(8))]


class Averaged:
    """A callback that keeps one of everything that a checkpoint takes."""

    def __init__(self):
        self.kept = None

    def __call__(self, epoch):
        if self.kept is None:
            self.kept = {
                "none": None,
                "numbers": [1, 2.5, True, float("inf")],
                "by number": {3: (b"\x00\xff", "text"), 1: {}},
                "arrays": (np.arange(3.0), jnp.ones(2, jnp.bfloat16), np.float64(0.1)),
                "empty": (np.zeros((0, 3)), [], {}, ()),
                "key": jax.random.key(4),
                "state": epoch.state,
            }

    def state_dict(self):
        return self.kept

    def load_state_dict(self, kept):
        self.kept = kept


def test_what_callbacks_keep_comes_back_as_it_was(tmp_path):
    checkpoints, first, second = vernal.Checkpoints(tmp_path), Averaged(), Averaged()
    fit(checkpoints, callbacks=[first])
    fit(checkpoints, callbacks=[second])
    assert jax.tree.structure(first.kept) == jax.tree.structure(second.kept)
    for a, b in zip(jax.tree.leaves(first.kept), jax.tree.leaves(second.kept), strict=True):
        assert isinstance(a, jax.Array) == isinstance(b, jax.Array)
        if eqx.is_array(a) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert a is b or np.array_equal(a, b)
        assert getattr(a, "dtype", type(a)) == getattr(b, "dtype", type(b))


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        (object(), r"Averaged holds an object, which"),
        (optax.EmptyState(), r"Averaged holds an EmptyState[^T]*Try the dict of it: _asdict\(\)"),
    ],
)
def test_a_callback_that_keeps_something_else_is_named_before_training(tmp_path, kept, said):
    strange = Averaged()
    strange.kept = {"open": kept}
    with pytest.raises(vernal.CheckpointError, match=said):
        fit(vernal.Checkpoints(tmp_path), callbacks=[strange])


def refused(checkpoints, **how):
    """What is said of another run, which is refused before it trains; the directory stays."""
    before = numbers(checkpoints.path)
    with pytest.raises(vernal.CheckpointError) as raised:
        fit(checkpoints, **how)
    assert numbers(checkpoints.path) == before
    return " ".join(str(raised.value).split())


def test_another_run_is_refused_by_name(tmp_path):
    checkpoints = vernal.Checkpoints(tmp_path / "run", every_seconds=None)
    state, _ = fit(checkpoints)
    said = refused(checkpoints, start=model(8))
    assert "model.layers.0.weight is (4, 1) float32 in the checkpoint" in said
    assert "but (8, 1) float32 here" in said and "vernal.load(" in said
    said = refused(checkpoints, trainer=vernal.Trainer(optax.sgd(0.1), TRAINER.loss))
    assert "opt_state.0.count is () int32 in the checkpoint" in said and "missing here" in said
    momentum = vernal.Trainer(optax.adam(1e-2, nesterov=True), TRAINER.loss)
    fit(checkpoints, trainer=momentum)  # the same state: another constant is the script's choice
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16) if eqx.is_array(a) else a, model())
    assert "bfloat16 here" in refused(checkpoints, start=half)
    deep = nn.MLP(1, 1, 4, 3, key=jax.random.key(0))
    assert "(1, 4) float32 in the checkpoint" in refused(checkpoints, start=deep)
    assert "with batch_size = 10; now it is 20" in refused(checkpoints, batch_size=20)
    assert "with shuffle = True; now it is False" in refused(checkpoints, shuffle=False)
    longer = (np.tile(X, (2, 1)), np.tile(Y, (2, 1)))
    assert "batches in a pass = 4; now it is 8" in refused(checkpoints, data=longer)
    said = refused(checkpoints, callbacks=[callbacks.BestState("loss")])
    assert "callbacks = []; now it is ['BestState']" in said
    assert "began with state.step = 0; now it is 16" in refused(checkpoints, start=state)
    other = TRAINER.init(model(), key=jax.random.key(9))
    assert "began with key = 'threefry2x32 [0, 0]'; now" in refused(checkpoints, start=other)
    assert_same_bits(fit(checkpoints)[0], state)


def test_a_damaged_checkpoint_is_named_put_aside_and_passed_over(tmp_path):
    checkpoints = vernal.Checkpoints(tmp_path / "run", every_seconds=None, every_steps=8)
    state, history = fit(checkpoints)
    (tmp_path / "run" / "3" / "description" / "metadata").write_text("{}")
    with pytest.warns(RuntimeWarning, match=r"run/3 is damaged .*damaged-3"):
        again, record = fit(checkpoints)
    assert_same_bits(again, state)
    np.testing.assert_array_equal(record.steps["loss"], history.steps["loss"])
    assert (tmp_path / "run" / "damaged-3" / "description" / "metadata").read_text() == "{}"


def test_what_was_put_aside_before_stays(tmp_path):
    checkpoints = vernal.Checkpoints(tmp_path / "run", every_seconds=None, every_steps=8)
    fit(checkpoints)
    for name in ("damaged-3", "damaged-3-2"):
        (tmp_path / "run" / name).mkdir()
        (tmp_path / "run" / name / "precious").touch()
    (tmp_path / "run" / "3" / "description" / "metadata").write_text("{}")
    with pytest.warns(RuntimeWarning, match=r"run/3 is damaged .*damaged-3-3"):
        fit(checkpoints)
    assert len(list((tmp_path / "run").rglob("precious"))) == 2
    assert (tmp_path / "run" / "damaged-3-3" / "description").is_dir()


def test_if_all_are_damaged_nothing_is_touched(tmp_path):
    checkpoints = vernal.Checkpoints(tmp_path / "run", every_seconds=None, every_steps=8)
    fit(checkpoints)
    for number in (2, 3):
        (tmp_path / "run" / str(number) / "description" / "metadata").write_text("{}")
    with pytest.raises(vernal.CheckpointError, match=r"3\s+is\s+damaged"):
        fit(checkpoints)
    assert numbers(tmp_path / "run") == [2, 3]


def test_a_checkpoint_of_another_version_is_refused_by_name(tmp_path):
    checkpoints = vernal.Checkpoints(tmp_path / "run", every_seconds=None)
    fit(checkpoints)
    content = {"format": 2, "versions": {"vernal": "0.0.7"}}
    sha256 = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    described = tmp_path / "run" / "2" / "description" / "metadata"
    described.write_text(json.dumps({"sha256": sha256, "content": content}))
    assert "run/2 was written by vernal 0.0.7" in refused(checkpoints)
    with pytest.raises(vernal.CheckpointError, match=r"vernal\s+0\.0\.7"):
        vernal.load(tmp_path / "run", model())


def test_a_run_goes_on_only_where_there_is_room(tmp_path, monkeypatch):
    checkpoints = vernal.Checkpoints(tmp_path, every_seconds=None)
    state, _ = fit(checkpoints)
    usage = SimpleNamespace(free=1000)
    monkeypatch.setattr("vernal._checkpointing.manager.shutil.disk_usage", lambda path: usage)
    with pytest.raises(vernal.CheckpointError, match=r"has no room for another\s+checkpoint of"):
        fit(checkpoints, epochs=9)
    assert_same_bits(fit(checkpoints)[0], state)  # a finished run needs none
    usage.free = 10**9
    fit(checkpoints, epochs=9)


@pytest.mark.parametrize(
    "name",
    [
        *("gs:width=[8, 8] *?", "gr\u00fcn\udcff back\\slash"),
        *(
            pytest.param(name, marks=pytest.mark.long)
            for name in ["width=[8, 8]", "gr\u00fcn *?", "back\\slash", "gs:", "\udcff"]
        ),
    ],
)
def test_a_path_with_any_characters_is_read_back(tmp_path, name):
    checkpoints = vernal.Checkpoints(tmp_path / name / "run", every_seconds=None)
    state, _ = fit(checkpoints)
    assert_same_bits(vernal.load(checkpoints.path, model(seed=1)), state.model)
    assert_same_bits(fit(checkpoints, epochs=5)[0], fit(None, epochs=5)[0])
    assert os.listdir(tmp_path) == [name] and numbers(tmp_path / name / "run") == [2, 3]
    vernal.save(tmp_path / name / "model", state.model)
    assert_same_bits(vernal.load(tmp_path / name / "model", model(seed=1)), state.model)


def test_a_file_may_have_as_long_a_name_as_the_system_takes(tmp_path):
    vernal.save(tmp_path / ("m" * 255), model())
    assert_same_bits(vernal.load(tmp_path / ("m" * 255), model(seed=1)), model())
    with pytest.raises(vernal.CheckpointError, match="too long"):
        vernal.load(tmp_path / ("m" * 256), model())


def test_a_path_stays_the_same_when_the_working_directory_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "other").mkdir()
    checkpoints, at_home = vernal.Checkpoints("run"), vernal.Checkpoints("~/run", keep=1)
    log = callbacks.CSVLog("log.csv")
    state, _ = fit(checkpoints, callbacks=[lambda epoch: os.chdir(tmp_path / "other"), log])
    fit(at_home)
    assert os.listdir(tmp_path / "other") == []
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 5
    assert_same_bits(vernal.load(tmp_path / "home" / "run", model(seed=1)), state.model)
    assert_same_bits(vernal.load("~/run", model(seed=1)), state.model)
    assert_same_bits(vernal.load("../run", model(seed=1)), state.model)


@pytest.mark.parametrize("url", ["gs://bucket/run", "file:///tmp/run", Path("s3://bucket/run")])
def test_a_url_is_refused_by_name_everywhere(url):
    for refuses in (
        vernal.Checkpoints,
        lambda path: vernal.save(path, model()),
        lambda path: vernal.load(path, model()),
        callbacks.CSVLog,
        callbacks.TensorBoard,
    ):
        with pytest.raises(vernal.ArgumentError, match=r"is the URL \w+:.*\n  Pass a path without"):
            refuses(url)


def test_the_log_stays_the_users(elsewhere):
    _, printed = elsewhere
    lines = printed.split()
    assert [line for line in lines if not line.startswith(("vernal", "jax"))] == ["absl"]


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"directory": 3}, "directory is 3; a path is needed"),
        ({"directory": ""}, "directory is ''; a path is needed"),
        ({"every_seconds": -1}, "every_seconds is -1"),
        ({"every_seconds": "60"}, "every_seconds is '60'"),
        ({"every_steps": 0}, "every_steps needs to be a whole number from 1; it is 0"),
        ({"every_epochs": 1.5}, "every_epochs needs to be a whole number from 1; it is 1.5"),
        ({"keep": 0}, "keep needs to be a whole number from 1; it is 0"),
    ],
)
def test_arguments_that_cannot_be_used_are_named(tmp_path, arguments, said):
    with pytest.raises(vernal.ArgumentError, match=said):
        vernal.Checkpoints(**{"directory": tmp_path} | arguments)


def test_fit_names_what_is_no_checkpoints(tmp_path):
    with pytest.raises(vernal.ArgumentError, match=r"Try checkpoints=vernal.Checkpoints\('run'"):
        fit("run")


@pytest.mark.parametrize("package", ["orbax.checkpoint", "safetensors.numpy"])
def test_a_missing_extra_names_its_command(tmp_path, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(vernal.MissingExtraError, match=r"pip install 'vernal\[checkpoint\]'"):
        if package == "safetensors.numpy":
            vernal.save(tmp_path / "model", model())
        else:
            vernal.Checkpoints(tmp_path)


class Everything(eqx.Module):
    """A model with one of each kind of array."""

    layers: list
    half: jax.Array
    counts: jax.Array
    flags: jax.Array
    single: jax.Array
    empty: jax.Array
    key: jax.Array
    table: np.ndarray
    name: str = eqx.field(static=True)

    def __init__(self, seed):
        self.layers = [model(seed=seed), None, jnp.tanh]
        self.half = jnp.full((2, 2), seed, jnp.bfloat16)
        self.counts = jnp.arange(3) + seed
        self.flags = jnp.array([True, False])
        self.single = jnp.array(1.5 + seed)
        self.empty = jnp.zeros((0, 4))
        self.key = jax.random.key(seed)
        self.table = np.asfortranarray(np.arange(6.0).reshape(2, 3) + seed)
        self.name = "everything"


# Every dtype that arrays of NumPy, with those of JAX, can have; but objects.
DTYPES = [
    *("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
    *("int2", "uint2", "int4", "uint4", "float16", "bfloat16", "float32", "float64"),
    *("float8_e4m3fn", "float8_e5m2", "float8_e4m3", "float8_e3m4", "float8_e4m3b11fnuz"),
    *("float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn"),
    *("complex64", "complex128", "longdouble", ">f4", "<M8[ns]", "<U3", "S4"),
]
DOUBLE = ("int64", "uint64", "float64", "complex128")  # with x64 alone
IN_JAX = [dtype for dtype in DTYPES[:-5] if dtype not in DOUBLE]


def of_every_dtype(first=1):
    """Arrays of each dtype, with axes, without, and without elements."""
    shapes = (2, 3), (), (0, 2)
    return {
        f"{dtype} {len(shape)} {0 in shape}": (np.arange(np.prod(shape)) % 2 + first)
        .reshape(shape)
        .astype(np.dtype(dtype))
        for dtype in DTYPES
        for shape in shapes
    }


def assert_same_bytes(one, other):
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert (other[name].dtype, other[name].shape) == (array.dtype, array.shape), name
        assert np.asarray(other[name]).tobytes() == np.asarray(array).tobytes(), name


def test_every_dtype_comes_back_from_a_file(tmp_path):
    saved = of_every_dtype()
    vernal.save(tmp_path / "all", saved)
    assert_same_bytes(saved, vernal.load(tmp_path / "all", of_every_dtype(0)))
    on_device = {name: jnp.asarray(saved[f"{name} 2 False"]) for name in IN_JAX}
    vernal.save(tmp_path / "jax", on_device)
    like = {name: jnp.zeros_like(array) for name, array in on_device.items()}
    assert_same_bytes(on_device, vernal.load(tmp_path / "jax", like))


def test_every_dtype_comes_back_from_a_checkpoint(tmp_path):
    in_jax = {name: jnp.asarray(of_every_dtype()[f"{name} 2 False"]) for name in IN_JAX}
    squared_error: Any = TRAINER.loss
    trainer = vernal.Trainer(
        TRAINER.optimizer,
        lambda model, batch, key: squared_error(model["net"], batch, key),
        trainable={"net": eqx.is_inexact_array, "others": False},
    )
    start = {"net": model(), "others": in_jax}
    first, second = Averaged(), Averaged()
    first.kept = {name: array for name, array in of_every_dtype().items() if array.ndim}
    checkpoints = vernal.Checkpoints(tmp_path, every_seconds=None)
    fit(checkpoints, epochs=1, trainer=trainer, start=start, callbacks=[first])
    state, _ = fit(checkpoints, epochs=1, trainer=trainer, start=start, callbacks=[second])
    assert_same_bytes(state.model["others"], in_jax)
    assert_same_bytes(second.kept, first.kept)


@pytest.mark.parametrize(
    "impl", ["threefry2x32", "rbg", pytest.param("unsafe_rbg", marks=pytest.mark.long)]
)
def test_keys_of_every_kind_come_back(tmp_path, impl):
    keys = {
        "key": jax.random.key(3, impl=impl),
        "keys": jax.random.split(jax.random.key(4, impl=impl), 2),
    }
    like = jax.tree.map(lambda key: jax.random.split(key)[0], {**keys, "keys": keys["keys"][0]})
    like["keys"] = jnp.stack([like["keys"]] * 2)
    vernal.save(tmp_path / "keys", keys)
    assert_same_bits(vernal.load(tmp_path / "keys", like), keys)
    checkpoints = vernal.Checkpoints(tmp_path / "run", every_seconds=None)
    start = TRAINER.init(model(), key=keys["key"])
    state, _ = fit(checkpoints, start=start)
    assert_same_bits(fit(checkpoints, start=start)[0], state)
    if impl == "rbg":
        other = TRAINER.init(model(), key=jax.random.key(3, impl="unsafe_rbg"))
        said = refused(checkpoints, start=other)
        assert "key = 'rbg [0, 3, 0, 3]'; now it is 'unsafe_rbg" in said


@pytest.mark.parametrize("array", [np.array(["a", {}], object), np.zeros(2, [("a", "f4")])])
def test_an_array_that_cannot_be_stored_is_named_before_it_is_written(tmp_path, array):
    with pytest.raises(vernal.CheckpointError, match=r"names\.x is an array of .*cannot be stored"):
        vernal.save(tmp_path / "file", {"names": {"x": array}})
    strange = Averaged()
    strange.kept = array
    with pytest.raises(vernal.CheckpointError, match="Averaged holds"):
        fit(vernal.Checkpoints(tmp_path / "run"), callbacks=[strange])
    assert not (tmp_path / "file").exists()


class Normed(eqx.Module):
    """A model with a state."""

    norm: eqx.nn.BatchNorm
    out: nn.Linear

    def __init__(self, seed):
        self.norm = eqx.nn.BatchNorm(1, axis_name="batch", mode="batch")
        self.out = nn.Linear(1, 1, key=jax.random.key(seed))

    def __call__(self, x, state):
        x, state = self.norm(x, state)
        return self.out(x), state


def normed(seed):
    return eqx.nn.make_with_state(Normed)(seed)


def test_the_state_of_a_model_comes_along(tmp_path):
    run, started = tmp_path / "run", normed(0)
    start = TRAINER.init(started[0], model_state=started[1])
    state, _ = fit(vernal.Checkpoints(run, every_seconds=None), start=start, data=(X + 3, Y))
    newest = run / str(numbers(run)[-1])
    fresh, fresh_state = normed(1)
    like = TRAINER.init(fresh, model_state=fresh_state, key=jax.random.key(8))

    vernal.save(tmp_path / "state", state)
    vernal.save(tmp_path / "pair", (state.model, state.model_state))
    vernal.save(tmp_path / "model_state", state.model_state)
    for path in (run, newest, tmp_path / "state"):
        assert_same_bits(vernal.load(path, like), state)
    for path in (run, newest, tmp_path / "pair"):
        pair = vernal.load(path, (fresh, fresh_state))
        assert_same_bits(pair, (state.model, state.model_state))
        loaded = TRAINER.init(pair[0], model_state=pair[1])
        assert TRAINER.evaluate(loaded, (X, Y)) == TRAINER.evaluate(state, (X, Y))
    for path in (run, newest, tmp_path / "model_state"):
        assert_same_bits(vernal.load(path, fresh_state), state.model_state)

    with pytest.warns(RuntimeWarning, match=r"holds a model_state, too"):
        assert_same_bits(vernal.load(run, fresh), state.model)
    with pytest.raises(
        vernal.CheckpointError, match=r"no norm\.weight; there is .*0\.norm\.weight"
    ):
        vernal.load(tmp_path / "pair", fresh)
    vernal.save(tmp_path / "model", state.model)
    with pytest.raises(vernal.CheckpointError, match=r"0\.norm\.weight is missing in"):
        vernal.load(tmp_path / "model", (fresh, fresh_state))


def test_one_checkpoint_of_a_run_is_chosen_by_its_directory(tmp_path):
    states = []
    checkpoints = vernal.Checkpoints(tmp_path / "12", every_seconds=None, every_epochs=1, keep=9)
    fit(checkpoints, callbacks=[lambda epoch: states.append(epoch.state)])
    for number, state in zip(numbers(tmp_path / "12")[1:], states, strict=True):
        path = tmp_path / "12" / str(number)
        assert_same_bits(vernal.load(path, model(seed=1)), state.model)
        assert_same_bits(vernal.load(path, TRAINER.init(model(seed=1))), state)
    (tmp_path / "12" / "3" / "description" / "metadata").write_text("{}")
    with pytest.raises(vernal.CheckpointError, match=r"12/3 is damaged"):
        vernal.load(tmp_path / "12" / "3", model())


def test_a_state_with_a_loaders_state_needs_a_run(tmp_path):
    state = dataclasses.replace(TRAINER.init(model()), data_state={"place": 3})
    with pytest.raises(vernal.CheckpointError, match="holds a data loader's state"):
        vernal.save(tmp_path / "state", state)


def test_a_file_of_another_program_is_read_by_its_names(tmp_path):
    path, theirs = tmp_path / "theirs.safetensors", cast(Any, model(seed=3))
    (first, second), bfloat16 = theirs.layers, jnp.bfloat16
    save_file(
        {
            "fc1.weight": np.asarray(first.weight, bfloat16),
            "fc1.bias": np.asarray(first.bias),
            "fc2.weight": np.asarray(second.weight),
            "fc2.bias": np.asarray(second.bias, jnp.float8_e4m3fn),
            "steps": np.asarray(3),
        },
        path,
    )
    names = {
        f"layers.{i}.{part}": f"fc{i + 1}.{part}" for i in (0, 1) for part in ("weight", "bias")
    }
    expected = eqx.tree_at(
        lambda m: (m.layers[0].weight, m.layers[1].bias),
        theirs,
        (
            first.weight.astype(bfloat16).astype(jnp.float32),
            second.bias.astype(jnp.float8_e4m3fn).astype(jnp.float32),
        ),
    )
    assert_same_bits(vernal.load(path, model(), names=names, cast=True), expected)
    assert_same_bits(vernal.load(path, model(), names=names.__getitem__, cast=True), expected)
    own = vernal.load(path, model(), names=names, cast=True, keep="layers.1")
    assert_same_bits(own.layers, [expected.layers[0], model().layers[1]])

    def said(error: type[Exception] = vernal.CheckpointError, **how: Any):
        with pytest.raises(error) as raised:
            vernal.load(path, model(), **how)
        return " ".join(str(raised.value).split())

    assert "layers.0.weight is (4, 1) bfloat16 in" in said(names=names)
    assert "cast=True" in said(names=names)
    wrong = {**names, "layers.0.bias": "fc1.offset"}
    assert "There is no fc1.offset; there is fc" in said(names=wrong, cast=True)
    assert "names names 'layer'" in said(vernal.ArgumentError, names={"layer": "fc1"})
    assert "There is no layers.0.weight; there is fc" in said()


def test_a_cast_that_overflows_is_refused_by_name(tmp_path):
    vernal.save(tmp_path / "file", {"a": np.array([1.0, 7e4]), "n": np.arange(3)})
    like = {"a": jnp.zeros(2), "n": np.arange(3)}
    loaded = vernal.load(tmp_path / "file", like, cast=True)
    np.testing.assert_array_equal(loaded["a"], np.array([1, 7e4], "f4"))
    half = {**like, "a": jnp.zeros(2, jnp.float16)}
    with pytest.raises(
        vernal.CheckpointError, match=r"a has 70000.0, which is too large for float16"
    ):
        vernal.load(tmp_path / "file", half, cast=True)
    with pytest.raises(vernal.CheckpointError, match=r"n is \(3,\) int64 in"):
        vernal.load(tmp_path / "file", {**like, "n": jnp.arange(3.0)}, cast=True)


def test_a_model_comes_back_from_its_file(tmp_path):
    saved, like = Everything(0), Everything(1)
    path = tmp_path / "new" / "model.safetensors"
    vernal.save(path, saved)
    loaded = vernal.load(path, like)
    assert_same_bits(loaded, saved)
    assert isinstance(loaded.table, np.ndarray) and loaded.table.dtype == np.float64
    np.testing.assert_array_equal(loaded.table, saved.table)
    assert os.listdir(tmp_path / "new") == ["model.safetensors"]
    assert_same_bits(like, Everything(1))


def test_others_read_the_file_by_names(tmp_path):
    saved = model()
    vernal.save(tmp_path / "model.safetensors", saved)
    found = load_file(tmp_path / "model.safetensors")
    assert sorted(found) == [f"layers.{i}.{part}" for i in (0, 1) for part in ("bias", "weight")]
    np.testing.assert_array_equal(found["layers.1.weight"], saved.layers[1].weight)


def test_a_model_of_shapes_alone_can_be_filled(tmp_path):
    vernal.save(tmp_path / "model", model())
    like = eqx.filter_eval_shape(model)
    assert_same_bits(vernal.load(tmp_path / "model", like), model())


def test_a_model_that_does_not_fit_is_named(tmp_path):
    path = tmp_path / "model.safetensors"
    vernal.save(path, model())
    with pytest.raises(
        vernal.CheckpointError, match=r"layers.0.weight is \(4, 1\) float32 in"
    ) as e:
        vernal.load(path, model(8))
    assert "but (8, 1) float32 here" in " ".join(str(e.value).split())
    deep = nn.MLP(1, 1, 4, 2, key=jax.random.key(0))
    with pytest.raises(vernal.CheckpointError, match=r"layers.1.weight is \(1, 4\)"):
        vernal.load(path, deep)
    with pytest.raises(vernal.CheckpointError, match=r"0.weight is missing in"):
        vernal.load(path, [nn.Linear(1, 4, key=jax.random.key(0))])
    with pytest.raises(vernal.CheckpointError, match=r"there is no file .*other"):
        vernal.load(tmp_path / "other", model())
    with pytest.raises(vernal.ArgumentError, match="path is 3"):
        vernal.load(cast(Any, 3), model())
    with pytest.raises(vernal.ArgumentError, match="without an array to save"):
        vernal.save(path, jnp.tanh)
    same = {"a.b": jnp.ones(1), "a": {"b": jnp.ones(1)}}
    with pytest.raises(vernal.CheckpointError, match=r"two arrays of the dict have the name a\.b"):
        vernal.save(path, same)


def test_a_file_that_cannot_be_written_leaves_the_one_before(tmp_path):
    (tmp_path / "file").write_text("here")
    with pytest.raises(vernal.CheckpointError, match="could not be written"):
        vernal.save(tmp_path / "file" / "model", model())
    path = tmp_path / "model"
    path.mkdir()
    with pytest.raises(vernal.CheckpointError, match="could not be written"):
        vernal.save(path, model())
    assert sorted(os.listdir(tmp_path)) == ["file", "model"]


def test_a_warm_start_takes_over_all_but_a_part(tmp_path):
    checkpoints = vernal.Checkpoints(tmp_path / "run", every_seconds=None)
    state, _ = fit(checkpoints)
    vernal.save(tmp_path / "model.safetensors", state.model)
    new = nn.MLP(1, 3, 4, 1, key=jax.random.key(5))
    for path in (tmp_path / "run", tmp_path / "model.safetensors"):
        assert_same_bits(vernal.load(path, model(seed=1)), state.model)
        warm = vernal.load(path, new, keep="layers.1")
        assert_same_bits(warm.layers[0], state.model.layers[0])
        assert_same_bits(warm.layers[1], new.layers[1])
        with pytest.raises(vernal.ArgumentError, match="keep names 'head', and the model has no"):
            vernal.load(path, new, keep=["layers.1", "head"])
    with pytest.raises(vernal.CheckpointError, match="there is no checkpoint in"):
        vernal.load(tmp_path, model())


def test_a_saved_file_has_the_mode_that_others_have(tmp_path):
    vernal.save(tmp_path / "new", model())
    (tmp_path / "any").touch()
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "any").stat().st_mode
    (tmp_path / "new").chmod(0o640)
    vernal.save(tmp_path / "new", model(seed=1))
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o640


def test_a_link_stays_a_link_to_what_is_saved(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "newest").symlink_to(tmp_path / "runs" / "model")
    for seed in (0, 1):  # a link to nothing yet, then to a file
        vernal.save(tmp_path / "newest", model(seed=seed))
        assert (tmp_path / "newest").is_symlink()
        assert_same_bits(vernal.load(tmp_path / "runs" / "model", model(seed=2)), model(seed=seed))
    assert os.listdir(tmp_path / "runs") == ["model"]


def test_a_name_that_the_format_keeps_for_itself_is_refused(tmp_path):
    with pytest.raises(vernal.CheckpointError, match="__metadata__"):
        vernal.save(tmp_path / "model", {"__metadata__": jnp.ones(3), "w": jnp.ones(3)})
    assert not os.listdir(tmp_path)


OTHER_MONITORS = {
    "another order": ([("loss", "min"), ("mae", "min")], [("mae", "min"), ("loss", "min")]),
    "another metric": ([("loss", "min")], [("mae", "min")]),
    "another mode": ([("loss", "min")], [("loss", "max")]),
}


@pytest.mark.parametrize(
    ("kind", "other"),
    [
        (callbacks.BestState, "another order"),
        (callbacks.EarlyStopping, "another mode"),
        *(
            pytest.param(*each, marks=pytest.mark.long)
            for each in [
                (callbacks.EarlyStopping, "another order"),
                (callbacks.BestState, "another metric"),
                (callbacks.EarlyStopping, "another metric"),
                (callbacks.BestState, "another mode"),
            ]
        ),
    ],
)
def test_a_callback_does_not_take_over_what_another_one_found(tmp_path, kind, other):
    before, after = OTHER_MONITORS[other]
    checkpoints = vernal.Checkpoints(tmp_path / "run", every_seconds=None)

    def run(kept, epochs):
        watching = [kind(monitor, mode=mode) for monitor, mode in kept]
        return fit(checkpoints, trainer=measuring("mae"), epochs=epochs, callbacks=watching)

    run(before, 2)
    with pytest.raises(vernal.CheckpointError, match=f"{kind.__name__} was saved of 'loss'"):
        run(after, 4)
    assert len(run(before, 4)[1].epochs["loss"]) == 4


def size_of(directory):
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def test_the_best_state_is_written_once_where_it_is_the_latest(tmp_path):
    start = TRAINER.init(nn.MLP(1, 1, 200, 2, key=jax.random.key(0)))
    sizes = []
    for name, how in {"none": [], "latest": [callbacks.BestState("loss")]}.items():
        checkpoints = vernal.Checkpoints(tmp_path / name, every_seconds=None, keep=1)
        fit(checkpoints, start=start, epochs=3, callbacks=how)
        sizes.append(size_of(tmp_path / name))
    assert sizes[1] < 1.1 * sizes[0]

    best = callbacks.BestState("loss")
    checkpoints = vernal.Checkpoints(tmp_path / "latest", every_seconds=None, keep=1)
    resumed, _ = fit(checkpoints, start=start, epochs=5, callbacks=[best])
    whole, _ = fit(None, start=start, epochs=5, callbacks=[callbacks.BestState("loss")])
    assert best.epoch == 4
    assert_same_bits(resumed, whole)


def test_arrays_larger_than_what_is_written_at_once_are_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(manager, "_FIRST_MOST_BYTES", 8)
    checkpoints = vernal.Checkpoints(tmp_path, every_steps=4)
    state, _ = fit(checkpoints)
    assert_same_bits(vernal.load(tmp_path, TRAINER.init(model())), state)
