"""Memory for stacks of batches, that is used again: new pages cost more to touch than to fill."""

import ctypes
import math
import weakref

import numpy as np

# How much is kept that nobody uses, at most.
IDLE_BYTES = 2**26


class Memory:
    """Arrays, in memory that comes back when nothing refers to it any more, JAX included."""

    def __init__(self):
        # By `id`, the oldest first. Memory may come back at any time, while garbage is collected or
        # from another thread: so it is gone through in copies.
        self._idle: dict[int, np.ndarray] = {}

    def room_for(
        self, shape: tuple[int, ...], dtype: np.dtype, used: int, *, clear: bool
    ) -> np.ndarray:
        """An array of which so many rows will be filled; the rest is zero, if that is asked for.

        It begins at a multiple of 64 bytes: JAX on a CPU takes it as it is, and copies other.
        """
        size = math.prod(shape) * dtype.itemsize
        whole = self._taken(size + 64)
        # What is made of it refers to this, and not to the memory itself.
        handle = (ctypes.c_char * whole.size).from_buffer(whole.data)
        weakref.finalize(handle, self._give_back, whole).atexit = False
        start = -whole.ctypes.data % 64
        array = np.frombuffer(memoryview(handle), np.uint8)[start : start + size]
        array = array.view(dtype).reshape(shape)
        if clear:  # of a run's stack only what was filled is read
            array[used:] = 0
        return array

    def _taken(self, size: int) -> np.ndarray:
        for whole in list(self._idle.values()):
            if whole.size == size and self._idle.pop(id(whole), None) is not None:
                return whole
        return np.empty(size, np.uint8)

    def _give_back(self, whole: np.ndarray) -> None:
        self._idle[id(whole)] = whole
        idle = list(self._idle.values())
        too_much = sum(whole.size for whole in idle) - IDLE_BYTES
        for oldest in idle:
            if too_much <= 0:
                break
            self._idle.pop(id(oldest), None)
            too_much -= oldest.size


# One for all runs: a short one would otherwise touch only new pages.
room_for = Memory().room_for
