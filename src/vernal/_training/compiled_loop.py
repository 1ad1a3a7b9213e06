"""Many steps of training in one compiled call: those of `fit`, `epochs` and `step`.

The loop is a `while_loop` whose number of turns is known at run time only. Its body does not depend
on that number: so a step gives the same bits whether it is made alone, in a chunk, or in a resumed
run. See docs/architecture.md, "The same bits".
"""

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree

from vernal import _limits
from vernal._data.arrays import row_of
from vernal._members import at_once
from vernal._optimizers import strongly_typed
from vernal._products import with_turned_products
from vernal._shapes.jaxprs import holds
from vernal._sharding import kept_split
from vernal._training.compilation import compiles
from vernal._training.objective import Measured
from vernal._training.state import TrainState
from vernal._training.update import Choices, changing_part, update


class Inputs(NamedTuple):
    """What the steps of one call read and do not change.

    Attributes:
        choices: The optimizer, the objective, and what is trained.
        fixed: The part of the state that steps do not change.
        batches: Arrays with the leading axes (batch, example); or (example,) if `repeats`.
        last_batches: The smaller last batch of each pass; or `None`.
        counts: `[steps, first step, cursor, origin, pass length]`: how many steps to make, the
            number of the first, the cursor of its batch, the cursor of `batches[0]`, and the number
            of batches in a pass. One array, so that a device has it at once.
        capacity: The most steps of one call.
        repeats: Whether every step is made on the same batch.
        program: What users call the program: "fit" or "step".
    """

    choices: Choices
    fixed: TrainState
    batches: PyTree
    last_batches: PyTree
    counts: np.ndarray | list
    capacity: int
    repeats: bool
    program: str


def steps(inputs: Inputs, changing: TrainState) -> tuple[TrainState, Measured]:
    """Make steps from a place in a superbatch on.

    Args:
        inputs: What the steps read.
        changing: The part of the state that steps change.

    Returns:
        What changed; and for each array that a step measures a buffer for `capacity` of them.
    """
    choices, fixed = inputs.choices, inputs.fixed
    count, first_step, cursor, origin, pass_length = inputs.counts
    some_batch = inputs.batches if inputs.repeats else row_of(inputs.batches, 0)
    compiles(
        inputs.program,
        batch=some_batch,
        state=eqx.combine(changing, fixed),
        choices=choices,
        batches_at_once=inputs.capacity,
        last_batches=inputs.last_batches,
    )

    def one_step(
        batch: PyTree, i: Array, changing: TrainState, fixed: TrainState = fixed
    ) -> tuple[TrainState, Measured]:
        state = replace(eqx.combine(changing, fixed), step=first_step + i)
        state, measured, _ = update(choices, state, batch)
        return changing_part(choices, state)[0], measured._replace(model_state=None)

    def step_of_members(
        batch: PyTree, i: Array, changing: TrainState
    ) -> tuple[TrainState, Measured]:
        return at_once(choices.members, one_step, batch, i, changing, fixed)

    # Traced once for each shape of batch: here, where the way to the model is short, for the shapes
    # of what is measured. The loops below use the same trace.
    step = jax.jit(one_step if choices.members is None else step_of_members, inline=True)
    if inputs.last_batches is not None:
        jax.eval_shape(step, row_of(inputs.last_batches, 0), count, changing)
    jaxpr, (_, shapes) = jax.make_jaxpr(step, return_shape=True)(some_batch, count, changing)
    if choices.members is None:  # of many models at once XLA's own way is the faster
        step = with_turned_products(step)
    limits = _limits.current()
    has_convolution = holds(jaxpr.jaxpr, "conv_general_dilated")
    loops = inputs.capacity > 1 or limits.loops_convolutions or not has_convolution
    buffers = jax.tree.map(lambda s: jnp.zeros((inputs.capacity, *s.shape), s.dtype), shapes)

    def run(start: Array, stop: Array, rows: PyTree, first_row: Array, carry: tuple) -> tuple:
        """Make the steps `start` to `stop`, the first of them on one row of some arrays."""

        def turn(carry: tuple) -> tuple:
            i, changing, buffers = carry
            batch = rows if inputs.repeats else row_of(rows, first_row + i - start)
            # Where there is a single batch, XLA would compute what depends on it alone outside of
            # the loop, and round it otherwise. It must not know that the batch stays the same.
            i, batch = lax.optimization_barrier((i, batch))
            changing, measured = step(batch, i, changing)
            buffers = jax.tree.map(
                lambda buffer, value: lax.dynamic_update_index_in_dim(buffer, value, i, 0),
                buffers,
                measured,
            )
            return i + 1, changing, buffers

        carry = start, *carry
        if not loops:
            return turn(carry)[1:]
        # Before each turn of a loop an accelerator asks the host whether the loop is over. So most
        # steps are made several a turn, within which it need not ask.
        several = limits.steps_per_turn
        if several > 1:
            carry = lax.while_loop(
                lambda carry: carry[0] + several <= stop,
                lambda carry: lax.fori_loop(0, several, lambda _, carry: turn(carry), carry),
                carry,
            )
        return lax.while_loop(lambda carry: carry[0] < stop, turn, carry)[1:]

    def one_pass(carry: tuple) -> tuple:
        """Make the steps of what is left of a pass: its full batches, then the last one."""
        i, *rest = carry
        data_pass, batch = jnp.divmod(cursor + i, pass_length)
        full_batches = pass_length - 1
        last = jnp.minimum(i + full_batches - batch, count)
        stop = jnp.minimum(last + 1, count)
        row = data_pass * full_batches + batch - origin
        rest = run(i, last, inputs.batches, row, tuple(rest))
        return stop, *run(last, stop, inputs.last_batches, data_pass, rest)

    zero = jnp.int32(0)
    if inputs.last_batches is None:
        made = run(zero, count, inputs.batches, cursor - origin, (changing, buffers))
    else:
        carry = zero, changing, buffers
        made = lax.while_loop(lambda carry: carry[0] < count, one_pass, carry)[1:]
    return kept_split(choices.shardings, made[0]), made[1]


# Many steps, in the buffers of the state that they change.
run_steps: Any = eqx.filter_jit(steps, donate="all-except-first")


def step_by_loop(
    choices: Choices, state: TrainState, batch: PyTree
) -> tuple[TrainState, dict[str, Array]]:
    """Make one step by the same loop; the state before it stays valid.

    Returns:
        The state after the step; and what was measured, by name.
    """
    # A program does not depend on a loader's state.
    if state.data_state is not None:
        after, info = step_by_loop(choices, replace(state, data_state=None), batch)
        return replace(after, data_state=state.data_state), info
    # Flat lists, for a call of `eqx.filter_jit` takes longer than a small step, and waits for it.
    # The number of steps comes from outside: of a loop with a known one XLA makes another program.
    leaves, structure = jax.tree.flatten((state, choices, batch))
    others = tuple(None if eqx.is_array(leaf) else leaf for leaf in leaves)
    arrays, info = _run_one_step(_arrays(leaves), others, structure, np.int32(1))
    return structure.children()[0].unflatten(_filled(arrays, others)), info


def _arrays(leaves: list) -> list:
    """Return the leaves that are arrays, and `None` in place of the others."""
    return [leaf if eqx.is_array(leaf) else None for leaf in leaves]


def _filled(arrays: list, others: tuple) -> list:
    """Put the others in; if there are too few arrays, they are those of the first leaves."""
    return [o if array is None else array for array, o in zip(arrays, others, strict=False)]


@partial(jax.jit, static_argnums=(1, 2))
def _run_one_step(
    arrays: list, others: tuple, structure: Any, count: Any
) -> tuple[list, dict[str, Array]]:
    state, choices, batch = structure.unflatten(_filled(arrays, others))
    changing, fixed = changing_part(choices, state)
    counts = [count, jnp.asarray(state.step), 0, 0, 1]
    inputs = Inputs(choices, fixed, batch, None, counts, capacity=1, repeats=True, program="step")
    changing, measured = steps(inputs, jax.tree.map(strongly_typed, changing))

    after = replace(
        eqx.combine(changing, fixed),
        step=state.step + 1,
        epoch_step=state.epoch_step + 1,
        batch=state.batch + 1,
    )
    info = {name: values[0] for name, values in measured.info.items()}
    return _arrays(jax.tree.leaves(after)), info
