"""What `import vernal` costs beside importing jax, equinox and optax, in alternation.

`python benchmarks/import_time.py [repeats]` starts fresh processes in turns, and prints medians.
"""

import statistics
import subprocess
import sys

BASE = "jax, equinox, optax"
TIMED = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"


def seconds(modules):
    code = TIMED.format(modules)
    return float(
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    )


def main():
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    without, added = [], []
    for _ in range(repeats):
        without.append(seconds(BASE))
        added.append(seconds(f"{BASE}, vernal") - without[-1])
    print(f"import {BASE}: {statistics.median(without):.3f} s")
    print(f"import vernal besides: {statistics.median(added):.3f} s (median of {repeats})")


if __name__ == "__main__":
    main()
