"""What happens between epochs: stopping early, keeping the best state, logging.

A callback is any callable that takes an `Epoch`; `True` from it ends the run. A few things more are
used where a callback has them: `fit` calls `start()` before the first epoch, and `finish(state)` at
the end, also after Ctrl-C, and returns the state that comes back from it. `monitor` is the name of
a metric that the callback cannot do without: `fit` checks it before it trains. Where a run is
saved, so is what a callback's `state_dict()` returns; when the run goes on, `load_state_dict` gets
it back, in place of `start()`.
"""

from vernal.callbacks.logs import CSVLog, TensorBoard
from vernal.callbacks.stopping import BestState, EarlyStopping

__all__ = ["BestState", "CSVLog", "EarlyStopping", "TensorBoard"]
