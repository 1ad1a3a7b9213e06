"""A directory that outlasts a power cut, and that one process alone writes to."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from vernal.errors import CheckpointError, shown

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_held: set[int] = set()  # the file descriptors of locked directories


def sync(path: Path) -> None:
    """Wait until the disk holds a file, or the names in a directory."""
    with contextlib.suppress(PermissionError):  # Windows opens no directories
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sync_all(directory: Path) -> None:
    """Wait until the disk holds a directory, and all that is in it."""
    for folder, _, files in os.walk(directory, topdown=False):
        for name in files:
            sync(Path(folder, name))
        sync(Path(folder))


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep other processes out of a directory, as long as this one lives.

    Raises:
        CheckpointError: If another one is in there.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(directory, os.O_RDONLY)
    _held.add(handle)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            used = f"{_owner(handle)} trains with the checkpoints in {shown(directory)}"
            hint = "Wait for its end, end it, or pass another directory."
            raise CheckpointError(f"{used}, which takes one run at a time.\n  {hint}") from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        _held.discard(handle)
        os.close(handle)


def _owner(handle: int) -> str:
    """Name the process that has locked a directory, as far as the system tells."""
    inode = os.fstat(handle).st_ino
    with contextlib.suppress(OSError):
        found = re.search(rf"FLOCK .* (\d+) \S+:{inode} ", Path("/proc/locks").read_text())
        if found:
            number = int(found[1])
            return "this process" if number == os.getpid() else f"process {number}"
    return "another process"


def _let_go() -> None:
    """In a forked worker: it may outlive the process whose locks these are."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
