from collections.abc import Callable
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.nn.initializers import zeros
from jaxtyping import Array, PRNGKeyArray

from vernal.nn._linear import Linear, default_weight_init
from vernal.nn._shape_check import locating


def _identity(x: Array) -> Array:
    return x


class MLP(eqx.Module):
    """A multi-layer perceptron: linear layers with an activation between them.

    A drop-in for `equinox.nn.MLP` that also accepts any leading batch axes, and explains a wrong
    shape.
    """

    layers: tuple[Linear, ...]
    activation: Callable
    final_activation: Callable
    use_bias: bool = eqx.field(static=True)
    use_final_bias: bool = eqx.field(static=True)
    in_size: int | Literal["scalar"] = eqx.field(static=True)
    out_size: int | Literal["scalar"] = eqx.field(static=True)
    width_size: int = eqx.field(static=True)
    depth: int = eqx.field(static=True)

    def __init__(
        self,
        in_size: int | Literal["scalar"],
        out_size: int | Literal["scalar"],
        width_size: int,
        depth: int,
        activation: Callable = jax.nn.relu,
        final_activation: Callable = _identity,
        use_bias: bool = True,
        use_final_bias: bool = True,
        *,
        weight_init: Callable[..., Array] = default_weight_init,
        bias_init: Callable[..., Array] = zeros,
        dtype=None,
        key: PRNGKeyArray,
    ):
        """Draw the layers.

        **Arguments:**

        - `in_size`, `out_size`: sizes of the last axis before and after; `"scalar"` says that
          there is no such axis, as in Equinox.
        - `width_size`: the size of every hidden layer.
        - `depth`: the number of hidden layers; 0 is a single linear layer.
        - `activation`, `final_activation`: applied after each hidden layer, and after the last.
          They act on whole batches; one with parameters of its own is shared by all layers.
        - `use_bias`, `use_final_bias`: whether hidden layers, and the last, have a bias.
        - `weight_init`, `bias_init`, `dtype`, `key`: as in `Linear`.
        """
        self.in_size = in_size
        self.out_size = out_size
        self.width_size = width_size
        self.depth = depth
        self.activation = activation
        self.final_activation = final_activation
        self.use_bias = use_bias
        self.use_final_bias = use_final_bias
        dtype = jnp.result_type(float) if dtype is None else jnp.dtype(dtype)
        sizes = (in_size, *[width_size] * depth, out_size)
        biases = (*[use_bias] * depth, use_final_bias)
        self.layers = _draw_layers(sizes, biases, weight_init, bias_init, dtype, key)

    def __call__(self, x, *, key: PRNGKeyArray | None = None) -> Array:
        """Apply the network to one example or to a batch.

        **Arguments:**

        - `x`: floats of shape `(*batch, in_size)`.
        - `key`: not used; there so that every layer can be called alike.

        **Returns:** an array of shape `(*batch, out_size)`.

        **Raises:** `ShapeError` if `x` has another shape, or is not an array of floats.
        """
        with locating(self):
            for layer in self.layers[:-1]:
                x = self.activation(layer(x))
            return self.final_activation(self.layers[-1](x))


@eqx.filter_jit
def _draw_layers(sizes, biases, weight_init, bias_init, dtype, key) -> tuple[Linear, ...]:
    """Every layer in one compiled program: one by one they cost half a second of compiling."""
    keys = jax.random.split(key, len(biases))
    return tuple(
        Linear(
            *(n_in, n_out, use_bias),
            weight_init=weight_init,
            bias_init=bias_init,
            dtype=dtype,
            key=layer_key,
        )
        for n_in, n_out, use_bias, layer_key in zip(sizes, sizes[1:], biases, keys, strict=False)
    )
