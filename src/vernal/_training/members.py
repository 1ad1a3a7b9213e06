"""Many models in one program: what is done for one of them is done for each."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import PyTree


class Members(NamedTuple):
    """How many models are trained at once, and how.

    In a state of many models each array has the models along its leading axis. Its counts, which
    have no axis, are those of all of them.

    Attributes:
        number: How many there are.
        one_by_one: Whether a step is made for one after the other, with the bits of a model that
            trains alone; otherwise for all at once, by `jax.vmap`.
        batch_axes: Of each array of a batch, the axis of the models; `None` if they share it.
    """

    number: int
    one_by_one: bool
    batch_axes: tuple[int | None, ...]


def for_each(members: Members | None, function: Callable, batch: PyTree, *trees: PyTree) -> PyTree:
    """Call `function(batch, *trees)` for each member, in a program that is being traced.

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
    axes = members.batch_axes

    def of_one(stacked: PyTree, leaves: list) -> PyTree:
        return function(structure.unflatten(leaves), *eqx.combine(stacked, shared))

    if not members.one_by_one:
        return jax.vmap(of_one, in_axes=(0, list(axes)))(stacked, leaves)

    def in_turn(stacked_and_own: tuple[PyTree, list]) -> PyTree:
        def body(carry: tuple) -> tuple:
            (stacked, own), shared = lax.optimization_barrier((stacked_and_own, leaves))
            rest = iter(own)
            each = zip(shared, axes, strict=True)
            parts = [leaf if axis is None else next(rest) for leaf, axis in each]
            return carry[0] + 1, of_one(stacked, parts)

        # The loop that a model alone has, of one turn: so XLA fuses a step as it does there, and
        # nothing of it with what is around. It must not know the number of turns.
        turns = lax.optimization_barrier(jnp.int32(1))
        shapes = jax.eval_shape(lambda: body((jnp.int32(0),))[1])
        nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return lax.while_loop(lambda carry: carry[0] < turns, body, (jnp.int32(0), nothing))[1]

    each = zip(leaves, axes, strict=True)
    own = [jnp.moveaxis(leaf, axis, 0) for leaf, axis in each if axis is not None]
    return lax.map(in_turn, (stacked, own))


def is_stacked(leaf: Any) -> bool:
    """Return whether a leaf of a state of many models is an array of one for each."""
    return eqx.is_array(leaf) and leaf.ndim > 0


def member(state: PyTree, index: int) -> PyTree:
    """Return what one member has of a state of many."""
    return jax.tree.map(lambda leaf: leaf[index] if is_stacked(leaf) else leaf, state)
