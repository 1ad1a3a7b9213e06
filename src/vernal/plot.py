"""Pictures of data and training, with matplotlib."""

import io
from collections.abc import Collection, Mapping, Sequence
from itertools import cycle
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree

from vernal import losses
from vernal._best import best_of
from vernal._data.arrays import as_arrays
from vernal.errors import (
    ArgumentError,
    DataError,
    ShapeError,
    did_you_mean,
    optional_import,
    short_traceback,
)

# Where predictions are drawn: enough that a curve is smooth at any size of picture.
_POINTS = 500
# A long curve is drawn in so many stretches, more than a picture has columns. Each is drawn by its
# first, last, lowest and highest value: the M4 of Jugel et al., *M4: a visualization-oriented time
# series data aggregation*, 2014.
_STRETCHES = 1000
# How opaque each of many curves is.
_FAINT = 0.6
# A curve that falls by such a factor is drawn on a logarithmic scale.
_LOG_FACTOR = 3
# Told apart by the colour-blind, too: Okabe and Ito, *Color Universal Design*, 2008.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# Told apart without colours.
_STYLES = ("solid", "dashed", "dashdot", "dotted")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# A plane is drawn by so many points along each side.
_GRID = 200


def _axes(ax):
    """The axes to draw on: the caller's, or new ones."""
    if ax is not None:
        return ax
    return optional_import("matplotlib.pyplot", user="vernal.plot", extra="plot").subplots()[1]


@short_traceback
def history(
    record: Any, *, ax=None, metrics: str | Sequence[str] = ("loss",), label: str | None = None
):
    """Draw the curves of the loss, or of other metrics: an epoch's average each, validation's too.

    A dot marks the best epoch of the validation; without one, of the training. The scale is
    logarithmic where the values are positive and fall by a large factor.

    Of very many epochs only some are drawn, the extremes among them: the picture is the same.

    Args:
        record: A `vernal.History`, or anything with its `steps` and `epochs`.
        ax: matplotlib's axes to draw on; `None` makes new ones.
        metrics: The names of what to draw; `"loss"` also draws `"val_loss"`.
        label: A name for the run, where one picture shows several.

    Returns:
        The axes.

    Raises:
        ArgumentError: The record has no such metric.

    Example:
        >>> _, run = trainer.fit(model, (x, y), epochs=20)
        >>> ax = plot.history(run, label="rate 0.1")
        >>> ax.get_xlabel()
        'epoch'
    """
    metrics = [metrics] if isinstance(metrics, str) else metrics
    columns = record.epochs or record.steps or {"loss": np.empty(0)}
    for metric in metrics:
        _check_measured(metric, columns)

    ax = _axes(ax)
    for metric in metrics:
        names = [name for name in (metric, f"val_{metric}") if name in columns]
        for name in names:
            values, color = columns[name], _COLORS[len(ax.lines) % len(_COLORS)]
            text = f"{label}: {name}" if label and name != "loss" else label or name
            places = _drawn_places(values)
            ax.plot(places + 1, values[places], color=color, label=text)
            best = best_epoch(name, values)
            if record.epochs and name == names[-1] and best is not None:
                ax.scatter(best + 1, values[best], color=color, zorder=3)

    _set_scale(ax, metrics)
    ax.set(xlabel="epoch" if record.epochs else "step", ylabel=", ".join(metrics))
    if len(ax.lines) > 1:
        ax.legend()
    return ax


@short_traceback
def histories(records: Sequence[Any], *, ax=None, metrics: str | Sequence[str] = ("loss",)):
    """Draw the curves of many runs in one picture, a thin line each, validation's too.

    Args:
        records: Of `vernal.History`.
        ax: matplotlib's axes to draw on; `None` makes new ones.
        metrics: As in `history`.

    Returns:
        The axes.

    Raises:
        ArgumentError: The records have no such metric.

    Example:
        >>> runs = [trainer.fit(model, (x, y), epochs=9)[1] for _ in range(3)]
        >>> ax = plot.histories(runs)
    """
    metrics = [metrics] if isinstance(metrics, str) else metrics
    ax = _axes(ax)
    for metric in metrics:
        _check_measured(metric, {name for record in records for name in record.epochs})
        for name in (metric, f"val_{metric}"):
            curves = [record.epochs[name] for record in records if name in record.epochs]
            color = _COLORS[len({line.get_color() for line in ax.lines}) % len(_COLORS)]
            for i, values in enumerate(curves):
                places = _drawn_places(values)
                label = name if i == 0 else None
                style = {"color": color, "label": label, "linewidth": 1, "alpha": _FAINT}
                ax.plot(places + 1, values[places], **style)

    _set_scale(ax, metrics)
    ax.set(xlabel="epoch", ylabel=", ".join(metrics))
    if len({line.get_color() for line in ax.lines}) > 1:
        ax.legend()
    return ax


def _check_measured(metric: str, names: Collection[str]) -> None:
    if metric not in names and f"val_{metric}" not in names:
        found = f"metrics holds {metric!r}, and the history {', '.join(names)}."
        raise ArgumentError(found + did_you_mean(metric, names))


def _drawn_places(values: np.ndarray) -> np.ndarray:
    """Return where a curve is drawn: of very many values, at the extremes among them."""
    places = np.flatnonzero(np.isfinite(values))
    if len(places) <= 4 * _STRETCHES:
        return places
    parts = np.array_split(places, _STRETCHES)
    kept = [part[[0, values[part].argmin(), values[part].argmax(), -1]] for part in parts]
    return np.unique(kept)


def _set_scale(ax: Any, metrics: Sequence[str]) -> None:
    """Make the scale logarithmic where the values are positive and fall by a large factor."""
    drawn = np.concatenate([np.empty(0), *(line.get_ydata() for line in ax.lines)])
    rises = any(best_of(metric) == "max" for metric in metrics)
    is_log = len(drawn) and not rises and 0 < _LOG_FACTOR * drawn.min() <= drawn.max()
    ax.set_yscale("log" if is_log else "linear")


def best_epoch(name: str, values: np.ndarray) -> int | None:
    """Return the index of a metric's best value; `None` if it is not known which that is.

    Example:
        >>> plot.best_epoch("val_loss", np.array([3.0, 1.0, 2.0]))
        1
    """
    mode = best_of(name)
    if mode is None or not np.isfinite(values).any():
        return None
    return int(np.nanargmax(values) if mode == "max" else np.nanargmin(values))


def png(record: Any) -> bytes:
    """Return a small picture of the loss curve, without pyplot, which would show it once more.

    Example:
        >>> _, run = trainer.fit(model, (x, y), epochs=20)
        >>> plot.png(run)[1:4]
        b'PNG'
    """
    figure_module = optional_import("matplotlib.figure", user="vernal.plot", extra="plot")
    figure = figure_module.Figure(figsize=(6, 2.5), layout="constrained")
    history(record, ax=figure.subplots())
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def learning_rates(found: Any, *, ax=None):
    """Draw what a learning-rate range test measured: the loss over the rate, and the suggestion.

    Args:
        found: The `vernal.LearningRates` that `vernal.find_learning_rate` returns.
        ax: matplotlib's axes to draw on; `None` makes new ones.

    Returns:
        The axes.

    Example:
        >>> optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
        >>> rates = vernal.Trainer(optimizer, losses.MeanSquaredError())
        >>> ax = plot.learning_rates(vernal.find_learning_rate(rates, model, (x, y)))
    """
    ax = _axes(ax)
    ax.plot(found.rates, found.losses, color="0.75", label="loss")
    ax.plot(found.rates, found.smoothed, color=_COLORS[0], label="smoothed loss")
    if found.suggestion is not None:
        label = f"suggestion: {found.suggestion:.2g}"
        ax.axvline(found.suggestion, color=_COLORS[1], linestyle="--", label=label)
    yscale = "log" if np.all(found.losses > 0) else "linear"
    ax.set(xscale="log", yscale=yscale, xlabel="learning rate", ylabel="loss")
    ax.legend()
    return ax


@short_traceback
def predictions(
    models: PyTree, data: tuple[ArrayLike, ArrayLike], *, residuals: bool = False, ax=None
):
    """Draw data as points, and the predictions of models of one number as curves.

    Args:
        models: A model, or a `TrainState`; or a dict of several, by the names to show.
        data: `(x, y)`, each of shape `(n,)` or `(n, 1)`: as the models are trained on.
        residuals: Whether to draw the residuals of the last model: a thin dashed line from each
            point to the curve.
        ax: matplotlib's axes to draw on; `None` makes new ones.

    Returns:
        The axes.

    Raises:
        ShapeError: If an example's x, y or prediction is more than one number.

    Example:
        >>> state, _ = trainer.fit(model, (x, y), epochs=20)
        >>> ax = plot.predictions({"before": model, "after": state}, (x, y))
    """
    x, y = map(np.asarray, as_arrays(tuple(data), finite=True))
    _check_one_number("x", x)
    _check_one_number("y", y)
    named = models if isinstance(models, Mapping) else {"model": models}
    dtype = x.dtype if np.issubdtype(x.dtype, np.inexact) else float
    grid = np.linspace(x.min(), x.max(), _POINTS, dtype=dtype).reshape(-1, *x.shape[1:])
    curves = {name: _one_number_each(model, grid) for name, model in named.items()}
    ends = _one_number_each(list(named.values())[-1], x) if residuals else None

    ax = _axes(ax)
    ax.scatter(x, y, s=12, color="0.6", label="data")
    if ends is not None:
        ax.vlines(x.ravel(), y.ravel(), ends, color="0.4", linewidth=0.6, linestyle="dashed")
    for (name, curve), color, style in zip(curves.items(), cycle(_COLORS), cycle(_STYLES)):
        ax.plot(grid.ravel(), curve, color=color, linestyle=style, label=name)
    ax.set(xlabel="x", ylabel="y")
    ax.legend()
    return ax


@short_traceback
def residuals(model: PyTree, data: tuple[PyTree, ArrayLike], *, ax=None):
    """Draw the residual of each example, the answer minus the prediction, over the prediction.

    A model that fits leaves residuals without a pattern, around the line at 0.

    Args:
        model: A model, or a `TrainState`.
        data: `(x, y)`: x as the model is trained on, y of shape `(n,)` or `(n, 1)`.
        ax: matplotlib's axes to draw on; `None` makes new ones.

    Returns:
        The axes.

    Raises:
        ShapeError: If an answer or a prediction is more than one number.

    Example:
        >>> ax = plot.residuals(model, (x, y))
    """
    x, y = as_arrays(tuple(data), finite=True)
    _check_one_number("y", np.asarray(y))
    predicted = _one_number_each(model, x)

    ax = _axes(ax)
    ax.axhline(0, color="0.4", linewidth=1)
    ax.scatter(predicted, np.ravel(y) - predicted, s=12, color=_COLORS[0], alpha=0.7)
    ax.set(xlabel="prediction", ylabel="residual (y - prediction)")
    return ax


@short_traceback
def decision_boundary(model: PyTree, data: tuple[ArrayLike, ArrayLike], *, ax=None):
    """Draw which class a classifier chooses over a plane, and the examples by their true class.

    Args:
        model: A model, or a `TrainState`, whose outputs are logits: one for two classes, the second
            of which it chooses above 0; or one for each class.
        data: `(x, y)`: x of shape `(n, 2)`, y of shape `(n,)` or `(n, 1)` with classes from 0 on.
        ax: matplotlib's axes to draw on; `None` makes new ones.

    Returns:
        The axes.

    Raises:
        ShapeError: If x is not of shape `(n, 2)`, or y not of shape `(n,)` or `(n, 1)`.
        DataError: If y has a class that the model does not know.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> points = rng.normal(size=(50, 2)).astype(np.float32)
        >>> is_right = (points[:, 0] > 0).astype(int)
        >>> ax = plot.decision_boundary(nn.Linear(2, 2, key=jax.random.key(0)), (points, is_right))
    """
    x, y = map(np.asarray, as_arrays(tuple(data), finite=True))
    if x.ndim != 2 or x.shape[1] != 2:
        raise ShapeError(f"the picture needs x of shape (n, 2); x has shape {x.shape}.")
    _check_one_number("y", y)
    low, high = x.min(axis=0), x.max(axis=0)
    margin = 0.05 * (high - low)
    sides = np.linspace(low - margin, high + margin, _GRID, dtype=np.result_type(x, np.float32)).T
    plane = np.stack(np.meshgrid(*sides), axis=-1)
    logits = _predicted(model, plane.reshape(-1, 2))
    one_logit = logits.ndim == 1 or logits.shape[1] == 1
    chosen = logits.ravel() > 0 if one_logit else logits.argmax(axis=1)
    classes = 2 if one_logit else logits.shape[1]
    unknown = set(y.ravel().tolist()) - set(range(classes))
    if unknown:
        raise DataError(f"y has class {min(unknown)}; the model chooses from 0 to {classes - 1}.")
    levels = np.arange(classes + 1) - 0.5

    ax = _axes(ax)
    colors = [_COLORS[i % len(_COLORS)] for i in range(classes)]
    areas = chosen.reshape(_GRID, _GRID).astype(float)
    ax.contourf(*sides, areas, levels=levels, colors=colors, alpha=0.25)
    ax.contour(*sides, areas, levels=levels[1:-1], colors="0.3", linewidths=1)
    for label, color, marker in zip(range(classes), colors, cycle(_MARKERS)):
        of_class = x[y.ravel() == label]
        ax.scatter(*of_class.T, s=18, color=color, marker=marker, label=f"class {label}")
    ax.set(xlabel="first input", ylabel="second input")
    ax.legend()
    return ax


@short_traceback
def confusion_matrix(
    matrix: ArrayLike | Sequence[Sequence[float]],
    *,
    labels: Sequence[str] | None = None,
    ax=None,
):
    """Draw a confusion matrix: rows are true classes, columns are predicted classes.

    A cell shows how many examples it counts. It is the darker, the larger its share of its row.

    Args:
        matrix: Of shape `(classes, classes)`, as the metric `vernal.metrics.confusion_matrix`
            measures it.
        labels: The names of the classes; by default their numbers.
        ax: matplotlib's axes to draw on; `None` makes new ones.

    Returns:
        The axes.

    Raises:
        ShapeError: If the matrix is not square, or has another number of rows than there are
            labels.

    Example:
        >>> ax = plot.confusion_matrix(np.array([[9, 1], [2, 8]]), labels=["no", "yes"])
    """
    counts = np.asarray(matrix)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise ShapeError(f"a confusion matrix is square; matrix has shape {counts.shape}.")
    names = list(map(str, range(len(counts)) if labels is None else labels))
    if len(names) != len(counts):
        raise ShapeError(f"matrix has {len(counts)} classes, but there are {len(names)} labels.")
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-30)

    ax = _axes(ax)
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        color = "white" if shares[row, column] > 0.5 else "black"
        ax.text(column, row, f"{count:.4g}", color=color, ha="center", va="center")
    ax.set_xticks(range(len(names)), names)
    ax.set_yticks(range(len(names)), names)
    ax.set(xlabel="predicted class", ylabel="true class")
    return ax


def _one_number_each(model: Any, x: PyTree) -> np.ndarray:
    """Apply a model to x; `ShapeError` if it does not return a single number for each example."""
    outputs = _predicted(model, x)
    _check_one_number("predictions", outputs)
    return outputs.ravel()


def _predicted(model: Any, x: PyTree) -> np.ndarray:
    """Apply a model to x, in inference mode."""
    model_state = None
    if hasattr(model, "opt_state"):  # a `TrainState`
        model, model_state = model.model, model.model_state
    model = eqx.nn.inference_mode(model)

    def predicted(loss: Any, model: PyTree, x: ArrayLike) -> Array:
        return losses.predictions(model, x, model_state=model_state)

    try:
        outputs = np.asarray(eqx.filter_jit(predicted)(None, model, x))
    except Exception as error:
        from vernal._explain.messages import Attempt, explanation  # only where something failed

        explained = explanation(Attempt(None, model, model_state, predicted), x, error, name="x")
        raise explained from explained.__cause__
    return outputs


def _check_one_number(name: str, array: np.ndarray) -> None:
    if array.shape not in [(len(array),), (len(array), 1)]:
        need = f"the picture needs {name} of shape (n,) or (n, 1)"
        raise ShapeError(f"{need}; {name} has shape {array.shape}.")
