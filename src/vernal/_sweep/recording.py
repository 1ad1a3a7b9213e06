"""What a sweep records of each member, and which members have ended."""

import functools
from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Bool

from vernal import _arguments
from vernal._members import each_member, member
from vernal._training import hooks, nonfinite
from vernal._training.chunks import TrainingRun
from vernal._training.epochs import Epoch
from vernal._training.measurements import Measurements, steps_of
from vernal._training.recorder import Recorder
from vernal._training.state import TrainState
from vernal.history import History
from vernal.metrics import AbstractMetric


@dataclass(frozen=True)
class Ended:
    """A member that has ended before the others.

    Attributes:
        reason: Why.
        state: The last good state of it.
        is_lost: Whether its numbers stopped being finite.
    """

    reason: str
    state: TrainState
    is_lost: bool = False


class MemberRecorders:
    """A `Recorder` for each member. A member that has ended is not recorded any more.

    Args:
        metrics: The metrics that are measured in training, by name.
        count: How many members there are.

    Attributes:
        ended: The members that have ended, by their numbers.
        steps: Number of steps recorded.
        epochs: Number of epochs completed.
    """

    def __init__(self, metrics: dict[str, AbstractMetric], count: int):
        self._members = [Recorder(metrics) for _ in range(count)]
        self.ended: dict[int, Ended] = {}
        self.steps = 0
        self.epochs = 0
        self._run: TrainingRun | None = None

    @property
    def active(self) -> list[int]:
        """The numbers of the members that have not ended."""
        return [i for i in range(len(self._members)) if i not in self.ended]

    @property
    def is_over(self) -> bool:
        """Whether every member has ended."""
        return not self.active

    @property
    def latest(self) -> dict[str, float]:
        """The medians, over the members, of what was measured of the last completed epoch."""
        return _medians([self._members[i].latest for i in self.active])

    @property
    def so_far(self) -> dict[str, float]:
        """The same of the epoch under way; nothing at its start."""
        return _medians([self._members[i].so_far for i in self.active])

    def of(self, i: int) -> dict[str, float]:
        """What was measured of one member's last completed epoch."""
        return self._members[i].latest

    def last_good(self, i: int, state: TrainState) -> TrainState:
        """Return the state that a member ends with, of which this is the program's."""
        return self.ended[i].state if i in self.ended else state

    def end_lost(self, run: TrainingRun) -> None:
        """From now on, end the members whose numbers stop being finite."""
        self._run = run
        self._before = run.copy_of_changing()
        self._finite = _finite_members(run.state())

    def add(self, chunk: list[Measurements]) -> None:
        """Add what the steps of a chunk measured."""
        made = {i: steps_of(chunk) for i in self.active}
        if self._run is not None and chunk:
            made |= self._made_by_lost(chunk, self._run)
            self._before = self._run.copy_of_changing()
        for i, steps in made.items():
            self._members[i].add(_of_member(chunk, i, steps))
        self.steps += steps_of(chunk)
        self.epochs += sum(len(call.epoch_ends) for call in chunk)

    def _made_by_lost(self, chunk: list[Measurements], run: TrainingRun) -> dict[int, int]:
        """End the members that are not finite any more; return how many good steps each made."""
        is_finite: Any = ~self._finite | _finite_members(run.state())
        losses = np.concatenate([call.measured.info["loss"] for call in chunk])
        good = is_finite.all(axis=0) & np.isfinite(losses).all(axis=0)
        made = {}
        for i in self.active:
            if not good[i]:
                made[i] = self._good_steps(chunk, run, i, losses[:, i])
                state = member(run.state_within(chunk, self._before, made[i]), i)
                reason = f"its numbers stopped being finite in step {int(state.step):,}"
                self.ended[i] = Ended(reason, state, is_lost=True)
        return made

    def _good_steps(
        self, chunk: list[Measurements], run: TrainingRun, i: int, losses: np.ndarray
    ) -> int:
        """Return how many steps of a chunk keep a member's numbers finite."""
        from vernal._explain import bad_steps

        def is_good(steps: int) -> bool:
            is_finite = _finite_members(run.state_within(chunk, self._before, steps))
            return bool((~self._finite[:, i] | is_finite[:, i]).all())

        finite = np.isfinite(losses)
        most = len(losses) if finite.all() else int(np.argmin(finite)) + 1
        with bad_steps.silent_callbacks():
            return nonfinite.good_steps(most, is_good)

    def add_to_epoch(self, metrics: dict[str, Any]) -> None:
        """Add what is measured of each member, with the members along the leading axis."""
        for i in self.active:
            own = {name: values[i] for name, values in metrics.items() if np.ndim(values)}
            self._members[i].add_to_epoch(own)

    def add_to_member(self, i: int, metrics: dict[str, Any]) -> None:
        """Add numbers that are new among what was measured of one member."""
        self._members[i].add_to_epoch(metrics)

    def kept(self, seconds: float) -> dict[str, Any]:
        """Return all of it, for a checkpoint that is written after so many seconds."""
        return {
            "steps": self.steps,
            "epochs": self.epochs,
            "members": [each.kept(seconds) for each in self._members],
            "ended": {i: (each.reason, each.state, each.is_lost) for i, each in self.ended.items()},
        }

    def restore(self, kept: dict[str, Any], names: list[str]) -> None:
        """Go on from what `kept` returned."""
        self.steps, self.epochs = kept["steps"], kept["epochs"]
        for each, own in zip(self._members, kept["members"], strict=True):
            each.restore(own, names)
        self.ended = {i: Ended(*each) for i, each in kept["ended"].items()}

    def history(self, seconds: float) -> list[History]:
        """Return the members' records so far, after so many seconds."""
        return [each.history(seconds) for each in self._members]


class MemberCallbacks:
    """Calls each member's callbacks with its own epochs; ends the run when all members have ended.

    Args:
        callbacks: The callbacks of each member.
        recorders: Take what the callbacks measure, and which members have ended.
        names: What an epoch measures.
    """

    def __init__(self, callbacks: list[list[Any]], recorders: MemberRecorders, names: list):
        self._callbacks = callbacks
        self._recorders = recorders
        self._names = names
        self.reason = "every member has ended"

    def start(self) -> None:
        """Begin all callbacks."""
        for start in filter(None, (hooks.hook(each, "start") for each in self._all())):
            start()

    def _all(self) -> list[Any]:
        return [callback for own in self._callbacks for callback in own]

    def __call__(self, epoch: Epoch) -> bool:
        """Call the callbacks of each member that has not ended."""
        recorders = self._recorders
        # Only once one is asked for: cutting them apart takes longer than a small epoch.
        states = functools.cache(lambda: each_member(epoch.state, len(self._callbacks)))
        for i in recorders.active:
            own = Epoch.with_state_on_demand(
                lambda i=i: states()[i],
                index=epoch.index,
                metrics=recorders.of(i),
                seconds=epoch.seconds,
            )
            ending = []
            for callback in self._callbacks[i]:
                if recorders.epochs == 1:
                    known = {**dict.fromkeys(self._names), **own.metrics}
                    _arguments.check_monitored(callback, known)
                if hooks.ends_run(callback, callback(own)):
                    ending.append(hooks.reason(callback))
            recorders.add_to_member(i, own.metrics)
            if ending:
                recorders.ended[i] = Ended(ending[0], member(epoch.state, i))
        return recorders.is_over

    def state_dict(self) -> dict[str, Any]:
        """Return what the callbacks save."""
        return {"states": [each.state_dict() for each in self._all() if hooks.saves(each)]}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Give the callbacks what was saved of them; the others begin."""
        states = iter(saved["states"])
        for each in self._all():
            if hooks.saves(each):
                each.load_state_dict(next(states))
            elif start := hooks.hook(each, "start"):
                start()

    def finished(self, i: int, state: TrainState) -> TrainState:
        """Return the state that a member ends with, as its callbacks want it."""
        return hooks.finished(state, self._callbacks[i])


def _of_member(chunk: list[Measurements], i: int, steps: int) -> list[Measurements]:
    """Return what the first steps of a chunk measured of one member."""
    calls = []
    for call in chunk:
        own = replace(call, measured=jax.tree.map(lambda leaf: leaf[:, i], call.measured))
        calls.append(own.first(min(steps, call.steps)))
        steps -= calls[-1].steps
    return calls


def _finite_members(state: TrainState) -> Bool[np.ndarray, "arrays members"]:
    """Return of each float array and each member whether all of its numbers are finite."""
    parts = eqx.filter((state.model, state.model_state, state.opt_state), eqx.is_inexact_array)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(parts)]
    return np.array([np.isfinite(leaf.reshape(len(leaf), -1)).all(axis=1) for leaf in leaves])


def _medians(measured: list[dict[str, float]]) -> dict[str, float]:
    names = measured[0] if measured else {}
    return {name: float(np.median([each[name] for each in measured])) for name in names}
