"""Where numbers stop being finite: found by looking once more, when it is known that they do."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree

from vernal._training.jit import Packed, pack
from vernal._training.state import TrainState
from vernal._training.update import Choices, gradients_and_update
from vernal.errors import NonFiniteError


def is_finite(leaf: Array) -> Array:
    """Whether all of an array is finite."""
    return jnp.all(_finite_numbers(leaf))


def _finite_numbers(leaf: Array) -> Array:
    """Which numbers of an array are finite; what holds no floats always is."""
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return jnp.ones(leaf.shape, bool)
    return jnp.isfinite(leaf)


@jax.jit
def all_finite(leaves: list[Array]) -> Array:
    """Which of some arrays are finite in all their numbers."""
    alike: dict[Any, list[int]] = {}
    for place, leaf in enumerate(leaves):
        alike.setdefault(leaf.shape, []).append(place)
    found = [jnp.array(True)] * len(leaves)
    for shape, places in alike.items():
        # Those of a shape at once: parameters and what an optimizer keeps of each. It takes half
        # of the time, to compile and to run.
        numbers = [_finite_numbers(leaves[place]) for place in places]
        both = lambda a, b: [x & y for x, y in zip(a, b, strict=True)]
        whole = lax.reduce(numbers, [np.True_] * len(places), both, tuple(range(len(shape))))
        for place, finite in zip(places, whole, strict=True):
            found[place] = finite
    return jnp.stack(found)


@jax.jit
def _looked_at(choices: Packed, state: Packed, batch: PyTree):
    """The loss, the gradients' norm, and what is finite: by path, of what an update makes."""
    before = state.unpack()
    measured, grads, opt_state, params = gradients_and_update(choices.unpack(), before, batch)
    finite = {
        "the gradient of ": jax.tree.map(is_finite, grads),
        "after the update ": jax.tree.map(is_finite, params),
        "after the update opt_state": jax.tree.map(is_finite, opt_state),
        "after the update model_state": jax.tree.map(is_finite, measured.model_state),
    }
    return measured.info["loss"], _norm(jax.tree.leaves(grads)), finite


def _norm(leaves: list[Array]) -> Array:
    # Scaled: the squares of what is about to overflow would do so already.
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf), initial=0) for leaf in leaves]))
    scale = jnp.where(largest > 0, largest, 1)
    return scale * jnp.sqrt(sum(jnp.sum(jnp.abs(leaf / scale) ** 2) for leaf in leaves))


def grad_norm(choices: Choices, state: TrainState, batch: PyTree) -> float:
    """The norm of the gradients of one update."""
    return float(_looked_at(pack(choices), pack(state), batch)[1])


def nonfinite(
    choices: Choices, state: TrainState, batch: PyTree, norm: float | None
) -> NonFiniteError:
    """The error for an update that is not to be made.

    **Arguments:**

    - `state`, `batch`: what the update would be made from.
    - `norm`: that of the gradients of the update before, if it is known.
    """
    loss, own_norm, finite = jax.device_get(_looked_at(pack(choices), pack(state), batch))
    norm = float(own_norm) if np.isfinite(own_norm) else norm
    name = type(state.model).__name__
    bad = [
        (what, jax.tree_util.keystr(path))
        for what, tree in finite.items()
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
        if not leaf
    ]
    path, found = None, [] if np.isfinite(loss) else [f"the loss is {loss}"]
    if bad:
        what, path = bad[0]
        of_state = what.partition("update ")[2]  # "opt_state" or "model_state"
        path = (of_state or name) + path
        found.append(f"{what.removesuffix(of_state)}{path} is not finite")
    update, epoch = int(state.step), int(state.epoch)
    last = "" if norm is None else f" The norm of the last finite gradients is {norm:.3g}."
    message = (
        f"in update {update}, of epoch {epoch}, {', and '.join(found) or 'a number is not finite'}."
        f"{last}\n  The update was not made: the error's `state` is the one before it, `history` "
        "the record up to there."
        "\n  Try a smaller learning rate, or optax.clip_by_global_norm(1.0) before the optimizer."
        '\n  Trainer(..., on_nonfinite="ignore") trains on regardless.'
    )
    return NonFiniteError(
        message, update=update, epoch=epoch, path=path, grad_norm=norm, state=state
    )
