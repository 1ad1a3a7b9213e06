"""How many floating-point operations a program makes, and for which of a model's modules."""

import math
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import equinox as eqx
import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from jaxtyping import PyTree

from vernal._shapes.calls import Call, Calls, module_paths
from vernal._training.jaxprs import LOOPS, holds, inner

_NAME = "vernal-call-"
_SCOPE = re.compile(_NAME + r"(\d+)")
# Operations that only run others. Their names differ between versions of JAX.
_WRAPPERS = {"jit", "pjit", "closed_call", "checkpoint", "custom_jvp_call", "custom_vjp_call"}


@dataclass
class Tally:
    """What is counted over a program, by the number of the call it belongs to; NaN if unknown."""

    flops: defaultdict[int, float] = field(default_factory=lambda: defaultdict(float))
    runs: defaultdict[int, float] = field(default_factory=lambda: defaultdict(float))

    @property
    def total(self) -> float:
        """The whole program's FLOPs."""
        return sum(self.flops.values())

    def add(self, other: "Tally") -> None:
        """Count what another one counts, too."""
        for mine, others in ((self.flops, other.flops), (self.runs, other.runs)):
            for call, count in others.items():
                mine[call] += count


class _ScopedCalls(Calls):
    """Calls that leave their number on every operation they make, as a `jax.named_scope`."""

    def __init__(self, model: PyTree):
        super().__init__(model)
        self._scopes: list[Any] = []

    def _see(self, frame: FrameType, event: str, result: Any) -> None:
        made, call = len(self.made), self._open[-1] if self._open else None
        super()._see(frame, event, result)
        if len(self.made) > made:
            self._scopes.append(jax.named_scope(f"{_NAME}{made}"))
            self._scopes[-1].__enter__()
        elif call is not None and len(self._open) < len(self._scopes):
            self._scopes.pop().__exit__(None, None, None)
            if isinstance(call.module, eqx.nn.Shared):  # it returns copies, to be called
                for path, module in module_paths(result).values():
                    self._modules[id(module)] = f"{call.path}.pytree{path}", module


def counted_calls(model: PyTree, *args: PyTree) -> tuple[PyTree, list[Call], Tally]:
    """Trace `model(*args)` on shapes, and count each call's own operations.

    What a module calls is not its own: the counts add up to the whole. Call -1 stands for what is
    done outside of every call.

    **Returns:** the result, as shapes; the calls; the counts, by a call's place among the calls.
    """
    calls = _ScopedCalls(model)

    def traced(*args):
        with calls:
            return model(*args)

    jaxpr, result = jax.make_jaxpr(traced, return_shape=True)(*args)
    return result, calls.made, count(jaxpr)


def count(program: ClosedJaxpr) -> Tally:
    """Count a program's operations as XLA does, and those in a loop as often as it goes round.

    XLA itself counts a loop's body once. Of a loop that ends on a condition nobody knows how often
    it goes round, so that its operations are NaN; of two branches the costlier one counts.
    """
    tally = Tally()
    _walk(program.jaxpr, (), 1, tally)
    return tally


def _walk(jaxpr: Jaxpr, outer: tuple[int, ...], times: float, tally: Tally) -> None:
    own: defaultdict[int, list[JaxprEqn]] = defaultdict(list)
    begun: set[int] = set()
    for eqn in jaxpr.eqns:
        scopes = outer + tuple(map(int, _SCOPE.findall(str(eqn.source_info.name_stack))))
        begun.update(scopes)
        name, programs = eqn.primitive.name, list(inner(eqn))
        if name == "cond":
            branches = [Tally() for _ in programs]
            for branch, each in zip(programs, branches, strict=True):
                _walk(branch, scopes, times, each)
            tally.add(max(branches, key=lambda each: (math.isnan(each.total), each.total)))
        elif name in LOOPS or name in _WRAPPERS:
            rounds = {"scan": eqn.params.get("length"), "while": math.nan}.get(name, 1)
            for part in programs:
                _walk(part, scopes, times * rounds, tally)
        else:
            own[scopes[-1] if scopes else -1].append(eqn)
    for call in begun.difference(outer):
        tally.runs[call] += times
    for call, eqns in own.items():
        tally.flops[call] += times * _xla_flops(eqns)


def _xla_flops(eqns: list[JaxprEqn]) -> float:
    """What XLA counts for some operations, each on inputs of its own; nothing is compiled."""
    if any(holds(part, *LOOPS) for eqn in eqns for part in inner(eqn)):
        return math.nan

    def program(inputs):
        return [_apply(eqn, values) for eqn, values in zip(eqns, inputs, strict=True)]

    try:
        # As for a CPU, which there always is: of a GPU, XLA counts only what it has compiled.
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            inputs = [[_shape(atom) for atom in eqn.invars] for eqn in eqns]
            lowered = jax.jit(program).lower(inputs)
            costs = cost_of(lowered.cost_analysis)
    except Exception:  # an operation on something else than arrays, or without a translation
        return math.nan
    if costs is None:
        return math.nan
    # Every "custom call", of which XLA knows nothing, takes it -1 s. JAX makes some that do
    # nothing, where there are random keys.
    unknown = -costs.get("optimal_seconds", 0)
    if unknown > 0:
        unknown -= len(re.findall(r"sdy\.sharding_constraint|@Sharding", lowered.as_text()))
    return math.nan if unknown > 0 else costs["flops"]


def _apply(eqn: JaxprEqn, values: list) -> Any:
    given = [
        a.val if isinstance(a, Literal) else v for a, v in zip(eqn.invars, values, strict=True)
    ]
    return eqn.primitive.bind(*given, **eqn.params)


def _shape(atom: Any) -> jax.ShapeDtypeStruct | None:
    literal = isinstance(atom, Literal)
    return None if literal else jax.ShapeDtypeStruct(atom.aval.shape, atom.aval.dtype)


def cost_of(analysis: Callable[[], Any]) -> dict[str, float] | None:
    """XLA's cost analysis, `"flops"` in it whatever their number; `None` where there is none."""
    costs = analysis()
    costs = costs[0] if isinstance(costs, list) and costs else costs
    return {"flops": 0.0, **costs} if isinstance(costs, dict) else None
