"""Everything that training changes."""

import textwrap
from dataclasses import replace
from typing import Any, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

Model = TypeVar("Model")


class TrainState(eqx.Module, Generic[Model]):
    """Everything that training changes; pass it back in to go on where it stopped.

    It is printed in a few lines; `eqx.tree_pprint(state)` shows all of it.

    Attributes:
        model: The model as trained so far.
        model_state: What the model keeps beside its parameters, such as an `eqx.nn.State`; or
            `None`.
        opt_state: The optimizer's state, as Optax keeps it.
        step: Number of steps made: a scalar array, JAX's or NumPy's, as the next four.
        epoch: Number of epochs completed.
        epoch_step: Number of steps made in the epoch under way.
        data_pass: Number of passes over the data completed: the same as `epoch`, unless
            `steps_per_epoch` makes an epoch longer or shorter.
        batch: Number of steps made in the pass under way.
        key: Never changes. A step uses `fold_in(key, step)`, and the order of the examples in a
            pass is drawn from `key` and `data_pass`: so a resumed run is the same run.
        data_state: What a data loader with a state of its own needs to go on from this place; or
            `None`.

    Example:
        >>> state, _ = trainer.fit(model, (x, y), epochs=5)
        >>> state
        TrainState(step=5, epoch=5,
          model: Linear, 2 parameters, 8 bytes,
          optimizer: EmptyState, EmptyState)
    """

    model: Model
    model_state: PyTree
    opt_state: Any
    step: Int[Array | np.ndarray, ""]
    epoch: Int[Array | np.ndarray, ""]
    epoch_step: Int[Array | np.ndarray, ""]
    data_pass: Int[Array | np.ndarray, ""]
    batch: Int[Array | np.ndarray, ""]
    key: PRNGKeyArray
    data_state: PyTree = None

    def __repr__(self) -> str:
        kinds = jax.Array | np.ndarray | jax.ShapeDtypeStruct
        arrays = [leaf for leaf in jax.tree.leaves(self.model) if isinstance(leaf, kinds)]
        parameters = sum(leaf.size for leaf in arrays if jnp.issubdtype(leaf.dtype, jnp.inexact))
        nbytes = sum(leaf.size * leaf.dtype.itemsize for leaf in arrays)
        # Optax's states are named tuples, in tuples and dicts.
        parts = jax.tree.leaves(self.opt_state, is_leaf=lambda node: hasattr(node, "_fields"))
        optimizer = ", ".join(type(part).__name__ for part in parts if hasattr(part, "_fields"))
        return (
            f"TrainState(step={_short(self.step)}, epoch={_short(self.epoch)},\n"
            f"  model: {type(self.model).__name__}, {parameters:,} parameters, {nbytes:,} bytes,\n"
            f"  optimizer: {_short(optimizer)})"
        )


# What a state counts on the host, where reading does not wait for the device.
COUNTS = "step", "epoch", "epoch_step", "data_pass", "batch"


def with_numbers_as_arrays(state: TrainState) -> TrainState:
    """Return a state with arrays in place of numbers that were put there by hand."""
    numbers = int | float | complex
    parts = {name: getattr(state, name) for name in (*COUNTS, "opt_state")}
    if not any(isinstance(leaf, numbers) for leaf in jax.tree.leaves(parts)):
        return state

    def as_array(leaf: Any) -> Any:
        return np.asarray(leaf, jnp.result_type(leaf)) if isinstance(leaf, numbers) else leaf

    return replace(state, **jax.tree.map(as_array, parts))


def _short(thing: Any) -> str:
    return textwrap.shorten(str(thing), 60, placeholder=" ...")
