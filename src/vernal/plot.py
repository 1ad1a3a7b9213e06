"""Pictures of data and training, with matplotlib."""

from collections.abc import Mapping
from itertools import pairwise

import equinox as eqx
import numpy as np
from jaxtyping import ArrayLike, PyTree

from vernal._data.arrays import as_arrays
from vernal._training.checks import model_of
from vernal._training.evaluate import compiled_apply
from vernal._training.history import History
from vernal._training.jit import pack
from vernal._training.preflight import preflight
from vernal._training.state import TrainState
from vernal.errors import MissingExtraError, ShapeError
from vernal.learning_rate import LearningRates

# Where predictions are drawn: enough that a curve is smooth at any size of picture.
_POINTS = 500
# A loss curve is drawn in so many stretches, at up to four points each: more than a picture has
# columns.
_STRETCHES = 1000


def _axes(ax):
    """The axes to draw on: the caller's, or new ones."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise MissingExtraError(
            "plots need matplotlib, which is not installed.\n  Run: pip install 'vernal[plot]'"
        ) from error
    return plt.subplots()[1] if ax is None else ax


def history(record: History, *, ax=None, label: str | None = None):
    """Draw the loss curve: an epoch's average each, validation's too.

    Of very many epochs only some are drawn, the extremes among them: the picture is the same.

    **Arguments:**

    - `ax`: matplotlib's axes to draw on; `None` makes new ones.
    - `label`: what to call the run, where one picture shows several.

    **Returns:** the axes.
    """
    ax = _axes(ax)
    curves = {n: v for n, v in record.epochs.items() if n in ("loss", "val_loss")}
    drawn = curves or {"loss": record.steps.get("loss", np.empty(0))}
    positive = True
    for name, values in drawn.items():
        places = _places(values)
        named = name if label is None else label if name == "loss" else f"{label}: {name}"
        ax.plot(places + 1, values[places], label=named)
        positive &= bool(np.all(values[places] > 0))
    if positive:
        ax.set_yscale("log")
    ax.set_xlabel("epoch" if curves else "update")
    ax.set_ylabel("loss")
    if len(ax.lines) > 1:
        ax.legend()
    return ax


def _places(values: np.ndarray) -> np.ndarray:
    """Where to draw a curve: at each finite value; or, of very many, as few as look the same.

    Those are the first, last, lowest and highest of each stretch: the M4 of Jugel et al., *M4: a
    visualization-oriented time series data aggregation*, 2014.
    """
    if len(values) <= 4 * _STRETCHES:
        return np.flatnonzero(np.isfinite(values))
    places: list[int] = []
    for start, stop in pairwise(np.linspace(0, len(values), _STRETCHES + 1).astype(int)):
        known = start + np.flatnonzero(np.isfinite(values[start:stop]))
        if len(known):
            low, high = known[values[known].argmin()], known[values[known].argmax()]
            places += sorted({known[0], low, high, known[-1]})
    return np.array(places, int)


def learning_rates(found: LearningRates, *, ax=None):
    """Draw what a learning-rate range test measured: the loss over the rate, and the suggestion.

    **Arguments:**

    - `found`: what `vernal.find_learning_rate` returns.
    - `ax`: matplotlib's axes to draw on; `None` makes new ones.

    **Returns:** the axes.
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


def predictions(
    models: PyTree | TrainState | Mapping[str, PyTree | TrainState],
    data: tuple[ArrayLike, ArrayLike],
    *,
    ax=None,
):
    """Draw data as points, and what models of one number make of it as lines.

    **Arguments:**

    - `models`: a model or state, or a dict of several, by the names to show.
    - `data`: `(x, y)`, each of shape `(n,)` or `(n, 1)`: as the models are trained on.
    - `ax`: matplotlib's axes to draw on; `None` makes new ones.

    **Returns:** the axes.

    **Raises:** `ShapeError` if an example's x, y or prediction is more than one number.
    """
    x, y = map(np.asarray, as_arrays(tuple(data)))
    _check_one_number("x", x)
    _check_one_number("y", y)
    named = models if isinstance(models, Mapping) else {"model": models}
    dtype = x.dtype if np.issubdtype(x.dtype, np.inexact) else float
    grid = np.linspace(x.min(), x.max(), _POINTS, dtype=dtype).reshape(-1, *x.shape[1:])
    curves = {name: _predict(model, grid) for name, model in named.items()}
    for curve in curves.values():
        _check_one_number("predictions", curve)

    ax = _axes(ax)
    ax.scatter(x, y, s=12, color="0.6", label="data")
    for name, curve in curves.items():
        ax.plot(grid.ravel(), curve.ravel(), label=name)
    ax.set_xlabel("x")
    ax.set_ylabel("y")
    ax.legend()
    return ax


def _predict(model: PyTree | TrainState, x: np.ndarray) -> np.ndarray:
    model, model_state = model_of(model)
    preflight(None, eqx.nn.inference_mode(model), model_state, x)
    return np.asarray(compiled_apply(pack((model, model_state, None)), x))


def _check_one_number(name: str, array: np.ndarray) -> None:
    if array.shape not in [(len(array),), (len(array), 1)]:
        raise ShapeError(
            f"plot.predictions needs {name} of shape (n,) or (n, 1), one number an example, to "
            f"draw a line; {name} has shape {array.shape}."
        )
