"""The record of a run against averages by hand, and what can be made of it."""

import base64
import re
import sys
import tracemalloc
from typing import Any
from xml.etree import ElementTree

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import pandas as pd
import pytest
from helpers import filled

import vernal
from vernal import History, losses

KEY = jax.random.key(4)
N = 13


class Dot(eqx.Module):
    """A linear model, small enough for NumPy to follow."""

    w: jax.Array

    def __call__(self, x):
        return jnp.dot(self.w, x)


def with_metrics(model, batch, key):
    """A loss of one's own: the squared error, with the absolute one beside it."""
    x, y = batch[:2]
    error = jax.vmap(model)(x) - y
    return jnp.mean(error**2), {"mae": jnp.mean(jnp.abs(error)), "above": jnp.mean(error > 0)}


MSE = losses.MeanSquaredError()
TRAINER = vernal.Trainer(optax.sgd(0.05), MSE)
CUSTOM = vernal.Trainer(optax.sgd(0.05), with_metrics)


@pytest.fixture
def data():
    rng = np.random.default_rng(3)
    return rng.normal(size=(N, 2)).astype(np.float32), rng.normal(size=N).astype(np.float32)


@pytest.fixture
def weight():
    return np.random.default_rng(4).uniform(0.1, 3, N).astype(np.float32)


def start():
    return TRAINER.init(Dot(jnp.array([0.5, -1.0])), key=KEY)


def by_hand(state, batches):
    """Gradient descent in NumPy: each update's loss, and its batch's weight."""
    w = np.asarray(state.model.w, float)
    values, weights = [], []
    for x, y, *given in batches:
        weight = given[0].astype(float) if given else np.ones(len(y))
        error = x @ w - y
        values.append(np.sum(weight * error**2) / np.sum(weight))
        weights.append(np.sum(weight))
        w = w - 0.05 * 2 * (weight * error) @ x / np.sum(weight)
    return np.array(values), np.array(weights)


def averages(values, weights, ends):
    """The weighted average of each part, given where the parts end."""
    parts = zip(np.split(values, ends)[:-1], np.split(weights, ends)[:-1], strict=True)
    return [np.sum(v * w) / np.sum(w) for v, w in parts]


def batches_of(data, size, epochs):
    for epoch in range(epochs):
        yield from vernal.batches(data, size, epoch=epoch, key=KEY)


@pytest.mark.parametrize(
    ("size", "weighted"), [(None, False), (5, True), (5, False), (12, False), (1, True)], ids=str
)
def test_an_epochs_loss_is_the_average_over_its_examples(size, weighted, data, weight):
    data = (*data, weight) if weighted else data
    state, history = TRAINER.fit(start(), data, epochs=4, batch_size=size)
    values, weights = by_hand(start(), batches_of(data, size, 4))
    length = 1 if size is None else -(-N // size)
    assert history.steps["loss"].shape == (4 * length,)
    assert history.epochs["loss"].shape == (4,)
    np.testing.assert_allclose(history.steps["loss"], values, rtol=1e-4)
    ends = length * np.arange(1, 5)
    np.testing.assert_allclose(history.epochs["loss"], averages(values, weights, ends), rtol=1e-4)
    # To the last digits, from the record itself.
    expected = averages(history.steps["loss"].astype(float), weights, ends)
    np.testing.assert_allclose(history.epochs["loss"], expected, rtol=1e-6)
    assert (int(state.step), int(state.epoch), int(state.batch)) == (4 * length, 4, 0)


@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("made", [1, 3, 4, 5])
def test_a_run_from_the_middle_of_an_epoch_averages_what_is_left(made, weighted, data, weight):
    data = (*data, weight) if weighted else data
    state = start()
    everything = list(batches_of(data, 4, 4))  # four updates an epoch, the last on one example
    for batch in everything[:made]:
        state, _ = TRAINER.step(state, batch)
    _, history = TRAINER.fit(state, data, epochs=2, batch_size=4)
    end = 4 * (made // 4 + 2)
    values, weights = by_hand(start(), everything[:end])
    np.testing.assert_allclose(history.steps["loss"], values[made:], rtol=1e-4)
    ends = np.array([end - 4, end]) - made
    expected = averages(values[made:], weights[made:], ends)
    np.testing.assert_allclose(history.epochs["loss"], expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("cuts", "weighted"), [([5, 5, 3], True), ([2, 5, 1, 5], False), ([13], False)], ids=str
)
def test_a_loaders_epochs_are_averaged_by_their_examples(cuts, weighted, data, weight):
    data = (*data, weight) if weighted else data
    ends = np.cumsum(cuts)
    loader = [tuple(a[i:j] for a in data) for i, j in zip([0, *ends], ends, strict=False)]
    _, history = TRAINER.fit(start(), loader, epochs=3)
    values, weights = by_hand(start(), loader * 3)
    np.testing.assert_allclose(history.steps["loss"], values, rtol=1e-4)
    ends = len(cuts) * np.arange(1, 4)
    np.testing.assert_allclose(history.epochs["loss"], averages(values, weights, ends), rtol=1e-4)


def test_an_epoch_of_zero_weights_has_the_loss_0(data):
    _, history = TRAINER.fit(start(), (*data, np.zeros(N)), epochs=2, batch_size=5)
    np.testing.assert_array_equal(history.steps["loss"], np.zeros(6))
    np.testing.assert_array_equal(history.epochs["loss"], np.zeros(2))


@pytest.mark.parametrize("size", [None, 5])
def test_a_losss_own_metrics_are_recorded_beside_it(size, data):
    _, history = CUSTOM.fit(start(), data, epochs=3, batch_size=size, validation_data=data)
    assert list(history.steps) == ["loss", "above", "mae"]  # the loss is first
    assert set(history.epochs) == {f"{v}{n}" for v in ("", "val_") for n in history.steps}
    assert next(iter(history.epochs)) == "loss"
    sizes = np.array([13] * 3 if size is None else [5, 5, 3] * 3)
    ends = len(sizes) // 3 * np.arange(1, 4)
    for name, values in history.steps.items():
        assert isinstance(values, np.ndarray)
        np.testing.assert_allclose(
            history.epochs[name], averages(values, sizes, ends), rtol=1e-5, atol=1e-7
        )
    # They are told apart: neither is the other under its name.
    x, y = data if size is None else next(vernal.batches(data, size, key=KEY))
    error = x @ np.array([0.5, -1.0]) - y
    np.testing.assert_allclose(history.steps["loss"][0], np.mean(error**2), rtol=1e-5)
    np.testing.assert_allclose(history.steps["mae"][0], np.mean(np.abs(error)), rtol=1e-5)


def test_validation_is_one_value_an_epoch_and_nan_where_there_was_none(data):
    x, y = data
    validation = (x[:5], y[:5] + 1)
    _, history = TRAINER.fit(
        start(), data, epochs=5, batch_size=5, validation_data=validation, validate_every=2
    )
    assert list(history.epochs) == ["loss", "val_loss"]
    known = np.isfinite(history.epochs["val_loss"])
    np.testing.assert_array_equal(known, [False, True, False, True, False])
    # Measured after the epoch, on the model that it made.
    for epochs in (2, 4):
        state, _ = TRAINER.fit(start(), data, epochs=epochs, batch_size=5)
        w = np.asarray(state.model.w, float)
        expected = np.mean((validation[0] @ w - validation[1]) ** 2)
        np.testing.assert_allclose(history.epochs["val_loss"][epochs - 1], expected, rtol=1e-5)


def test_epochs_and_fit_tell_the_same(data):
    _, history = TRAINER.fit(start(), data, epochs=3, batch_size=5, validation_data=data)
    seen = []
    for epoch in TRAINER.epochs(start(), data, batch_size=5, validation_data=data):
        seen.append(epoch.metrics)
        if len(seen) == 3:
            break
    assert set(seen[0]) == {"loss", "val_loss"}
    for name, values in history.epochs.items():
        np.testing.assert_array_equal([metrics[name] for metrics in seen], values)


def test_pandas_takes_the_record(data):
    _, history = CUSTOM.fit(
        start(), data, epochs=4, batch_size=5, validation_data=data, validate_every=3
    )
    frame = pd.DataFrame(history.epochs)
    assert frame.shape == (4, 6)
    assert list(frame.columns[:1]) == ["loss"]
    np.testing.assert_array_equal(frame["loss"], history.epochs["loss"])
    assert frame["val_loss"].isna().tolist() == [True, True, False, True]
    assert pd.DataFrame(history.steps).shape == (12, 3)
    assert pd.DataFrame(History().epochs).empty


# ----- in memory


@pytest.mark.parametrize(
    ("size", "steps", "most"),
    [(None, 1, 12.5), (5, 3, 7.5)],
    ids=["an epoch a step", "three steps"],
)
def test_a_step_takes_four_bytes_and_an_epoch_eight(size, steps, most, data):
    """While a record grows, it may take twice that. A few superbatches are held, too."""
    epochs = 150_000 // steps
    TRAINER.fit(start(), data, epochs=2, batch_size=size)  # compiling takes memory, too
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    _, history = TRAINER.fit(start(), data, epochs=epochs, batch_size=size)
    now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    made = len(history.steps["loss"])
    assert made == steps * epochs
    assert history.steps["loss"].nbytes == 4 * made
    assert now - before < most * made + 2**19
    assert peak - before < 2 * most * made + 2**21


def test_a_history_has_no_room_to_spare(data):
    _, history = TRAINER.fit(start(), data, epochs=1001)
    assert history.steps["loss"].base is None
    assert history.steps["loss"].nbytes == 4 * 1001
    # Where each epoch is one step, the two agree to the bit.
    np.testing.assert_array_equal(history.epochs["loss"], history.steps["loss"])


@pytest.mark.parametrize("lengths", [[1, 1, 2, 2, 2], [2, 2, 1, 1, 1]], ids=str)
def test_epochs_of_one_batch_and_of_two(lengths, data):
    batches, left = [data, tuple(a[:5] for a in data)], list(lengths)
    _, history = TRAINER.fit(start(), lambda: batches[: left.pop(0)], epochs=5)
    assert left == []
    assert len(history.steps["loss"]) == sum(lengths)
    weights = np.concatenate([[13.0, 5.0][:length] for length in lengths])
    expected = averages(history.steps["loss"].astype(float), weights, np.cumsum(lengths))
    np.testing.assert_allclose(history.epochs["loss"], expected, rtol=1e-6)


# ----- in words


def record(steps, seconds=1.25, **epochs):
    arrays = {name: np.array(values, float) for name, values in epochs.items()}
    return History({"loss": np.array(steps, float)}, arrays, seconds)


@pytest.mark.parametrize(
    ("history", "says"),
    [
        (History(), "History(0 epochs, 0 steps, 0.00 s)"),
        (
            record([4, 2, 1], loss=[2, 0.5]),
            "History(2 epochs, 3 steps, loss 2 → 0.5, 1.25 s)",
        ),
        (
            record([0.123456], loss=[0.123456]),
            "History(1 epoch, 1 step, loss 0.1235 → 0.1235, 1.25 s)",
        ),
        (
            record([1] * 12000, loss=[3] * 6000, val_loss=[np.nan, 9, 7] * 2000),
            "History(6,000 epochs, 12,000 steps, loss 3 → 3, val_loss 9 → 7, 1.25 s)",
        ),
        # Stopped in the first epoch: what there is are the updates.
        (record([4, 2, 1]), "History(0 epochs, 3 steps, loss 4 → 1, 1.25 s)"),
    ],
)
def test_a_history_says_how_the_run_went(history, says):
    assert repr(history) == str(history) == says


def test_a_history_does_not_hide_that_a_run_diverged():
    assert "nan" in repr(record([1, np.nan, np.nan], loss=[1, np.nan, np.nan]))
    assert "inf" in repr(record([1, np.inf], loss=[1, np.inf]))


def test_a_real_run_in_words(data):
    _, history = TRAINER.fit(start(), data, epochs=3, batch_size=5)
    first, last = (f"{history.epochs['loss'][i]:.4g}" for i in (0, -1))
    assert repr(history).startswith(f"History(3 epochs, 9 steps, loss {first} → {last}, ")
    assert first != last


# ----- in a notebook


def test_a_notebook_shows_a_picture_and_a_table():
    figures = plt.get_fignums()
    history = record(
        [1],
        loss=[4, 2, 1],
        **{"val_accuracy": [0.5, np.nan, 0.25], "a<b": [3, 2, 1], "val_loss": [np.nan] * 3},
    )
    shown = history._repr_html_()
    assert plt.get_fignums() == figures  # else the notebook would show it twice
    png = base64.b64decode(re.findall('src="data:image/png;base64,(.*?)"', shown)[0])
    assert png.startswith(b"\x89PNG") and len(png) < 60_000
    [table] = re.findall("<table>.*</table>", shown)
    rows = [[cell.text or "" for cell in row] for row in ElementTree.fromstring(table)]
    assert rows == [
        ["", "last", "best", "in epoch"],
        ["loss", "1", "1", "3"],
        ["val_accuracy", "0.25", "0.5", "1"],
        ["a<b", "1", "", ""],  # which of them are best is not known
        ["val_loss", "nan", "", ""],
    ]
    assert "a&lt;b 3 → 1" in shown
    assert "<img" in History()._repr_html_()


def test_without_matplotlib_a_notebook_shows_the_table(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    shown = record([1], loss=[4, 1])._repr_html_()
    assert "<img" not in shown and "<td>loss</td><td>1</td><td>1</td><td>2</td>" in shown


# ----- the state in words


class Typed(eqx.Module):
    """A model with a leaf that is no array, and has a dtype."""

    w: jax.Array
    dtype: Any

    def __call__(self, x):
        return jnp.dot(self.w, x)


def test_a_state_is_printed_in_three_lines():
    model = filled(lambda: eqx.nn.MLP(4, 2, 16, 2, key=KEY))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_array)))
    trainer = vernal.Trainer(optax.adam(1e-3), MSE)
    state, _ = trainer.fit(model, (np.ones((6, 4)), np.ones((6, 2))), epochs=2, batch_size=2)
    first, second, third = str(state).splitlines()
    assert first == "TrainState(step=6, epoch=2,"
    assert f"MLP, {parameters:,} parameters, {4 * parameters:,} bytes" in second
    assert "ScaleByAdamState" in third
    # Also where its leaves are something else than arrays.
    shapes = eqx.filter_eval_shape(trainer.init, model)
    assert f"MLP, {parameters:,} parameters" in repr(shapes)
    in_jit = []
    eqx.filter_jit(lambda state: in_jit.append(repr(state)))(state)
    nothing = jax.tree.map(lambda leaf: None, state)
    many = eqx.filter_vmap(lambda key: TRAINER.init(Dot(jnp.ones(2)), key=key))(
        jax.random.split(KEY, 300)
    )
    typed = TRAINER.init(Typed(jnp.ones(2), jnp.float32))
    assert "Typed, 2 parameters" in repr(typed)
    for shown in (repr(shapes), in_jit[0], repr(nothing), repr(many), repr(typed)):
        assert len(shown.splitlines()) == 3 and len(shown) < 400


# ----- in a picture


@pytest.fixture
def axes():
    _, ax = plt.subplots()
    yield ax
    plt.close("all")


def points_of(line):
    return np.asarray(line.get_xydata()).tolist()


def test_plot_draws_on_the_axes_it_is_given(axes):
    figures = plt.get_fignums()
    ax = record([4, 3, 2, 1], loss=[4, 1], val_loss=[3, 2]).plot(axes)
    assert ax is axes
    assert plt.get_fignums() == figures
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "loss")
    curves = {line.get_label(): points_of(line) for line in ax.lines}
    assert curves == {"loss": [[1, 4], [2, 1]], "val_loss": [[1, 3], [2, 2]]}
    legend = ax.get_legend()
    assert legend is not None
    shown = [text.get_text() for text in legend.get_texts()]
    assert shown == ["loss", "val_loss"]


@pytest.mark.parametrize(
    ("history", "label", "scale", "points"),
    [
        (record([4, 3, 2, 1], loss=[4, 1]), "epoch", "log", [[1, 4], [2, 1]]),
        (record([4, 3, 2, 1]), "step", "log", [[1, 4], [2, 3], [3, 2], [4, 1]]),
        (record([1, -1], loss=[1, -1]), "epoch", "linear", [[1, 1], [2, -1]]),
        (record([1, 0], loss=[1, 0]), "epoch", "linear", [[1, 1], [2, 0]]),
        (record([2, 0, -1]), "step", "linear", [[1, 2], [2, 0], [3, -1]]),
        (record([1, 1], loss=[1, np.nan, 4]), "epoch", "log", [[1, 1], [3, 4]]),
    ],
)
def test_plot_draws_all_there_is(history, label, scale, points, axes):
    """On a logarithmic scale, where no value would be lost."""
    history.plot(axes)
    assert [points_of(line) for line in axes.lines] == [points]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_yscale()) == (label, "loss", scale)
    axes.figure.canvas.draw()  # without a warning


ACCURACIES = record([1], loss=[4, 1], accuracy=[0.1, 0.9], val_accuracy=[0.5, 0.4], gain=[1, 2])


@pytest.mark.parametrize(
    ("metrics", "curves", "scale", "best"),
    [
        ("accuracy", ["accuracy", "val_accuracy"], "linear", [[1, 0.5]]),
        (["val_accuracy"], ["val_accuracy"], "linear", [[1, 0.5]]),
        (["loss"], ["loss"], "log", [[2, 1]]),
        (["gain"], ["gain"], "linear", []),
        (["loss", "accuracy"], ["loss", "accuracy", "val_accuracy"], "linear", [[2, 1], [1, 0.5]]),
    ],
)
def test_plot_draws_the_metrics_asked_for_and_marks_the_best(metrics, curves, scale, best, axes):
    ACCURACIES.plot(axes, metrics)
    assert [line.get_label() for line in axes.lines] == curves
    assert axes.get_yscale() == scale
    marks = [np.asarray(mark.get_offsets()).tolist()[0] for mark in axes.collections]
    assert marks == best
    colors = [line.get_color() for line in axes.lines]
    assert len(set(colors)) == len(colors)
    expected = metrics if isinstance(metrics, str) else ", ".join(metrics)
    assert axes.get_ylabel() == expected


def test_plot_says_which_metrics_there_are(axes):
    with pytest.raises(vernal.ArgumentError, match=r"(?s)accuracy, gain.*Did you mean 'accuracy'"):
        ACCURACIES.plot(axes, ["acuracy"])
    assert len(axes.lines) == 0


def test_the_scale_suits_all_curves_of_a_picture(axes):
    record([4, 1], loss=[4, 1]).plot(axes, label="one")
    assert axes.get_yscale() == "log"
    record([1, -1], loss=[1, -1]).plot(axes, label="other")
    assert axes.get_yscale() == "linear"
    record([1.0, 0.9], loss=[1.0, 0.9]).plot(other := plt.figure().subplots())
    assert other.get_yscale() == "linear"


def test_an_empty_history_is_an_empty_picture(axes):
    History().plot(axes)
    assert [len(line.get_xdata()) for line in axes.lines] in ([], [0])
    assert axes.get_ylabel() == "loss"
    axes.figure.canvas.draw()


def test_plot_makes_axes_of_its_own(axes):
    history = record([4, 1], loss=[4, 1])
    assert history.plot() is not axes
    assert len(axes.lines) == 0
