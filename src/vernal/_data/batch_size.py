"""How many examples are in a batch of arrays: as asked, and as the devices can share them."""

import sys
from typing import Any

from jax.sharding import Mesh

from vernal._sharding import batch_shares, check_divides
from vernal.errors import whole_number


def checked_batch_size(batch_size: Any) -> int:
    """Return a batch size as an int, without bound for `None`.

    Raises:
        ArgumentError: If it is not a whole number from 1.
    """
    if batch_size is None:
        return sys.maxsize
    hint = "\n  batch_size=None is the full batch."
    return whole_number("batch_size", batch_size, at_least=1, hint=hint)


def batch_size_for(examples: int, batch_size: Any, *, mesh: Mesh | None, trains: bool) -> int:
    """Return how many of some examples a batch has.

    The full batch that is only measured is cut into one that the devices can share, and the rest.

    Args:
        examples: How many there are.
        batch_size: As it was asked for; `None` is all of them.
        mesh: The devices that share each batch; `None` is one alone.
        trains: Whether the batches are trained on.

    Raises:
        ArgumentError: If it is not a whole number from 1, or the devices cannot share a batch.
    """
    size = min(examples, checked_batch_size(batch_size))
    if batch_size is not None:
        fix = "Try batch_size={}."
        check_divides(mesh, batch_size, given=f"batch_size={batch_size} was given", fix=fix)
    elif trains:
        fix = "Pass a batch_size, or leave examples out, as in x[:{}]."
        check_divides(mesh, size, given=f"the full batch has {examples} examples", fix=fix)
    elif mesh is not None and examples > batch_shares(mesh):
        size -= examples % batch_shares(mesh)
    return size
