"""How many floating-point operations a program makes, and which of a model's calls make them."""

import math
import re
from collections import defaultdict
from typing import Any

import jax
from jax.extend.core import Jaxpr, JaxprEqn, Literal
from jaxtyping import PyTree

from vernal._shapes.calls import SCOPE, Call, Calls
from vernal._shapes.jaxprs import LOOPS, holds, inner

OUTSIDE = -1  # stands for the number of a call, for operations that no call makes

# Operations that only run others. Their names differ between versions of JAX.
_WRAPPERS = {"jit", "pjit", "closed_call", "checkpoint", "custom_jvp_call", "custom_vjp_call"}


class Counts:
    """A program's operations as XLA counts them, but those in a loop once for each round.

    XLA counts a loop's body once. A loop that ends on a condition runs an unknown number of times,
    so that the count of its operations is infinite. Of the branches of a condition, only the one
    with the most operations counts.

    Attributes:
        flops: By the number of a call, the operations that the call makes itself, without the
            calls it makes.
        runs: By the number of a call, how often it runs.
    """

    def __init__(self, program: Jaxpr):
        self.flops: defaultdict[int, float] = defaultdict(float)
        self.runs: defaultdict[int, float] = defaultdict(float)
        self._add(program, calls=(OUTSIDE,), times=1)

    def _add(self, program: Jaxpr, *, calls: tuple[int, ...], times: float) -> None:
        """Count a program that runs `times` times, inside of `calls`, the outermost first."""
        own: defaultdict[int, list[JaxprEqn]] = defaultdict(list)
        begun: set[int] = set()
        for eqn in program.eqns:
            scopes = re.findall(rf"{SCOPE}(\d+)", str(eqn.source_info.name_stack))
            calls_here = calls + tuple(int(scope) for scope in scopes)
            begun.update(calls_here)

            name = eqn.primitive.name
            parts = list(inner(eqn))
            if name == "cond":
                self._add(max(parts, key=total_flops), calls=calls_here, times=times)
            elif name in LOOPS or name in _WRAPPERS:
                rounds = {"scan": eqn.params.get("length"), "while": math.inf}.get(name, 1)
                for part in parts:
                    self._add(part, calls=calls_here, times=times * rounds)
            else:
                own[calls_here[-1]].append(eqn)

        for call in begun.difference(calls):
            self.runs[call] += times
        for call, eqns in own.items():
            self.flops[call] += times * _xla_flops(eqns)


def total_flops(program: Jaxpr) -> float:
    """Count a program's operations; infinite if their number is unknown."""
    return sum(Counts(program).flops.values())


def counted_calls(model: PyTree, *args: Any, key: Any = None) -> tuple[Any, list[Call], Counts]:
    """Trace `model(*args)` on shapes, and count the operations of each call of a module.

    Args:
        model: The model.
        *args: What it is called on.
        key: For a model that needs one.

    Returns:
        The result, as shapes; the calls; the counts, by a call's place in the list of calls.
    """
    calls = Calls(model)

    def traced(*args):
        with calls:
            return model(*args) if key is None else model(*args, key=key)

    jaxpr, result = jax.make_jaxpr(traced, return_shape=True)(*args)
    return result, calls.made, Counts(jaxpr.jaxpr)


def known(count: float) -> int | None:
    """Return a whole number; or `None` for one that is not finite, or is XLA's sign for unknown."""
    return round(count) if 0 <= count < math.inf else None


def _xla_flops(eqns: list[JaxprEqn]) -> float:
    """Return what XLA counts for some operations, each on inputs of its own; nothing compiles."""
    if any(holds(part, *LOOPS) for eqn in eqns for part in inner(eqn)):
        return math.inf

    def program(inputs):
        made = []
        for eqn, values in zip(eqns, inputs, strict=True):
            # A number in the program stays one, which XLA may use beforehand.
            pairs = zip(eqn.invars, values, strict=True)
            taken = [atom.val if isinstance(atom, Literal) else value for atom, value in pairs]
            made.append(eqn.primitive.bind(*taken, **eqn.params))
        return made

    try:
        # Lowered for a CPU, which is always there: on a GPU, XLA counts only compiled programs.
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            lowered = jax.jit(program).lower([[atom.aval for atom in eqn.invars] for eqn in eqns])
            costs = lowered.cost_analysis()
    except Exception:  # an operation without a translation for a CPU, or on references
        return math.inf
    # XLA knows nothing of custom calls. The one named Sharding computes nothing.
    unknown = set(re.findall(r"custom_call @(\w+)", lowered.as_text())) - {"Sharding"}
    return math.inf if unknown or costs is None else costs.get("flops", 0.0)
