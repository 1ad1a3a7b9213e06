"""What grows with a run, and what does not: time an update, and memory.

`python benchmarks/growth.py` prints three things, each measured in a process of its own. First, of
workload a in full batches and in batches of 20, the second fit's time an update for ever more
updates, and between one size and the next; what the history takes an update; and how far the peak
of the process's memory rose above what it held before. Then how long the longest history takes to
be drawn, told in words, and made a `pandas.DataFrame`, where pandas is installed. Last, when
`predict` and `evaluate` go through data in batches, how far the peak rose, beside the sizes of data
and outputs, and of what the hidden layer's activations would be, all at once.
"""

import argparse
import contextlib
import importlib.util
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

MIB = 2**20
BATCH = 20  # of workload a's examples
# Seconds that repeated runs of one size may take, and how many there are at most.
PATIENCE, REPEATS = 1.0, 7
# The wide model: features, hidden units, outputs; and the batches it is applied to.
WIDE, WIDE_BATCH = (32, 1024, 1), 1000


def forget_peak() -> int:
    """Begin anew to measure the peak of the memory held, where the system can; return it."""
    with contextlib.suppress(OSError):  # elsewhere than on Linux, earlier peaks count, too
        Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> int:
    """The most memory that this process held, in bytes."""
    told = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return told if sys.platform == "darwin" else 1024 * told


def updates(batch_size: int | None, most: int) -> None:
    """Train for 1000 updates, and ten times as many, up to so many; then use the history."""
    import jax
    from rivals.equinox_models import model, optimizer
    from rivals.ours import loss_of
    from workloads import workload

    import vernal

    w = replace(workload("a"), batch_size=batch_size)
    trainer, made = vernal.Trainer(optimizer(w), loss_of(w)), model(w, jax.random.key(0))
    data = w.data()
    length = 1 if batch_size is None else w.examples // batch_size
    fit = lambda n: trainer.fit(made, data, epochs=n // length, batch_size=batch_size)[1]
    how = "full batch" if batch_size is None else f"batches of {batch_size}"
    print(f"(a) {w.examples} examples, {how}, {w.optimizer}\n")
    print("| updates | µs an update | µs between sizes | history, bytes an update | peak, MiB |")
    print("|---|---|---|---|---|", flush=True)
    fit(1000)
    size, before = 1000, (0, 0.0)
    history = None
    while size <= most:
        seconds, history = [], None
        held = forget_peak()
        while not seconds or (sum(seconds) < PATIENCE and len(seconds) < REPEATS):
            history = None
            start = time.perf_counter()
            history = fit(size)
            seconds.append(time.perf_counter() - start)
        assert history is not None
        rose, taken = peak() - held, statistics.median(seconds)
        between = (taken - before[1]) / (size - before[0])
        recorded = [*history.steps.values(), *history.epochs.values()]
        # An array that is in both counts once.
        nbytes = sum({a.ctypes.data: a.nbytes for a in recorded}.values()) / size
        told = f"{taken / size * 1e6:.2f} | {between * 1e6:.2f} | {nbytes:.2f} | {rose / MIB:.1f}"
        print(f"| {size:,} | {told} |", flush=True)
        size, before = 10 * size, (size, taken)
    print()
    if batch_size is None:
        use(history)


def use(history) -> None:
    """Draw a history, make a table of it, tell it in words: how long each takes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.figure().add_subplot().figure.canvas.draw()  # fonts are looked for once
    held, start = forget_peak(), time.perf_counter()
    ax = history.plot()
    ax.figure.canvas.draw()
    seconds, rose = time.perf_counter() - start, (peak() - held) / MIB
    points = sum(len(line.get_xdata()) for line in ax.lines)
    many = f"{len(history.steps['loss']):,} updates"
    print(f"{many} drawn: {seconds:.2f} s, {points:,} points, peak {rose:.1f} MiB")
    start = time.perf_counter()
    told = repr(history)
    print(f"{many} in words: {time.perf_counter() - start:.2f} s: {told}")
    if importlib.util.find_spec("pandas"):
        import pandas as pd

        start = time.perf_counter()
        pd.DataFrame(history.epochs)
        print(f"{many} as a DataFrame: {time.perf_counter() - start:.2f} s")
    print(flush=True)


def once_through(method: str, examples: int) -> None:
    """Predict or evaluate in batches with the wide model; print how far the peak rose."""
    import equinox as eqx
    import jax
    import numpy as np
    import optax

    import vernal
    from vernal import losses

    rng = np.random.default_rng(0)
    features, hidden, outputs = WIDE
    model = eqx.nn.MLP(features, outputs, hidden, 1, key=jax.random.key(0))
    trainer = vernal.Trainer(optax.sgd(1e-3), losses.MeanSquaredError())

    def run(n: int):
        x = rng.standard_normal((n, features), np.float32)
        data = x if method == "predict" else (x, np.zeros((n, outputs), np.float32))
        nbytes = sum(array.nbytes for array in jax.tree.leaves(data))
        held, start = forget_peak(), time.perf_counter()
        made = getattr(trainer, method)(model, data, batch_size=WIDE_BATCH)
        made = jax.block_until_ready(made) if method == "predict" else None
        seconds = time.perf_counter() - start
        return nbytes, 0 if made is None else made.nbytes, peak() - held, seconds

    run(2 * WIDE_BATCH)  # so that what is measured is not code that is loaded
    data, made, rose, seconds = run(examples)
    print(
        f"{method}, {examples:,} examples, {' → '.join(map(str, WIDE))}, batches of {WIDE_BATCH}: "
        f"peak {rose / MIB:,.1f} MiB above data of {data / MIB:,.1f} MiB, with outputs of "
        f"{made / MIB:,.1f} MiB; all activations {4 * hidden * examples / MIB:,.1f} MiB; "
        f"{seconds:.1f} s",
        flush=True,
    )


def main() -> None:
    """Measure, part by part, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--updates", type=int, default=10**7, help="at most, in full batches")
    parser.add_argument("--examples", type=int, default=10**6, help="to predict and evaluate")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    parts = {
        "full": lambda: updates(None, options.updates),
        "batches": lambda: updates(BATCH, options.updates // 10),
        "predict": lambda: once_through("predict", options.examples),
        "evaluate": lambda: once_through("evaluate", options.examples),
    }
    if options.part:
        return parts[options.part]()
    for part in parts:
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--part", part], check=True)


if __name__ == "__main__":
    main()
