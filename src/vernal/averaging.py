"""Averages of the weights over the steps of a run, to validate, evaluate and predict with."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from vernal._arguments import check_optimizer
from vernal._optimizers import Optimizer
from vernal.errors import ArgumentError, wrong_argument


class AveragedState(NamedTuple):
    """The state of an optimizer that `average_weights` made.

    Attributes:
        opt_state: The state of the optimizer that is wrapped.
        average: The average of the parameters, in single precision at least.
        applied: How many updates it averages over.
    """

    opt_state: Any
    average: PyTree[Array]
    applied: Int[Array, ""]


def average_weights(
    optimizer: Optimizer, decay: float = 0.999
) -> optax.GradientTransformationExtraArgs:
    """Wrap an optimizer, so that its state keeps an average of the weights.

    The average is exponential: after n updates the weights after update k count in proportion to
    `decay ** (n - k)`, and all n together make 1, as in Adam's bias correction (Kingma and Ba 2015,
    section 3). The initial weights are not in it. It is kept in single precision at least.

    Training is as without it. To validate, evaluate and predict with the average, pass
    `eval_params=vernal.averaged` to `Trainer`. What a model keeps in its state, such as the
    statistics of BatchNorm, belongs to the weights that are trained.

    Args:
        optimizer: From Optax. Wrap the whole optimizer: what comes after `average_weights` in an
            `optax.chain` would change the weights that it averages. With `optax.MultiSteps`, on
            either side, only updates that are applied count.
        decay: How much of the average stays at an update: between 0 and 1. 0.999 averages over the
            last thousand updates or so.

    Raises:
        ArgumentError: If `optimizer` is not one, or `decay` is not between 0 and 1.

    Example:
        >>> optimizer = vernal.average_weights(optax.adam(1e-3), decay=0.99)
        >>> averaging = vernal.Trainer(
        ...     optimizer, losses.MeanSquaredError(), eval_params=vernal.averaged
        ... )
    """
    if isinstance(optimizer, optax.MultiSteps):
        optimizer = optimizer.gradient_transformation()
    check_optimizer(optimizer)
    if not isinstance(decay, float) or not 0 < decay < 1:
        raise wrong_argument("decay", decay, "a number between 0 and 1", "Try decay=0.999.")
    wrapped = optax.with_extra_args_support(optimizer)

    def init(params: PyTree) -> AveragedState:
        average = jax.tree.map(
            lambda param: param.astype(jnp.promote_types(param.dtype, jnp.float32)), params
        )
        return AveragedState(wrapped.init(params), average, jnp.zeros((), jnp.int32))

    def update(
        updates: PyTree, state: Any, params: PyTree = None, **extra_args: Any
    ) -> tuple[PyTree, AveragedState]:
        if params is None:
            raise ValueError("average_weights needs the parameters: update(grads, state, params).")
        updates, opt_state = wrapped.update(updates, state.opt_state, params, **extra_args)
        new_params = optax.apply_updates(params, updates)
        is_applied = _is_applied(state.opt_state, opt_state)
        count = state.applied + is_applied
        # (1 - decay) / (1 - decay ** count), without the difference of numbers near 1.
        share = (1 - decay) / -jnp.expm1(jnp.maximum(count, 1) * math.log(decay))
        share = jnp.where(is_applied, share, 0)

        def moved(average: Array, new: Array) -> Array:
            return average + share.astype(average.dtype) * (new - average)

        average = jax.tree.map(moved, state.average, new_params)
        return updates, AveragedState(opt_state, average, count)

    return optax.GradientTransformationExtraArgs(init, update)


def averaged(opt_state: PyTree, params: PyTree) -> PyTree:
    """Return the average that `average_weights` keeps, in the dtypes of the parameters.

    Before the first update these are the parameters. Pass it as `Trainer(...,
    eval_params=vernal.averaged)`.

    Args:
        opt_state: The state of an optimizer that `average_weights` made.
        params: The parameters as trained.

    Raises:
        ArgumentError: If the optimizer keeps no average, or changes the weights after it.

    Example:
        >>> optimizer = vernal.average_weights(optax.sgd(0.1))
        >>> params = {"weight": jnp.ones(3)}
        >>> vernal.averaged(optimizer.init(params), params)["weight"].shape
        (3,)
    """
    found = opt_state.inner_opt_state if isinstance(opt_state, optax.MultiStepsState) else opt_state
    if not isinstance(found, AveragedState):
        raise ArgumentError(
            "eval_params=vernal.averaged: the optimizer keeps no average, or changes the weights "
            "after it.\n  Wrap the whole of it: vernal.average_weights(optax.chain(...))."
        )
    return jax.tree.map(lambda param, average: average.astype(param.dtype), params, found.average)


def _is_applied(before: Any, after: Any) -> Array:
    """Return whether an update was applied: `optax.MultiSteps` counts those that it applies."""
    counts = [optax.tree_utils.tree_get_all_with_path(s, "gradient_step") for s in (before, after)]
    changes = [new != old for (_, old), (_, new) in zip(*counts, strict=True)]
    return jnp.any(jnp.stack(changes)) if changes else jnp.array(True)
