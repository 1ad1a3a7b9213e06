"""Vernal is the training half of Equinox: it trains any `eqx.Module` in one call."""

from vernal import callbacks, losses, metrics, nn, plot
from vernal._data import batches
from vernal._errors import (
    ArgumentError,
    CheckpointError,
    DataError,
    ExamplesError,
    MissingExtraError,
    NonFiniteError,
    RecompilationError,
    ShapeError,
    VernalError,
)
from vernal._history import Epoch, History
from vernal._inspect import Cost, update_cost, update_jaxpr
from vernal._learning_rate import LearningRates, find_learning_rate
from vernal._recompile import no_recompilation
from vernal._state import TrainState
from vernal._trainer import Trainer
from vernal._weights import load, save
from vernal.checkpoint import Checkpoints
from vernal.summary import Summary, summary

__all__ = [
    "ArgumentError",
    "CheckpointError",
    "Checkpoints",
    "Cost",
    "DataError",
    "Epoch",
    "ExamplesError",
    "History",
    "LearningRates",
    "MissingExtraError",
    "NonFiniteError",
    "RecompilationError",
    "ShapeError",
    "Summary",
    "TrainState",
    "Trainer",
    "VernalError",
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
    "summary",
    "update_cost",
    "update_jaxpr",
]
