"""Ready batches, from whatever can be iterated over again and again."""

import copy
import functools
import inspect
import math
import operator
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, PRNGKeyArray, PyTree

from vernal import _hosts, _limits, _sharding
from vernal._data.arrays import as_batch, empty, nbytes, number_of_examples, signature
from vernal._data.superbatch import Start, Superbatch
from vernal.errors import DataError, kind, warn

# What loaders call the methods by which they return their state, and take it back.
_STATE_METHODS = (("state_dict", "load_state_dict"), ("get_state", "set_state"))
_AFRESH = "\n  Pass what it was made from: a list, or an object whose __iter__ starts afresh."


class LoaderSource:
    """Ready batches from anything that can be iterated over again and again.

    Args:
        loader: A list, a data loader, or a function that returns batches to iterate over.
        aligned: Whether the parts of a batch need the same number of examples.
        name: The argument that `loader` is, for messages.
        mesh: The devices that share each batch; `None` is one alone.
    """

    def __init__(self, loader: Any, *, aligned: bool, name: str, mesh: Mesh | None = None):
        if isinstance(loader, Iterator):
            once = "which can be read only once; every epoch reads it again"
            raise DataError(f"{name} is {kind(loader)}, {once}.{_AFRESH}")
        self._name = name
        self._aligned = aligned
        self._mesh = mesh
        self._loader = loader
        self._capacities: dict[Any, int] = {}  # signature of a batch -> batches in a superbatch
        # PyTorch's loaders have a `__len__`, which raises `TypeError` for some data.
        self.pass_length = operator.length_hint(loader, sys.maxsize)
        self._check_shapes: Callable[[PyTree], Any] = lambda batch: None
        self._check_labels: Callable[[PyTree], Any] = lambda batch: None
        self._next_pass: Any = None  # the mark with which `one_pass` begins
        self._passes_differ = False
        self._is_resumed = False

        self.example: PyTree = None  # the first batch, once it is read
        # The pass that was begun to see the first batch goes on later: a batch is not read twice.
        self._begun: _Pass | None = self._pass()
        if self._begun.failure is not None:
            raise self._begun.failure
        self.example = self._begun.following
        size = number_of_examples(self.example)
        if size is not None:
            given = f"the first batch of {name} has {size} examples"
            _sharding.check_divides(mesh, size, given=given, fix="Make batches of {}, say.")

    @property
    def kept(self) -> dict[str, Any]:
        """What `resume` needs to know of the passes so far."""
        return {"next_pass": self._next_pass, "passes_differ": self._passes_differ}

    def resume(self, kept: dict[str, Any] | None, *, is_later: bool) -> None:
        """Go on in a resumed run.

        Args:
            kept: What `kept` was; `None` if that is not known.
            is_later: Whether a pass was over already.
        """
        self._is_resumed = is_later
        if kept is not None:
            self._next_pass = kept["next_pass"]
            self._note_passes(differ=kept["passes_differ"])

    def _note_passes(self, *, differ: bool) -> None:
        """Note whether passes begin with other batches; warn if a resumed run cannot know which."""
        if differ and self._is_resumed and not self._passes_differ:
            given = f"{self._name} is {kind(self._loader)} whose passes differ, without a state"
            warn(
                f"{given}: it began anew, so the resumed run has other batches than without the "
                "break.\n  Give it state_dict() and load_state_dict(state), or pass arrays, which "
                "Vernal shuffles."
            )
        self._passes_differ |= differ

    def check_each_batch(self, *, shapes: Callable, labels: Callable) -> None:
        """Check what will be read: the first batch of each shape, and every batch's labels."""
        self._check_shapes = shapes
        self._check_labels = labels
        labels(self.example)

    def superbatches(self, start: Start) -> Iterator[Superbatch]:
        """Yield the batches of a run, in the loader's own order, without end."""
        data_pass, batch = start.data_pass, start.batch
        batches, self._begun = self._begun, None
        if batches is None or start.loader_state is not None:
            batches = self._pass(start.loader_state)
        while True:
            while batches.following is not None and batches.cursor < batch:
                batches.advance(marks=batches.cursor + 1 == batch)
            yield from self._rest_of_pass(batches, data_pass)
            # Batches may have been counted over several passes. These are not read.
            skipped, batch = divmod(max(0, batch - batches.cursor), batches.cursor)
            data_pass += 1 + skipped
            # The next pass begins from the loader's state, as it does in a resumed run.
            batches = self._pass(batches.mark)

    def one_pass(self) -> Iterator[Superbatch]:
        """Yield the batches of one pass."""
        batches = self._pass(self._next_pass)
        yield from self._rest_of_pass(batches, 0)
        self._next_pass = batches.mark

    def _pass(self, mark: Any = None) -> "_Pass":
        """Begin to read the loader, from a `_Pass.mark` on if there is one."""
        # The state that a loader had at the end of a pass may lead there again.
        for begin in (mark, None):
            batches = _Pass(self._opened(), self._as_batch, begin)
            if batches.cursor or batches.following is not None or batches.failure is not None:
                pair = batches.following, self.example
                if batches.mark is None and all(each is not None for each in pair):
                    self._note_passes(differ=not _are_equal(*pair))
                return batches
        when = "" if self.example is None else " when it was read again"
        given = f"{self._name} is {kind(self._loader)}"
        raise DataError(f"{given} without a single batch{when}.{_AFRESH}")

    def batches(self, data_pass: int, key: PRNGKeyArray | None) -> Iterator[PyTree]:
        """Yield the batches of one pass one by one, in the loader's own order."""
        for number, item in enumerate(self._opened()):
            yield self._as_batch(item, number)

    def _opened(self) -> Iterable:
        """Return what to iterate over: the loader, or what a function returns at each call."""
        made = self._loader() if is_function(self._loader) else self._loader
        if not isinstance(made, Iterable):
            given = f"{self._name} is a function that returns {kind(made)}"
            raise DataError(f"{given}, no iterable of batches.\n  Try a function that yields them.")
        return made

    def _rest_of_pass(self, batches: "_Pass", data_pass: int) -> Iterator[Superbatch]:
        """Yield what is left of a pass. What the loader raises comes after the batches before."""
        while batches.following is not None:
            shape = signature(batches.following)
            capacity = self._capacities.get(shape)
            limits = _limits.current()
            if capacity is None:
                self._check_shapes(batches.following)
                by_bytes = limits.superbatch_bytes // max(1, nbytes(batches.following))
                capacity = max(1, min(limits.loader_batches, by_bytes, self.pass_length))
            loader_state, start = batches.mark, batches.cursor
            # Several hosts need to stack as many.
            waits = math.inf if _hosts.are_several(self._mesh) else limits.loader_seconds
            until = time.perf_counter() + waits
            items = []
            is_full = False
            while not is_full and signature(batches.following) == shape:
                items.append(batches.following)
                is_full = len(items) == capacity or time.perf_counter() > until
                batches.advance(marks=is_full)

            # The first superbatch of a shape settles how long all of them are: one compilation.
            capacity = self._capacities.setdefault(shape, capacity if is_full else len(items))
            pass_ends = batches.following is None and batches.failure is None
            yield Superbatch(
                batches=jax.tree.map(functools.partial(self._stacked, capacity=capacity), *items),
                data_pass=data_pass,
                start=start,
                stop=batches.cursor,
                batch_size=number_of_examples(items[0]) or 1,
                pass_length=batches.cursor if pass_ends else sys.maxsize,
                loader_state=loader_state,
                next_loader_state=batches.mark if pass_ends else None,
            )

        if batches.failure is not None:
            raise batches.failure

    def _stacked(self, *leaves: np.ndarray, capacity: int) -> np.ndarray | Array:
        """Return arrays of one shape, one behind the other, with space for `capacity` of them."""
        stacked = empty((capacity, *leaves[0].shape), leaves[0].dtype)
        np.stack(leaves, out=stacked[: len(leaves)])
        return _sharding.local_batches(self._mesh, stacked)

    def _as_batch(self, item: Any, number: int) -> PyTree:
        """Make arrays of a batch, and check it."""
        if item is None:
            read = f"{self._name}()" if is_function(self._loader) else self._name
            given = f"batch {number} of {self._name}, counted from 0, is None; a batch is needed"
            hint = f"Leave it out: lambda: (batch for batch in {read} if batch is not None)."
            raise DataError(f"{given}.\n  {hint}")
        batch = as_batch(item, aligned=self._aligned)
        self._check_labels(batch)
        if isinstance(self._loader, list):
            return batch
        # A copy, on the host: a loader may fill the same memory again for its next batch.
        return jax.tree.map(np.array, batch)


class _Pass:
    """One pass over a loader, or what is left of it, with the next batch always read.

    Args:
        loader: What to iterate over.
        as_batch: What to make of each item, and of its number.
        mark: Another pass's `mark`, to begin there.

    Attributes:
        following: The next batch; `None` at the end of the pass, and after a failure.
        failure: What was raised in place of the next batch.
        cursor: The number of the next batch.
        mark: The loader's state before the next batch, or before an earlier one, and the number of
            this batch. At the end of the pass: what the next pass begins with. `None` if the
            loader has no state.
    """

    def __init__(self, loader: Iterable, as_batch: Callable[[Any, int], PyTree], mark: Any = None):
        self._as_batch = as_batch
        of_loader = _state_of(loader, mark)
        self._iterator = iter(loader)
        self._state = of_loader or _state_of(self._iterator, mark)
        self._outlasts_a_pass = of_loader is not None
        self.failure: Exception | None = None
        self.cursor: int = mark["batch"] if self._state and mark else 0
        self.mark = self._marked(self.cursor)
        self.following = self._read()

    def advance(self, *, marks: bool) -> None:
        """Go on to the next batch, and mark it if that is wanted: a state takes time to copy."""
        self.cursor += 1
        if marks:
            self.mark = self._marked(self.cursor)
        self.following = self._read()

    def _read(self) -> PyTree:
        try:
            return self._as_batch(next(self._iterator), self.cursor)
        except StopIteration:
            self.mark = self._marked(0) if self._outlasts_a_pass else None
        except Exception as failure:
            self.failure = failure
        return None

    def _marked(self, batch: int) -> Any:
        return self._state and {"batch": batch, "state": copy.deepcopy(self._state())}


def _are_equal(one: PyTree, other: PyTree) -> bool:
    """Return whether two batches have the same numbers."""
    if signature(one) != signature(other):
        return False
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(a, b, equal_nan=a.dtype.kind in "fc") for a, b in pairs)


def _state_of(owner: Any, mark: Any) -> Callable | None:
    """Return the method by which an object returns its state, if any; it first gets a mark's."""
    for get, put in _STATE_METHODS:
        if callable(getattr(owner, get, None)) and callable(getattr(owner, put, None)):
            if mark is not None:
                getattr(owner, put)(mark["state"])
            return getattr(owner, get)
    return None


def is_function(data: Any) -> bool:
    """Return whether data is a function: one that returns batches, anew at each call."""
    return inspect.isroutine(data) or isinstance(data, functools.partial)
