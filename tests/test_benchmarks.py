"""The benchmark runs, short, with what the tests have; its rivals do the same work."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_a_short_run_prints_a_table_and_writes_what_it_measured():
    command = [sys.executable, "benchmarks/compare.py", "h2-", "--turns", "1", "--patience", "60"]
    done = subprocess.run(
        [*command, "--rivals", "vernal", "scan"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "| `Trainer.fit`, `equinox.nn` |" in done.stdout
    told = json.loads((ROOT / "build" / "benchmarks" / "compare.json").read_text())["h2-"]
    assert told["vernal"]["loss"] == pytest.approx(told["scan"]["loss"], rel=0.1)
    for name in ("vernal", "scan"):
        assert told[name]["whole"] > told[name]["first"] > 0


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


@pytest.mark.long
@pytest.mark.parametrize("workload", ["a-", "h2-"])
def test_rivals_learn_as_much(compared, workload):
    told = compared[1][workload]
    for name in ("vernal", "scan", "loop"):
        # Twice in a process; and again, if another is near. What is far has one turn.
        seconds = told[name]["seconds"]
        assert len(seconds) in (2, 4)
        assert seconds[0]
        assert name != "vernal" or all(seconds[:2])
        assert len({s is None for s in seconds[2:]}) <= 1
        assert told[name]["whole"] > told[name]["first"] > 0
        assert told[name]["peak"] > 50
        assert told[name]["loss"] == pytest.approx(told["loop"]["loss"], rel=0.1)
    # The same order of examples and the same start: the scan is the loop.
    assert told["scan"]["loss"] == pytest.approx(told["loop"]["loss"], rel=1e-3)


@pytest.mark.long
def test_a_rival_that_takes_no_part_is_named(compared):
    printed, told = compared
    assert "missing" in told["a-"]["sklearn"]
    assert "| scikit-learn | – MLPRegressor has hidden dense layers |" in printed
    try:
        import klax  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        assert "| klax | – klax is not installed |" in printed


@pytest.mark.long
def test_the_table_has_a_row_for_each_rival(compared):
    rows = [line for line in compared[0].splitlines() if line.startswith("| ")]
    assert len(rows) == 2 * (1 + 5) + (1 + 5)


@pytest.mark.long
def test_the_last_table_is_of_all_speeds(compared):
    printed, told = compared
    last = printed.rpartition("How many times")[2].splitlines()
    assert "| rival | (a-) | (h2-) |" in last
    assert "| `Trainer.fit`, `equinox.nn` | 1.00 | 1.00 |" in last
    [row] = [line for line in last if "scikit-learn" in line]
    _, _, without_hidden, speed, _ = row.split("|")
    ours, theirs = (told["h2-"][name]["seconds"][:2] for name in ("vernal", "sklearn"))
    ratios = [b / a for a, b in zip(ours, theirs, strict=True) if b]
    assert without_hidden.strip() == "–"
    assert float(speed) == pytest.approx(sum(ratios) / len(ratios), abs=0.01)


@pytest.mark.long
def test_one_that_is_far_behind_trains_for_a_tenth(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    compare = importlib.import_module("compare")
    monkeypatch.setattr(compare, "BUILD", tmp_path)
    importlib.import_module("workloads").workload("h2").keep(tmp_path)
    rival = compare.Rival("loop", "h2")
    try:
        rival.ready()
        rival.turn()
        rival.shorten()
        rival.turn()
        whole, tenth = rival.facts["seconds"]
        assert rival.facts["shortened"] == 10
        assert whole > 0 and tenth > 0
        rival.ask()
        rival.hear()
        assert rival.facts["loss"] < 0.05  # of the whole run, the last of them
    finally:
        rival.end()


@pytest.mark.long
@pytest.mark.parametrize("rivals", [["scan"], ["vernal", "own", "scan", "loop", "sklearn"]])
def test_peers_that_come_too_late_are_named_and_a_few_never_do(rivals):
    command = [sys.executable, "benchmarks/compare.py", "h2-", "--minutes", "0", "--turns", "1"]
    done = subprocess.run(
        [*command, "--rivals", *rivals], cwd=ROOT, capture_output=True, text=True, check=True
    )
    late = [line for line in done.stdout.splitlines() if "– no time was left for it |" in line]
    assert [line.split("|")[1].strip() for line in late] == ["scikit-learn"][: len(rivals) > 1]


@pytest.mark.long
def test_growth_tells_of_time_and_memory():
    command = [sys.executable, "benchmarks/growth.py", "--updates", "10000", "--examples", "20000"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    full, batches = done.stdout.split("(a) ")[1:]
    for part, sizes, nbytes in ((full, ["1,000", "10,000"], 12.0), (batches, ["1,000"], 4.8)):
        rows = [line.strip("| ").split(" | ") for line in part.splitlines() if line[:3] == "| 1"]
        assert [row[0] for row in rows] == sizes
        for _, an_update, between, history, peak in rows:
            assert float(an_update) > 0 and float(between) > 0
            # One value an update in single precision; of longer epochs, one in double.
            assert float(history) == pytest.approx(nbytes, abs=0.01)
            assert float(peak) < 100
    drawn = re.search(r"10,000 updates drawn: \S+ s, ([\d,]+) points", full)
    assert drawn and 100 < int(drawn[1].replace(",", "")) <= 4000
    for method, outputs in (("predict", 4), ("evaluate", 0)):
        told = re.search(rf"{method}, 20,000 examples, .*: peak (.*)", batches)
        assert told
        peak, data, made, activations = (float(x) for x in re.findall(r"([\d.,]+) MiB", told[1]))
        assert data == pytest.approx(20_000 * (132 - outputs) / 2**20, abs=0.1)
        assert made == pytest.approx(20_000 * outputs / 2**20, abs=0.1)
        assert activations == pytest.approx(20_000 * 4096 / 2**20, abs=0.1)
        assert peak < activations / 2


@pytest.mark.long
def test_what_is_switched_on_has_a_row_each():
    command = [sys.executable, "benchmarks/switched_on.py", "c", "--turns", "1", "--epochs", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert len(re.findall(r"^\| .+ \| [0-9.]+, [0-9.]+ \|$", done.stdout, re.MULTILINE)) == 9


@pytest.mark.long
def test_a_large_state_has_a_row_for_each_way():
    command = [sys.executable, "benchmarks/large_state.py", "--width", "256"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    rows = re.findall(r"^\| .+ \| ([0-9.]+) \| [0-9.]+ \| [0-9.]+ \|$", done.stdout, re.MULTILINE)
    nothing, *others = map(float, rows)
    assert len(others) == 5 and 0 < nothing <= min(others)


@pytest.mark.long
def test_a_start_of_few_arrays_is_timed():
    command = [sys.executable, "benchmarks/leaves.py", "--kind", "arrays", "--number", "3"]
    for way in ("by hand", "fit"):
        done = subprocess.run([*command, "--way", way], cwd=ROOT, capture_output=True, check=True)
        assert float(done.stdout) > 0


@pytest.mark.long
@pytest.mark.parametrize(
    "command, rows",
    [
        (("inference.py", "--examples", "20000"), 2),
        (("step.py", "a", "c", "--turns", "1"), 4),
        (("sweep.py", "a", "c", "--members", "2", "--epochs", "2", "--turns", "1"), 2),
    ],
    ids=["inference", "step", "sweep"],
)
def test_a_comparison_with_a_program_by_hand_has_a_row_for_each(command, rows):
    script, *options = command
    done = subprocess.run(
        [sys.executable, f"benchmarks/{script}", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(re.findall(r"\| [0-9.]+, [0-9.]+ \|$", done.stdout, re.MULTILINE)) == rows
