"""Orbax, kept out of the user's log, and given only paths that it can read back."""

import contextlib
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vernal.errors import optional_import

# Orbax takes these in a path for patterns, separators and URLs: it writes, and finds nothing. The
# last ones stand for bytes that are no text.
_MISREAD = re.compile(r"[][*?\\]|:(/|$)|[\ud800-\udfff]")


def orbax() -> Any:
    """Import Orbax.

    Raises:
        MissingExtraError: If Orbax is not installed.
    """
    with _quiet():
        return optional_import("orbax.checkpoint", user="vernal.Checkpoints", extra="checkpoint")


@contextlib.contextmanager
def for_orbax(path: Path) -> Iterator[Path]:
    """Give Orbax a path that it can read back: the path itself, or else a link to it.

    Within the context, Orbax's lines stay out of the user's log, warnings aside.

    Raises:
        OSError: If a link is needed, and cannot be made.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_quiet())
        if _MISREAD.search(path.as_posix()):
            links = stack.enter_context(tempfile.TemporaryDirectory(prefix="vernal-"))
            link = Path(links, "run")
            link.symlink_to(path, target_is_directory=True)
            path = link
        yield path


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Orbax's lines out of the user's log, warnings aside, and the log as it is set up."""

    def is_wanted(record: logging.LogRecord) -> bool:
        is_orbax = f"{os.sep}orbax{os.sep}" in record.pathname
        return record.levelno >= logging.WARNING or not is_orbax

    absl = logging.getLogger("absl")
    absl.addFilter(is_wanted)
    # Where the user has set up no log, absl would do it, and the user could not any more. Python
    # itself shows what is logged there by its last resort.
    resort = None if logging.root.handlers else logging.lastResort
    if resort is not None:
        logging.root.addHandler(resort)
    try:
        yield
    finally:
        absl.removeFilter(is_wanted)
        if resort is not None:
            logging.root.removeHandler(resort)
