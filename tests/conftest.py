"""What all tests share: no silent broadcasts, no windows, no clocks; on a GPU, bits that repeat."""

import os
import shutil
import signal
from pathlib import Path

import hypothesis
import jax
import matplotlib
import pytest

pytest.register_assert_rewrite("helpers")
jax.config.update("jax_numpy_rank_promotion", "raise")
# A GPU repeats what it computes if it is told to, and does not round what it multiplies.
# Once: a process of another process would add it again, and what is compiled has it in its key.
if "--xla_gpu_deterministic_ops" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_deterministic_ops=true"
if jax.default_backend() != "cpu":
    jax.config.update("jax_default_matmul_precision", "highest")
matplotlib.use("Agg")
# As in a terminal: a shell starts what runs in the background with Ctrl-C ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
# The same examples each time; how long one takes says nothing, for the first of a shape compiles.
for profile, examples in (("short", 25), ("long", 100)):
    hypothesis.settings.register_profile(
        profile, deadline=None, derandomize=True, max_examples=examples
    )

_compilations = []


def pytest_addoption(parser):
    """Add an option for each kind of test that takes long, or needs more than the others."""
    parser.addoption("--long", action="store_true", help="run long sweeps, too")
    parser.addoption("--browser", action="store_true", help="test pages in a browser, too")
    parser.addoption("--peers", action="store_true", help="run other frameworks' programs, too")


def pytest_configure(config):
    """Try more examples with `--long`; and keep what is compiled."""
    hypothesis.settings.load_profile("long" if config.getoption("--long") else "short")
    # `-p no:cacheprovider` leaves no place for it.
    if hasattr(config, "cache"):
        directory = config.cache.mkdir("compiled")
        if not hasattr(config, "workerinput"):
            _empty_if_large(directory)
        _keep_compiled(directory)


def _keep_compiled(directory: Path) -> None:
    """Let JAX keep what it compiles, for the other processes, and for the next time.

    Most of the tests' time is XLA's. Its programs are the same bits again, and the key of each is
    all that goes into it: the program, the options, the versions. `--cache-clear` begins anew.
    """
    options = {
        "jax_compilation_cache_dir": str(directory),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in options.items():
        os.environ[name.upper()] = str(value)  # for the processes that tests start
        jax.config.update(name, value)


def _empty_if_large(directory: Path, most: int = 2**29) -> None:
    """Begin anew when there is much of what older versions of the code have left."""
    if sum(path.stat().st_size for path in directory.iterdir()) > most:
        shutil.rmtree(directory)
        directory.mkdir()


def pytest_collection_modifyitems(config, items):
    """Skip the tests marked `long`, `browser` or `peers`, without their options."""
    kinds = {"long": "a long sweep", "browser": "a page in a browser", "peers": "other frameworks"}
    for marker, what in kinds.items():
        if config.getoption(f"--{marker}"):
            continue
        skip = pytest.mark.skip(reason=f"{what}: pass --{marker}")
        for item in items:
            if marker in item.keywords:
                item.add_marker(skip)


@pytest.fixture(scope="session")
def long(request):
    """Whether to try everything, or a little of it."""
    return request.config.getoption("--long")


@pytest.fixture(scope="module")
def compiled_fast():
    """Few optimizations, for a file that asks what is told, and not which bits come of it."""
    from helpers import few_optimizations  # only now: it makes a key, for which JAX starts

    with few_optimizations():
        yield
    jax.clear_caches()  # none of its programs serves the next file


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
