"""Vernal: everything on that is on by default, the progress bar too."""

import contextlib
import io
from functools import cache

import jax
from workloads import Unfit

import vernal
from rivals.equinox_models import activation, model, optimizer
from vernal import losses, nn


class Terminal(io.StringIO):
    """What a progress bar is shown on."""

    def isatty(self):
        return True


def loss_of(workload):
    """The loss."""
    return losses.CrossEntropy() if workload.classifies else losses.MeanSquaredError()


def _prepare(workload, make):
    trainer = vernal.Trainer(optimizer(workload), loss_of(workload))
    data, trained = workload.data(), []
    epochs, size = workload.epochs, workload.batch_size
    first_model = cache(lambda: make(workload, jax.random.key(0)))

    def run():
        with contextlib.redirect_stderr(Terminal()):
            trained[:] = trainer.fit(first_model(), data, epochs=epochs, batch_size=size)
        jax.block_until_ready(jax.tree.leaves(trained[0].opt_state))

    return run, lambda x: trainer.predict(trained[0], x, batch_size=256)


def prepare(workload):
    """A model of Equinox's own layers."""
    return _prepare(workload, model)


def _own(workload, key):
    first, *hidden, last = workload.sizes
    if workload.kind != "dense" or len(set(hidden)) > 1:
        raise Unfit("vernal.nn has dense layers of one width")
    if not hidden:
        return nn.Linear(first, last, key=key)
    return nn.MLP(first, last, hidden[0], len(hidden), activation(workload), key=key)


def prepare_own(workload):
    """A model of `vernal.nn`."""
    _own(workload, jax.random.key(0))
    return _prepare(workload, _own)
