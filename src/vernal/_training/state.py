from dataclasses import replace
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray, PyTree


class TrainState(eqx.Module):
    """Everything that training changes; pass it back in to go on where it stopped.

    **Attributes:**

    - `model`: the model as trained so far.
    - `model_state`: what the model keeps beside its parameters, such as an `eqx.nn.State`; or
      `None`.
    - `opt_state`: the optimizer's state, as Optax keeps it.
    - `step`: updates made, a scalar; an array, JAX's or NumPy's, as the next two.
    - `epoch`, `batch`: the place in the data: epochs completed, and updates made since.
    - `key`: never changes. An update uses `fold_in(key, step)`, an epoch's order of the examples
      is drawn from `key` and `epoch`: so a resumed run is the same run.
    - `data_state`: what a data loader with a state of its own needs to go on from this place; or
      `None`.
    """

    model: PyTree
    model_state: PyTree
    opt_state: Any
    step: Int[Array | np.ndarray, ""]
    epoch: Int[Array | np.ndarray, ""]
    batch: Int[Array | np.ndarray, ""]
    key: PRNGKeyArray
    data_state: PyTree = None


def with_data_state(state: TrainState, data_state: PyTree) -> TrainState:
    """The state with another data state. Compiled programs never see it: it is no arrays."""
    return state if state.data_state is data_state else replace(state, data_state=data_state)


def put_counts(arrays: list, step: int, epoch: int, batch: int) -> None:
    """Set the counts among a packed state's arrays: on the host, where reading does not wait."""
    arrays[-4:-1] = (np.array(count, np.int32) for count in (step, epoch, batch))


def counts(arrays: list) -> tuple[int, int, int]:
    """The step, epoch and batch among a packed state's arrays."""
    step, epoch, batch = map(int, arrays[-4:-1])
    return step, epoch, batch
