"""The learning-rate range test: what it is asked, and what it answers."""

from collections.abc import Iterable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from vernal._data.loader_source import LoaderSource
from vernal._range_test import TENTH, from_arrays, from_loader, range_test, rate_dtype, with_rate
from vernal._training.checks import checked_source, model_of, whole_number
from vernal._training.jit import pack
from vernal._training.state import TrainState, with_data_state
from vernal._training.trainer import Trainer
from vernal._training.update import new_state
from vernal.errors import ArgumentError


@dataclass(frozen=True, eq=False)
class LearningRates:
    """What a learning-rate range test measured.

    **Attributes:**

    - `rates`, `losses`: the learning rate of each update, and its batch's loss before it.
    - `smoothed`: the exponential average of the losses so far, corrected for its start.
    - `suggestion`: where `smoothed` falls most steeply: the rate in the middle of the tenth of the
      test over which it falls most, on the way to its lowest; the first tenth, where it averages
      few losses, does not count. `None` if it never falls.
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    suggestion: float | None

    def plot(self, ax=None):
        """Draw the loss over the rate; see `vernal.plot.learning_rates`. **Returns:** the axes."""
        from vernal import plot

        return plot.learning_rates(self, ax=ax)

    def __repr__(self) -> str:
        if not len(self.rates):
            return "LearningRates(no suggestion: the first loss is not finite)"
        told = "no suggestion: the loss never falls"
        if self.suggestion is not None:
            told = f"suggestion {self.suggestion:.2g}"
        many = f"{len(self.rates):,} update{'' if len(self.rates) == 1 else 's'}"
        return f"LearningRates({many}, rates {self.rates[0]:.2g} → {self.rates[-1]:.2g}, {told})"


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
    """Train for a moment, at a rate that grows with each update, to see where the loss falls.

    This is the range test of Smith, "Cyclical Learning Rates for Training Neural Networks" (2017),
    arXiv:1506.01186, with a rate that grows by the same factor each time. The updates are the
    trainer's own, all in one compiled program. They end early where a loss is not finite, or the
    smoothed loss more than 4 times its lowest (above a negative one by 3 times its size).

    **Arguments:**

    - `trainer`: its optimizer shows its learning rate, as
      `optax.inject_hyperparams(optax.adam)(learning_rate=1e-3)` does; that rate is not used.
    - `model_or_state`, `data`, `batch_size`: as in `Trainer.fit`, but smaller last batches are left
      out. The model or state stays as it is. A loader's batches, and what is needed of arrays in
      files, are in memory all at once.
    - `lowest`, `highest`: the learning rates of the first and of the last update.
    - `updates`: how many, from 10. With fewer batches than that, epoch follows epoch.

    **Returns:** the `LearningRates`.

    **Raises:** `ArgumentError`, `DataError` or `ShapeError` before compiling.
    """
    updates = whole_number("updates", updates, at_least=TENTH)
    is_number = lambda rate: np.ndim(rate) == 0 and np.asarray(rate).dtype.kind in "iuf"
    if not (is_number(lowest) and is_number(highest) and 0 < lowest < highest < np.inf):
        raise ArgumentError(
            "lowest and highest need to be positive numbers, highest the larger; they are "
            f"{lowest!r} and {highest!r}.\n  Try lowest=1e-7, highest=10.0."
        )
    learned = model_of(model_or_state)
    choices = trainer._choices(*learned)
    fresh = not isinstance(model_or_state, TrainState)
    initial = lambda: new_state(choices, *learned, None)
    shown = jax.eval_shape(initial).unpack() if fresh else model_or_state
    dtype = rate_dtype(shown.opt_state)
    objective = choices.objective
    source, _ = checked_source(objective, *learned, data, batch_size, endless=True, shuffle=True)
    state = initial().unpack() if fresh else with_data_state(model_or_state, None)
    if isinstance(source, LoaderSource):
        examples, rows = from_loader(source, data, updates)
    else:
        examples, rows = from_arrays(source, batch_size, state, updates)
    rates = np.geomspace(lowest, highest, updates).astype(dtype)
    # The optimizer's own rate may be of another type, such as a whole number.
    state = pack(with_rate(state, np.asarray(rates[0])))
    made, *measured = jax.device_get(range_test(pack(choices), state, examples, rows, rates))
    finite = np.isfinite(measured[1][:made])  # all, or all but the last
    rates = rates.astype(jnp.promote_types(dtype, np.float32))
    rates, losses, smoothed = (values[:made][finite] for values in (rates, *measured))
    return LearningRates(rates, losses, smoothed, _suggestion(rates, smoothed, updates // TENTH))


def _suggestion(rates: np.ndarray, smoothed: np.ndarray, tenth: int) -> float | None:
    after = smoothed[tenth:]
    # What comes after the lowest is no training, though it may fall steeply from a great height.
    falling = after[: np.argmin(after) + 1] if len(after) else after
    if len(falling) < 2:
        return None
    stretch = min(tenth, len(falling) - 1)
    # The rate grows by the same factor each time. A loss is measured before its own update.
    steepest = np.argmin(falling[stretch:] - falling[:-stretch])
    return float(rates[tenth + steepest + stretch // 2])
