"""Augmentation as a layer: random changes of an example, in training alone."""

from collections.abc import Callable

import equinox as eqx
from jaxtyping import PRNGKeyArray, PyTree

from vernal.errors import ArgumentError


class Augment(eqx.Module):
    """Changes an example at random in training, and leaves it as it is in inference.

    `evaluate`, `predict` and validation put a model in inference mode, as
    `equinox.nn.inference_mode` does.

    Attributes:
        fn: Called as `fn(x, key)` on one example. It returns the changed example.
        inference: Whether examples stay as they are. By default they are changed.

    Example:
        >>> def noisy(x, key):
        ...     return x + 0.1 * jax.random.normal(key, x.shape)
        >>> layer = nn.Augment(noisy)
        >>> changed = layer(jnp.ones(3), key=jax.random.key(0))
        >>> eqx.nn.inference_mode(layer)(jnp.ones(3))
        Array([1., 1., 1.], dtype=float32)
    """

    fn: Callable[[PyTree, PRNGKeyArray], PyTree]
    inference: bool = False

    def __call__(self, x: PyTree, *, key: PRNGKeyArray | None = None) -> PyTree:
        """Apply the function to one example.

        Args:
            x: One example.
            key: Where the randomness comes from: in training it is needed.

        Raises:
            ArgumentError: If there is no key in training.
        """
        if self.inference:
            return x
        if key is None:
            hint = "Hand on the key of the model: self.augment(x, key=key)."
            raise ArgumentError(f"Augment needs a key in training, and is given none.\n  {hint}")
        return self.fn(x, key)
