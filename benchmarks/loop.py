"""Vernal's loop against the best that a hand can write, in alternation, in one run.

`python benchmarks/loop.py [a b c] [--repeats N]` prints, for each workload, the median time of a
run of each rival, and the speed of `fit` relative to it (the median of the ratios of turns, and the
ratio of the best times): above 1, `fit` is faster. Rivals take turns, so that a machine that slows
down does so for all; all is compiled before the clock starts.

- a: a line through 200 × 2 numbers, full batch, 10,000 updates of Adam.
- b: 1 → 128 → tanh → 1 on 1,000 examples, full batch, 1,000 updates of SGD: `vernal.nn.MLP`
  against `equinox.nn.MLP`, both trained by `fit`.
- c: 10 → 64 → 64 → 1 on 10,000 examples in batches of 32 (the last one of 16), 10 epochs of Adam.

A scan is handed its data as arguments, on the device already, and its parameters and optimizer
state made; `fit` starts from a model and NumPy arrays.
"""

import argparse
import statistics
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import vernal
from vernal import losses, nn

KEY = jax.random.key(0)
MSE = losses.MeanSquaredError()


def make_update(model, optimizer):
    """One update by hand: carry and batch to carry and loss, and the first carry."""
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def update(carry, batch):
        params, opt_state = carry
        x, y = batch

        def objective(params):
            predictions = jax.vmap(eqx.combine(params, static))(x)
            return jnp.mean(optax.losses.squared_error(predictions, y))

        loss, grads = jax.value_and_grad(objective)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    return update, (params, optimizer.init(params))


def scan_full_batch(model, optimizer, data, updates):
    """A scan over updates on all of the data."""
    update, start = make_update(model, optimizer)
    data = jax.device_put(data)

    @jax.jit
    def run(carry, data):
        return jax.lax.scan(lambda carry, _: update(carry, data), carry, length=updates)

    return lambda: jax.block_until_ready(run(start, data))


def scan_epochs(model, optimizer, data, batch_size, epochs):
    """A scan an epoch, its examples gathered once in an order drawn on the host, and the tail."""
    update, start = make_update(model, optimizer)
    x, y = jax.device_put(data)
    n = len(x)
    full = n // batch_size * batch_size

    @jax.jit
    def epoch(carry, x, y, order):
        rows, tail = order[:full].reshape(-1, batch_size), order[full:]
        carry, losses = jax.lax.scan(update, carry, (x[rows], y[rows]))
        if full < n:
            carry, _ = update(carry, (x[tail], y[tail]))
        return carry, losses

    def run():
        carry, losses = start, []
        for index in range(epochs):
            order = np.random.default_rng(index).permutation(n).astype(np.int32)
            carry, loss = epoch(carry, x, y, order)
            losses.append(loss)
        return jax.block_until_ready((carry, losses))

    return run


def python_loop(model, optimizer, data, updates):
    """A jitted step in a Python loop, as tutorials teach it."""
    update, start = make_update(model, optimizer)
    step, data = jax.jit(update), jax.device_put(data)

    def run():
        carry = start
        for _ in range(updates):
            carry, loss = step(carry, data)
        return jax.block_until_ready((carry, loss))

    return run


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def workload_a():
    x = normal(200, 2)
    data = (x, x @ np.float32([[1.1], [2.1]]) + np.float32(3.1))
    model, optimizer = nn.Linear(2, 1, key=KEY), optax.adam(1e-3)
    trainer = vernal.Trainer(optimizer, MSE)
    return {
        "fit": lambda: trainer.fit(model, data, epochs=10_000, progress=False),
        "scan": scan_full_batch(model, optimizer, data, 10_000),
        "Python loop": python_loop(model, optimizer, data, 10_000),
    }, 10_000


def workload_b():
    x = np.linspace(-1, 1, 1000, dtype=np.float32)[:, None]
    data, optimizer = (x, x**3), optax.sgd(1e-2)
    trainer = vernal.Trainer(optimizer, MSE)
    ours = nn.MLP(1, 1, 128, 1, jnp.tanh, key=KEY)
    theirs = eqx.nn.MLP(1, 1, 128, 1, jnp.tanh, key=KEY)
    return {
        "fit": lambda: trainer.fit(ours, data, epochs=1000, progress=False),
        "scan": scan_full_batch(ours, optimizer, data, 1000),
        "fit, equinox.nn.MLP": lambda: trainer.fit(theirs, data, epochs=1000, progress=False),
    }, 1000


def workload_c():
    data, optimizer = (normal(10_000, 10), normal(10_000, 1, seed=1)), optax.adam(1e-3)
    trainer = vernal.Trainer(optimizer, MSE)
    ours = nn.MLP(10, 1, 64, 2, key=KEY)
    theirs = eqx.nn.MLP(10, 1, 64, 2, key=KEY)
    fit = lambda model: trainer.fit(model, data, epochs=10, batch_size=32, progress=False)
    return {
        "fit": lambda: fit(ours),
        "scan": scan_epochs(ours, optimizer, data, 32, 10),
        "fit, equinox.nn.MLP": lambda: fit(theirs),
    }, 3130


def measure(rivals, repeats):
    """Each rival's seconds, taken in turns, after two runs that are not counted."""
    seconds = {name: [] for name in rivals}
    for repeat in range(-2, repeats):
        for name, run in rivals.items():
            start = time.perf_counter()
            run()
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("workloads", nargs="*", default=["a", "b", "c"])
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    print(f"JAX {jax.__version__}, {jax.devices()[0].device_kind}, {options.repeats} repeats")
    print("| workload | rival | µs an update: median (min to max) | speed of fit: turns, best |")
    print("|---|---|---|---|")
    for name in options.workloads:
        rivals, updates = globals()[f"workload_{name}"]()
        seconds = measure(rivals, options.repeats)
        for rival, times in seconds.items():
            median, least, most = (f(times) / updates * 1e6 for f in (statistics.median, min, max))
            # Turn by turn, as the machine's pace changes from one turn to another; and at best.
            turns = [a / b for a, b in zip(times, seconds["fit"], strict=True)]
            speeds = [statistics.median(turns), least / (min(seconds["fit"]) / updates * 1e6)]
            print(
                f"| {name} | {rival} | {median:.2f} ({least:.2f} to {most:.2f}) | "
                f"{speeds[0]:.2f}, {speeds[1]:.2f} |"
            )


if __name__ == "__main__":
    main()
