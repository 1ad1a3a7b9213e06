"""Where numbers stop being finite: the steps of a chunk are made again, to find the first bad one.

The steps themselves do not look whether their numbers are finite: asked in the compiled loop, with
the old parameters kept by a select, that costs 15 to 33 % of the time on small batches. Instead the
host looks at each chunk's losses, and at the state after it. If they are not finite, it goes back
to the copy of the state before the chunk, and makes some of the steps again, to find the first
bad one by bisection.

A state that is too large to be copied is not: then the run ends at the end of the chunk.
"""

import bisect
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree

from vernal import _limits
from vernal._training.measurements import Measurements
from vernal._training.state import TrainState
from vernal._training.update import Choices, changing_part, update


def finite_arrays(arrays: PyTree) -> Bool[np.ndarray, " arrays"]:
    """Return which of some arrays are finite in all their numbers.

    They are asked one by one: a program for all of them together takes XLA long to compile.
    """
    leaves = jax.tree.leaves(arrays)
    is_in_memory = all(getattr(leaf, "is_fully_addressable", True) for leaf in leaves)
    if _limits.current().looks_on_host and is_in_memory:
        return np.array([_is_finite(leaf, np) for leaf in leaves])
    return np.array(jax.device_get([_is_finite_on_device(leaf) for leaf in leaves]))


def _is_finite(leaf: Array, numpy: Any = jnp) -> Any:
    is_integer = not jnp.issubdtype(leaf.dtype, jnp.inexact)
    return is_integer or numpy.isfinite(leaf).all()


_is_finite_on_device = jax.jit(_is_finite)


def stays_finite(before: np.ndarray, arrays: PyTree) -> bool:
    """Return whether arrays are finite, all but those that were not so before: these are meant so.

    Args:
        before: What `finite_arrays` returned before.
        arrays: The same arrays, later.
    """
    return bool(np.all(~before | finite_arrays(arrays)))


def good_steps(most: int, is_good: Callable[[int], bool]) -> int:
    """Return how many steps of a broken chunk come before the first one that is not to be made.

    Args:
        most: So many steps are known to be too many.
        is_good: Whether the first so many steps may be made.
    """
    return bisect.bisect_left(range(1, most), True, key=lambda steps: not is_good(steps))


def steps_with_finite_losses(chunk: list[Measurements]) -> int:
    """Return how many steps of a chunk come before the first loss that is not finite."""
    losses = np.concatenate([np.empty(0), *(call.measured.info["loss"] for call in chunk)])
    finite = np.isfinite(losses)
    return len(finite) if finite.all() else int(np.argmin(finite))


def step_of(chunk: list[Measurements], number: int) -> tuple[Measurements, int]:
    """Return the call that made a chunk's step, counted from 0, and which of its steps it is."""
    for call in chunk:
        if number < call.steps:
            return call, number
        number -= call.steps
    raise IndexError(number)


@eqx.filter_jit
def look(choices: Choices, state: TrainState, batch: PyTree) -> tuple[Array, Array, PyTree]:
    """Return a step's loss, the norm of its gradients, and what is finite, by what it is."""
    new_state, measured, grads = update(choices, state, batch)
    changed, _ = changing_part(choices, new_state)
    named = {
        ("the gradient of", ""): grads,
        ("after the step", ""): changed.model,
        ("after the step", "opt_state"): changed.opt_state,
        ("after the step", "model_state"): changed.model_state,
    }
    return measured.info["loss"], _norm(jax.tree.leaves(grads)), jax.tree.map(_is_finite, named)


def _norm(leaves: list[Array]) -> Array:
    """Return the Euclidean norm of some arrays; scaled, since their squares may overflow."""
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf), initial=0) for leaf in leaves]))
    scale = jnp.where(largest > 0, largest, 1)
    return scale * jnp.sqrt(sum(jnp.sum(jnp.abs(leaf / scale) ** 2) for leaf in leaves))
