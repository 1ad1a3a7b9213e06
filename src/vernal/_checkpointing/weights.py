"""What was trained in one file, in the format safetensors, which other programs read."""

import contextlib
import difflib
import json
import os
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from vernal import errors
from vernal._checkpointing import named_arrays
from vernal._checkpointing.format import newest_good, read_state
from vernal._training.state import TrainState

Model = TypeVar("Model", bound=PyTree)

# In a file's metadata: the shape, dtype and digest of each array by name.
_DESCRIBED = "vernal.arrays"
# What safetensors reads only as bytes.
_FLOAT8 = {"F8_E4M3": jnp.float8_e4m3fn, "F8_E5M2": jnp.float8_e5m2, "F8_E8M0": jnp.float8_e8m0fnu}


def save(path: str | os.PathLike[str], model: PyTree) -> None:
    """Write arrays to one file, in the format safetensors.

    Each array has the name of its path, such as `layers.0.weight`. Other leaves, such as functions
    and sizes, are not in the file: they come from the model that `load` is given. An existing
    file is replaced once the new one is whole: its mode stays, and so does a link to it.

    Args:
        path: The file, such as `"model.safetensors"`. Its directory is made if it is missing.
        model: Any PyTree of arrays: an `eqx.Module`, a pair `(model, model_state)`, a `TrainState`.
            Of a key, its numbers are saved. An array of a dtype that the format does not have, such
            as int4 or complex128, is saved as its bytes, which only `load` understands.

    Raises:
        ArgumentError: If `path` is not a path, or `model` has no arrays.
        CheckpointError: If the file cannot be written, two arrays have the same name, an array has
            the name `__metadata__`, or an array holds objects.
        MissingExtraError: If safetensors is not installed.

    Example:
        >>> vernal.save("line.safetensors", model)
    """
    path = errors.checked_path("path", path)
    safetensors = _safetensors()
    if isinstance(model, TrainState) and model.data_state is not None:
        given = "the TrainState holds a data loader's state, which only checkpoints=... can store."
        hint = "Leave that state out: dataclasses.replace(state, data_state=None)."
        raise errors.CheckpointError(f"{given}\n  {hint}")
    arrays = named_arrays.of(model)
    if not arrays:
        raise errors.ArgumentError(f"model is {errors.kind(model)}, without an array to save.")
    shapes = [name for name, each in arrays.items() if isinstance(each, jax.ShapeDtypeStruct)]
    if shapes:
        given = f"{shapes[0] or 'model'} is a ShapeDtypeStruct, which has no values to save"
        raise errors.ArgumentError(f"{given}.\n  Save a model, and not only its shapes.")

    if "__metadata__" in arrays:
        problem = "model has an array of the name __metadata__, which the format keeps for itself"
        raise errors.CheckpointError(f"{problem}.\n  Rename that field, or that key of a dict.")

    # In the order that the file has: others would be written transposed.
    in_c_order = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    values, described = named_arrays.written(in_c_order)
    place = Path(os.path.realpath(path))  # a link stays a link
    temporary = place.with_name(f".vernal-{uuid.uuid4().hex}.tmp")  # where a name may be as long
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = (place if place.exists() else temporary).stat().st_mode
        safetensors.save_file(values, temporary, {_DESCRIBED: json.dumps(described)})
        temporary.chmod(mode)  # the format's library lets the owner alone read it
        os.replace(temporary, place)
    except Exception as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        problem = f"the model could not be written to {errors.shown(path)}"
        hint = "Free some space, or pass a path that can be written to."
        if place.is_dir():
            hint = "It is a directory: add the name of a file, such as model.safetensors."
        message = f"{problem}: {errors.first_line(error)}.\n  {hint}"
        raise errors.CheckpointError(message) from error


def load(
    path: str | os.PathLike[str],
    like: Model,
    *,
    keep: str | Iterable[str] = (),
    names: Mapping[str, str] | Callable[[str], str] | None = None,
    cast: bool = False,
) -> Model:
    """Read what `save` wrote, what a run's checkpoint holds, or a file of another program.

    Args:
        path: A file of the format safetensors; the directory of a `vernal.Checkpoints`, for the
            newest good checkpoint; or the directory of one checkpoint, such as `"runs/sine/3"`.
        like: What was saved, with the same structure, such as a new model. Of a run, any of its
            model, the pair `(model, model_state)`, the `eqx.nn.State`, and the `TrainState`. It
            stays as it is; what is returned has other arrays. Of an array, its shape and dtype are
            enough: what `eqx.filter_eval_shape` returns will do.
        keep: Names of parts that stay as they are in `like`, such as `"head"` or `"layers.3"`: for
            example a new head on a trained body.
        names: The names that another program's file has: a dict from the names of `like`'s arrays,
            such as `{"layers.0.weight": "fc1.weight"}`, for those that differ; or a function of
            such a name. What else the file holds is left out. By default, the file has the names
            and the arrays of `like`, and no others.
        cast: Whether to convert floats to the float dtype that `like` has. By default, dtypes must
            be equal.

    Returns:
        What was saved, with its arrays on the devices of those in `like`.

    Raises:
        ArgumentError: If `path` is not a path, or `keep` or `names` name what is not in `like`.
        CheckpointError: If the file is missing or damaged, or an array is missing, not needed, has
            another shape or dtype, or values that a cast loses. The message names it.
        MissingExtraError: If safetensors, or Orbax for a directory, is not installed.

    Example:
        >>> vernal.save("line.safetensors", model)
        >>> loaded = vernal.load("line.safetensors", nn.Linear(1, 1, key=jax.random.key(1)))
        >>> bool(loaded.weight == model.weight)
        True
    """
    path = errors.checked_path("path", path)
    template: Any = replace(like, data_state=None) if isinstance(like, TrainState) else like
    arrays = named_arrays.of(template)
    parts = (keep,) if isinstance(keep, str) else tuple(keep)
    needed = _without(arrays, parts)
    renamed = {name: names(name) for name in needed} if callable(names) else names or {}
    for argument, part in [*(("keep", part) for part in parts), *(("names", n) for n in renamed)]:
        is_known = part in arrays or (argument == "keep" and named_arrays.within(arrays, part))
        if not is_known:
            problem = f"{argument} names {part!r}, and the model has no arrays there"
            raise errors.ArgumentError(f"{problem}; it has {', '.join(list(arrays)[:5])}.")

    try:
        read_from = _read_run if path.is_dir() else _read_file
        read, template = read_from(path, template)
    except errors.VernalError:
        raise
    except FileNotFoundError as error:
        raise errors.CheckpointError(f"there is no file {errors.shown(path)}.") from error
    except Exception as error:
        problem = f"{errors.shown(path)} is damaged, or no file of arrays"
        raise errors.CheckpointError(f"{problem}: {errors.first_line(error)}.") from error

    fix = 'Pass what was saved; or keep parts of it: keep="..."; or convert floats: cast=True.'
    values = _without(read, parts) if names is None else {}
    for name, array in needed.items():
        there = renamed.get(name, name)
        if there in read:
            values[name] = _cast(name, read[there], array.dtype) if cast else read[there]
        elif "There is no" not in fix:
            close = difflib.get_close_matches(there, read, n=5, cutoff=0)
            fix = f"There is no {there}; there is {', '.join(close)}.\n  {fix}"
    named_arrays.check_alike(values, needed, where=errors.shown(path), fix=fix)
    return named_arrays.with_arrays(template, values)


def _read_file(path: Path, like: Any) -> tuple[dict[str, Any], Any]:
    """Read the arrays of a file by name, and return `like` with them."""
    safetensors = _safetensors()
    with safetensors.safe_open(path, framework="numpy") as file:
        # A file that another program wrote has no description.
        described = json.loads((file.metadata() or {}).get(_DESCRIBED, "{}"))
        kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        values = {name: file.get_tensor(name) for name in kinds if kinds[name] not in _FLOAT8}
    if len(values) < len(kinds):
        for name, each in safetensors.deserialize(path.read_bytes()):
            if name not in values:
                array = np.frombuffer(each["data"], _FLOAT8[kinds[name]])
                values[name] = array.reshape(each["shape"])
    return values | named_arrays.read_back(values, described), like


def _read_run(path: Path, like: Any) -> tuple[dict[str, Any], Any]:
    """Read those arrays of a checkpoint that `like` has, by their names in it.

    Returns:
        The arrays; and `like`, of a `TrainState` with the data loader's state.
    """
    is_checkpoint = (path / "description").is_dir()
    found = (path, read_state(path)) if is_checkpoint else newest_good(path, read_state)
    if found is None:
        raise errors.CheckpointError(f"there is no checkpoint in {errors.shown(path)}.")

    _, (state, data_state) = found
    if isinstance(like, TrainState):
        return state, replace(like, data_state=data_state())
    model = named_arrays.within(state, "model")
    model_state = named_arrays.within(state, "model_state")
    if isinstance(like, eqx.nn.State):
        return model_state, like
    if model_state and isinstance(like, tuple) and len(like) == 2:
        return named_arrays.of((model, model_state)), like
    if model_state:
        hint = "It is left out: pass the pair (model, model_state) as like."
        errors.warn(f"{errors.shown(path)} holds a model_state, too.\n  {hint}")
    return model, like


def _cast(name: str, values: Any, dtype: Any) -> Any:
    """Return stored floats in another dtype of floats; anything else as it is."""
    if not all(jnp.issubdtype(each, jnp.floating) for each in (values.dtype, dtype)):
        return values
    with np.errstate(over="ignore"):
        made = values.astype(dtype)
    lost = np.isfinite(values) & ~np.isfinite(made)
    if lost.any():
        raise errors.CheckpointError(
            f"{name} has {values[lost][0]}, which is too large for {dtype}."
            f"\n  Pass a model of {values.dtype}."
        )
    return made


def _without(named: dict[str, Any], parts: Iterable[str]) -> dict[str, Any]:
    """Leave out the arrays of some parts of a model."""
    prefixes = tuple(f"{part}." for part in parts)
    return {name: array for name, array in named.items() if not f"{name}.".startswith(prefixes)}


def _safetensors():
    return errors.optional_import("safetensors.numpy", user="vernal.save", extra="checkpoint")
