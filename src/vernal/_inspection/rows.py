"""The rows of a model's table: what each of its modules holds, each array counted once."""

from dataclasses import dataclass, replace

import equinox as eqx
import jax
from jaxtyping import PyTree

from vernal._shapes.modules import walk
from vernal._training.preflight.model import trained_leaves


@dataclass(frozen=True)
class Row:
    """One module of a model, without what the modules in it hold and do.

    Attributes:
        path: Where the module is, such as `MLP.layers[0]`.
        layer: The name of its type; "array" for a shared array.
        trainable: How many numbers training changes, in the module's own arrays.
        frozen: How many numbers it leaves alone.
        bytes: The size of these arrays.
        shared_with: The path of the row that counts the same object; `None` if this one does.
        inputs: The arrays that its first call takes, without a batch axis.
        outputs: The arrays that its first call returns.
        calls: How often it is called for one example; `None` if only a run can tell.
        flops: Floating-point operations of all these calls; `None` if XLA cannot count them.
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


def held_rows(model: PyTree, trainable: PyTree) -> dict[str, Row]:
    """Return a row for each module, by its path in the model, the model itself first.

    A module or an array at a second place has a row that holds nothing.
    """
    trained = trained_leaves(model, trainable)
    is_trained = dict(zip(map(id, jax.tree.leaves(model)), trained, strict=True))
    name = type(model).__name__
    rows: dict[str, Row] = {}
    for path, thing, owner, first in walk(model):
        layer = "array" if eqx.is_array(thing) else type(thing).__name__
        if path != first:
            rows[path] = Row(name + path, layer, shared_with=name + first)
        elif layer != "array":
            rows[path] = Row(name + path, layer)
        elif id(thing) in is_trained:  # an `eqx.nn.Shared` may compute others
            row = rows[owner]
            kind = "trainable" if is_trained[id(thing)] else "frozen"
            held = {kind: getattr(row, kind) + thing.size, "bytes": row.bytes + thing.nbytes}
            rows[owner] = replace(row, **held)
    return rows


def counting_path(path: str, rows: dict[str, Row]) -> str:
    """Return the path of the row that counts a module: `path`, unless it is in a shared module."""
    for second, row in rows.items():
        inside = path == second or path.startswith((f"{second}.", f"{second}["))
        if row.shared_with is not None and inside:
            return row.shared_with.removeprefix(rows[""].layer) + path[len(second) :]
    return path
