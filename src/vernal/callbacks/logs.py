"""Callbacks that write down what each epoch measured."""

import csv
import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vernal._training.history import Epoch
from vernal._training.state import TrainState
from vernal.errors import ArgumentError, MissingExtraError, kind


class CSVLog:
    """Writes a table with one row an epoch: its index, its seconds and its metrics.

    A row is in the file as soon as its epoch is over, so a run that is killed leaves all that it
    measured. Numbers read back exactly; where an epoch did not measure something, nothing stands.

    **Arguments:**

    - `path`: of the file; directories that are missing are made.
    - `append`: whether to add rows to a file that is there already, in place of beginning it anew.

    **Raises:** `ArgumentError` if the file cannot be written or gone on with: before training.
    """

    def __init__(self, path: str | os.PathLike[str], *, append: bool = False):
        self.path = Path(_path("path", path))
        self.append = append
        self._columns: list[str] | None = None

    def start(self) -> None:
        """Begin the file, or read what it has."""
        self._begin(self._read if self.append else list)

    def state_dict(self) -> dict[str, Any]:
        """How much of the file is of the run so far."""
        return {"rows": 0 if self._columns is None else len(self._read())}

    def load_state_dict(self, kept: dict[str, Any]) -> None:
        """Go on with the file as it was, without the rows of epochs that will be trained again."""
        self._begin(lambda: self._read()[: kept["rows"]])

    def _begin(self, rows_there: Callable[[], list[list[str]]]) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists() and not self.path.is_file():
                raise FileExistsError(0, "it is there, and is no file")
            self.path.open("a").close()  # fails where a file may not be written
            rows = rows_there() or [["epoch", "seconds"]]
            if rows[0][:2] != ["epoch", "seconds"]:
                raise ArgumentError(
                    f"{self.path} has the columns {', '.join(rows[0])}; CSVLog goes on with a file "
                    "of its own, whose columns begin with epoch, seconds."
                    "\n  Pass another path, or append=False, which overwrites the file."
                )
            self._rewrite(rows)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        self._columns = rows[0]

    def __call__(self, epoch: Epoch) -> None:
        """Write an epoch's row."""
        if self._columns is None:
            self.start()
        assert self._columns is not None
        new = [name for name in epoch.metrics if name not in self._columns]
        if new:
            self._columns += new
            self._rewrite([self._columns, *self._read()[1:]])
        values = {name: float(value) for name, value in epoch.metrics.items()}
        values |= {"epoch": epoch.index, "seconds": float(epoch.seconds)}
        row = [repr(values[name]) if name in values else "" for name in self._columns]
        # Opened for each row: nothing is left open, and nothing unwritten, if the run is killed.
        with self.path.open("a", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(row)

    def _read(self) -> list[list[str]]:
        text = self.path.read_bytes().decode("utf-8", errors="replace")
        rows = list(csv.reader(io.StringIO(text, newline="")))
        # A row without its end is what was being written when the machine went down.
        return rows if text.endswith("\n") else rows[:-1]

    def _rewrite(self, rows: list[list[str]]) -> None:
        """Replace the file at once, so that at any time it is the old one or the new one."""
        target = self.path.resolve()  # a link stays a link
        temporary = target.with_name(f"{target.name}.tmp")
        width = len(rows[0])
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows(row + [""] * (width - len(row)) for row in rows)
        os.replace(temporary, target)

    def __repr__(self) -> str:
        return f"CSVLog({str(self.path)!r}, append={self.append})"


class TensorBoard:
    """Writes the metrics of each epoch for TensorBoard, with the epoch's index as the step.

    Each run adds a file to the directory; what was there stays. Look at it with
    `tensorboard --logdir DIRECTORY`.

    **Arguments:**

    - `directory`: where the files go; made if it is missing.

    **Raises:** `MissingExtraError` without tensorboardX; `ArgumentError`, before training, if the
    directory cannot be written to.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        self.directory = _path("directory", directory)
        _tensorboardx()
        self._writer: Any = None

    def start(self) -> None:
        """Begin a new file."""
        self._close()
        try:
            # The names of tensorboardX's files tell seconds apart, and no more: the later of two
            # would overwrite the earlier one.
            suffix = f".{time.time_ns()}"
            begin = _tensorboardx().SummaryWriter
            self._writer = begin(self.directory, flush_secs=10, filename_suffix=suffix)
        except OSError as error:
            raise _unwritable(self.directory, error) from error

    def __call__(self, epoch: Epoch) -> None:
        """Write an epoch's metrics."""
        if self._writer is None:
            self.start()
        assert self._writer is not None
        for name, value in epoch.metrics.items():
            self._writer.add_scalar(name, value, epoch.index)

    def finish(self, state: TrainState) -> TrainState:
        """Close the file. **Returns:** the state, as it is."""
        self._close()
        return state

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __repr__(self) -> str:
        return f"TensorBoard({self.directory!r})"


def _path(name: str, value) -> str:
    if not isinstance(value, str | os.PathLike):
        raise ArgumentError(f"{name} is {kind(value)}; a path is needed, as a str or a Path.")
    return os.fsdecode(value)


def _unwritable(path, error: OSError) -> ArgumentError:
    return ArgumentError(
        f"{path} cannot be written: {error.strerror or error}."
        "\n  Pass a path in a directory that you may write to."
    )


def _tensorboardx():
    try:
        import tensorboardX
    except ImportError as error:
        raise MissingExtraError(
            "callbacks.TensorBoard needs tensorboardX, which is not installed."
            "\n  Run: pip install 'vernal[tensorboard]'"
        ) from error
    return tensorboardX
