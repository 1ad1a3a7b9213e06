"""A run: chunk after chunk of updates, each a compiled call or several."""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from vernal._data.array_source import Source
from vernal._data.superbatch import Stack, sent
from vernal._training import pace as _pace
from vernal._training.compiled import compiled
from vernal._training.compiled_loop import copied
from vernal._training.jit import Packed
from vernal._training.nonfinite import all_finite
from vernal._training.objective import Measured
from vernal._training.records import Records
from vernal._training.rewind import first_bad, no_longer
from vernal._training.state import TrainState, counts
from vernal._training.update import Choices
from vernal.errors import NonFiniteError


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
        given = choices, state, measured, self._stack
        self._compiled, changing = compiled(*given, loops=source.loops)
        work = _pace.work(changing, self._stack)
        self._rewinds, self._every = rewinds, every
        self._keeps = rewinds or saves
        # Where chunks begin with a copy, the first goes back to the caller's own arrays.
        self._changing = changing if self._keeps else copied(changing)
        self._seconds = _pace.seconds(changing) if self._keeps else _pace.SECONDS
        self._queued = _Chunk()  # the chunk under way
        # To make in the next one.
        self._updates = 1 if source.goes_round else _pace.first(work)

    @property
    def place(self) -> tuple[int, int]:
        """The place in the data: epochs completed, and updates made since."""
        return self._stack.place(self._place)

    def measures(self, validates: bool) -> list[str]:
        """The names of what is recorded of an epoch."""
        names = [*jax.tree.unflatten(*self._compiled.program.kept)[0]]
        measured = [name for name in names if name != "learning_rate"]
        return names + ([f"val_{name}" for name in measured] if validates else [])

    @property
    def averages(self) -> Any:
        """The treedef of what the metrics that are no averages are made from, of each update."""
        treedef, kept = self._compiled.program.kept
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
        state = self._compiled.state(self._changing, self._step, self._stack, self._place)
        return state.model, state.model_state

    def state(self) -> TrainState:
        """The state here and now, in arrays of its own."""
        return self._compiled.state(copied(self._changing), self._step, self._stack, self._place)

    def saved(self) -> TrainState:
        """The state that the records handed out so far have led to, to be read and not changed."""
        chunk = self._queued
        if chunk.start is None or chunk.at is None:  # nothing is under way
            return self.state()
        return self._compiled.state(chunk.start, *chunk.at)

    def finish(self) -> TrainState:
        """The state at the end: the loop gives its arrays away, and makes no more updates."""
        return self._compiled.state(self._changing, self._step, self._stack, self._place)

    @property
    def intact(self) -> bool:
        """Whether the state is there: not if a compiled call took its arrays, and failed."""
        return not any(leaf.is_deleted() for leaf in self._changing)

    def chunks(
        self, until_epoch: int, stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[list[Records]]:
        """Train to the start of an epoch, or until it is stopped, in chunks of about 0.25 s.

        While the records of a chunk are looked at, the device is busy with the next one.

        **Raises:** `NonFiniteError`, without a history, after the records before it; and what a
        loader raises, after the updates on the batches before.
        """
        failure = None
        while self.place[0] < until_epoch and not stopped() and failure is None:
            before, self._queued = self._queued, self._begun()
            left = min(self._updates, self._every - self._step % self._every)
            stack, held, began = None, 0, time.perf_counter()
            # Not for a few updates on another stack: they can as well be of the next chunk.
            least = left // 8
            while left > least and held < _pace.may_hold() and self.place[0] < until_epoch:
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
        yield from self._fetch(before, sent(all_finite(self._changing)) if looked_at else None)

    def _begun(self) -> _Chunk:
        """A new chunk. What changes is kept to go back to, where there is a need, and copied."""
        if not self._keeps:
            return _Chunk()
        start = self._changing
        # Only what updates have made: a run's first one need not wait for what it began with.
        looked_at = self._rewinds and self._queued.records
        finite = sent(all_finite(start)) if looked_at else None
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
        bad = self._first_bad(chunk, fetched, finite)
        if bad is not None:
            whole, good, error = bad
            yield [*fetched[:whole], fetched[whole].first(good)]
            raise error
        yield fetched

    def _first_bad(
        self, chunk: _Chunk, fetched: list[Records], finite: Any
    ) -> tuple[int, int, NonFiniteError] | None:
        """The first update of a chunk after which numbers are not finite any more, if there is one.

        **Returns:** what `first_bad` does.
        """
        if chunk.start is None or finite is None:  # it is not looked at
            return None
        losses = all(records.finite_losses == records.updates for records in fetched)
        if losses and np.asarray(finite).all():
            return None
        before = all_finite(chunk.start) if chunk.finite is None else chunk.finite
        if losses and not no_longer(before, finite):
            return None
        return first_bad(self._compiled, chunk.start, before, fetched)

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
        updates = self._compiled.at_once(stack, place, updates if few else room)
        self._changing, kept = self._compiled.run(self._changing, stack, place, updates, step)
        self._step += updates
        self._place += updates
        return Records(stack, place, updates, step, *sent(kept))
