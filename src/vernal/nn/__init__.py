"""Layers: drop-in for their Equinox namesakes, with shapes checked and batches accepted."""

from vernal.nn._augment import Augment
from vernal.nn._linear import Linear
from vernal.nn._mlp import MLP

__all__ = ["MLP", "Augment", "Linear"]
