"""Metrics: what they are of one example, exact over ragged batches and weights, and where shown."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import (
    KEY,
    as_float64,
    assert_same_bits,
    batches_of,
    filled,
    loop_by_hand,
)
from sklearn import metrics as reference

import vernal
from vernal import losses, metrics, nn
from vernal._limits import limits

pytestmark = pytest.mark.usefixtures("compiled_fast")

RNG = np.random.default_rng(0)
N = 53  # ragged for every batch size below
X = RNG.normal(size=(N, 4)).astype(np.float32)
LABELS = RNG.integers(0, 3, N)
TARGETS = (100 + X @ RNG.normal(size=(4, 2)) + RNG.normal(size=(N, 2))).astype(np.float32)
WEIGHTS = RNG.integers(0, 4, N).astype(np.float32)


class Identity(eqx.Module):
    """Predicts its input, but for a parameter, so that there is something to train."""

    shift: jax.Array

    def __init__(self, shift=0.0):
        self.shift = jnp.asarray(shift)

    def __call__(self, x):
        return x + self.shift


SGD = optax.sgd(1e-3)


def trainer(loss, **measured):
    return vernal.Trainer(SGD, loss, metrics=measured)


def mlp(n_out):
    return filled(lambda: nn.MLP(4, n_out, 8, 1, key=KEY))


def classify(seed=0, classes=3):
    return RNG.permutation(RNG.normal(size=(N, classes)).astype(np.float32))


@pytest.mark.parametrize(
    ("batch_size", "weighted"), [(None, True), (1, False), (10, True), (52, False), (1000, False)]
)
def test_classification_metrics_are_those_of_scikit_learn_whatever_the_batches(
    batch_size, weighted
):
    logits = classify()
    weight = WEIGHTS if weighted else None
    data = (logits, LABELS, WEIGHTS) if weighted else (logits, LABELS)
    found = trainer(
        losses.CrossEntropy(),
        accuracy=metrics.accuracy,
        top2=metrics.top_k(2),
        confusion=metrics.confusion_matrix,
    ).evaluate(Identity(), data, batch_size=batch_size)
    chosen = logits.argmax(axis=1)
    expected = reference.accuracy_score(LABELS, chosen, sample_weight=weight)
    assert found["accuracy"] == pytest.approx(expected, rel=1e-6)
    expected = reference.top_k_accuracy_score(LABELS, logits, k=2, sample_weight=weight)
    assert found["top2"] == pytest.approx(expected, rel=1e-6)
    expected = reference.confusion_matrix(LABELS, chosen, sample_weight=weight)
    np.testing.assert_array_equal(found["confusion"], expected)


@pytest.mark.parametrize(
    ("batch_size", "weighted", "offset"),
    [(None, False, 0.0), (1, True, 1e3), (10, True, 0.0), (52, False, 1e3)],
)
def test_regression_metrics_are_those_of_scikit_learn_whatever_the_batches(
    batch_size, weighted, offset
):
    """R² is no average over batches, and a mean far from 0 must not cancel it away."""
    y = (TARGETS + np.float32(offset)).astype(np.float32)
    prediction = (y + RNG.normal(size=y.shape)).astype(np.float32)
    weight = WEIGHTS if weighted else None
    data = (prediction, y, WEIGHTS) if weighted else (prediction, y)
    found = trainer(
        losses.MeanSquaredError(), mae=metrics.mean_absolute_error, r2=metrics.r2
    ).evaluate(Identity(), data, batch_size=batch_size)
    exact = [array.astype(np.float64) for array in (y, prediction)]
    expected = reference.mean_absolute_error(*exact, sample_weight=weight)
    assert found["mae"] == pytest.approx(expected, rel=1e-5)
    expected = reference.r2_score(*exact, sample_weight=weight)
    assert found["r2"] == pytest.approx(expected, rel=2e-5 * (1 + offset / 100))


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("right", [True, False])
def test_r2_of_targets_that_do_not_vary(batch_size, right):
    y = np.full((5, 1), 7.0, np.float32)
    found = trainer(losses.MeanSquaredError(), r2=metrics.r2).evaluate(
        Identity(), (y if right else y + 1, y), batch_size=batch_size
    )
    assert found["r2"] == reference.r2_score(y, y if right else y + 1)


def test_accuracy_of_single_logits_and_of_one_hot_targets():
    logit, label = classify(classes=1), (LABELS > 0).astype(np.float32)[:, None]
    found = trainer(
        losses.BinaryCrossEntropy(), accuracy=metrics.accuracy, confusion=metrics.confusion_matrix
    ).evaluate(Identity(), (logit, label), batch_size=10)
    chosen = (logit > 0).astype(int)
    assert found["accuracy"] == pytest.approx(np.mean(chosen == label))
    expected = reference.confusion_matrix(label.ravel(), chosen.ravel())
    np.testing.assert_array_equal(found["confusion"], expected)
    flat = trainer(losses.BinaryCrossEntropy(), accuracy=metrics.accuracy)
    data = (logit[:, 0], label[:, 0])
    assert flat.evaluate(Identity(), data)["accuracy"] == pytest.approx(found["accuracy"])

    logits, one_hot = classify(), np.eye(3, dtype=np.float32)[LABELS]
    two = {"accuracy": metrics.accuracy, "top2": metrics.top_k(2)}
    from_labels = trainer(losses.CrossEntropy(), **two).evaluate(Identity(), (logits, LABELS))
    wrapped = vernal.Trainer(optax.sgd(0.1), losses.MeanSquaredError(), metrics=two)
    from_one_hot = wrapped.evaluate(Identity(), (logits, one_hot))
    for name in two:
        assert from_one_hot[name] == from_labels[name]


def test_accuracy_of_sequences_counts_each_label():
    logits = RNG.normal(size=(N, 7, 3)).astype(np.float32)
    labels = RNG.integers(0, 3, (N, 7))
    found = trainer(
        losses.CrossEntropy(), accuracy=metrics.accuracy, confusion=metrics.confusion_matrix
    ).evaluate(Identity(), (logits, labels), batch_size=10)
    chosen = logits.argmax(-1)
    assert found["accuracy"] == pytest.approx(np.mean(chosen == labels))
    expected = reference.confusion_matrix(labels.ravel(), chosen.ravel())
    np.testing.assert_array_equal(found["confusion"], expected)


@pytest.mark.parametrize("metric", [metrics.accuracy, metrics.top_k(1), metrics.top_k(3)])
def test_a_prediction_that_is_nan_is_never_right(metric):
    assert metric(jnp.full(3, jnp.nan), jnp.array(1)) == 0
    assert metrics.accuracy(jnp.array(jnp.nan), jnp.array(0.0)) == 0
    assert metrics.accuracy(jnp.array(jnp.nan), jnp.array(1.0)) == 0


def weighted_error(model, batch, key, model_state):
    """By hand: the loss; and each batch's predictions before the step, targets and weights."""
    x, y, weight = batch
    prediction = jax.vmap(model)(x)
    square = jnp.mean((prediction - y) ** 2, axis=1)
    made = {"prediction": prediction, "target": y, "weight": weight}
    return jnp.sum(weight * square) / jnp.sum(weight), made, model_state


@pytest.mark.parametrize("batch_size", [None, 10])
def test_training_records_what_each_batch_gave_and_exact_averages_over_an_epoch(batch_size):
    measured = {"mae": metrics.mean_absolute_error, "r2": metrics.r2}
    functions = {"mae": reference.mean_absolute_error, "r2": reference.r2_score}
    with jax.enable_x64(True):
        model, data = as_float64((mlp(2), (X, TARGETS - 100, WEIGHTS + 0.5)))
        train = trainer(losses.MeanSquaredError(), **measured)
        start = train.init(model, key=KEY)
        _, history = train.fit(start, data, epochs=4, batch_size=batch_size)
        batches = batches_of(data, batch_size, 4)
        made = loop_by_hand(weighted_error, train.optimizer, model, batches).steps

    parts = list(zip(made["target"], made["prediction"], made["weight"], strict=True))
    length = len(parts) // 4
    for name, function in functions.items():
        steps = [function(y, p, sample_weight=w) for y, p, w in parts]
        np.testing.assert_allclose(history.steps[name], steps, rtol=1e-9, atol=1e-10)
        epochs = [parts[i : i + length] for i in range(0, len(parts), length)]
        whole = [list(map(np.concatenate, zip(*epoch, strict=True))) for epoch in epochs]
        expected = [function(y, p, sample_weight=w) for y, p, w in whole]
        np.testing.assert_allclose(history.epochs[name], expected, rtol=1e-9)


def test_r2_of_epochs_does_not_depend_on_where_the_run_is_cut():
    data = (X, TARGETS)
    model = mlp(2)
    run = lambda: trainer(losses.MeanSquaredError(), r2=metrics.r2).fit(
        model, data, epochs=5, batch_size=10
    )
    _, expected = run()
    with limits(chunk_steps=1):  # chunks of one step
        _, cut = run()
    np.testing.assert_array_equal(cut.steps["r2"], expected.steps["r2"])
    np.testing.assert_allclose(cut.epochs["r2"], expected.epochs["r2"], rtol=1e-12)
    assert len(cut.epochs["r2"]) == 5


def test_metrics_are_everywhere_but_arrays_in_evaluate_alone():
    data = (X, LABELS)
    model = mlp(3)
    train = trainer(
        losses.CrossEntropy(), accuracy=metrics.accuracy, confusion=metrics.confusion_matrix
    )
    state, history = train.fit(model, data, epochs=3, batch_size=10, validation_data=data)
    assert set(history.steps) == {"loss", "accuracy"}
    assert set(history.epochs) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    results = train.evaluate(state, data)
    assert history.epochs["val_accuracy"][-1] == pytest.approx(results["accuracy"])
    assert results["confusion"].sum() == N
    epoch = next(iter(train.epochs(model, data, batch_size=10, validation_data=data)))
    assert set(epoch.metrics) == set(history.epochs)
    _, info = train.step(train.init(model), data)
    assert set(info) == {"loss", "accuracy"}
    at_start = vernal.Trainer(train.optimizer, train.loss, metrics=train.metrics)
    assert float(info["accuracy"]) == pytest.approx(at_start.evaluate(model, data)["accuracy"])


@pytest.fixture
def for_bits():
    """Compile as for users, where bits of two programs are compared."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def test_metrics_do_not_change_the_run(for_bits):
    data, model, optimizer = (X, TARGETS), mlp(2), optax.sgd(1e-3)
    run = lambda **measured: vernal.Trainer(
        optimizer, losses.MeanSquaredError(), metrics=measured
    ).fit(model, data, epochs=3, batch_size=10)
    plain, history = run()
    measured, with_r2 = run(r2=metrics.r2, mae=metrics.mean_absolute_error)
    assert_same_bits(plain, measured)
    np.testing.assert_array_equal(history.steps["loss"], with_r2.steps["loss"])


def test_a_function_of_ones_own_is_averaged_over_what_it_returns():
    within = lambda prediction, target: jnp.abs(prediction - target) < 0.5
    y = TARGETS
    prediction = (y + RNG.normal(size=y.shape)).astype(np.float32)
    found = trainer(losses.MeanSquaredError(), within=within).evaluate(
        Identity(), (prediction, y), batch_size=10
    )
    assert found["within"] == pytest.approx(np.mean(np.abs(prediction - y) < 0.5))


class RootMeanSquare(metrics.AbstractMetric):
    """A metric of one's own that is no average."""

    def of_batch(self, prediction, target, weight):
        return losses.weighted_mean((prediction - target) ** 2, weight)

    def value(self, mean, spread, total):
        return mean**0.5


def test_a_metric_of_ones_own_is_made_of_averages():
    y = TARGETS
    prediction = (y + RNG.normal(size=y.shape)).astype(np.float32)
    train = trainer(losses.MeanSquaredError(), rms=RootMeanSquare())
    found = train.evaluate(Identity(), (prediction, y), batch_size=10)
    assert found["rms"] == pytest.approx(np.sqrt(np.mean((prediction - y) ** 2)), rel=1e-6)
    assert found["rms"] == pytest.approx(found["loss"] ** 0.5, rel=1e-6)


def test_a_second_evaluation_compiles_nothing(compiled):
    train = trainer(losses.CrossEntropy(), accuracy=metrics.accuracy, top2=metrics.top_k(2))
    train.evaluate(Identity(), (classify(), LABELS), batch_size=10)
    compiled.clear()
    twin = vernal.Trainer(train.optimizer, train.loss, metrics=dict(train.metrics or {}))
    twin.evaluate(Identity(1.0), (classify(), LABELS), batch_size=10)
    assert compiled == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["accuracy"], 'metrics={"accuracy": metrics.accuracy}'),
        ({"accuracy": "accuracy"}, "metrics['accuracy'] is 'accuracy'"),
        ({"top": metrics.top_k}, "Try metrics.top_k(5)"),
        ({"r2": metrics.R2}, "metrics['r2'] is the class R2"),
        ({"loss": metrics.accuracy}, "metrics cannot be called 'loss'"),
        ({"val_loss": metrics.accuracy}, "metrics cannot be called 'val_loss'"),
        ({"learning_rate": metrics.accuracy}, "metrics cannot be called 'learning_rate'"),
        ({0: metrics.accuracy}, "metrics cannot be called 0"),
    ],
)
def test_what_is_no_metric_is_told_before_anything_runs(given, message):
    with pytest.raises(vernal.ArgumentError) as caught:
        vernal.Trainer(optax.sgd(0.1), losses.CrossEntropy(), metrics=given)
    assert message in str(caught.value)


def test_a_loss_of_ones_own_returns_its_metrics_itself():
    own = lambda model, batch, key: jnp.mean(jax.vmap(model)(batch[0]) ** 2)
    with pytest.raises(vernal.ArgumentError, match="Return the metrics from the loss"):
        vernal.Trainer(optax.sgd(0.1), own, metrics={"accuracy": metrics.accuracy})


@pytest.mark.parametrize(
    ("metric", "loss", "data", "message"),
    [
        (
            metrics.mean_absolute_error,
            losses.CrossEntropy(),
            (X, LABELS),
            "mean_absolute_error needs (4,)",
        ),
        (metrics.r2, losses.CrossEntropy(), (X, LABELS), "r2 needs (53, 4)"),
    ],
)
def test_a_metric_that_does_not_suit_the_shapes_is_told_before_compiling(
    metric, loss, data, message, compiled
):
    train = trainer(loss, metric=metric)
    compiled.clear()
    with pytest.raises(vernal.ShapeError) as caught:
        train.fit(Identity(), data, epochs=1)
    assert message in str(caught.value)
    assert compiled == []
