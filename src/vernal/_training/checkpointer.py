"""What `fit` needs of whatever saves and restores a run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vernal._training.objective import Objective
from vernal._training.preflight.data import CheckedData
from vernal._training.state import TrainState


@dataclass(frozen=True)
class Beginning:
    """What a run begins with, if it was not saved before. A resumed run must begin with the same.

    Attributes:
        state: The state.
        settings: How the data is cut into batches, and the like, by the names that users know.
        objective: What is measured.
        data: The data to train on.
        validation_data: The data to validate on; or `None`.
        of_one: Where the state is of many models: that of one, which loss and data are for.
    """

    state: TrainState
    settings: dict[str, Any]
    objective: Objective
    data: CheckedData
    validation_data: CheckedData | None
    of_one: TrainState | None = None

    def recorded_names(self, *, validates: bool = False) -> list[str]:
        """Return the names of what the run records of an epoch, with those of validation or not."""
        state = self.state if self.of_one is None else self.of_one
        return self.data.recorded_names(state, validates=validates)

    def kept_of_data(self) -> dict[str, Any]:
        """Return what the sources have kept, as a `RunState` has it."""
        held_out = None if self.validation_data is None else self.validation_data.source.kept
        return {"data": self.data.source.kept, "validation_data": held_out}

    def resume_data(self, saved: "RunState") -> None:
        """Have the sources go on as they were when a run was saved."""
        passes = int(saved.state.data_pass) - int(self.state.data_pass)
        self.data.source.resume(saved.data, is_later=passes > 0)
        if self.validation_data is not None:
            epochs = int(saved.state.epoch) - int(self.state.epoch)
            self.validation_data.source.resume(saved.validation_data, is_later=epochs > 0)


@dataclass(frozen=True)
class RunState:
    """All that changes in a run: what a checkpoint holds.

    Attributes:
        state: The state after the last recorded step.
        last_epoch: Number of the epoch that the run was to end before.
        record: What `Recorder.kept` returned.
        callbacks: The class's name and the `state_dict()` of each callback that has one.
        pending: Whether the last epoch still waits for its validation and its callbacks.
        stopped: Whether a callback ended the run.
        data: What the source of the data has kept.
        validation_data: What the source of the validation data has kept, if there is one.
    """

    state: TrainState
    last_epoch: int
    record: dict[str, Any]
    callbacks: list[tuple[str, Any]]
    pending: bool
    stopped: bool
    data: Any = None
    validation_data: Any = None


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

    def restore(self, beginning: Beginning) -> RunState | None:
        """Read the newest good checkpoint; `None` if there is none yet.

        Args:
            beginning: What the run begins with if there is no checkpoint. A restored state has the
                structure of its state, its kinds of arrays and their devices.

        Raises:
            CheckpointError: If the checkpoint belongs to another run, or all are damaged.
        """
        ...

    def check_room(self) -> None:
        """Check that another checkpoint fits beside the one that was restored.

        Raises:
            CheckpointError: If it does not.
        """

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

    def restore(self, beginning: Beginning) -> RunState | None:
        """Find no checkpoint."""
        return None

    def check_room(self) -> None:
        """Need none."""

    def due(self, *, step: int, epoch: int) -> bool:
        """Never ask to save."""
        return False

    def save(self, run: RunState) -> None:
        """Write nothing."""

    def wait(self) -> None:
        """Wait for nothing."""

    def close(self) -> None:
        """Close nothing."""
