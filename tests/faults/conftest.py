"""What the tests of faults share: processes to end, and how often."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

RUNS = Path(__file__).with_name("runs.py")


class Script:
    """`runs.py`, started again and again; what it compiles is kept from one start to the next."""

    def __init__(self, cache: Path):
        self.environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        self._hashes: dict[str, str] = {}

    def begin(self, name, directory, *options) -> subprocess.Popen:
        """Start it, and wait until the run begins."""
        command = [sys.executable, str(RUNS), name, str(directory), *map(str, options)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            command, stdout=pipe, stderr=pipe, text=True, env=self.environment
        )
        while (line := process.stdout.readline()).strip() != "begins":
            assert line, process.stderr.read()
        return process

    def end(self, process) -> tuple[int, str | None, str]:
        """Wait for its end. Returns the status, the hash if it came so far, and standard error."""
        out, err = process.communicate()
        hashes = [line.removeprefix("hash ") for line in out.splitlines() if line[:5] == "hash "]
        return process.returncode, hashes[0] if hashes else None, err

    def run(self, name, directory, *options) -> tuple[int, str | None, str]:
        """Start it, and wait for its end."""
        return self.end(self.begin(name, directory, *options))

    def expected(self, name, directory) -> str:
        """The hash of a run that nothing interrupts."""
        if name not in self._hashes:
            status, made, err = self.run(name, directory)
            assert status == 0 and made, err
            self._hashes[name] = made
        return self._hashes[name]


@pytest.fixture(scope="session")
def script(tmp_path_factory):
    """The script of the runs."""
    return Script(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def long(request):
    """Whether to try everything, or a little of it."""
    return request.config.getoption("--long")
