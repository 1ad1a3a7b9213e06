"""Calls between epochs: stop early, keep the best state, write logs."""

from typing import Protocol

from vernal._training.history import Epoch
from vernal.callbacks.csv_log import CSVLog
from vernal.callbacks.stopping import BestState, EarlyStopping
from vernal.callbacks.tensorboard import TensorBoard


class Callback(Protocol):
    """Anything that `fit` calls with each `Epoch`: a function, or an object with these methods.

    Only `__call__` is needed. `fit` uses the others where an object has them:

    - `start()`: called before the first epoch.
    - `finish(state)`: called at the end, also after Ctrl-C; returns the state for `fit` to return.
    - `monitor`: the name of a metric that the callback needs. `fit` checks it before training.
    - `state_dict()`: returns what a checkpoint saves of the callback.
    - `load_state_dict(saved)`: called in place of `start()` when a saved run resumes; it may return
      `True` to let a run go on that the callback had ended.
    """

    def __call__(self, epoch: Epoch, /) -> bool | None:
        """Look at an epoch; return `True` to end the run."""
        ...


__all__ = ["BestState", "CSVLog", "Callback", "EarlyStopping", "TensorBoard"]
