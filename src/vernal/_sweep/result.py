"""What a sweep returns: the members' states and histories, ranked, asked together, drawn."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from vernal import plot
from vernal._best import best_of
from vernal._members import Members
from vernal._sweep import measuring
from vernal._training.preflight.data import checked_data
from vernal._training.preflight.trace import Preflight
from vernal._training.state import TrainState
from vernal._training.trainer import Trainer
from vernal.errors import ArgumentError, did_you_mean, short_traceback
from vernal.history import History, counted


class Prediction(NamedTuple):
    """What the members of a sweep predict together.

    Attributes:
        mean: The mean of their outputs.
        std: The standard deviation of their outputs, with their number as the divisor.
    """

    mean: PyTree
    std: PyTree


@dataclass(frozen=True, eq=False)
class SweepResult:
    """What a sweep has trained: `result[i]` is the state of member i, which `fit` goes on with.

    Attributes:
        histories: The record of each member.
        ended: Why members ended before the others, by their numbers.

    Example:
        >>> keys = jax.random.split(jax.random.key(0), 4)
        >>> sweep = vernal.Sweep(trainer, lambda key: nn.Linear(1, 1, key=key), keys=keys)
        >>> result = sweep.fit((x, y), epochs=10)
        >>> state = result.best("loss")
        >>> mean, std = result.predict(x)
        >>> mean.shape, std.shape
        ((40, 1), (40, 1))
    """

    trainer: Trainer = field(repr=False)
    states: list[TrainState]
    histories: list[History]
    ended: dict[int, str]
    _lost: frozenset[int] = field(default=frozenset(), repr=False)

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, i: int) -> TrainState:
        return self.states[i]

    def __iter__(self) -> Iterator[TrainState]:
        return iter(self.states)

    @short_traceback
    def ranked(
        self, monitor: str = "val_loss", *, mode: Literal["auto", "min", "max"] = "auto"
    ) -> list[int]:
        """Return the members' numbers, the best first, by the last value of a metric.

        Members whose last value is NaN, or whose numbers stopped being finite, come last.

        Args:
            monitor: The name of the metric, as in the histories' `epochs`.
            mode: Whether "min" or "max" is best; "auto" knows this of Vernal's metrics, and of
                others by their names.

        Raises:
            ArgumentError: If nothing of this name was measured, or nobody knows which is best.
        """
        known = {name for history in self.histories for name in history.epochs}
        if monitor not in known:
            given = (
                f"monitor is {monitor!r}, and the sweep has measured {', '.join(sorted(known))}."
            )
            raise ArgumentError(given + did_you_mean(monitor, known))
        metric = self.trainer._objective.metrics.get(monitor.removeprefix("val_"))
        best = best_of(monitor, metric) if mode == "auto" else mode
        if best not in ("min", "max"):
            hint = f'Try ranked({monitor!r}, mode="max"), or mode="min".'
            raise ArgumentError(f"which values of {monitor!r} are best is not known.\n  {hint}")
        sign = -1 if best == "max" else 1

        columns = [history.epochs.get(monitor, np.empty(0)) for history in self.histories]
        measured = {int(epoch) for each in columns for epoch in np.flatnonzero(~np.isnan(each))}

        def place(i: int) -> tuple[bool, float]:
            last = max((epoch for epoch in measured if epoch < len(columns[i])), default=None)
            value = np.nan if last is None else float(columns[i][last])
            return i in self._lost or bool(np.isnan(value)), sign * value

        return sorted(range(len(self)), key=place)

    def best(
        self, monitor: str = "val_loss", *, mode: Literal["auto", "min", "max"] = "auto"
    ) -> TrainState:
        """Return the state of the best member; `ranked` has its number, and the arguments."""
        return self[self.ranked(monitor, mode=mode)[0]]

    @short_traceback
    def predict(self, x: PyTree, *, batch_size: int | None = None) -> Prediction:
        """Apply all models, in inference mode, to each example: their mean, and how they differ.

        Members whose numbers stopped being finite are left out.

        Args:
            x: As in `Trainer.predict`.
            batch_size: Examples at once. By default all of them.
        """
        outputs = self.predict_each(x, batch_size=batch_size)
        good = np.array([i for i in range(len(self)) if i not in self._lost])
        if not len(good):
            raise ArgumentError("the numbers of every member stopped being finite: see ended.")
        outputs = jax.tree.map(lambda leaf: leaf[good], outputs)
        return Prediction(
            mean=jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), outputs),
            std=jax.tree.map(lambda leaf: jnp.std(leaf, axis=0), outputs),
        )

    @short_traceback
    def predict_each(self, x: PyTree, *, batch_size: int | None = None) -> PyTree:
        """Apply each model; the members come along the leading axis of the outputs."""
        trainer = replace(self.trainer, mesh=None)
        state = _stacked_states(self.states)
        first = self.states[0]
        inferring = eqx.nn.inference_mode(first.model)
        preflight = Preflight(None, inferring, first.model_state, name="x")
        checked = checked_data(preflight, x, batch_size=batch_size)
        axes = (None,) * len(jax.tree.leaves(checked.source.example))
        return measuring.predict_members(
            measuring.eval_models(trainer, state),
            state.model_state,
            checked,
            trainer._objective.compute_dtype,
            Members(len(self), one_by_one=False, batch_axes=axes),
        )

    def plot(self, ax: Any = None, metrics: str | Sequence[str] = ("loss",)) -> Any:
        """Draw the curves of all members in one picture; see `vernal.plot.history`.

        Returns:
            Matplotlib's axes.
        """
        return plot.histories(self.histories, ax=ax, metrics=metrics)

    def __repr__(self) -> str:
        measured = [history.epochs["loss"] for history in self.histories if history.epochs]
        last = [float(values[-1]) for values in measured if len(values)]
        losses = f", loss {min(last):.4g} to {max(last):.4g}" if last else ""
        early = f", {len(self.ended)} ended early" if self.ended else ""
        return f"SweepResult({counted(len(self), 'member')}{losses}{early})"


def _stacked_states(states: list[TrainState]) -> TrainState:
    """Stack the states of members; the counts are the first one's."""
    first = states[0]
    parts = [(each.model, each.model_state, each.opt_state) for each in states]
    model, model_state, opt_state = jax.tree.map(
        lambda leaf, *rest: jnp.stack([leaf, *rest]) if eqx.is_array(leaf) else leaf, *parts
    )
    key = jnp.stack([each.key for each in states])
    return replace(first, model=model, model_state=model_state, opt_state=opt_state, key=key)
