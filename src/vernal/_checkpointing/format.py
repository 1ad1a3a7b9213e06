"""One checkpoint on disk: arrays, and a description by which to tell whether they are whole."""

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from vernal._checkpointing.config import orbax
from vernal._checkpointing.leaves import (
    Leaf,
    as_like,
    described,
    digest,
    is_placed,
    numbers_of,
    on_host,
)
from vernal.errors import CheckpointError

_FORMAT = 1  # of the description


class Damaged(Exception):
    """What was read is not what was written."""


class Description(NamedTuple):
    """What is said of a checkpoint."""

    leaves: list[Leaf]  # what arrays there are
    digests: list[str]  # of each
    run: Any  # whatever else is to be known, as JSON takes it


def parts(arrays: Mapping[str, Array | np.ndarray], run: Any) -> Any:
    """What Orbax is to write: arrays by name, and their description with `run` in it.

    **Arguments:**

    - `arrays`: JAX's must not be given away before they are written; NumPy's must not be changed.
    """
    leaves = described(arrays)
    text = json.dumps(
        {
            "format": _FORMAT,
            "versions": {name: version(name) for name in ("vernal", "jax", "equinox", "optax")},
            "leaves": [
                [leaf.name, leaf.shape, leaf.dtype, digest(on_host(array))]
                for leaf, array in zip(leaves, arrays.values(), strict=True)
            ],
            "run": run,
        }
    )
    args = orbax().args
    # Orbax takes no empty arrays: their description says all that there is to know.
    stored = {name: numbers_of(array) for name, array in arrays.items() if array.size}
    said = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "text": text}
    return args.Composite(arrays=args.StandardSave(stored), description=args.JsonSave(said))


def checkpoints(directory: Path) -> list[Path]:
    """The checkpoints in a directory, the newest first."""
    found = [path for path in directory.iterdir() if path.name.isdecimal() and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name), reverse=True)


def description(path: Path) -> Description:
    """Read what a checkpoint says of itself.

    **Raises:** `Damaged`, or whatever reading raises, if it is not whole; `CheckpointError` if it
    is of another version of Vernal.
    """
    said = _read(path, description=orbax().args.JsonRestore()).description
    text = said["text"]
    if hashlib.sha256(text.encode()).hexdigest() != said["sha256"]:
        raise Damaged("its description is not the one that was written")
    told = json.loads(text)
    if told["format"] != _FORMAT:
        raise CheckpointError(
            f"{path} was written by vernal {told['versions']['vernal']}, which this version cannot "
            "read.\n  Go on with that version, or pass another directory to begin anew."
        )
    leaves = [Leaf(name, tuple(shape), dtype) for name, shape, dtype, _ in told["leaves"]]
    return Description(leaves, [leaf[-1] for leaf in told["leaves"]], told["run"])


def arrays(
    path: Path, said: Description, like: Mapping[str, Array | np.ndarray]
) -> dict[str, Array | np.ndarray]:
    """Read a checkpoint's arrays: those in `like` as what they are there, others as NumPy's.

    **Raises:** `Damaged`, or whatever reading raises, if they are not those that were written.
    """
    target = {}
    for leaf in said.leaves:
        if 0 not in leaf.shape:
            target[leaf.name] = _target(leaf, like.get(leaf.name))
    read = _read(path, arrays=orbax().args.StandardRestore(target)).arrays
    made = {}
    for leaf, expected in zip(said.leaves, said.digests, strict=True):
        numbers = read[leaf.name] if leaf.name in target else np.zeros(leaf.shape, leaf.dtype)
        if digest(np.asarray(numbers)) != expected:
            raise Damaged(f"{leaf.name} is not what was written")
        made[leaf.name] = as_like(numbers, like[leaf.name]) if leaf.name in like else numbers
    return made


def _target(leaf: Leaf, like: Array | np.ndarray | None) -> jax.ShapeDtypeStruct | np.ndarray:
    """What Orbax is to make of what it reads."""
    if isinstance(like, jax.Array) and is_placed(like):
        numbers = numbers_of(like)
        assert isinstance(numbers, jax.Array)
        return jax.ShapeDtypeStruct(numbers.shape, numbers.dtype, sharding=numbers.sharding)
    # Of no size: Orbax looks at its shape and dtype.
    return np.broadcast_to(np.zeros((), np.dtype(leaf.dtype)), leaf.shape)


def _read(path: Path, **items: Any) -> Any:
    ocp = orbax()
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
        return reader.restore(path.absolute(), args=ocp.args.Composite(**items))
