"""A run as a checkpoint has it: what is written, and read."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vernal._checkpointing import format as _stored
from vernal._checkpointing.encode import decode, encode
from vernal._checkpointing.leaves import check_alike, described, named_arrays, on_host
from vernal._training.jit import Packed
from vernal._training.state import TrainState, put_counts, with_data_state
from vernal.errors import CheckpointError

_RECORD = "record."  # begins the names of arrays that are not the state's


class Saved(NamedTuple):
    """All that changes in a run, and by what it is known again."""

    state: TrainState
    began: list[int]  # the step, epoch and batch that it began with
    cut: dict[str, Any]  # how the data was cut into batches
    recorder: dict[str, Any]
    callbacks: list[tuple[str, Any]]  # of those that keep anything, the class, and what
    pending: bool  # the last epoch is not validated yet, nor seen by the callbacks
    stopped: bool  # a callback ended the run


def written(run: Saved) -> Any:
    """What Orbax is to write of a run; `CheckpointError` if something cannot be saved."""
    state, extra = run.state, []
    said = {
        "began": run.began,
        "counts": [int(count) for count in (state.step, state.epoch, state.batch)],
        "cut": run.cut,
        "pending": run.pending,
        "stopped": run.stopped,
        "data_state": encode(state.data_state, extra, "the data loader's state"),
        "recorder": encode(run.recorder, extra, "the history"),
        "callbacks": [[name, encode(kept, extra, name)] for name, kept in run.callbacks],
    }
    arrays = named_arrays(with_data_state(state, None))
    arrays |= {f"{_RECORD}{number}": array for number, array in enumerate(extra)}
    return _stored.parts(arrays, said)


def read_run(path: Path, template: Packed, began: list[int]) -> Saved:
    """A run as a checkpoint has it.

    **Arguments:**

    - `template`: a state with the same arrays, packed, with the run's key.
    - `began`: the step, epoch and batch that this run begins with.

    **Raises:** `CheckpointError` if it is another run than this one; anything else if the
    checkpoint is damaged.
    """
    said, wanted = _stored.description(path), named_arrays(template.unpack())
    run, another = said.run, "Pass another directory for another run."
    of_state = [leaf for leaf in said.leaves if not leaf.name.startswith(_RECORD)]
    mend = (
        "Pass the model and the optimizer of that run, or another directory for this one. To take "
        f"over that model alone: vernal.load({str(path.parent)!r}, model)."
    )
    check_alike(of_state, described(wanted), f"the checkpoint {path}", mend)
    if run["began"] != began:
        raise CheckpointError(
            f"the checkpoint {path} is of a run that began with step {run['began'][0]}, and this "
            f"one begins with step {began[0]}.\n  {another}"
        )
    arrays = _stored.arrays(path, said, wanted)
    if not np.array_equal(on_host(arrays["key"]), on_host(wanted["key"])):
        raise CheckpointError(
            f"the checkpoint {path} is of a run with another key.\n  Pass its key. {another}"
        )
    extra = [np.asarray(a) for name, a in arrays.items() if name.startswith(_RECORD)]
    packed = replace(template, arrays=[arrays[name] for name in wanted])
    put_counts(packed.arrays, *run["counts"])
    again = lambda part: decode(part, extra, template)
    return Saved(
        with_data_state(packed.unpack(), again(run["data_state"])),
        *(run["began"], run["cut"], again(run["recorder"])),
        [(name, again(kept)) for name, kept in run["callbacks"]],
        *(run["pending"], run["stopped"]),
    )
