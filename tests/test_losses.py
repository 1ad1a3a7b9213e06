"""The losses against Optax's functions and formulas in NumPy, averaged over the examples."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vernal
from vernal import losses
from vernal.losses import predictions

pytestmark = pytest.mark.usefixtures("compiled_fast")

KEY = jax.random.key(5)
RNG = np.random.default_rng(0)
MSE: Any = losses.MeanSquaredError()
SHAPES = [(6,), (6, 1), (6, 3), (6, 2, 3)]


def itself(x):
    """A model whose predictions are its inputs."""
    return x


class Affine(eqx.Module):
    """A linear model with nothing of Vernal's in it."""

    weight: jax.Array
    bias: jax.Array

    def __call__(self, x):
        return self.weight @ x + self.bias


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def one_hot(y, classes):
    return np.eye(classes)[y]


class Reference(NamedTuple):
    """A loss by formula, elementwise over predictions p and targets y, and its slope in p."""

    loss: Any
    optax: Callable
    value: Callable
    slope: Callable
    target: Callable


REFERENCES = {
    "MeanSquaredError": Reference(
        losses.MeanSquaredError(),
        optax.losses.squared_error,
        lambda p, y: (p - y) ** 2,
        lambda p, y: 2 * (p - y),
        lambda p: RNG.normal(size=p.shape),
    ),
    "MeanAbsoluteError": Reference(
        losses.MeanAbsoluteError(),
        lambda p, y: jnp.abs(p - y),
        lambda p, y: np.abs(p - y),
        lambda p, y: np.sign(p - y),
        lambda p: RNG.normal(size=p.shape),
    ),
    "Huber": Reference(
        losses.Huber(0.5),
        lambda p, y: optax.losses.huber_loss(p, y, delta=0.5),
        lambda p, y: np.where(
            np.abs(p - y) <= 0.5, 0.5 * (p - y) ** 2, 0.5 * (np.abs(p - y) - 0.25)
        ),
        lambda p, y: np.clip(p - y, -0.5, 0.5),
        lambda p: RNG.normal(size=p.shape),
    ),
    "BinaryCrossEntropy": Reference(
        losses.BinaryCrossEntropy(),
        optax.losses.sigmoid_binary_cross_entropy,
        lambda p, y: -(y * np.log(sigmoid(p)) + (1 - y) * np.log(1 - sigmoid(p))),
        lambda p, y: sigmoid(p) - y,
        lambda p: RNG.uniform(size=p.shape),
    ),
    "CrossEntropy": Reference(
        losses.CrossEntropy(),
        optax.losses.softmax_cross_entropy_with_integer_labels,
        lambda p, y: -np.sum(one_hot(y, p.shape[-1]) * np.log(softmax(p)), axis=-1),
        lambda p, y: softmax(p) - one_hot(y, p.shape[-1]),
        lambda p: RNG.integers(0, p.shape[-1], size=p.shape[:-1]),
    ),
    "Supervised": Reference(
        losses.Supervised(optax.losses.log_cosh),
        optax.losses.log_cosh,
        lambda p, y: np.log(np.cosh(p - y)),
        lambda p, y: np.tanh(p - y),
        lambda p: RNG.normal(size=p.shape),
    ),
}
each_loss = pytest.mark.parametrize("name", REFERENCES)
each_loss_and_shape = pytest.mark.parametrize(
    ("name", "shape"),
    # Logits have an axis of classes.
    [(n, s) for n in REFERENCES for s in SHAPES if len(s) > 1 or n != "CrossEntropy"],
    ids=str,
)


def example_batch(name, shape, seed=0):
    """Predictions and targets that a loss takes, in double precision."""
    p = np.random.default_rng(seed).normal(size=shape) * 2
    return p, REFERENCES[name].target(p)


def single(array):
    return array.astype(np.float32) if array.dtype == np.float64 else array


@eqx.filter_jit
def call(loss, *batch, model=itself):
    """The loss of a batch, in one compiled program; double precision is rounded on the way."""
    return loss(model, batch, None)


# ----- values


@each_loss_and_shape
def test_the_average_over_examples_is_the_formulas(name, shape):
    loss, of_optax, value, _, _ = REFERENCES[name]
    p, y = example_batch(name, shape)
    result = call(loss, p, y)
    assert result.shape == ()
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, value(p, y).mean(), rtol=1e-5)
    np.testing.assert_allclose(result, np.mean(jax.jit(of_optax)(p, y)), rtol=1e-5)


@each_loss_and_shape
def test_sample_weights_make_a_weighted_average(name, shape):
    loss, _, value, _, _ = REFERENCES[name]
    p, y = example_batch(name, shape)
    weight = np.array([0.5, 0.0, 2.0, 1.0, 0.25, 3.0])
    of_example = value(p, y).reshape(6, -1).mean(axis=1)
    expected = np.sum(weight * of_example) / np.sum(weight)
    np.testing.assert_allclose(call(loss, p, y, weight), expected, rtol=1e-5)
    # It is an average: their scale does not matter, and equal ones do nothing.
    np.testing.assert_allclose(call(loss, p, y, 10 * weight), expected, rtol=1e-5)
    np.testing.assert_allclose(call(loss, p, y, np.ones(6)), call(loss, p, y), rtol=1e-6)


@each_loss
def test_each_term_may_have_a_weight_of_its_own(name):
    loss, _, value, _, _ = REFERENCES[name]
    p, y = example_batch(name, (6, 3, 2))
    terms = value(p, y)
    weight = np.random.default_rng(1).integers(0, 3, terms.shape).astype(float)
    expected = np.sum(weight * terms) / np.sum(weight)
    np.testing.assert_allclose(call(loss, p, y, weight), expected, rtol=1e-5)


def test_smoothed_labels_are_optax_s():
    p, y = example_batch("CrossEntropy", (6, 3, 4))
    smoothed = optax.losses.smooth_labels(one_hot(y, 4), 0.1)
    expected = np.mean(-np.sum(smoothed * np.log(softmax(p)), axis=-1))
    result = call(losses.CrossEntropy(label_smoothing=0.1), p, y)
    np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_ignored_labels_do_not_count_in_loss_gradient_metrics_and_averages():
    p, y = map(single, example_batch("CrossEntropy", (6, 3, 4)))
    y[0], y[1, 1:], y[4, 2] = -100, -100, -100
    kept = y != -100
    loss = losses.CrossEntropy(ignore_index=-100)
    expected = call(losses.CrossEntropy(), p[kept], y[kept])
    value, grad = jax.jit(jax.value_and_grad(lambda p: loss(itself, (p, y), None)))(p)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert np.array_equal(np.any(grad != 0, axis=-1), kept)
    trainer = vernal.Trainer(
        optax.sgd(0.1),
        loss,
        metrics={
            "accuracy": vernal.metrics.accuracy,
            "confusion": vernal.metrics.confusion_matrix,
        },
    )
    for size in (None, 1, 4):  # however the tokens are cut into batches
        results = trainer.evaluate(itself, (p, y), batch_size=size)
        right = p[kept].argmax(-1) == y[kept]
        np.testing.assert_allclose(results["loss"], expected, rtol=1e-6)
        np.testing.assert_allclose(results["accuracy"], right.mean(), rtol=1e-6)
        assert results["confusion"].sum() == kept.sum()
        assert np.trace(results["confusion"]) == right.sum()


def test_labels_without_a_sign_are_not_ignored_by_chance():
    p, y = map(single, example_batch("CrossEntropy", (6, 200)))
    y = np.array([156, 1, 2, 3, 4, 5], np.uint8)  # 156 is -100 in 8 bits
    loss = losses.CrossEntropy(ignore_index=-100)
    expected = call(losses.CrossEntropy(), p, y)
    np.testing.assert_allclose(call(loss, p, y), expected, rtol=1e-6)


def test_sample_weights_count_beside_ignored_labels():
    p, y = example_batch("CrossEntropy", (6, 3, 4))
    terms = REFERENCES["CrossEntropy"].value(p, y)
    y[0, 1:], y[3] = 9, 9
    weight = np.arange(6.0)
    each = np.where(y == 9, 0, weight[:, None])
    expected = np.sum(each * terms) / np.sum(each)
    loss = losses.CrossEntropy(ignore_index=9)
    np.testing.assert_allclose(call(loss, p, y, weight), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [({"label_smoothing": 1.5}, "label_smoothing"), ({"ignore_index": 0.5}, "ignore_index")],
)
def test_what_cross_entropy_cannot_use_is_refused(arguments, names):
    with pytest.raises(vernal.ArgumentError, match=names):
        losses.CrossEntropy(**arguments)


def test_complex_predictions_have_a_squared_distance():
    p, y = np.array([1 + 2j, 3j, 1.0]), np.array([1.0, 1j, 2.0])
    result = losses.MeanSquaredError()(itself, (jnp.asarray(p), jnp.asarray(y)), None)
    np.testing.assert_allclose(result, np.mean(np.abs(p - y) ** 2), rtol=1e-6)


@each_loss
@given(weight=st.lists(st.integers(0, 4), min_size=6, max_size=6).filter(any))
@settings(max_examples=10)
def test_whole_weights_are_repeated_examples(name, weight):
    loss, _, value, _, _ = REFERENCES[name]
    p, y = example_batch(name, (6, 3), seed=sum(weight))
    repeated = np.repeat(value(p, y).reshape(6, -1).mean(axis=1), weight)
    np.testing.assert_allclose(call(loss, p, y, np.array(weight)), repeated.mean(), rtol=1e-5)


@each_loss
def test_a_batch_of_zero_weights_has_no_loss_and_no_gradient(name):
    loss = REFERENCES[name].loss
    p, y = map(single, example_batch(name, (6, 3)))
    zeros = np.zeros(6, np.float32)
    value, grad = jax.jit(jax.value_and_grad(lambda p: loss(itself, (p, y, zeros), None)))(p)
    assert value == 0
    np.testing.assert_array_equal(grad, np.zeros((6, 3)))


def test_huber_is_told_where_it_turns_linear():
    p, y = np.array([0.3, 3.0]), np.zeros(2)
    assert losses.Huber() == losses.Huber(1.0)
    for delta, expected in [(1.0, [0.045, 2.5]), (2.0, [0.045, 4.0]), (0.1, [0.025, 0.295])]:
        np.testing.assert_allclose(call(losses.Huber(delta), p, y), np.mean(expected), rtol=1e-5)


def test_supervised_leaves_shapes_and_structures_to_the_function():
    rng = np.random.default_rng(0)
    mean, scale = rng.normal(size=(2, 5)).astype(np.float32)
    y = rng.normal(size=(5, 1)).astype(np.float32)

    def likelihood(prediction, target):
        error = (target["y"][0] - prediction["mean"]) / jnp.exp(prediction["scale"])
        return 0.5 * error**2 + prediction["scale"]

    loss = losses.Supervised(likelihood)
    batch = {"mean": jnp.asarray(mean), "scale": jnp.asarray(scale)}, {"y": jnp.asarray(y)}
    expected = np.mean(0.5 * ((y[:, 0] - mean) / np.exp(scale)) ** 2 + scale)
    np.testing.assert_allclose(loss(itself, batch, None), expected, rtol=1e-6)


def test_supervised_takes_functions_of_an_example_to_a_scalar():
    p, y = example_batch("MeanSquaredError", (5, 3))
    norms = np.linalg.norm(p, axis=1) * np.linalg.norm(y, axis=1)
    distance = 1 - np.sum(p * y, axis=1) / norms
    loss = losses.Supervised(optax.losses.cosine_distance)
    np.testing.assert_allclose(call(loss, p, y), distance.mean(), rtol=1e-5)
    weight = np.array([1, 0, 2, 0, 5.0])
    expected = np.average(distance, weights=weight)
    np.testing.assert_allclose(call(loss, p, y, weight), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["BinaryCrossEntropy", "CrossEntropy"])
def test_large_logits_stay_finite(name):
    big = np.array([[300.0, -300.0], [-300.0, 300.0]])
    y = {"BinaryCrossEntropy": np.array([[1.0, 0], [1, 0]]), "CrossEntropy": np.array([0, 0])}[name]
    expected = {"BinaryCrossEntropy": 150.0, "CrossEntropy": 300.0}[name]
    np.testing.assert_allclose(call(REFERENCES[name].loss, big, y), expected)


@pytest.mark.parametrize("dtype", [bool, np.int32, np.uint8, np.float32, np.float16])
def test_binary_labels_may_be_of_any_type(dtype):
    p = np.linspace(-2, 2, 5)[:, None]
    y = np.array([[1], [0], [0], [1], [1]])
    expected = REFERENCES["BinaryCrossEntropy"].value(p, y).mean()
    result = call(losses.BinaryCrossEntropy(), p, y.astype(dtype))
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64])
def test_class_labels_may_be_of_any_integer_type(dtype):
    p, y = example_batch("CrossEntropy", (6, 3))
    expected = REFERENCES["CrossEntropy"].value(p, y).mean()
    result = call(losses.CrossEntropy(), p, y.astype(dtype))
    np.testing.assert_allclose(result, expected, rtol=1e-5)


# ----- gradients


@each_loss
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
def test_gradients_by_hand(name, weighted):
    """The chain rule for a linear model: the slope at each example, times its input."""
    loss, _, _, slope, target = REFERENCES[name]
    x = RNG.normal(size=(7, 4))
    model = Affine(jnp.asarray(RNG.normal(size=(3, 4))), jnp.asarray(RNG.normal(size=3)))
    p = x @ np.asarray(model.weight, float).T + np.asarray(model.bias, float)
    y = target(p)
    weight = np.array([1, 2, 0, 0.5, 1, 3, 1.0]) if weighted else np.ones(7)
    slopes = slope(p, y) if name == "CrossEntropy" else slope(p, y) / 3
    slopes = slopes * (weight / weight.sum())[:, None]
    batch = [single(a) for a in (x, y, weight)[: 3 if weighted else 2]]
    grads = jax.jit(jax.grad(lambda model: loss(model, tuple(batch), None)))(model)
    np.testing.assert_allclose(grads.weight, slopes.T @ x, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(grads.bias, slopes.sum(axis=0), rtol=1e-4, atol=1e-6)


# ----- models


class Noise(eqx.Module):
    """Takes a key, and its output shows which."""

    scale: float

    def __call__(self, x, *, key):
        return x + self.scale * jax.random.normal(key, x.shape)


class Plain(eqx.Module):
    """Takes no key: it would fail if it were given one."""

    def __call__(self, x):
        return 2 * x


def test_a_model_that_takes_a_key_gets_one_for_each_example():
    x = np.zeros((50, 3), np.float32)
    for model in (Noise(1.0), lambda x, key: jax.random.normal(key, x.shape)):
        noise = np.asarray(predictions(model, x, KEY))
        assert len(np.unique(noise)) == 150  # none is repeated
        np.testing.assert_array_equal(noise, predictions(model, x, KEY))
        other = np.asarray(predictions(model, x, jax.random.key(6)))
        assert not np.any(noise == other)
        loss = MSE(model, (x, x), KEY)
        np.testing.assert_allclose(loss, np.mean(noise**2), rtol=1e-5)


def test_a_dropout_layer_drops_other_units_in_each_example():
    model = eqx.nn.Sequential([eqx.nn.Dropout(0.5)])
    dropped = np.asarray(predictions(model, np.ones((64, 8), np.float32), KEY)) == 0
    assert len(np.unique(dropped, axis=0)) > 30
    assert 0.4 < dropped.mean() < 0.6
    kept = predictions(eqx.nn.inference_mode(model), np.ones((64, 8), np.float32), KEY)
    np.testing.assert_array_equal(kept, np.ones((64, 8)))


@pytest.mark.parametrize("key", [None, KEY], ids=["no key", "key"])
@pytest.mark.parametrize("model", [Plain(), lambda x: 2 * x], ids=["module", "function"])
def test_a_model_that_takes_no_key_is_called_without(model, key):
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    np.testing.assert_array_equal(predictions(model, x, key), 2 * x)


def test_without_a_key_a_model_is_called_without():
    model = lambda x, key=None: x if key is None else -x
    x = np.ones((3, 2), np.float32)
    np.testing.assert_array_equal(predictions(model, x), x)
    np.testing.assert_array_equal(predictions(model, x, KEY), -x)


def test_inputs_may_be_a_tree_of_arrays():
    x = {"a": np.arange(12, dtype=np.float32).reshape(4, 3), "b": [np.arange(4, dtype=np.float32)]}
    model = lambda x: x["a"] * x["b"][0]
    expected = x["a"] * x["b"][0][:, None]
    np.testing.assert_array_equal(predictions(model, x), expected)
    y = np.ones((4, 3), np.float32)
    loss = MSE(model, (x, y), KEY)
    np.testing.assert_allclose(loss, np.mean((expected - y) ** 2), rtol=1e-6)


def test_arrays_may_be_numpys():
    x, y = example_batch("MeanSquaredError", (4, 3))
    expected = np.mean((x - y) ** 2)
    for model in (itself, eqx.nn.Identity(), lambda x: x + 0):
        loss = MSE(model, (single(x), single(y)), None)
        np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_outputs_may_be_a_tree_when_predicting():
    x = np.arange(4, dtype=np.float32)
    outputs = predictions(lambda x: {"double": 2 * x, "pair": jnp.stack([x, -x])}, x)
    np.testing.assert_array_equal(outputs["double"], 2 * x)
    np.testing.assert_array_equal(outputs["pair"], np.stack([x, -x], axis=1))


# ----- errors

# Every one of these would broadcast, or index, without a complaint.
MISMATCHES = [
    ((3,), (3, 1)),
    ((3, 1), (3,)),
    ((1,), (1, 1)),
    ((1, 1), (1,)),
    ((3, 3), (3,)),
    ((3,), (3, 3)),
    ((3, 3), (3, 1)),
    ((3, 1), (3, 3)),
    ((1, 1), (1, 3)),
    ((2, 2, 2), (2, 2)),
    ((2, 2), (2, 2, 2)),
    ((3, 2, 1), (3, 2)),
    ((3, 1, 2), (3, 2)),
]
ELEMENTWISE = {
    **{name: ref.loss for name, ref in REFERENCES.items() if name != "CrossEntropy"},
    "cosine_distance": losses.Supervised(optax.losses.cosine_distance),
    "poly1_cross_entropy": losses.Supervised(optax.losses.poly_loss_cross_entropy),
    "l2_loss": losses.Supervised(optax.losses.l2_loss),
}


@pytest.mark.parametrize("loss", ELEMENTWISE.values(), ids=ELEMENTWISE)
@pytest.mark.parametrize(("given", "target"), MISMATCHES, ids=str)
def test_a_target_shaped_unlike_its_prediction_is_an_error(loss, given, target):
    with pytest.raises(vernal.ShapeError) as caught:
        call(loss, np.zeros(given), np.zeros(target))
    assert " ".join(str(caught.value).split()) == (
        f"y has shape {target}, but {type(loss).__name__} needs {given} "
        f"for predictions of shape {given}."
    )


@pytest.mark.parametrize(
    ("given", "target"),
    [
        ((3, 2), (3, 2)),
        ((3, 3), (3, 3)),
        ((3, 2), (3, 1)),
        ((1, 1), (1, 1)),
        ((2, 2, 2), (2,)),
        ((2, 2, 2), (2, 2, 2)),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [int, float])
def test_class_labels_lack_the_axis_of_classes(given, target, dtype):
    with pytest.raises(vernal.ShapeError) as caught:
        call(losses.CrossEntropy(), np.zeros(given), np.zeros(target, dtype))
    assert " ".join(str(caught.value).split()) == (
        f"y has shape {target}, but CrossEntropy needs {given[:-1]} "
        f"for predictions of shape {given}."
    )


def test_classes_have_an_axis():
    with pytest.raises(vernal.ShapeError, match=r"^predictions have shape \(3,\), .* each class"):
        call(losses.CrossEntropy(), np.zeros(3), np.zeros(3, int))


@pytest.mark.parametrize(("dtype", "called"), [(float, "float32"), (bool, "bool")])
def test_class_labels_are_integers(dtype, called):
    says = f"^y is {called}, but CrossEntropy needs integer labels"
    with pytest.raises(vernal.ShapeError, match=says):
        call(losses.CrossEntropy(), np.zeros((4, 3)), np.zeros(4, dtype))


@each_loss
@pytest.mark.parametrize("shape", [(6, 1), (1,), (5,), (), (3, 6)], ids=str)
def test_sample_weights_are_one_number_an_example_or_a_term(name, shape):
    p, y = example_batch(name, (6, 3))
    with pytest.raises(vernal.ShapeError) as caught:
        call(REFERENCES[name].loss, p, y, np.ones(shape))
    message = " ".join(str(caught.value).split())
    assert message.startswith(f"sample_weight has shape {shape}, but {name} needs (6,)")
    assert "one weight an example" in message


@pytest.mark.parametrize(
    ("batch", "called"),
    [
        (np.zeros((4, 3), np.float32), "a single array of shape (4, 3)"),
        ((np.zeros(4, np.float32),), "a tuple of 1"),
        ((np.zeros(4, np.float32),) * 4, "a tuple of 4"),
        ({"x": np.zeros(4, np.float32), "y": np.zeros(4, np.float32)}, "a dict"),
    ],
)
def test_a_batch_of_another_kind_is_an_error(batch, called):
    with pytest.raises(vernal.DataError) as caught:
        MSE(itself, batch, None)
    text = " ".join(str(caught.value).split())
    assert f"it is given {called}." in text
    assert "(x, y) or (x, y, sample_weight)" in text


def test_a_model_of_several_outputs_is_an_error():
    says = "^predictions are a tuple of 2, but MeanSquaredError needs one array"
    with pytest.raises(vernal.ShapeError, match=says):
        call(MSE, np.zeros(3), np.zeros(3), model=lambda x: (x, x))
