"""Any shapes at all: a program trains on what it needs, or says so before anything compiles."""

import functools
import os
import pathlib
import re
import subprocess
import sys
import traceback
from typing import Any

import equinox as eqx
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
from helpers import filled
from hypothesis import assume, example, given, settings

import vernal
from vernal import ShapeError, Trainer, losses, nn
from vernal._training.objective import Objective
from vernal._training.preflight import trace
from vernal._training.preflight.trace import Preflight

pytestmark = pytest.mark.usefixtures("compiled_fast")

KEY = jax.random.key(0)
ROOT = pathlib.Path(vernal.__file__).parent
SGD = optax.sgd(1e-3)
CE, BCE = losses.CrossEntropy(), losses.BinaryCrossEntropy()
MSE = losses.MeanSquaredError()
LOSSES = {
    "MSE": MSE,
    "Huber": losses.Huber(),
    "CE": CE,
    "BCE": BCE,
    "log_cosh": losses.Supervised(optax.losses.log_cosh),
}
TRAINERS = {name: Trainer(SGD, loss) for name, loss in LOSSES.items()}


# ----- any shapes


def layer_norm(n_in, n_out, *, key):
    return eqx.nn.Sequential([eqx.nn.LayerNorm(n_in), eqx.nn.Linear(n_in, n_out, key=key)])


KINDS = {
    "Linear": eqx.nn.Linear,
    "Linear of Vernal": nn.Linear,
    "MLP": lambda n_in, n_out, *, key: eqx.nn.MLP(n_in, n_out, 2, 1, key=key),
    "MLP of Vernal": lambda n_in, n_out, *, key: nn.MLP(n_in, n_out, 2, 1, key=key),
    "Conv1d": lambda n_in, n_out, *, key: eqx.nn.Conv1d(n_in, n_out, 2, key=key),
    "LayerNorm": layer_norm,
    "Embedding": eqx.nn.Embedding,
}
SIZED = [(kind, n_in, n_out) for kind in KINDS for n_in in (1, 3) for n_out in (1, 3)]
SCALAR = [
    (kind, *sizes)
    for kind in ("MLP", "MLP of Vernal", "Linear")
    for sizes in (("scalar", "scalar"), ("scalar", 3), (3, "scalar"))
]


@functools.cache
def made(kind, n_in, n_out):
    return filled(lambda: KINDS[kind](n_in, n_out, key=KEY))


@functools.cache
def ready(loss: str, *model) -> tuple[Trainer, Any]:
    """A trainer and a model, and all compiled that does not depend on the data."""
    TRAINERS[loss].init(made(*model))
    return TRAINERS[loss], made(*model)


SIZES = st.sampled_from([1, 3, 2, 5, 0, 4])
SHAPES = st.lists(SIZES, max_size=4).map(tuple)


def array(shape, dtype, n=3):
    """Numbers that are small, and whole if they are to be."""
    whole = np.arange(np.prod(shape, dtype=int)).reshape(shape) % n
    return (whole * 0.5 if dtype == "fractions" else whole).astype(
        {"fractions": "float32"}.get(dtype, dtype)
    )


DTYPES = st.sampled_from(["fractions", "float32", "float32", "int32", "int32", "bool", "uint8"])


@st.composite
def programs(draw):
    """A loss, a model, x and y: of any shapes, or of nearly those that are needed."""
    loss = draw(st.sampled_from(sorted(LOSSES)))
    model = draw(st.sampled_from(SIZED + SCALAR))
    x_dtype, y_dtype = draw(DTYPES), draw(DTYPES)
    n, n_in, n_out = draw(SIZES), *model[1:]
    needed = {"Conv1d": (n_in, 3), "Embedding": ()}.get(model[0], (n_in,))
    needed = (n, *(size for size in needed if size != "scalar"))
    x = array(draw(st.one_of(SHAPES, st.just(needed), st.just(needed))), x_dtype)
    made_of_x = outputs(made(*model), x)
    y_shapes = [SHAPES, st.just((n,)), st.just((n, n_out)), st.just((n, 1))]
    if made_of_x is not None:
        fits = made_of_x[:-1] if loss == "CE" else made_of_x
        y_shapes += [st.just(fits)] * 3
    y_shape = draw(st.one_of(y_shapes))
    assume("scalar" not in y_shape)
    return loss, model, x, array(y_shape, y_dtype, draw(st.sampled_from([2, 3])))


def outputs(model, x) -> tuple[int, ...] | None:
    """The shape of a model's outputs for a batch, if there are any."""
    try:
        return jax.eval_shape(jax.vmap(model), x).shape
    except Exception:
        return None


def in_vernal(error: BaseException) -> bool:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return pathlib.Path(frame.filename).is_relative_to(ROOT)


def from_jaxtyping(error: BaseException) -> bool:
    """Whether jaxtyping's own message can be read, though a terminal does not show it."""
    before = error.__context__
    while before is not None and not isinstance(before, jaxtyping.TypeCheckError):
        before = before.__context__
    return before is not None and error.__cause__ is None and error.__suppress_context__


def fixed(message: str, x, y) -> tuple[Any, Any] | None:
    """The data as a message's line of code has it; `None` if it suggests none."""
    found = re.search(r"\n  Try (.+?)(, which .+)?\.$", message)
    if found is None or found[1].startswith("Trainer("):
        return None
    data = {"x": x, "y": y}
    lines = {re.findall(r"\b[xy]\b", line)[0]: line for line in found[1].split(" and ")}
    names = {"np": np, "jax": jax}
    data |= {name: eval(line, names | {name: data[name]}) for name, line in lines.items()}
    return data["x"], data["y"]


# All other tests have it "raise"; "allow" is what users have, and hides most.
@pytest.mark.parametrize("promotion", ["allow", pytest.param("raise", marks=pytest.mark.long)])
def test_it_trains_or_says_why_not(promotion, compiled):
    seen = []

    @example(("MSE", ("MLP", 3, 1), array((5, 3), "fractions"), array((5,), "fractions")))
    @example(("MSE", ("MLP", 3, 3), array((3, 3), "fractions"), array((3,), "fractions")))
    @example(("CE", ("Linear", 3, 3), array((5, 3), "fractions"), array((5,), "int32")))
    @given(programs())
    def trains_or_explains(program):
        loss, of_model, x, y = program
        trainer, model = ready(loss, *of_model)
        made_of_x = outputs(model, x)
        compiled.clear()
        try:
            trainer.fit(model, (x, y), epochs=1)
        except ShapeError as error:
            assert compiled == []
            assert in_vernal(error)
            assert len(str(error).splitlines()) <= 6
            assert max(map(len, str(error).splitlines())) <= 100
            data = fixed(str(error), x, y)
            if data is not None:
                Preflight(Objective(trainer.loss, {}, None), model, None).check(data)
            seen.append("fixed" if data else "explained")
        else:
            assert made_of_x is not None
            assert y.shape == (made_of_x[:-1] if loss == "CE" else made_of_x)
            seen.append("trained")

    with jax.numpy_rank_promotion(promotion):
        jax.random.key(0)
        ready.cache_clear()
        trains_or_explains()
    # All three happen, and not only once.
    enough = settings().max_examples // 13
    assert min(map(seen.count, ("fixed", "explained", "trained"))) >= enough, seen


# ----- no false alarm


class Recurrent(eqx.Module):
    cell: Any

    def __call__(self, xs, *, key=None):
        zero = jnp.zeros(self.cell.hidden_size)
        start = (zero, zero) if isinstance(self.cell, eqx.nn.LSTMCell) else zero
        return jax.tree.leaves(jax.lax.scan(lambda h, x: (self.cell(x, h), None), start, xs)[0])[0]


class Attention(eqx.Module):
    attention: eqx.nn.MultiheadAttention
    norm: eqx.nn.RMSNorm

    def __call__(self, x, *, key=None):
        return jax.vmap(self.norm)(x + self.attention(x, x, x, key=key)).mean(0)


class Words(eqx.Module):
    embedding: eqx.nn.Embedding

    def __call__(self, x, *, key=None):
        return jax.vmap(self.embedding)(x).mean(0)


def body(kind: str, size: int, key) -> tuple[list, tuple[int, ...]]:
    """Layers to begin with, and the shape of an example for them."""
    nn_ = eqx.nn
    match kind:
        case "features":
            return [], (size,)
        case "scalar":
            return [nn_.MLP("scalar", size, 3, 1, key=key)], ()
        case "scalar of Vernal":
            return [nn.MLP("scalar", size, 3, 1, key=key)], ()
        case "Conv1d":
            layers = [nn_.Conv1d(size, 4, 2, key=key), nn_.GroupNorm(2, 4), nn_.AvgPool1d(2, 1)]
            return [*layers, nn_.Lambda(jnp.ravel)], (size, 5)
        case "Conv2d":
            layers = [nn_.Conv2d(size, 2, 2, key=key), nn_.MaxPool2d(2, 2), nn_.Lambda(jax.nn.relu)]
            return [*layers, nn_.Lambda(jnp.ravel)], (size, 5, 5)
        case "ConvTranspose1d":
            return [nn_.ConvTranspose1d(size, 2, 2, key=key), nn_.Lambda(jnp.ravel)], (size, 4)
        case "AdaptiveAvgPool2d":
            return [nn_.AdaptiveAvgPool2d((2, 1)), nn_.Lambda(jnp.ravel)], (size, 3, 4)
        case "GRUCell" | "LSTMCell":
            return [Recurrent(getattr(nn_, kind)(size, 3, key=key))], (6, size)
        case "attention":
            attention = nn_.MultiheadAttention(2, 2 * size, dropout_p=0.1, key=key)
            return [Attention(attention, nn_.RMSNorm(2 * size))], (3, 2 * size)
        case "Embedding":
            return [nn_.Embedding(5, size, key=key)], ()
        case "words":
            return [Words(nn_.Embedding(5, size, key=key))], (4,)
    raise ValueError(kind)


BODIES = [
    *("features", "scalar", "scalar of Vernal", "Conv1d", "Conv2d", "ConvTranspose1d"),
    *("AdaptiveAvgPool2d", "GRUCell", "LSTMCell", "attention", "Embedding", "words"),
]
MORE: list[Any] = [
    lambda n, m, key: eqx.nn.Linear(n, m, key=key),
    lambda n, m, key: nn.Linear(n, m, key=key),
    lambda n, m, key: eqx.nn.MLP(n, m, 3, 1, key=key),
    lambda n, m, key: nn.MLP(n, m, 3, 2, jnp.tanh, key=key),
    lambda n, m, key: eqx.nn.LayerNorm(n),
    lambda n, m, key: eqx.nn.RMSNorm(n),
    lambda n, m, key: eqx.nn.Dropout(0.5),
    lambda n, m, key: eqx.nn.Lambda(jax.nn.gelu),
    lambda n, m, key: eqx.nn.Identity(),
]


def size_of(layers, example) -> int:
    made = eqx.filter_eval_shape(eqx.nn.Sequential(layers), example, key=jax.random.key(0))
    return made.shape[0]


def right_program(seed: int):
    """A loss, a model and data that fit each other."""
    rng = np.random.default_rng(seed)
    pick: Any = lambda choices: choices[rng.integers(len(choices))]
    n, size = int(rng.integers(1, 6)), int(rng.integers(1, 4))
    kind = BODIES[seed % len(BODIES)]
    layers, shape = filled(lambda: body(kind, size, KEY))
    if kind in ("Embedding", "words"):
        x = rng.integers(0, 5, (n, *shape))
    else:
        x = rng.normal(size=(n, *shape)).astype(pick(["float32", "float64"]))
    for _ in range(rng.integers(0, 4)):
        n_in = size_of(layers, x[0])
        more, n_out = pick(MORE), int(rng.integers(1, 4))
        layers.append(filled(lambda more=more, n_in=n_in, n_out=n_out: more(n_in, n_out, KEY)))
    n_in = size_of(layers, x[0])
    name = pick(sorted(LOSSES))
    n_out = pick([1, 2, 3] if name == "CE" else [1, 2, n, "scalar"])
    last = pick([eqx.nn.Linear, nn.Linear])
    layers.append(filled(lambda: last(n_in, n_out, key=KEY)))
    y_shape = (n,) if name == "CE" or n_out == "scalar" else (n, n_out)
    if name == "CE":
        y = rng.integers(0, int(n_out), y_shape)
    elif name == "BCE":
        y = rng.integers(0, 2, y_shape).astype(pick(["float32", "int32", "bool"]))
    else:
        y = rng.normal(size=y_shape).astype("float32")
    weight = [np.ones(n, np.float32)] * int(rng.integers(2))
    model: Any = eqx.nn.Sequential(layers)
    return TRAINERS[name], model, (x, y, *weight)


@pytest.mark.parametrize(
    "first", [pytest.param(n, marks=[pytest.mark.long] * (n >= 50)) for n in range(0, 200, 25)]
)
def test_what_is_right_passes(first):
    """Warnings are errors in all of these tests."""
    for seed in range(first, first + 25):
        trainer, model, data = right_program(seed)
        objective = Objective(trainer.loss, {}, None)
        info, weight, *_ = Preflight(objective, model, None).check(data).shapes
        assert info["loss"].shape == ()
        assert (weight is None) == (len(data) == 2)


# Each body once, and with `--long` in more programs; of two that are alike (an embedding, a cell, a
# convolution, a scalar) the larger one.
LATER = {22, 55, 99, 121, *range(132, 200)}
SEEDS = [
    pytest.param(seed, marks=[pytest.mark.long] * (seed in LATER)) for seed in range(0, 200, 11)
]


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_right_trains(seed):
    trainer, model, data = right_program(seed)
    _, history = trainer.fit(model, data, epochs=1)
    assert np.isfinite(history.steps["loss"]).all()


# ----- what the check costs


def two_layers():
    return eqx.nn.MLP(3, 1, 4, 1, key=KEY), (np.ones((5, 3), np.float32), np.ones((5, 1)))


@pytest.fixture
def traced(monkeypatch):
    """What the check has traced: a loss for each time."""
    seen = []

    def measure(objective, *args):
        seen.append(objective.loss)
        return measured(objective, *args)

    measured = trace.measure
    monkeypatch.setattr(trace, "measure", measure)
    return seen


def test_a_check_that_goes_well_is_one_trace_and_no_watching(monkeypatch, traced):
    def fail(*args, **kwargs):
        raise AssertionError("watched, with nothing to explain")

    monkeypatch.setattr(Preflight, "explained", fail)
    model, data = two_layers()
    calls = []

    def loss(model, batch, key):
        calls.append(batch)
        return MSE(model, batch, key)

    Preflight(Objective(loss, {}, None), model, None).check(data)
    assert len(calls) == 1
    assert traced == [loss]


def test_a_second_fit_traces_nothing_in_the_check(traced):
    model, data = two_layers()
    calls = []

    def loss(model, batch, key):
        calls.append(batch)
        return MSE(model, batch, key)

    trainer = Trainer(SGD, loss)
    trainer.fit(model, data, epochs=1)
    assert traced == [loss]
    first = len(calls)
    state, _ = trainer.fit(model, data, epochs=2)
    trainer.fit(state, tuple(array + 1 for array in data), epochs=1)
    assert traced == [loss]
    assert len(calls) == first


def test_other_shapes_are_another_check(traced):
    model, data = two_layers()
    trainer = Trainer(SGD, losses.Huber(0.25))
    trainer.fit(model, data, epochs=1)
    trainer.fit(model, tuple(array[:4] for array in data), epochs=1)
    assert traced == [trainer.loss, trainer.loss]


# ----- layers called by hand


def linear():
    return nn.Linear(3, 2, key=KEY)


def net():
    return nn.MLP(3, 2, 4, 1, key=KEY)


DIRECT = {
    "other features": (
        linear,
        np.ones((5, 4), np.float32),
        "x has shape (5, 4), but Linear needs (3,) or (*batch, 3).",
    ),
    "transposed": (
        linear,
        np.ones((3, 5), np.float32),
        "x has shape (3, 5), but Linear needs (3,) or (*batch, 3).\n"
        "  Try x.T, which has shape (5, 3).",
    ),
    "an array of JAX's": (
        linear,
        jnp.ones((5, 4)),
        "x has shape (5, 4), but Linear needs (3,) or (*batch, 3).",
    ),
    "without an axis": (
        lambda: nn.Linear(1, 2, key=KEY),
        np.ones(5, np.float32),
        "x has shape (5,), but Linear needs (1,) or (*batch, 1).\n"
        "  Try x[:, None], which has shape (5, 1).",
    ),
    "a single number": (
        linear,
        np.float32(1),
        "x has shape (), but Linear needs (3,) or (*batch, 3).",
    ),
    "integers": (
        linear,
        np.ones((5, 3), int),
        'x is int64, but Linear needs floats.\n  Try x.astype("float32").',
    ),
    "bools": (
        linear,
        np.ones((5, 3), bool),
        'x is bool, but Linear needs floats.\n  Try x.astype("float32").',
    ),
    "a list": (linear, [1.0, 2.0, 3.0], "x is a list, but Linear needs an array of floats."),
    "None": (linear, None, "x is a NoneType, but Linear needs an array of floats."),
    "an MLP's first layer": (
        net,
        np.ones((5, 4), np.float32),
        "x has shape (5, 4), but MLP.layers[0] (Linear) needs (3,) or (*batch, 3).",
    ),
    "an MLP's later layer": (
        lambda: eqx.tree_at(lambda m: m.layers[1], net(), nn.Linear(7, 2, key=KEY)),
        np.ones((5, 3), np.float32),
        "x has shape (5, 4), but MLP.layers[1] (Linear) needs (7,) or (*batch, 7).",
    ),
}
# These are still broken where the line would have been short enough.
OPEN = {
    "an MLP's, transposed": (
        net,
        np.ones((3, 5), np.float32),
        "x has shape (3, 5), but MLP.layers[0] (Linear) needs (3,) or (*batch, 3).\n"
        "  Try x.T, which has shape (5, 3).",
    ),
    "an activation that adds an axis": (
        lambda: nn.MLP(3, 2, 4, 1, lambda x: x[..., None], key=KEY),
        np.ones((5, 3), np.float32),
        "x has shape (5, 4, 1), but MLP.layers[1] (Linear) needs (4,) or (*batch, 4).\n"
        "  Try x.squeeze(2), which has shape (5, 4).",
    ),
}


@pytest.mark.parametrize("name", DIRECT | OPEN)
def test_a_layer_called_by_hand_explains_itself(name):
    make, x, message = (DIRECT | OPEN)[name]
    model = make()
    with pytest.raises(ShapeError) as caught:
        model(x)
    assert str(caught.value) == message
    assert from_jaxtyping(caught.value)
    assert in_vernal(caught.value)


def test_a_layer_explains_itself_under_jit_and_vmap_too():
    model, x = net(), jnp.ones((5, 4))
    for call in (jax.vmap(model), jax.jit(lambda x: model(x)), eqx.filter_jit(model)):
        with pytest.raises(ShapeError, match=r"MLP\.layers\[0\] \(Linear\) needs \(3,\)") as caught:
            call(x)
        assert from_jaxtyping(caught.value)


UNCHECKED = """
import jax, numpy as np, optax, vernal
from vernal import losses, nn
layer = nn.Linear(3, 2, key=jax.random.key(0))
x, y = np.ones((5, 4), np.float32), np.ones((5, 2), np.float32)
try:
    layer(x)
except Exception as error:
    print(type(error).__name__, isinstance(error, vernal.VernalError))
print(layer(np.ones((5, 3), int)).shape)
try:
    vernal.Trainer(optax.sgd(1e-3), losses.MeanSquaredError()).fit(layer, (x, y), epochs=1)
except vernal.ShapeError as error:
    print(error)
"""


def test_jaxtypings_switch_is_for_single_calls_and_not_for_the_trainer():
    environment = os.environ | {"JAXTYPING_DISABLE": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    run = [sys.executable, "-c", UNCHECKED]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "TypeError False",
        "(5, 2)",
        "x has shape (5, 4): each of its 5 examples has shape (4,), but Linear needs (3,).",
    ]
