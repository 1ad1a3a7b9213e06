"""What JAX's persistent compilation cache saves a second process.

`python benchmarks/cache.py` trains workload c in a process that has nothing compiled, and then in a
second one, which finds what the first kept; in turn, with directories of their own. It prints the
medians of the first fit's seconds, of the whole process's, and the ratios.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
TURNS = 5


def train() -> None:
    """Train once, and print how long it took."""
    sys.path.insert(0, str(HERE))
    from rivals import ours
    from workloads import workload

    run, _ = ours.prepare(workload("c"))
    start = time.perf_counter()
    run()
    print(time.perf_counter() - start)


def timed(directory: str) -> tuple[float, float]:
    """The first fit's seconds, and the process's."""
    start = time.perf_counter()
    told = {
        "JAX_COMPILATION_CACHE_DIR": directory,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, __file__, "train"]
    done = subprocess.run(
        command, env=os.environ | told, capture_output=True, text=True, check=True
    )
    return float(done.stdout), time.perf_counter() - start


def main() -> None:
    """Compare, and print."""
    first, second = [], []
    for _ in range(TURNS):
        with tempfile.TemporaryDirectory() as directory:
            first.append(timed(directory))
            second.append(timed(directory))
    for name, i in (("first fit", 0), ("whole process", 1)):
        cold, warm = (statistics.median(times[i] for times in turns) for turns in (first, second))
        print(f"{name}: {cold:.2f} s, with the cache {warm:.2f} s: {cold / warm:.2f} times as fast")


if __name__ == "__main__":
    train() if len(sys.argv) > 1 else main()
