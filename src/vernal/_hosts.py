"""What the processes of one run, one on each host, agree on: when a chunk ends, and when the run.

All of them make the same calls of compiled programs in the same order; else they would wait for
each other for ever. So nothing may depend on one host's clock, or on its signals.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh


def on_host(array: Any) -> Any:
    """Return an array of several processes in the memory of each; others as they are."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable:
        return array
    if array.is_fully_replicated:
        return np.asarray(array)
    return _multihost_utils().process_allgather(array, tiled=True)


def wait_for_all(place: str) -> None:
    """Wait until every process is here."""
    if jax.process_count() > 1:
        _multihost_utils().sync_global_devices(place)


def are_several(mesh: Mesh | None) -> bool:
    """Return whether a mesh has devices of several processes."""
    return mesh is not None and jax.process_count() > 1


def is_first() -> bool:
    """Return whether this process prints, draws and logs for all."""
    return jax.process_index() == 0


def first_ones(mesh: Mesh | None, value: Any) -> Any:
    """Return the first process's value of a number; without several processes, the value."""
    if not are_several(mesh):
        return value
    return type(value)(_multihost_utils().broadcast_one_to_all(np.asarray(value)))


def any_ones(mesh: Mesh | None, value: bool) -> bool:
    """Return whether a value is true on any of the processes."""
    if not are_several(mesh):
        return value
    return bool(np.any(_multihost_utils().process_allgather(np.asarray(value))))


def _multihost_utils() -> Any:
    from jax.experimental import multihost_utils  # which takes long to import

    return multihost_utils
