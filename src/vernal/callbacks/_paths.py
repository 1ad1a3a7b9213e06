"""Where callbacks write."""

import os

from vernal.errors import ArgumentError, kind


def checked_path(name: str, value) -> str:
    """Return a path as text; raise `ArgumentError` if the value of this argument is not a path."""
    if not isinstance(value, str | os.PathLike):
        raise ArgumentError(f"{name} is {kind(value)}; a path is needed, as a str or a Path.")
    return os.fsdecode(value)


def unwritable(path, error: OSError) -> ArgumentError:
    """Return the error for a path that cannot be written."""
    return ArgumentError(
        f"{path} cannot be written: {error.strerror or error}."
        "\n  Pass a path in a directory that you may write to."
    )
