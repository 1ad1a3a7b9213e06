"""The batches of a sweep: those that all members share, and those of an order for each."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from vernal import _limits
from vernal._data.array_source import ArraySource
from vernal._data.sources import Source
from vernal._data.superbatch import Start, Superbatch


def side_by_side(
    source: Source, count: int, *, weighted: PyTree | None, own_orders: bool
) -> tuple["SharedOrder | OwnOrders", tuple[int | None, ...]]:
    """Return the batches that many members train on.

    Args:
        source: Those of one member.
        count: How many members there are.
        weighted: The data with a column of weights for each member; `None` if there are none.
        own_orders: Whether each member takes the examples in an order of its own.

    Returns:
        The batches; and of each array of a batch the axis of the members, `None` if they share it.
    """
    if not (own_orders and isinstance(source, ArraySource) and source.pass_length > 1):
        source, axes = weighted_source(source, weighted, trains=True)
        return SharedOrder(source), axes
    data = source.arrays if weighted is None else weighted
    # As much memory for all as for one alone.
    bytes_of_one = _limits.current().superbatch_bytes // count
    with _limits.limits(superbatch_bytes=bytes_of_one, gathers_on_host=True):
        each = ArraySource(data, source.batch_size, shuffle=True, trains=True)
    own = OwnOrders(each, weights=weighted is not None)
    return own, (0,) * len(jax.tree.leaves(each.example))


def weighted_source(
    source: Source, weighted: PyTree | None, *, trains: bool = False
) -> tuple[Source, tuple[int | None, ...]]:
    """Return batches with a column of weights for each member, and the axis of the members."""
    if weighted is None or not isinstance(source, ArraySource):
        return source, (None,) * len(jax.tree.leaves(source.example))
    shuffle = source.shuffles
    columns = ArraySource(weighted, source.batch_size, shuffle=shuffle, trains=trains)
    return columns, (*(None,) * (len(jax.tree.leaves(columns.example)) - 1), 1)


def of_each_member(source: Source, axes: tuple[int | None, ...], count: int) -> list[Source]:
    """Return the batches of each member, in the order of the data, with its own column alone."""
    if all(axis is None for axis in axes):
        return [source] * count
    x, y, columns = source.arrays  # pyright: ignore[reportAttributeAccessIssue]
    size = source.batch_size  # pyright: ignore[reportAttributeAccessIssue]
    return [ArraySource((x, y, columns[:, i]), size) for i in range(count)]


class ReadOnce:
    """One pass over a loader, for many members to be measured on the same batches.

    Args:
        source: The loader.
    """

    def __init__(self, source: Source):
        self._superbatches = list(source.one_pass())

    def one_pass(self) -> Iterator[Superbatch]:
        """Yield the batches of the pass."""
        return iter(self._superbatches)


class SharedOrder:
    """One order for all members: that of the first one's key.

    Args:
        source: The batches.
    """

    def __init__(self, source: Source):
        self._source = source
        self.pass_length = source.pass_length

    def superbatches(self, start: Start) -> Iterator[Superbatch]:
        """Yield the batches of a run, without end."""
        keys: Any = start.key
        yield from self._source.superbatches(replace(start, key=keys[0]))


class OwnOrders:
    """An order for each member, that of its key: the members' batches lie side by side.

    Args:
        source: Makes the batches of any one of them.
        weights: Whether the third array of a batch has a column for each member.
    """

    def __init__(self, source: ArraySource, *, weights: bool):
        self._source = source
        self._weights = weights
        self.pass_length = source.pass_length

    def superbatches(self, start: Start) -> Iterator[Superbatch]:
        """Yield the batches of a run, without end."""
        keys: Any = start.key
        each = [self._source.superbatches(replace(start, key=key)) for key in keys]
        while True:
            parts = [self._own(next(superbatches), i) for i, superbatches in enumerate(each)]
            batches = jax.tree.map(_side_by_side, *(part.batches for part in parts))
            last_batches = None
            if parts[0].last_batches is not None:
                last_batches = jax.tree.map(_side_by_side, *(part.last_batches for part in parts))
            yield replace(parts[0], batches=batches, last_batches=last_batches)

    def _own(self, superbatch: Superbatch, i: int) -> Superbatch:
        """Leave of the weights one member's column."""

        def own(batches: PyTree) -> PyTree:
            if not self._weights or batches is None:
                return batches
            x, y, weights = batches
            return x, y, weights[..., i]

        batches, last_batches = own(superbatch.batches), own(superbatch.last_batches)
        return replace(superbatch, batches=batches, last_batches=last_batches)


def _side_by_side(*leaves: Any) -> np.ndarray:
    return np.stack(leaves, axis=1)
