"""What callbacks and data loaders keep of a run, as JSON and arrays. Nothing of it is ever run."""

import base64
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from vernal._checkpointing.leaves import as_like, is_key, numbers_of
from vernal._training.jit import Packed, pack
from vernal._training.state import TrainState, with_data_state
from vernal.errors import CheckpointError, kind

# What stands for a value that JSON has not: an object with this one key, the kind, and its parts.
_TAG = "@"


def encode(thing: Any, arrays: list, what: str) -> Any:
    """Say a value in JSON; its arrays are put behind those in a list, and named by their place.

    **Arguments:**

    - `thing`: of numbers, strings, bytes, lists, tuples, dicts, arrays and training states.
    - `what`: whose it is, for the error's message.

    **Raises:** `CheckpointError` if it holds anything else.
    """
    if thing is None or isinstance(thing, bool | str) or type(thing) in (int, float):
        return thing
    put = lambda array: arrays.append(array) or len(arrays) - 1
    again = lambda part: encode(part, arrays, what)
    match thing:
        case bytes():
            return {_TAG: ["bytes", base64.b64encode(thing).decode()]}
        case list():
            return [again(part) for part in thing]
        case tuple():
            return {_TAG: ["tuple", [again(part) for part in thing]]}
        case dict():
            return {_TAG: ["dict", [[again(name), again(part)] for name, part in thing.items()]]}
        case np.generic():
            return {_TAG: ["number", put(np.asarray(thing))]}
        case jax.Array() if is_key(thing):
            implementation = str(jax.random.key_impl(thing))
            return {_TAG: ["key", [implementation, put(numbers_of(thing))]]}
        case np.ndarray() | jax.Array():
            return {_TAG: ["array", put(thing)]}
        case TrainState():
            packed = pack(with_data_state(thing, None))
            held = [put(numbers_of(array)) for array in packed.arrays]
            return {_TAG: ["state", [held, again(thing.data_state)]]}
    if type(thing).__module__.partition(".")[0] == "torch" and hasattr(thing, "numpy"):
        return {_TAG: ["torch", put(thing.numpy())]}
    raise CheckpointError(
        f"{what} holds {kind(thing)}, which a checkpoint cannot take; it takes numbers, strings, "
        "bytes, lists, tuples, dicts, arrays and training states."
    )


def decode(said: Any, arrays: list[np.ndarray], state: Packed) -> Any:
    """Undo `encode`; training states become what the given one is, packed."""
    again = lambda part: decode(part, arrays, state)
    if isinstance(said, list):
        return [again(part) for part in said]
    if not isinstance(said, dict):
        return said
    form, held = said[_TAG]
    match form:
        case "bytes":
            return base64.b64decode(held)
        case "tuple":
            return tuple(again(part) for part in held)
        case "dict":
            return {again(name): again(part) for name, part in held}
        case "number":
            return arrays[held][()]
        case "state":
            places, data_state = held
            made = map(as_like, (arrays[place] for place in places), state.arrays)
            return with_data_state(replace(state, arrays=list(made)).unpack(), again(data_state))
        case "key":
            return jax.random.wrap_key_data(arrays[held[1]], impl=held[0])
        case "torch":
            import torch  # pyright: ignore[reportMissingImports]

            return torch.from_numpy(arrays[held].copy())
    return arrays[held]
