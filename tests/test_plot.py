"""Pictures show the numbers they are made of."""

import sys

import equinox as eqx
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
import pytest

import vernal
from vernal import losses, nn, plot

KEY = jax.random.key(0)
X = np.random.default_rng(0).uniform(-1, 3, (20, 1)).astype(np.float32)
Y = 3 * X + 1


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def line(slope, intercept, size=1):
    model = nn.Linear(size, size, key=KEY)
    arrays = np.full((1, 1), slope, np.float32), np.full(1, intercept, np.float32)
    return eqx.tree_at(lambda m: (m.weight, m.bias), model, arrays)


def points(curve):
    return np.asarray(curve.get_xydata()).T


def names(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_predictions_are_drawn_over_the_whole_of_x():
    trainer = vernal.Trainer(optax.sgd(0.1), losses.MeanSquaredError())
    models = {"right": line(3.0, 1.0), "wrong": trainer.init(line(-1.0, 0.0))}
    ax = plot.predictions(models, (X, Y))
    np.testing.assert_array_equal(np.asarray(ax.collections[0].get_offsets()), np.hstack([X, Y]))
    drawn = {curve.get_label(): points(curve) for curve in ax.lines}
    assert list(drawn) == ["right", "wrong"]
    for (x, y), (slope, intercept) in zip(drawn.values(), [(3, 1), (-1, 0)], strict=True):
        assert (x.min(), x.max()) == (X.min(), X.max())
        assert np.all(np.diff(x) > 0)
        np.testing.assert_allclose(y, slope * x + intercept, atol=1e-5)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("x", "y")
    assert names(ax) == ["data", "right", "wrong"]


def test_predictions_take_one_model_flat_data_and_the_callers_axes():
    _, ax = plt.subplots()
    model = nn.Linear("scalar", "scalar", key=KEY)
    assert plot.predictions(model, (X[:, 0].tolist(), Y[:, 0]), ax=ax) is ax
    x, y = points(ax.lines[0])
    np.testing.assert_allclose(y, jax.vmap(model)(x.astype(np.float32)), rtol=1e-5)


def test_predictions_leave_dropout_out():
    model = eqx.nn.Sequential([line(3.0, 1.0), eqx.nn.Dropout(0.5)])
    x, y = points(plot.predictions(model, (X, Y)).lines[0])
    np.testing.assert_allclose(y, 3 * x + 1, atol=1e-5)


def test_predictions_of_more_than_one_number_are_refused():
    with pytest.raises(vernal.ShapeError, match=r"needs x of shape .* x has\s+shape \(20, 2\)"):
        plot.predictions(nn.Linear(2, 1, key=KEY), (np.hstack([X, X]), Y))
    with pytest.raises(vernal.ShapeError, match=r"needs y of shape .* y has\s+shape \(20, 2\)"):
        plot.predictions(line(1.0, 0.0), (X, np.hstack([Y, Y])))
    with pytest.raises(vernal.ShapeError, match=r"(?s)needs predictions of shape .* \(500, 3\)"):
        plot.predictions(nn.Linear(1, 3, key=KEY), (X, Y))
    with pytest.raises(vernal.ShapeError, match=r"Try x\[:, None\]"):
        plot.predictions(nn.Linear(1, 1, key=KEY), (X[:, 0], Y[:, 0]))
    assert plt.get_fignums() == []  # nothing half drawn is left behind


def test_history_draws_each_epochs_loss():
    trainer = vernal.Trainer(optax.sgd(0.01), losses.MeanSquaredError())
    _, record = trainer.fit(line(0.0, 0.0), (X, Y), epochs=7, batch_size=8)
    ax = record.plot()
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), np.arange(1, 8))
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), record.epochs["loss"])
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_yscale()) == ("epoch", "loss", "log")


def test_history_names_runs_and_validation():
    trainer = vernal.Trainer(optax.sgd(0.01), losses.MeanSquaredError())
    fit = lambda **options: trainer.fit(line(0.0, 0.0), (X, Y), epochs=4, **options)[1]
    every_second = fit(validation_data=(X + 1, Y), validate_every=2)
    ax = plot.history(every_second)
    assert [curve.get_label() for curve in ax.lines] == ["loss", "val_loss"]
    np.testing.assert_array_equal(ax.lines[1].get_xdata(), [2, 4])
    plot.history(fit(), ax=ax, label="second")
    plot.history(every_second, ax=ax, label="third")
    assert names(ax) == ["loss", "val_loss", "second", "third", "third: val_loss"]


def test_a_long_curve_is_drawn_in_few_points_with_its_extremes():
    n = 123_457
    values = np.random.default_rng(0).uniform(1, 2, n)
    high, low = [7, 60_000, n - 2], [1000, 99_999]
    values[high], values[low], values[50_000:51_000] = 9, 0.1, np.nan
    every_hundredth = np.where(np.arange(n) % 100 == 99, values, np.nan)
    every_hundredth[4999] = 30
    record = vernal.History({}, {"loss": values, "val_loss": every_hundredth})
    ax = record.plot()
    for curve, of in zip(ax.lines, (values, every_hundredth), strict=True):
        x, y = points(curve)
        places = x.astype(int) - 1
        assert 1000 < len(places) <= 4000
        assert np.all(np.diff(places) > 0)
        np.testing.assert_array_equal(y, of[places])
        known = np.flatnonzero(np.isfinite(of))
        assert {known[0], known[-1]} <= set(places)
        # A picture is not so wide that it would show more: the extremes of each thousandth.
        for part in np.array_split(known, 500):
            inside = y[(places >= part[0] - n // 1000) & (places <= part[-1] + n // 1000)]
            assert inside.min() <= of[part].min()
            assert inside.max() >= of[part].max()
    assert {*high, *low} <= set(points(ax.lines[0])[0].astype(int) - 1)
    assert 30 in points(ax.lines[1])[1]
    assert ax.get_yscale() == "log"
    ax.figure.canvas.draw()


def test_one_loss_of_many_that_is_not_positive_makes_the_scale_linear():
    values = np.ones(50_000, np.float32)
    values[12_345] = 0
    ax = vernal.History({"loss": values}, {}).plot()
    assert (ax.get_yscale(), ax.get_xlabel()) == ("linear", "step")
    assert 12_346 in points(ax.lines[0])[0]


def test_residuals_lead_from_each_point_to_the_curve_of_the_last_model():
    ax = plot.predictions(
        {"wrong": line(-1.0, 0.0), "right": line(3.0, 0.5)}, (X, Y), residuals=True
    )
    segments = np.asarray(ax.collections[1].get_segments())
    np.testing.assert_allclose(segments[:, 0], np.hstack([X, Y]), rtol=1e-6)
    np.testing.assert_allclose(segments[:, 1], np.hstack([X, Y - 0.5]), rtol=1e-5)


def test_residuals_are_answers_minus_predictions():
    model = nn.Linear(2, 1, key=KEY)
    x = np.hstack([X, X**2])
    ax = plot.residuals(model, (x, Y[:, 0]))
    predicted, left = np.asarray(ax.collections[0].get_offsets()).T
    np.testing.assert_allclose(predicted, jax.vmap(model)(x)[:, 0], rtol=1e-5)
    np.testing.assert_allclose(left, Y[:, 0] - predicted, rtol=1e-5)
    with pytest.raises(vernal.ShapeError, match=r"predictions of shape \(n,\) or \(n, 1\)"):
        plot.residuals(nn.Linear(2, 3, key=KEY), (x, Y))


@pytest.mark.parametrize("logits", [1, 2])
def test_a_decision_boundary_is_where_the_choice_changes(logits):
    # Class 1 where the first input is above 0.5: one logit, or the second of two.
    weights = np.array([[1, 0], [2, 0]], np.float32)[:logits]
    biases = np.array([-0.5, -1.0], np.float32)[:logits]
    model = nn.Linear(2, logits, key=KEY)
    model = eqx.tree_at(lambda m: (m.weight, m.bias), model, (weights, biases))
    x = np.random.default_rng(0).uniform(-1, 2, (50, 2)).astype(np.float32)
    y = (x[:, 0] > 0.5).astype(int)
    ax = plot.decision_boundary(model, (x, y))
    (boundary,) = ax.collections[1].get_paths()
    np.testing.assert_allclose(boundary.vertices[:, 0], 0.5, atol=0.01)
    for label, drawn in zip((0, 1), ax.collections[2:], strict=True):
        np.testing.assert_array_equal(np.asarray(drawn.get_offsets()), x[y == label])
    assert names(ax) == ["class 0", "class 1"]


def test_a_decision_boundary_needs_two_inputs_and_known_classes():
    model = nn.Linear(2, 1, key=KEY)
    with pytest.raises(vernal.ShapeError, match=r"x of shape \(n, 2\); x has shape \(20, 1\)"):
        plot.decision_boundary(model, (X, Y))
    with pytest.raises(vernal.DataError, match="y has class 2; the model chooses from 0 to 1"):
        plot.decision_boundary(model, (np.hstack([X, X]), np.full(20, 2)))


def test_a_confusion_matrix_shows_its_counts_and_refuses_what_is_none():
    ax = plot.confusion_matrix([[8, 2], [0, 5.5]])
    assert [text.get_text() for text in ax.texts] == ["8", "2", "0", "5.5"]
    np.testing.assert_allclose(ax.images[0].get_array(), [[0.8, 0.2], [0, 1]])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted class", "true class")
    with pytest.raises(vernal.ShapeError, match=r"square; matrix has shape \(2, 3\)"):
        plot.confusion_matrix(np.ones((2, 3)))
    with pytest.raises(vernal.ShapeError, match="2 classes, but there are 3 labels"):
        plot.confusion_matrix(np.ones((2, 2)), labels=["a", "b", "c"])


def test_plots_without_matplotlib_name_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(vernal.MissingExtraError, match=r"pip install 'vernal\[plot\]'"):
        plot.predictions(line(1.0, 0.0), (X, Y))
