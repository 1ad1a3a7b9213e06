"""A checkpoint on disk: arrays by name, and a JSON description with a digest of each."""

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vernal._checkpointing.encoding import decode, encode
from vernal._checkpointing.named_arrays import (
    check_alike,
    digest,
    named_arrays,
    stored,
    viewed,
    within,
    written_as,
)
from vernal._checkpointing.storage import for_orbax, orbax
from vernal._training.checkpointer import RunState
from vernal._training.state import TrainState
from vernal.errors import CheckpointError, first_line, shown

_FORMAT = 4


class Damaged(Exception):
    """What was read is not what was written."""


def newest_good(
    directory: Path, read: Callable[[Path], Any], *, rename_damaged: bool
) -> tuple[Path, Any] | None:
    """Read the newest checkpoint of a directory that is not damaged.

    A warning names each newer one, which is damaged.

    Args:
        directory: Has a subdirectory for each checkpoint, whose name is a number.
        read: Reads one checkpoint. It raises `CheckpointError` if the checkpoint is whole but
            cannot be used, and anything else if it is damaged.
        rename_damaged: Whether damaged ones are renamed, so that they are not read again.

    Returns:
        The checkpoint's path and what `read` returned; `None` if there is no checkpoint yet.

    Raises:
        CheckpointError: If `read` raised it, or all checkpoints are damaged.
    """
    checkpoints = [path for path in directory.iterdir() if path.name.isdecimal() and path.is_dir()]
    damaged: dict[Path, str] = {}
    for path in sorted(checkpoints, key=lambda path: int(path.name), reverse=True):
        try:
            content = read(path)
        except CheckpointError:
            raise
        except Exception as error:
            damaged[path] = first_line(error)
        else:
            for bad, reason in damaged.items():
                _report_damaged(bad, reason, path, rename=rename_damaged)
            return path, content
    if not damaged:
        return None
    newest, reason = next(iter(damaged.items()))
    raise CheckpointError(
        f"none of the checkpoints in {shown(directory)} is whole: {newest.name} is damaged "
        f"({reason}).\n  Pass another directory to begin anew."
    )


def _report_damaged(path: Path, reason: str, good: Path, *, rename: bool) -> None:
    now = ""
    if rename:
        renamed = path.with_name(f"damaged-{path.name}")
        shutil.rmtree(renamed, ignore_errors=True)
        path.rename(renamed)
        now = f"; it is {renamed.name} now"
    warnings.warn(
        f"the checkpoint {shown(path)} is damaged ({reason}){now}. Vernal takes {good.name}, the "
        "one before.",
        RuntimeWarning,
        stacklevel=5,  # the caller of `Trainer.fit` or `vernal.load`
    )


def orbax_args(run: RunState) -> Any:
    """Return what Orbax is to write of a run.

    The state's arrays must not be donated, nor changed, before they are written.

    Raises:
        CheckpointError: If a callback or a data loader holds something that cannot be stored.
    """
    arrays: dict[str, Any] = {}
    fields = vars(run) | {"callbacks": []}
    # Besides the callbacks, only the state of a data loader can hold something unknown.
    owner = "the data loader's state"
    encoded = {name: encode(value, arrays, owner=owner) for name, value in fields.items()}
    encoded["callbacks"] = [encode(pair, arrays, owner=pair[0]) for pair in run.callbacks]
    content = {
        "format": _FORMAT,
        "versions": {name: version(name) for name in ("vernal", "jax", "equinox", "optax")},
        "arrays": {
            name: [array.shape, str(array.dtype), digest(array)] for name, array in arrays.items()
        },
        "run": encoded,
    }
    # Orbax takes no empty arrays. Their description says all that there is to know.
    not_empty = {
        name: viewed(array, *written_as(array.shape, array.dtype))
        for name, array in arrays.items()
        if array.size
    }
    args = orbax().args
    return args.Composite(
        arrays=args.StandardSave(not_empty),
        description=args.JsonSave({"sha256": _digest_of_json(content), "content": content}),
    )


def read_run(path: Path, start: TrainState) -> RunState:
    """Read a run from one checkpoint.

    Args:
        path: The directory of the checkpoint.
        start: The state that this run begins with. The saved state has its structure, its kinds of
            arrays and their devices.

    Raises:
        CheckpointError: If the checkpoint is of another run: with other arrays, another key, or
            another place in the data to begin with; or if another version of Vernal wrote it.
        Exception: If the checkpoint is damaged: `Damaged`, or whatever reading raises.
    """
    content = _read_content(path)
    check_alike(
        _of_state(_shapes(content), content),
        named_arrays(start),
        where=f"the checkpoint {shown(path)}",
        fix=(
            "Pass the model and the optimizer of that run, or another directory for this one. To "
            f"take over that model alone: vernal.load({shown(path.parent)!r}, model)."
        ),
    )
    arrays = _read_arrays(path, content)
    run = RunState(**{name: decode(part, arrays, start) for name, part in content["run"].items()})
    began = (int(start.step), int(start.epoch), int(start.batch))
    if run.began != began:
        raise CheckpointError(
            f"the checkpoint {shown(path)} is of a run that began with step {run.began[0]}, and "
            f"this one begins with step {began[0]}.\n  Pass another directory for another run."
        )
    if not np.array_equal(stored(run.state.key), stored(start.key)):
        raise CheckpointError(
            f"the checkpoint {shown(path)} is of a run with another key."
            "\n  Pass its key, or another directory for another run."
        )
    return run


def read_state(path: Path, *, with_loader: bool) -> tuple[dict[str, Any], Any]:
    """Read the state of a run from one checkpoint.

    Args:
        path: The directory of the checkpoint.
        with_loader: Whether to read the data loader's state.

    Returns:
        The arrays of the `TrainState` by name; and the data loader's state, if it is read.

    Raises:
        CheckpointError: If another version of Vernal wrote the checkpoint.
        Exception: If the checkpoint is damaged: `Damaged`, or whatever reading raises.
    """
    content = _read_content(path)
    arrays = _read_arrays(path, content)
    _, data_state = content["run"]["state"]["@state"]
    loaders = decode(data_state, arrays) if with_loader else None
    return _of_state(arrays, content), loaders


def _read_content(path: Path) -> dict[str, Any]:
    """Read the description of a checkpoint, without its digest."""
    described = _read(path, description=orbax().args.JsonRestore()).description
    if "text" in described:  # as version 0.1.0 wrote it
        content = json.loads(described["text"])
    else:
        content = described["content"]
        if _digest_of_json(content) != described["sha256"]:
            raise Damaged("its description is not the one that was written")
    if content["format"] != _FORMAT:
        raise CheckpointError(
            f"{shown(path)} was written by vernal {content['versions']['vernal']}, which this "
            "version cannot read.\n  Resume the run with that version, or pass another directory "
            "to begin anew."
        )
    return content


def _read_arrays(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Read all arrays of a checkpoint, as they are stored."""

    def target(each: jax.ShapeDtypeStruct) -> np.ndarray:
        # Orbax looks at shape and dtype alone. This takes no memory, whatever its shape.
        shape, dtype = written_as(each.shape, each.dtype)
        return np.broadcast_to(np.zeros((), dtype), shape)

    shapes = _shapes(content)
    written = {name: target(each) for name, each in shapes.items()}
    targets = {name: array for name, array in written.items() if array.size}
    written |= _read(path, arrays=orbax().args.StandardRestore(targets)).arrays
    arrays = {name: viewed(written[name], each.shape, each.dtype) for name, each in shapes.items()}
    for name, array in arrays.items():
        if digest(array) != content["arrays"][name][-1]:
            raise Damaged(f"{name} is not what was written")
    return arrays


def _shapes(content: dict[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    arrays = content["arrays"].items()
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype, _) in arrays}


def _of_state(arrays: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    """Return those arrays of a checkpoint that belong to the run's state."""
    number, _ = content["run"]["state"]["@state"]
    return within(arrays, number)


def _read(path: Path, **items: Any) -> Any:
    ocp = orbax()
    with for_orbax(path) as link, ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
        return reader.restore(link, args=ocp.args.Composite(**items))


def _digest_of_json(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
