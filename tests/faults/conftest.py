"""What the tests of faults share: processes to end, and how often."""

import os
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from runs import made_by

RUNS = Path(__file__).with_name("runs.py")


class Ended(NamedTuple):
    """How a process ended."""

    status: int
    hash: str | None  # of all that the run made, if it came so far
    at: str | None  # the event that it was ended at, if that was wanted
    error: str  # standard error


class Script:
    """`runs.py`, started again and again; what it compiles is kept from one start to the next."""

    def __init__(self, cache: Path):
        self.environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }

    def begin(self, name, directory, *options, **environment) -> subprocess.Popen:
        """Start it, and wait until the run begins."""
        command = [sys.executable, str(RUNS), name, str(directory), *map(str, options)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            command, stdout=pipe, stderr=pipe, text=True, env=self.environment | environment
        )
        assert process.stdout
        process.stdout.readline()  # it says that it begins
        return process

    def wait_for_training(self, process, directory) -> None:
        """Wait until it writes its first checkpoint, in which `fit` holds signals back."""
        while process.poll() is None and not any(Path(directory).glob("[0-9]*")):
            time.sleep(0.05)

    def end(self, process) -> "Ended":
        """Wait for its end."""
        out, err = process.communicate()
        told = dict(line.split(" ", 1) for line in out.splitlines())
        return Ended(process.returncode, told.get("hash"), told.get("at"), err)

    def run(self, name, directory, *options, **environment) -> "Ended":
        """Start it, and wait for its end."""
        return self.end(self.begin(name, directory, *options, **environment))


@pytest.fixture(scope="session")
def script(tmp_path_factory):
    """The script of the runs."""
    return Script(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def expected():
    """The hash of a run that nothing interrupts, made in this process."""
    return cache(made_by)
