"""A large state is in memory as often as it needs to be, and no more."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "large_state.py"
WIDTH = 5000  # 100 million parameters: so that what is imported is small beside them


def sizes_of_the_model(way):
    """Return the peak of a process's memory, in sizes of the model that it trains."""
    command = [sys.executable, SCRIPT, "--width", str(WIDTH), "--way", way]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[0]) / (4 * 4 * WIDTH**2)


@pytest.mark.long
def test_what_is_kept_of_a_large_state_is_counted():
    by_hand = sizes_of_the_model("by hand")  # of the model, the state of Adam, and gradients
    alone = sizes_of_the_model("fit")
    assert alone < by_hand + 1.3
    assert sizes_of_the_model("fit, checkpoints") < alone + 4.3
    assert sizes_of_the_model("fit, best state") < alone + 3.3
    assert sizes_of_the_model("fit, both") < alone + 7.3
