"""A checkpoint on disk: arrays by name, and a JSON description of the run, with a digest of each.

The states of the run, of callbacks and of data loaders are JSON, with their arrays aside. Nothing
that is read is executed.
"""

import functools
import hashlib
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vernal import _hosts
from vernal._checkpointing import named_arrays
from vernal._checkpointing.storage import for_orbax, orbax
from vernal._checkpointing.values import STATE, decode, encode
from vernal._training.checkpointer import RunState
from vernal._training.state import TrainState
from vernal.errors import CheckpointError, first_line, shown, warn

_FORMAT = 5
_PARTS = "arrays", "description", "_CHECKPOINT_METADATA"


def newest_good(
    directory: Path, read: Callable[[Path], Any], *, rename: bool = False
) -> tuple[Path, Any] | None:
    """Read the newest checkpoint of a directory that is not damaged.

    A warning names each newer one, which is damaged.

    Args:
        directory: Has a subdirectory for each checkpoint, whose name is a number.
        read: Reads one checkpoint. It raises `CheckpointError` if the checkpoint is whole but
            cannot be used, and anything else if it is damaged.
        rename: Whether damaged ones are renamed, so that they are not read again.

    Returns:
        The checkpoint's path and what `read` returned; `None` if there is no checkpoint yet.

    Raises:
        CheckpointError: If `read` raised it, or all checkpoints are damaged.
    """
    checkpoints = list(filter(is_checkpoint, directory.iterdir()))
    damaged: dict[Path, str] = {}
    for path in sorted(checkpoints, key=lambda path: int(path.name), reverse=True):
        try:
            content = read(path)
        except (CheckpointError, ImportError, MemoryError):
            raise
        except Exception as error:
            damaged[path] = first_line(error)
            continue
        for bad, reason in damaged.items():
            place = _free(bad.with_name(f"damaged-{bad.name}")) if rename else bad
            if not _hosts.is_first():
                continue
            if rename:
                bad.rename(place)
            taken = f"It stays as {place.name}; Vernal takes {path.name}, the one before."
            warn(f"the checkpoint {shown(bad)} is damaged ({reason}). {taken}")
        return path, content
    if not damaged:
        return None
    newest, reason = next(iter(damaged.items()))
    problem = f"no checkpoint in {shown(directory)} is whole: {newest.name} is damaged ({reason})."
    raise CheckpointError(f"{problem}\n  Pass another directory to begin anew.")


def is_checkpoint(path: Path) -> bool:
    """Return whether a path is a checkpoint, whole or not, and not somebody else's directory."""
    return path.name.isdecimal() and any((path / part).exists() for part in _PARTS)


def _free(path: Path) -> Path:
    """Return a path where nothing is: with a number behind its name, if need be."""
    names = itertools.chain([path.name], (f"{path.name}-{i}" for i in itertools.count(2)))
    return next(free for free in map(path.with_name, names) if not free.exists())


def orbax_args(run: RunState, described: dict[str, Any]) -> tuple[Any, int]:
    """Return what Orbax is to write of a run, and the size of the largest array in bytes.

    The state's arrays must not be donated, nor changed, before Orbax's `save` returns.

    Args:
        run: The run as it is now.
        described: What it began with, as `same_run.described` returned it.

    Raises:
        CheckpointError: If a callback or a data loader holds something that cannot be stored.
    """
    arrays: dict[str, Any] = {}
    fields = vars(run) | {"callbacks": []}
    # Besides the callbacks, only the state of a data loader can hold something unknown.
    owner = "the data loader's state"
    encoded = {name: encode(value, arrays, owner=owner) for name, value in fields.items()}
    _check_states(run)
    encoded["callbacks"] = [encode(pair, arrays, owner=pair[0]) for pair in run.callbacks]
    written, array_descriptions = named_arrays.written(arrays)
    content = {
        "format": _FORMAT,
        "versions": {name: version(name) for name in ("vernal", "jax", "equinox", "optax")},
        "arrays": array_descriptions,
        "began_with": described,
        "run": encoded,
    }
    # Orbax takes no empty arrays. Their description says all that there is to know.
    not_empty = {name: array for name, array in written.items() if array.size}
    args = orbax().args
    description = args.JsonSave({"sha256": _digest_of_json(content), "content": content})
    both = args.Composite(arrays=args.StandardSave(not_empty), description=description)
    return both, max(array.nbytes for array in written.values())


def _check_states(run: RunState) -> None:
    """Raise `CheckpointError` if a callback keeps the state of another model or optimizer."""

    def structure(state: TrainState) -> Any:
        return jax.tree.structure(replace(state, data_state=None))

    is_state = lambda node: isinstance(node, TrainState)
    for name, kept in run.callbacks:
        for node in jax.tree.leaves(kept, is_leaf=is_state):
            if is_state(node) and structure(node) != structure(run.state):
                problem = f"{name} holds a TrainState of another model or optimizer than the run's"
                hint = "Return its arrays from state_dict: jax.tree.leaves(...)."
                raise CheckpointError(f"{problem}, which is not stored.\n  {hint}")


def read_run(path: Path, start: TrainState) -> tuple[RunState, dict[str, Any]]:
    """Read a run from one checkpoint.

    Args:
        path: The directory of the checkpoint.
        start: The state that this run begins with. The saved state has its structure, its kinds of
            arrays and their devices.

    Returns:
        The run; and what it began with, as `same_run.described` returned it.

    Raises:
        CheckpointError: If the checkpoint has other arrays, or another version of Vernal wrote it.
        Exception: If the checkpoint is damaged: whatever reading raises.
    """
    content, arrays = _read(path)
    named_arrays.check_alike(
        named_arrays.within(arrays, STATE),
        named_arrays.of(replace(start, data_state=None)),
        where=f"the checkpoint {shown(path)}",
        fix="Pass the model and the optimizer of that run, or another directory for this one. To "
        f"take over that model alone: vernal.load({shown(path.parent)!r}, model).",
    )
    run = RunState(**{name: decode(part, arrays, start) for name, part in content["run"].items()})
    return run, content["began_with"]


def read_state(path: Path) -> tuple[dict[str, Any], Callable[[], Any]]:
    """Read the state of a run from one checkpoint.

    Returns:
        The arrays of the `TrainState` by name; and what returns the data loader's state, which may
        need the package of the loader.

    Raises:
        CheckpointError: If another version of Vernal wrote the checkpoint.
        Exception: If the checkpoint is damaged: whatever reading raises.
    """
    content, arrays = _read(path)
    _, data_state = content["run"]["state"]["@state"]
    return named_arrays.within(arrays, STATE), functools.partial(decode, data_state, arrays)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the description of a checkpoint, and its arrays by name, as they are stored."""
    ocp = orbax()
    with for_orbax(path) as link, ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
        item = ocp.args.Composite(description=ocp.args.JsonRestore())
        described = reader.restore(link, args=item).description
        # Version 0.1.0 wrote a text.
        content = json.loads(described["text"]) if "text" in described else described["content"]
        if _digest_of_json(content) != described["sha256"]:
            raise ValueError("its description is not the one that was written")
        if content["format"] != _FORMAT:
            writer = f"vernal {content['versions']['vernal']}, which this version cannot read"
            hint = "Resume the run with that version, or pass another directory to begin anew."
            raise CheckpointError(f"{shown(path)} was written by {writer}.\n  {hint}")

        arrays = {}
        for name, (shape, dtype, _) in content["arrays"].items():
            target = named_arrays.written_as(jax.ShapeDtypeStruct(shape, dtype))
            # Orbax looks at shape and dtype alone. This takes no memory, whatever its shape.
            arrays[name] = np.broadcast_to(np.zeros((), target.dtype), target.shape)
        not_empty = {name: array for name, array in arrays.items() if array.size}
        item = ocp.args.Composite(arrays=ocp.args.StandardRestore(not_empty))
        arrays |= reader.restore(link, args=item).arrays
    return content, named_arrays.read_back(arrays, content["arrays"])


def _digest_of_json(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
