"""Which of the two sources of batches some data is: arrays, or a loader of ready batches."""

from collections.abc import Iterator

import jax
from jaxtyping import PRNGKeyArray, PyTree

from vernal._data.array_source import ArraySource
from vernal._data.loader_source import LoaderSource, is_function

Source = ArraySource | LoaderSource


def is_loader(data: PyTree) -> bool:
    """Return whether data is ready batches to iterate over, and not arrays."""
    if isinstance(data, list) or is_function(data):
        return True

    is_leaf = jax.tree_util.all_leaves([data])
    is_array_like = hasattr(data, "__array__") or isinstance(data, str)
    return hasattr(data, "__iter__") and is_leaf and not is_array_like


def as_source(
    data: PyTree,
    batch_size: int | None,
    *,
    shuffle: bool = False,
    trains: bool = False,
    name: str = "data",
) -> Source:
    """Make a source of batches from arrays, or from a loader.

    Args:
        data: A PyTree of arrays, or ready batches to iterate over again and again.
        batch_size: Examples in a batch; `None` is all of them. Not for a loader.
        shuffle: Whether an epoch takes the examples in an order of its own. A loader's batches come
            in its own order.
        trains: Whether the batches are trained on; see `ArraySource`.
        name: The argument that `data` is, for messages.

    Raises:
        DataError: If `data` is neither, or cannot be trained on.
        ArgumentError: If `batch_size` cannot be used.
    """
    if is_loader(data):
        return LoaderSource(data, batch_size, name=name)

    return ArraySource(data, batch_size, shuffle=shuffle, trains=trains, name=name)


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
        batch_size: Examples in a batch. By default all of them. The last batch may be smaller.
        shuffle: Whether to take the examples in the order that `key` and `epoch` fix.
        epoch: Number of the epoch, counted from 0.
        key: The key of the run. By default `jax.random.key(0)`.

    Returns:
        An iterator of batches, each a PyTree like `data`.

    Raises:
        DataError: If `data` cannot be trained on.
        ArgumentError: If `batch_size` is not from 1 to the number of examples.
    """
    source = ArraySource(data, batch_size, shuffle=shuffle, trains=True)
    return source.batches(epoch, key)
