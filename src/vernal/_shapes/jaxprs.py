"""What a traced program does: a look into its operations."""

import re
from collections.abc import Iterator
from typing import Any

from jax.extend.core import Jaxpr, JaxprEqn

try:
    from jax.extend.core import get_opaque_trace_state
except ImportError:  # before JAX 0.9
    from jax.core import get_opaque_trace_state

# Operations that run a program again and again; XLA counts one turn of it.
LOOPS = ("scan", "while")

_NO_TRACE = get_opaque_trace_state(convention="vernal")


def in_outer_trace() -> bool:
    """Return whether JAX is tracing: inside of `jax.jit`, `jax.grad`, `jax.vmap` or the like."""
    return get_opaque_trace_state(convention="vernal") != _NO_TRACE


def holds(jaxpr: Jaxpr, *names: str) -> bool:
    """Say whether a program, or a program inside it, has one of some operations."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in names:
            return True
        if any(holds(part, *names) for part in inner(equation)):
            return True
    return False


def inner(equation: JaxprEqn) -> Iterator[Jaxpr]:
    """Go through the programs that an operation runs."""
    for value in equation.params.values():
        parts = value if isinstance(value, tuple) else (value,)
        for part in parts:
            jaxpr = getattr(part, "jaxpr", part)
            if isinstance(jaxpr, Jaxpr):
                yield jaxpr


def text_of(program: Any) -> str:
    """Return a traced program as text that is the same in each process: without addresses."""
    return re.sub("0x[0-9a-f]+", "", str(program))
