"""One device and eight: the same losses, up to rounding; and each device does its share."""

import itertools
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, assert_same_bits, filled
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import vernal
from vernal import callbacks, losses, metrics
from vernal._training import chunks

KEY = jax.random.key(3)
ADAM = optax.adam(1e-2)
# For tests that compare with one device, up to rounding. Those of bits have their own optimizers.
fast = pytest.mark.usefixtures("fast")


def data(examples=203):
    """Points of a plane, whose last batch of 64 does not divide by eight."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(examples, 4)).astype(np.float32)
    return x, np.sin(x.sum(axis=1, keepdims=True)).astype(np.float32)


def images(examples=76):
    """Small images, and one of three labels for each."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(examples, 1, 6, 6)).astype(np.float32)
    return x, rng.integers(0, 3, examples).astype(np.int32)


@filled
def mlp():
    return eqx.nn.MLP(4, 1, 64, 3, key=KEY)


class Convolutional(eqx.Module):
    """A convolution, batch normalization, dropout."""

    convolution: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    linear: eqx.nn.Linear

    def __init__(self, key):
        k1, k2 = jax.random.split(key)
        self.convolution = eqx.nn.Conv2d(1, 4, 3, padding=1, use_bias=False, key=k1)
        self.norm = eqx.nn.BatchNorm(4, "batch", mode="batch")
        self.dropout = eqx.nn.Dropout(0.3)
        self.linear = eqx.nn.Linear(4 * 36, 3, key=k2)

    def __call__(self, x, state, *, key):
        hidden, state = self.norm(self.convolution(x), state)
        return self.linear(self.dropout(jax.nn.relu(hidden).reshape(-1), key=key)), state


def pair(mesh, optimizer=ADAM, loss=None, **choices):
    """The same trainer for one device, and for a mesh."""
    loss = losses.MeanSquaredError() if loss is None else loss
    return [vernal.Trainer(optimizer, loss, mesh=m, **choices) for m in (None, mesh)]


def assert_same_run(trainers, data, start, *, split=None, **options):
    """Train on one device and on many; return the state that the many end with."""
    one, many = trainers
    options = {"epochs": 3, "batch_size": 64, "progress": False, "key": KEY} | options
    split = start if split is None else split
    if isinstance(start, tuple):
        model, model_state = start
        start = one.init(model, model_state=model_state, key=KEY)
        split = many.init(model, model_state=model_state, key=KEY)
        del options["key"]
    alone, expected = one.fit(start, data, **options)
    state, history = many.fit(split, data, **options)
    assert set(history.steps) == set(expected.steps)
    for found, wanted in ((history.steps, expected.steps), (history.epochs, expected.epochs)):
        for name in set(wanted) - {"learning_rate"}:  # which a line search finds
            np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, atol=1e-5)
    assert_close(state.model, alone.model, rtol=1e-4, atol=1e-4)
    return state


def weighted(model, batch, key):
    """A loss of one's own, on a dict, with a weight of its own."""
    errors = (jax.vmap(model)(batch["x"]) - batch["y"]) ** 2
    return losses.Weighted(jnp.mean(errors), jnp.asarray(errors.size)), {"largest": jnp.max(errors)}


@fast
@pytest.mark.parametrize(
    "optimizer",
    [
        ADAM,
        optax.MultiSteps(optax.sgd(1e-2), 3),
        pytest.param(optax.lbfgs(memory_size=3), marks=pytest.mark.long),
        pytest.param(optax.inject_hyperparams(optax.adamw)(1e-3), marks=pytest.mark.long),
        pytest.param(
            optax.chain(optax.clip_by_global_norm(1.0), optax.adafactor(1e-2)),
            marks=pytest.mark.long,
        ),
    ],
    ids=["adam", "accumulated", "lbfgs", "hyperparameters", "adafactor"],
)
def test_an_mlp_with_a_ragged_tail_trains_as_on_one_device(mesh, optimizer):
    x, y = data()
    trainers = pair(mesh, optimizer, metrics={"r2": metrics.r2})
    state = assert_same_run(trainers, (x, y), mlp, validation_data=(x[:50], y[:50]))
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.opt_state))


@fast
def test_a_line_search_goes_as_far_as_on_one_device(mesh):
    trainers = pair(mesh, optax.lbfgs(memory_size=3))
    state = assert_same_run(trainers, data(200), mlp, batch_size=None)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.opt_state))


@fast
@pytest.mark.parametrize("size", [32, pytest.param(None, marks=pytest.mark.long)])
def test_batch_norm_and_dropout_train_as_on_one_device(mesh, size):
    x, y = images(80 if size is None else 76)
    measured = {"accuracy": metrics.accuracy}
    trainers = pair(mesh, optax.sgd(0.05), losses.CrossEntropy(), metrics=measured)
    made = eqx.nn.make_with_state(Convolutional)(KEY)
    assert_same_run(trainers, (x, y), made, batch_size=size, epochs=4)


@fast
def test_averaged_weights_train_as_on_one_device(mesh):
    x, y = data()
    trainers = pair(mesh, vernal.average_weights(ADAM, decay=0.9), eval_params=vernal.averaged)
    state = assert_same_run(trainers, (x, y), mlp, validation_data=(x, y), batch_size=200)
    predicted = trainers[1].predict(state, x)
    expected = jax.vmap(trainers[1].eval_model(state))(x)
    assert_close(predicted, expected, rtol=1e-4, atol=1e-6)


@fast
def test_weights_losses_and_loaders_of_ones_own_train_as_on_one_device(mesh):
    x, y = data()
    w = np.linspace(0, 2, len(x), dtype=np.float32)
    assert_same_run(pair(mesh), (x, y, w), mlp)
    assert_same_run(pair(mesh, loss=weighted), {"x": x, "y": y}, mlp)
    batches = [(x[i : i + 64], y[i : i + 64]) for i in range(0, len(x), 64)]
    assert_same_run(
        pair(mesh), lambda: iter(batches), mlp, batch_size=None, validation_data=batches
    )


@fast
def test_data_in_a_file_trains_as_in_memory(mesh, tmp_path):
    x, y = data()
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    _, many = pair(mesh)
    of_memory, _ = many.fit(mlp, (x, y), epochs=2, batch_size=64)
    of_file, _ = many.fit(mlp, (mapped, y), epochs=2, batch_size=64)
    assert_same_bits(of_file.model, of_memory.model)


# ----- states that are split


def split(mesh, model, spec_of):
    """Split a model's arrays over a mesh."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            jax.device_put(leaf, NamedSharding(mesh, spec_of(jax.tree_util.keystr(path), leaf)))
            if eqx.is_array(leaf)
            else leaf
        ),
        model,
    )


def fully(path, leaf):
    """Split each array along its first axis, if that divides."""
    return PartitionSpec("data") if leaf.shape[0] % 8 == 0 else PartitionSpec()


def tensor_parallel(path, leaf):
    """Split layers by their outputs and their inputs in turn, over the mesh's second axis."""
    number = int(re.findall(r"layers\[(\d)\]", path)[0])
    if number % 2 == 0:
        return PartitionSpec("model") if leaf.shape[0] % 2 == 0 else PartitionSpec()
    return PartitionSpec(None, "model") if leaf.ndim == 2 else PartitionSpec()


def specs(tree):
    """How the arrays of a tree are split."""
    return [leaf.sharding.spec for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_array))]


@fast
def test_a_fully_split_mlp_stays_split_in_training_and_in_checkpoints(mesh, tmp_path):
    x, y = data()
    one, many = pair(mesh)
    start = split(mesh, mlp, fully)
    assert PartitionSpec("data") in specs(start)
    checkpoints = vernal.Checkpoints(tmp_path, every_epochs=1)
    more = {"validation_data": (x, y), "callbacks": [callbacks.BestState("loss")]}
    state = assert_same_run((one, many), (x, y), mlp, split=start, **more)
    for part in (state.model, state.opt_state[0].mu, state.opt_state[0].nu):
        assert specs(part) == specs(start)

    many.fit(start, (x, y), epochs=2, batch_size=64, checkpoints=checkpoints, key=KEY)
    resumed, _ = many.fit(start, (x, y), epochs=3, batch_size=64, checkpoints=checkpoints, key=KEY)
    whole, _ = many.fit(start, (x, y), epochs=3, batch_size=64, key=KEY)
    assert_same_bits(resumed, whole)
    assert specs(resumed.model) == specs(resumed.opt_state[0].mu) == specs(start)
    # A run may go on with another number of devices.
    alone, _ = one.fit(mlp, (x, y), epochs=4, batch_size=64, checkpoints=checkpoints, key=KEY)
    expected, _ = one.fit(mlp, (x, y), epochs=4, batch_size=64, key=KEY)
    assert_close(alone.model, expected.model, rtol=1e-4, atol=1e-4)


@fast
def test_a_tensor_parallel_mlp_trains_as_on_one_device():
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    start = split(mesh, mlp, tensor_parallel)
    assert {PartitionSpec("model"), PartitionSpec(None, "model")} <= set(specs(start))
    one, many = pair(mesh)
    state = assert_same_run((one, many), data(), mlp, split=start)
    assert specs(state.model) == specs(state.opt_state[0].nu) == specs(start)
    state, _ = many.step(state, (data()[0][:64], data()[1][:64]))
    assert specs(state.model) == specs(start)


# ----- the same bits


def test_steps_epochs_and_runs_in_parts_have_the_same_bits(mesh, tmp_path):
    x, y = data()
    _, trainer = pair(mesh, optax.adam(1e-2))
    whole, _ = trainer.fit(mlp, (x, y), epochs=4, batch_size=64, key=KEY)
    state = trainer.init(mlp, key=KEY)
    for epoch in range(4):
        for batch in vernal.batches((x, y), 64, epoch=epoch, key=KEY):
            state, _ = trainer.step(state, batch)
    assert_same_bits(state.model, whole.model)

    part, _ = trainer.fit(mlp, (x, y), epochs=1, batch_size=64, key=KEY)
    [*_, last] = itertools.islice(trainer.epochs(part, (x, y), batch_size=64), 3)
    assert_same_bits(last.state, whole)
    vernal.save(tmp_path / "state.vernal", part)
    loaded = vernal.load(tmp_path / "state.vernal", trainer.init(mlp))
    rest, _ = trainer.fit(loaded, (x, y), epochs=3, batch_size=64)
    assert_same_bits(rest, whole)


# ----- what each device does


def programs(monkeypatch, fit, *arguments, place=(chunks, "run_steps"), **options):
    """Train, and return the compiled programs as text: of the loop at a place in the package."""
    texts = []
    run_steps = getattr(*place)

    class Watched:
        def lower(self, *arguments):
            compiled = run_steps.lower(*arguments).compile()
            texts.append(compiled.compiled.as_text())
            self.compile = lambda: compiled
            return self

    monkeypatch.setattr(*place, Watched())
    fit(*arguments, **options)
    return texts


def communications(text):
    """How often a program, whose loop is one of its computations, communicates, and how."""
    kinds = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
    found = re.findall(rf"= .*?\b({kinds})(?:-start)?\((.*)", text)
    return [kind for kind, _ in found]


@pytest.mark.parametrize("size", [72, None])
def test_a_step_adds_up_gradients_once_and_computes_a_share_of_the_batch(mesh, size, monkeypatch):
    x, y = data(216)
    _, trainer = pair(mesh)
    [text] = programs(monkeypatch, trainer.fit, mlp, (x, y), epochs=2, batch_size=size)
    assert communications(text) == ["all-reduce"]
    share = (size or len(x)) // 8
    rows = {int(rows) for rows in re.findall(r"f32\[(\d+),64\]\S* dot\(", text)}
    assert rows <= {share, 64, 1}  # outputs and errors of the share; gradients of weights
    assert share in rows
    # No device is given another's examples.
    assert re.search(rf"f32\[(\d+,)?{share},4\]", text)
    assert f"{size or len(x)},4]" not in text


def test_a_split_model_gathers_no_data(mesh, monkeypatch):
    x, y = data(216)
    _, trainer = pair(mesh)
    start = split(mesh, mlp, fully)
    [text] = programs(monkeypatch, trainer.fit, start, (x, y), epochs=2, batch_size=72)
    assert "all-gather" in communications(text)  # of parameters
    assert re.search(r"f32\[\d+,9,4\]", text) and "72,4]" not in text


# ----- what is refused, and how


@pytest.mark.parametrize(
    ("options", "examples", "said", "fix"),
    [
        ({"batch_size": 100}, 203, "batch_size=100", "batch_size=96"),
        ({"batch_size": 5}, 203, "batch_size=5", "batch_size=8"),
        ({}, 203, "203 examples", "x[:200]"),
    ],
)
def test_a_batch_that_cannot_be_shared_is_explained(mesh, options, examples, said, fix):
    _, trainer = pair(mesh)
    with pytest.raises(vernal.ArgumentError) as caught, vernal.no_recompilation():
        trainer.fit(mlp, data(examples), epochs=1, **options)
    message = " ".join(str(caught.value).split())
    assert said in message and "8 devices" in message and "'data'" in message and fix in message


def test_a_loaders_batch_that_cannot_be_shared_is_explained(mesh):
    _, trainer = pair(mesh)
    x, y = data()
    with pytest.raises(vernal.ArgumentError, match="first batch of data has 100 examples"):
        trainer.fit(mlp, [(x[:100], y[:100])], epochs=1)


def test_meshes_that_jax_may_not_share_work_out_on_are_explained():
    explicit = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    with pytest.raises(vernal.ArgumentError) as caught:
        vernal.Trainer(ADAM, losses.MeanSquaredError(), mesh=explicit)
    [fix] = re.findall(r"Try (jax\.make_mesh.*)\.$", str(caught.value), re.DOTALL)
    mesh = eval(fix, {"jax": jax})
    assert mesh.shape == explicit.shape
    vernal.Trainer(ADAM, losses.MeanSquaredError(), mesh=mesh)
    with pytest.raises(vernal.ArgumentError, match="mesh is 8"):
        vernal.Trainer(ADAM, losses.MeanSquaredError(), mesh=8)  # pyright: ignore[reportArgumentType]


@fast
def test_data_on_several_devices_and_no_mesh_is_said(mesh):
    x, y = data(200)
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    one, many = pair(mesh)
    with pytest.warns(RuntimeWarning, match="x lies on 8 devices.*mesh="):
        one.fit(mlp, (sharded, y), epochs=1)
    many.fit(mlp, (sharded, y), epochs=1)


# ----- the rest of the trainer


@fast
def test_evaluating_and_predicting_are_shared_too(mesh):
    x, y = data()
    one, many = pair(mesh, metrics={"r2": metrics.r2})
    for size in (None, 64):
        expected = one.evaluate(mlp, (x, y), batch_size=size)
        found = many.evaluate(mlp, (x, y), batch_size=size)
        assert found == pytest.approx(expected, rel=1e-5)
        outputs = many.predict(mlp, x, batch_size=size)
        np.testing.assert_allclose(outputs, one.predict(mlp, x), rtol=1e-4, atol=1e-5)
    assert many.predict(mlp, x[:3]).shape == (3, 1)  # fewer than there are devices


@fast
def test_the_tools_take_a_trainer_with_a_mesh(mesh):
    x, y = data(192)
    _, trainer = pair(mesh, optax.inject_hyperparams(optax.adam)(1e-3))
    suggested = vernal.find_learning_rate(trainer, mlp, (x, y), batch_size=64)
    assert np.isfinite(suggested.losses).all()
    assert "FLOP" in str(vernal.update_cost(trainer, mlp, (x, y), batch_size=64))
    assert "sharding_constraint" in str(vernal.update_jaxpr(trainer, mlp, (x, y), batch_size=64))
    with pytest.raises(vernal.NonFiniteError) as caught:
        vernal.Trainer(optax.sgd(1e6), losses.MeanSquaredError(), mesh=mesh).fit(
            mlp, (x, y), epochs=9, batch_size=64
        )
    assert np.isfinite(caught.value.history.steps["loss"]).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(caught.value.state.opt_state))
