"""A model's table against counts by hand; an update's program against the update it lists."""

import html
import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxpr_as_fun

import vernal
from vernal import losses, nn

KEY = jax.random.key(0)
F32 = jnp.float32


def shape(*sizes, dtype=F32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def row(summary, path):
    (found,) = (row for row in summary.rows if row.path == path)
    return found


def abstract(make):
    """A model with arrays of the right shapes at no cost: what they hold is of no account."""
    zeros = lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)
    is_shape = lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)
    to_array = lambda leaf: jnp.asarray(zeros(leaf)) if is_shape(leaf) else leaf
    return jax.tree.map(to_array, eqx.filter_eval_shape(make))


def xla_flops(model, *example):
    """What XLA counts for the whole model at once; as an argument, lest it folds its zeros away."""
    arrays, rest = eqx.partition(model, eqx.is_array)
    call = lambda arrays, *example: eqx.combine(arrays, rest)(*example)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        costs = jax.jit(call).lower(arrays, *example).cost_analysis()
    assert costs is not None
    return costs["flops"]


class Cnn(eqx.Module):
    layers: list

    def __init__(self):
        self.layers = [
            eqx.nn.Conv2d(3, 8, 3, key=KEY),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.MaxPool2d(2, 2),
            jnp.ravel,
            eqx.nn.Dropout(0.5),
            nn.Linear(200, 10, key=KEY),
        ]

    def __call__(self, x, *, key=None):
        for layer in self.layers:
            x = layer(x, key=key) if isinstance(layer, eqx.nn.Dropout) else layer(x)
        return x


class Attention(eqx.Module):
    norm: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention

    def __init__(self):
        self.norm = eqx.nn.LayerNorm(64)
        self.attention = eqx.nn.MultiheadAttention(4, 64, dropout_p=0.1, key=KEY)

    def __call__(self, x, *, key=None):
        x = jax.vmap(self.norm)(x)
        return self.attention(x, x, x, key=key)


class Recurrent(eqx.Module):
    cell: eqx.nn.GRUCell
    head: nn.Linear

    def __init__(self):
        self.cell = eqx.nn.GRUCell(3, 4, key=KEY)
        self.head = nn.Linear(4, 1, key=KEY)

    def __call__(self, xs):
        step = lambda hidden, x: (self.cell(x, hidden), None)
        return self.head(jax.lax.scan(step, jnp.zeros(4), xs)[0])


class Unrolled(eqx.Module):
    cell: eqx.nn.GRUCell

    def __init__(self):
        self.cell = eqx.nn.GRUCell(3, 4, key=KEY)

    def __call__(self, xs):
        hidden = jnp.zeros(4)
        for i in range(50):
            hidden = self.cell(xs[i], hidden)
        return hidden


class Language(eqx.Module):
    shared: eqx.nn.Shared

    def __init__(self):
        pair = eqx.nn.Embedding(50, 8, key=KEY), eqx.nn.Linear(8, 50, key=KEY)
        self.shared = eqx.nn.Shared(pair, lambda p: p[1].weight, lambda p: p[0].weight)

    def __call__(self, tokens):
        embedding, linear = self.shared()
        return jax.vmap(linear)(jax.vmap(embedding)(tokens))


class TiedArray(eqx.Module):
    first: eqx.nn.Linear
    second: eqx.nn.Linear

    def __init__(self):
        self.first, other = eqx.nn.Linear(4, 4, key=KEY), eqx.nn.Linear(4, 4, key=KEY)
        self.second = eqx.tree_at(lambda layer: layer.weight, other, self.first.weight)

    def __call__(self, x):
        return self.second(self.first(x))


class Holder(eqx.Module):
    """Arrays of its own, and a layer that it never calls."""

    scale: jax.Array
    steps: jax.Array
    used: eqx.nn.Linear
    unused: eqx.nn.Linear

    def __init__(self):
        self.scale, self.steps = jnp.ones((5,)), jnp.zeros((3,), jnp.int32)
        self.used = eqx.nn.Linear(5, 5, use_bias=False, key=KEY)
        self.unused = eqx.nn.Linear(7, 2, key=KEY)

    def __call__(self, x):
        return self.used(x) * self.scale


class Until(eqx.Module):
    """Nobody knows how often it calls its layer."""

    start: eqx.nn.Linear
    layer: eqx.nn.Linear

    def __init__(self):
        self.start = eqx.nn.Linear(2, 4, key=KEY)
        self.layer = eqx.nn.Linear(4, 4, key=KEY)

    def __call__(self, x):
        return jax.lax.while_loop(lambda y: jnp.sum(y) < 9, lambda y: self.layer(y), self.start(x))


class Either(eqx.Module):
    small: eqx.nn.Linear
    large: eqx.nn.MLP

    def __init__(self):
        self.small = eqx.nn.Linear(4, 4, key=KEY)
        self.large = eqx.nn.MLP(4, 4, 16, 1, key=KEY)

    def __call__(self, x):
        return jax.lax.cond(x[0] > 0, lambda x: self.small(x), lambda x: self.large(x), x)


class AModuleWhoseNameAloneIsLongerThanAllThatATableHasRoomForInItsFirstColumn(eqx.Module):
    a_field_with_a_name_that_is_not_short_either: dict

    def __init__(self):
        layer = nn.Linear(2, 2, key=KEY)
        self.a_field_with_a_name_that_is_not_short_either = {"somewhere": [None, {"deep": layer}]}

    def __call__(self, x):
        return self.a_field_with_a_name_that_is_not_short_either["somewhere"][1]["deep"](x)


def sequential():
    layer = nn.Linear(5, 5, key=KEY)
    return eqx.nn.Sequential([layer, eqx.nn.Lambda(jnp.tanh), layer])


def wide():
    return abstract(lambda: eqx.nn.MLP(4000, 4000, 9000, 2, key=KEY))


def three_dimensional():
    conv = lambda: eqx.nn.Conv3d(128, 1024, 3, padding=1, key=KEY)
    return eqx.nn.Sequential([abstract(conv), eqx.nn.Dropout(0.2)])


GALLERY = {
    "line": (lambda: nn.Linear(2, 1, key=KEY), shape(200, 2)),
    "mlp": (lambda: abstract(lambda: nn.MLP(3, 2, 64, 3, key=KEY)), shape(20, 3)),
    "cnn": (lambda: abstract(Cnn), shape(32, 3, 12, 12)),
    "attention": (lambda: abstract(Attention), shape(2, 10, 64)),
    "recurrent": (lambda: abstract(Recurrent), shape(7, 50, 3)),
    "shared": (lambda: abstract(Language), shape(6, 12, dtype=jnp.int32)),
    "tied": (TiedArray, shape(3, 4)),
    "holder": (lambda: abstract(Holder), shape(3, 5)),
    "until": (lambda: abstract(Until), shape(3, 2)),
    "either": (lambda: abstract(Either), shape(3, 4)),
    "sequential": (sequential, shape(3, 5)),
    "long names": (
        AModuleWhoseNameAloneIsLongerThanAllThatATableHasRoomForInItsFirstColumn,
        shape(3, 2),
    ),
    "wide": (wide, shape(3, 4000)),
    "3d": (three_dimensional, shape(3, 128, 100, 100, 100)),
}
each_of_gallery = pytest.mark.parametrize("name", GALLERY)


@pytest.fixture(scope="module")
def gallery():
    """Each model of the gallery, its batch and its summary, made once."""
    made = {}

    def get(name):
        if name not in made:
            make, x = GALLERY[name]
            model = make()
            made[name] = model, x, vernal.summary(model, x)
        return made[name]

    return get


# ----- what every table promises


@each_of_gallery
@pytest.mark.parametrize("width", [80, 100, 120, None])
def test_text_fits_the_terminal_and_100_columns_elsewhere(gallery, name, width, monkeypatch):
    _, _, summary = gallery(name)
    if width is None:
        monkeypatch.delenv("COLUMNS", raising=False)
    else:
        monkeypatch.setenv("COLUMNS", str(width))
    header, *lines = str(summary).splitlines()
    rules = [i for i, line in enumerate(lines) if set(line) == {"─"}]
    assert len(rules) == 2 and rules[0] == 0
    assert max(map(len, [header, *lines[: rules[1] + 2]])) <= (width or 100)
    assert "\x1b" not in str(summary)
    columns = ["path", "layer", "input", "output", "trainable", "frozen", "bytes", "FLOPs"]
    if not summary.frozen:
        columns.remove("frozen")
    assert header.split() == columns
    # A path may go over several lines, and is whole.
    paths = [line[: header.index("layer")].strip() for line in lines[1 : rules[1]]]
    assert "".join(paths) == "".join(of_row.path for of_row in summary.rows)
    assert lines[rules[1] + 1].split()[0] == "total"


@each_of_gallery
def test_every_array_is_counted_once(gallery, name):
    model, _, summary = gallery(name)
    arrays = {id(leaf): leaf for leaf in jax.tree.leaves(model) if eqx.is_array(leaf)}.values()
    floats = [a.size for a in arrays if jnp.issubdtype(a.dtype, jnp.floating)]
    assert summary.trainable == sum(row.trainable for row in summary.rows) == sum(floats)
    assert summary.frozen == sum(a.size for a in arrays) - sum(floats)
    assert summary.bytes == sum(row.bytes for row in summary.rows) == sum(a.nbytes for a in arrays)


@pytest.mark.parametrize("name", sorted(GALLERY.keys() - {"recurrent", "until"}))
def test_flops_add_up_to_what_xla_counts_for_the_whole_model(gallery, name):
    model, x, summary = gallery(name)
    expected = xla_flops(eqx.nn.inference_mode(model), shape(*x.shape[1:], dtype=x.dtype))
    # XLA adds up in single precision; and it folds an operation on two constants.
    assert summary.flops == pytest.approx(expected, rel=1e-6, abs=1)
    assert summary.flops == sum(row.flops for row in summary.rows) > 1


def test_nothing_is_compiled(compiled):
    model = abstract(lambda: nn.MLP(3, 2, 17, 3, activation=jax.nn.gelu, key=KEY))
    compiled.clear()
    assert len(vernal.summary(model, np.zeros((4, 3))).rows) == 5
    assert compiled == []


def test_nothing_is_run():
    ran = []

    def model(x):
        jax.debug.callback(lambda: ran.append(True))
        return x

    summary = vernal.summary(eqx.nn.Lambda(model), np.ones((3, 2)))
    jax.effects_barrier()
    assert ran == []
    assert summary.rows[0].inputs == (shape(2),)


# ----- what it says of each layer


def test_the_table_of_a_line():
    summary = vernal.summary(nn.Linear(2, 1, key=KEY), np.zeros((200, 2)))
    assert str(summary).splitlines() == [
        "path    layer   input   output  trainable  bytes  FLOPs",
        "───────────────────────────────────────────────────────",
        "Linear  Linear  f32[2]  f32[1]          3   12 B      5",
        "───────────────────────────────────────────────────────",
        "total                                   3   12 B      5",
        "Parameters: 3, 12 B. Shapes and FLOPs are those of one example.",
    ]
    assert repr(summary) == str(summary)


@pytest.mark.parametrize("make", [nn.MLP, eqx.nn.MLP])
def test_an_mlp_by_hand(make):
    summary = vernal.summary(abstract(lambda: make(3, 2, 64, 2, key=KEY)), np.zeros((20, 3)))
    assert [row.path for row in summary.rows] == ["MLP", *(f"MLP.layers[{i}]" for i in range(3))]
    assert [row.layer for row in summary.rows] == ["MLP", "Linear", "Linear", "Linear"]
    sizes = [(3, 64), (64, 64), (64, 2)]
    root, *layers = summary.rows
    assert (root.inputs, root.outputs) == ((shape(3),), (shape(2),))
    assert (root.trainable, root.bytes, root.flops) == (0, 0, 2 * 64)  # two times relu
    for layer, (inputs, outputs) in zip(layers, sizes, strict=True):
        assert (layer.inputs, layer.outputs) == ((shape(inputs),), (shape(outputs),))
        assert layer.trainable == inputs * outputs + outputs
        assert layer.bytes == 4 * layer.trainable
        assert layer.flops == 2 * inputs * outputs + outputs


def test_a_convolutional_network_by_hand(gallery):
    _, _, summary = gallery("cnn")
    conv = row(summary, "Cnn.layers[0]")
    assert (conv.inputs, conv.outputs) == ((shape(3, 12, 12),), (shape(8, 10, 10),))
    assert conv.trainable == 8 * 3 * 3 * 3 + 8
    assert conv.flops == 2 * (3 * 3 * 3) * (8 * 10 * 10) + 8 * 10 * 10
    assert row(summary, "Cnn.layers[1]").flops == 8 * 10 * 10
    assert row(summary, "Cnn.layers[5]").flops == 2 * 200 * 10 + 10
    assert row(summary, "Cnn.layers[4]").flops == 0  # in inference mode
    assert "f32[3,12,12]" in str(summary)


def test_layers_under_vmap_count_for_all_that_they_are_mapped_over(gallery):
    _, _, summary = gallery("attention")
    query = row(summary, "Attention.attention.query_proj")
    assert query.inputs == (shape(64),)
    assert query.flops == 2 * 10 * 64 * 64
    attention = row(summary, "Attention.attention")
    assert attention.inputs == 3 * (shape(10, 64),)
    assert attention.flops > 2 * 2 * 10 * 10 * 64  # both products of every token with every other
    assert str(summary).count("f32[10,64]") >= 4  # of the inputs alone, three


def test_a_loop_counts_as_often_as_it_goes_round(gallery):
    _, _, summary = gallery("recurrent")
    cell = row(summary, "Recurrent.cell")
    assert cell.calls == 50
    assert (cell.inputs, cell.outputs) == ((shape(3), shape(4)), (shape(4),))
    assert "50 × GRUCell" in str(summary)
    # The same 50 steps, written out one after the other.
    unrolled = abstract(Unrolled)
    assert cell.flops == xla_flops(unrolled, shape(50, 3)) > 50 * 2 * 3 * (3 * 4 + 4 * 4)
    assert row(summary, "Recurrent.head").flops == 2 * 4 + 1
    assert summary.flops == cell.flops + 9


def test_a_loop_of_unknown_length_has_unknown_flops(gallery):
    _, _, summary = gallery("until")
    assert summary.flops is None
    layer = row(summary, "Until.layer")
    assert (layer.calls, layer.flops, layer.trainable) == (None, None, 20)
    assert row(summary, "Until.start").flops == 2 * 2 * 4 + 4
    lines = str(summary).splitlines()
    assert re.search(r"\? × Linear .* –$", lines[4])
    assert lines[-2].split()[-1] == "–"


def test_what_xla_does_not_know_is_not_zero():
    decompose = eqx.nn.Lambda(lambda x: jnp.linalg.svd(x, compute_uv=False))
    summary = vernal.summary(decompose, np.ones((3, 4, 4)))
    assert (summary.flops, summary.rows[0].outputs) == (None, (shape(4),))


def test_of_two_branches_the_costlier_counts(gallery):
    _, _, summary = gallery("either")
    assert row(summary, "Either.large.layers[0]").flops == 2 * 4 * 16 + 16
    assert row(summary, "Either.small").flops == 0


def test_arrays_of_the_model_and_layers_that_are_not_called(gallery):
    _, _, summary = gallery("holder")
    assert [row.path for row in summary.rows] == ["Holder", "Holder.used", "Holder.unused"]
    root, used, unused = summary.rows
    assert (root.trainable, root.frozen, root.bytes, root.flops) == (5, 3, 32, 5)
    assert used.trainable == 25
    assert (unused.inputs, unused.outputs, unused.calls) == ((), (), 0)
    assert (unused.trainable, unused.bytes) == (16, 64)
    line = str(summary).splitlines()[4]
    assert line.split() == ["Holder.unused", "Linear", "16", "64", "B"]


# ----- what is shared


def test_a_layer_at_two_places_is_counted_once(gallery):
    _, _, summary = gallery("sequential")
    first, _, second = summary.rows[1:]
    assert (first.trainable, first.calls, first.flops) == (30, 2, 2 * (2 * 25 + 5))
    assert (second.trainable, second.shared_with) == (0, "Sequential.layers[0]")
    assert "2 × Linear" in str(summary)
    assert "shared with" in str(summary)


def test_an_array_at_two_places_is_counted_once(gallery):
    _, _, summary = gallery("tied")
    assert row(summary, "TiedArray.first").trainable == 20
    second, weight = row(summary, "TiedArray.second"), row(summary, "TiedArray.second.weight")
    assert (second.trainable, second.flops) == (4, 36)
    assert weight.shared_with == "TiedArray.first.weight"


def test_equinox_shared_layers_are_counted_once(gallery):
    _, _, summary = gallery("shared")
    linear = row(summary, "Language.shared.pytree[1]")
    assert (linear.trainable, linear.flops) == (50, 12 * (2 * 8 * 50 + 50))
    weight = row(summary, "Language.shared.pytree[1].weight")
    assert weight.shared_with == "Language.shared.pytree[0].weight"
    assert summary.trainable == 50 * 8 + 50


class Transposed(eqx.Module):
    """Its last layer has the first one's weight, transposed, and is before it."""

    shared: eqx.nn.Shared

    def __init__(self):
        first, last = eqx.nn.Linear(3, 5, key=KEY), eqx.nn.MLP(5, 3, 5, 0, key=KEY)
        pair = {"a": last, "b": first}
        self.shared = eqx.nn.Shared(
            pair, lambda p: p["a"].layers[0].weight, lambda p: p["b"].weight.T
        )

    def __call__(self, x):
        pair = self.shared()
        return pair["a"](pair["b"](x))


def test_what_is_shared_may_be_computed(compiled):
    model = abstract(Transposed)
    compiled.clear()
    summary = vernal.summary(model, np.zeros((4, 3)))
    assert compiled == []
    assert summary.trainable == 3 * 5 + 5 + 3
    last = row(summary, "Transposed.shared.pytree['a'].layers[0]")
    assert (last.trainable, last.flops) == (3, 2 * 3 * 5 + 3)


class Twins(eqx.Module):
    """A layer that stands for a later one."""

    shared: eqx.nn.Shared

    def __init__(self):
        pair = [eqx.nn.MLP(4, 4, 4, 1, key=KEY) for _ in range(2)]
        self.shared = eqx.nn.Shared(pair, lambda p: p[0], lambda p: p[1])

    def __call__(self, x):
        first, second = self.shared()
        return second(first(x))


def test_a_whole_layer_is_shared():
    summary = vernal.summary(abstract(Twins), np.zeros((4, 4)))
    assert summary.trainable == 2 * (16 + 4)
    first, second = (row(summary, f"Twins.shared.pytree[{i}].layers[0]") for i in (0, 1))
    assert (first.calls, first.trainable, first.flops) == (1, 20, 2 * 16 + 4)
    assert (second.calls, second.trainable, second.flops) == (1, 0, 2 * 16 + 4)
    weight = row(summary, "Twins.shared.pytree[1].layers[0].weight")
    assert weight.shared_with == "Twins.shared.pytree[0].layers[0].weight"


# ----- choices


def test_trainable_is_as_in_trainer():
    model = nn.MLP(3, 2, 4, 1, key=KEY)
    biases = jax.tree.map(lambda leaf: eqx.is_array(leaf) and leaf.ndim == 1, model)
    summary = vernal.summary(model, np.zeros((5, 3)), trainable=biases)
    assert (summary.trainable, summary.frozen) == (4 + 2, 12 + 8)
    assert (row(summary, "MLP.layers[0]").trainable, row(summary, "MLP.layers[0]").frozen) == (
        4,
        12,
    )
    none = vernal.summary(model, np.zeros((5, 3)), trainable=False)
    assert (none.trainable, none.frozen, none.bytes) == (0, 26, 104)


@pytest.mark.parametrize(
    "x",
    [
        np.zeros((5, 3)),
        jnp.zeros((5, 3)),
        shape(5, 3, dtype=np.float64),
        [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]],
    ],
    ids=["numpy", "jax", "shape", "list"],
)
def test_a_batch_of_any_kind(x):
    summary = vernal.summary(nn.Linear(3, 2, key=KEY), x)
    assert summary.rows[0].inputs == (shape(3),)


def test_a_batch_of_several_arrays():
    summary = vernal.summary(
        eqx.nn.Lambda(lambda x: x["a"] @ x["b"]), {"a": np.ones((5, 2, 3)), "b": shape(5, 3, 4)}
    )
    assert summary.rows[0].inputs == (shape(2, 3), shape(3, 4))
    assert (summary.rows[0].outputs, summary.flops) == ((shape(2, 4),), 2 * 2 * 3 * 4)


def test_a_state_has_a_model():
    model = nn.Linear(2, 1, key=KEY)
    state = vernal.Trainer(optax.sgd(0.1), losses.MeanSquaredError()).init(model)
    assert str(vernal.summary(state, np.zeros((5, 2)))) == str(
        vernal.summary(model, np.zeros((5, 2)))
    )


@pytest.mark.parametrize(
    ("size", "text"),
    [(2_500, "10,000 B"), (249_990, "999,960 B"), (250_000, "1.00 MB"), (2_500_000, "10.0 MB")],
)
def test_sizes_are_exact_below_a_million_bytes(size, text):
    summary = vernal.summary(eqx.nn.PReLU(jnp.zeros(size)), np.zeros((3, size)))
    assert f" {text} " in str(summary).splitlines()[2]


# ----- errors


def test_a_wrong_shape_is_explained_as_elsewhere():
    with pytest.raises(vernal.ShapeError, match=r"Linear needs \(2,\)") as caught:
        vernal.summary(nn.Linear(2, 1, key=KEY), np.zeros((200, 3)))
    trainer = vernal.Trainer(optax.sgd(0.1), losses.MeanSquaredError())
    with pytest.raises(vernal.ShapeError) as expected:
        trainer.predict(nn.Linear(2, 1, key=KEY), np.zeros((200, 3)))
    assert str(caught.value) == str(expected.value)


def test_a_stateful_model_is_refused_in_vernals_words():
    class Normed(eqx.Module):
        norm: eqx.nn.BatchNorm

        def __call__(self, x, state):
            return self.norm(x, state)

    norm, _ = eqx.nn.make_with_state(eqx.nn.BatchNorm)(3, "batch", mode="ema")
    with pytest.raises(vernal.VernalError, match="Normed"):
        vernal.summary(Normed(norm), np.zeros((5, 3)))


def test_a_class_is_no_model():
    with pytest.raises(vernal.ArgumentError, match="the class Linear"):
        vernal.summary(nn.Linear, np.zeros((5, 3)))


# ----- one update

X = np.linspace(-1, 1, 24).reshape(8, 3).astype(np.float32)
Y = np.linspace(0, 2, 16).reshape(8, 2).astype(np.float32)


def cost_of(*args, **options) -> Any:
    return vernal.update_cost(*args, **options)


def line_trainer():
    return vernal.Trainer(optax.sgd(0.1), losses.MeanSquaredError()), nn.Linear(3, 2, key=KEY)


def test_the_jaxpr_is_the_update(compiled):
    trainer, model = line_trainer()
    compiled.clear()
    jaxpr = vernal.update_jaxpr(trainer, model, (X, Y))
    assert compiled == []
    arrays = jax.tree.leaves(eqx.filter((trainer.init(model), X, Y), eqx.is_array))
    weight, bias, *_, loss = jaxpr_as_fun(jaxpr)(*arrays)
    # By hand.
    error = X @ np.asarray(model.weight).T + np.asarray(model.bias) - Y
    np.testing.assert_allclose(loss, np.mean(error**2), rtol=1e-5)
    np.testing.assert_allclose(weight, model.weight - 0.1 * 2 * error.T @ X / 16, rtol=1e-5)
    np.testing.assert_allclose(bias, model.bias - 0.1 * 2 * error.sum(0) / 16, rtol=1e-5)
    # Forward, and the weight's gradient; none for the data.
    assert str(jaxpr).count("dot_general") == 2


def test_the_jaxpr_of_a_state_a_batch_size_and_a_loader():
    trainer, model = line_trainer()
    inputs = lambda *args, **more: [
        str(var.aval) for var in vernal.update_jaxpr(trainer, *args, **more).jaxpr.invars
    ]
    small = inputs(model, (X, Y), batch_size=5)
    assert small[-2:] == ["float32[5,3]", "float32[5,2]"]
    assert inputs(trainer.init(model), (X, Y), batch_size=5) == small
    assert inputs(model, [(X[:5], Y[:5]), (X, Y)]) == small
    assert inputs(model, (X, Y))[-2:] == ["float32[8,3]", "float32[8,2]"]


@pytest.mark.parametrize("backend", [jax.default_backend(), "gpu"])
def test_the_cost_of_an_update_by_hand(backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    model = abstract(lambda: nn.MLP(64, 32, 256, 2, key=KEY))
    trainer = vernal.Trainer(optax.adam(0.1), losses.MeanSquaredError())
    x, y = np.zeros((100, 64)), np.zeros((100, 32))
    cost = cost_of(trainer, model, (x, y), batch_size=50)
    weights = [64 * 256, 256 * 256, 256 * 32]
    # Forward, gradients of the weights, and of what goes into each layer but the first.
    products = 2 * 50 * (2 * sum(weights) + sum(weights[1:]))
    assert products < cost.flops < 1.2 * products
    parameters = sum(weights) + 256 + 256 + 32
    # Parameters and Adam's two moments; Adam's count and the five of a state; the key; the batch.
    state = 4 * 3 * parameters + 4 * 6 + 8
    assert cost.arguments == state + 4 * 50 * (64 + 32)
    assert state + 4 <= cost.outputs <= state + 4 + 500  # the loss; a pointer for each array
    assert cost.peak_memory == cost.arguments + cost.outputs + cost.temporaries
    assert cost.temporaries >= 0
    assert cost.bytes_accessed > cost.arguments
    assert cost.batch_size == 50
    first, second = str(cost).splitlines()
    assert re.match(r"1 step on a batch of 50: \d\d\.\d MFLOP, \d+\.?\d* MB read", first)
    assert "arguments 1.11 MB" in second
    assert max(len(first), len(second)) <= 100


def test_the_cost_of_a_loop_grows_with_its_length():
    trainer = vernal.Trainer(optax.sgd(0.1), losses.MeanSquaredError())
    model = abstract(Recurrent)
    costs = [cost_of(trainer, model, (np.zeros((2, n, 3)), np.zeros((2, 1)))) for n in (10, 100)]
    assert 9 < costs[1].flops / costs[0].flops < 10
    # More than the forward pass of both examples, and about three times that.
    flops = vernal.summary(model, shape(2, 100, 3)).flops
    assert flops is not None
    forward = 2 * flops
    assert 2 * forward < costs[1].flops < 5 * forward
    assert costs[0].bytes_accessed is None
    assert "– read and written" in str(costs[0])


@pytest.mark.parametrize("inspect", [vernal.update_jaxpr, vernal.update_cost])
def test_mistakes_are_explained_as_in_fit(inspect):
    trainer, model = line_trainer()
    with pytest.raises(vernal.ShapeError) as expected:
        trainer.fit(model, (X, Y[:, 0]), epochs=1)
    with pytest.raises(vernal.ShapeError) as caught:
        inspect(trainer, model, (X, Y[:, 0]))
    assert str(caught.value) == str(expected.value)
    with pytest.raises(vernal.ArgumentError, match="batch_size"):
        inspect(trainer, model, (X, Y), batch_size=0)
    with pytest.raises(vernal.ArgumentError, match="without a float array to train"):
        inspect(trainer, eqx.nn.Lambda(lambda x: x[:2]), (X, Y))


def test_a_notebook_shows_a_table_in_which_nothing_is_wrapped(gallery):
    summary = gallery("tied")[2]
    table = summary._repr_html_()
    for row in summary.rows:
        assert f"<td>{html.escape(row.path)}</td>" in table
    assert table.count("<tr>") == len(summary.rows) + 2  # the titles, and the total


class Dropped(eqx.Module):
    """Cannot be called without a key."""

    dropout: eqx.nn.Dropout
    linear: eqx.nn.Linear

    def __call__(self, x, *, key):
        return self.linear(self.dropout(x, key=key))


def test_a_model_that_needs_a_key_gets_one():
    linear = eqx.nn.Linear(3, 2, key=jax.random.key(0))
    table = vernal.summary(Dropped(eqx.nn.Dropout(0.5), linear), np.ones((4, 3), np.float32))
    assert table.trainable == 8
    assert table.flops == vernal.summary(linear, np.ones((4, 3), np.float32)).flops


def test_a_model_without_its_state_is_refused_with_the_line():
    norm = eqx.nn.BatchNorm(3, axis_name="batch", mode="batch")
    with pytest.raises(vernal.ArgumentError, match="make_with_state"):
        vernal.summary(norm, np.ones((4, 3), np.float32))
