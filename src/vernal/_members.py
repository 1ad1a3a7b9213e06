"""Many models in one program: what is done for one of them is done for each."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import PyTree


class Members(NamedTuple):
    """How many models are trained at once, and how.

    In a state of many models each array has the models along its leading axis. Its counts, which
    have no axis, are those of all of them.

    Attributes:
        number: How many there are.
        one_by_one: Whether the steps of a call are made for one after the other, with the bits of
            a model that trains alone; otherwise each step for all at once, by `jax.vmap`.
        batch_axes: Of each array of a batch, the axis of the models; `None` if they share it.
        unrolled: Whether one after the other is written out in the program, without a loop.
    """

    number: int
    one_by_one: bool
    batch_axes: tuple[int | None, ...]
    unrolled: bool = False


def at_once(members: Members | None, function: Callable, batch: PyTree, *trees: PyTree) -> PyTree:
    """Call `function(batch, *trees)` for all members at once, in a program that is being traced.

    Args:
        members: How; `None` calls it once, for a model alone.
        function: Returns a PyTree of arrays alone.
        batch: What the members share, or have parts of.
        *trees: States of all members.

    Returns:
        What the function returned, with the members along the leading axis of each array.
    """
    if members is None:
        return function(batch, *trees)
    stacked, shared = eqx.partition(trees, is_stacked)
    leaves, structure = jax.tree.flatten(batch)

    def of_one(stacked: PyTree, leaves: list) -> PyTree:
        return function(structure.unflatten(leaves), *eqx.combine(stacked, shared))

    return jax.vmap(of_one, in_axes=(0, list(members.batch_axes)))(stacked, leaves)


def in_turn(
    members: Members, function: Callable, batches: PyTree, *trees: PyTree, stacked_batches: bool
) -> PyTree:
    """Call `function(batches, *trees)` for one member after the other, in a program as above.

    Args:
        members: How.
        function: Returns a PyTree of arrays alone.
        batches: What the members share, or have parts of: one batch, or several trees of them.
        *trees: States of all members.
        stacked_batches: Whether the batches lie along a leading axis.

    Returns:
        What the function returned, with the members along the leading axis of each array.
    """
    stacked, shared = eqx.partition(trees, is_stacked)
    leaves, structure = jax.tree.flatten(batches)
    axes = members.batch_axes * (len(leaves) // len(members.batch_axes))
    pairs = list(zip(leaves, axes, strict=True))
    own = [
        jnp.moveaxis(leaf, axis + stacked_batches, 0) for leaf, axis in pairs if axis is not None
    ]

    def of_one(parts: tuple[PyTree, list]) -> PyTree:
        stacked, own = parts[0], iter(parts[1])
        mine = [leaf if axis is None else next(own) for leaf, axis in pairs]
        return function(structure.unflatten(mine), *eqx.combine(stacked, shared))

    if not members.unrolled:
        return lax.map(of_one, (stacked, own))
    each = [of_one(member((stacked, own), i)) for i in range(members.number)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)


def is_stacked(leaf: Any) -> bool:
    """Return whether a leaf of a state of many models is an array of one for each."""
    return eqx.is_array(leaf) and leaf.ndim > 0


def member(state: PyTree, index: int) -> PyTree:
    """Return what one member has of a state of many."""
    return jax.tree.map(lambda leaf: leaf[index] if is_stacked(leaf) else leaf, state)


def each_member(state: PyTree, number: int) -> list[PyTree]:
    """Return what each member has of a state of many: by way of the host, which is soon done."""

    def parts_of(leaf: Any) -> list:
        if not is_stacked(leaf):
            return [leaf] * number
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return list(leaf)
        return [jnp.asarray(part) for part in np.array(leaf)]

    leaves, structure = jax.tree.flatten(state)
    return [structure.unflatten(each) for each in zip(*map(parts_of, leaves), strict=True)]
