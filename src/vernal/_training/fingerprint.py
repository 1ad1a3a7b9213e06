"""What a run is made of, in a few bytes: so that a resumed run notices what the script has changed.

Values written into the script, such as a constant learning rate, are not in it.
"""

import hashlib
import re
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from vernal._data.arrays import leaf_name
from vernal._data.files import FileArray
from vernal._data.sources import Source
from vernal._shapes.modules import shapes_of
from vernal._training.objective import Objective, measure
from vernal._training.state import TrainState
from vernal.errors import shown

# Of larger arrays, about so many bytes are looked at.
_SAMPLED_BYTES = 2**24


def fingerprint(
    objective: Objective, state: TrainState, data: Source, validation_data: Source | None
) -> dict[str, Any]:
    """Return what tells two runs apart: versions, data, and the program of model and loss.

    Args:
        objective: What is measured. Its metrics do not count: the history shows them.
        state: The state that the run begins with.
        data: Of a loader, the first batch is looked at.
        validation_data: The same; or `None`.
    """

    def loss(state: TrainState, batch: PyTree) -> PyTree:
        without_metrics = objective._replace(metrics={})
        return measure(without_metrics, state.model, state.model_state, batch, state.key).info

    jaxpr, _, _ = eqx.filter_make_jaxpr(loss)(*shapes_of((state, data.example)))
    program = re.sub("0x[0-9a-f]+", "", str(jaxpr))  # addresses differ from process to process
    return {
        "versions": {name: version(name) for name in ("vernal", "jax", "equinox", "optax")},
        "program": _digest(program.encode()),
        "data": _of_arrays("data", data.example),
        "validation_data": _of_arrays(
            "validation_data", validation_data and validation_data.example
        ),
    }


def warn_of_changes(before: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    """Warn of what differs between the fingerprints of a saved run and of this one."""
    changes = [
        f"{name} {now['versions'][name]} in place of {saved}"
        for name, saved in before["versions"].items()
        if now["versions"][name] != saved
    ]
    # Another version writes the same program otherwise.
    if not changes and before["program"] != now["program"]:
        changes.append("the program of the model and the loss")
    for name in ("data", "validation_data"):
        saved, given = before[name], now[name]
        parts = [part for part in saved | given if saved.get(part) != given.get(part)]
        if saved and given and parts:
            changes.append(f"{name} ({', '.join(parts)})")
    if changes:
        warnings.warn(
            f"the script has changed since the run in {shown(path)} was saved: "
            f"{'; '.join(changes)}. The run goes on with what the script has now."
            "\n  Pass another directory for a new run.",
            RuntimeWarning,
            stacklevel=5,  # the caller of `Trainer.fit`
        )


def _of_arrays(name: str, example: PyTree) -> dict[str, str]:
    """Describe each array by its shape, its dtype and a digest of a sample, by name."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(example)
    return {
        leaf_name(name, example, path): f"{leaf.shape} {leaf.dtype} {_digest(_sample(leaf))}"
        for path, leaf in leaves
    }


def _sample(leaf: Any) -> bytes:
    every = 1 + leaf.nbytes // _SAMPLED_BYTES
    if isinstance(leaf, FileArray):  # from its front: a file is read in blocks
        return leaf[: 1 + len(leaf) // every].tobytes()
    return np.asarray(leaf)[::every].tobytes()


def _digest(values: bytes) -> str:
    return hashlib.sha256(values).hexdigest()
