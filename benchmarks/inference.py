"""`evaluate` and `predict` against a `jax.vmap` written by hand and compiled: speed, by turns.

`python benchmarks/inference.py` prints for each how many times as fast as the loop by hand it is:
the median of the ratios of turns, and the ratio of the best times. All measure one network on a
million examples in batches of the same size; `--examples 10000` makes it short. By hand, a batch
comes from the arrays, and one compiled function measures it, or predicts.
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
from vernal import losses

FEATURES, WIDTH, BATCH = 32, 128, 10_000


def prepared(examples: int) -> dict[str, tuple]:
    """Return by name what Vernal runs, and what is written by hand."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(examples, FEATURES)).astype(np.float32)
    y = x.sum(axis=1, keepdims=True)
    model = eqx.nn.MLP(FEATURES, 1, WIDTH, 2, key=jax.random.key(0))
    trainer = vernal.Trainer(optax.sgd(0.1), losses.MeanSquaredError())

    @eqx.filter_jit
    def predicted(model, x):
        return jax.vmap(model)(x)

    @eqx.filter_jit
    def squared_errors(model, x, y):
        return jnp.sum((jax.vmap(model)(x) - y) ** 2)

    def parts():
        return (slice(i, i + BATCH) for i in range(0, examples, BATCH))

    def predict_by_hand():
        made = [predicted(model, x[part]) for part in parts()]
        return jnp.concatenate(made)

    def evaluate_by_hand():
        errors = [squared_errors(model, x[part], y[part]) for part in parts()]
        return sum(float(error) for error in errors) / examples

    def predict():
        return trainer.predict(model, x, batch_size=BATCH)

    def evaluate():
        return trainer.evaluate(model, (x, y), batch_size=BATCH)["loss"]

    return {"evaluate": (evaluate, evaluate_by_hand), "predict": (predict, predict_by_hand)}


def seconds(function) -> float:
    """Return how long a call takes."""
    began = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - began


def main() -> None:
    """Compare, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--examples", type=int, default=1_000_000)
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    print("| | Vernal, s | by hand, s | speed: turns, best |")
    print("|---|---|---|---|")
    for name, (ours, by_hand) in prepared(options.examples).items():
        np.testing.assert_allclose(ours(), by_hand(), rtol=1e-4, atol=1e-4)
        times = [(seconds(ours), seconds(by_hand)) for _ in range(options.turns)]
        best_ours, best_by_hand = map(min, zip(*times, strict=True))
        turns = statistics.median(b / a for a, b in times)
        speed = f"{turns:.2f}, {best_by_hand / best_ours:.2f}"
        print(f"| `{name}` | {best_ours:.3f} | {best_by_hand:.3f} | {speed} |")


if __name__ == "__main__":
    main()
