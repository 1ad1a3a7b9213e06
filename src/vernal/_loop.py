"""A run: chunk after chunk of updates, each a compiled call or several."""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from vernal import _pace
from vernal._data import Source
from vernal._errors import NonFiniteError
from vernal._jit import Packed, merge, pack, select
from vernal._measure import Measured
from vernal._nonfinite import all_finite, grad_norm, nonfinite
from vernal._program import Program, copied, run
from vernal._records import Records
from vernal._stack import Stack
from vernal._state import TrainState, counts, put_counts, with_data_state
from vernal._update import Choices, learning_rate_at


@dataclass
class _Chunk:
    """Consecutive calls whose records are looked at together."""

    # What changes, as it was before, to go back to, and the place; or not kept.
    start: list | None = None
    at: tuple[int, Stack, int] | None = None
    finite: Any = None  # which of that was finite; `None` before it is looked at
    records: list[Records] = field(default_factory=list)
    seconds: float = 0.0  # that queuing the calls took


class Loop:
    """A run in progress: what changes, in buffers that each call gives away and gets anew.

    The arrays of the packed state that it is made from stay the caller's, and so do those that
    `state` returns.

    **Arguments:**

    - `measured`: the shapes of what an update measures.
    - `saves`: whether `saved` will be asked for.
    - `every`: a chunk ends after each update whose number is a multiple of this, at the latest.
    - `rewinds`: whether to go back, and raise, when numbers stop being finite. The updates
      themselves do not look, which would cost more than 2 % of their time: it is looked at each
      chunk's losses, and at the state after it. If they are not finite, the chunk is made again,
      in parts, to find the update.
    """

    def __init__(
        self,
        choices: Choices,
        state: Packed,
        source: Source,
        measured: Measured,
        rewinds: bool,
        saves: bool = False,
        every: int = sys.maxsize,
    ):
        self._step, epoch, batch = counts(state.arrays)
        self._source = source
        self._stacks = source.stacks(epoch, batch)
        self._stack = next(self._stacks)
        self._place = self._stack.first  # in the stack
        # The model's leaves come first; then its state, the optimizer's, three counts and the key.
        leaves = zip(choices.trained, state.structure[1], strict=False)
        picks = [trained for trained, static in leaves if static is None]
        picks += [True] * (len(state.arrays) - 4 - len(picks)) + [False] * 4
        changing, self._fixed = select(state.arrays, tuple(picks))
        self._choices, self._packed_choices = choices, pack(choices)
        work = _pace.work(changing, self._stack)
        unroll = _pace.unroll(work, source.loops, self._stack)
        kept = _kept(measured, state)
        self._program = Program(state.structure, tuple(picks), kept, source.loops, unroll)
        self._rewinds, self._every = rewinds, every
        self._keeps = rewinds or saves
        # Where chunks begin with a copy, the first goes back to the caller's own arrays.
        self._changing = changing if self._keeps else copied(changing)
        self._seconds = _pace.seconds(changing) if self._keeps else _pace.SECONDS
        self._queued = _Chunk()  # the chunk under way
        # To make in the next one.
        self._updates = max(1, _pace.FIRST_WORK // max(work, _pace.LEAST_WORK))

    @property
    def place(self) -> tuple[int, int]:
        """The place in the data: epochs completed, and updates made since."""
        return self._stack.place(self._place)

    def measures(self, validates: bool) -> list[str]:
        """The names of what is recorded of an epoch."""
        names = [*jax.tree.unflatten(self._program.kept[0], self._program.kept[1])[0]]
        measured = [name for name in names if name != "learning_rate"]
        return names + ([f"val_{name}" for name in measured] if validates else [])

    @property
    def averages(self) -> Any:
        """The treedef of what the metrics that are no averages are made from, of each update."""
        treedef, kept = self._program.kept
        return jax.tree.structure(treedef.unflatten(range(len(kept)))[2])

    @property
    def length(self) -> int | None:
        """Batches in an epoch, if that is known."""
        return self._source.length if self._source.length < sys.maxsize else None

    def updates_to(self, epoch: int) -> int | None:
        """How many updates there are to the start of an epoch; `None` if that is not known."""
        now, batch = self.place
        return None if self.length is None else (epoch - now) * self.length - batch

    def models(self) -> tuple[PyTree, PyTree]:
        """The model and its state here and now, until the next chunk."""
        state = self._state(self._changing, self._step, self._stack, self._place)
        return state.model, state.model_state

    def state(self) -> TrainState:
        """The state here and now, in arrays of its own."""
        return self._state(copied(self._changing), self._step, self._stack, self._place)

    def saved(self) -> TrainState:
        """The state that the records handed out so far have led to, to be read and not changed."""
        chunk = self._queued
        if chunk.start is None or chunk.at is None:  # nothing is under way
            return self.state()
        return self._state(chunk.start, *chunk.at)

    def finish(self) -> TrainState:
        """The state at the end: the loop gives its arrays away, and makes no more updates."""
        return self._state(self._changing, self._step, self._stack, self._place)

    @property
    def intact(self) -> bool:
        """Whether the state is there: not if a compiled call took its arrays, and failed."""
        return not any(leaf.is_deleted() for leaf in self._changing)

    def _state(self, changing: list, step: int, stack: Stack, place: int) -> TrainState:
        arrays = merge(changing, self._fixed, self._program.changing)
        put_counts(arrays, step, *stack.place(place))
        # Unpacking is much faster than making a module anew.
        state = Packed(arrays, self._program.structure).unpack()
        return with_data_state(state, stack.mark_at(place))

    def chunks(
        self, until_epoch: int, stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[list[Records]]:
        """Train to the start of an epoch, or until it is stopped, in chunks of about 0.1 s.

        While the records of a chunk are looked at, the device is busy with the next one.

        **Raises:** `NonFiniteError`, without a history, after the records before it; and what a
        loader raises, after the updates on the batches before.
        """
        failure = None
        while self.place[0] < until_epoch and not stopped() and failure is None:
            before, self._queued = self._queued, self._begun()
            left = min(self._updates, self._every - self._step % self._every)
            stack, held, began = None, 0, time.perf_counter()
            while left > 0 and held < _pace.HELD_BYTES and self.place[0] < until_epoch:
                try:
                    self._next_stack()
                except Exception as error:
                    failure = error
                    break
                records = self._call(left, until_epoch)
                self._queued.records.append(records)
                left -= records.updates
                held += 0 if records.stack is stack else records.stack.nbytes
                stack = records.stack
                self._queued.seconds = time.perf_counter() - began
                if self._queued.seconds > self._seconds:  # it is the batches that take long
                    break
            yield from self._fetch(before, self._queued.finite)
        yield from self.drain()
        if failure is not None:
            raise failure

    def drain(self) -> Iterator[list[Records]]:
        """Wait for what is queued, and return its records."""
        before, self._queued = self._queued, _Chunk()
        looked_at = self._rewinds and before.records
        yield from self._fetch(before, all_finite(self._changing) if looked_at else None)

    def _begun(self) -> _Chunk:
        """A new chunk. What changes is kept to go back to, where there is a need, and copied."""
        if not self._keeps:
            return _Chunk()
        start = self._changing
        # Only what updates have made: a run's first one need not wait for what it began with.
        looked_at = self._rewinds and self._queued.records
        finite = all_finite(start) if looked_at else None
        self._changing = copied(start)
        return _Chunk(start, (self._step, self._stack, self._place), finite)

    def _fetch(self, chunk: _Chunk, finite: Any) -> Iterator[list[Records]]:
        """Wait for a chunk's records; and for which numbers are finite after it, if looked at."""
        began = time.perf_counter()
        fetched = [records.fetched() for records in chunk.records]
        # What the chunk took: to queue it, and to wait for it. It was more, if it ended while the
        # next one was queued; so chunks grow little by little.
        seconds = chunk.seconds + time.perf_counter() - began
        updates = sum(records.updates for records in fetched)
        if updates:
            self._updates = max(1, int(updates * min(_pace.GROWTH, self._seconds / seconds)))
        if chunk.start is not None and finite is not None:
            losses = all(records.finite_losses == records.updates for records in fetched)
            before = all_finite(chunk.start) if chunk.finite is None else chunk.finite
            if not losses or _breaks(before, finite):
                whole, good, error = self._first_bad(chunk.start, before, fetched)
                yield [*fetched[:whole], fetched[whole].first(good)]
                raise error
        yield fetched

    def _next_stack(self) -> None:
        """Go on to the next stack, at the end of one."""
        if self._place == self._stack.end:
            self._stack = next(self._stacks)
            self._place = self._stack.first

    def _call(self, updates: int, until_epoch: int) -> Records:
        """Queue one compiled call: at most so many updates, to the end of the stack or sooner."""
        stack, place, step = self._stack, self._place, self._step
        to_epoch = (until_epoch - stack.epoch) * stack.length
        room = min(min(stack.end, to_epoch) - place, self._every - step % self._every)
        # Better a call of twice the length than two. Without a loop, a call has its own number.
        few = self._source.loops and room >= 2 * updates
        updates = self._at_once(stack, place, updates if few else room)
        self._changing, kept = self._run(self._changing, stack, place, updates, step)
        self._step += updates
        self._place += updates
        return Records(stack, place, updates, step, *kept)

    def _at_once(self, stack: Stack, place: int, most: int) -> int:
        """How many updates from a place on one compiled call makes: no more than `most`."""
        if self._source.loops:
            return min(most, self._capacity(stack))
        several = self._program.unroll
        return several if several <= min(most, stack.before_tail(place)) else 1

    def _capacity(self, stack: Stack) -> int:
        """How many updates one call of a loop has room for."""
        return _pace.REPEATS if stack.repeats else stack.capacity

    def _run(self, changing: list, stack: Stack, place: int, updates: int, step: int):
        """Give what changes to the compiled program, for so many updates from a place on."""
        batches, tails, origin = stack.batches, stack.tails, stack.origin
        program = self._program
        if stack.repeats:
            place = 0
        elif not program.loops:
            (batches, place), tails, origin = stack.row(place), None, 0
        if program.loops:
            program = program._replace(capacity=self._capacity(stack))
        else:
            program = program._replace(capacity=updates, unroll=updates)
        program = program._replace(
            repeats=stack.repeats, length=0 if tails is None else stack.length
        )
        return run(
            program,
            changing,
            self._fixed,
            self._packed_choices,
            (batches, tails, np.int32(origin)),
            *(np.int32(place), np.int32(updates), np.int32(step)),
        )

    def _first_bad(
        self, start: list, finite: Any, made: list[Records]
    ) -> tuple[int, int, NonFiniteError]:
        """How many records, and updates of the next, are good; and the error of the one after."""

        def again(arrays: list, records: Records, updates: int) -> list:
            """What so many of some records' updates make of what changes."""
            arrays, made = copied(arrays) if updates else arrays, 0
            while made < updates:
                place = records.place + made
                several = self._at_once(records.stack, place, updates - made)
                at = (records.stack, place, several, records.step + made)
                arrays, made = self._run(arrays, *at)[0], made + several
            return arrays

        def after(arrays: list, records: Records, updates: int) -> tuple[TrainState, PyTree]:
            """The state after so many of some records' updates, and the batch that comes next."""
            place, step = records.place + updates, records.step + updates
            arrays = again(arrays, records, updates)
            return self._state(arrays, step, records.stack, place), records.stack.batch(place)

        def breaks(start: list, records: Records, updates: int) -> bool:
            if updates > records.finite_losses:
                return True
            return _breaks(finite, all_finite(again(start, records, updates)))

        # 1. The first records that end badly. Their updates come out as they did: there are some.
        whole, before = 0, start
        while not breaks(start, made[whole], made[whole].updates):
            before, start = start, again(start, made[whole], made[whole].updates)
            whole += 1
        records = made[whole]
        # 2. After `good` of their updates all is well; after `bad` it is not.
        good, bad = 0, records.updates
        while bad - good > 1:
            middle = (good + bad) // 2
            good, bad = (good, middle) if breaks(start, records, middle) else (middle, bad)
        norm = None
        if good:
            norm = grad_norm(self._choices, *after(start, records, good - 1))
        elif whole:
            latest = made[whole - 1]
            norm = grad_norm(self._choices, *after(before, latest, latest.updates - 1))
        return whole, good, nonfinite(self._choices, *after(start, records, good), norm)


def _breaks(before: Any, after: Any) -> bool:
    """Whether an array is not finite any more: those that never were are meant so."""
    return bool(np.any(np.asarray(before) & ~np.asarray(after)))


def _kept(measured: Measured, state: Packed) -> tuple:
    """What a program keeps of each update: the treedef, and shapes and dtypes."""
    info = dict(measured.info)
    if (place := learning_rate_at(state.structure)) is not None:
        info["learning_rate"] = state.arrays[place]
    leaves, treedef = jax.tree.flatten((info, measured.weight, measured.averages))
    return treedef, tuple((leaf.shape, np.dtype(leaf.dtype)) for leaf in leaves)
