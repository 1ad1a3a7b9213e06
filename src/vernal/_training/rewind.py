"""Where numbers stopped being finite: the updates since are made again, in parts."""

from typing import Any

import numpy as np
from jaxtyping import PyTree

from vernal._training.compiled import Compiled
from vernal._training.compiled_loop import copied
from vernal._training.nonfinite import all_finite, grad_norm, nonfinite
from vernal._training.records import Records
from vernal._training.state import TrainState
from vernal.errors import NonFiniteError


def first_bad(
    compiled: Compiled, start: list, finite: Any, made: list[Records]
) -> tuple[int, int, NonFiniteError]:
    """Make the updates of some records again, to find the first that is not to be made.

    **Arguments:**

    - `start`, `finite`: what changes, as it was before them, and which of it was finite.

    **Returns:** how many records, and updates of the next, are good; the error of the one after.
    """

    def again(arrays: list, records: Records, updates: int) -> list:
        """What so many of some records' updates make of what changes."""
        arrays, made = copied(arrays) if updates else arrays, 0
        while made < updates:
            place = records.place + made
            several = compiled.at_once(records.stack, place, updates - made)
            at = (records.stack, place, several, records.step + made)
            arrays, made = compiled.run(arrays, *at)[0], made + several
        return arrays

    def after(arrays: list, records: Records, updates: int) -> tuple[TrainState, PyTree]:
        """The state after so many of some records' updates, and the batch that comes next."""
        place, step = records.place + updates, records.step + updates
        arrays = again(arrays, records, updates)
        return compiled.state(arrays, step, records.stack, place), records.stack.batch(place)

    def breaks(start: list, records: Records, updates: int) -> bool:
        if updates > records.finite_losses:
            return True
        return no_longer(finite, all_finite(again(start, records, updates)))

    # 1. The first records that end badly. Their updates come out as they did: there are some.
    whole, before = 0, start
    while not breaks(start, made[whole], made[whole].updates):
        before, start = start, again(start, made[whole], made[whole].updates)
        whole += 1
    records = made[whole]
    # 2. After `good` of their updates all is well; after `bad` it is not.
    good, bad = 0, records.updates
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (good, middle) if breaks(start, records, middle) else (middle, bad)
    norm = None
    if good:
        norm = grad_norm(compiled.choices, *after(start, records, good - 1))
    elif whole:
        latest = made[whole - 1]
        norm = grad_norm(compiled.choices, *after(before, latest, latest.updates - 1))
    return whole, good, nonfinite(compiled.choices, *after(start, records, good), norm)


def no_longer(before: Any, after: Any) -> bool:
    """Whether an array is not finite any more: those that never were are meant so."""
    return bool(np.any(np.asarray(before) & ~np.asarray(after)))
