"""Whether a script resumes the run that was saved: what must be the same, and what has changed.

Values written into the script, such as a constant learning rate, are not compared.
"""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from vernal import _hosts
from vernal._checkpointing.named_arrays import digest, is_key
from vernal._data.arrays import leaf_name
from vernal._data.files import FileArray
from vernal._shapes.jaxprs import text_of
from vernal._shapes.modules import shapes_of
from vernal._training.checkpointer import Beginning
from vernal._training.objective import measure
from vernal._training.preflight.data import CheckedData
from vernal._training.state import TrainState
from vernal.errors import CheckpointError, shown, warn

# Of larger arrays, about so many bytes are looked at.
_SAMPLED_BYTES = 2**24
_PACKAGES = "vernal", "jax", "equinox", "optax"
_VERSION, _PROGRAM = "the version of", "the program of the model and the loss"


def described(beginning: Beginning) -> dict[str, Any]:
    """Describe what a run begins with, in a few bytes, as JSON has it."""
    return {"settings": _settings(beginning), "fingerprint": _fingerprint(beginning)}


def check_same_run(before: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    """Check that a run begins as the saved one did, and warn of what the script has changed.

    Args:
        before: What `described` returned for the saved run.
        now: What it returns for this one.
        path: The directory of the checkpoints.

    Raises:
        CheckpointError: If a setting differs; the message names the first.
    """
    for name, value in before["settings"].items():
        setting = now["settings"].get(name)
        if setting != value:
            began = f"the run in {shown(path)} began with {name} = {value!r}"
            hint = f"Resume it with {name} as before, or pass another directory for a new run."
            raise CheckpointError(f"{began}; now it is {setting!r}.\n  {hint}")

    old, new = before["fingerprint"], now["fingerprint"]
    changes = [name for name, value in old.items() if new.get(name, value) != value]
    # Another version writes the same program in other words.
    if any(name.startswith(_VERSION) for name in changes):
        changes = [name for name in changes if name != _PROGRAM]
    if changes:
        saved = f"the script has changed since the run in {shown(path)} was saved"
        hint = "The run goes on with what the script has now. Pass another directory for a new run."
        warn(f"{saved}: {', '.join(changes)}.\n  {hint}")


def _settings(beginning: Beginning) -> dict[str, Any]:
    """Return what must be the same in a resumed run, by names."""
    state = beginning.state
    numbers = np.asarray(jax.random.key_data(state.key)).tolist()
    return {
        **beginning.settings,
        "batches in a pass": beginning.data.source.pass_length,
        **{f"state.{name}": int(getattr(state, name)) for name in ("step", "epoch", "batch")},
        "key": f"{jax.random.key_impl(state.key)} {numbers}",
    }


def _fingerprint(beginning: Beginning) -> dict[str, str]:
    """Return what tells two runs apart: versions, data, and the program of model and loss.

    The metrics do not count: the history shows them. Of a loader, the first batch is looked at.
    """
    objective = beginning.objective._replace(metrics={})

    def loss(state: TrainState, batch: PyTree) -> PyTree:
        return measure(objective, state.model, state.model_state, batch, state.key).info

    state = beginning.state if beginning.of_one is None else beginning.of_one
    arguments = shapes_of((state, beginning.data.source.example))
    jaxpr, _, _ = eqx.filter_make_jaxpr(loss)(*arguments)
    program = text_of(jaxpr)
    return {
        **{f"{_VERSION} {name}": version(name) for name in _PACKAGES},
        _PROGRAM: digest(np.frombuffer(program.encode(), np.uint8)),
        "the model's first numbers": _of_numbers(beginning.state.model),
        "the optimizer's first numbers": _of_numbers(beginning.state.opt_state),
        **_of_arrays("data", beginning.data),
        **_of_arrays("validation_data", beginning.validation_data),
    }


def _of_numbers(tree: PyTree) -> str:
    """Return a digest of a sample of the numbers in a state: the same on any devices and hosts."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if eqx.is_array(leaf) and not is_key(leaf)]
    every = 1 + sum(leaf.nbytes for leaf in leaves) // _SAMPLED_BYTES
    on_host = (np.asarray(_hosts.on_host(leaf)) for leaf in leaves)  # one at a time
    sampled = [np.ascontiguousarray(array.reshape(-1)[::every]) for array in on_host]
    return digest(
        np.concatenate([np.empty(0, np.uint8), *(each.view(np.uint8) for each in sampled)])
    )


def _of_arrays(name: str, data: CheckedData | None) -> dict[str, str]:
    """Describe each array by its shape, its dtype and a digest of a sample, by name."""
    arrays = None if data is None else getattr(data.source, "arrays", data.source.example)
    described = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays):
        array = f"{leaf.shape} {leaf.dtype} {digest(_sample(leaf))}"
        described[f"{leaf_name(name, arrays, path)} of {name}"] = array
    return described


def _sample(leaf: Any) -> np.ndarray:
    every = 1 + leaf.nbytes // _SAMPLED_BYTES
    if isinstance(leaf, FileArray):  # from its front: a file is read in blocks
        return leaf[: 1 + len(leaf) // every]
    return np.atleast_1d(leaf)[::every]
