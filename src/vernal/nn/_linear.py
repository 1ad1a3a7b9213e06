from collections.abc import Callable
from functools import partial
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import lecun_normal, zeros
from jaxtyping import Array, Float, PRNGKeyArray

from vernal.errors import short_traceback
from vernal.nn._shape_check import checked

# One object for every layer: an initializer made anew is a new closure, and would compile again.
default_weight_init = lecun_normal()


class Linear(eqx.Module):
    """Map the last axis: `x @ weight.T + bias`.

    A drop-in for `equinox.nn.Linear` that also accepts any leading batch axes, and explains a
    wrong shape.
    """

    weight: Float[Array, "out_features in_features"]
    bias: Float[Array, " out_features"] | None
    in_features: int | Literal["scalar"] = eqx.field(static=True)
    out_features: int | Literal["scalar"] = eqx.field(static=True)
    use_bias: bool = eqx.field(static=True)

    def __init__(
        self,
        in_features: int | Literal["scalar"],
        out_features: int | Literal["scalar"],
        use_bias: bool = True,
        *,
        weight_init: Callable[..., Array] = default_weight_init,
        bias_init: Callable[..., Array] = zeros,
        dtype=None,
        key: PRNGKeyArray,
    ):
        """Draw the weight and the bias.

        Args:
            in_features: The size of the last axis before; `"scalar"` means that there is no such
                axis, as in Equinox.
            out_features: The size of the last axis after, or `"scalar"`.
            use_bias: Whether to add a bias. Without one, `bias` is `None`.
            weight_init: An initializer as in `jax.nn.initializers`, called as
                `init(key, shape, dtype)`. The weight is drawn with shape
                `(in_features, out_features)`, the axes on which initializers measure fan-in and
                fan-out, and stored transposed.
            bias_init: An initializer for the bias, of shape `(out_features,)`.
            dtype: The parameters' dtype; `None` is JAX's default float.
            key: A `jax.random.key`.

        Example:
            >>> layer = nn.Linear(3, 2, key=jax.random.key(0))
            >>> layer(jnp.ones(3)).shape, layer(jnp.ones((5, 3))).shape
            ((2,), (5, 2))
        """
        self.in_features = in_features
        self.out_features = out_features
        self.use_bias = use_bias
        dtype = jnp.result_type(float) if dtype is None else jnp.dtype(dtype)
        sizes = (1 if size == "scalar" else size for size in (in_features, out_features))
        self.weight, self.bias = _draw(tuple(sizes), use_bias, weight_init, bias_init, dtype, key)

    @short_traceback
    def __call__(self, x, *, key: PRNGKeyArray | None = None) -> Array:
        """Apply the layer to one example or to a batch.

        Args:
            x: Floats of shape `(*batch, in_features)`.
            key: Not used; every layer accepts a key.

        Returns:
            An array of shape `(*batch, out_features)`.

        Raises:
            ShapeError: If `x` has another shape, or is not an array of floats.
        """
        if self.in_features == "scalar":
            x = jnp.asarray(x)[..., None]
        y = self._affine(x)
        return y[..., 0] if self.out_features == "scalar" else y

    @checked
    def _affine(
        self, x: Float[Array | np.ndarray, "*batch {self.weight.shape[1]}"]
    ) -> Float[Array, "*batch {self.weight.shape[0]}"]:
        # `x @ weight.T` and not `weight @ x`: under vmap the first becomes one product of the
        # whole batch in the layout it has, the second transposes the batch twice.
        y = jnp.asarray(x) @ self.weight.T
        return y if self.bias is None else y + jnp.broadcast_to(self.bias, y.shape)


@partial(jax.jit, static_argnames=("shape", "use_bias", "weight_init", "bias_init", "dtype"))
def _draw(shape, use_bias, weight_init, bias_init, dtype, key):
    """Draw the weight and the bias in one compiled program."""
    weight_key, bias_key = jax.random.split(key)
    weight = weight_init(weight_key, shape, dtype).T
    bias = bias_init(bias_key, shape[1:], dtype) if use_bias else None
    return weight, bias
