"""Updates at growing learning rates, in one compiled program."""

import itertools
from collections.abc import Iterable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import PyTree

from vernal._data.array_source import ArraySource
from vernal._data.files import in_files, in_memory
from vernal._data.loader_source import LoaderSource
from vernal._training.compilation import compiles
from vernal._training.jit import Packed, jit_updates, pack
from vernal._training.state import TrainState
from vernal._training.update import parts, update
from vernal.errors import ArgumentError, DataError

# A tenth of the test is what the average remembers, what it takes to begin with, and the stretch
# that a fall is measured over: in less, the noise of mini-batches is steeper than any fall.
TENTH = 10
_WORST = 4  # the test ends where the smoothed loss is so many times its lowest


@jit_updates
def range_test(choices: Packed, state: Packed, examples: PyTree, rows, rates):
    """Make an update at each rate: how many were made, their losses, and these smoothed.

    The state is at the first rate. Each of `rows` says which of the examples are a batch; without
    `rows`, all are.
    """
    chosen, updates, dtype = choices.unpack(), len(rates), jnp.result_type(float)
    memory = 1 - TENTH / updates

    def batch_at(i):
        if rows is None:
            return examples
        row = lax.dynamic_index_in_dim(rows, i, keepdims=False)
        return jax.tree.map(lambda leaf: leaf.at[row].get(mode="promise_in_bounds"), examples)

    held = {"all data": examples, "batches": rows, "updates": updates}
    compiles("find_learning_rate", **parts(chosen, state.unpack(), batch_at(0)), **held)

    def body(carry):
        i, _, packed, (average, lowest), buffers = carry
        # A fence, as in `vernal._program`.
        batch, packed = lax.optimization_barrier((batch_at(i), packed))
        new, (info, *_) = update(chosen, packed.unpack(), batch)
        loss = info["loss"].astype(dtype)
        average = memory * average + (1 - memory) * loss
        smoothed = average / (1 - memory ** (i + 1).astype(dtype))
        lowest = jnp.minimum(lowest, smoothed)
        going = jnp.isfinite(smoothed) & (smoothed <= lowest + (_WORST - 1) * jnp.abs(lowest))
        put = lambda buffer, number: lax.dynamic_update_index_in_dim(buffer, number, i, 0)
        buffers = put(buffers[0], loss), put(buffers[1], smoothed)
        new = pack(with_rate(new, rates[i + 1]))
        return i + 1, going, new, (average, lowest), buffers

    averages = jnp.zeros((), dtype), jnp.array(jnp.inf, dtype)
    buffers = jnp.zeros(updates, dtype), jnp.zeros(updates, dtype)
    start = jnp.int32(0), jnp.array(True), state, averages, buffers
    more = lambda carry: carry[1] & (carry[0] < updates)
    end = lax.while_loop(more, body, start)
    return end[0], *end[-1]


def _is_in(keeper: str, path: tuple) -> bool:
    return len(path) > 1 and getattr(path[-2], "name", None) == keeper


def with_rate(state: TrainState, rate) -> TrainState:
    """The same state with another learning rate in its optimizer's."""
    settable = lambda path, _: _is_in("hyperparams", path)
    opt_state = optax.tree_utils.tree_set(state.opt_state, settable, learning_rate=rate)
    return replace(state, opt_state=opt_state)


def rate_dtype(opt_state) -> np.dtype:
    """The dtype to set an optimizer's learning rate in; `ArgumentError` if it cannot be set."""
    found = optax.tree_utils.tree_get_all_with_path(opt_state, "learning_rate")
    rates = [rate for path, rate in found if _is_in("hyperparams", path)]
    if not rates:
        problem = "does not show its learning rate, which a range test sets."
    elif len(rates) > 1 or np.ndim(rates[0]) > 0:
        problem = f"shows {sum(map(np.size, rates))} learning rates; a range test sets one."
    elif any(_is_in("hyperparams_states", path) for path, _ in found):
        # The schedule makes the rate anew in each update, whatever it was set to.
        problem = "takes its learning rate from a schedule; a range test sets a number."
    else:
        dtype = jnp.result_type(rates[0])
        return dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.result_type(float)
    line = "Try optax.inject_hyperparams(optax.adam)(learning_rate=1e-3)."
    raise ArgumentError(f"the optimizer {problem}\n  {line}")


def shuffled(source: ArraySource, batch_size: int | None, state: TrainState, updates: int):
    """The examples of each batch, from the start of the state's epoch; `None` for all of them."""
    if source.length == 1:
        return None
    places = np.arange(len(jax.tree.leaves(source.arrays)[0]), dtype=np.int32)
    order = ArraySource(places, batch_size, endless=True, shuffle=True)
    order.begin(state.key)
    epochs = map(order.batches, itertools.count(int(state.epoch)))
    full = (rows for rows in itertools.chain.from_iterable(epochs) if len(rows) == batch_size)
    return np.stack([*itertools.islice(full, updates)])


def from_arrays(
    source: ArraySource, batch_size: int | None, state: TrainState, updates: int
) -> tuple[PyTree, np.ndarray | None]:
    """The examples that are needed, and which of them each batch has, as in `range_test`."""
    rows = shuffled(source, batch_size, state, updates)
    if rows is None or not in_files(source.arrays):
        return in_memory(source.arrays), rows
    needed, places = np.unique(rows, return_inverse=True)
    examples = jax.tree.map(lambda leaf: leaf[needed], source.arrays)
    return examples, places.reshape(rows.shape).astype(rows.dtype)


def from_loader(source: LoaderSource, loader: Iterable, updates: int) -> tuple[PyTree, np.ndarray]:
    """A loader's batches, and for each update which of them is its."""
    shapes = lambda batch: [leaf.shape for leaf in jax.tree.leaves(batch)]
    needed, found, number = shapes(source.example), [], 0
    # A list has the same batches every time: they are held once.
    for stack in source.one_pass() if isinstance(loader, list) else source.stacks(0, 0):
        filled = stack.end - stack.first
        batches = jax.tree.map(lambda leaf, n=filled: np.asarray(leaf)[:n], stack.batches)
        given = [(size, *rest) for _, size, *rest in shapes(batches)]
        if given == needed:
            found.append(batches)
            number += filled
        elif stack.size >= needed[0][0]:
            raise DataError(
                f"data has batches of shapes {needed} and {given}; a range test needs them alike, "
                "apart from smaller ones, which are left out."
                "\n  Try batches of one size, or arrays."
            )
        if number >= updates:
            break
    stacked = jax.tree.map(lambda *leaves: np.concatenate(leaves), *found)
    return stacked, np.arange(updates, dtype=np.int32) % number
