"""What one update is made of, and what it costs: to be read, not run."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr
from jaxtyping import PyTree

from vernal._inspection import table as _table
from vernal._inspection.flops import cost_of, count
from vernal._training.checks import checked_source, model_of
from vernal._training.jaxprs import LOOPS, holds
from vernal._training.jit import pack
from vernal._training.state import TrainState
from vernal._training.trainer import Trainer
from vernal._training.update import compiled_step, new_state
from vernal.errors import short_traceback


@dataclass(frozen=True)
class Cost:
    """What XLA says that one compiled update takes. Sizes are in bytes; `None` is not known.

    **Attributes:**

    - `batch_size`: how many examples the update is made on.
    - `flops`: floating-point operations, as XLA counts them.
    - `bytes_accessed`: read and written, by all operations together.
    - `peak_memory`: what XLA sets aside for the update: all of the following together.
    - `arguments`, `outputs`, `temporaries`: the state and the batch; the new state and metrics;
      what is needed in between.
    """

    batch_size: int
    flops: int | None
    bytes_accessed: int | None
    peak_memory: int | None
    arguments: int | None
    outputs: int | None
    temporaries: int | None

    def __str__(self) -> str:
        size = lambda value: "–" if value is None else _table.size(value).text
        flops = "–" if self.flops is None else _table.scaled(self.flops, "FLOP")
        return (
            f"1 update on a batch of {self.batch_size:,}: {flops}, "
            f"{size(self.bytes_accessed)} read and written\n"
            f"  memory {size(self.peak_memory)}: arguments {size(self.arguments)}, "
            f"outputs {size(self.outputs)}, in between {size(self.temporaries)}"
        )


@short_traceback
def update_jaxpr(
    trainer: Trainer,
    model_or_state: PyTree | TrainState,
    data: PyTree | Iterable,
    *,
    batch_size: int | None = None,
) -> ClosedJaxpr:
    """Trace one update to a jaxpr, JAX's own listing of a program; nothing compiles or runs.

    Printed it shows the whole update: the model and the loss, their gradient, the optimizer.

    **Arguments:** as in `Trainer.fit`; a loader's first batch is taken.

    **Returns:** a `jax.extend.core.ClosedJaxpr`, as from `jax.make_jaxpr`.

    **Raises:** `ArgumentError`, `DataError` or `ShapeError`.
    """
    traced, _ = _traced(trainer, model_or_state, data, batch_size)
    return traced.jaxpr


@short_traceback
def update_cost(
    trainer: Trainer,
    model_or_state: PyTree | TrainState,
    data: PyTree | Iterable,
    *,
    batch_size: int | None = None,
) -> Cost:
    """Compile one update, as in `Trainer.step`, and ask XLA what it costs; nothing runs.

    XLA counts a loop's body once. If there is a loop in the update its FLOPs are instead counted
    before XLA optimises, as often as the loop goes round, and `bytes_accessed` is `None`. They are
    counted so on a GPU, too, where XLA leaves out what its libraries compute.
    `Trainer.fit` needs less memory, as there the new state takes the old one's place.

    **Arguments:** as in `Trainer.fit`; a loader's first batch is taken.

    **Returns:** a `Cost`, to print or to read.

    **Raises:** `ArgumentError`, `DataError` or `ShapeError`.
    """
    traced, size = _traced(trainer, model_or_state, data, batch_size)
    compiled = traced.lower().compile()
    costs = cost_of(compiled.cost_analysis) or {}
    flops, accessed = costs.get("flops", math.nan), costs.get("bytes accessed", math.nan)
    if (loops := holds(traced.jaxpr.jaxpr, *LOOPS)) or jax.default_backend() != "cpu":
        flops, accessed = count(traced.jaxpr).total, math.nan if loops else accessed
    memory = compiled.memory_analysis()
    if memory is None:
        return Cost(size, _known(flops), _known(accessed), None, None, None, None)
    arguments, outputs = memory.argument_size_in_bytes, memory.output_size_in_bytes
    temporaries = memory.temp_size_in_bytes
    # Not XLA's own peak, which JAX has under that name: on a CPU it leaves the temporaries out.
    peak = arguments + outputs + temporaries - memory.alias_size_in_bytes
    return Cost(size, _known(flops), _known(accessed), peak, arguments, outputs, temporaries)


def _traced(trainer: Trainer, model_or_state, data, batch_size) -> tuple[Any, int]:
    """One update, traced on shapes, and the number of its examples."""
    learned = model_of(model_or_state)
    choices = trainer._choices(*learned)
    source, _ = checked_source(choices.objective, *learned, data, batch_size, endless=True)
    if isinstance(model_or_state, TrainState):
        state = pack(model_or_state)
    else:
        state = jax.eval_shape(lambda: new_state(choices, *learned, None))
    rows = jax.tree.leaves(source.example)[0].shape[0]
    size = rows if batch_size is None else min(batch_size, rows)
    shape = lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype)
    batch = jax.tree.map(shape, source.example)
    return compiled_step.jitted.trace(pack(choices), state, batch), size


def _known(value: float) -> int | None:
    # XLA's sign for what it does not know is a negative number.
    return round(value) if value >= 0 else None
