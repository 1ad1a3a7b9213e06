"""What one step computes, and what it costs; nothing here runs a step."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jaxtyping import PyTree

from vernal._data.arrays import number_of_examples
from vernal._inspection.flops import known, total_flops
from vernal._inspection.table import number
from vernal._products import turned
from vernal._shapes.jaxprs import LOOPS, holds
from vernal._shapes.modules import shapes_of
from vernal._training.preflight.model import model_of
from vernal._training.state import TrainState
from vernal._training.trainer import Trainer
from vernal._training.update import update
from vernal.errors import short_traceback


@dataclass(frozen=True)
class Cost:
    """What one compiled step costs, as XLA says. Sizes are in bytes; `None` means unknown.

    Attributes:
        batch_size: Examples in the step's batch.
        flops: Floating-point operations, as XLA counts them.
        bytes_accessed: Bytes read and written, by all operations together.
        peak_memory: Memory that XLA sets aside for the step, the following three together.
        arguments: Size of the state and the batch.
        outputs: Size of the new state and the metrics.
        temporaries: Size of all intermediate results that exist at one time.

    Example:
        >>> cost = vernal.update_cost(trainer, model, (x, y))
        >>> cost.batch_size, cost.peak_memory > 0
        (40, True)
    """

    batch_size: int
    flops: int | None
    bytes_accessed: int | None
    peak_memory: int
    arguments: int
    outputs: int
    temporaries: int

    def __str__(self) -> str:
        accessed, peak = number(self.bytes_accessed, "B"), number(self.peak_memory, "B")
        return (
            f"1 step on a batch of {self.batch_size:,}: {number(self.flops, 'FLOP')}, "
            f"{accessed} read and written\n"
            f"  memory {peak}: arguments {number(self.arguments, 'B')}, "
            f"outputs {number(self.outputs, 'B')}, temporaries {number(self.temporaries, 'B')}"
        )


@short_traceback
def update_jaxpr(
    trainer: Trainer,
    model_or_state: PyTree | TrainState,
    data: PyTree | Iterable,
    *,
    batch_size: int | None = None,
) -> ClosedJaxpr:
    """Trace one step to a jaxpr, JAX's own listing of a program; nothing compiles or runs.

    A printed jaxpr shows the whole step: the model and the loss, their gradient, the optimizer.
    Products stand as `Trainer.fit` runs them, without transposing the batch.

    Args:
        trainer: The choices.
        model_or_state: A model, or a state to go on from.
        data: The data as in `Trainer.fit`. Only the shapes of one batch count, of a loader's first.
        batch_size: Examples in a batch; `None`, the default, takes all of them.

    Returns:
        A `jax.extend.core.ClosedJaxpr`, as from `jax.make_jaxpr`.

    Raises:
        ArgumentError: An argument cannot be used.
        DataError: The data cannot be trained on.
        ShapeError: Model, data and loss disagree about a shape.

    Example:
        >>> program = vernal.update_jaxpr(trainer, model, (x, y))
        >>> "dot_general" in str(program)
        True
    """
    jaxpr, _ = _traced_step(trainer, model_or_state, data, batch_size)
    return jaxpr


@short_traceback
def update_cost(
    trainer: Trainer,
    model_or_state: PyTree | TrainState,
    data: PyTree | Iterable,
    *,
    batch_size: int | None = None,
) -> Cost:
    """Compile one step, and ask XLA for its cost; nothing runs.

    XLA counts a loop's body once. So of a step with a loop, and on a GPU, FLOPs are counted as in
    `vernal.summary`, before XLA optimizes: operations in a loop count once for each round. Of a
    step with a loop, `bytes_accessed` is `None`.
    `Trainer.fit` needs less memory: its new state takes the place of the old one.

    Args:
        trainer: The choices.
        model_or_state: A model, or a state to go on from.
        data: The data as in `Trainer.fit`. Only the shapes of one batch count, of a loader's first.
        batch_size: Examples in a batch; `None`, the default, takes all of them.

    Returns:
        A `Cost`, to print or to read.

    Raises:
        ArgumentError: An argument cannot be used.
        DataError: The data cannot be trained on.
        ShapeError: Model, data and loss disagree about a shape.

    Example:
        >>> cost = vernal.update_cost(trainer, model, (x, y), batch_size=10)
        >>> cost.batch_size
        10
    """
    jaxpr, examples = _traced_step(trainer, model_or_state, data, batch_size)
    compiled = jax.jit(jaxpr_as_fun(jaxpr)).lower(*jaxpr.in_avals).compile()
    memory: Any = compiled.memory_analysis()
    costs = compiled.cost_analysis() or {}
    # Of a loop XLA counts one round, and on a GPU it leaves out what its libraries compute.
    has_loop = holds(jaxpr.jaxpr, *LOOPS)
    counts_all = not has_loop and jax.default_backend() == "cpu"
    arguments = memory.argument_size_in_bytes
    outputs = memory.output_size_in_bytes
    temporaries = memory.temp_size_in_bytes
    return Cost(
        batch_size=examples,
        flops=known(costs.get("flops", 0.0) if counts_all else total_flops(jaxpr.jaxpr)),
        bytes_accessed=None if has_loop else known(costs.get("bytes accessed", -1)),
        # Not JAX's `peak_memory_in_bytes`, which leaves out the temporaries on a CPU.
        peak_memory=arguments + outputs + temporaries - memory.alias_size_in_bytes,
        arguments=arguments,
        outputs=outputs,
        temporaries=temporaries,
    )


def _traced_step(
    trainer: Trainer, model_or_state: Any, data: Any, batch_size: int | None
) -> tuple[ClosedJaxpr, int]:
    """Trace one step, without the loop around it, on shapes.

    Returns:
        The step's program, and how many examples are in its batch.
    """
    model, model_state = model_of(model_or_state)
    choices = trainer._choices(model, model_state)
    checked, _ = trainer._checked(model_or_state, data, None, batch_size=batch_size, shuffle=False)
    state = eqx.filter_eval_shape(trainer._state_of, model_or_state)

    def step(choices, state, batch):
        new_state, measured, _ = update(choices, state, batch)
        return new_state, measured.info

    batch = checked.source.example
    jaxpr, _, _ = eqx.filter_make_jaxpr(step)(*shapes_of((choices, state, batch)))
    return turned(jaxpr), number_of_examples(batch) or 1
