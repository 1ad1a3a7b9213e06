"""The models of a sweep: made one by one, and stacked."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree
from optax.tree_utils import tree_get_all_with_path, tree_set

from vernal import errors
from vernal.errors import ArgumentError, did_you_mean, kind, wrong_argument


def checked_keys(keys: Any) -> PRNGKeyArray:
    """Return the members' keys as one array.

    Raises:
        ArgumentError: If these are no random keys, or one alone.
    """
    example = "Try keys=jax.random.split(jax.random.key(0), 8)."
    if isinstance(keys, list | tuple):
        keys = jnp.stack(keys) if keys and all(map(eqx.is_array, keys)) else keys
    if not (eqx.is_array(keys) and jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)):
        raise wrong_argument("keys", keys, "an array of random keys, one for each model,", example)
    if keys.ndim != 1 or len(keys) == 0:
        given = f"keys has the shape {keys.shape}"
        raise ArgumentError(f"{given}; one axis, of a key for each model, is needed.\n  {example}")
    return keys


def checked_hyperparams(hyperparams: Any, count: int) -> dict[str, np.ndarray | Array]:
    """Return the members' hyperparameters as arrays.

    Raises:
        ArgumentError: If this is no dict of numbers, or has other than one for each member.
    """
    if not isinstance(hyperparams, Mapping | None):
        hint = 'Try hyperparams={"learning_rate": jnp.geomspace(1e-4, 1e-1, 8)}.'
        raise wrong_argument("hyperparams", hyperparams, "a dict of arrays", hint)
    arrays = {}
    for name, values in (hyperparams or {}).items():
        array = values if eqx.is_array(values) else np.asarray(values)
        if array.ndim == 0 or len(array) != count or array.dtype == object:
            given = f"hyperparams[{name!r}] has the shape {array.shape}"
            raise ArgumentError(f"{given}; a value for each of the {count} keys is needed.")
        arrays[name] = array
    return arrays


def made(
    make_model: Callable, keys: PRNGKeyArray, hyperparams: dict[str, Any]
) -> tuple[list[tuple[PyTree, PyTree]], dict[str, Any]]:
    """Make each member's model and its state.

    Returns:
        Pairs of a model and its state, which may be `None`; and the hyperparameters that the
        function does not take, which are the optimizer's.

    Raises:
        CallError: If the function fails.
    """
    own = {name: values for name, values in hyperparams.items() if _takes(make_model, name)}
    pairs = []
    for i, key in enumerate(keys):
        with errors.calling("make_model"):
            model = make_model(key, **{name: values[i] for name, values in own.items()})
        is_pair = type(model) is tuple and len(model) == 2
        pairs.append(model if is_pair else (model, None))
    return pairs, {name: values for name, values in hyperparams.items() if name not in own}


def _takes(function: Callable, name: str) -> bool:
    """Return whether a function takes an argument by a name beside its first one, the key."""
    try:
        parameters = list(inspect.signature(function).parameters.values())[1:]
    except (TypeError, ValueError):
        return False
    return name in [each.name for each in parameters if each.kind is not each.VAR_POSITIONAL]


def stacked(models: list[PyTree], program_of: Callable[[PyTree], Any]) -> PyTree:
    """Stack models: each array gets a leading axis for them.

    Args:
        models: The models.
        program_of: Returns what a model computes, to compare. It is asked of models that hold other
            things than the first beside their arrays: a function that was made anew, say.

    Raises:
        ArgumentError: If one has other arrays than the first, or computes something else.
    """
    first, *others = models
    arrays, rest = eqx.partition(first, eqx.is_array)
    for i, other in enumerate(others, start=1):
        differ = f"models 0 and {i} differ, and cannot be stacked"
        if difference := _different_arrays(first, other):
            fix = "Train models of other sizes or kinds in a sweep of their own."
            raise ArgumentError(f"{differ}: {difference}.\n  {fix}")
        is_equal = _is_equal(rest, eqx.filter(other, eqx.is_array, inverse=True))
        if not is_equal and program_of(first) != program_of(other):
            fix = "A number may differ if the model has it as an array: jnp.asarray(...)."
            raise ArgumentError(f"{differ}: {_different_values(first, other)}.\n  {fix}")
    columns = zip(
        *(jax.tree.leaves(eqx.filter(model, eqx.is_array)) for model in models), strict=True
    )
    leaves = [jnp.stack(column) for column in columns]
    return eqx.combine(jax.tree.structure(arrays).unflatten(leaves), rest)


def _different_arrays(first: PyTree, other: PyTree) -> str:
    """Say which array of two models is the first to differ in shape or dtype; nothing if none."""
    one, two = (
        {
            _name(path): f"{leaf.dtype}{list(leaf.shape)}"
            for path, leaf in jax.tree_util.tree_leaves_with_path(eqx.filter(model, eqx.is_array))
        }
        for model in (first, other)
    )
    for name in dict.fromkeys([*one, *two]):
        if one.get(name) != two.get(name):
            a, b = one.get(name, "missing"), two.get(name, "missing")
            return f"{name} is {a} in one, {b} in the other"
    return ""


def _name(path: tuple) -> str:
    """Name a part of a pair of a model and its state as a user would."""
    return jax.tree_util.keystr(path).removeprefix("[0]").lstrip(".")


def _is_equal(one: PyTree, other: PyTree) -> bool:
    """Return whether what two models hold beside their arrays is seen to be equal."""
    if jax.tree.structure(one) != jax.tree.structure(other):
        return False
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(a is b or (type(a) is type(b) and bool(np.all(a == b))) for a, b in pairs)


def _different_values(first: PyTree, other: PyTree) -> str:
    """Say which value beside the arrays of two models differs, if that is seen."""
    leaves = dict(jax.tree_util.tree_leaves_with_path(other))
    for path, leaf in jax.tree_util.tree_leaves_with_path(first):
        twin = leaves.get(path)
        if not eqx.is_array(leaf) and leaf is not twin and not np.all(leaf == twin):
            name = _name(path)
            return f"{name} is {kind(leaf)} in one, {kind(twin)} in the other"
    return "their static fields have other values"


def with_hyperparams(opt_state: PyTree, hyperparams: dict[str, Any]) -> PyTree:
    """Put hyperparameters into the stacked states of an optimizer.

    Raises:
        ArgumentError: If its state does not show one of them, or shows it more than once.
    """
    for name, values in hyperparams.items():
        found = tree_get_all_with_path(opt_state, name)
        shown = [path for path, _ in found if getattr(path[-2:][0], "name", None) == "hyperparams"]
        if len(shown) != 1:
            known = "make_model takes no such argument, and the optimizer's state shows it "
            times = "nowhere" if not shown else f"{len(shown)} times"
            hint = f"Try optax.inject_hyperparams(optax.adam)({name}=1e-3)."
            if not shown:
                hint = did_you_mean(name, _names(opt_state, "hyperparams")).strip() or hint
            raise ArgumentError(f"hyperparams has {name!r}: {known}{times}.\n  {hint}")
        [value] = [value for path, value in found if path == shown[0]]
        if name in _names(opt_state, "hyperparams_states"):
            given = f"hyperparams has {name!r}, which a schedule sets in each step"
            raise ArgumentError(f"{given}.\n  Give the optimizer a number: {name}=1e-3.")
        if jnp.issubdtype(value.dtype, jnp.integer) and np.any(np.asarray(values) % 1):
            given = f"hyperparams has {name!r}, of which the optimizer has a whole number"
            raise ArgumentError(f"{given}.\n  Write {name}={int(np.ravel(value)[0])}.0 there.")
        opt_state = tree_set(
            opt_state,
            lambda path, _, place=shown[0]: path == place,
            **{name: jnp.asarray(values, value.dtype)},
        )
    return opt_state


def _names(opt_state: PyTree, field: str) -> list[str]:
    """Return the names in a field of the optimizer's states that show hyperparameters.

    Args:
        opt_state: The state of the whole optimizer.
        field: "hyperparams" has all of them, "hyperparams_states" those that a schedule sets.
    """
    parts = jax.tree.leaves(opt_state, is_leaf=lambda node: hasattr(node, field))
    return [name for part in parts for name in getattr(part, field, {})]


def with_weights(data: PyTree, weights: Any, count: int, *, name: str) -> PyTree:
    """Return `(x, y)` with weights of the examples, a column for each member.

    Raises:
        ArgumentError: If the weights or the data have another shape.
    """
    if weights is None:
        return data
    columns = np.asarray(weights).T
    if type(data) is not tuple or len(data) != 2:
        given = f"{name} is given with {kind(data)}"
        raise ArgumentError(f"{given}; arrays (x, y) are needed, to which the weights belong.")
    examples = len(jax.tree.leaves(data)[0])
    if columns.shape != (examples, count):
        given = f"{name} has the shape {np.shape(weights)}"
        need = f"({count}, {examples}), of the members and the examples, is needed"
        raise ArgumentError(f"{given}; {need}.")
    x, y = data
    return x, y, columns


def with_first_weights(data: PyTree) -> PyTree:
    """Return data with the first member's weights alone."""
    x, y, columns = data
    return x, y, columns[:, 0]
