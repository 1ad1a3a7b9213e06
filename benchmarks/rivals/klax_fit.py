"""klax: a training loop for Equinox's modules."""

from functools import cache

import jax
import klax
from workloads import Unfit

from rivals.by_hand import applied
from rivals.equinox_models import model, optimizer


def prepare(workload):
    """Its `fit` since 0.2, with the history that is its default, every 100 updates."""
    if workload.classifies:
        raise Unfit("its losses are of numbers")
    data, trained = workload.data(), []
    tx, size = optimizer(workload), workload.batch_size or workload.examples
    first_model = cache(lambda: model(workload, jax.random.key(0)))

    def run():
        trained[:] = klax.fit(
            first_model(),
            data,
            batch_size=size,
            steps=workload.steps,
            loss=klax.mse,
            optimizer=tx,
            verbose=0,
            key=jax.random.key(1),
        )
        jax.block_until_ready(jax.tree.leaves(trained[0]))

    return run, lambda x: applied(trained[0], x)
