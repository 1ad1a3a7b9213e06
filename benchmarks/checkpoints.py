"""What checkpoints cost: workload (c) of the comparison, a hundred epochs, with one every second.

`python benchmarks/checkpoints.py` prints how fast a run with checkpoints is, relative to the same
run without, and what one save takes of the time of the thread that trains.
"""

import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import jax
from rivals.equinox_models import model, optimizer
from rivals.ours import loss_of
from workloads import workload

import vernal

TURNS, EPOCHS = 7, 600


def main() -> None:
    """Take turns, and print."""
    chosen = workload("c")
    trainer = vernal.Trainer(optimizer(chosen), loss_of(chosen))
    data, made = chosen.data(), model(chosen, jax.random.key(0))
    times = {"without": [], "with": []}
    trainer.fit(made, data, epochs=10, batch_size=chosen.batch_size)
    for _ in range(TURNS):
        for name, taken in times.items():
            directory = Path(tempfile.mkdtemp())
            checkpoints = vernal.Checkpoints(directory / "run", every_seconds=1)
            started = time.perf_counter()
            trainer.fit(
                *(made, data),
                epochs=EPOCHS,
                batch_size=chosen.batch_size,
                checkpoints=checkpoints if name == "with" else None,
            )
            taken.append(time.perf_counter() - started)
            shutil.rmtree(directory)
    ratios = [a / b for a, b in zip(times["without"], times["with"], strict=True)]
    print(
        f"{EPOCHS} epochs of (c), {statistics.median(times['without']):.2f} s without checkpoints"
    )
    print(
        f"with one every second: {statistics.median(ratios):.3f} times as fast, by the median of "
        f"turns; {min(times['without']) / min(times['with']):.3f} by the best of them"
    )


if __name__ == "__main__":
    main()
