"""klax: a training loop for Equinox's modules."""

from functools import cache

import jax
import klax
from workloads import Unfit

from rivals.by_hand import applied
from rivals.equinox_models import model, optimizer


def prepare(workload):
    """Its `fit`, with the history and callbacks that are its default."""
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
            steps=workload.updates,
            loss_fn=klax.mse,
            optimizer=tx,
            history=klax.HistoryCallback(workload.updates, verbose=False),
            key=jax.random.key(1),
        )
        jax.block_until_ready(jax.tree.leaves(trained[0]))

    return run, lambda x: applied(trained[0], x)
