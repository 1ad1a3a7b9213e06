"""How fast `fit` trains from files of several kinds, in order and shuffled.

`python benchmarks/files.py` writes 60,000 examples of 784 numbers to files (needs h5py), and prints
a table of the seconds that an epoch of a small model takes: the best of three, of the compressed
files the only one. The files are in the system's cache.
"""

import tempfile
from pathlib import Path

import equinox as eqx
import h5py
import jax
import numpy as np
import optax

import vernal
from vernal import losses

N, FEATURES = 60_000, 784
GZIP = {"compression": "gzip", "compression_opts": 4}
HDF5 = {
    "HDF5, contiguous": {},
    "HDF5, 1000 examples a chunk": {"chunks": (1000, FEATURES)},
    "HDF5, 1 example a chunk": {"chunks": (1, FEATURES)},
    "HDF5, 1000 examples a chunk, gzip": {"chunks": (1000, FEATURES), **GZIP},
    "HDF5, 1 example a chunk, gzip": {"chunks": (1, FEATURES), **GZIP},
}


def seconds(x, y, *, shuffle: bool, repeats: int) -> float:
    """An epoch's, without the look at the values that comes before the first."""
    trainer = vernal.Trainer(optax.sgd(1e-3), losses.CrossEntropy())
    model = eqx.nn.MLP(FEATURES, 10, 32, 1, key=jax.random.key(0))
    epochs = trainer.epochs(model, (x, y), batch_size=128, shuffle=shuffle)
    next(epochs)  # compiles
    return min(next(epochs).seconds for _ in range(repeats))


def main() -> None:
    """Write, train, and print."""
    rng = np.random.default_rng(0)
    x = (rng.integers(0, 256, size=(N, FEATURES)) / 255).astype(np.float32)
    y = rng.integers(0, 10, N)
    print("| File | `shuffle=False` | `shuffle=True` |\n|---|---:|---:|")
    with tempfile.TemporaryDirectory() as folder, h5py.File(Path(folder) / "x.h5", "w") as file:
        np.save(Path(folder) / "x.npy", x)
        mapped = np.load(Path(folder) / "x.npy", mmap_mode="r")
        made = {name: file.create_dataset(name, data=x, **how) for name, how in HDF5.items()}
        for name, data in {"in memory": x, "`.npy`, mapped": mapped, **made}.items():
            repeats = 1 if "gzip" in name else 3
            in_order, shuffled = (
                seconds(data, y, shuffle=shuffle, repeats=repeats) for shuffle in (False, True)
            )
            print(f"| {name} | {in_order:.2g} | {shuffled:.2g} |", flush=True)


if __name__ == "__main__":
    main()
