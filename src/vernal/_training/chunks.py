"""The host's side of the compiled loop: how many steps come next, and what the last ones measured.

Steps are made in chunks of about a quarter of a second, or longer with a large state. Between two
chunks the host reads what was measured, and looks whether all numbers are finite; a run can be
stopped, saved and shown there.
"""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from vernal import _hosts, _limits
from vernal._data.arrays import copied, nbytes, signature, unshared
from vernal._data.superbatch import Start, Superbatch
from vernal._training import nonfinite
from vernal._training.compiled_loop import Inputs, run_steps
from vernal._training.epochs import Epochs
from vernal._training.measurements import Measurements, steps_of
from vernal._training.objective import Measured
from vernal._training.preflight.data import CheckedData
from vernal._training.state import TrainState
from vernal._training.update import Choices, changing_part, on_mesh

# The largest growth from one chunk to the next.
_GROWTH = 16
_MOST_INT32 = 2**31 - 1


class TrainingRun:
    """A run in progress: the state, in buffers that each call gives away and gets back.

    The arrays that the caller gave stay the caller's, and so do those that `state` returns.

    Args:
        choices: The optimizer, the objective, and what is trained.
        state: The state to begin with.
        data: The data.
        given: What the caller gave, whose arrays stay as they are.
        rewinds: Whether to go back, and raise, when numbers stop being finite.
        epochs: Most epochs that the run trains: the data of no more is gathered.
        steps_per_epoch: Steps in an epoch. By default an epoch is a pass over the data.
        every_steps: A chunk ends after each step whose number is a multiple of this.
        program: The compiled loop; by default that of one model, `run_steps`.

    Attributes:
        step: Number of steps made.
        mesh: The devices that share each batch; `None` is one alone.
        pass_length: Batches in a pass over the data; `sys.maxsize` if it is not known.
        is_between_steps: Whether state, step and place in the data belong together: an interrupt
            may have come between.
    """

    def __init__(
        self,
        choices: Choices,
        state: TrainState,
        data: CheckedData,
        *,
        given: PyTree,
        rewinds: bool,
        epochs: int = sys.maxsize,
        steps_per_epoch: int | None = None,
        every_steps: int | None = None,
        program: Any = None,
    ):
        self.pass_length = data.source.pass_length
        self._epochs = Epochs(state, steps_per_epoch)
        self._loops = data.loops
        self._rewinds = rewinds
        self._every_steps = every_steps or sys.maxsize
        self.step = int(state.step)
        data_pass, batch = int(state.data_pass), int(state.batch)
        last_pass = self._epochs.last_pass(epochs, batch, self.pass_length)
        start = Start(data_pass, batch, state.key, state.data_state, last_pass)
        self._superbatches = data.source.superbatches(start)
        self._superbatch = next(self._superbatches)
        self._following: Superbatch | None = None
        self._cursor = self._superbatch.start

        self.mesh = choices.mesh
        self._program = run_steps if program is None else program
        self._choices, state, _ = on_mesh(choices, replace(state, data_state=None))
        changing, self._fixed = changing_part(choices, state)
        # A copy, unless the state is of this run alone: a large one is in memory once.
        self._changing = unshared(changing, given)
        self._copy: Any = None  # of what steps change; `None` once they have changed it
        self._programs: dict[Any, Callable] = {}

        limits = _limits.current()
        state_bytes = nbytes(changing)
        self._copies = rewinds and state_bytes <= limits.rewound_bytes
        wanted = min(state_bytes / limits.state_bytes_per_second, limits.most_chunk_seconds)
        self._chunk_seconds = max(limits.chunk_seconds, wanted)
        self._next_steps = limits.first_steps  # in the next chunk
        self.is_between_steps = True
        # Arrays that are not finite from the start, such as masks, are meant so.
        self._finite = nonfinite.finite_arrays(changing) if rewinds else np.empty(0)

    @property
    def epoch(self) -> int:
        """Number of epochs completed."""
        data_pass, batch = self._superbatch.location(self._cursor)
        return self._epochs.at(self.step, data_pass, batch)[0]

    def steps_until(self, epoch: int) -> int | None:
        """Return how many steps there are to the start of an epoch; `None` if it is not known."""
        if self.pass_length == sys.maxsize and self._epochs.steps_per_epoch is None:
            return None
        return self._epochs.steps_until(epoch, self.step, self._superbatch, self._cursor)

    def state(self) -> TrainState:
        """Return the state here and now, in arrays that stay."""
        return self._state_here(self.copy_of_changing())

    def copy_of_changing(self) -> TrainState:
        """Return a copy of what steps change: the same one until they change it."""
        if self._copy is None:
            self._copy = copied(self._changing)
        return self._copy

    def state_until_next_chunk(self) -> TrainState:
        """Return the state here and now, in arrays that the next chunk gives away.

        In those of a copy, if there is one: what is still read need not be copied then.
        """
        return self._state_here(self._changing if self._copy is None else self._copy)

    def _state_here(self, changing: TrainState) -> TrainState:
        """Return the whole state here and now, from the part that steps change."""
        return self._state_at(changing, self.step, self._superbatch, self._cursor)

    def _state_at(
        self, changing: TrainState, step: int, superbatch: Superbatch, cursor: int
    ) -> TrainState:
        """Return the whole state at a place in the data, from the part that steps change."""
        data_pass, batch = superbatch.location(cursor)
        epoch, epoch_step = self._epochs.at(step, data_pass, batch)
        return replace(
            eqx.combine(changing, self._fixed),
            step=np.array(step, np.int32),
            epoch=np.array(epoch, np.int32),
            epoch_step=np.array(epoch_step, np.int32),
            data_pass=np.array(data_pass, np.int32),
            batch=np.array(batch, np.int32),
            data_state=superbatch.loader_state_at(cursor),
        )

    def state_within(self, chunk: list[Measurements], before: TrainState, steps: int) -> TrainState:
        """Return the state after the first steps of a chunk; the run stays where it is.

        Args:
            chunk: What the chunk measured.
            before: What `copy_of_changing` returned before it.
            steps: How many of its steps to make again.
        """
        changing, _ = self._replay(chunk, before, steps)
        call, offset = nonfinite.step_of(chunk, steps)
        return self._state_at(
            changing, call.first_step + offset, call.superbatch, call.cursor + offset
        )

    @property
    def is_intact(self) -> bool:
        """Whether the state is there: not if a compiled call took its arrays, and failed."""
        return not any(leaf.is_deleted() for leaf in jax.tree.leaves(self._changing))

    def chunks(
        self, until_epoch: int, is_stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[list[Measurements]]:
        """Train to the start of an epoch, or until the run is stopped, chunk by chunk.

        Raises:
            NonFiniteError: Without a history, after what the steps before it measured.
            CallError: If a step fails while it runs, after what the steps before it measured.
            Exception: What a loader raises, after the steps on the batches before.
        """
        while self.epoch < until_epoch and not is_stopped():
            before = self.copy_of_changing() if self._copies else None
            began = time.perf_counter()
            calls: list[Measurements] = []
            try:
                failure = self._start_chunk(until_epoch, calls)
                chunk = [call.first(call.steps) for call in calls]
            except jax.errors.JaxRuntimeError as error:
                yield from self._until_bad_step(calls, before, error)
                return
            seconds = time.perf_counter() - began

            steps = steps_of(chunk)
            wanted = max(1, int(steps * min(_GROWTH, self._chunk_seconds / seconds)))
            self._next_steps = _hosts.first_ones(self.mesh, wanted)
            if self._rewinds:
                has_losses = nonfinite.steps_with_finite_losses(chunk) == steps
                if not (has_losses and nonfinite.stays_finite(self._finite, self._changing)):
                    yield from self._until_bad_step(chunk, before)
            before = None  # the next copy is not made beside this one
            yield chunk
            if failure is not None:
                raise failure

    def _start_chunk(self, until_epoch: int, calls: list[Measurements]) -> BaseException | None:
        """Queue a chunk's calls, and add them to a list.

        Returns:
            What the source of the data raised, if it did.
        """
        limits = _limits.current()
        to_checkpoint = self._every_steps - self.step % self._every_steps
        left = min(self._next_steps, limits.chunk_steps, to_checkpoint)
        began = time.perf_counter()
        passed_bytes = 0
        while left > 0 and passed_bytes < limits.chunk_bytes and self.epoch < until_epoch:
            if self._cursor == self._superbatch.stop:
                following = self._following or next(self._superbatches)
                self.is_between_steps = False
                self._superbatch, self._following = following, None
                self._cursor = self._superbatch.start
            self.is_between_steps = False
            superbatch, cursor, first_step = self._superbatch, self._cursor, self.step
            to_epoch = self._epochs.steps_until(until_epoch, first_step, superbatch, cursor)
            steps = min(left, superbatch.stop - cursor, to_epoch, superbatch.capacity)
            steps = steps if self._loops else 1
            ends = self._epochs.ends(first_step, superbatch, cursor, steps)
            call = Measurements(superbatch, cursor, steps, first_step, self.epoch, ends)
            calls.append(call)
            self._changing, measured = self._run(self._changing, call, steps)
            calls[-1] = replace(call, measured=measured)
            self.step += steps
            self._cursor += steps
            self.is_between_steps = True
            left -= steps

            if self._cursor == superbatch.stop and self.epoch < until_epoch:
                # The next superbatch is gathered here, while the device trains on this one.
                try:
                    self._following = next(self._superbatches)
                except (Exception, KeyboardInterrupt) as failure:
                    return failure
                passed_bytes += nbytes((superbatch.batches, superbatch.last_batches))
            is_long = time.perf_counter() - began > self._chunk_seconds
            if is_long and not _hosts.are_several(self.mesh):  # the data takes long to read
                break

        return None

    def _until_bad_step(
        self, calls: list[Measurements], before: TrainState | None, failure: Exception | None = None
    ) -> Iterator[list[Measurements]]:
        """Yield what a chunk measured before its first bad step, go back there, and raise.

        Args:
            calls: The calls of the chunk.
            before: The state before it; `None` if it was not copied.
            failure: What JAX raised if a step failed; otherwise its numbers are not finite.

        Raises:
            NonFiniteError: If a step's numbers are not finite.
            CallError: If a step failed.
        """
        from vernal._explain import bad_steps  # only where something failed

        most = steps_of(calls)
        if failure is None:
            most = min(nonfinite.steps_with_finite_losses(calls) + 1, most)
        if before is None and failure is not None:
            raise bad_steps.failed_step(failure, step=None) from failure
        if before is None:
            yield calls
            call, offset = nonfinite.step_of(calls, most - 1)
            raise bad_steps.nonfinite_chunk(call, offset)

        def is_good(steps: int) -> bool:
            try:
                changing, _ = self._replay(calls, before, steps)
                is_finite = nonfinite.stays_finite(self._finite, changing)
            except jax.errors.JaxRuntimeError:
                return False
            return is_finite or failure is not None

        def look() -> tuple[TrainState, PyTree, Any]:
            state, batch = self.state(), self._superbatch.batch(self._cursor)
            in_program = replace(state, data_state=None)
            return state, batch, jax.device_get(nonfinite.look(self._choices, in_program, batch))

        with bad_steps.silent_callbacks():
            good = nonfinite.good_steps(most, is_good)
        if failure is not None:
            yield self._rewind(calls, before, good)
            raise bad_steps.failed_step(failure, step=self.step) from failure
        last_norm = None
        if good:
            self._rewind(calls, before, good - 1)
            _, _, (_, norm, _) = look()
            last_norm = float(norm)
        made = self._rewind(calls, before, good)
        error = bad_steps.nonfinite_step(*look(), last_norm=last_norm)
        yield made or [calls[0].first(0)]
        raise error

    def _rewind(
        self, calls: list[Measurements], before: TrainState, steps: int
    ) -> list[Measurements]:
        """Go back to where the first steps of a chunk were made; return what they measured."""
        self._changing, made = self._replay(calls, before, steps)
        call, offset = nonfinite.step_of(calls, steps)
        self._superbatch, self._cursor = call.superbatch, call.cursor + offset
        self.step = call.first_step + offset
        return made

    def _replay(
        self, calls: list[Measurements], before: TrainState, steps: int
    ) -> tuple[TrainState, list[Measurements]]:
        """Make the first steps of a chunk again, from a copy of the state before it."""
        changing = copied(before)
        made = []
        for call in calls:
            again = min(steps, call.steps)
            if again == 0:
                break
            changing, measured = self._run(changing, call, again)
            made.append(replace(call, measured=measured).first(again))
            steps -= again
        return changing, made

    def _run(
        self, changing: TrainState, call: Measurements, steps: int
    ) -> tuple[TrainState, Measured]:
        """Make the first steps of a call, and give the buffers of `changing` away.

        Returns at once; the arrays are there when the device has made the steps.
        """
        self._copy = None
        superbatch, cursor, origin = call.superbatch, call.cursor, call.superbatch.start
        batches, last_batches = superbatch.batches, superbatch.last_batches
        if not self._loops and not superbatch.repeats:
            batches, cursor = superbatch.row(cursor)
            last_batches, origin = None, 0
        pass_length = min(superbatch.pass_length, _MOST_INT32)
        inputs = Inputs(
            choices=self._choices,
            fixed=self._fixed,
            batches=batches,
            last_batches=last_batches,
            counts=np.array([steps, call.first_step, cursor, origin, pass_length], np.int32),
            capacity=superbatch.capacity if self._loops else 1,
            repeats=superbatch.repeats,
            program="fit",
        )
        # Compiled ahead of the call: a call of `eqx.filter_jit` itself waits for the result.
        shape = signature((batches, last_batches))
        if shape not in self._programs:
            program = self._program
            if not jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue]
                program = program.lower(inputs, changing).compile()
            self._programs[shape] = program
        return self._programs[shape](inputs, changing)
