"""The members of a sweep, spread over eight devices."""

import equinox as eqx
import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from test_mesh import data, programs

import vernal
from vernal import callbacks, losses
from vernal import sweep as vernal_sweep

KEYS = jax.random.split(jax.random.key(2), 16)
RATED = optax.inject_hyperparams(optax.adam)(1e-3)

pytestmark = pytest.mark.usefixtures("fast")


def mlp(key):
    return eqx.nn.MLP(4, 1, 8, 1, key=key)


def sweeps(mesh):
    """The same sweep on one device, and on a mesh."""
    rates = np.geomspace(1e-4, 1e-1, 16)
    for devices in (None, mesh):
        trainer = vernal.Trainer(RATED, losses.MeanSquaredError(), mesh=devices)
        yield vernal.Sweep(trainer, mlp, keys=KEYS, hyperparams={"learning_rate": rates})


@pytest.mark.parametrize(
    "options", [{"batch_size": 64}, {"batch_size": 64, "shuffle": "shared"}, {}]
)
def test_a_sweep_over_devices_trains_as_on_one(mesh, options):
    x, y = data()
    results = [
        sweep.fit(
            (x, y),
            epochs=4,
            validation_data=(x[:50], y[:50]),
            callbacks=lambda i: [callbacks.EarlyStopping(patience=3)],
            progress=False,
            **options,
        )
        for sweep in sweeps(mesh)
    ]
    one, many = results
    for i in range(16):
        for name, values in one.histories[i].epochs.items():
            np.testing.assert_allclose(many.histories[i].epochs[name], values, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(many.predict(x).mean, one.predict(x).mean, rtol=1e-4, atol=1e-5)


def test_devices_do_not_speak_to_each_other(mesh, monkeypatch):
    _, sweep = sweeps(mesh)
    place = vernal_sweep, "run_steps_of_members"
    options = {"epochs": 2, "batch_size": 64, "progress": False}
    texts = programs(monkeypatch, sweep.fit, data(), place=place, **options)
    assert texts
    for text in texts:
        assert "all-" not in text and "collective" not in text.replace("collectives_", "")
        assert "f32[2,8,4]" in text  # two of the sixteen models


def test_members_that_devices_cannot_share_are_explained(mesh):
    trainer = vernal.Trainer(optax.sgd(0.1), losses.MeanSquaredError(), mesh=mesh)
    with pytest.raises(vernal.ArgumentError, match="Try 8 keys"):
        vernal.Sweep(trainer, lambda key: eqx.nn.Linear(4, 1, key=key), keys=KEYS[:5])


def test_a_sweeps_states_lie_on_one_device(mesh):
    _, sweep = sweeps(mesh)
    result = sweep.fit(data(), epochs=1, progress=False)
    weight = result[3].model.layers[0].weight
    assert getattr(weight.sharding, "spec", PartitionSpec()) == PartitionSpec()
    alone = vernal.Trainer(sweep.trainer.optimizer, losses.MeanSquaredError())
    alone.fit(result[3], data(), epochs=1, progress=False)
