"""Which device of a mesh has which part: of a batch its share, of a state what its arrays say.

JAX and XLA distribute the work. Here is said how: batches are split along the mesh's first axis;
arrays of a state that lie on the mesh already stay as they are, and all others are on every device.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from vernal import _hosts
from vernal.errors import ArgumentError, wrong_argument


def check_mesh(mesh: Any) -> None:
    """Raise `ArgumentError` if this is neither `None` nor a mesh that JAX may share work out on."""
    if mesh is None:
        return
    devices = jax.device_count()
    make = f'jax.make_mesh(({devices},), ("data",), axis_types=(jax.sharding.AxisType.Auto,))'
    if not isinstance(mesh, Mesh):
        raise wrong_argument("mesh", mesh, "a jax.sharding.Mesh", f"Try {make}.")
    if any(kind != AxisType.Auto for kind in mesh.axis_types):
        sizes, names = tuple(mesh.shape.values()), mesh.axis_names
        autos = f"(jax.sharding.AxisType.Auto,) * {len(names)}"
        raise ArgumentError(
            "mesh has Explicit axes, where models have to say how each operation is shared out; "
            f"Auto axes are needed.\n  Try jax.make_mesh({sizes}, {names}, axis_types={autos})."
        )


def check_divides(mesh: Mesh | None, size: int, *, given: str, fix: str) -> None:
    """Raise `ArgumentError` if a batch cannot be split evenly over a mesh's first axis.

    Args:
        mesh: The mesh; `None` takes any size.
        size: Examples in a batch.
        given: What the batch is, for the message.
        fix: What to do, with {} for a number of examples.
    """
    if mesh is None or size % batch_shares(mesh) == 0:
        return
    shares = batch_shares(mesh)
    axis = f"the {shares} devices of the mesh's axis {mesh.axis_names[0]!r}"
    fix = fix.format(size // shares * shares or shares)
    raise ArgumentError(f"{given}, which {axis} cannot share evenly.\n  {fix}")


def batch_shares(mesh: Mesh) -> int:
    """Return in how many parts a batch is split."""
    return mesh.shape[mesh.axis_names[0]]


def batch_sharding(mesh: Mesh, shape: tuple[int, ...], *, axis: int = 0) -> NamedSharding:
    """Return how an array is split whose examples lie along an axis.

    Args:
        mesh: The mesh.
        shape: The array's shape. Where the examples cannot be split evenly, as those of a smaller
            last batch, every device has them all.
        axis: The axis of the examples.
    """
    splits = len(shape) > axis and shape[axis] % batch_shares(mesh) == 0
    spec = (*(None,) * axis, mesh.axis_names[0]) if splits else ()
    return NamedSharding(mesh, PartitionSpec(*spec))


def split_batch(mesh: Mesh | None, batch: PyTree) -> PyTree:
    """Have each device compute on its part of a batch, in a program that is being traced."""
    if mesh is None:
        return batch
    return jax.tree.map(
        lambda leaf: lax.with_sharding_constraint(leaf, batch_sharding(mesh, np.shape(leaf))),
        batch,
    )


def seen_by_all(mesh: Mesh | None, outputs: PyTree) -> PyTree:
    """Give every process all of some outputs, where there are several processes."""
    if mesh is None or not _hosts.are_several(mesh):
        return outputs
    return lax.with_sharding_constraint(outputs, NamedSharding(mesh, PartitionSpec()))


def made_in_parts(
    mesh: Mesh | None,
    shape: tuple[int, ...],
    part_of: Callable[[slice], np.ndarray],
    *,
    axis: int,
) -> np.ndarray | jax.Array:
    """Make an array of examples, of which each device gets its part alone.

    Args:
        mesh: The devices; `None` is one alone.
        shape: The shape of the whole array.
        part_of: Makes the part of the array with some of the examples.
        axis: The axis of the examples.
    """
    if mesh is None:
        return part_of(slice(None))
    sharding = batch_sharding(mesh, shape, axis=axis)
    return jax.make_array_from_callback(
        shape, sharding, lambda index: part_of(slice(None) if index is None else index[axis])
    )


def local_batches(mesh: Mesh | None, batches: np.ndarray) -> np.ndarray | jax.Array:
    """Make arrays of examples, which lie along the second axis, of what this process has read."""
    if mesh is None:
        return batches
    sharding = batch_sharding(mesh, batches.shape, axis=1)
    return jax.make_array_from_process_local_data(sharding, batches)


def split_over_devices(mesh: Mesh | None, batch: PyTree) -> PyTree:
    """Put on each device its part of a batch; without a mesh, the batch on one."""
    if mesh is None:
        return jax.tree.map(jnp.asarray, batch)
    return jax.tree.map(
        lambda leaf: jax.device_put(leaf, batch_sharding(mesh, np.shape(leaf))), batch
    )


def placed(mesh: Mesh | None, tree: PyTree) -> PyTree:
    """Return a PyTree with its arrays on a mesh: those that lie there stay as they are."""
    if mesh is None:
        return tree

    def on_mesh(leaf: Any) -> Any:
        if not eqx.is_array(leaf) or _mesh_of(leaf) == mesh:
            return leaf
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec()))

    return jax.tree.map(on_mesh, tree)


def _mesh_of(leaf: Any) -> Mesh | None:
    return getattr(getattr(leaf, "sharding", None), "mesh", None)


def shardings_of(tree: PyTree) -> tuple[NamedSharding, ...]:
    """Return how the arrays of a PyTree are split, one after the other."""
    return tuple(leaf.sharding for leaf in jax.tree.leaves(tree))


def kept_split(shardings: tuple[NamedSharding, ...] | None, tree: PyTree) -> PyTree:
    """Have arrays split as `shardings_of` said, in a program that is being traced."""
    if shardings is None:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    return structure.unflatten(map(lax.with_sharding_constraint, leaves, shardings))


def split_like_params(mesh: Mesh | None, opt_state: PyTree, params: PyTree) -> PyTree:
    """Split an optimizer's state as its parameters are: what belongs to one lies where it does.

    That is an array of a parameter's shape whose path ends like the parameter's.
    """
    if mesh is None:
        return opt_state
    by_path = dict(jax.tree_util.tree_leaves_with_path(params))

    def like_param(path: tuple, leaf: Any) -> Any:
        endings = (path[i:] for i in range(len(path)))
        for ending in filter(by_path.__contains__, endings):
            sharding = getattr(by_path[ending], "sharding", None)  # what is traced has none
            if eqx.is_array(leaf) and leaf.shape == by_path[ending].shape:
                return jax.device_put(leaf, sharding)
        return leaf

    return placed(mesh, jax.tree_util.tree_map_with_path(like_param, opt_state))
