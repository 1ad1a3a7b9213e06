"""Many updates in one compiled call: the program."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vernal._training.compilation import compiles
from vernal._training.jit import Packed, jit_updates, merge, pack, select
from vernal._training.update import parts, update


class Program(NamedTuple):
    """All that is static in a compiled loop: what it is made of, and what it keeps."""

    structure: tuple  # of the state
    changing: tuple[bool, ...]  # which of the state's arrays an update changes
    kept: tuple  # of what is kept of each update: the treedef; shapes and dtypes
    loops: bool  # or else there are a few updates, and no loop
    unroll: int  # updates a turn of the loop, or a call without one
    capacity: int = 0  # the most updates of one call
    repeats: bool = False  # every update is on the same batch
    length: int = 0  # batches in an epoch, the tail included, if there are tails


@functools.partial(jit_updates, static_argnums=0, donate_argnums=1)
def run(
    program: Program,
    changing: list,
    fixed: list,
    choices: Packed,
    stack: tuple,
    numbers,
):
    """Make `count` updates from a place in a stack on; the trip count is a run-time value.

    `numbers` are the stack's origin, the place, the count and the step, in one array: a device with
    memory of its own has it sooner than four.

    Returns what changed, and for each array that is kept a buffer for `capacity` of them.
    """
    (batches, tails), (origin, place, count, step) = stack, numbers
    state = Packed(merge(changing, fixed, program.changing), program.structure).unpack()
    batch = batches if program.repeats else jax.tree.map(lambda leaf: leaf[0], batches)
    held = {"batches at once": program.capacity, "batches an epoch": program.length, "tail": tails}
    compiles("fit", **parts(choices.unpack(), state, batch), **held)

    def updates(start, end, arrays, row, carry, unroll=1):
        """Make the updates `start` to `end`, the first of them on the batch in a row of arrays."""

        def at(i):
            if program.repeats:
                return arrays
            pick = lambda leaf: lax.dynamic_index_in_dim(leaf, row + i - start, keepdims=False)
            return jax.tree.map(pick, arrays)

        @functools.partial(jax.jit, inline=True)  # traced once, however often it is written
        def one(i, changing, buffers):
            # A fence: what is before an update must not be fused with its arithmetic, which would
            # be rounded in another way than in an update by itself.
            batch, changing, buffers = lax.optimization_barrier((at(i), changing, buffers))
            state = Packed(merge(changing, fixed, program.changing), program.structure).unpack()
            state = replace(state, step=step + i)
            state, measured = update(choices.unpack(), state, batch)
            changing, _ = select(pack(state).arrays, program.changing)
            put = lambda buffer, number: lax.dynamic_update_index_in_dim(buffer, number, i, 0)
            return i + 1, changing, jax.tree.map(put, buffers, measured)

        carry = start, *carry
        if not program.loops:
            return repeated(one, unroll, carry)[1:]
        for several in sorted({unroll, 1}, reverse=True):
            more = lambda carry, n=several: carry[0] + n <= end
            carry = lax.while_loop(more, functools.partial(repeated, one, several), carry)
        return carry[1:]

    def epoch(i_and_carry):
        """What is left of an epoch: its full batches, then its tail."""
        i, carry = i_and_carry
        epoch, batch = jnp.divmod(place + i, program.length)
        full = program.length - 1
        tail = jnp.minimum(i + full - batch, count)
        end = jnp.minimum(tail + 1, count)
        carry = updates(i, tail, batches, epoch * full + batch - origin, carry, program.unroll)
        return end, updates(tail, end, tails, epoch, carry)

    treedef, kept = program.kept
    buffers = treedef.unflatten(
        [jnp.zeros((program.capacity, *shape), dtype) for shape, dtype in kept]
    )
    carry = changing, buffers
    if tails is None:
        return updates(0, count, batches, place - origin, carry, program.unroll)
    more = lambda i_and_carry: i_and_carry[0] < count
    return lax.while_loop(more, epoch, (jnp.int32(0), carry))[1]


def repeated(one: Callable, times: int, carry: tuple) -> tuple:
    """Make several updates, one after the other."""
    if times == 1 or jax.default_backend() == "cpu":
        return functools.reduce(lambda carry, _: one(*carry), range(times), carry)
    # An accelerator need not ask the host whether a loop of a known number of turns is over.
    return lax.fori_loop(0, times, lambda _, carry: one(*carry), carry)


@jax.jit
def copied(arrays: list) -> list:
    """The same in arrays that may be given away."""
    return [jnp.array(leaf, dtype=leaf.dtype, copy=True) for leaf in arrays]
