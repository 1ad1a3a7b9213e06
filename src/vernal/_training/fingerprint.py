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

from vernal._data.array_source import ArraySource
from vernal._data.arrays import leaf_name
from vernal._data.files import FileArray
from vernal._data.sources import Source
from vernal._shapes.modules import shapes_of
from vernal._training.objective import Objective, measure
from vernal._training.state import TrainState
from vernal.errors import shown

# Of larger arrays, about so many bytes are looked at.
_SAMPLED_BYTES = 2**24
_PACKAGES = "vernal", "jax", "equinox", "optax"
_VERSION, _PROGRAM = "the version of", "the program of the model and the loss"


def fingerprint(
    objective: Objective, state: TrainState, data: Source, validation_data: Source | None
) -> dict[str, str]:
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
    versions = {f"{_VERSION} {name}": version(name) for name in _PACKAGES}
    parts = _of_arrays("data", data) | _of_arrays("validation_data", validation_data)
    return {**versions, _PROGRAM: _digest(program.encode()), **parts}


def warn_of_changes(before: dict[str, str], now: dict[str, str], path: Path) -> None:
    """Warn of what differs between the fingerprints of a saved run and of this one."""
    changes = [name for name, value in before.items() if now.get(name, value) != value]
    # Another version writes the same program in other words.
    if any(name.startswith(_VERSION) for name in changes):
        changes = [name for name in changes if name != _PROGRAM]
    if changes:
        warnings.warn(
            f"the script has changed since the run in {shown(path)} was saved: "
            f"{', '.join(changes)}. The run goes on with what the script has now."
            "\n  Pass another directory for a new run.",
            RuntimeWarning,
            stacklevel=5,  # the caller of `Trainer.fit`
        )


def _of_arrays(name: str, source: Source | None) -> dict[str, str]:
    """Describe each array by its shape, its dtype and a digest of a sample, by name."""
    arrays = source.arrays if isinstance(source, ArraySource) else source and source.example
    leaves, _ = jax.tree_util.tree_flatten_with_path(arrays)
    return {
        f"{leaf_name(name, arrays, path)} of {name}": (
            f"{leaf.shape} {leaf.dtype} {_digest(_sample(leaf))}"
        )
        for path, leaf in leaves
    }


def _sample(leaf: Any) -> bytes:
    every = 1 + leaf.nbytes // _SAMPLED_BYTES
    if isinstance(leaf, FileArray):  # from its front: a file is read in blocks
        return leaf[: 1 + len(leaf) // every].tobytes()
    return np.asarray(leaf)[::every].tobytes()


def _digest(values: bytes) -> str:
    return hashlib.sha256(values).hexdigest()
