"""Where numbers stop being finite: the steps of a chunk are made again, to find the first bad one.

The steps themselves do not look whether their numbers are finite: asked in the compiled loop, with
the old parameters kept by a select, that costs 15 to 33 % of the time on small batches. Instead the
host looks at each chunk's losses, and at the state after it. If they are not finite, it goes back
to the copy of the state before the chunk, and makes some of the steps again, to find the first
bad one by bisection.

A state that is too large to be copied is not: then the run ends at the end of the chunk.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree

from vernal._data.arrays import as_arrays
from vernal._training.measurements import Measurements, steps_of
from vernal._training.state import TrainState
from vernal._training.update import Choices, changing_part, update
from vernal.errors import DataError, NonFiniteError


@jax.jit
def finite_arrays(arrays: PyTree) -> Bool[Array, " arrays"]:
    """Return which of some arrays are finite in all their numbers."""
    return jnp.stack([_is_finite(leaf) for leaf in jax.tree.leaves(arrays)])


def _is_finite(leaf: Array) -> Array:
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return jnp.array(True)
    return jnp.all(jnp.isfinite(leaf))


def stays_finite(before: np.ndarray, arrays: PyTree) -> bool:
    """Return whether arrays are finite, all but those that were not so before: these are meant so.

    Args:
        before: What `finite_arrays` returned before.
        arrays: The same arrays, later.
    """
    return bool(np.all(~before | np.asarray(finite_arrays(arrays))))


def good_steps(bad: int, is_good: Callable[[int], bool]) -> int:
    """Return how many steps of a broken chunk come before the first one that is not to be made.

    Args:
        bad: So many steps are known to be too many.
        is_good: Whether the first so many steps may be made.
    """
    good = 0
    while bad - good > 1:
        middle = (good + bad) // 2
        if is_good(middle):
            good = middle
        else:
            bad = middle

    return good


def steps_with_finite_losses(chunk: list[Measurements]) -> int:
    """Return how many steps of a chunk come before the first loss that is not finite."""
    steps = 0
    for call in chunk:
        steps += call.finite_losses
        if call.finite_losses < call.steps:
            break
    return steps


@eqx.filter_jit
def _look(choices: Choices, state: TrainState, batch: PyTree) -> tuple[Array, Array, PyTree]:
    """Return a step's loss, the norm of its gradients, and what is finite, by what it is."""
    new_state, measured, grads = update(choices, state, batch)
    changed, _ = changing_part(choices, new_state)
    named = {
        "the gradient of ": grads,
        "after the step ": changed.model,
        "after the step opt_state": changed.opt_state,
        "after the step model_state": changed.model_state,
    }
    return measured.info["loss"], _norm(jax.tree.leaves(grads)), jax.tree.map(_is_finite, named)


def _norm(leaves: list[Array]) -> Array:
    """Return the Euclidean norm of some arrays; scaled, since their squares may overflow."""
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf), initial=0) for leaf in leaves]))
    scale = jnp.where(largest > 0, largest, 1)
    return scale * jnp.sqrt(sum(jnp.sum(jnp.abs(leaf / scale) ** 2) for leaf in leaves))


def grad_norm(choices: Choices, state: TrainState, batch: PyTree) -> float:
    """Return the norm of the gradients of one step."""
    return float(_look(choices, state, batch)[1])


def nonfinite_step(
    choices: Choices, state: TrainState, batch: PyTree, last_norm: float | None
) -> NonFiniteError:
    """Return the error for a step that is not to be made.

    Args:
        choices: The optimizer, the objective, and what is trained.
        state: The state before the step.
        batch: The step's batch.
        last_norm: The norm of the gradients of the step before, if there was one.
    """
    loss, norm, finite = jax.device_get(_look(choices, state, batch))
    norm = float(norm) if np.isfinite(norm) else last_norm
    problems = [] if np.isfinite(loss) else [f"the loss is {loss}"]
    path = None
    for what, tree in finite.items():
        flat, _ = jax.tree_util.tree_flatten_with_path(tree)
        bad = [jax.tree_util.keystr(keys) for keys, is_finite in flat if not is_finite]
        if bad and path is None:
            part = what.partition("step ")[2]  # "opt_state", "model_state", or "" for the model
            path = (part or type(state.model).__name__) + bad[0]
            problems.append(f"{what.removesuffix(part)}{path} is not finite")

    step, epoch = int(state.step), int(state.epoch)
    last = "" if norm is None else f" The norm of the last finite gradients is {norm:.3g}."
    message = (
        f"in step {step}, of epoch {epoch}, {', and '.join(problems) or 'a number is not finite'}."
        f"{_not_finite_in(batch)}{last}\n  Vernal did not make this step: the error's `state` is "
        "the one before it, its "
        f"`history` the record up to there.{_HINT}"
    )
    return NonFiniteError(message, update=step, epoch=epoch, path=path, grad_norm=norm, state=state)


def _not_finite_in(batch: PyTree) -> str:
    """Say which values of a batch are not finite, if some are."""
    try:
        as_arrays(batch, finite=True, aligned=False)
    except DataError as error:
        return f" Of its batch, {error.args[0].splitlines()[0]}"
    return ""


def nonfinite_chunk(chunk: list[Measurements]) -> NonFiniteError:
    """Return the error for a chunk that cannot be made again: no copy of the state was kept."""
    number = min(steps_with_finite_losses(chunk), steps_of(chunk) - 1)
    call, offset = step_of(chunk, number)
    step = call.first_step + offset
    epoch = call.epoch + int(np.sum(call.epoch_ends <= offset))
    loss = call.measured.info["loss"][offset]
    found = "the state is not finite" if np.isfinite(loss) else f"the loss is {loss}"
    message = (
        f"in step {step}, of epoch {epoch}, {found}.\n  The state is too large to be copied while "
        "it trains, so the error has no `state`: the last checkpoint is what there is. Its "
        f"`history` is the record up to the end of the chunk.{_HINT}"
    )
    return NonFiniteError(message, update=step, epoch=epoch, path=None, grad_norm=None, state=None)


_HINT = (
    "\n  Try a smaller learning rate, or optax.clip_by_global_norm(1.0) before the optimizer."
    '\n  Trainer(..., on_nonfinite="ignore") trains on regardless.'
)


def step_of(chunk: list[Measurements], number: int) -> tuple[Measurements, int]:
    """Return the call that made a chunk's step, counted from 0, and which of its steps it is."""
    for call in chunk:
        if number < call.steps:
            return call, number
        number -= call.steps
    raise IndexError(number)
