"""A table of what each epoch measured, as a CSV file."""

import csv
import io
import os
from typing import Any

from vernal import _hosts
from vernal._training.epochs import Epoch
from vernal.errors import ArgumentError, checked_path, shown, unwritable

_FIRST_COLUMNS = ["epoch", "seconds"]


class CSVLog:
    """Writes a table with one row for each epoch: its index, its seconds and its metrics.

    A row is in the file as soon as its epoch is over, so that a killed run leaves all it measured.
    Numbers read back exactly. A cell is empty if its epoch did not measure the metric. Metrics that
    are called "epoch" or "seconds" have the columns "metric epoch" and "metric seconds".

    Args:
        path: The file. Missing directories are made.
        append: Whether to add rows to an existing file; by default, it is overwritten.

    Raises:
        ArgumentError: `path` is not a path; or, raised before training, the file cannot be written,
            or `append` is given and the file is not a log of this kind.

    Example:
        >>> log = callbacks.CSVLog("logs/line.csv")
        >>> state, history = trainer.fit(model, (x, y), epochs=2, callbacks=[log])
        >>> with open("logs/line.csv") as file:
        ...     print(file.readline().strip())
        epoch,seconds,loss
    """

    def __init__(self, path: str | os.PathLike[str], *, append: bool = False):
        self.path = checked_path("path", path)
        self.append = append
        self._columns: list[str] = []  # empty before the file is open
        self._rows: list[dict[str, str]] = []

    def start(self) -> None:
        """Make the file, or read its columns to append to it."""
        self.load_state_dict({"rows": None if self.append else 0})

    def state_dict(self) -> dict[str, Any]:
        """Return how many rows of the file belong to the run so far."""
        return {"rows": len(self._rows)}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue the file, without the rows of epochs that will be trained again.

        Args:
            saved: How many of its first `"rows"` the file keeps; `None` is all of them.
        """
        rows = saved["rows"]
        if not _hosts.is_first():
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists() and not self.path.is_file():
                raise FileExistsError(0, "it exists, and is not a file")
            self.path.open("a").close()  # fails where a file may not be written
            text = "" if rows == 0 else self.path.read_bytes().decode("utf-8", errors="replace")
            # A last line without an end was being written when the machine stopped.
            whole = io.StringIO(text[: text.rfind("\n") + 1], newline="")
            columns, *kept = list(csv.reader(whole)) or [_FIRST_COLUMNS]
            if columns[:2] != _FIRST_COLUMNS:
                found = f"{self.path} has the columns {', '.join(columns)}, not epoch, seconds, ..."
                hint = "Pass another path, or append=False, which overwrites the file."
                raise ArgumentError(f"{found}\n  {hint}")
            self._columns = [*columns]
            self._rows = [dict(zip(columns, row, strict=False)) for row in kept[:rows]]
            self._replace()
        except OSError as error:
            raise unwritable(self.path, error) from error

    def __call__(self, epoch: Epoch) -> None:
        """Write an epoch's row."""
        if not _hosts.is_first():
            return
        if not self._columns:
            self.start()
        row = {_column(name): repr(float(value)) for name, value in epoch.metrics.items()}
        new = [column for column in row if column not in self._columns]
        if new:
            self._columns += new
            self._replace()

        row |= {"epoch": repr(epoch.index), "seconds": repr(float(epoch.seconds))}
        self._rows.append(row)
        # Opened for each row: so a killed run leaves no row unwritten.
        with self.path.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, self._columns, lineterminator="\n").writerow(row)

    def _replace(self) -> None:
        """Replace the file at once: at any moment it is the old one or the new one."""
        target = self.path.resolve()  # a link stays a link
        temporary = target.with_name(f"{target.name}.tmp")
        temporary.unlink(missing_ok=True)  # of a killed run; or a link, which leads elsewhere
        with temporary.open("x", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self._columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self._rows)
        os.replace(temporary, target)

    def __repr__(self) -> str:
        return f"CSVLog({shown(self.path)!r}, append={self.append})"


def _column(name: str) -> str:
    """Return the column of a metric: two names never share one, nor do they take the first two."""
    return f"metric {name}" if name in _FIRST_COLUMNS or name.startswith("metric ") else name
