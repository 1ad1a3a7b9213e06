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
from jaxtyping import Array, PRNGKeyArray, PyTree

from vernal._data import superbatch as _stack
from vernal._data.arrays import as_arrays
from vernal._data.memory import room_for
from vernal._data.superbatch import AbstractSource, Stack, nbytes, put
from vernal._training.jit import signature
from vernal.errors import ArgumentError, DataError, kind

# A stack has no more batches than these, and no more than are read in so many seconds: the device
# trains on the ones before in the meantime, and Ctrl-C is heard.
_MOST_BATCHES, _SECONDS = 256, 0.1
# What loaders call the methods by which they tell their state, and take it back.
_STATES = (("state_dict", "load_state_dict"), ("get_state", "set_state"))


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
        self._loader = loader
        self._rooms: dict[Any, int] = {}  # signature of a batch -> batches in a stack
        self._start: Any = None  # where to begin, as `Stack.mark`
        self.check: Callable[[PyTree], Any] = lambda batch: None  # the first batch of each shape
        self.check_labels: Callable[[PyTree], Any] = lambda batch: None  # every batch
        self.length = _length(loader)
        self._begun: _Pass | None = _Pass(self._opened())
        first = self._begun.peek()
        if first is None:
            raise DataError(f"{name} is a {type(loader).__name__} without a single batch.")
        self.example = _as_batch(first)

    def _opened(self) -> Iterable:
        """What to iterate over: the loader, or what a function makes anew at each call."""
        if not is_function(self._loader):
            return self._loader
        made = self._loader()
        if not isinstance(made, Iterable):
            raise DataError(
                f"{self._name} is a function that returns {kind(made)}; it needs to return batches "
                "to iterate over, anew at each call.\n  Try a function that yields them."
            )
        return made

    def begin(self, key: PRNGKeyArray | None, mark: Any = None, until: int = sys.maxsize) -> None:
        """Begin where a run before left the loader: its order is its own, whatever the key."""
        self._start = mark

    def stacks(self, epoch: int, batch: int) -> Iterator[Stack]:
        """The run's batches from a place on, without end."""
        mark, begun = self._start, self._begun
        self._begun = None
        while True:
            if mark is not None:
                begun = _Pass(self._opened(), mark)
                if mark["batch"] == 0 and begun.peek() is None:
                    # What it told at the end of an epoch led there again, and not to the next.
                    begun = None
            # What was begun to look at the first batch goes on, and is not read twice.
            begun = begun or _Pass(self._opened())
            wanted = batch - begun.batch
            skipped = sum(1 for _ in itertools.islice(begun, wanted))
            if skipped < wanted:  # the place was counted over several epochs
                if begun.batch == 0:
                    raise DataError(f"{self._name} had no batches when it was read again.")
                more, batch = divmod(batch, begun.batch)
                epoch, mark, begun = epoch + more, None, None
                continue
            yield from self._epoch(begun, epoch)
            # Through its state, as a resumed run does: so both are the same run.
            epoch, batch, mark, begun = epoch + 1, 0, begun.end_mark(), None

    def one_pass(self) -> Iterator[Stack]:
        """One epoch, and no more."""
        yield from self._epoch(_Pass(self._opened()), 0, clear=True)

    def _epoch(self, batches: "_Pass", epoch: int, *, clear: bool = False) -> Iterator[Stack]:
        """What is left of an epoch; what the loader raises comes after the batches before it."""
        mark, first = batches.mark(), batches.batch
        pending, failure = self._read(batches)
        if pending is None and first == 0 and failure is None:
            raise DataError(
                f"{self._name} had no batches when it was read again."
                "\n  Pass a list, or an object whose __iter__ starts afresh."
            )
        while pending is not None:
            shape = signature(pending)
            if shape not in self._rooms:
                self.check(pending)
            fitting = min(_MOST_BATCHES, _stack.STACK_BYTES // nbytes(pending), self.length)
            room = self._rooms.get(shape) or max(1, fitting)
            started, items, next_mark = time.perf_counter(), [pending], mark
            while True:
                late = time.perf_counter() - started > _SECONDS
                if len(items) == room or late:
                    next_mark = batches.mark()
                pending, failure = self._read(batches)
                if pending is None or len(items) == room or late or signature(pending) != shape:
                    break
                items.append(pending)
            # The first stack of a shape settles how long its stacks are: one compilation for all.
            room = self._rooms.setdefault(shape, room if late else len(items))
            end = first + len(items)
            ends = pending is None and failure is None
            stacked = functools.partial(_stacked, room=room, clear=clear)
            yield Stack(
                put(jax.tree.map(stacked, *items)),
                *(first, end, epoch, len(jax.tree.leaves(items[0])[0])),
                length=end if ends else sys.maxsize,
                origin=first,
                mark=mark,
                end_mark=batches.end_mark() if ends else None,
            )
            mark, first = next_mark, end
        if failure is not None:
            raise failure

    def _read(self, batches: Iterator) -> tuple[PyTree | None, Exception | None]:
        """The next batch, or `None` and what was raised in its place, if anything was."""
        try:
            item = next(batches, None)
            batch = None if item is None else _as_batch(item)
            if batch is not None:
                self.check_labels(batch)
        except Exception as failure:
            return None, failure
        return batch, None


class _Pass:
    """One pass over a loader, or what is left of it: an iterator that counts."""

    def __init__(self, loader: Iterable, mark: Any = None):
        of_loader = _state_methods(loader)
        if mark is not None and of_loader:
            of_loader[1](mark["state"])
        self._iterator = iter(loader)
        of_iterator = None if of_loader else _state_methods(self._iterator)
        if mark is not None and of_iterator:
            of_iterator[1](mark["state"])
        resumed = mark if of_loader or of_iterator else None
        self.batch = resumed["batch"] if resumed else 0  # the next one's number
        self._of_loader, self._of_iterator = of_loader, of_iterator
        self._peeked: list = []

    def __iter__(self) -> Iterator:
        return self

    def __next__(self):
        item = self._peeked.pop() if self._peeked else next(self._iterator)
        self.batch += 1
        return item

    def peek(self):
        """The first batch, which is still to come; or `None`."""
        self._first_mark = self.mark()
        self._peeked = list(itertools.islice(self._iterator, 1))
        return self._peeked[0] if self._peeked else None

    def mark(self) -> Any:
        """What the loader needs to give the next batch again, if it has a state."""
        if self._peeked:
            return self._first_mark
        methods = self._of_loader or self._of_iterator
        return methods and {"batch": self.batch, "state": copy.deepcopy(methods[0]())}

    def end_mark(self) -> Any:
        """What it needs, after its last batch, to begin the next epoch."""
        return self.mark() | {"batch": 0} if self._of_loader else None


def _state_methods(owner: Any) -> tuple[Callable, Callable] | None:
    """The methods by which an object tells its state, and takes it back, if it has them."""
    for names in _STATES:
        if all(callable(getattr(owner, name, None)) for name in names):
            return getattr(owner, names[0]), getattr(owner, names[1])
    return None


def _length(loader: Any) -> int:
    """How many batches a loader has; `sys.maxsize` if it does not tell."""
    try:
        return len(loader)
    except TypeError:  # PyTorch's loaders have a `__len__`, which raises for some data
        return sys.maxsize


def _stacked(*leaves: np.ndarray | Array, room: int, clear: bool) -> np.ndarray:
    """Arrays of the same shape one behind the other, with room for more of them."""
    shape = room, *leaves[0].shape
    gathered = room_for(shape, leaves[0].dtype, len(leaves), clear=clear)
    for row, leaf in zip(gathered, leaves, strict=False):
        row[...] = leaf
    return gathered


def is_function(data) -> bool:
    """Whether data is a function: one that makes batches, anew at each call."""
    return inspect.isroutine(data) or isinstance(data, functools.partial)


def _as_batch(item) -> PyTree:
    """One batch of a loader. A list of arrays, as PyTorch's loaders give, is a tuple."""
    if isinstance(item, list) and item and all(hasattr(part, "shape") for part in item):
        item = tuple(item)
    return as_arrays(item, finite=False)
