"""Loops written by hand around Equinox and Optax, as pure functions of what changes."""

from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from rivals.equinox_models import error, model, optimizer


def update_of(workload):
    """One update, carry and batch to carry and loss; the first carry; the rest of the model."""
    tx, of_example = optimizer(workload), error(workload)
    params, static = eqx.partition(model(workload, jax.random.key(0)), eqx.is_inexact_array)

    def update(carry, batch):
        params, opt_state = carry
        x, y = batch

        def objective(params):
            predictions = jax.vmap(eqx.combine(params, static))(x)
            return jnp.mean(of_example(predictions, y))

        loss, grads = jax.value_and_grad(objective)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    return update, (params, tx.init(params)), static


def prepare_scan(workload):
    """The limit: a `lax.scan` over an epoch's batches, gathered once; or over all updates."""
    x, y = jax.device_put(workload.data())
    size, trained = workload.batch_size, []

    @cache
    def compiled():
        update, start, static = update_of(workload)

        @jax.jit
        def all_updates(carry, x, y):
            return jax.lax.scan(
                lambda carry, _: update(carry, (x, y)), carry, length=workload.epochs
            )

        @jax.jit
        def epoch(carry, x, y, order):
            full = len(order) // size * size
            rows, tail = order[:full].reshape(-1, size), order[full:]
            carry, losses = jax.lax.scan(update, carry, (x[rows], y[rows]))
            if len(tail):
                carry, _ = update(carry, (x[tail], y[tail]))
            return carry, losses

        return all_updates if size is None else epoch, start, static

    def run():
        function, carry, _ = compiled()
        if size is None:
            carry, losses = function(carry, x, y)
        else:
            losses = []
            for index in range(workload.epochs):
                carry, loss = function(carry, x, y, workload.order(index))
                losses.append(loss)
        trained[:] = jax.block_until_ready((carry, losses))

    return run, lambda x: applied(eqx.combine(trained[0][0], compiled()[2]), x)


def step_of(workload):
    """The optimizer, and the step of Equinox's documentation, compiled by `filter_jit`."""
    tx, of_example = optimizer(workload), error(workload)

    @eqx.filter_jit
    def step(model, opt_state, x, y):
        def objective(model):
            return jnp.mean(of_example(jax.vmap(model)(x), y))

        loss, grads = eqx.filter_value_and_grad(objective)(model)
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, opt_state = tx.update(grads, opt_state, params)
        return eqx.apply_updates(model, updates), opt_state, loss

    return tx, step


def prepare_loop(workload):
    """The loop of Equinox's documentation: its step once for each batch."""
    tx, step = step_of(workload)
    x, y = workload.data()
    first_model, trained = cache(lambda: model(workload, jax.random.key(0))), []

    def run():
        made = first_model()
        opt_state = tx.init(eqx.filter(made, eqx.is_inexact_array))
        size = workload.batch_size or workload.examples
        for index in range(workload.epochs):
            order = np.arange(workload.examples) if size == len(x) else workload.order(index)
            for start in range(0, workload.examples, size):
                rows = order[start : start + size]
                batch = (x, y) if size == len(x) else (x[rows], y[rows])
                made, opt_state, loss = step(made, opt_state, *batch)
        trained[:] = [jax.block_until_ready((made, loss))[0]]

    return run, lambda x: applied(trained[0], x)


@eqx.filter_jit
def applied(model, x):
    """A model's outputs for many examples."""
    return jax.lax.map(model, x, batch_size=256)
