"""A model's table: its modules, what goes through them, what they hold, and what they cost."""

import dataclasses
import math
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from vernal._data.arrays import as_arrays
from vernal._inspection import table as _table
from vernal._inspection.flops import counted_calls
from vernal._inspection.parts import first_path, parts_of
from vernal._training.checks import model_of
from vernal._training.preflight import preflight
from vernal.errors import short_traceback

_HEADER = ("path", "layer", "input", "output", "trainable", "frozen", "bytes", "FLOPs")


@dataclass(frozen=True)
class Row:
    """One module of a model, by itself: without what its own modules hold and do.

    **Attributes:**

    - `path`: where it is, such as `MLP.layers[0]`.
    - `layer`: its type's name; "array" for a shared array.
    - `inputs`, `outputs`: the arrays of its first call, without a batch's axis.
    - `trainable`, `frozen`: numbers in the arrays that it holds.
    - `bytes`: what these take.
    - `calls`: how often it is called for one example; `None` if that is not known beforehand.
    - `flops`: of all these calls, for one example; `None` if XLA cannot say.
    - `shared_with`: the path where this is counted, if it is the same thing as there.
    """

    path: str
    layer: str
    trainable: int = 0
    frozen: int = 0
    bytes: int = 0
    shared_with: str | None = None
    inputs: tuple[jax.ShapeDtypeStruct, ...] = ()
    outputs: tuple[jax.ShapeDtypeStruct, ...] = ()
    calls: int | None = 0
    flops: int | None = 0


@dataclass(frozen=True, repr=False)
class Summary:
    """What `summary` found: a table when printed, `rows` for programs.

    The totals are the sums of the columns.
    """

    rows: tuple[Row, ...]

    @property
    def trainable(self) -> int:
        """Numbers that training changes."""
        return sum(row.trainable for row in self.rows)

    @property
    def frozen(self) -> int:
        """Numbers that training leaves alone."""
        return sum(row.frozen for row in self.rows)

    @property
    def bytes(self) -> int:
        """What all arrays take, each counted once."""
        return sum(row.bytes for row in self.rows)

    @property
    def flops(self) -> int | None:
        """Floating-point operations of the forward pass of one example; `None` if not known."""
        flops = [row.flops for row in self.rows if row.flops is not None]
        return sum(flops) if len(flops) == len(self.rows) else None

    def __str__(self) -> str:
        return f"{_table.as_text(_HEADER, self._cells())}\n{self._caption()}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return _table.as_html(_HEADER, self._cells(), self._caption())

    def _caption(self) -> str:
        count = self.trainable + self.frozen
        size = _table.size(self.bytes).text.replace(" B", " bytes")
        return (
            f"{count:,} parameter{'s' * (count != 1)}, {size}. "
            "Shapes and FLOPs are those of one example."
        )

    def _cells(self) -> list[list[_table.Cell]]:
        total = Row("total", "", self.trainable, self.frozen, self.bytes, calls=1, flops=self.flops)
        held = lambda count, cell, row: cell(count) if count or row is total else ""
        return [
            [
                row.path,
                row.layer + {0: "", 1: "", None: " ×?"}.get(row.calls, f" ×{row.calls}"),
                *_arrays(row),
                held(row.trainable, _table.number, row),
                held(row.frozen, _table.number, row),
                held(row.bytes, _table.size, row),
                _flops(row),
            ]
            for row in (*self.rows, total)
        ]


def _arrays(row: Row) -> tuple[_table.Cell, _table.Cell]:
    if row.shared_with:
        return f"shared with {row.shared_with}", None
    return _table.shapes(row.inputs), _table.shapes(row.outputs)


def _flops(row: Row) -> _table.Cell:
    if row.calls == 0:
        return ""
    return "–" if row.flops is None else _table.number(row.flops)


@short_traceback
def summary(model: PyTree, x: PyTree, *, trainable: PyTree = eqx.is_inexact_array) -> Summary:
    """Make a table of a model's layers, without running or compiling it.

    A row has what a module holds and does by itself, without what stands in other rows, so that
    each column adds up to its total. Modules that do neither are left out. What stands at two
    places, as the same object or in `eqx.nn.Shared`, is counted at the first. (Only the latter
    stays shared when it is trained.)

    The model is taken in inference mode, without dropout. FLOPs are floating-point operations as
    XLA's cost analysis counts them, before it optimises: a product and a sum are two, an
    exponential or `tanh` is none. A loop counts as often as it goes round. "–" means that they
    cannot be counted beforehand, as in a loop that ends on a condition.

    **Arguments:**

    - `model`: a model of one example, or a `TrainState` with one.
    - `x`: as in `Trainer.fit`, an array or a PyTree of arrays with the examples along the leading
      axis; a `jax.ShapeDtypeStruct` will do for an array.
    - `trainable`: as in `Trainer`. Every other array is frozen.

    **Returns:** a `Summary`: print it, or read its `rows`.

    **Raises:** `ArgumentError`, `DataError` or `ShapeError`.
    """
    model, model_state = model_of(model)
    x = as_arrays(jax.tree.map(_stand_in, x), name="x", finite=False)
    inferring = eqx.nn.inference_mode(model)
    preflight(None, inferring, model_state, x, name="x")
    example = jax.eval_shape(lambda x: jax.tree.map(lambda leaf: leaf[0], x), x)
    states = () if model_state is None else (model_state,)
    outputs, calls, tally = counted_calls(inferring, example, *states)
    outputs = outputs if model_state is None else outputs[0]

    parts, aliases = parts_of(model, trainable)
    made: dict[str, list[int]] = defaultdict(list)
    for i, call in enumerate(calls):
        path = first_path(call.path, aliases)
        # Expanding an `eqx.nn.Shared` is no layer's work, but the model's.
        made["" if isinstance(call.module, eqx.nn.Shared) else path].append(i)
    rows = []
    for path, part in parts.items():
        row = Row(type(model).__name__ + path, **dataclasses.asdict(part))
        if path == "":
            arrays = {"inputs": _shapes(example), "outputs": _shapes(outputs)}
            row = replace(row, **arrays, calls=1, flops=_sum(tally.flops, [-1, *made[path]]))
        elif path in made:
            first = calls[made[path][0]]
            inputs = [value for name, value in first.arguments.items() if name != "key"]
            # A call without operations is in no loop that is known.
            known = any(i in tally.runs for i in made[path])
            times = _sum(tally.runs, made[path]) if known else len(made[path])
            row = replace(row, inputs=_shapes(inputs), outputs=_shapes(first.result), calls=times)
            row = replace(row, flops=_sum(tally.flops, made[path]))
        if row.calls != 0 or row.bytes or row.shared_with:
            rows.append(row)
    return Summary(tuple(rows))


def _stand_in(leaf: Any) -> Any:
    """For a shape an array that takes no memory."""
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    return np.broadcast_to(np.zeros((), jax.dtypes.canonicalize_dtype(leaf.dtype)), leaf.shape)


def _shapes(tree: PyTree) -> tuple[jax.ShapeDtypeStruct, ...]:
    is_state = lambda node: isinstance(node, eqx.nn.State)
    leaves = jax.tree.leaves(tree, is_leaf=is_state)
    arrays = [leaf for leaf in leaves if hasattr(leaf, "dtype")]
    return tuple(jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays)


def _sum(counts: dict[int, float], calls: list[int]) -> int | None:
    total = sum(counts.get(i, 0) for i in calls)
    return None if math.isnan(total) else round(total)
