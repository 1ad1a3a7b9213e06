"""The states of a run, of callbacks and of data loaders as JSON, with their arrays aside.

Nothing that is read is executed.
"""

import base64
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from vernal._checkpointing import named_arrays
from vernal._training.state import TrainState
from vernal.errors import CheckpointError, kind


def encode(value: Any, arrays: dict[str, Any], *, owner: str) -> Any:
    """Return a value as JSON takes it, with names in the place of arrays.

    A JSON object with one name that begins with "@" is a value that JSON does not have.

    Args:
        value: Numbers, strings, bytes, lists, tuples, dicts, arrays, keys and training states,
            one within another.
        arrays: Takes in the value's arrays, as they are stored, by their names. A name is the
            number of arrays before, and for an array of a training state its path, too.
        owner: Whose value it is, for the message.

    Raises:
        CheckpointError: If the value holds anything else.
    """
    if value is None or isinstance(value, bool | str) or type(value) in (int, float):
        return value

    def part(item: Any) -> Any:
        return encode(item, arrays, owner=owner)

    def name_of(array: Any) -> str:
        name = str(len(arrays))
        arrays[name] = array if isinstance(array, jax.Array) else np.asarray(array)
        return name

    match value:
        case bytes():
            return {"@bytes": base64.b64encode(value).decode()}
        case list():
            return [part(item) for item in value]
        case tuple():
            return {"@tuple": [part(item) for item in value]}
        case dict():
            return {"@dict": [[part(key), part(item)] for key, item in value.items()]}
        case jax.Array() if named_arrays.is_key(value):
            return {"@key": [str(jax.random.key_impl(value)), name_of(named_arrays.stored(value))]}
        case np.generic() | np.ndarray() | jax.Array() if named_arrays.is_storable(value.dtype):
            return {"@array": name_of(value)}
        case TrainState():
            number = str(len(arrays))
            for path, array in named_arrays.of(replace(value, data_state=None)).items():
                arrays[f"{number}.{path}"] = array
            return {"@state": [number, part(value.data_state)]}
    if type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "numpy"):
        return {"@torch": name_of(value.numpy())}
    raise CheckpointError(
        f"{owner} holds {kind(value)}, which a checkpoint cannot store. It stores numbers, "
        "strings, bytes, lists, tuples, dicts, arrays and training states."
    )


def decode(encoded: Any, arrays: Mapping[str, np.ndarray], template: Any = None) -> Any:
    """Return the value that `encode` was given.

    Args:
        encoded: What `encode` returned.
        arrays: The arrays that `encode` set aside.
        template: A state with the structure, the kinds of arrays and the devices that training
            states get; `None` if there are none.
    """

    def part(item: Any) -> Any:
        return decode(item, arrays, template)

    if isinstance(encoded, list):
        return [part(item) for item in encoded]
    if not isinstance(encoded, dict):
        return encoded

    [(mark, content)] = encoded.items()
    match mark:
        case "@bytes":
            return base64.b64decode(content)
        case "@tuple":
            return tuple(part(item) for item in content)
        case "@dict":
            return {part(key): part(item) for key, item in content}
        case "@key":
            implementation, name = content
            return jax.random.wrap_key_data(jax.device_put(arrays[name]), impl=implementation)
        case "@array":
            return arrays[content][()]  # of an array without axes, the scalar
        case "@state":
            number, data_state = content
            state = named_arrays.with_arrays(template, named_arrays.within(arrays, number))
            return replace(state, data_state=part(data_state))
        case "@torch":
            import torch  # pyright: ignore[reportMissingImports]

            return torch.from_numpy(arrays[content].copy())
    raise ValueError(f"{mark} is not a kind of value")
