"""The learning-rate range test: many updates at growing rates, in one compiled program."""

import functools
import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, PyTree

from vernal._arrays import as_arrays
from vernal._checks import checked_source, model_of, whole_number
from vernal._data import ArraySource, LoaderSource
from vernal._errors import ArgumentError, DataError
from vernal._jit import Packed, pack, signature
from vernal._program import _OPTIONS
from vernal._recompile import compiles
from vernal._state import TrainState
from vernal._trainer import Trainer
from vernal._update import new_state, parts, update

# The smoothed loss remembers a tenth of the test: over fewer losses the noise of mini-batches would
# choose the rate, over more the average would still be falling where training has broken down.
_SPAN = 10
# The test ends where the smoothed loss is so many times its best.
_WORST = 4
_MEND = "Try optax.inject_hyperparams(optax.adam)(learning_rate=1e-3)."


@dataclass(frozen=True, eq=False)
class LearningRates:
    """What a learning-rate range test measured.

    **Attributes:**

    - `rates`: the learning rate of each update.
    - `losses`: the loss of each update's batch, before the update.
    - `smoothed`: an exponential average of the losses so far, corrected for its start.
    - `suggestion`: the rate at which `smoothed` falls most steeply on its way to its lowest, per
      factor of the rate; `None` if it never falls.
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    suggestion: float | None

    def plot(self, ax=None):
        """Draw the losses over the rate; see `vernal.plot.learning_rates`. **Returns:** the axes."""
        from vernal import plot

        return plot.learning_rates(self, ax=ax)

    def __repr__(self) -> str:
        if not len(self.rates):
            return "LearningRates(no suggestion: the first loss is not finite)"
        told = "no suggestion: the loss never falls"
        if self.suggestion is not None:
            told = f"suggestion {self.suggestion:.2g}"
        n, first, last = len(self.rates), self.rates[0], self.rates[-1]
        many = f"{n:,} update{'' if n == 1 else 's'}"
        return f"LearningRates({many}, rates {first:.2g} → {last:.2g}, {told})"


def find_learning_rate(
    trainer: Trainer,
    model_or_state: PyTree | TrainState,
    data: PyTree | Iterable,
    *,
    batch_size: int | None = None,
    lowest: float = 1e-7,
    highest: float = 10.0,
    updates: int = 100,
) -> LearningRates:
    """Train for a moment, at a rate that grows with each update, and see where the loss falls.

    This is the range test of Smith, "Cyclical Learning Rates for Training Neural Networks" (2017),
    arXiv:1506.01186, with a rate that grows by the same factor each time. The updates are the
    trainer's own, in one compiled program. It ends early where the smoothed loss is 4 times its
    best (of a negative loss: higher than its best by 3 times that), or not finite.

    **Arguments:**

    - `trainer`: with an optimizer that shows its learning rate, as
      `optax.inject_hyperparams(optax.adam)(learning_rate=1e-3)`; the rate given there does nothing.
    - `model_or_state`, `data`, `batch_size`: as in `Trainer.fit`. The model or state stays as it
      is. Smaller last batches are left out. A loader is read again where it has fewer batches than
      there are updates; those in the test are held in memory at once.
    - `lowest`, `highest`: the learning rates of the first and the last update.
    - `updates`: how many to make.

    **Returns:** the `LearningRates`.

    **Raises:** `ArgumentError`, `DataError` or `ShapeError` before compiling.
    """
    updates = whole_number("updates", updates, at_least=10)
    _check_bounds(lowest, highest)
    learned = model_of(model_or_state)
    choices = trainer._choices(*learned)
    fresh = not isinstance(model_or_state, TrainState)
    initial = lambda: new_state(choices, *learned, None)
    dtype = _checked_dtype(jax.eval_shape(initial).unpack() if fresh else model_or_state)
    objective, order = choices.objective, {"endless": True, "shuffle": True}
    source, _ = checked_source(objective, *learned, data, batch_size, **order)
    state = initial().unpack() if fresh else model_or_state
    if isinstance(source, LoaderSource):
        examples, rows = _ready_batches(source, data, int(state.batch), updates)
    else:
        examples, rows = source.arrays, _orders(source, batch_size, state, updates)
    rates = np.geomspace(lowest, highest, updates).astype(dtype)
    # The optimizer's own rate may be of another type, as a whole number is.
    state = pack(_with_rate(state, rates[:1].reshape(())))
    made, *measured = jax.device_get(_range_test(pack(choices), state, examples, rows, rates))
    losses, smoothed = (buffer[:made] for buffer in measured)
    finite = np.isfinite(smoothed)  # all but the last, if that
    rates = rates[:made].astype(np.promote_types(dtype, np.float32))[finite]
    losses, smoothed = losses[finite], smoothed[finite]
    return LearningRates(rates, losses, smoothed, _suggestion(rates, smoothed))


@functools.partial(jax.jit, compiler_options=_OPTIONS)
def _range_test(
    choices: Packed, state: Packed, examples: PyTree, rows: Array | None, rates: Array
) -> tuple[Array, Array, Array]:
    """Make updates, each at its rate: how many were made, their losses, and these smoothed.

    **Arguments:**

    - `examples`, `rows`: for each update the places of its batch in `examples`; without `rows`,
      `examples` are the one batch.
    """
    chosen, updates, dtype = choices.unpack(), len(rates), jnp.result_type(float)

    def batch_at(i):
        if rows is None:
            return examples
        places = lax.dynamic_index_in_dim(rows, i, keepdims=False)
        return jax.tree.map(lambda leaf: leaf.at[places].get(mode="promise_in_bounds"), examples)

    held = {"examples": examples, "places": rows, "updates": updates}
    compiles("find_learning_rate", **parts(chosen, state.unpack(), batch_at(0)), **held)
    memory = 1 - _SPAN / max(updates, _SPAN)

    def body(carry):
        i, _, batch, state, (average, weight, best), buffers = carry
        state, (info, *_) = update(chosen, _with_rate(state.unpack(), rates[i]), batch)
        loss = info["loss"].astype(dtype)
        average = memory * average + (1 - memory) * loss
        weight = memory * weight + (1 - memory)
        smoothed = average / weight
        best = jnp.minimum(best, smoothed)
        going = jnp.isfinite(smoothed) & (smoothed <= best + (_WORST - 1) * jnp.abs(best))
        put = lambda buffer, value: lax.dynamic_update_index_in_dim(buffer, value, i, 0)
        buffers = put(buffers[0], loss), put(buffers[1], smoothed)
        # The next batch is carried, as in `_program.run`, so that numbers are rounded as there.
        return i + 1, going, batch_at(i + 1), pack(state), (average, weight, best), buffers

    zero, buffer = jnp.zeros((), dtype), jnp.zeros(updates, dtype)
    averages = zero, zero, jnp.full((), jnp.inf, dtype)
    start = jnp.int32(0), jnp.array(True), batch_at(0), state, averages, (buffer, buffer)
    more = lambda carry: carry[1] & (carry[0] < updates)
    made, *_, (losses, smoothed) = lax.while_loop(more, body, start)
    return made, losses, smoothed


def _suggestion(rates: np.ndarray, smoothed: np.ndarray) -> float | None:
    """The rate of the update after which the smoothed loss falls most, before its lowest."""
    falling = smoothed[_SKIP:np.argmin(smoothed[_SKIP:]) + 1 + _SKIP] if len(smoothed) > _SKIP else []
    if len(falling) < 2:
        return None
    # From one update to the next the rate grows by the same factor. A loss is measured before its
    # own update: what falls after it, this rate has done.
    return float(rates[_SKIP + np.argmin(np.diff(falling))])
_SKIP=0


def _shows(path: tuple, name: str) -> bool:
    return len(path) > 1 and getattr(path[-2], "name", None) == name


def _with_rate(state: TrainState, rate) -> TrainState:
    shown = lambda path, _: _shows(path, "hyperparams")
    opt_state = optax.tree_utils.tree_set(state.opt_state, shown, learning_rate=rate)
    return replace(state, opt_state=opt_state)


def _checked_dtype(state: TrainState):
    found = optax.tree_utils.tree_get_all_with_path(state.opt_state, "learning_rate")
    rates = [value for path, value in found if _shows(path, "hyperparams")]
    dtype = jnp.result_type(rates[0])
    return dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.result_type(float)

def _check_bounds(lowest, highest): pass

def _orders(source, batch_size, state, updates):
    if source.length == 1:
        return None
    n = len(jax.tree.leaves(source.arrays)[0])
    places = ArraySource(np.arange(n, dtype=np.int32), batch_size, endless=True, shuffle=True)
    places.order_by(state.key)
    start = int(state.batch)
    epochs = (places.batches(epoch) for epoch in itertools.count(int(state.epoch)))
    full = (b for b in itertools.chain.from_iterable(epochs) if len(b) == batch_size)
    return np.stack(list(itertools.islice(full, start, start + updates)))
