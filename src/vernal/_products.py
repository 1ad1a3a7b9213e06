"""Matrix products the fast way round, in a program that JAX has traced.

Equinox's layers apply a weight to one example: `weight @ x`. `jax.vmap` makes of it one product
whose result has the batch as its last axis, and a transposition. So XLA moves every number of the
batch, on the way to the loss and on the way back. With its operands exchanged, the product has the
batch first, and nothing moves.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var, jaxpr_as_fun
from jaxtyping import PyTree

from vernal import _limits

# Operations that run a program as it was traced. Others, such as Pallas's, take theirs apart.
_CALLS = {"jit", "pjit", "closed_call", "core_call", "checkpoint", "remat2"}
_CALLS |= {"custom_jvp_call", "custom_vjp_call", "cond", "scan", "while"}


def with_turned_products(function: Callable) -> Callable:
    """Return a function that computes the same, its products turned."""

    def run(*arguments: PyTree) -> PyTree:
        program, results, static = eqx.filter_make_jaxpr(function)(*arguments)
        arrays = jax.tree.leaves(eqx.filter(arguments, eqx.is_array))
        made = jaxpr_as_fun(turned(program))(*arrays)
        return eqx.combine(jax.tree.structure(results).unflatten(made), static)

    return run


def turned(program: ClosedJaxpr) -> ClosedJaxpr:
    """Return a program that does the same, without transposing what products take and give.

    It does not change a program where the environment's variable `VERNAL_PLAIN_PRODUCTS` was set
    when Vernal was imported.
    """
    if not _limits.current().turns_products:
        return program
    return program.replace(jaxpr=_turned(program.jaxpr))


def _turned(jaxpr: Jaxpr) -> Jaxpr:
    uses: Counter[Any] = Counter(v for e in jaxpr.eqns for v in e.invars if isinstance(v, Var))
    uses.update(v for v in jaxpr.outvars if isinstance(v, Var))
    equations: list[JaxprEqn] = []
    made_by: dict[Any, JaxprEqn] = {}
    for equation in jaxpr.eqns:
        if equation.primitive.name == "transpose":
            product = _made_by(equation.invars[0], "dot_general", made_by)
            is_alone = uses[equation.invars[0]] == 1
            if product is not None and is_alone and _puts_first_last(equation, product):
                equation = _exchanged(product, equation.outvars)
        if equation.primitive.name == "dot_general":
            equation = _of_untransposed(equation, made_by)
        elif equation.primitive.name in _CALLS:
            equation = _with_turned_parts(equation)

        equations.append(equation)
        made_by.update((v, equation) for v in equation.outvars)
    return jaxpr.replace(eqns=_needed(equations, jaxpr.outvars))


def _made_by(variable: Any, name: str, made_by: dict[Any, JaxprEqn]) -> JaxprEqn | None:
    """Return the operation of a name that made a variable, if one did."""
    equation = made_by.get(variable) if isinstance(variable, Var) else None
    return equation if equation is not None and equation.primitive.name == name else None


def _puts_first_last(transposition: JaxprEqn, product: JaxprEqn) -> bool:
    """Say whether a product's own axes change places: the first operand's behind the second's."""
    if product.params.get("out_sharding") is not None:
        return False
    (contracted, _), (shared, _) = product.params["dimension_numbers"]
    operand: Any = product.invars[0].aval
    first = operand.ndim - len(contracted)  # with those that are shared
    permutation = tuple(transposition.params["permutation"])
    axes = range(len(permutation))
    return permutation == (*axes[: len(shared)], *axes[first:], *axes[len(shared) : first])


def _exchanged(product: JaxprEqn, results: list[Var]) -> JaxprEqn:
    """Exchange a product's operands."""
    numbers = tuple(pair[::-1] for pair in product.params["dimension_numbers"])
    precision = product.params["precision"]
    precision = precision[::-1] if isinstance(precision, tuple) else precision
    params = {**product.params, "dimension_numbers": numbers, "precision": precision}
    return product.replace(invars=product.invars[::-1], outvars=results, params=params)


def _of_untransposed(product: JaxprEqn, made_by: dict[Any, JaxprEqn]) -> JaxprEqn:
    """Let a product take its operands as they are before they are transposed."""
    operands = list(product.invars)
    contracted, shared = map(list, product.params["dimension_numbers"])
    for i, operand in enumerate(operands):
        transposition = _made_by(operand, "transpose", made_by)
        if transposition is None:
            continue
        axes = transposition.params["permutation"]
        used = {*contracted[i], *shared[i]}
        others = [axis for place, axis in enumerate(axes) if place not in used]
        if others != sorted(others):
            continue  # the result would be transposed in its place
        operands[i] = transposition.invars[0]
        contracted[i] = tuple(axes[axis] for axis in contracted[i])
        shared[i] = tuple(axes[axis] for axis in shared[i])

    numbers = tuple(contracted), tuple(shared)
    return product.replace(invars=operands, params={**product.params, "dimension_numbers": numbers})


def _with_turned_parts(equation: JaxprEqn) -> JaxprEqn:
    """Turn the products of the programs that an operation runs."""

    def part(value: Any) -> Any:
        if isinstance(value, ClosedJaxpr):
            return value.replace(jaxpr=_turned(value.jaxpr))
        return _turned(value) if isinstance(value, Jaxpr) else value

    params = {
        name: tuple(map(part, value)) if type(value) is tuple else part(value)
        for name, value in equation.params.items()
    }
    return equation.replace(params=params)


def _needed(equations: list[JaxprEqn], results: list) -> list[JaxprEqn]:
    """Leave out products and transpositions whose results nothing takes."""
    needed, kept = {v for v in results if isinstance(v, Var)}, []
    for equation in reversed(equations):
        can_go = equation.primitive.name in ("dot_general", "transpose")
        if can_go and needed.isdisjoint(equation.outvars):
            continue
        kept.append(equation)
        needed.update(v for v in equation.invars if isinstance(v, Var))
    return kept[::-1]
