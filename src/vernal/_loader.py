"""Ready batches, from whatever can be iterated over again and again."""

import functools
import inspect
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from vernal import _stack
from vernal._arrays import as_arrays
from vernal._errors import ArgumentError, DataError, kind
from vernal._jit import signature
from vernal._stack import AbstractSource, Stack, nbytes, on_device


class LoaderSource(AbstractSource):
    """Ready batches from anything that can be iterated again and again."""

    def __init__(self, loader: Any, batch_size: int | None, *, name: str = "data"):
        self._name = name
        if batch_size is not None:
            raise ArgumentError(
                f"batch_size={batch_size} was given with a loader, whose batches have a size "
                "already.\n  Leave batch_size out, or pass arrays."
            )
        if isinstance(loader, Iterator):
            raise DataError(
                f"{name} is a {type(loader).__name__}, which can be read only once; every epoch "
                "reads it again.\n  Pass what it was made from: a list, or an object whose "
                "__iter__ starts afresh."
            )
        self._loader = _Remade(loader, name) if is_function(loader) else loader
        self._capacities: dict[Any, int] = {}
        self.check: Callable[[PyTree], Any] = lambda batch: None  # the first batch of each shape
        self.check_labels: Callable[[PyTree], Any] = lambda batch: None  # every batch
        self.length = len(loader) if isinstance(loader, Sized) else sys.maxsize
        first = next(iter(self._loader), None)
        if first is None:
            raise DataError(f"{name} is a {type(loader).__name__} without a single batch.")
        self.example = _as_batch(first)

    def order_by(self, key: PRNGKeyArray) -> None:
        """Do nothing: a loader has an order of its own."""

    def stacks(self, epoch: int, batch: int) -> Iterator[Stack]:
        """The run's batches from a place on, without end."""
        while True:
            batches = map(_as_batch, self._loader)
            skipped = sum(1 for _ in itertools.islice(batches, batch))
            if skipped < batch:  # the place was counted over several epochs
                if skipped == 0:
                    raise DataError(f"{self._name} had no batches when it was read again.")
                more, batch = divmod(batch, skipped)
                epoch += more
                continue
            yield from self._epoch(batches, epoch, batch)
            epoch, batch = epoch + 1, 0

    def _epoch(self, batches: Iterator[PyTree], epoch: int, batch: int) -> Iterator[Stack]:
        pending = next(batches, None)
        if pending is None and batch == 0:
            raise DataError(
                f"{self._name} had no batches when it was read again."
                "\n  Pass a list, or an object whose __iter__ starts afresh."
            )
        while pending is not None:
            shape = signature(pending)
            if shape not in self._capacities:
                self.check(pending)
            fitting = min(256, _stack.STACK_BYTES // nbytes(pending))
            room = self._capacities.get(shape) or max(1, fitting)
            items = [pending]
            while (pending := next(batches, None)) is not None:
                if len(items) == room or signature(pending) != shape:
                    break
                items.append(pending)
            for item in items:
                self.check_labels(item)
            # The first stack of a shape settles how long its stacks are: one compilation for all.
            room = self._capacities.setdefault(shape, len(items))
            padded = items + items[:1] * (room - len(items))
            stacked = on_device(jax.tree.map(lambda *leaves: np.stack(leaves), *padded))
            size = len(jax.tree.leaves(items[0])[0])
            end = batch + len(items)
            length = end if pending is None else sys.maxsize
            yield Stack(stacked, batch, end, epoch, size, length, origin=batch)
            batch = end


class _Remade:
    """What a function makes to iterate over, made anew each time."""

    def __init__(self, function: Callable, name: str):
        self._function, self._name = function, name

    def __iter__(self) -> Iterator:
        made = self._function()
        if not isinstance(made, Iterable):
            raise DataError(
                f"{self._name} is a function that returns {kind(made)}; it needs to return batches "
                "to iterate over, anew at each call.\n  Try a function that yields them."
            )
        return iter(made)


def is_function(data) -> bool:
    """Whether data is a function: one that makes batches, anew at each call."""
    return inspect.isroutine(data) or isinstance(data, functools.partial)


def _as_batch(item) -> PyTree:
    """One batch of a loader. A list of arrays, as PyTorch's loaders give, is a tuple."""
    if isinstance(item, list) and item and all(hasattr(part, "shape") for part in item):
        item = tuple(item)
    return as_arrays(item, finite=False)
