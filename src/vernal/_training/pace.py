"""How many updates are made at once: in a turn of the compiled loop, in a call, in a chunk."""

import jax

from vernal._data import superbatch as _stack
from vernal._data.superbatch import Stack

# A stack of one batch that repeats, the full batch, has room for so many updates a call: enough
# that a call of the smallest model takes some 20 ms, so little that the buffer costs nothing.
REPEATS = 2**14
# How much of the data a chunk may hold: if more of it goes by in its time, a chunk is shorter.
HELD_BYTES = 2**26
# How long a chunk of updates should take: long enough that Python's part does not show, short
# enough that a progress bar moves and Ctrl-C is heard.
SECONDS = 0.25
# By what a chunk may be longer than the one before: how long a short one took shows only in part.
GROWTH = 16
# Where the state is copied before each chunk, a chunk takes longer if that is many bytes, so that
# the copies take a hundredth of the time; but not longer than a second.
_BYTES_A_SECOND, _MOST_SECONDS = 4 * 10**7, 1.0
# The first chunk's products of parameters and data: it should take some ms. An update takes some
# µs, however little it does. An accelerator makes more of them in a ms; fewer of the smallest.
FIRST_WORK, LEAST_WORK = 10**9, 10**4
_MORE, _AT_LEAST_MORE = 10**4, 10**6
# An update that does so little that the loop's own cost shows is one of several in its turn: on a
# full batch, on batches that are sliced. Without a loop, the call's cost shows for longer.
_LITTLE, _LITTLE_OF_BATCHES, _LITTLE_OF_CALLS = 10**5, 10**7, 10**8
# On an accelerator a loop asks the host before each turn whether it is over: a turn is several
# updates; on a full batch, twice as many.
_LITTLE_ELSEWHERE, _TURN_ELSEWHERE = 10**12, 16


def work(changing: list, stack: Stack) -> int:
    """How much an update does: every number that it changes, once with every number of a batch.

    That overestimates what layers do that share no weights, and is about right for those that do.
    """
    batch = sum(leaf.size // len(leaf) for leaf in jax.tree.leaves(stack.batches)) * (
        stack.size if stack.repeats else 1
    )
    return 1 + sum(leaf.size for leaf in changing) * batch


def first(work: int) -> int:
    """How many updates the first chunk makes, if so much work is one."""
    most, least = (1, 1) if jax.default_backend() == "cpu" else (_MORE, _AT_LEAST_MORE)
    return max(1, FIRST_WORK * most // max(work, LEAST_WORK * least))


def may_hold() -> int:
    """How much of the data a chunk may hold, in bytes."""
    return HELD_BYTES if jax.default_backend() == "cpu" else HELD_BYTES * _stack.ROOMIER


def seconds(changing: list) -> float:
    """How long a chunk should take that begins with a copy of what changes."""
    wanted = sum(leaf.nbytes for leaf in changing) / _BYTES_A_SECOND
    return min(max(SECONDS, wanted), _MOST_SECONDS)


def unroll(work: int, loops: bool, stack: Stack) -> int:
    """How many updates to write one behind the other, in a turn of the loop.

    Without a loop, they are a call by themselves. Then their number needs to go into that of an
    epoch's full batches: what is left of those would be another program.
    """
    if jax.default_backend() != "cpu":
        return _turn_elsewhere(stack) if work < _LITTLE_ELSEWHERE else 1
    if not loops:
        few = (2, 3, 1) if work < _LITTLE_OF_CALLS else (1,)  # more take long to compile
        return next(n for n in few if stack.full % n == 0)
    if stack.repeats:
        return 4 if work < _LITTLE else 1
    return 2 if work < _LITTLE_OF_BATCHES else 1


def _turn_elsewhere(stack: Stack) -> int:
    """How many updates to make in a turn of an accelerator's loop.

    An epoch is made in whole turns, where it can be: the updates that are left ask the host each.
    """
    if stack.repeats:
        return 2 * _TURN_ELSEWHERE
    near = range(2 * _TURN_ELSEWHERE, _TURN_ELSEWHERE // 2, -1)
    return next((n for n in near if stack.full % n == 0), _TURN_ELSEWHERE)
