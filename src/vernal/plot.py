"""Pictures of data and training, with matplotlib."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree

from vernal import losses
from vernal._data.arrays import as_arrays
from vernal.errors import ShapeError, optional_import, short_traceback

# Where predictions are drawn: enough that a curve is smooth at any size of picture.
_POINTS = 500
# A loss curve is drawn in so many stretches, at up to four points each: more than a picture has
# columns.
_STRETCHES = 1000


def _axes(ax):
    """The axes to draw on: the caller's, or new ones."""
    plt = optional_import("matplotlib.pyplot", user="vernal.plot", extra="plot")
    return plt.subplots()[1] if ax is None else ax


def history(record: Any, *, ax=None, label: str | None = None):
    """Draw the loss curve: an epoch's average each, validation's too.

    Of very many epochs only some are drawn, the extremes among them: the picture is the same.

    Args:
        record: A `vernal.History`, or anything with its `steps` and `epochs`.
        ax: matplotlib's axes to draw on; `None` makes new ones.
        label: A name for the run, where one picture shows several.

    Returns:
        The axes.
    """
    ax = _axes(ax)
    curves = {name: record.epochs[name] for name in ("loss", "val_loss") if name in record.epochs}
    drawn = curves or {"loss": record.steps.get("loss", np.empty(0))}
    names = {"loss": label or "loss", "val_loss": f"{label}: val_loss" if label else "val_loss"}
    for name, values in drawn.items():
        places = _places(values)
        ax.plot(places + 1, values[places], label=names[name])
    if all(np.all(np.asarray(line.get_ydata()) > 0) for line in ax.lines):
        ax.set_yscale("log")
    ax.set_xlabel("epoch" if curves else "step")
    ax.set_ylabel("loss")
    if len(ax.lines) > 1:
        ax.legend()
    return ax


def _places(values: np.ndarray) -> np.ndarray:
    """Choose where to draw a curve: at each finite value; of very many, at as few as look the same.

    These are the first, last, lowest and highest of each stretch: the M4 of Jugel et al., *M4: a
    visualization-oriented time series data aggregation*, 2014.
    """
    if len(values) <= 4 * _STRETCHES:
        return np.flatnonzero(np.isfinite(values))
    places: list[int] = []
    for start, stop in pairwise(np.linspace(0, len(values), _STRETCHES + 1).astype(int)):
        known = start + np.flatnonzero(np.isfinite(values[start:stop]))
        if len(known):
            low = known[values[known].argmin()]
            high = known[values[known].argmax()]
            places += sorted({known[0], low, high, known[-1]})
    return np.array(places, int)


def learning_rates(found: Any, *, ax=None):
    """Draw what a learning-rate range test measured: the loss over the rate, and the suggestion.

    Args:
        found: The `vernal.LearningRates` that `vernal.find_learning_rate` returns.
        ax: matplotlib's axes to draw on; `None` makes new ones.

    Returns:
        The axes.
    """
    ax = _axes(ax)
    ax.plot(found.rates, found.losses, color="0.75", label="loss")
    ax.plot(found.rates, found.smoothed, label="smoothed loss")
    if found.suggestion is not None:
        label = f"suggestion: {found.suggestion:.2g}"
        ax.axvline(found.suggestion, color="tab:red", linestyle="--", label=label)
    ax.set_xscale("log")
    if np.all(found.losses > 0):
        ax.set_yscale("log")
    ax.set_xlabel("learning rate")
    ax.set_ylabel("loss")
    ax.legend()
    return ax


@short_traceback
def predictions(models: PyTree, data: tuple[ArrayLike, ArrayLike], *, ax=None):
    """Draw data as points, and the predictions of models of one number as lines.

    Args:
        models: A model, or a `TrainState`; or a dict of several, by the names to show.
        data: `(x, y)`, each of shape `(n,)` or `(n, 1)`: as the models are trained on.
        ax: matplotlib's axes to draw on; `None` makes new ones.

    Returns:
        The axes.

    Raises:
        ShapeError: If an example's x, y or prediction is more than one number.
    """
    x, y = map(np.asarray, as_arrays(tuple(data), finite=True))
    _check_one_number("x", x)
    _check_one_number("y", y)
    named = models if isinstance(models, Mapping) else {"model": models}
    dtype = x.dtype if np.issubdtype(x.dtype, np.inexact) else float
    grid = np.linspace(x.min(), x.max(), _POINTS, dtype=dtype).reshape(-1, *x.shape[1:])
    curves = {name: _predicted(model, grid) for name, model in named.items()}

    ax = _axes(ax)
    ax.scatter(x, y, s=12, color="0.6", label="data")
    for name, curve in curves.items():
        ax.plot(grid.ravel(), curve.ravel(), label=name)
    ax.set_xlabel("x")
    ax.set_ylabel("y")
    ax.legend()
    return ax


def _predicted(model: Any, x: np.ndarray) -> np.ndarray:
    """Apply a model to x, in inference mode; `ShapeError` if it does not return single numbers."""
    model_state = None
    if hasattr(model, "opt_state"):  # a `TrainState`
        model_state = model.model_state
        model = model.model
    model = eqx.nn.inference_mode(model)
    try:
        eqx.filter_eval_shape(_apply, model, model_state, x)
    except Exception as error:
        from vernal._explain.messages import Attempt, shape_error  # only where something failed

        def measured(loss, model, x):
            return losses.predictions(model, x, model_state=model_state)

        attempt = Attempt(None, model, model_state, measured)
        explanation = shape_error(attempt, x, error, name="x")
        raise explanation from explanation.__cause__
    outputs = np.asarray(_apply(model, model_state, x))
    _check_one_number("predictions", outputs)
    return outputs


@eqx.filter_jit
def _apply(model: PyTree, model_state: PyTree, x: ArrayLike) -> Array:
    return losses.predictions(model, x, model_state=model_state)


def _check_one_number(name: str, array: np.ndarray) -> None:
    if array.shape not in [(len(array),), (len(array), 1)]:
        raise ShapeError(
            f"plot.predictions needs {name} of shape (n,) or (n, 1), one number an example, to "
            f"draw a line; {name} has shape {array.shape}."
        )
