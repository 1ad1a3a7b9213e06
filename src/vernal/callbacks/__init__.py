"""Calls between epochs: stop early, keep the best state, write logs."""

from typing import Protocol

from vernal._training.epochs import Epoch
from vernal.callbacks.csv_log import CSVLog
from vernal.callbacks.stopping import BestState, EarlyStopping
from vernal.callbacks.tensorboard import TensorBoard


class Callback(Protocol):
    """Anything that `fit` calls with each `Epoch`: a function, or an object with these hooks.

    Only `__call__` is needed. It may add to `epoch.metrics`. `fit` uses the others where an object
    has them:

    - `start()`: called before the first epoch.
    - `finish(state)`: called at the end, also after Ctrl-C; returns the state for `fit` to return,
      or `None` to leave it as it is.
    - `state_dict()` and `load_state_dict(saved)`, both or neither: a checkpoint holds what the
      first returns; when a saved run resumes, the second is called in place of `start()`. It may
      return `True` to let a run go on that the callback had ended.
    - `monitor`: the name of a metric that the callback needs. `fit` checks it before training, or,
      if callbacks before this one may measure it, in the first epoch.
    - `decide_mode(metrics)`: called before training with the trainer's metrics by name.
    - `reason`: why the callback ended the run, for the line that says so.

    Example:
        >>> def good_enough(epoch):
        ...     return epoch.metrics["loss"] < 0.1
        >>> state, history = trainer.fit(model, (x, y), epochs=1_000, callbacks=[good_enough])
        >>> bool(history.epochs["loss"][-1] < 0.1)
        True
    """

    def __call__(self, epoch: Epoch, /) -> bool | None:
        """Look at an epoch; return `True` to end the run."""
        ...


__all__ = ["BestState", "CSVLog", "Callback", "EarlyStopping", "TensorBoard"]
