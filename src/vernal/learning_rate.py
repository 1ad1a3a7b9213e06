"""The learning-rate range test: a loop of `trainer.step` at a rate that grows."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from optax.tree_utils import tree_get_all_with_path, tree_set

from vernal import plot
from vernal._data.arrays import number_of_examples
from vernal._data.sources import Source
from vernal._training.state import TrainState
from vernal._training.trainer import Trainer
from vernal.errors import ArgumentError, DataError, short_traceback, whole_number

# A tenth of the test is what the average remembers, what it takes to begin with, and the stretch
# that a fall is measured over: in less, the noise of mini-batches is steeper than any fall.
_TENTH = 10
_WORST = 4  # the test ends where the smoothed loss is so many times its lowest


@dataclass(frozen=True, eq=False)
class LearningRates:
    """What a learning-rate range test measured.

    Attributes:
        rates: The learning rate of each step.
        losses: Each step's batch's loss before the step.
        smoothed: The exponential average of the losses so far, corrected for its start.
        suggestion: The rate where `smoothed` falls most steeply: in the middle of the tenth of the
            test over which it falls most, on the way to its lowest. The first tenth, where it
            averages few losses, does not count. `None` if it never falls.

    Example:
        >>> optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
        >>> rates = vernal.Trainer(optimizer, losses.MeanSquaredError())
        >>> found = vernal.find_learning_rate(rates, model, (x, y))
        >>> len(found.rates) == len(found.losses) == len(found.smoothed)
        True
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    suggestion: float | None

    def plot(self, ax=None):
        """Draw the loss over the rate; see `vernal.plot.learning_rates`.

        Returns:
            matplotlib's axes.

        Example:
            >>> optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
            >>> rates = vernal.Trainer(optimizer, losses.MeanSquaredError())
            >>> ax = vernal.find_learning_rate(rates, model, (x, y)).plot()
        """
        return plot.learning_rates(self, ax=ax)

    def __repr__(self) -> str:
        if not len(self.rates):
            return "LearningRates(no suggestion: the first loss is not finite)"
        found = "no suggestion: the loss never falls"
        if self.suggestion is not None:
            found = f"suggestion {self.suggestion:.2g}"
        rates = f"{len(self.rates):,} rates {self.rates[0]:.2g} → {self.rates[-1]:.2g}"
        return f"LearningRates({rates}, {found})"


@short_traceback
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
    """Train for a moment, at a rate that grows with each step, to see where the loss falls.

    This is the range test of Smith, "Cyclical Learning Rates for Training Neural Networks" (2017),
    arXiv:1506.01186, with a rate that grows by the same factor each time. The steps are
    `trainer.step`. They end early where a loss is not finite, or the smoothed loss more than 4
    times its lowest (above a negative one by 3 times its size).

    Args:
        trainer: Its optimizer shows its learning rate, as
            `optax.inject_hyperparams(optax.adam)(learning_rate=1e-3)` does; that rate is not used.
        model_or_state: As in `Trainer.fit`. It stays as it is.
        data: As in `Trainer.fit`. Batches smaller than the first, such as the last of an epoch, are
            left out.
        batch_size: As in `Trainer.fit`.
        lowest: The learning rate of the first step.
        highest: The learning rate of the last step.
        updates: How many steps, from 10. With fewer batches, epoch follows epoch.

    Returns:
        The `LearningRates`.

    Raises:
        ArgumentError, DataError, ShapeError: Before the first step.

    Example:
        >>> optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
        >>> rates = vernal.Trainer(optimizer, losses.MeanSquaredError())
        >>> found = vernal.find_learning_rate(rates, model, (x, y))
        >>> 0.01 < found.suggestion < 1
        True
    """
    updates = whole_number("updates", updates, at_least=_TENTH)
    bounds = [np.asarray(bound) for bound in (lowest, highest)]
    are_numbers = all(bound.ndim == 0 and bound.dtype.kind in "iuf" for bound in bounds)
    if not are_numbers or not 0 < lowest < highest < np.inf:
        need = "lowest and highest need to be positive numbers, highest the larger"
        hint = "Try lowest=1e-7, highest=10.0."
        raise ArgumentError(f"{need}; they are {lowest!r} and {highest!r}.\n  {hint}")
    checked, _ = trainer._checked(model_or_state, data, None, batch_size=batch_size, shuffle=True)
    state = trainer._state_of(model_or_state)
    dtype = _rate_dtype(state.opt_state)
    batches = _full_batches(checked.source, state)

    rows = []
    memory = 1 - _TENTH / updates
    average = 0.0
    for rate in map(np.asarray, np.geomspace(lowest, highest, updates).astype(dtype)):
        opt_state = tree_set(state.opt_state, _is_shown, learning_rate=rate)
        state, info = trainer.step(replace(state, opt_state=opt_state), next(batches))
        loss = float(info["loss"])
        if not np.isfinite(loss):
            break
        average = memory * average + (1 - memory) * loss
        smooth = average / (1 - memory ** (len(rows) + 1))
        rows.append((rate, loss, smooth))
        low = min(smooth for _, _, smooth in rows)
        if smooth > low + (_WORST - 1) * abs(low):
            break

    rates, losses, smoothed = np.array(rows, jnp.result_type(float)).reshape(-1, 3).T
    return LearningRates(rates, losses, smoothed, _suggestion(rates, smoothed, updates // _TENTH))


def _is_shown(path: tuple, _: Any) -> bool:
    return len(path) > 1 and getattr(path[-2], "name", None) == "hyperparams"


def _rate_dtype(opt_state: Any) -> np.dtype:
    """Return the dtype of an optimizer's learning rate; `ArgumentError` if it cannot be set."""
    rates = [rate for _, rate in tree_get_all_with_path(opt_state, "learning_rate", _is_shown)]
    schedules = tree_get_all_with_path(opt_state, "hyperparams_states")
    if not rates:
        problem = "does not show its learning rate, which a range test sets."
    elif len(rates) > 1 or np.ndim(rates[0]) > 0:
        problem = f"shows {sum(map(np.size, rates))} learning rates; a range test sets one."
    elif any("learning_rate" in states for _, states in schedules):
        # The schedule sets the rate anew in each step, whatever it was before.
        problem = "takes its learning rate from a schedule; a range test sets a number."
    else:
        return jnp.result_type(rates[0], float)
    hint = "Try optax.inject_hyperparams(optax.adam)(learning_rate=1e-3)."
    raise ArgumentError(f"the optimizer {problem}\n  {hint}")


def _full_batches(source: Source, state: TrainState) -> Iterator[PyTree]:
    """Yield the batches that are not smaller than the first, epoch after epoch."""
    full = number_of_examples(source.example) or 1
    for epoch in itertools.count(int(state.data_pass)):
        is_empty = True
        for batch in source.batches(epoch, state.key):
            if (number_of_examples(batch) or 1) >= full:
                is_empty = False
                yield batch
        if is_empty:
            raise DataError(f"data has no batch of {full} when it is read again.\n  Pass a list.")


def _suggestion(rates: np.ndarray, smoothed: np.ndarray, tenth: int) -> float | None:
    """Find the rate in the middle of the steepest fall; `None` if the loss never falls."""
    after = smoothed[tenth:]
    # What comes after the lowest is no training, though it may fall steeply from a great height.
    falling = after[: np.argmin(after) + 1] if len(after) else after
    if len(falling) < 2:
        return None
    stretch = min(tenth, len(falling) - 1)
    # The rate grows by the same factor each time. A loss is measured before its own step.
    steepest = np.argmin(falling[stretch:] - falling[:-stretch])
    return float(rates[tenth + steepest + stretch // 2])
