"""What shapes Equinox's layers, and ours, take: they do not say so themselves, or unreadably."""

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax.numpy as jnp

from vernal._shapes.calls import Call, Calls
from vernal.errors import kind

_SPATIAL = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}


@dataclass(frozen=True)
class Needed:
    """What one argument of a layer's call needs to be."""

    shape: tuple[int | str, ...]  # a name stands for any size; a last "..." for any more axes
    dtype: type = jnp.number
    batched: bool = False  # any leading axes are taken, too

    def __str__(self) -> str:
        names = ", ".join(map(str, self.shape))
        if self.shape == () and self.dtype is jnp.integer:
            return "an integer"
        shape = f"({names},)" if len(self.shape) == 1 else f"({names})"
        return shape

    def takes_shape(self, shape: tuple[int, ...], *, leading: bool = True) -> bool:
        """Whether an argument may have this shape: with leading axes, if those are taken."""
        needed = self.shape
        if needed[-1:] == ("...",):
            needed, shape = needed[:-1], shape[: len(needed) - 1]
        if self.batched and leading:
            shape = shape[len(shape) - len(needed) :] if len(shape) >= len(needed) else shape
        sizes = zip(needed, shape, strict=False)
        return len(needed) == len(shape) and all(n in (size, str(n)) for n, size in sizes)


def needs(layer: Any) -> dict[str, Needed]:
    """What each argument of a call of this layer needs to be, as far as that is known."""
    floats = jnp.floating
    match type(layer).__name__, layer:
        case "Linear", eqx.Module(in_features=size):
            batched = not isinstance(layer, eqx.nn.Linear)
            dtype = floats if batched else jnp.number
            return {"x": Needed(() if size == "scalar" else (size,), dtype, batched)}
        case _, eqx.nn.Conv() | eqx.nn.ConvTranspose():
            return {"x": Needed((layer.in_channels, *_SPATIAL[layer.num_spatial_dims]), floats)}
        case _, eqx.nn.Pool():
            return {"x": Needed(("channels", *_SPATIAL[layer.num_spatial_dims]))}
        case _, eqx.nn.AdaptivePool():
            return {"x": Needed(("channels", *_SPATIAL[len(layer.target_shape)]))}
        case _, eqx.nn.LayerNorm() | eqx.nn.RMSNorm():
            return {"x": Needed(tuple(layer.shape))}
        case _, eqx.nn.GroupNorm(channels=int(channels)):
            return {"x": Needed((channels, "..."))}
        case _, eqx.nn.BatchNorm():
            return {"x": Needed((layer.input_size, "..."))}
        case _, eqx.nn.Embedding():
            return {"x": Needed((), jnp.integer)}
        case _, eqx.nn.RotaryPositionalEmbedding():
            return {"x": Needed(("length", layer.embedding_size))}
        case _, eqx.nn.GRUCell() | eqx.nn.LSTMCell():
            hidden = Needed((layer.hidden_size,))
            return {"input": Needed((layer.input_size,)), "hidden": hidden}
        case _, eqx.nn.MultiheadAttention():
            return {
                "query": Needed(("length", layer.query_size)),
                "key_": Needed(("length", layer.key_size)),
                "value": Needed(("length", layer.value_size)),
            }
        case _, eqx.nn.WeightNorm():
            return needs(layer.layer)
    return {}


@dataclass(frozen=True)
class Unmet:
    """An argument that is not as a layer needs it."""

    call: Call
    argument: str
    given: Any  # a shape, or a dtype, or what it is in place of an array
    needed: str
    alone: bool  # it is the only argument that the layer is particular about


def unmet(call: Call) -> Unmet | None:
    """The first argument of a call that is not as its layer needs it, if there is one."""
    needed = needs(call.module)
    alone = len(needed) == 1
    for name, need in needed.items():
        value: Any = call.arguments.get(name)
        cells = isinstance(call.module, eqx.nn.LSTMCell) and name == "hidden"
        for array in value if cells and isinstance(value, tuple) else (value,):
            if not hasattr(array, "shape"):
                return Unmet(call, name, kind(array), str(need), alone)
            if not need.takes_shape(array.shape):
                return Unmet(call, name, array.shape, str(need), alone)
            if not jnp.issubdtype(array.dtype, need.dtype):
                whole = "integers" if need.dtype is jnp.integer else "floats"
                return Unmet(call, name, array.dtype, whole, alone)
    return None


def at_fault(calls: Calls) -> Unmet | None:
    """The outermost of the calls that failed whose layer is known to need something else.

    If none failed, the first that went through although it should not have: Equinox's layers
    multiply a matrix, too, and broadcast the bias.
    """
    found, call = None, calls.failed
    while call is not None:
        found, call = unmet(call) or found, call.outer
    return found or next(filter(None, map(unmet, calls.made)), None)
