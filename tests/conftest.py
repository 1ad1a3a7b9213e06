"""What all tests share: no silent broadcasts, no windows, no clocks; on a GPU, bits that repeat."""

import contextlib
import io
import os
import re
import signal
from pathlib import Path

import hypothesis
import jax
import matplotlib
import pytest

import vernal

jax.config.update("jax_numpy_rank_promotion", "raise")
# A GPU repeats what it computes if it is told to, and does not round what it multiplies.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_deterministic_ops=true"
if jax.default_backend() != "cpu":
    jax.config.update("jax_default_matmul_precision", "highest")
matplotlib.use("Agg")
# As in a terminal: a shell starts what runs in the background with Ctrl-C ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
# The same examples each time; how long one takes says nothing, for the first of a shape compiles.
hypothesis.settings.register_profile("vernal", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.load_profile("vernal")

_compilations = []


def pytest_addoption(parser):
    """`--long`: the tests of faults try everything, and not a little of it."""
    parser.addoption("--long", action="store_true", help="try every fault (tests/faults)")


def _listen(event: str, duration_secs: float, **_: str | int) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        _compilations.append(event)


jax.monitoring.register_event_duration_secs_listener(_listen)


@pytest.fixture
def tried(record_property):
    """Tells how often a fault was tried, for the table at the end of the tests of faults."""
    return lambda what, times=1: record_property("tried", (what, times))


def pytest_terminal_summary(terminalreporter):
    """A table of the faults that were tried: those whose tests passed lost nothing."""
    counts = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            for name, value in getattr(report, "user_properties", []):
                if name == "tried" and report.when == "call":
                    times, lost = counts.get(value[0], (0, "nothing"))
                    lost = lost if outcome == "passed" else "see above"
                    counts[value[0]] = times + value[1], lost
    if counts:
        terminalreporter.write_sep("=", "faults")
        terminalreporter.write_line("| What was tried | How often | What was lost |\n|---|---|---|")
        for what, (times, lost) in counts.items():
            terminalreporter.write_line(f"| {what} | {times:,} | {lost} |")


@pytest.fixture
def compiled():
    """Every compilation in this process from here on."""
    _compilations.clear()
    return _compilations


class Page:
    """A page of Markdown whose examples are run."""

    def __init__(self, path: Path):
        self.name = path.name
        self.text = path.read_text(encoding="utf-8")
        # (language, content) of each fenced block, in order.
        self.blocks = re.findall(r"^```(\w+)\n(.*?)^```", self.text, re.DOTALL | re.MULTILINE)

    def run(self) -> list[str]:
        """Each block of Python goes on where the one before ended; a block of text is its outcome.

        Returns what kind of outcome each block of text shows: "output", or an error's class.
        """
        names, compared = {}, []
        for (language, content), (following, shown) in zip(
            self.blocks, [*self.blocks[1:], ("", "")], strict=True
        ):
            if language != "python":
                continue
            printed, outcome = io.StringIO(), "output"
            with contextlib.redirect_stdout(printed):
                try:
                    exec(compile(content, self.name, "exec"), names)
                except vernal.VernalError as error:
                    outcome = type(error).__name__
                    print(f"{outcome}: {error}")
            assert printed.getvalue().strip() == (shown.strip() if following == "text" else "")
            compared += [outcome] if following == "text" else []
        return compared


@pytest.fixture(scope="session")
def page():
    """Reads a page, and runs it."""
    return Page


class Terminal:
    """A standard error that says it is a terminal, and keeps what is written."""

    encoding = "utf-8"

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text
        return len(text)

    def flush(self):
        pass

    def isatty(self):
        return True


@pytest.fixture
def terminal():
    """A terminal to put in the place of standard error."""
    return Terminal()
