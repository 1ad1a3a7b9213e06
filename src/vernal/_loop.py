"""Many updates in one compiled call."""

import functools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import PyTree

from vernal._data import Source, Stack
from vernal._jit import Packed, merge, pack, select
from vernal._recompile import compiles
from vernal._state import TrainState, counts, put_counts
from vernal._update import Choices, parts, update

# A stack of one batch that repeats, the full batch, has room for so many updates a call: enough
# that a call of the smallest model takes some 20 ms, so little that the buffer costs nothing.
_REPEATS = 2**14
# How long a chunk of updates should take: long enough that Python's part does not show, short
# enough that a progress bar moves and Ctrl-C is heard.
_SECONDS = 0.1
# The first chunk's products of parameters and data; a core makes some 10⁹ of them a second.
_FIRST_WORK = 3 * 10**8


class _Program(NamedTuple):
    """All that is static in a compiled loop: what it is made of, and what it keeps."""

    structure: tuple  # of the state
    changing: tuple[bool, ...]  # which of the state's arrays an update changes
    scalars: tuple[tuple[str, np.dtype], ...]  # to keep of each update: name and dtype
    weighted: bool  # keep each batch's weight, too
    capacity: int = 0  # the most updates of one call
    repeats: bool = False  # every update is on the same batch
    length: int = 0  # batches in an epoch, the tail included, if there are tails


# XLA's CPU compiler would make a single kernel of a loop of few numbers: faster, but it contracts
# products and sums in another order there than in an update by itself.
_OPTIONS = {"xla_disable_hlo_passes": "small-while-loop-hoisting"}


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1, compiler_options=_OPTIONS)
def _run(
    program: _Program,
    changing: list,
    fixed: list,
    choices: Packed,
    stack: tuple,
    place,
    count,
    step,
):
    """Make `count` updates from a place in a stack on; the trip count is a run-time value.

    Returns what changed, and a buffer of `capacity` numbers for each scalar that is kept.
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
            state, *measured = update(choices.unpack(), state, batch)
            changing, _ = select(pack(state).arrays, program.changing)
            put = lambda buffer, number: lax.dynamic_update_index_in_dim(buffer, number, i, 0)
            buffers = jax.tree.map(put, buffers, tuple(measured))
            return batch if program.repeats else at(i + 1), changing, buffers

        return lax.fori_loop(start, end, body, (at(start), *carry))[1:]

    def epoch(i_and_carry):
        """What is left of an epoch: its full batches, then its tail."""
        i, carry = i_and_carry
        epoch, batch = jnp.divmod(place + i, program.length)
        full = program.length - 1
        tail = jnp.minimum(i + full - batch, count)
        end = jnp.minimum(tail + 1, count)
        carry = updates(i, tail, batches, epoch * full + batch - origin, carry)
        return end, updates(tail, end, tails, epoch, carry)

    buffer = lambda dtype: jnp.zeros(program.capacity, dtype)
    values = {name: buffer(dtype) for name, dtype in program.scalars}
    weights = buffer(jnp.float32) if program.weighted else None
    carry = changing, (values, weights)
    if tails is None:
        return updates(0, count, batches, place - origin, carry)
    more = lambda i_and_carry: i_and_carry[0] < count
    return lax.while_loop(more, epoch, (jnp.int32(0), carry))[1]


@jax.jit
def _copy(arrays: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.array(leaf, dtype=leaf.dtype, copy=True), arrays)


@dataclass(frozen=True)
class Records:
    """What consecutive updates on one stack measured; arrays may still be on their way."""

    stack: Stack
    place: int  # the first update's place in the stack
    updates: int
    values: dict[str, Any]  # name -> one value an update, JAX's and then NumPy's
    weights: Any  # each batch's weight, if it is not its number of examples

    def fetched(self) -> "Records":
        """The same as NumPy arrays, cut to the updates that were made."""
        # A copy: a view of a few numbers would keep the whole buffer.
        cut = lambda buffer: np.array(np.asarray(buffer)[: self.updates])
        values, weights = jax.tree.map(cut, (self.values, self.weights))
        return replace(self, values=values, weights=weights)


def _first_guess(changing: list, stack: Stack) -> int:
    """How many updates to make before there is one to measure: some milliseconds' worth.

    Taking every number that an update changes once with every number of a batch overestimates
    what layers do that share no weights, and is about right for those that do.
    """
    batch = sum(leaf.size // len(leaf) for leaf in jax.tree.leaves(stack.batches)) * (
        stack.size if stack.repeats else 1
    )
    return max(1, _FIRST_WORK // (1 + sum(leaf.size for leaf in changing) * batch))


class Loop:
    """A run in progress: what changes, in buffers that each call gives away and gets anew.

    The arrays of the packed state that it is made from stay the caller's, and so do those that
    `state` returns. `info` and `weighted` say what an update measures.
    """

    def __init__(
        self,
        choices: Choices,
        state: Packed,
        source: Source,
        info: dict,
        weighted: bool,
    ):
        self._step, epoch, batch = counts(state.arrays)
        self._source = source
        self._stacks = source.stacks(epoch, batch)
        self._stack = next(self._stacks)
        self._place = self._stack.first  # in the stack
        # The model's leaves come first, then the optimizer's, and then three counts and the key.
        leaves = zip(choices.trained, state.structure[1], strict=False)
        picks = [trained for trained, static in leaves if static is None]
        picks += [True] * (len(state.arrays) - 4 - len(picks)) + [False] * 4
        changing, self._fixed = select(state.arrays, tuple(picks))
        self._changing = _copy(changing)
        self._choices = pack(choices)
        scalars = tuple((name, np.dtype(info[name].dtype)) for name in sorted(info))
        self._program = _Program(state.structure, tuple(picks), scalars, weighted)
        self._queued: list[Records] = []  # the chunk under way
        self._updates = _first_guess(changing, self._stack)  # to make in the next one
        self._fetched_at = time.perf_counter()

    @property
    def place(self) -> tuple[int, int]:
        """The place in the data: epochs completed, and updates made since."""
        epochs, batch = divmod(self._place, self._stack.length)
        return self._stack.epoch + epochs, batch

    def updates_to(self, epoch: int) -> int | None:
        """How many updates there are to the start of an epoch; `None` if that is not known."""
        now, batch = self.place
        known = self._source.length < sys.maxsize
        return (epoch - now) * self._source.length - batch if known else None

    def model(self) -> PyTree:
        """The model here and now, until the next chunk."""
        return self._state(self._changing).model

    def state(self) -> TrainState:
        """The state here and now, in arrays of its own."""
        return self._state(_copy(self._changing))

    def finish(self) -> TrainState:
        """The state at the end: the loop gives its arrays away, and makes no more updates."""
        return self._state(self._changing)

    def _state(self, changing: list) -> TrainState:
        arrays = merge(changing, self._fixed, self._program.changing)
        put_counts(arrays, self._step, *self.place)
        # Unpacking is much faster than making a module anew.
        return Packed(arrays, self._program.structure).unpack()

    def chunks(
        self, until_epoch: int, stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[list[Records]]:
        """Train to the start of an epoch, or until it is stopped, in chunks of about `_SECONDS`.

        While the records of a chunk are looked at, the device is busy with the next one.
        """
        while self.place[0] < until_epoch and not stopped():
            before, self._queued, left = self._queued, [], self._updates
            while left > 0 and self.place[0] < until_epoch:
                self._queued.append(self._call(left, until_epoch))
                left -= self._queued[-1].updates
            yield self._fetch(before)
        yield self.drain()

    def drain(self) -> list[Records]:
        """Wait for what is queued, and return its records."""
        before, self._queued = self._queued, []
        return self._fetch(before)

    def _fetch(self, queued: list[Records]) -> list[Records]:
        fetched = [records.fetched() for records in queued]
        now = time.perf_counter()
        updates = sum(records.updates for records in queued)
        if updates:
            self._updates = max(1, int(updates * _SECONDS / (now - self._fetched_at)))
        self._fetched_at = now
        return fetched

    def _call(self, updates: int, until_epoch: int) -> Records:
        """Queue one compiled call: at most so many updates, to the end of the stack or sooner."""
        if self._place == self._stack.end:
            self._stack = next(self._stacks)
            self._place = self._stack.first
        stack, place = self._stack, self._place
        capacity = _REPEATS if stack.repeats else stack.capacity
        to_epoch = (until_epoch - stack.epoch) * stack.length
        updates = min(updates, capacity, min(stack.end, to_epoch) - place)
        program = self._program._replace(
            capacity=capacity, repeats=stack.repeats, length=stack.length if stack.tails else 0
        )
        self._changing, (values, weights) = _run(
            program,
            self._changing,
            self._fixed,
            self._choices,
            (stack.batches, stack.tails, np.int32(stack.origin)),
            *(np.int32(0 if stack.repeats else place), np.int32(updates), np.int32(self._step)),
        )
        self._step += updates
        self._place += updates
        return Records(stack, place, updates, values, weights)
