"""Many updates in one compiled call: the program."""

import functools
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import PyTree

from vernal._convolutions import channels_last
from vernal._jit import Packed, merge, pack, select
from vernal._nonfinite import breaks
from vernal._recompile import compiles
from vernal._update import OPTIONS, parts, update


class Program(NamedTuple):
    """All that is static in a compiled loop: what it is made of, and what it keeps."""

    structure: tuple  # of the state
    changing: tuple[bool, ...]  # which of the state's arrays an update changes
    kept: tuple  # of what is kept of each update: the treedef; shapes and dtypes
    capacity: int = 0  # the most updates of one call
    repeats: bool = False  # every update is on the same batch
    length: int = 0  # batches in an epoch, the tail included, if there are tails


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1, compiler_options=OPTIONS)
def run(
    program: Program,
    changing: list,
    fixed: list,
    choices: Packed,
    stack: tuple,
    place,
    count,
    step,
):
    """Make `count` updates from a place in a stack on; the trip count is a run-time value.

    Returns what changed, whether that stopped being finite, and for each array that is kept a
    buffer for `capacity` of them.
    """
    batches, tails, origin = stack
    state = Packed(merge(changing, fixed, program.changing), program.structure).unpack()
    batch = batches if program.repeats else jax.tree.map(lambda leaf: leaf[0], batches)
    held = {"batches at once": program.capacity, "batches an epoch": program.length, "tail": tails}
    compiles("fit", **parts(choices.unpack(), state, batch), **held)

    def updates(start, end, arrays, row, carry):
        """Make the updates `start` to `end`, the first of them on the batch in a row of arrays."""

        def at(i):
            if program.repeats:
                return arrays
            pick = lambda leaf: lax.dynamic_index_in_dim(leaf, row + i - start, keepdims=False)
            return jax.tree.map(pick, arrays)

        # The next batch is carried from turn to turn: sliced where it is used, it would be fused
        # with the arithmetic, and that be rounded in another way than in an update by itself.
        def body(i, carry):
            batch, changing, buffers = carry
            state = Packed(merge(changing, fixed, program.changing), program.structure).unpack()
            state = replace(state, step=step + i)
            state, measured = update(choices.unpack(), state, batch)
            changing, _ = select(pack(state).arrays, program.changing)
            put = lambda buffer, number: lax.dynamic_update_index_in_dim(buffer, number, i, 0)
            buffers = jax.tree.map(put, buffers, measured)
            return batch if program.repeats else at(i + 1), changing, buffers

        return lax.fori_loop(start, end, channels_last(body), (at(start), *carry))[1:]

    def epoch(i_and_carry):
        """What is left of an epoch: its full batches, then its tail."""
        i, carry = i_and_carry
        epoch, batch = jnp.divmod(place + i, program.length)
        full = program.length - 1
        tail = jnp.minimum(i + full - batch, count)
        end = jnp.minimum(tail + 1, count)
        carry = updates(i, tail, batches, epoch * full + batch - origin, carry)
        return end, updates(tail, end, tails, epoch, carry)

    treedef, kept = program.kept
    buffers = treedef.unflatten(
        [jnp.zeros((program.capacity, *shape), dtype) for shape, dtype in kept]
    )
    carry = changing, buffers
    if tails is None:
        new, buffers = updates(0, count, batches, place - origin, carry)
    else:
        more = lambda i_and_carry: i_and_carry[0] < count
        new, buffers = lax.while_loop(more, epoch, (jnp.int32(0), carry))[1]
    return new, breaks(changing, new), buffers


@jax.jit
def copied(arrays: PyTree) -> PyTree:
    """The same in arrays that may be given away."""
    return jax.tree.map(lambda leaf: jnp.array(leaf, dtype=leaf.dtype, copy=True), arrays)
