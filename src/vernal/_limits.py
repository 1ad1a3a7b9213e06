"""How much is done at once, and all that depends on the kind of device: in one place.

The figures bound memory and time. Only `turns_products` changes a result, in its last bits.
"""

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import jax


@dataclass(frozen=True)
class Limits:
    """Bounds of memory and time, and what a kind of device needs.

    Attributes:
        gathers_on_host: Whether NumPy gathers the examples of a batch. Otherwise the device does,
            from a copy of all examples in its memory.
        looks_on_host: Whether NumPy looks if all numbers of a state are finite, where they are.
            Otherwise the device does.
        loops_convolutions: Whether convolutions may run in a compiled loop. In a loop, XLA's CPU
            convolutions take 28 to 38 times as long.
        turns_products: Whether products are computed the fast way round (`vernal._products`).
        steps_per_turn: Steps in one turn of the compiled loop. An accelerator asks the host before
            each turn whether the loop is over.
        superbatch_bytes: Most bytes of batches that are gathered at once. A single batch may be
            larger.
        superbatch_steps: Small epochs share a superbatch until it holds this many steps.
        steps_per_call: Most steps of one compiled call on a batch that repeats.
        chunk_seconds: How long a chunk of steps should take, in seconds: long enough that Python's
            part is small, short enough that a progress bar moves and Ctrl-C is heard.
        first_steps: Steps in the first chunk, whose time is not known yet: a few, so that the error
            of a bad one knows the gradients before it.
        state_bytes_per_second: A chunk may begin with a copy of the state, and ends with a look at
            it. A second for each so many bytes makes both take a hundredth of the time.
        most_chunk_seconds: How long a chunk may take for that reason, in seconds.
        chunk_bytes: Most bytes of data that one chunk passes over.
        chunk_steps: Most steps in one chunk.
        rewound_bytes: Largest state, in bytes, that is copied before each chunk, to go back to when
            numbers stop being finite.
        loader_batches: Most batches of a loader that are stacked at once.
        loader_seconds: How long to wait for a loader before training on what there is, in seconds.
        read_bytes: How much of a file is read at once, in bytes.
        gap_bytes: How much that is not needed is read over rather than skipped, in bytes.
    """

    gathers_on_host: bool = True
    looks_on_host: bool = True
    loops_convolutions: bool = False
    turns_products: bool = not os.environ.get("VERNAL_PLAIN_PRODUCTS")
    steps_per_turn: int = 1
    superbatch_bytes: int = 2**24
    superbatch_steps: int = 2**12
    steps_per_call: int = 2**16
    chunk_seconds: float = 0.25
    first_steps: int = 4
    state_bytes_per_second: int = 4 * 10**7
    most_chunk_seconds: float = 1.0
    chunk_bytes: int = 2**26
    chunk_steps: int = 2**31 - 1
    rewound_bytes: int = 2**30
    loader_batches: int = 256
    loader_seconds: float = 0.1
    read_bytes: int = 2**22
    gap_bytes: int = 2**16


# An accelerator gathers in its own memory, in no time, and soon passes over what it gathered.
_ACCELERATOR = Limits(
    gathers_on_host=False,
    looks_on_host=False,
    loops_convolutions=True,
    steps_per_turn=16,
    superbatch_bytes=2**28,
    superbatch_steps=2**13,
    chunk_bytes=2**29,
)

_changes: ContextVar[dict[str, Any]] = ContextVar("_changes", default={})  # noqa: B039


def current() -> Limits:
    """Return the limits for JAX's default backend, with the changes of `limits`."""
    of_device = Limits() if jax.default_backend() == "cpu" else _ACCELERATOR
    return replace(of_device, **_changes.get())


@contextlib.contextmanager
def limits(**changes: Any) -> Iterator[None]:
    """Change some limits inside of a `with`: for tests, and for unusual machines.

    Args:
        **changes: Fields of `Limits`, by name.
    """
    token = _changes.set({**_changes.get(), **changes})
    try:
        yield
    finally:
        _changes.reset(token)
