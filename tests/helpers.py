"""What several test files share: bits, a loop written by hand, a terminal, a page of examples."""

import contextlib
import dataclasses
import io
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import jaxpr_as_fun

import vernal
from vernal._limits import limits

KEY = jax.random.key(7)

# ----- numbers


def numbers(tree) -> list[np.ndarray]:
    """Return the arrays of a tree in NumPy, keys as the integers that they are made of."""

    def as_numpy(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    arrays = jax.Array | np.ndarray | np.generic
    return [as_numpy(leaf) for leaf in jax.tree.leaves(tree) if isinstance(leaf, arrays)]


def assert_same_bits(one, other) -> None:
    """Assert that two trees hold the same arrays, of the same dtypes, bit for bit."""
    ones, others = numbers(one), numbers(other)
    assert len(ones) == len(others) > 0
    for a, b in zip(ones, others, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def assert_close(one, other, *, rtol: float = 1e-10, atol: float = 1e-12) -> None:
    """Assert that two trees hold the same numbers: by default, up to the rounding of float64."""
    ones, others = numbers(one), numbers(other)
    assert len(ones) == len(others) > 0
    for a, b in zip(ones, others, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def assert_float64(tree) -> None:
    """Assert that a tree computes in float64, where rounding cannot hide a wrong formula."""
    dtypes = {leaf.dtype for leaf in numbers(tree) if np.issubdtype(leaf.dtype, np.inexact)}
    assert dtypes == {np.dtype(np.float64)}


def as_float64(tree):
    """Return a tree with its float arrays, of NumPy or of JAX, in float64."""

    def cast(leaf):
        is_array = isinstance(leaf, jax.Array | np.ndarray)
        if not (is_array and jnp.issubdtype(leaf.dtype, jnp.floating)):
            return leaf
        wide = np.asarray(leaf).astype(np.float64)  # in NumPy: nothing compiles
        return jnp.asarray(wide) if isinstance(leaf, jax.Array) else wide

    return jax.tree.map(cast, tree)


def assert_turned_products_agree(trainer, state, batch) -> None:
    """Assert that a step computes what it does with its products as the model has them."""
    turned = vernal.update_jaxpr(trainer, state, batch)
    with limits(turns_products=False):
        plain = vernal.update_jaxpr(trainer, state, batch)
    assert turned.in_avals == plain.in_avals
    if str(turned) == str(plain):
        return  # it has no product to turn
    arrays = jax.tree.leaves(eqx.filter((trainer.loss, state, batch), eqx.is_array))
    computed = [jax.jit(jaxpr_as_fun(program))(*arrays) for program in (turned, plain)]
    assert_float64(state.model)
    assert_close(*computed, rtol=1e-12)


# ----- what compiles fast


@contextlib.contextmanager
def few_optimizations() -> Iterator[None]:
    """Let XLA compile fast, for numbers that are compared up to rounding, and for errors.

    Not for bits, and with `filled` models: what is compiled here may serve later tests, too.
    """
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)


@contextlib.contextmanager
def float64() -> Iterator[None]:
    """Compute in float64, in which rounding hides nothing, and compile fast."""
    with jax.enable_x64(True), few_optimizations():
        yield


def filled(make: Callable, *, seed: int = 0):
    """Make a model with numbers from NumPy. JAX would compile a program for each shape to draw.

    Args:
        make: Called without arguments. All floats that it makes are replaced.
        seed: Of the numbers: weights are as large as usual, biases are between 0 and 1.
    """
    rng = np.random.default_rng(seed)

    def fill(leaf):
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        if len(leaf.shape) < 2:
            values = rng.uniform(0, 1, leaf.shape)
        else:
            values = rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[1:]))
        return jnp.asarray(values, leaf.dtype)

    return jax.tree.map(fill, eqx.filter_eval_shape(make))


# ----- training


def batches_of(data, size: int | None, epochs: int, *, key=KEY, shuffle: bool = True) -> Iterator:
    """Yield the batches of some epochs, as `fit` makes them."""
    for epoch in range(epochs):
        yield from vernal.batches(data, size, shuffle=shuffle, epoch=epoch, key=key)


def squared_error(model, batch, key=None):
    """Return the mean squared error of a model without a key, as a loss of one's own."""
    x, y = batch
    return jnp.mean((jax.vmap(model)(x) - y) ** 2)


class Trained(NamedTuple):
    """What a loop written by hand has made.

    Attributes:
        model: After the last step.
        model_state: After the last step.
        opt_states: The optimizer's state after each step.
        steps: What each step measured, by name.
    """

    model: Any
    model_state: Any
    opt_states: list
    steps: dict[str, Any]


def loop_by_hand(
    objective: Callable,
    optimizer: Any,
    model,
    batches: Iterable,
    *,
    model_state=None,
    key=KEY,
    trainable=eqx.is_inexact_array,
    needs: tuple[str, ...] = (),
) -> Trained:
    """Train by the loop that Equinox's documentation teaches: the reference for `fit`.

    Args:
        objective: Called as `objective(model, batch, key, model_state)`. Returns a scalar, a dict
            of metrics, and the new model state.
        optimizer: From Optax.
        model: Stays as it is.
        batches: One for each step.
        model_state: For the objective.
        key: Folded with the number of the step.
        trainable: Which leaves to train.
        needs: What the optimizer's update takes beside gradients and parameters: some of
            "value", "grad" and "value_fn".
    """

    @eqx.filter_jit
    def step(model, model_state, opt_state, batch, key):
        params, frozen = eqx.partition(model, trainable)

        def loss(params):
            model = eqx.combine(params, frozen)
            value, metrics, new_state = objective(model, batch, key, model_state)
            return value, ({"loss": value, **metrics}, new_state)

        (value, (info, new_state)), grads = eqx.filter_value_and_grad(loss, has_aux=True)(params)
        every = {"value": value, "grad": grads, "value_fn": lambda params: loss(params)[0]}
        extra = {name: every[name] for name in needs}
        updates, opt_state = optimizer.update(grads, opt_state, params, **extra)
        return eqx.apply_updates(model, updates), new_state, opt_state, info

    opt_state = optimizer.init(eqx.filter(model, trainable))
    opt_states, infos = [], []
    for number, batch in enumerate(batches):
        step_key = jax.random.fold_in(key, number)
        model, model_state, opt_state, info = step(model, model_state, opt_state, batch, step_key)
        opt_states.append(opt_state)
        infos.append(info)

    return Trained(model, model_state, opt_states, _columns(infos))


def _columns(infos: list[dict]) -> dict[str, Any]:
    """Return what each step measured, by name: an array, or a list where shapes differ."""
    columns = {}
    for name in infos[0]:
        values = [np.asarray(info[name]) for info in infos]
        same = len({value.shape for value in values}) == 1
        columns[name] = np.stack(values) if same else values
    return columns


def stepped(trainer, state, batches: Iterable):
    """Train by `trainer.step` alone. Returns the state, and what each step measured, by name."""
    infos = []
    for batch in batches:
        state, info = trainer.step(state, batch)
        infos.append(info)
    return state, _columns(infos)


# ----- a terminal


class Terminal:
    """A standard error that says it is a terminal, and keeps what is written."""

    encoding = "utf-8"

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text
        return len(text)

    def flush(self):
        pass

    def isatty(self):
        return True


# ----- a page


class Page:
    """A page of Markdown whose examples are run."""

    def __init__(self, path: Path):
        self.name = path.name
        self.text = path.read_text(encoding="utf-8")
        # (language, content) of each fenced block, in order.
        self.blocks = re.findall(r"^```(\w+)\n(.*?)^```", self.text, re.DOTALL | re.MULTILINE)

    def run(self) -> list[str]:
        """Run each block of Python after the one before; a block of text is what it prints.

        Returns:
            What kind of outcome each block of text shows: "output", or an error's class.
        """
        names, compared = {}, []
        for (language, content), (following, shown) in zip(
            self.blocks, [*self.blocks, ("", "")][1:], strict=True
        ):
            if language != "python":
                continue
            printed, outcome = io.StringIO(), "output"
            with contextlib.redirect_stdout(printed):
                try:
                    exec(compile(content, self.name, "exec"), names)
                except vernal.VernalError as error:
                    outcome = type(error).__name__
                    print(f"{outcome}: {error}")
            assert printed.getvalue().strip() == (shown.strip() if following == "text" else "")
            if following == "text":
                compared.append(outcome)
        return compared


# ----- examples that can be told apart


def examples(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Make n inputs that can be told apart, and targets that show which input they belong to."""
    x = np.arange(2 * n, dtype=np.float32).reshape(n, 2)
    return x, 10 * x[:, :1]


def cut(data, sizes: list[int]) -> list:
    """Cut arrays into batches of some sizes."""
    ends = np.cumsum(sizes)
    return [
        jax.tree.map(lambda leaf, a=a, b=b: leaf[a:b], data)
        for a, b in zip([0, *ends], ends, strict=False)
    ]


def fingerprint(batch) -> float:
    """Return a number that tells which of `examples` a batch holds, and in which order."""
    x, y = batch
    np.testing.assert_array_equal(y, 10 * x[:, :1])
    return float(np.sum((x[:, 0] / 2 + 1) * np.arange(1, len(x) + 1) ** 2))


def tells(model, batch, key):
    x, y = batch
    place = jnp.arange(1, len(x) + 1, dtype=x.dtype)
    seen = jnp.sum((x[:, 0] / 2 + 1) * place**2)
    wrong = jnp.any(y != 10 * x[:, :1])
    return 0 * jnp.sum(model), {"seen": jnp.where(wrong, -1, seen)}


TELLER = vernal.Trainer(optax.sgd(0.1), tells)


def seen(data, *, at: tuple[int, int] = (0, 0), **options) -> list[float]:
    """Train on `examples`, and return the fingerprint of the batch of each step.

    Args:
        data: As `fit` takes it.
        at: Where to begin: a pass over the data, and a batch counted from its start.
        **options: For `fit`.
    """
    data_pass, batch = (np.array(count, np.int32) for count in at)
    start = TELLER.init(jnp.zeros(1), key=KEY)
    start = dataclasses.replace(start, epoch=data_pass, data_pass=data_pass, batch=batch)
    _, history = TELLER.fit(start, data, **options)
    return history.steps["seen"].tolist()


def assert_equal_trees(tree, other) -> None:
    """Assert that two trees have one structure, and equal numbers in their leaves."""
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for leaf, expected in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(leaf, expected)
