"""What `fit` needs of whatever saves and restores a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vernal._training.state import TrainState
from vernal.errors import CheckpointError, shown


@dataclass(frozen=True)
class RunState:
    """All that changes in a run: what a checkpoint holds.

    Attributes:
        state: The state after the last recorded step.
        began: The step, epoch and batch that the run began with.
        first_epoch: Number of the epoch that the run began in.
        last_epoch: Number of the epoch that the run was to end before.
        batching: How the data is cut into batches, by the names that users know, such as
            `"batch_size"`. A resumed run must cut it in the same way.
        made_of: What `fingerprint` returned.
        record: What `Recorder.kept` returned.
        callbacks: The class's name and the `state_dict()` of each callback that has one.
        pending: Whether the last epoch still waits for its validation and its callbacks.
        stopped: Whether a callback ended the run.
    """

    state: TrainState
    began: tuple[int, int, int]
    first_epoch: int
    last_epoch: int
    batching: dict[str, Any]
    made_of: dict[str, str]
    record: dict[str, Any]
    callbacks: list[tuple[str, Any]]
    pending: bool
    stopped: bool


class Checkpointer(Protocol):
    """Saves a run while it goes on, and restores it.

    Attributes:
        every_steps: A checkpoint is due at each multiple of this step, where a chunk must end.
        every_epochs: The same, for epochs.
    """

    every_steps: int | None
    every_epochs: int | None

    @property
    def path(self) -> Path | None:
        """The directory of the checkpoints, for messages; `None` if nothing is saved."""
        ...

    def restore(self, start: TrainState) -> RunState | None:
        """Read the newest good checkpoint; `None` if there is none yet.

        Args:
            start: The state that the run begins with if there is no checkpoint. A restored state
                has its structure, its kinds of arrays and their devices.

        Raises:
            CheckpointError: If the checkpoint belongs to another run, or all are damaged.
        """
        ...

    def due(self, *, step: int, epoch: int) -> bool:
        """Return whether it is time to save.

        Raises:
            CheckpointError: If the last checkpoint could not be written.
        """
        ...

    def save(self, run: RunState) -> None:
        """Begin to write a checkpoint in the background, if there is anything new.

        Raises:
            CheckpointError: If this checkpoint, or the one before, cannot be written.
        """

    def wait(self) -> None:
        """Wait until the last checkpoint is written.

        Raises:
            CheckpointError: If it could not be written.
        """

    def close(self) -> None:
        """Wait for what is being written, and stop. Never raises: an error may be on its way."""


class Checkpointing(Protocol):
    """The choice where and how often to save: `fit`'s argument `checkpoints`."""

    def open(self) -> Checkpointer:
        """Make the checkpointer of a run."""
        ...


class NoCheckpoints:
    """The checkpointer of a run that is not saved: it does nothing."""

    path: Path | None = None
    every_steps: int | None = None
    every_epochs: int | None = None

    def restore(self, start: TrainState) -> RunState | None:
        """Find no checkpoint."""
        return None

    def due(self, *, step: int, epoch: int) -> bool:
        """Never ask to save."""
        return False

    def save(self, run: RunState) -> None:
        """Write nothing."""

    def wait(self) -> None:
        """Wait for nothing."""

    def close(self) -> None:
        """Close nothing."""


def check_same_run(
    saved: RunState,
    batching: dict[str, Any],
    callback_names: Sequence[str],
    path: Path,
) -> None:
    """Check that a run cuts its data, and keeps its callbacks, as the saved run did.

    Args:
        saved: The run in the newest good checkpoint.
        batching: How this run cuts its data into batches, with the same keys as
            `saved.batching`.
        callback_names: The class names of this run's callbacks with a `state_dict`.
        path: The directory of the checkpoints.

    Raises:
        CheckpointError: If one of these differs; the message names the first.
    """
    before = {**saved.batching, "callbacks": [name for name, _ in saved.callbacks]}
    now = {**batching, "callbacks": list(callback_names)}
    for name, value in before.items():
        if now[name] != value:
            raise CheckpointError(
                f"the run in {shown(path)} was trained with {name} = {value!r}; now it is "
                f"{now[name]!r}.\n  Resume it with {name} as before, or pass another directory "
                "for a new run."
            )
