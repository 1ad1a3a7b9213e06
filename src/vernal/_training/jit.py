"""PyTrees across `jax.jit`: their arrays are traced, the rest of them is static."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PyTree

# Passes of XLA's compiler that would have updates in a loop contract products and sums in another
# order than an update by itself. One makes a single kernel of a loop of few numbers, which is
# faster; one takes out of a loop what is the same in each turn, such as a learning rate that is
# not a constant; and one removes the fences that `jax.lax.optimization_barrier` sets, before
# arithmetic is fused across them.
_PASSES = "small-while-loop-hoisting,while-loop-invariant-code-motion,cse_barrier_expander"
# What XLA has its library YNNPACK compute. By default single convolutions too, which that library
# makes slower: an update of a convolutional network takes 1.2 to 1.8 times as long.
_LIBRARY = ",".join(f"LIBRARY_FUSION_TYPE_{kind}" for kind in ("DOT", "REDUCE", "INDIVIDUAL_DOT"))


def cpu_options() -> dict[str, str]:
    """How XLA compiles updates for a CPU."""
    options = {"xla_disable_hlo_passes": _PASSES}
    if jax.__version_info__ >= (0, 10):  # XLA did not have that library, or that choice, before
        options["xla_cpu_experimental_ynn_fusion_type"] = _LIBRARY
    return options


class jit_updates:
    """`jax.jit` for updates, so that a CPU makes the same bits of them in a loop and without."""

    def __init__(self, function: Callable, **options: Any):
        @cache
        def jitted(backend: str) -> Any:
            compiler_options = cpu_options() if backend == "cpu" else None
            return jax.jit(function, compiler_options=compiler_options, **options)

        self._jitted = jitted

    @property
    def jitted(self) -> Any:
        """What `jax.jit` makes of the function, for the backend that there is."""
        return self._jitted(jax.default_backend())

    def __call__(self, *args):
        """Call what was compiled."""
        return self.jitted(*args)


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True)
class Packed:
    """A PyTree of arrays and of anything else, in a form that plain `jax.jit` takes and returns.

    The same idea as `equinox.filter_jit`, with the splitting left to the caller: a loop packs its
    state once and passes it on from call to call, at a tenth of the cost a call.
    """

    arrays: list
    structure: tuple[Any, tuple]  # the treedef; the leaves that are no arrays, None for one that is

    def unpack(self) -> PyTree:
        """Put the PyTree together again."""
        treedef, static = self.structure
        arrays = iter(self.arrays)
        return treedef.unflatten([next(arrays) if leaf is None else leaf for leaf in static])

    def tree_flatten(self):
        """Tell JAX that the arrays are data and the structure is static."""
        return self.arrays, self.structure

    @classmethod
    def tree_unflatten(cls, structure, arrays):
        """Undo `tree_flatten`."""
        return cls(list(arrays), structure)


def pack(tree: PyTree) -> Packed:
    """Split a PyTree into its arrays and the rest; undone by `unpack`."""
    leaves, treedef = jax.tree.flatten(tree)
    arrays = [leaf for leaf in leaves if eqx.is_array(leaf)]
    return Packed(arrays, (treedef, tuple(None if eqx.is_array(leaf) else leaf for leaf in leaves)))


def select(items: list, picks: tuple[bool, ...]) -> tuple[list, list]:
    """Split a list in those that are picked, and the rest; undone by `merge`."""
    chosen = [item for item, pick in zip(items, picks, strict=True) if pick]
    return chosen, [item for item, pick in zip(items, picks, strict=True) if not pick]


def merge(chosen: list, rest: list, picks: tuple[bool, ...]) -> list:
    """Undo `select`."""
    chosen_items, other_items = iter(chosen), iter(rest)
    return [next(chosen_items if pick else other_items) for pick in picks]


def signature(arrays: PyTree) -> Hashable:
    """What decides whether a compiled function serves again: structure, shapes and dtypes."""
    leaves, treedef = jax.tree.flatten(arrays)
    dtype = partial(jax.dtypes.canonicalize_dtype, allow_extended_dtype=True)  # as JAX will take it
    return treedef, tuple((leaf.shape, dtype(leaf.dtype)) for leaf in leaves)


def shapes_of(signature) -> PyTree[jax.ShapeDtypeStruct]:
    """The PyTree of shapes and dtypes that a signature was taken from."""
    treedef, leaves = signature
    return treedef.unflatten([jax.ShapeDtypeStruct(*leaf) for leaf in leaves])
