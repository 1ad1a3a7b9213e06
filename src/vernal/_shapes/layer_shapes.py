"""Which shapes Equinox's layers, and Vernal's, take: their own errors do not say."""

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax.numpy as jnp

from vernal._shapes.calls import Call, Calls
from vernal.errors import kind

_SPATIAL = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}


@dataclass(frozen=True)
class Needed:
    """What one argument of a layer's call needs to be.

    Attributes:
        shape: A name stands for any size, a last "..." for any more axes.
        dtype: A dtype, or a kind of dtypes.
        batched: Whether the layer takes any leading axes, too.
    """

    shape: tuple[int | str, ...]
    dtype: type = jnp.number
    batched: bool = False

    def __str__(self) -> str:
        if self.shape == () and self.dtype is jnp.integer:
            return "an integer"
        return str(self.shape).replace("'", "")

    def takes_shape(self, shape: tuple[int, ...]) -> bool:
        """Say whether an argument may have this shape."""
        needed = self.shape
        if needed[-1:] == ("...",):
            needed = needed[:-1]
            shape = shape[: len(needed)]
        if self.batched and len(shape) > len(needed):
            shape = shape[len(shape) - len(needed) :]
        sizes = zip(needed, shape, strict=False)
        fit = all(isinstance(need, str) or need == size for need, size in sizes)
        return len(needed) == len(shape) and fit


def needs(layer: Any) -> dict[str, Needed]:
    """List what each argument of a call of this layer needs to be, as far as that is known."""
    floats = jnp.floating
    match type(layer).__name__, layer:
        case "Linear", eqx.Module(in_features=size):
            batched = not isinstance(layer, eqx.nn.Linear)
            dtype = floats if batched else jnp.number
            return {"x": Needed(() if size == "scalar" else (size,), dtype, batched)}
        case _, eqx.nn.Conv() | eqx.nn.ConvTranspose():
            return {"x": Needed((layer.in_channels, *_SPATIAL[layer.num_spatial_dims]), floats)}
        case _, eqx.nn.Pool(kernel_size=sizes) | eqx.nn.AdaptivePool(target_shape=sizes):
            return {"x": Needed(("channels", *_SPATIAL[len(sizes)]))}
        case _, eqx.nn.LayerNorm() | eqx.nn.RMSNorm():
            return {"x": Needed(tuple(layer.shape))}
        case _, eqx.nn.GroupNorm(channels=int(size)) | eqx.nn.BatchNorm(input_size=size):
            return {"x": Needed((size, "..."))}
        case _, eqx.nn.Embedding():
            return {"x": Needed((), jnp.integer)}
        case _, eqx.nn.GRUCell() | eqx.nn.LSTMCell():
            return {"input": Needed((layer.input_size,)), "hidden": Needed((layer.hidden_size,))}
        case _, eqx.nn.MultiheadAttention():
            sizes = {"query": layer.query_size, "key_": layer.key_size, "value": layer.value_size}
            return {name: Needed(("length", size)) for name, size in sizes.items()}
        case _, eqx.nn.WeightNorm():
            return needs(layer.layer)
    return {}


@dataclass(frozen=True)
class Unmet:
    """An argument that is not as a layer needs it.

    Attributes:
        call: The layer's call.
        argument: The argument's name.
        given: Its shape or dtype, whichever is wrong; or its kind, if it is not an array.
        need: What the layer needs.
    """

    call: Call
    argument: str
    given: Any
    need: Needed


def unmet(call: Call) -> Unmet | None:
    """Find the first argument of a call that is not as its layer needs it, if there is one."""
    for name, need in needs(call.module).items():
        value: Any = call.arguments.get(name)
        is_pair = isinstance(call.module, eqx.nn.LSTMCell) and isinstance(value, tuple)
        arrays: Any = value if is_pair else (value,)
        for array in arrays:
            if not hasattr(array, "shape"):
                return Unmet(call, name, kind(array), need)
            if not need.takes_shape(array.shape):
                return Unmet(call, name, array.shape, need)
            if not jnp.issubdtype(array.dtype, need.dtype):
                return Unmet(call, name, array.dtype, need)
    return None


def at_fault(calls: Calls) -> Unmet | None:
    """Find the outermost of the failed calls whose layer is known to need something else.

    If no call failed, it is the first call that should have failed: Equinox's layers accept a
    matrix where they need a vector, and broadcast the bias.
    """
    return next(filter(None, map(unmet, calls.failed + calls.made)), None)
