"""The benchmark runs, short, with what the tests have; its rivals do the same work."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def compared():
    """What a short run prints and writes: of full batches, and of batches with a smaller last."""
    rivals = ["vernal", "scan", "loop", "sklearn", "klax"]
    command = [
        sys.executable,
        "benchmarks/compare.py",
        "a-",
        "h2-",
        "--turns",
        "2",
        "--patience",
        "60",
    ]
    done = subprocess.run(
        [*command, "--rivals", *rivals], cwd=ROOT, capture_output=True, text=True, check=True
    )
    written = json.loads((ROOT / "build" / "benchmarks" / "compare.json").read_text())
    return done.stdout, written


@pytest.mark.parametrize("workload", ["a-", "h2-"])
def test_rivals_learn_as_much(compared, workload):
    told = compared[1][workload]
    for name in ("vernal", "scan", "loop"):
        assert len(told[name]["seconds"]) == 2
        assert told[name]["whole"] > told[name]["first"] > 0
        assert told[name]["peak"] > 50
        assert told[name]["loss"] == pytest.approx(told["loop"]["loss"], rel=0.1)
    # The same order of examples and the same start: the scan is the loop.
    assert told["scan"]["loss"] == pytest.approx(told["loop"]["loss"], rel=1e-3)


def test_a_rival_that_takes_no_part_is_named(compared):
    printed, told = compared
    assert "missing" in told["a-"]["sklearn"]
    assert "| scikit-learn | – MLPRegressor has hidden dense layers |" in printed
    try:
        import klax  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        assert "| klax | – klax is not installed |" in printed


def test_the_table_has_a_row_for_each_rival(compared):
    rows = [line for line in compared[0].splitlines() if line.startswith("| ")]
    assert len(rows) == 2 * (1 + 5)
