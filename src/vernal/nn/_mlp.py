from collections.abc import Callable
from functools import partial
from typing import Literal

import equinox as eqx
import jax
from jax.nn.initializers import zeros
from jaxtyping import Array, PRNGKeyArray

from vernal.errors import ShapeError, short_traceback
from vernal.nn._linear import Linear, default_weight_init
from vernal.nn._shape_check import shape_error


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

        Args:
            in_size: The size of the last axis before; `"scalar"` means that there is no such axis,
                as in Equinox.
            out_size: The size of the last axis after, or `"scalar"`.
            width_size: The size of every hidden layer.
            depth: The number of hidden layers; 0 is a single linear layer.
            activation: Applied after each hidden layer, to a whole batch. An activation with
                parameters of its own is shared by all layers.
            final_activation: Applied after the last layer; the default is the identity.
            use_bias: Whether hidden layers have a bias.
            use_final_bias: Whether the last layer has one.
            weight_init: As in `Linear`.
            bias_init: As in `Linear`.
            dtype: The parameters' dtype; `None` is JAX's default float.
            key: A `jax.random.key`.

        Example:
            >>> network = nn.MLP(3, 1, width_size=16, depth=2, key=jax.random.key(0))
            >>> network(jnp.ones(3)).shape, network(jnp.ones((5, 3))).shape, len(network.layers)
            ((1,), (5, 1), 3)
        """
        self.in_size = in_size
        self.out_size = out_size
        self.width_size = width_size
        self.depth = depth
        self.activation = activation
        self.final_activation = final_activation
        self.use_bias = use_bias
        self.use_final_bias = use_final_bias
        sizes = [in_size] + [width_size] * depth + [out_size]
        biases = [use_bias] * depth + [use_final_bias]
        self.layers = _draw_layers(sizes, biases, weight_init, bias_init, dtype, key)

    @short_traceback
    def __call__(self, x, *, key: PRNGKeyArray | None = None) -> Array:
        """Apply the network to one example or to a batch.

        Args:
            x: Floats of shape `(*batch, in_size)`.
            key: Not used; every layer accepts a key.

        Returns:
            An array of shape `(*batch, out_size)`.

        Raises:
            ShapeError: If `x` has another shape, or is not an array of floats.
        """
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            try:
                x = layer(x)
            except ShapeError:
                if not isinstance(layer, Linear):
                    raise
                where = f"{type(self).__name__}.layers[{i}] ({type(layer).__name__})"
                raise shape_error(layer, x, where) from None
            x = self.final_activation(x) if i == last else self.activation(x)
        return x


@eqx.filter_jit
def _draw_layers(sizes, biases, weight_init, bias_init, dtype, key) -> tuple[Linear, ...]:
    """Draw every layer in one compiled program: one by one they cost half a second of compiling."""
    make = partial(Linear, weight_init=weight_init, bias_init=bias_init, dtype=dtype)
    keys = jax.random.split(key, len(biases))
    layers = zip(sizes[:-1], sizes[1:], biases, keys, strict=True)
    return tuple(make(n_in, n_out, bias, key=key) for n_in, n_out, bias, key in layers)
