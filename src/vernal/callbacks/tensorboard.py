"""A log of each epoch's metrics for TensorBoard."""

import os
import struct
import time
from typing import Any

from vernal import _hosts
from vernal._training.epochs import Epoch
from vernal._training.state import TrainState
from vernal.errors import checked_path, optional_import, shown, unwritable


class TensorBoard:
    """Writes each epoch's metrics for TensorBoard, with the epoch's index as the step.

    The tags are `train/loss`, `val/loss`, and so on; and `learning_rate`. Each run adds a file to
    the directory, and leaves the files of other runs alone. An epoch is in the file as soon as it
    is over. A resumed run continues its file. To see them, run `tensorboard --logdir DIRECTORY`.

    Args:
        directory: Where the files go. A missing directory is made.

    Raises:
        MissingExtraError: tensorboardX is not installed.
        ArgumentError: `directory` is not a path, or, raised before training, cannot be written to.

    Example:
        >>> log = callbacks.TensorBoard("logs/line")
        >>> state, history = trainer.fit(model, (x, y), epochs=2, callbacks=[log])
    """

    def __init__(self, directory: str | os.PathLike[str]):
        self.directory = checked_path("directory", directory)
        self._package = optional_import("tensorboardX", user="TensorBoard", extra="tensorboard")
        self._file: Any = None

    def start(self) -> None:
        """Make a new file."""
        if not _hosts.is_first():
            return
        name = f"events.out.tfevents.{time.time_ns()}.vernal"
        self.load_state_dict({"file": name, "bytes": 0})
        self._write(file_version="brain.Event:2")

    def state_dict(self) -> dict[str, Any]:
        """Return the run's file, and how many bytes of it belong to the run so far."""
        if not _hosts.is_first():
            return {}
        return {"file": self._file.name, "bytes": self._file.stat().st_size}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue the file, without the epochs that will be trained again."""
        if not _hosts.is_first():
            return
        self._file = self.directory / saved["file"]
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("ab") as file:
                file.truncate(min(saved["bytes"], file.tell()))
        except OSError as error:
            raise unwritable(self.directory, error) from error

    def __call__(self, epoch: Epoch) -> None:
        """Write an epoch's metrics."""
        if not _hosts.is_first():
            return
        if self._file is None:
            self.start()
        metrics = epoch.metrics.items()
        values = [{"tag": _tag(name), "simple_value": float(value)} for name, value in metrics]
        self._write(step=epoch.index, summary={"value": values})

    def _write(self, **fields: Any) -> None:
        """Append an event, in TensorFlow's format of records."""
        event = self._package.proto.event_pb2.Event(wall_time=time.time(), **fields)
        content = event.SerializeToString()
        record = b""
        for part in (struct.pack("<Q", len(content)), content):
            checksum = self._package.record_writer.masked_crc32c(part)
            record += part + struct.pack("<I", checksum)
        with self._file.open("ab") as file:
            file.write(record)

    def finish(self, state: TrainState) -> TrainState:
        """End the file, and return the state as it is."""
        self._file = None
        return state

    def __repr__(self) -> str:
        return f"TensorBoard({shown(self.directory)!r})"


def _tag(name: str) -> str:
    if name == "learning_rate":
        return name
    return f"val/{name[4:]}" if name.startswith("val_") else f"train/{name}"
