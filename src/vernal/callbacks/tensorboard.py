"""A log of each epoch's metrics for TensorBoard."""

import os
import time
from typing import Any

from vernal._training.history import Epoch
from vernal._training.state import TrainState
from vernal.errors import checked_path, optional_import, shown, unwritable


class TensorBoard:
    """Writes each epoch's metrics for TensorBoard, with the epoch's index as the step.

    Each run adds a file to the directory, and leaves the files of other runs alone. To see them,
    run `tensorboard --logdir DIRECTORY`.

    Args:
        directory: Where the files go. A missing directory is made.

    Raises:
        MissingExtraError: tensorboardX is not installed.
        ArgumentError: `directory` is not a path, or, raised before training, cannot be written to.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        self.directory = checked_path("directory", directory)
        self._package = optional_import(
            "tensorboardX", user="callbacks.TensorBoard", extra="tensorboard"
        )
        self._writer: Any = None

    def start(self) -> None:
        """Open a new file."""
        self._close()
        try:
            self._writer = self._package.SummaryWriter(
                str(self.directory),
                flush_secs=10,
                # By itself, tensorboardX names two files of one second alike, and overwrites one.
                filename_suffix=f".{time.time_ns()}",
            )
        except OSError as error:
            raise unwritable(self.directory, error) from error

    def __call__(self, epoch: Epoch) -> None:
        """Write an epoch's metrics."""
        if self._writer is None:
            self.start()
        assert self._writer is not None
        for name, value in epoch.metrics.items():
            self._writer.add_scalar(name, value, epoch.index)

    def finish(self, state: TrainState) -> TrainState:
        """Close the file, and return the state as it is."""
        self._close()
        return state

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __repr__(self) -> str:
        return f"TensorBoard({shown(self.directory)!r})"
