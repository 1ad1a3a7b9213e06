"""What Optax's optimizers ask for beyond gradients: dtypes that stay, losses, complex numbers."""

import inspect
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, PyTree

Optimizer = optax.GradientTransformation | optax.MultiSteps


def strongly_typed(leaf: Any) -> Any:
    """Return an array whose dtype stays: JAX's weak types, of Python's numbers, do not."""
    is_weak = getattr(leaf, "weak_type", False)
    return lax.convert_element_type(leaf, leaf.dtype) if is_weak else leaf


@jax.custom_vjp
def _uphill(array: Array) -> Array:
    """Return a complex array whose gradient points uphill: JAX's own is the conjugate of it."""
    return array


_uphill.defvjp(lambda array: (array, None), lambda _, gradient: (jnp.conj(gradient),))


def with_ascending_gradients(params: PyTree) -> PyTree:
    """Return parameters whose gradients point uphill, those of complex ones included."""
    return jax.tree.map(lambda leaf: _uphill(leaf) if jnp.iscomplexobj(leaf) else leaf, params)


def extra_arguments(
    optimizer: Optimizer, loss: Array, grads: PyTree, loss_of: Callable[[PyTree], Array]
) -> dict[str, Any]:
    """Return what an optimizer's `update` takes by name, of what is known of a step.

    Some optimizers look at the loss, try several lengths of a step, or take other gradients.

    Args:
        optimizer: The optimizer.
        loss: The loss before the step.
        grads: Its gradients.
        loss_of: The loss as a function of the parameters.
    """

    # Optax's line searches hand on what they do not know to the function, which must take it.
    def value_fn(params: PyTree, obj_fn: Any = None, grad_fn: Any = None) -> Array:
        return loss_of(params)

    def grad_fn(params: PyTree, _: Any = None) -> PyTree:
        return jax.grad(loss_of)(params)

    known = dict(value=loss, grad=grads, value_fn=value_fn, obj_fn=loss_of, grad_fn=grad_fn)
    parameters = inspect.signature(optimizer.update).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return known
    return {name: value for name, value in known.items() if name in parameters}


def learning_rate(opt_state: Any) -> Any:
    """Return the learning rate that an optimizer's state shows, as with `inject_hyperparams`.

    Returns:
        A scalar; or `None` if there is none, or several.
    """
    found = optax.tree_utils.tree_get_all_with_path(opt_state, "learning_rate")
    rates = [x for path, x in found if _is_shown(path) and jax.tree_util.all_leaves([x])]
    return rates[0] if len(rates) == 1 and np.ndim(rates[0]) == 0 else None


def _is_shown(path: tuple) -> bool:
    """Return whether a learning rate is a field of a state, or a hyperparameter; no parameter."""
    is_field = isinstance(path[-1], optax.tree_utils.NamedTupleKey)
    in_hyperparams = len(path) > 1 and getattr(path[-2], "name", None) == "hyperparams"
    return is_field or in_hyperparams


def initial_opt_state(optimizer: Optimizer, params: PyTree) -> PyTree:
    """Make an optimizer's first state, in the dtypes that its states keep from step to step.

    Some optimizers promote parts of their state in the first step: of parameters in `bfloat16`,
    say. A compiled loop needs one dtype throughout.
    """

    def after_a_step(opt_state: PyTree) -> PyTree:
        loss = jnp.zeros(())
        extra = extra_arguments(optimizer, loss, params, lambda params: loss)
        return optimizer.update(params, opt_state, params, **extra)[1]

    def promoted(leaf: Any, after: Any) -> Any:
        changes = eqx.is_array(leaf) and leaf.dtype != after.dtype
        return lax.convert_element_type(leaf, after.dtype) if changes else leaf

    opt_state = jax.tree.map(strongly_typed, optimizer.init(params))
    for _ in range(2):  # one part of a state may promote another in the step after
        after = eqx.filter_eval_shape(after_a_step, opt_state)
        opt_state = jax.tree.map(promoted, opt_state, after)
    return opt_state
