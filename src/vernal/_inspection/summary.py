"""A model's table: its modules, what goes through them, what they hold, and what they cost."""

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from vernal._arguments import check_stateful
from vernal._data.arrays import as_arrays
from vernal._inspection.flops import OUTSIDE, counted_calls, known
from vernal._inspection.rows import Row, counting_path, held_rows
from vernal._inspection.table import as_html, as_text, number, shapes
from vernal._training.preflight.model import model_of
from vernal._training.preflight.trace import Preflight
from vernal.errors import short_traceback
from vernal.losses import needs_key


@dataclass(frozen=True, repr=False)
class Summary:
    """The result of `vernal.summary`: a table when printed, `rows` for programs.

    The totals are the sums of the columns.

    Attributes:
        rows: A row for each module, in the order of the model's fields.

    Example:
        >>> table = vernal.summary(nn.MLP(1, 1, 8, 1, key=jax.random.key(0)), x)
        >>> table.trainable, table.bytes, [row.path for row in table.rows if row.bytes]
        (25, 100, ['MLP.layers[0]', 'MLP.layers[1]'])
    """

    rows: tuple[Row, ...]

    @property
    def trainable(self) -> int:
        """How many numbers training changes."""
        return sum(row.trainable for row in self.rows)

    @property
    def frozen(self) -> int:
        """How many numbers training leaves alone."""
        return sum(row.frozen for row in self.rows)

    @property
    def bytes(self) -> int:
        """The size of all arrays, each counted once."""
        return sum(row.bytes for row in self.rows)

    @property
    def flops(self) -> int | None:
        """Floating-point operations of the forward pass of one example; `None` if unknown."""
        flops = [row.flops for row in self.rows if row.flops is not None]
        return sum(flops) if len(flops) == len(self.rows) else None

    def __str__(self) -> str:
        table = as_text(self._columns, texts=("path", "layer", "input", "output"))
        return f"{table}\n{self._caption}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Show the table in a notebook."""
        return as_html(self._columns, caption=self._caption)

    @property
    def _columns(self) -> dict[str, list[str]]:
        """For each title the cells below it, the last of which is the total, if any has text."""
        total = Row("total", "", self.trainable, self.frozen, self.bytes, calls=1, flops=self.flops)
        rows = [*self.rows, total]
        columns = {
            "path": [row.path for row in rows],
            "layer": [_layer(row) for row in rows],
            "input": [shapes(row.inputs) for row in rows],
            "output": [_output(row) for row in rows],
            "trainable": [_nonzero(row.trainable) for row in rows],
            "frozen": [_nonzero(row.frozen) for row in rows],
            "bytes": [_nonzero(row.bytes, "B") for row in rows],
            "FLOPs": [_nonzero(row.flops) for row in rows],
        }
        return {title: cells for title, cells in columns.items() if any(cells)}

    @property
    def _caption(self) -> str:
        held = f"Parameters: {self.trainable + self.frozen:,}, {number(self.bytes, 'B')}."
        return f"{held} Shapes and FLOPs are those of one example."


@short_traceback
def summary(model: PyTree, x: PyTree, *, trainable: PyTree = eqx.is_inexact_array) -> Summary:
    """Make a table of a model's layers, without running or compiling the model.

    A row counts what a module holds and does itself, without the modules in it: so each column
    adds up to its total. A module that holds nothing and is not called has no row. An object at
    two places, or in an `eqx.nn.Shared`, is counted at the first place. (Only `eqx.nn.Shared` keeps
    it shared in training.)

    The model is taken in inference mode, without dropout. FLOPs are floating-point operations as
    XLA's cost analysis counts them before it optimizes: a product and a sum are two, an exponential
    or `tanh` is none. Operations in a loop count once for each round. "–" means that XLA cannot
    count them, as in a loop that ends on a condition.

    Args:
        model: A model of one example, or a `TrainState` with one.
        x: The inputs as in `Trainer.fit`: an array, or a PyTree of arrays, with the examples along
            the leading axis. A `jax.ShapeDtypeStruct` may stand for an array.
        trainable: The arrays that are trained, as in `Trainer`; all others are frozen.

    Returns:
        A `Summary`: print it, or read its `rows`.

    Raises:
        ArgumentError: The model is a class, or has layers with a state that is not given.
        DataError: `x` does not hold examples.
        ShapeError: The model cannot be called with an example of `x`.

    Example:
        >>> vernal.summary(model, x).trainable
        2
    """
    model, model_state = model_of(model)
    check_stateful(None, model, model_state)
    x = as_arrays(jax.tree.map(_stand_in, x), name="x")
    inferring = eqx.nn.inference_mode(model)
    Preflight(None, inferring, model_state, name="x").check(x)

    example = jax.eval_shape(lambda x: jax.tree.map(lambda leaf: leaf[0], x), x)
    inputs = (example,) if model_state is None else (example, model_state)
    key = jax.random.key(0) if needs_key(inferring) else None
    result, calls, counts = counted_calls(inferring, *inputs, key=key)
    outputs = result if model_state is None else result[0]

    rows = held_rows(model, trainable)
    calls_by_path: dict[str, list[int]] = defaultdict(list)
    for i, call in enumerate(calls):
        # The model itself does the work of an `eqx.nn.Shared`, which puts layers in their places.
        is_layer = not isinstance(call.module, eqx.nn.Shared)
        calls_by_path[counting_path(call.path, rows) if is_layer else ""].append(i)

    for path, numbers in calls_by_path.items():
        first = calls[numbers[0]]
        rows[path] = replace(
            rows[path],
            inputs=_shapes(list(first.arguments.values())),
            outputs=_shapes(first.result),
            # A call without operations has no runs: nothing tells which loop the call is in.
            calls=_sum(counts.runs, numbers, default=1),
            flops=_sum(counts.flops, numbers),
        )
    flops = _sum(counts.flops, [OUTSIDE, *calls_by_path[""]])
    taken, made = _shapes(example), _shapes(outputs)
    rows[""] = replace(rows[""], inputs=taken, outputs=made, calls=1, flops=flops)
    shown = [row for row in rows.values() if row.calls != 0 or row.bytes or row.shared_with]
    return Summary(tuple(shown))


def _stand_in(leaf: Any) -> Any:
    """Replace a shape by an array that takes no memory."""
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    return np.broadcast_to(np.zeros((), jax.dtypes.canonicalize_dtype(leaf.dtype)), leaf.shape)


def _shapes(tree: PyTree) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Return the shapes of the arrays in a PyTree, without a model's state."""
    leaves = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, eqx.nn.State))
    arrays = [leaf for leaf in leaves if hasattr(leaf, "dtype")]
    return tuple(jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays)


def _sum(counts: dict[int, float], calls: list[int], default: int = 0) -> int | None:
    return known(sum(counts.get(i, default) for i in calls))


def _layer(row: Row) -> str:
    times = "?" if row.calls is None else row.calls
    return row.layer if times in (0, 1) else f"{times} × {row.layer}"


def _output(row: Row) -> str:
    return shapes(row.outputs) if row.shared_with is None else f"shared with {row.shared_with}"


def _nonzero(value: int | None, unit: str = "") -> str:
    return "" if value == 0 else number(value, unit)
