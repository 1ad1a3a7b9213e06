"""Arrays without their values."""

import equinox as eqx
import jax
from jaxtyping import PyTree

from vernal._data.files import FileArray


def shapes_of(tree: PyTree) -> PyTree:
    """Replace every array by its `jax.ShapeDtypeStruct`; other leaves stay as they are.

    The dtypes are those that JAX gives the arrays: single precision, unless x64 is enabled.
    """

    def shape_of(leaf):
        if not (eqx.is_array(leaf) or isinstance(leaf, FileArray | jax.ShapeDtypeStruct)):
            return leaf
        dtype = jax.dtypes.canonicalize_dtype(leaf.dtype, allow_extended_dtype=True)
        return jax.ShapeDtypeStruct(leaf.shape, dtype)

    return jax.tree.map(shape_of, tree)
