"""Pictures of data and training, with matplotlib."""

import numpy as np

from vernal._errors import MissingExtraError
from vernal._history import History


def _axes(ax):
    """The axes to draw on: the caller's, or new ones."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise MissingExtraError(
            "plots need matplotlib, which is not installed.\n  Run: pip install 'vernal[plot]'"
        ) from error
    return plt.subplots()[1] if ax is None else ax


def history(record: History, *, ax=None):
    """Draw the loss curve: an epoch's average each, validation's too.

    **Arguments:** `ax`: matplotlib's axes to draw on; `None` makes new ones.

    **Returns:** the axes.
    """
    ax = _axes(ax)
    curves = {n: v for n, v in record.epochs.items() if n in ("loss", "val_loss")}
    for name, values in (curves or {"loss": record.steps.get("loss", np.empty(0))}).items():
        known = np.isfinite(values)
        ax.plot(np.arange(1, len(values) + 1)[known], values[known], label=name)
    values = np.concatenate([*curves.values(), [1.0]])
    if np.all(values[np.isfinite(values)] > 0):
        ax.set_yscale("log")
    ax.set_xlabel("epoch" if curves else "update")
    ax.set_ylabel("loss")
    ax.legend()
    return ax
