"""On an accelerator: `fit` against loops written by hand, and against bare matrix products.

`python benchmarks/accelerator.py [workloads]` prints, for workloads of `compare.py`, the time an
update takes, of second fits that take turns in one process: by `fit`, in the best hand-written
`lax.scan`, and in the loop of Equinox's documentation, one compiled step a batch. The data of the
first two is on the device before.

`--width` is that of an MLP which is trained in batches of as many examples, with Adam and
`compute_dtype=jnp.bfloat16`; its parameters are float32. The ceiling is what square matrix products
of that width run at, one behind the other in one program, in turns with `fit`. The products that an
update cannot do without are counted, and nothing else. 0 leaves it out.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from rivals import by_hand, ours
from workloads import workload

import vernal
from vernal import losses, nn

RIVALS = {"fit": ours.prepare, "scan": by_hand.prepare_scan, "loop": by_hand.prepare_loop}


def seconds(runs: list[Callable], turns: int) -> list[list[float]]:
    """What each of some runs takes: they take turns, after a first one that is not told."""
    taken = [[] for _ in runs]
    for turn in range(turns + 1):
        for run, of_run in zip(runs, taken, strict=True):
            start = time.perf_counter()
            run()
            if turn:
                of_run.append(time.perf_counter() - start)
    return taken


def ratio(one: list[float], other: list[float]) -> float:
    """The median of the ratios of turns."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def small(names: list[str], rivals: list[str], turns: int) -> None:
    """Compare loops: a table in Markdown."""
    print("| workload | " + " | ".join(f"{rival}, µs an update" for rival in rivals), end=" |")
    print("".join(f" {rival} / fit |" for rival in rivals[1:]))
    print("|---" * 2 * len(rivals) + "|")
    for name in names:
        chosen = workload(name)
        taken = seconds([RIVALS[rival](chosen)[0] for rival in rivals], turns)
        micro = [f"{1e6 * statistics.median(times) / chosen.steps:.1f}" for times in taken]
        ratios = [f"{ratio(times, taken[0]):.2f}" for times in taken[1:]]
        print(f"| ({name}) | {' | '.join(micro + ratios)} |", flush=True)


@jax.jit
def products(x, weights, count):
    """Multiply by the same matrices, again and again."""
    return jax.lax.fori_loop(0, count, lambda _, x: x @ weights, x)


def wide(width: int, hidden: int, updates: int, turns: int) -> None:
    """Compare a wide network with matrix products, and print."""
    keys = jax.random.split(jax.random.key(0), 4)
    x, y = (jax.random.normal(key, (width, width)) for key in keys[:2])
    model = nn.MLP(width, width, width, hidden, key=keys[2])
    weights = (jax.random.normal(keys[3], (width, width)) / width**0.5).astype(jnp.bfloat16)
    rows = x.astype(jnp.bfloat16)
    loss, last = losses.MeanSquaredError(), []
    trainer = vernal.Trainer(optax.adam(1e-5), loss, compute_dtype=jnp.bfloat16)
    # Forward, for the weights, and for what came in: of the first layer, nobody asks for that.
    flops = 2 * width**3 * (3 * (hidden + 1) - 1)

    def fitted() -> None:
        state, history = trainer.fit(model, (x, y), epochs=updates, progress=False)
        jax.block_until_ready(jax.tree.leaves(state.opt_state))
        last[:] = [history.steps["loss"][-1]]

    multiplied = lambda: jax.block_until_ready(products(rows, weights, 4 * updates))
    fit, bare = seconds([fitted, multiplied], turns)
    reached = [updates * flops / s for s in fit]
    ceiling = [4 * updates * 2 * width**3 / s for s in bare]
    print(f"MLP of {hidden} hidden layers, {width} wide, batch {width}, {updates} updates:")
    print(f"fit {statistics.median(reached) / 1e12:.4g} TFLOP/s, loss {last[0]:.4g} at last;")
    print(f"matrix products {statistics.median(ceiling) / 1e12:.4g} TFLOP/s,", end=" ")
    print(f"of which fit has {ratio(reached, ceiling):.2f}")


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("workloads", nargs="*", default=list("abcdefg"))
    parser.add_argument("--rivals", nargs="*", default=list(RIVALS), choices=list(RIVALS))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--width", type=int, default=8192)
    options = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}\n")
    small(options.workloads, options.rivals, options.turns)
    if options.width:
        wide(options.width, 3, 50, options.turns)


if __name__ == "__main__":
    main()
