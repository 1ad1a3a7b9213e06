"""One model in one file, in the format safetensors, which other programs read."""

import contextlib
import json
import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import PyTree

from vernal import errors
from vernal._checkpointing.format import Damaged, newest_good, read_model
from vernal._checkpointing.named_arrays import (
    check_alike,
    digest,
    named_arrays,
    stored,
    with_arrays,
)

Model = TypeVar("Model", bound=PyTree)

_DIGESTS = "vernal.sha256"  # the name of the digests, by name of array, in a file's metadata


def save(path: str | os.PathLike[str], model: PyTree) -> None:
    """Write a model's arrays to one file, in the format safetensors.

    Each array has the name of its path, such as `layers.0.weight`. Other leaves, such as functions
    and sizes, are not in the file: they come from the model that `load` is given. An existing
    file is replaced once the new one is whole.

    Args:
        path: The file, such as `"model.safetensors"`. Its directory is made if it is missing.
        model: Any PyTree of arrays, such as an `eqx.Module`. Of a key, its numbers are saved.

    Raises:
        ArgumentError: If `path` is not a path, or `model` has no arrays.
        CheckpointError: If the file cannot be written, or two arrays have the same name.
        MissingExtraError: If safetensors is not installed.
    """
    path = errors.checked_path("path", path)
    safetensors = _safetensors()
    arrays = named_arrays(model)
    if not arrays:
        raise errors.ArgumentError(f"model is {errors.kind(model)}, without an array to save.")

    # In the order that the file has: others would be written transposed.
    values = {name: np.asarray(stored(array), order="C") for name, array in arrays.items()}
    digests = {name: digest(value) for name, value in values.items()}
    temporary = path.with_name(f".vernal-{uuid.uuid4().hex}.tmp")  # where a name may be as long
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        safetensors.save_file(values, temporary, {_DIGESTS: json.dumps(digests)})
        os.replace(temporary, path)
    except Exception as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise errors.CheckpointError(
            f"the model could not be written to {path}: {errors.first_line(error)}."
            "\n  Free some space, or pass a path that can be written to."
        ) from error


def load(path: str | os.PathLike[str], like: Model, *, keep: str | Iterable[str] = ()) -> Model:
    """Read a model that `save` wrote, or the model in the newest good checkpoint of a run.

    Args:
        path: A file, or the directory of a `vernal.Checkpoints`.
        like: A model of the same structure, such as a new one. It stays as it is; the returned
            model has other arrays. Of an array, its shape and dtype are enough: what
            `eqx.filter_eval_shape` returns will do.
        keep: Names of parts that stay as they are in `like`, such as `"head"` or `"layers.3"`: for
            example a new head on a trained body.

    Returns:
        The model, with its arrays on the devices of those in `like`.

    Raises:
        ArgumentError: If `path` is not a path, or `keep` names a part without arrays.
        CheckpointError: If the file is missing or damaged, or an array is missing, not needed, or
            has another shape or dtype. The message names it.
        MissingExtraError: If safetensors, or Orbax for a directory, is not installed.
    """
    path = errors.checked_path("path", path)
    arrays = named_arrays(like)
    parts = (keep,) if isinstance(keep, str) else tuple(keep)
    for part in parts:
        if len(_without(arrays, [part])) == len(arrays):
            raise errors.ArgumentError(
                f"keep names {part!r}, and the model has no arrays there; it has "
                f"{', '.join(list(arrays)[:5])}."
            )

    try:
        read = _read_directory(path) if path.is_dir() else _read_file(path)
    except errors.VernalError:
        raise
    except FileNotFoundError as error:
        raise errors.CheckpointError(f"there is no file {path}.") from error
    except Exception as error:
        raise errors.CheckpointError(
            f"{path} is damaged, or vernal.save did not write it: {errors.first_line(error)}."
        ) from error

    values = _without(read, parts)
    fix = 'Pass a model with the structure of the saved one, or keep parts of it: keep="...".'
    check_alike(values, _without(arrays, parts), where=str(path), fix=fix)
    return with_arrays(like, values)


def _read_file(path: Path) -> dict[str, np.ndarray]:
    with _safetensors().safe_open(path, framework="numpy") as file:
        digests = json.loads((file.metadata() or {})[_DIGESTS])
        values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    for name, value in values.items():
        if digest(value) != digests[name]:
            raise Damaged(f"{name} is not what was written")
    return values


def _read_directory(path: Path) -> dict[str, np.ndarray]:
    found = newest_good(path, read_model, rename_damaged=False)
    if found is None:
        raise errors.CheckpointError(f"there is no checkpoint in {path}.")
    _, model = found
    return model


def _without(named: dict[str, Any], parts: Iterable[str]) -> dict[str, Any]:
    """Leave out the arrays of some parts of a model."""
    prefixes = tuple(f"{part}." for part in parts)
    return {name: array for name, array in named.items() if not f"{name}.".startswith(prefixes)}


def _safetensors():
    return errors.optional_import("safetensors.numpy", user="vernal.save", extra="checkpoint")
