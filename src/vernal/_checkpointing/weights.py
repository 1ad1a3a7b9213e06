"""One model by itself: in a file that others can read, safetensors, and back."""

import contextlib
import json
import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import PyTree

from vernal._checkpointing import format as _stored
from vernal._checkpointing.leaves import (
    as_like,
    check_alike,
    described,
    digest,
    named_arrays,
    numbers_of,
    with_arrays,
)
from vernal.errors import ArgumentError, CheckpointError, MissingExtraError, first_line, kind

Model = TypeVar("Model", bound=PyTree)

_DIGESTS = "vernal.sha256"  # the name of the digests, by name of array, in a file's metadata
_MODEL = "model."  # begins the names of a model's arrays in a checkpoint


def save(path: str | os.PathLike[str], model: PyTree) -> None:
    """Write a model's arrays to one file, in the format safetensors.

    Each has the name of its path, such as `layers.0.weight`. What is no array, such as a function
    or a size, is not in the file: it comes from the model that `load` is given. A file that is
    there already is replaced once the new one is whole.

    **Arguments:**

    - `path`: of the file, such as `"model.safetensors"`; its directory is made if it is missing.
    - `model`: any PyTree of arrays, such as an `eqx.Module`; of a key, its numbers are saved.

    **Raises:** `CheckpointError` if the file cannot be written; `MissingExtraError` without
    safetensors.
    """
    path, (_, save_file) = _checked(path), _safetensors()
    numbers = {
        name: np.asarray(numbers_of(array), order="C")
        for name, array in named_arrays(model).items()
    }
    if not numbers:
        raise ArgumentError(f"model is {kind(model)}, without an array to save.")
    digests = {name: digest(array) for name, array in numbers.items()}
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(numbers, temporary, {_DIGESTS: json.dumps(digests)})
        os.replace(temporary, path)
    except Exception as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise CheckpointError(
            f"the model could not be written to {path}: {first_line(error)}."
            "\n  Make room, or pass a path that can be written to."
        ) from error


def load(path: str | os.PathLike[str], like: Model, *, keep: str | Iterable[str] = ()) -> Model:
    """Read a model that `save` wrote, or that of the newest good checkpoint of a run.

    **Arguments:**

    - `path`: of a file, or of the directory of a `vernal.Checkpoints`.
    - `like`: a model of the same structure, such as a new one: its arrays are replaced, the rest of
      it is kept. Of an array that `jax.eval_shape` stands for, only shape and dtype are needed.
    - `keep`: names of parts that stay as they are in `like`, such as `"head"` or `"layers.3"`:
      for another head, say, on what was trained before.

    **Returns:** the model.

    **Raises:** `CheckpointError` if the file is missing or damaged, or if an array has another
    shape or dtype there, or is not there, or is not here; it is named. `MissingExtraError` without
    safetensors, or Orbax.
    """
    path = _checked(path)
    here = named_arrays(like)
    kept = [keep] if isinstance(keep, str) else list(keep)
    is_kept = lambda name: any(name == part or name.startswith(f"{part}.") for part in kept)
    for part in kept:
        if not any(name == part or name.startswith(f"{part}.") for name in here):
            raise ArgumentError(
                f"keep names {part!r}, and the model has no arrays there; it has "
                f"{', '.join(list(here)[:5])}."
            )
    wanted = {name: array for name, array in here.items() if not is_kept(name)}
    read = _of_run if path.is_dir() else _of_file
    mend = 'Pass a model as the one that was saved, or name what is to stay: keep="...".'
    try:
        numbers = read(path, is_kept)
        check_alike(described(numbers), described(wanted), str(path), mend)
    except (CheckpointError, MissingExtraError):
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no file {path}.") from error
    except Exception as error:
        raise CheckpointError(
            f"{path} is no model that vernal.save wrote, or is damaged: {first_line(error)}."
        ) from error
    return with_arrays(like, {name: as_like(numbers[name], wanted[name]) for name in wanted})


def _of_file(path: Path, is_kept: Callable[[str], bool]) -> dict[str, np.ndarray]:
    """The arrays of a file, by name, but for those that are not wanted."""
    safe_open, _ = _safetensors()
    with safe_open(path, framework="numpy") as file:
        digests = json.loads((file.metadata() or {})[_DIGESTS])
        names = list(file.keys())
        numbers = {name: file.get_tensor(name) for name in names if not is_kept(name)}
    for name, array in numbers.items():
        if digest(array) != digests[name]:
            raise _stored.Damaged(f"{name} is not what was written")
    return numbers


def _of_run(path: Path, is_kept: Callable[[str], bool]) -> dict[str, np.ndarray]:
    """The arrays of the model in the newest good checkpoint of a directory."""
    failure: Exception = CheckpointError(f"there is no checkpoint in {path}.")
    for checkpoint in _stored.checkpoints(path):
        try:
            arrays = _stored.arrays(checkpoint, _stored.description(checkpoint), {})
        except Exception as error:
            failure = error
            warnings.warn(
                f"the checkpoint {checkpoint} is damaged ({first_line(error)}): the one before is "
                "looked at.",
                RuntimeWarning,
                stacklevel=3,
            )
            continue
        model = {name.removeprefix(_MODEL): a for name, a in arrays.items() if name[:6] == _MODEL}
        return {name: np.asarray(array) for name, array in model.items() if not is_kept(name)}
    raise failure


def _checked(path: Any) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise ArgumentError(f"path is {kind(path)}; a path is needed, as a str or a Path.")
    return Path(path)


def _safetensors():
    try:
        from safetensors import safe_open
        from safetensors.numpy import save_file
    except ImportError as error:
        raise MissingExtraError(
            "vernal.save and vernal.load need safetensors, which is not installed."
            "\n  Run: pip install 'vernal[checkpoint]'"
        ) from error
    return safe_open, save_file
