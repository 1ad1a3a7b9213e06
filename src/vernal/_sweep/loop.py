"""The compiled loop for many models: all at once, or one after the other."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from vernal._members import Members, in_turn
from vernal._training.compiled_loop import Inputs, steps
from vernal._training.objective import Measured
from vernal._training.state import TrainState


def _steps_of_members(inputs: Inputs, changing: TrainState) -> tuple[TrainState, Measured]:
    """Make steps as `steps` does: of many models, which may take turns."""
    members = inputs.choices.members
    if members is not None and members.one_by_one:
        return _steps_in_turn(members, inputs, changing)
    return steps(inputs, changing)


def _steps_in_turn(
    members: Members, inputs: Inputs, changing: TrainState
) -> tuple[TrainState, Measured]:
    """Make the steps of one member after the other: for each it is the loop of a model alone."""

    def of_one(batches: PyTree, changing: TrainState, fixed: TrainState) -> tuple:
        alone = inputs.choices._replace(members=None, shardings=None)
        batches, last_batches = batches
        mine = inputs._replace(
            choices=alone, fixed=fixed, batches=batches, last_batches=last_batches
        )
        return steps(mine, changing)

    batches = inputs.batches, inputs.last_batches
    changing, measured = in_turn(
        members,
        of_one,
        batches,
        changing,
        inputs.fixed,
        stacked_batches=not inputs.repeats,
    )
    return changing, jax.tree.map(lambda buffer: jnp.swapaxes(buffer, 0, 1), measured)


run_steps_of_members: Any = eqx.filter_jit(_steps_of_members, donate="all-except-first")
