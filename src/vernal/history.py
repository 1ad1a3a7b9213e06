"""The record of a run: plain NumPy."""

import base64
import html
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vernal import plot


@dataclass(frozen=True, eq=False)
class History:
    """The record of a run.

    Attributes:
        steps: name -> an array with one value a step: `"loss"`, the metrics, and `"learning_rate"`
            if the optimizer's state shows it, as with `optax.inject_hyperparams`.
        epochs: name -> an array with one value for each epoch that the run completed: the averages
            of `steps` over the epoch's examples; the validation's results as `"val_loss"`, ...; and
            the numbers that callbacks add to `Epoch.metrics`. They are `nan` where an epoch has
            none. A dict that `pandas.DataFrame` takes.
        seconds: How long the run took, compilation included.

    Example:
        >>> state, history = trainer.fit(model, (x, y), epochs=3, batch_size=10)
        >>> history.steps["loss"].shape, history.epochs["loss"].shape
        ((12,), (3,))
    """

    steps: dict[str, np.ndarray] = field(default_factory=dict)
    epochs: dict[str, np.ndarray] = field(default_factory=dict)
    seconds: float = 0.0

    def plot(
        self, ax: Any = None, metrics: str | Sequence[str] = ("loss",), *, label: str | None = None
    ) -> Any:
        """Draw the curves of the loss, or of other metrics; see `vernal.plot.history`.

        Returns:
            Matplotlib's axes.

        Example:
            >>> _, history = trainer.fit(model, (x, y), epochs=3)
            >>> ax = history.plot(label="rate 0.1")
        """
        return plot.history(self, ax=ax, metrics=metrics, label=label)

    def __repr__(self) -> str:
        losses = self.steps.get("loss", np.empty(0))
        epochs = len(self.epochs.get("loss", ()))
        parts = [counted(epochs, "epoch"), counted(len(losses), "step")]
        for name, values in (self.epochs if epochs else self.steps).items():
            if name.startswith("val_"):  # nan where it was not measured
                values = values[~np.isnan(values)]
            if len(values):
                parts.append(f"{name} {values[0]:.4g} → {values[-1]:.4g}")
        return f"History({', '.join(parts)}, {self.seconds:.2f} s)"

    def _repr_html_(self) -> str:
        """Show a notebook the loss curve, if matplotlib is installed, and a table."""
        table = "<tr><th></th><th>last</th><th>best</th><th>in epoch</th></tr>"
        for name, values in self.epochs.items():
            known = [*values[~np.isnan(values)]] or [np.nan]
            cells = [html.escape(name), f"{known[-1]:.4g}", "", ""]
            best = plot.best_epoch(name, values)
            if best is not None:
                cells[2:] = f"{values[best]:.4g}", f"{best + 1:,}"
            table += f"<tr><td>{'</td><td>'.join(cells)}</td></tr>"

        image = ""
        if importlib.util.find_spec("matplotlib") is not None:
            png = base64.b64encode(plot.png(self)).decode()
            image = f'<img src="data:image/png;base64,{png}">'
        return f"<p>{html.escape(repr(self))}</p>{image}<table>{table}</table>"


def counted(number: int, noun: str) -> str:
    """Write a number with its noun, such as `1 epoch`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
