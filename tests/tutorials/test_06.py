"""The figures of the sixth tutorial: polynomial regression."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest

import vernal
from vernal import losses, nn

POLYNOMIAL_LOSSES = {
    False: "2.650 0.100 0.079 0.070 0.062 0.057 0.052 0.047 0.044 0.040",
    True: "1.608 0.102 0.071 0.062 0.055 0.050 0.045 0.042 0.039 0.036",
}


@pytest.mark.parametrize("partitionable", [pytest.param(False, marks=pytest.mark.long), True])
def test_the_trainer_gives_the_published_losses_on_a_polynomial(partitionable):
    # JAX has two ways to derive random numbers from a key; the losses of both are published.
    with jax.threefry_partitionable(partitionable):
        key, noise_key = jax.random.split(jax.random.key(21))
        x = jnp.linspace(-10, 10, 1000)
        y = jnp.polyval(jnp.array([1.0, -2.0, 1.0, -2.0]), x)
        y += jax.random.normal(noise_key, x.shape)
        standardised = lambda a: ((a - a.mean()) / a.std())[:, None]

        weights = [
            jax.random.normal(layer_key, (n_out, n_in)) * (5 / 3) / n_in**0.5
            for layer_key, n_in, n_out in zip(
                jax.random.split(key), (1, 128), (128, 1), strict=True
            )
        ]
        model = nn.MLP(1, 1, 128, 1, activation=jnp.tanh, key=key)
        model = eqx.tree_at(lambda m: [layer.weight for layer in m.layers], model, weights)
        trainer = vernal.Trainer(optax.sgd(0.01), losses.MeanSquaredError())
        _, history = trainer.fit(model, (standardised(x), standardised(y)), epochs=1_000)
    printed = " ".join(f"{loss:.3f}" for loss in history.steps["loss"][::100])
    assert printed == POLYNOMIAL_LOSSES[partitionable]
