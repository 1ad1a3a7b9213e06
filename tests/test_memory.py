"""Memory that is used again: only when nothing refers to it any more, and not without bound."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vernal._data import memory as _memory
from vernal._data.memory import Memory

SHAPE, DTYPE = (3, 50, 4), np.dtype(np.float32)


def address(array):
    return array.ctypes.data


def test_arrays_are_as_asked_for():
    memory = Memory()
    for shape, dtype in ((SHAPE, DTYPE), ((7,), np.dtype(bool)), ((2, 0), np.dtype(np.int64))):
        array = memory.room_for(shape, dtype, 0, clear=True)
        assert array.shape == shape
        assert array.dtype == dtype
        assert array.size == 0 or address(array) % 64 == 0
        assert not array.any()


def test_what_is_not_filled_is_cleared_if_asked_for():
    memory = Memory()
    memory.room_for(SHAPE, DTYPE, 3, clear=False)[...] = 5
    array = memory.room_for(SHAPE, DTYPE, 1, clear=True)
    np.testing.assert_array_equal(array[0], 5)  # it is the same memory
    np.testing.assert_array_equal(array[1:], 0)


@pytest.mark.parametrize("hold", [lambda a: a, lambda a: a[1:, ::2], lambda a: a.reshape(-1).T])
def test_memory_that_is_referred_to_is_not_given_out(hold):
    memory = Memory()
    array = memory.room_for(SHAPE, DTYPE, 3, clear=False)
    first, held = address(array), hold(array)
    del array
    assert address(memory.room_for(SHAPE, DTYPE, 3, clear=False)) != first
    held[...] = 1
    del held
    others = [memory.room_for(SHAPE, DTYPE, 3, clear=False) for _ in range(2)]
    assert first in map(address, others)


@pytest.mark.parametrize("given", [lambda array: array, jax.device_put], ids=["as it is", "put"])
def test_a_compiled_function_holds_what_it_computes_from(given):
    if given is jax.device_put and jax.default_backend() != "cpu":
        pytest.skip("a device with memory of its own gets a copy")
    memory = Memory()

    @jax.jit
    def slow(x, y):
        # It reads x at its end, long after the arrays are gone on the host.
        y = jax.lax.fori_loop(0, 100, lambda _, y: jnp.cos(y @ y), y)
        return x + 0 * y[0, 0]

    y = jnp.eye(300)
    slow(jnp.zeros(SHAPE), y).block_until_ready()
    results, addresses = [], set()
    for i in range(8):
        array = memory.room_for(SHAPE, DTYPE, 3, clear=False)
        array[...] = i
        addresses.add(address(array))
        argument = given(array)
        if isinstance(argument, jax.Array):
            assert argument.unsafe_buffer_pointer() == address(array)  # not a copy
        results.append(slow(argument, y))
        del array, argument
    assert len(addresses) > 1  # of a copy, it would have come back at once
    for i, result in enumerate(results):
        np.testing.assert_array_equal(result, i)


def test_little_is_kept_that_nobody_uses(monkeypatch):
    monkeypatch.setattr(_memory, "IDLE_BYTES", 10_000)
    memory = Memory()
    arrays = [memory.room_for((n,), np.dtype(np.uint8), n, clear=False) for n in range(1000, 3000)]
    del arrays
    idle = [whole.size for whole in memory._idle.values()]
    assert 5_000 < sum(idle) <= 10_000
    assert idle[-1] == 1000 + 64  # a list gives its last item back first


def test_memory_may_come_back_while_other_is_looked_for():
    """As when garbage is collected, or another thread lets go of it."""
    memory = Memory()
    stop = threading.Event()

    def others():
        while not stop.is_set():
            [memory.room_for((n,), np.dtype(np.uint8), n, clear=False) for n in range(1, 60)]

    threads = [threading.Thread(target=others) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(30):
            held = [memory.room_for((70,), DTYPE, 70, clear=False) for _ in range(50)]
            assert len(set(map(address, held))) == 50
    finally:
        stop.set()
        for thread in threads:
            thread.join()
