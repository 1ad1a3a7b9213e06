"""Updates, made by a compiled program, from a place in the data on."""

from dataclasses import dataclass
from functools import cached_property

import jax
import numpy as np

from vernal._data.superbatch import Stack
from vernal._training import pace as _pace
from vernal._training.compiled_loop import Program
from vernal._training.compiled_loop import run as program_run
from vernal._training.jit import Packed, merge, pack, select
from vernal._training.objective import Measured
from vernal._training.state import TrainState, put_counts, with_data_state
from vernal._training.update import Choices, learning_rate_at


@dataclass(frozen=True)
class Compiled:
    """What makes updates: the program, and all that they do not change."""

    choices: Choices
    program: Program
    fixed: list  # of the state's arrays

    @cached_property
    def _packed_choices(self) -> Packed:
        return pack(self.choices)

    def at_once(self, stack: Stack, place: int, most: int) -> int:
        """How many updates from a place on one compiled call makes: no more than `most`."""
        if self.program.loops:
            return min(most, self._capacity(stack))
        several = self.program.unroll
        return several if several <= min(most, stack.before_tail(place)) else 1

    def _capacity(self, stack: Stack) -> int:
        """How many updates one call of a loop has room for."""
        return _pace.REPEATS if stack.repeats else stack.capacity

    def run(self, changing: list, stack: Stack, place: int, updates: int, step: int):
        """Give what changes to the compiled program, for so many updates from a place on."""
        batches, tails, origin = stack.batches, stack.tails, stack.origin
        program = self.program
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
        return program_run(
            program,
            changing,
            self.fixed,
            self._packed_choices,
            (batches, tails),
            np.array([origin, place, updates, step], np.int32),
        )

    def state(self, changing: list, step: int, stack: Stack, place: int) -> TrainState:
        """The state at a place, of what changes there; its arrays are these."""
        arrays = merge(changing, self.fixed, self.program.changing)
        put_counts(arrays, step, *stack.place(place))
        # Unpacking is much faster than making a module anew.
        state = Packed(arrays, self.program.structure).unpack()
        return with_data_state(state, stack.mark_at(place))


def compiled(
    choices: Choices, state: Packed, measured: Measured, stack: Stack, *, loops: bool
) -> tuple[Compiled, list]:
    """What makes a run's updates, and what they change of its state.

    **Arguments:**

    - `measured`: the shapes of what an update measures.
    - `stack`: the first of the run.
    - `loops`: whether many updates may be made in one compiled loop.
    """
    # The model's leaves come first; then its state, the optimizer's, three counts and the key.
    leaves = zip(choices.trained, state.structure[1], strict=False)
    picks = [trained for trained, static in leaves if static is None]
    picks += [True] * (len(state.arrays) - 4 - len(picks)) + [False] * 4
    changing, fixed = select(state.arrays, tuple(picks))
    unroll = _pace.unroll(_pace.work(changing, stack), loops, stack)
    kept = _kept(measured, state)
    program = Program(state.structure, tuple(picks), kept, loops, unroll)
    return Compiled(choices, program, fixed), changing


def _kept(measured: Measured, state: Packed) -> tuple:
    """What a program keeps of each update: the treedef, and shapes and dtypes."""
    info = dict(measured.info)
    if (place := learning_rate_at(state.structure)) is not None:
        info["learning_rate"] = state.arrays[place]
    leaves, treedef = jax.tree.flatten((info, measured.weight, measured.averages))
    return treedef, tuple((leaf.shape, np.dtype(leaf.dtype)) for leaf in leaves)
