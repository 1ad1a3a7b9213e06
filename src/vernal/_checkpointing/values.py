"""What a run, its callbacks and its loaders keep, as JSON with the arrays aside; and back again.

Nothing that is read is executed.
"""

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vernal._checkpointing import named_arrays
from vernal._training.state import TrainState
from vernal.errors import CheckpointError, kind

# The name under which a checkpoint has the arrays of the run's state: the number of those before.
STATE = "0"


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

    part = functools.partial(encode, arrays=arrays, owner=owner)

    def name_of(array: Any) -> str:
        name = str(len(arrays))
        arrays[name] = array if isinstance(array, jax.Array) else np.asarray(array)
        return name

    match value:
        case bytes():
            return {"@bytes": name_of(np.frombuffer(value, np.uint8))}
        case list():
            return [part(item) for item in value]
        case tuple() if not hasattr(value, "_fields"):  # whose names would be lost
            return {"@tuple": [part(item) for item in value]}
        case dict():
            return {"@dict": [[part(key), part(item)] for key, item in value.items()]}
        case jax.Array() if named_arrays.is_key(value):
            return {"@key": [str(jax.random.key_impl(value)), name_of(jax.random.key_data(value))]}
        case jax.Array():
            return {"@jax": name_of(value)}
        case np.generic() | np.ndarray() if named_arrays.is_storable(value.dtype):
            return {"@array": name_of(value)}
        case TrainState():
            named = named_arrays.of(replace(value, data_state=None))
            before = named_arrays.within(arrays, STATE)
            # The best state may be that of now, which is written once.
            is_written = all(_is_same(before.get(path), array) for path, array in named.items())
            number = STATE if is_written else str(len(arrays))
            arrays |= {f"{number}.{path}": array for path, array in named.items()}
            return {"@state": [number, part(value.data_state)]}
    if type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "numpy"):
        return {"@torch": name_of(value.numpy())}
    stored = "numbers, strings, bytes, lists, tuples, dicts, arrays and training states"
    hint = "\n  Try the dict of it: _asdict()." if hasattr(value, "_asdict") else ""
    problem = f"{owner} holds {kind(value)}, which is not stored: only {stored} are."
    raise CheckpointError(problem + hint)


def _is_same(before: Any, array: Any) -> bool:
    """Say whether an array is the one before, or a small one with the same numbers."""
    if before is None or array.nbytes > 64:
        return before is array
    return before.dtype == array.dtype and np.array_equal(before, array)


def decode(encoded: Any, arrays: Mapping[str, np.ndarray], template: Any = None) -> Any:
    """Return the value that `encode` was given.

    Args:
        encoded: What `encode` returned.
        arrays: The arrays that `encode` set aside.
        template: A state with the structure, the kinds of arrays and the devices that training
            states get; `None` if there are none.
    """
    part = functools.partial(decode, arrays=arrays, template=template)
    if isinstance(encoded, list):
        return [part(item) for item in encoded]
    if not isinstance(encoded, dict):
        return encoded

    [(mark, content)] = encoded.items()
    match mark:
        case "@bytes":
            return arrays[content].tobytes()
        case "@tuple":
            return tuple(part(item) for item in content)
        case "@dict":
            return {part(key): part(item) for key, item in content}
        case "@key":
            implementation, name = content
            return jax.random.wrap_key_data(jax.device_put(arrays[name]), impl=implementation)
        case "@array":
            return arrays[content][()]  # of an array without axes, the scalar
        case "@jax":
            return jnp.asarray(arrays[content])
        case "@state":
            number, data_state = content
            state = named_arrays.with_arrays(template, named_arrays.within(arrays, number))
            return replace(state, data_state=part(data_state))
        case _:  # "@torch"
            import torch  # pyright: ignore[reportMissingImports]

            return torch.from_numpy(arrays[content].copy())
