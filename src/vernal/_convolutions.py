"""Convolutions in a loop, made fast on a CPU."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun
from jaxtyping import PyTree

_CONVOLUTION = "conv_general_dilated"


def channels_last(function: Callable) -> Callable:
    """The same function of PyTrees of arrays, with every convolution's channels as its last axis.

    On a CPU, XLA lays convolutions out like that itself, but not inside of a loop: there those of
    any other layout, as Equinox's are, would take several times as long, and be rounded in another
    way. On other devices the function is left as it is.
    """

    def wrapped(*args: PyTree) -> PyTree:
        if jax.default_backend() != "cpu":
            return function(*args)
        jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        if _has_any(jaxpr):
            outputs = _evaluate(jaxpr.jaxpr, jaxpr.consts, jax.tree.leaves(args))
        else:
            outputs = jaxpr_as_fun(jaxpr)(*jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return wrapped


def _evaluate(jaxpr: Jaxpr, consts: list, args: list) -> list:
    """Do what a program says, but for its convolutions."""
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, args, strict=True))
    read = lambda atom: atom.val if isinstance(atom, Literal) else values[atom]
    for eqn in jaxpr.eqns:
        inputs, bind = list(map(read, eqn.invars)), eqn.primitive.bind
        with eqn.ctx.manager:
            if eqn.primitive.name == _CONVOLUTION and eqn.params["batch_group_count"] == 1:
                outputs = _convolution(bind, *inputs, **eqn.params)
            else:
                params = {name: _rewritten(value) for name, value in eqn.params.items()}
                params = eqn.primitive.get_bind_params(params)
                # JAX before 0.10 returns what goes before the inputs beside the rest.
                before, params = params if isinstance(params, tuple) else ((), params)
                outputs = bind(*before, *inputs, **params)
        outputs = outputs if eqn.primitive.multiple_results else [outputs]
        values.update(zip(eqn.outvars, outputs, strict=True))
    return list(map(read, jaxpr.outvars))


def _convolution(bind: Callable, inputs, kernel, *, dimension_numbers, **params):
    # The numbers say at which axes are batch and channels (of a kernel: output, input), and space.
    batch, channels, *space = dimension_numbers.lhs_spec
    out, into, *size = dimension_numbers.rhs_spec
    last = len(space) + 1
    places = range(1, last)
    made = bind(
        lax.transpose(inputs, (batch, *space, channels)),
        lax.transpose(kernel, (*size, into, out)),
        dimension_numbers=lax.ConvDimensionNumbers(
            (0, last, *places), (last, last - 1, *range(last - 1)), (0, last, *places)
        ),
        **params,
    )
    order = dict(zip(dimension_numbers.out_spec, (0, last, *places), strict=True))
    return lax.transpose(made, [order[axis] for axis in range(last + 1)])


def _has_any(param: Any) -> bool:
    """Whether there is a convolution in a part of an equation, or in a program."""
    if isinstance(param, tuple | list):
        return any(map(_has_any, param))
    program = param.jaxpr if isinstance(param, ClosedJaxpr) else param
    if not isinstance(program, Jaxpr):
        return False
    parts = lambda eqn: (
        eqn.primitive.name == _CONVOLUTION or any(map(_has_any, eqn.params.values()))
    )
    return any(map(parts, program.eqns))


def _rewritten(param: Any) -> Any:
    """A part of an equation: where that is a program with convolutions, the program rewritten."""
    if not _has_any(param):
        return param
    if isinstance(param, tuple | list):
        return type(param)(map(_rewritten, param))
    closed = ClosedJaxpr(param, ()) if isinstance(param, Jaxpr) else param
    inputs = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in closed.jaxpr.invars]
    evaluate = lambda *args: _evaluate(closed.jaxpr, closed.consts, list(args))
    made = jax.make_jaxpr(evaluate)(*inputs)
    return made.jaxpr if isinstance(param, Jaxpr) else made
