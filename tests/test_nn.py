"""The layers against Equinox's own, and against what initializers and errors promise."""

import dataclasses
import inspect
import os
import subprocess
import sys
from functools import partial
from typing import Any

import equinox as eqx
import helpers
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.nn import initializers

import vernal
from vernal import nn

pytestmark = pytest.mark.usefixtures("compiled_fast")

KEY = jax.random.key(3)

# Vernal's and Equinox's, from the same arguments. Equinox's biases are not zero at the start.
LINEARS = {
    "Linear": (3, 2),
    "Linear square": (4, 4),
    "Linear no bias": (3, 2, False),
    "Linear from scalar": ("scalar", 2),
    "Linear to scalar": (3, "scalar"),
    "Linear of scalars": ("scalar", "scalar"),
}
MLPS = {
    "MLP": (3, 2, 5, 2),
    "MLP deep": (3, 2, 4, 4, jnp.tanh),
    "MLP no hidden": (3, 2, 5, 0),
    "MLP no hidden, no bias": (3, 2, 5, 0, jnp.tanh, lambda x: x, True, False),
    "MLP final activation": (3, 2, 5, 1, jax.nn.gelu, jax.nn.sigmoid),
    "MLP no bias": (3, 2, 5, 2, jnp.tanh, jnp.sin, False, False),
    "MLP final bias alone": (3, 2, 5, 2, jnp.tanh, jnp.sin, False, True),
    "MLP hidden biases alone": (3, 2, 5, 2, jnp.tanh, jnp.sin, True, False),
    "MLP of scalars": ("scalar", "scalar", 5, 1, jnp.tanh),
    "MLP from scalar": ("scalar", 3, 5, 0),
}
PAIRS = {name: (nn.Linear, eqx.nn.Linear, sizes) for name, sizes in LINEARS.items()} | {
    name: (nn.MLP, eqx.nn.MLP, sizes) for name, sizes in MLPS.items()
}
each_pair = pytest.mark.parametrize("name", PAIRS)


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def layers_of(model):
    return getattr(model, "layers", [model])


def parameters(model):
    return [p for layer in layers_of(model) for p in (layer.weight, layer.bias) if p is not None]


def filled(cls, sizes, seed=0):
    """A model with random parameters, faster than drawing it: nothing compiles."""
    return helpers.filled(lambda: cls(*sizes, key=KEY), seed=seed)


def twins(name):
    """Vernal's model and Equinox's, with the same weights."""
    ours, theirs, sizes = PAIRS[name]
    other = filled(theirs, sizes)
    return eqx.tree_at(parameters, filled(ours, sizes, seed=1), parameters(other)), other


def inputs(model, batch, seed=0):
    size = getattr(model, "in_size", None) or model.in_features
    shape = (*batch, *(() if size == "scalar" else (size,)))
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# ----- drop-in


@pytest.mark.parametrize(
    ("ours", "theirs"), [(nn.Linear, eqx.nn.Linear), (nn.MLP, eqx.nn.MLP)], ids=["Linear", "MLP"]
)
def test_arguments_are_those_of_equinox(ours, theirs):
    def named(cls, kind):
        return [p.name for p in inspect.signature(cls).parameters.values() if p.kind == kind]

    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    # Equinox takes dtype by position, too; here it is one of the choices that are named.
    assert named(ours, positional) == [n for n in named(theirs, positional) if n != "dtype"]
    by_name = ["weight_init", "bias_init", "dtype", "key"]
    assert named(ours, inspect.Parameter.KEYWORD_ONLY) == by_name


@each_pair
def test_attributes_are_those_of_equinox(name):
    ours, theirs = twins(name)
    for field in dataclasses.fields(theirs):
        if field.name == "scan":
            continue
        value, other = getattr(ours, field.name), getattr(theirs, field.name)
        if field.metadata.get("static"):
            assert value == other
        elif field.name in ("weight", "bias"):
            assert (value is None) == (other is None)
            assert getattr(value, "shape", None) == getattr(other, "shape", None)
        elif field.name == "layers":
            assert type(value) is type(other) is tuple
            assert [layer.use_bias for layer in value] == [layer.use_bias for layer in other]
            assert [layer.in_features for layer in value] == [layer.in_features for layer in other]
        else:
            np.testing.assert_allclose(value(jnp.ones(3)), other(jnp.ones(3)))


@each_pair
def test_one_example_gives_what_equinox_gives(name):
    ours, theirs = twins(name)
    x = inputs(ours, ())
    expected, y = eqx.filter_jit(theirs)(x), ours(x)
    assert y.shape == expected.shape
    assert_close(y, expected)


@pytest.mark.parametrize("name", ["Linear", "Linear to scalar", "MLP", "MLP of scalars"])
@given(batch=st.lists(st.sampled_from([0, 1, 3]), max_size=3))
@settings(max_examples=12)
def test_any_leading_axes_give_one_example_after_the_other(name, batch):
    ours, theirs = twins(name)
    theirs = eqx.filter_jit(theirs)
    x = inputs(ours, batch)
    out = jax.eval_shape(theirs, jnp.zeros(x.shape[len(batch) :])).shape
    expected = np.zeros((*batch, *out), np.float32)
    for index in np.ndindex(*batch):
        expected[index] = theirs(x[index])
    y = eqx.filter_jit(ours)(x)
    assert isinstance(y, jax.Array)
    assert y.shape == expected.shape
    assert_close(y, expected)


@pytest.mark.parametrize("name", ["Linear", "MLP deep", "MLP of scalars"])
def test_vmap_jit_and_a_plain_call_agree(name):
    ours, theirs = twins(name)
    x = inputs(ours, (4, 3))
    expected = eqx.filter_jit(lambda x: jax.vmap(jax.vmap(theirs))(x))(x)
    for call in (ours, jax.vmap(ours), jax.vmap(jax.vmap(ours)), eqx.filter_jit(ours)):
        assert_close(call(x), expected)
    np.testing.assert_array_equal(ours(x, key=KEY), ours(x))  # a key changes nothing


@pytest.mark.parametrize("name", ["Linear", "MLP deep", "MLP no bias"])
def test_gradients_are_those_of_equinox(name):
    ours, theirs = twins(name)
    x = jnp.asarray(inputs(ours, (7,)))
    target = jnp.cos(jnp.arange(14.0)).reshape(7, 2)
    of = lambda apply: lambda model: jnp.mean((apply(model) - target) ** 2)
    grads = eqx.filter_jit(eqx.filter_grad(of(lambda model: model(x))))(ours)
    expected = eqx.filter_jit(eqx.filter_grad(of(lambda model: jax.vmap(model)(x))))(theirs)
    assert len(parameters(grads)) == len(parameters(expected))
    for grad, other in zip(parameters(grads), parameters(expected), strict=True):
        assert_close(grad, other)


def test_the_gradient_of_a_linear_layer_by_hand():
    layer = filled(nn.Linear, (3, 2))
    x = inputs(layer, (5,))
    grads = eqx.filter_grad(lambda layer: jnp.sum(layer(x)))(layer)
    np.testing.assert_allclose(grads.weight, np.stack([x.sum(0)] * 2), rtol=1e-5)
    np.testing.assert_array_equal(grads.bias, [5, 5])


def test_without_hidden_layers_the_final_activation_is_applied_all_the_same():
    """Where Equinox leaves it out, against its own documentation."""
    model = filled(nn.MLP, (3, 2, 5, 0, jnp.tanh, jnp.exp))
    x = np.array([1.0, -2.0, 3.0], np.float32)
    [layer] = model.layers
    expected = np.exp(np.asarray(layer.weight) @ x + np.asarray(layer.bias))
    np.testing.assert_allclose(model(x), expected, rtol=1e-5)


@pytest.mark.parametrize("cls", [nn.MLP, eqx.nn.MLP])
def test_tree_at_replaces_a_weight_of_either(cls):
    model = filled(cls, (3, 2, 4, 1))
    twos = jnp.full((4, 3), 2.0)
    changed = eqx.tree_at(lambda m: m.layers[0].weight, model, twos)
    np.testing.assert_array_equal(changed.layers[0].weight, twos)
    np.testing.assert_array_equal(changed.layers[1].weight, model.layers[1].weight)
    x = jnp.array([1.0, -1.0, 3.0])
    hidden = np.maximum(np.full(4, 6.0) + model.layers[0].bias, 0)
    expected = np.asarray(model.layers[1].weight) @ hidden + np.asarray(model.layers[1].bias)
    assert_close(changed(x), expected)


# ----- biases, dtypes, arrays


@pytest.mark.parametrize(
    ("make", "with_bias", "shapes"),
    [
        (lambda key: nn.Linear(3, 2, key=key), [True], [(2, 3), (2,)]),
        (lambda key: nn.Linear(3, 2, use_bias=False, key=key), [False], [(2, 3)]),
        (lambda key: nn.MLP(3, 2, 4, 0, key=key), [True], [(2, 3), (2,)]),
        (lambda key: nn.MLP(3, 2, 4, 0, use_bias=False, key=key), [True], [(2, 3), (2,)]),
        (lambda key: nn.MLP(3, 2, 4, 0, use_final_bias=False, key=key), [False], [(2, 3)]),
        (
            lambda key: nn.MLP(3, 2, 4, 1, use_bias=False, key=key),
            [False, True],
            [(4, 3), (2, 4), (2,)],
        ),
        (
            lambda key: nn.MLP(3, 2, 4, 2, use_final_bias=False, key=key),
            [True, True, False],
            [(4, 3), (4,), (4, 4), (4,), (2, 4)],
        ),
        (
            lambda key: nn.MLP("scalar", "scalar", 4, 1, key=key),
            [True, True],
            [(4, 1), (4,), (1, 4), (1,)],
        ),
    ],
)
def test_only_wanted_biases_are_parameters(make, with_bias, shapes):
    model = eqx.filter_eval_shape(make, KEY)
    assert [layer.bias is not None for layer in layers_of(model)] == with_bias
    assert [layer.use_bias for layer in layers_of(model)] == with_bias
    arrays = [leaf for leaf in jax.tree.leaves(model) if hasattr(leaf, "shape")]
    assert [array.shape for array in arrays] == shapes


@pytest.mark.parametrize(
    ("make", "dtype"),
    [(partial(nn.Linear, 3, 2), "float16"), (partial(nn.MLP, 3, 2, 4, 1), jnp.bfloat16)],
    ids=["Linear", "MLP"],
)
def test_parameters_and_results_have_the_dtype(make, dtype):
    model = make(dtype=dtype, key=KEY)
    assert {p.dtype for p in parameters(model)} == {jnp.dtype(dtype)}
    assert model(jnp.ones((5, 3), dtype)).dtype == jnp.dtype(dtype)
    # Not zeros and not a constant: drawn, in that precision.
    assert len(np.unique(np.asarray(layers_of(model)[0].weight, np.float32))) > 3


@pytest.mark.parametrize(
    "make", [partial(nn.Linear, 3, 2, key=KEY), partial(nn.MLP, 3, 2, 4, 1, key=KEY)]
)
def test_float64_where_jax_has_it(make):
    with jax.enable_x64(True):
        for model in (make(), make(dtype=jnp.float64)):
            assert {p.dtype for p in parameters(model)} == {jnp.dtype("float64")}
            x = np.linspace(-1, 1, 12).reshape(4, 3)
            y = model(x)
            assert y.dtype == jnp.float64
            hidden = x
            for layer in layers_of(model)[:-1]:
                hidden = np.maximum(hidden @ np.asarray(layer.weight).T + layer.bias[None], 0)
            layer = layers_of(model)[-1]
            expected = hidden @ np.asarray(layer.weight).T + np.asarray(layer.bias)
            np.testing.assert_allclose(y, expected, rtol=1e-13, atol=1e-14)
    assert {p.dtype for p in parameters(make())} == {jnp.dtype("float32")}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    "make", [lambda: filled(nn.Linear, (3, 2)), lambda: filled(nn.MLP, (3, 2, 4, 1))]
)
def test_numpy_arrays_are_taken_as_they_are(make, dtype):
    model = make()
    x = np.linspace(-1, 1, 12).reshape(4, 3).astype(dtype)
    y = model(x)
    assert isinstance(y, jax.Array)
    np.testing.assert_array_equal(y, model(jnp.asarray(x)))


# ----- initializers


@pytest.mark.parametrize(
    ("make", "init", "variance"),  # of a weight with 500 inputs and 200 outputs
    [
        (partial(nn.Linear, 500, 200), None, 1 / 500),
        (partial(nn.MLP, 500, 7, 200, 1), None, 1 / 500),
        (partial(nn.Linear, 500, 200), initializers.he_normal(), 2 / 500),
        (partial(nn.MLP, 500, 7, 200, 1), initializers.glorot_normal(), 2 / 700),
        (
            partial(nn.Linear, 500, 200),
            initializers.variance_scaling(1.0, "fan_out", "uniform"),
            1 / 200,
        ),
        (partial(nn.MLP, 500, 7, 200, 1), initializers.normal(0.3), 0.09),
    ],
    ids=["lecun", "lecun", "he", "glorot", "fan_out", "normal"],
)
def test_fans_are_counted_along_the_right_axes(make, init, variance):
    chosen = {} if init is None else {"weight_init": init}
    weight = np.asarray(layers_of(make(**chosen, key=KEY))[0].weight)
    assert weight.shape == (200, 500)
    # Of 100,000 draws: 2 % is more than four standard deviations of their variance.
    assert np.var(weight) == pytest.approx(variance, rel=0.02)
    assert abs(np.mean(weight)) < 4 * np.sqrt(variance / weight.size)


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [((3, 2), (3, 2)), (("scalar", 2), (1, 2)), ((3, "scalar"), (3, 1))],
)
def test_initializers_are_called_as_jax_calls_them(sizes, shape):
    calls = []

    def init(key, shape, dtype):
        calls.append((shape, jnp.dtype(dtype)))
        return jnp.arange(np.prod(shape), dtype=dtype).reshape(shape)

    layer = nn.Linear(*sizes, weight_init=init, bias_init=init, dtype=jnp.float16, key=KEY)
    assert calls == [(shape, jnp.dtype("float16")), (shape[1:], jnp.dtype("float16"))]
    # Inputs along the first axis there, along the last one here.
    np.testing.assert_array_equal(layer.weight, np.arange(np.prod(shape)).reshape(shape).T)
    np.testing.assert_array_equal(layer.bias, np.arange(shape[1]))


def test_biases_start_at_zero_unless_told_otherwise():
    plain = {"weight_init": initializers.zeros, "key": KEY}  # quick to draw
    for model in (nn.Linear(3, 2, **plain), nn.MLP(3, 2, 4, 2, **plain)):
        for layer in layers_of(model):
            np.testing.assert_array_equal(layer.bias, np.zeros(layer.bias.shape))
    model = nn.MLP(3, 2, 4, 2, bias_init=initializers.constant(0.5), **plain)
    for layer in layers_of(model):
        np.testing.assert_array_equal(layer.bias, np.full(layer.bias.shape, 0.5))


def test_every_layer_is_drawn_by_itself():
    normal = initializers.normal()
    model = nn.MLP(6, 6, 6, 3, bias_init=normal, weight_init=normal, key=KEY)
    draws = [np.asarray(p).ravel() for p in parameters(model)]
    # No value of one array is found in another: not copies, and not cut from the same draw.
    values = np.concatenate(draws)
    assert len(values) == 4 * (36 + 6)
    assert len(np.unique(values)) == len(values)


@pytest.mark.parametrize(
    "make", [lambda key: nn.Linear(3, 2, key=key), lambda key: nn.MLP(3, 2, 4, 2, key=key)]
)
def test_the_key_decides_the_draw(make):
    one, same, other = make(jax.random.key(1)), make(jax.random.key(1)), make(jax.random.key(2))
    for layer, layer_same, layer_other in zip(*map(layers_of, (one, same, other)), strict=True):
        np.testing.assert_array_equal(layer.weight, layer_same.weight)
        assert not np.any(np.asarray(layer.weight) == np.asarray(layer_other.weight))


def test_many_models_are_drawn_at_once():
    make = lambda key: nn.MLP(3, 2, 4, 0, weight_init=initializers.normal(), key=key)
    keys = jax.random.split(KEY, 3)
    many = eqx.filter_vmap(make)(keys)
    for i, key in enumerate(keys):
        for array, one in zip(parameters(many), parameters(make(key)), strict=True):
            np.testing.assert_allclose(array[i], one, rtol=1e-6)


# ----- errors


def misfit():
    """An MLP whose second layer does not fit the first."""
    model = filled(nn.MLP, (3, 2, 4, 2))
    return eqx.tree_at(lambda m: m.layers[1], model, filled(nn.Linear, (5, 4)))


LINEAR, MLP = filled(nn.Linear, (3, 2)), filled(nn.MLP, (3, 2, 4, 2))
F = np.float32


def contexts(error):
    """The exceptions before an error, which a terminal does not show."""
    while error.__context__ is not None:
        error = error.__context__
        yield error


@pytest.mark.parametrize(
    ("model", "x", "says", "where"),
    [
        (LINEAR, np.ones((5, 4), F), ["(5, 4)", "(3,)"], "Linear"),
        (LINEAR, jnp.ones(2), ["(2,)", "(3,)"], "Linear"),
        (LINEAR, jnp.float32(1), ["()", "(3,)"], "Linear"),
        (LINEAR, np.ones((3, 5), F), ["(3, 5)", "(3,)", "x.T", "(5, 3)"], "Linear"),
        (LINEAR, np.ones((5, 0), F), ["(5, 0)", "(3,)"], "Linear"),
        (filled(nn.Linear, (1, 2)), np.ones(5, F), ["(5,)", "x[:, None]", "(5, 1)"], "Linear"),
        (MLP, np.ones((5, 2), F), ["(5, 2)", "(3,)"], "MLP.layers[0] (Linear)"),
        (misfit(), np.ones((7, 3), F), ["(7, 4)", "(5,)"], "MLP.layers[1] (Linear)"),
        (LINEAR, np.ones((5, 3), np.int32), ["int32", "float", 'x.astype("float32")'], "Linear"),
        (MLP, np.ones((5, 3), bool), ["bool", "float"], "MLP.layers[0] (Linear)"),
        (MLP, jnp.ones((5, 3), complex), ["complex64", "float"], "MLP.layers[0] (Linear)"),
        (LINEAR, [1.0, 2.0, 3.0], ["list", "array"], "Linear"),
        (LINEAR, None, ["NoneType", "array"], "Linear"),
        (MLP, "abc", ["str", "array"], "MLP.layers[0] (Linear)"),
        (filled(nn.Linear, ("scalar", 2)), np.arange(4), ["int", "float"], "Linear"),
    ],
)  # fmt: skip
def test_a_wrong_input_is_explained(model, x, says, where):
    with pytest.raises(vernal.ShapeError) as caught:
        model(x)
    error, message = caught.value, str(caught.value)
    assert type(error) is vernal.ShapeError
    assert isinstance(error, ValueError)
    assert error.__cause__ is None
    assert error.__suppress_context__
    assert any(isinstance(before, jaxtyping.TypeCheckError) for before in contexts(error))
    for part in [*says, f"{where} needs"]:
        assert part in message
    assert all(len(line) <= 100 for line in message.splitlines())


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap, jax.grad], ids=["jit", "vmap", "grad"])
def test_a_wrong_input_is_explained_under_transformations(transform):
    with pytest.raises(vernal.ShapeError, match=r"but MLP\.layers\[0\] \(Linear\) needs \(3,\)"):
        transform(lambda x: MLP(x).sum())(jnp.ones((5, 4)))


@pytest.mark.parametrize(
    ("size", "shape", "line"),
    [
        (1, (3,), "x[:, None]"),
        (5, (5, 4), "x.T"),
        (4, (3, 4, 1), "x.squeeze(2)"),
        (5, (3, 4), None),
        (4, (2, 2), None),
    ],
)
def test_the_line_that_fixes_an_input_fixes_it(size, shape, line):
    """Whatever a message suggests is run, and has to do."""
    layer, x = filled(nn.Linear, (size, 2)), np.ones(shape, F)
    with pytest.raises(vernal.ShapeError) as caught:
        layer(x)
    _, _, suggestion = str(caught.value).partition("Try ")
    code, _, has = suggestion.partition(", which has shape ")
    assert code == (line or "")
    if code:
        fixed = eval(code, {"x": x})
        assert has == f"{fixed.shape}."
        assert layer(fixed).shape == (*fixed.shape[:-1], 2)


def test_type_checks_can_be_switched_off():
    """As jaxtyping says; the layers, and the Trainer's own messages, work as before."""
    code = """
import jax, numpy as np, optax, vernal
init = jax.nn.initializers.constant(2.0)
layer = vernal.nn.Linear(3, 2, weight_init=init, key=jax.random.key(0))
x = np.arange(12).reshape(4, 3)
np.testing.assert_allclose(layer(x), 2 * x.sum(axis=1, keepdims=True) + np.zeros(2))
trainer = vernal.Trainer(optax.sgd(0.1), vernal.losses.MeanSquaredError())
try:
    trainer.fit(layer, (np.ones((4, 5)), np.ones((4, 2))), epochs=2)
except vernal.ShapeError as error:
    print(error)
"""
    environment = {**os.environ, "JAXTYPING_DISABLE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert "(4, 5)" in run.stdout
    assert "Linear" in run.stdout


# ----- Augment


def noisy(x, key):
    return x + jax.random.normal(key, x.shape)


class Augmented(eqx.Module):
    augment: nn.Augment
    linear: eqx.nn.Linear

    def __call__(self, x, *, key=None):
        return self.linear(self.augment(x, key=key))


def test_augment_changes_examples_in_training_alone_as_by_hand():
    x: Any = np.random.default_rng(0).normal(size=(6, 3))
    y = x.sum(axis=1, keepdims=True)
    with jax.enable_x64(True):
        linear = eqx.nn.Linear(3, 1, key=jax.random.key(1))
        trainer = vernal.Trainer(optax.sgd(0.1), vernal.losses.MeanSquaredError())
        model = Augmented(nn.Augment(noisy), linear)
        state, history = trainer.fit(
            model, (x, y), epochs=3, validation_data=(x, y), key=KEY, progress=False
        )

        def by_hand(linear, key):
            keys = jax.random.split(key, len(x))
            changed = jnp.stack([noisy(x[i], keys[i]) for i in range(len(x))])
            return jnp.mean((jax.vmap(linear)(changed) - y) ** 2)

        trained = linear
        for step in range(3):
            loss, grads = eqx.filter_value_and_grad(by_hand)(trained, jax.random.fold_in(KEY, step))
            np.testing.assert_allclose(history.steps["loss"][step], loss, rtol=1e-10)
            trained = jax.tree.map(lambda p, g: p - 0.1 * g, trained, grads)
        np.testing.assert_allclose(state.model.linear.weight, trained.weight, rtol=1e-10)
        plain = np.mean((np.asarray(jax.vmap(trained)(x)) - y) ** 2)
        np.testing.assert_allclose(history.epochs["val_loss"][-1], plain, rtol=1e-10)
        np.testing.assert_allclose(trainer.predict(state, x), jax.vmap(trained)(x), rtol=1e-10)


def test_augment_without_a_key_in_training_says_how_to_hand_it_on():
    layer = nn.Augment(noisy)
    with pytest.raises(vernal.ArgumentError, match=r"self.augment\(x, key=key\)"):
        layer(jnp.ones(3))
    assert np.array_equal(eqx.nn.inference_mode(layer)(jnp.ones(3)), np.ones(3))
