"""Which of the two sources of batches some data is: arrays, or a loader of ready batches."""

import operator
import sys
from collections.abc import Iterator, Mapping

import jax
from jaxtyping import PRNGKeyArray, PyTree

from vernal._data.array_source import ArraySource
from vernal._data.loader_source import LoaderSource, is_function
from vernal.errors import ArgumentError, DataError, kind, whole_number

Source = ArraySource | LoaderSource


def is_loader(data: PyTree) -> bool:
    """Return whether data is ready batches to iterate over, and not arrays."""
    if isinstance(data, list) or is_function(data):
        return True

    is_leaf = jax.tree_util.all_leaves([data])
    if is_leaf and isinstance(data, Mapping):  # no dict, which is a tree of arrays
        parts = ", ".join(f"data[{name!r}]" for name in list(data)[:2])
        raise DataError(
            f"data is {kind(data)}; arrays are needed.\n  Try two of its parts: ({parts})."
        )
    is_array_like = hasattr(data, "__array__") or hasattr(data, "toarray") or isinstance(data, str)
    return hasattr(data, "__iter__") and is_leaf and not is_array_like


def check_no_batch_size(batch_size: int | None) -> None:
    """Raise `ArgumentError` for a batch size: ready batches have a size already."""
    if batch_size is not None:
        given = f"batch_size={batch_size} was given with a loader, whose batches have a size."
        raise ArgumentError(f"{given}\n  Leave batch_size out, or pass arrays.")


def steps(data: PyTree, batch_size: int | None = None, epochs: int = 1) -> int:
    """Count the steps that `Trainer.fit` makes: for schedules, which need their number.

    `optax.cosine_decay_schedule(1e-3, vernal.steps(data, 32, epochs))` ends with the run.

    Args:
        data: As in `fit`.
        batch_size: As in `fit`. By default all examples. Not for ready batches.
        epochs: As in `fit`: passes over the data.

    Raises:
        ArgumentError: If `batch_size` or `epochs` cannot be used.
        DataError: If the data cannot be used, or its ready batches cannot be counted.

    Example:
        >>> vernal.steps((x, y), batch_size=16, epochs=2)  # 40 examples: 16, 16 and 8
        6
    """
    epochs = whole_number("epochs", epochs, at_least=0)
    if not is_loader(data):
        return ArraySource(data, batch_size).pass_length * epochs

    check_no_batch_size(batch_size)
    length = operator.length_hint(data, sys.maxsize)
    if length == sys.maxsize:
        hint = "Pass the number of steps to the schedule."
        raise DataError(f"data is {kind(data)}, which has no `len` to count by.\n  {hint}")
    return length * epochs


def batches(
    data: PyTree,
    batch_size: int | None = None,
    *,
    shuffle: bool = True,
    epoch: int = 0,
    key: PRNGKeyArray | None = None,
) -> Iterator[PyTree]:
    """Yield the batches of one epoch, exactly as `Trainer.fit` makes them.

    Args:
        data: A PyTree of arrays with equal leading axes, such as `(x, y)`.
        batch_size: Examples in a batch. By default all of them, which are the most. The last batch
            may be smaller.
        shuffle: Whether to take the examples in the order that `key` and `epoch` fix.
        epoch: Number of the epoch, counted from 0.
        key: The key of the run. By default `jax.random.key(0)`.

    Returns:
        An iterator of batches, each a PyTree like `data`.

    Raises:
        DataError: If `data` cannot be trained on.
        ArgumentError: If `batch_size` is not a whole number from 1.

    Example:
        >>> [len(batch_x) for batch_x, batch_y in vernal.batches((x, y), 16)]
        [16, 16, 8]
    """
    return ArraySource(data, batch_size, shuffle=shuffle).batches(epoch, key)
