"""Vernal is the training half of Equinox: it trains any `eqx.Module` in one call."""

from importlib.metadata import version

from vernal import callbacks, errors, losses, metrics, nn, plot
from vernal._checkpointing.manager import Checkpoints
from vernal._checkpointing.weights import load, save
from vernal._data.sources import batches, steps
from vernal._inspection.cost import Cost, update_cost, update_jaxpr
from vernal._inspection.recompilation import no_recompilation
from vernal._inspection.summary import Summary, summary
from vernal._training.epochs import Epoch
from vernal._training.state import TrainState
from vernal._training.trainer import Trainer
from vernal.averaging import average_weights, averaged
from vernal.errors import *  # noqa: F403
from vernal.history import History
from vernal.learning_rate import LearningRates, find_learning_rate
from vernal.sweep import Sweep, SweepResult

__all__ = [
    "Checkpoints",
    "Cost",
    "Epoch",
    "History",
    "LearningRates",
    "Summary",
    "Sweep",
    "SweepResult",
    "TrainState",
    "Trainer",
    "average_weights",
    "averaged",
    "batches",
    "callbacks",
    "find_learning_rate",
    "load",
    "losses",
    "metrics",
    "nn",
    "no_recompilation",
    "plot",
    "save",
    "steps",
    "summary",
    "update_cost",
    "update_jaxpr",
]
__all__ += errors.__all__

__version__ = version("vernal")
del version
