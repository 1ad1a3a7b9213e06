"""Ready batches, from whatever can be iterated over again and again."""

import copy
import functools
import inspect
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PyTree

from vernal import _limits
from vernal._data.arrays import as_arrays, signature
from vernal._data.superbatch import Start, Superbatch, empty, nbytes
from vernal.errors import ArgumentError, DataError, kind

# What loaders call the methods by which they return their state, and take it back.
_STATE_METHODS = (("state_dict", "load_state_dict"), ("get_state", "set_state"))


class LoaderSource:
    """Ready batches from anything that can be iterated over again and again.

    Args:
        loader: A list, a data loader, or a function that returns batches to iterate over.
        batch_size: To be refused: the batches have a size already.
        name: The argument that `loader` is, for messages.
    """

    def __init__(self, loader: Any, batch_size: int | None, *, name: str = "data"):
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
        self._name = name
        self._loader = loader
        self._capacities: dict[Any, int] = {}  # signature of a batch -> batches in a superbatch
        self.epoch_length = _length(loader)
        self._check_shapes: Callable[[PyTree], Any] = _accept
        self._check_labels: Callable[[PyTree], Any] = _accept

        # The pass that was begun to see the first batch goes on later: a batch is not read twice.
        self._begun: _Pass | None = _Pass(self._opened())
        first = self._begun.peek()
        if first is None:
            raise DataError(f"{name} is a {type(loader).__name__} without a single batch.")
        self.example = _as_batch(first)

    def check_each_batch(
        self, *, shapes: Callable[[PyTree], Any], labels: Callable[[PyTree], Any]
    ) -> None:
        """Check what will be read: the first batch of each shape, and every batch's labels."""
        self._check_shapes = shapes
        self._check_labels = labels

    def superbatches(self, start: Start) -> Iterator[Superbatch]:
        """Yield the batches of a run, in the loader's own order, without end."""
        begun, self._begun = self._begun, None
        epoch, batch, loader_state = start.epoch, start.batch, start.loader_state
        while True:
            if loader_state is not None:
                begun = _Pass(self._opened(), loader_state)
                if loader_state["batch"] == 0 and begun.peek() is None:
                    # The state that the loader had at the end of an epoch leads there again.
                    begun = None
            if begun is None:
                begun = _Pass(self._opened())

            wanted = batch - begun.batch
            skipped = sum(1 for _ in itertools.islice(begun, wanted))
            if skipped < wanted:  # the place was counted over several epochs
                if begun.batch == 0:
                    raise DataError(f"{self._name} had no batches when it was read again.")
                more, batch = divmod(batch, begun.batch)
                epoch, loader_state, begun = epoch + more, None, None
                continue

            yield from self._rest_of_epoch(begun, epoch)
            # The next epoch begins from the loader's state, as it does in a resumed run.
            epoch, batch = epoch + 1, 0
            loader_state, begun = begun.end_state(), None

    def one_pass(self) -> Iterator[Superbatch]:
        """Yield the batches of one epoch."""
        yield from self._rest_of_epoch(_Pass(self._opened()), 0)

    def batches(self, epoch: int, key: PRNGKeyArray | None) -> Iterator[PyTree]:
        """Yield the batches of one epoch one by one, in the loader's own order."""
        return map(_as_batch, self._opened())

    def _opened(self) -> Iterable:
        """Return what to iterate over: the loader, or what a function returns at each call."""
        if not is_function(self._loader):
            return self._loader

        made = self._loader()
        if not isinstance(made, Iterable):
            raise DataError(
                f"{self._name} is a function that returns {kind(made)}; it needs to return batches "
                "to iterate over, anew at each call.\n  Try a function that yields them."
            )
        return made

    def _rest_of_epoch(self, batches: "_Pass", epoch: int) -> Iterator[Superbatch]:
        """Yield what is left of an epoch. What the loader raises comes after the batches before."""
        state, start = batches.state(), batches.batch
        following, failure = self._read(batches)
        if following is None and start == 0 and failure is None:
            raise DataError(
                f"{self._name} had no batches when it was read again."
                "\n  Pass a list, or an object whose __iter__ starts afresh."
            )

        while following is not None:
            shape = signature(following)
            if shape not in self._capacities:
                self._check_shapes(following)
            capacity = self._capacities.get(shape) or self._fitting(following)
            began, items, next_state = time.perf_counter(), [following], state
            while True:
                is_late = time.perf_counter() - began > _limits.current().loader_seconds
                ends_here = len(items) == capacity or is_late
                if ends_here:
                    next_state = batches.state()
                following, failure = self._read(batches)
                if following is None or ends_here or signature(following) != shape:
                    break
                items.append(following)

            # The first superbatch of a shape settles how long all of them are: one compilation.
            capacity = self._capacities.setdefault(shape, capacity if is_late else len(items))
            stop = start + len(items)
            epoch_ends = following is None and failure is None
            yield Superbatch(
                batches=jax.tree.map(functools.partial(_stacked, capacity=capacity), *items),
                epoch=epoch,
                start=start,
                stop=stop,
                batch_size=len(jax.tree.leaves(items[0])[0]),
                epoch_length=stop if epoch_ends else sys.maxsize,
                loader_state=state,
                next_loader_state=batches.end_state() if epoch_ends else None,
            )
            state, start = next_state, stop

        if failure is not None:
            raise failure

    def _fitting(self, batch: PyTree) -> int:
        """Return how many batches like this one a superbatch has space for, at most."""
        limits = _limits.current()
        by_bytes = limits.superbatch_bytes // nbytes(batch)
        return max(1, min(limits.loader_batches, by_bytes, self.epoch_length))

    def _read(self, batches: Iterator) -> tuple[PyTree | None, Exception | None]:
        """Return the next batch, or `None`; and what was raised in its place, if anything was."""
        try:
            item = next(batches, None)
            if item is None:
                return None, None
            batch = _as_batch(item)
            self._check_labels(batch)
        except Exception as failure:
            return None, failure

        return batch, None


class _Pass:
    """One pass over a loader, or what is left of it: an iterator that counts batches."""

    def __init__(self, loader: Iterable, loader_state: Any = None):
        self._of_loader = _state_methods(loader)
        if loader_state is not None and self._of_loader:
            self._of_loader[1](loader_state["state"])
        self._iterator = iter(loader)
        self._of_iterator = None if self._of_loader else _state_methods(self._iterator)
        if loader_state is not None and self._of_iterator:
            self._of_iterator[1](loader_state["state"])

        has_state = self._of_loader or self._of_iterator
        self.batch = loader_state["batch"] if loader_state and has_state else 0
        self._peeked: list = []
        self._state_before_peek: Any = None

    def __iter__(self) -> Iterator:
        return self

    def __next__(self):
        item = self._peeked.pop() if self._peeked else next(self._iterator)
        self.batch += 1
        return item

    def peek(self):
        """Return the first batch, which is still to come; or `None`."""
        self._state_before_peek = self.state()
        self._peeked = list(itertools.islice(self._iterator, 1))
        return self._peeked[0] if self._peeked else None

    def state(self) -> Any:
        """Return what the loader needs to give the next batch again, if it has a state."""
        if self._peeked:
            return self._state_before_peek

        methods = self._of_loader or self._of_iterator
        return methods and {"batch": self.batch, "state": copy.deepcopy(methods[0]())}

    def end_state(self) -> Any:
        """Return what the loader needs, after its last batch, to begin the next epoch."""
        return self.state() | {"batch": 0} if self._of_loader else None


def _accept(batch: PyTree) -> None:
    """Check nothing."""


def _state_methods(owner: Any) -> tuple[Callable, Callable] | None:
    """Return the methods by which an object returns its state, and takes it back, if any."""
    for names in _STATE_METHODS:
        if all(callable(getattr(owner, name, None)) for name in names):
            return getattr(owner, names[0]), getattr(owner, names[1])
    return None


def _length(loader: Any) -> int:
    """Return how many batches a loader has; `sys.maxsize` if it does not tell."""
    try:
        return len(loader)
    except TypeError:  # PyTorch's loaders have a `__len__`, which raises for some data
        return sys.maxsize


def _stacked(*leaves: np.ndarray | Array, capacity: int) -> np.ndarray:
    """Return arrays of one shape, one behind the other, with space for `capacity` of them."""
    first = leaves[0]
    stacked = empty((capacity, *first.shape), np.dtype(first.dtype))
    for row, leaf in zip(stacked, leaves, strict=False):
        row[...] = leaf

    return stacked


def is_function(data: Any) -> bool:
    """Return whether data is a function: one that returns batches, anew at each call."""
    return inspect.isroutine(data) or isinstance(data, functools.partial)


def _as_batch(item: Any) -> PyTree:
    """Return one batch of a loader. A list of arrays, as PyTorch's loaders give, is a tuple."""
    if isinstance(item, list) and item and all(hasattr(part, "shape") for part in item):
        item = tuple(item)
    return as_arrays(item, finite=False)
