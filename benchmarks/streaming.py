"""Data in a file, of NumPy's or HDF5: how fast `fit` trains from it, and what it holds.

`python benchmarks/streaming.py` prints three things. First, of the workloads d and e, the speed
from a file relative to that from memory, in alternation: the median of the ratios of turns, and the
ratio of the best times. Then, of a loader that takes as long to give its batches as they take to
train on, how long a run takes beside the longer of the two, and beside one after the other. Last,
of a mapped file that is several times as large as what the process may allocate (`RLIMIT_DATA`),
what a run through it held. The system keeps parts of a file in memory while nobody else needs the
room; that is not counted.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

FILES = Path(__file__).parent.parent / "build" / "benchmarks"
FEATURES, ROWS_A_PART = 784, 2**15


def in_files(arrays: tuple) -> dict[str, tuple]:
    """The arrays x and y in files, by what is needed to read them."""
    for part, array in zip("xy", arrays, strict=True):
        np.save(FILES / f"{part}.npy", array)
    made = {"numpy": tuple(np.load(FILES / f"{part}.npy", mmap_mode="r") for part in "xy")}
    try:
        import h5py
    except ImportError:
        print("h5py is missing: no figures of HDF5")
        return made
    with h5py.File(FILES / "data.h5", "w") as file:
        for part, array in zip("xy", arrays, strict=True):
            file[part] = array
    file = h5py.File(FILES / "data.h5")
    return {**made, "h5py": (file["x"], file["y"])}


def speed(name: str, turns: int) -> None:
    """Compare files with memory."""
    import jax
    from rivals.equinox_models import model, optimizer
    from rivals.ours import loss_of
    from workloads import workload

    import vernal

    w = workload(name)
    arrays = w.data()
    sources = {"memory": arrays, **in_files(arrays)}
    trainer, made = vernal.Trainer(optimizer(w), loss_of(w)), model(w, jax.random.key(0))
    seconds = {source: [] for source in sources}
    for turn in range(-1, turns):
        for source, data in sources.items():
            start = time.perf_counter()
            trainer.fit(made, data, epochs=w.epochs, batch_size=w.batch_size)
            if turn >= 0:
                seconds[source].append(time.perf_counter() - start)
    in_memory = seconds.pop("memory")
    for source, of_file in seconds.items():
        ratios = [a / b for a, b in zip(in_memory, of_file, strict=True)]
        best = min(in_memory) / min(of_file)
        told = f"{statistics.median(ratios):.2f}, {best:.2f}"
        print(f"({name}) speed from a file of {source} relative to memory: {told}", flush=True)


def overlap(name: str, turns: int) -> None:
    """Train from a loader that waits for each batch."""
    import jax
    from rivals.equinox_models import model, optimizer
    from rivals.ours import loss_of
    from workloads import workload

    import vernal

    w = workload(name)
    trainer, made = vernal.Trainer(optimizer(w), loss_of(w)), model(w, jax.random.key(0))
    batches = list(vernal.batches(w.data(), w.batch_size))

    def loader(pause: float):
        for batch in batches:
            time.sleep(pause)
            yield batch

    def run(pause: float) -> float:
        start = time.perf_counter()
        trainer.fit(made, lambda: loader(pause), epochs=1)
        return time.perf_counter() - start

    run(0.0)
    told = []
    for _ in range(turns):
        trains = run(0.0)
        pause = trains / len(batches)
        start = time.perf_counter()
        for _ in loader(pause):
            pass
        reads = time.perf_counter() - start
        both = run(pause)
        told.append((both / max(trains, reads), both / (trains + reads)))
    longer, one_after_the_other = map(statistics.median, zip(*told, strict=True))
    print(
        f"({name}) a loader as slow as training: {longer:.2f} times as long as the slower of the "
        f"two, {one_after_the_other:.2f} times as long as one after the other",
        flush=True,
    )


def train_from(path: str, limit: int) -> None:
    """Train on a file, in a process that may allocate so many bytes; print what it held."""
    import resource

    import equinox as eqx
    import jax
    import optax

    import vernal
    from vernal import losses

    x = np.load(path, mmap_mode="r")
    y = np.zeros((len(x), 1), np.float32)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    model = eqx.nn.MLP(FEATURES, 1, 32, 1, key=jax.random.key(0))
    trainer = vernal.Trainer(optax.sgd(1e-3), losses.MeanSquaredError())
    _, history = trainer.fit(model, (x, y), epochs=1, batch_size=1024)
    status = Path("/proc/self/status").read_text()
    held = int(status.partition("RssAnon:")[2].split()[0]) / 2**10
    gigabytes = x.nbytes / 2**30
    print(
        f"{gigabytes:.1f} GiB in {len(history.steps['loss']):,} updates, "
        f"{gigabytes / history.seconds:.2f} GiB/s; {held:,.0f} MiB held at the end, "
        f"{limit / 2**20:,.0f} MiB allowed"
    )


def memory(gigabytes: float, limit: int) -> None:
    """Write a file, part by part, and train on it in a process of its own."""
    parts = max(1, round(gigabytes * 2**30 / (ROWS_A_PART * FEATURES * 4)))
    path = FILES / "large.npy"
    shape = (parts * ROWS_A_PART, FEATURES)
    file = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    part = np.random.default_rng(0).normal(size=(ROWS_A_PART, FEATURES)).astype(np.float32)
    for i in range(parts):
        file[i * ROWS_A_PART : (i + 1) * ROWS_A_PART] = part
    del file
    try:
        subprocess.run([sys.executable, __file__, "--train-from", path, str(limit)], check=True)
    finally:
        path.unlink()


def main() -> None:
    """Compare, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--gigabytes", type=float, default=4.0, help="of the large file")
    parser.add_argument("--limit", type=int, default=1024, help="MiB that a process may allocate")
    parser.add_argument("--train-from", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train_from:
        return train_from(options.train_from[0], int(options.train_from[1]))
    FILES.mkdir(parents=True, exist_ok=True)
    for name in "de":
        speed(name, options.turns)
    overlap("d", options.turns)
    memory(options.gigabytes, options.limit * 2**20)


if __name__ == "__main__":
    main()
