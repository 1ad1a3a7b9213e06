"""Examples to batches: every one once an epoch, in an order that (key, epoch) alone decides."""

import functools
import itertools
import re
import tracemalloc
import weakref
from types import SimpleNamespace
from typing import Any

import equinox as eqx
import h5py
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vernal
from vernal import losses
from vernal._data import array_source as _data
from vernal._data.array_source import as_source, gathers_on_host
from vernal._data.files import FileArray, in_files

KEY = jax.random.key(11)
sizes = st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))


def ordered(data, size, **order):
    """A source to train on, in the order of KEY."""
    source = as_source(data, size, endless=True, **order)
    source.begin(KEY)
    return source


def examples(n):
    """Make examples that can be told apart, and targets that show which x they belong to."""
    x = np.arange(2 * n, dtype=np.float32).reshape(n, 2)
    return x, 10 * x[:, :1]


def assert_equal(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for leaf, expected in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(leaf, expected)


def order_of(batches):
    """The numbers of the examples that are in some batches of `examples`."""
    return (np.concatenate([x[:, 0] for x, _ in batches]) // 2).astype(int)


# ----- vernal.batches


@given(sizes, st.integers(0, 5), st.booleans())
def test_every_example_is_in_an_epoch_once(n_and_size, epoch, shuffle):
    n, size = n_and_size
    batches = list(vernal.batches(examples(n), size, shuffle=shuffle, epoch=epoch, key=KEY))
    assert sorted(order_of(batches)) == list(range(n))
    tail = [n % size] if n % size else []
    assert [len(x) for x, _ in batches] == [size] * (n // size) + tail
    for x, y in batches:
        np.testing.assert_array_equal(y, 10 * x[:, :1])


@given(sizes, st.integers(0, 5))
def test_the_order_is_the_key_and_epochs_alone(n_and_size, epoch):
    n, size = n_and_size
    data = examples(n)
    first = list(vernal.batches(data, size, epoch=epoch, key=KEY))
    for other in range(3):  # what is made in between changes nothing
        list(vernal.batches(data, size, epoch=other, key=jax.random.key(other)))
    for batch, again in zip(first, vernal.batches(data, size, epoch=epoch, key=KEY), strict=True):
        assert_equal(batch, again)
    if size < n:  # and how it is cut, neither
        one_by_one = vernal.batches(data, 1, epoch=epoch, key=KEY)
        np.testing.assert_array_equal(order_of(first), order_of(one_by_one))


def test_epochs_and_keys_have_orders_of_their_own():
    data = examples(50)
    orders = {
        tuple(order_of(vernal.batches(data, 10, epoch=epoch, key=jax.random.key(seed))))
        for epoch in range(10)
        for seed in range(3)
    }
    assert len(orders) == 30
    assert tuple(range(50)) not in orders
    # Every example comes first at some time: no place is left as it is.
    firsts = {order_of(vernal.batches(data, 10, epoch=epoch))[0] for epoch in range(400)}
    assert firsts == set(range(50))


@given(sizes, st.integers(0, 5))
def test_unshuffled_examples_stay_in_order(n_and_size, epoch):
    n, size = n_and_size
    batches = vernal.batches(examples(n), size, shuffle=False, epoch=epoch, key=KEY)
    np.testing.assert_array_equal(order_of(batches), np.arange(n))


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("size", [None, 12])
def test_the_full_batch_is_the_data_as_it_is(size, shuffle):
    data = examples(12)
    [batch] = vernal.batches(data, size, shuffle=shuffle, epoch=3, key=KEY)
    assert_equal(batch, data)


def test_no_key_is_the_key_0_and_old_keys_are_keys_too():
    data = examples(30)
    expected = list(vernal.batches(data, 10, key=jax.random.key(0)))
    for batches in (vernal.batches(data, 10), vernal.batches(data, 10, key=jax.random.PRNGKey(0))):
        for batch, other in zip(batches, expected, strict=True):
            assert_equal(batch, other)


# ----- what counts as an array


def as_frames(x, y):
    index = pd.Index(range(100, 100 + len(x)))  # its labels are not the rows' numbers
    return pd.DataFrame(x, columns=["a", "b"], index=index), pd.Series(y[:, 0], index=index)


KINDS = {
    "numpy": lambda x, y: (x, y),
    "jax": lambda x, y: (jnp.asarray(x), jnp.asarray(y)),
    "lists": lambda x, y: (x.tolist(), y.tolist()),
    "frame and series": as_frames,
    "frame of several types": lambda x, y: (
        pd.DataFrame({"a": x[:, 0], "b": x[:, 1].astype(int)}),
        y,
    ),
    "integers": lambda x, y: (x.astype(np.int64), y.astype(np.uint16)),
    "not contiguous": lambda x, y: (x.T.copy().T, np.repeat(y, 2, axis=0)[::2]),
    "read-only": lambda x, y: (np.frombuffer(x.tobytes(), np.float32).reshape(x.shape), y),
    "numpy and jax": lambda x, y: (jnp.asarray(x), y),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [5, None], ids=["batches", "full batch"])
def test_what_counts_as_an_array(kind, size):
    data = KINDS[kind](*examples(12))
    expected = vernal.batches(examples(12), size, key=KEY)
    for (x, y), (expected_x, expected_y) in zip(
        vernal.batches(data, size, key=KEY), expected, strict=True
    ):
        np.testing.assert_array_equal(x, expected_x)
        np.testing.assert_array_equal(np.reshape(y, (-1, 1)), expected_y)


def test_arrays_on_disk_are_batches_like_others(tmp_path):
    x, y = examples(12)
    x.tofile(tmp_path / "x")
    on_disk = np.memmap(tmp_path / "x", np.float32, "r", shape=x.shape)
    for batch, expected in zip(
        vernal.batches((on_disk, y), 5), vernal.batches((x, y), 5), strict=True
    ):
        assert_equal(batch, expected)
    np.testing.assert_array_equal(np.fromfile(tmp_path / "x", np.float32), x.ravel())


def test_any_tree_of_arrays_is_data():
    x, y = examples(12)
    data = {"image": x, "about": {"label": y[:, 0].tolist(), "weight": jnp.arange(12)}}
    for batch in vernal.batches(data, 5, key=KEY):
        assert set(batch) == {"image", "about"}
        np.testing.assert_array_equal(batch["about"]["label"], 10 * batch["image"][:, 0])
        np.testing.assert_array_equal(batch["about"]["weight"], batch["image"][:, 0] / 2)


# ----- stacks: what the compiled loop slices


def at(arrays, row):
    return jax.tree.map(lambda leaf: np.asarray(leaf[row]), arrays)


def unrolled(stacks):
    """The batches of stacks, one by one, cut as the loop cuts them."""
    for stack in stacks:
        if stack.repeats:
            yield jax.tree.map(np.asarray, stack.batches)
            return
        assert stack.first < stack.end
        lengths = stack.sizes(stack.first, stack.end)
        for place, length in zip(range(stack.first, stack.end), lengths, strict=True):
            epoch, j = divmod(place, stack.length)
            full = stack.length - (stack.tails is not None)
            if j < full:
                batch = at(stack.batches, epoch * full + j - stack.origin)
            else:
                batch = at(stack.tails, epoch)
            assert {len(leaf) for leaf in jax.tree.leaves(batch)} == {length}
            yield batch


def take(batches, number):
    return [batch for batch, _ in zip(batches, range(number), strict=False)]


@pytest.mark.parametrize("stack_bytes", [None, 1, 60])
@pytest.mark.parametrize("shuffle", [True, False], ids=["shuffled", "in order"])
@pytest.mark.parametrize("n, size", [(12, 4), (15, 4), (7, 6), (5, 1)], ids=str)
def test_stacks_hold_the_batches_of_epoch_after_epoch(n, size, shuffle, stack_bytes, monkeypatch):
    if stack_bytes is not None:  # so that an epoch is taken in parts, of one batch or of more
        monkeypatch.setattr("vernal._data.superbatch.STACK_BYTES", stack_bytes)
        monkeypatch.setattr(_data, "_SHARED_BYTES", stack_bytes)
    data = examples(n)
    make = lambda: ordered(data, size, shuffle=shuffle)
    length = -(-n // size)
    expected = [
        batch
        for epoch in range(4)
        for batch in vernal.batches(data, size, shuffle=shuffle, epoch=epoch, key=KEY)
    ]
    assert make().length == length
    assert len(expected) == 4 * length
    for start in range(2 * length + 1):
        # A place may be given from the start of any epoch before it.
        for epoch, batch in {(0, start), divmod(start, length)}:
            batches = take(unrolled(make().stacks(epoch, batch)), 4 * length - start)
            for result, wanted in zip(batches, expected[start:], strict=True):
                assert_equal(result, wanted)


def test_small_epochs_share_a_stack_and_large_ones_are_taken_in_parts(monkeypatch):
    monkeypatch.setattr("vernal._data.superbatch.ROOMIER", 1)
    data = examples(1000)  # of 12 bytes each
    first, *_, stack = take(ordered(data, 100).stacks(0, 0), 8)
    assert stack.end > 2 * stack.length
    if jax.default_backend() == "cpu":
        assert first.end < stack.end / 10  # the device begins soon
    assert first.capacity == stack.capacity  # in the same program
    monkeypatch.setattr("vernal._data.superbatch.STACK_BYTES", 4000)
    for stack in take(ordered(data, 100).stacks(0, 0), 5):
        assert sum(leaf.nbytes for leaf in jax.tree.leaves(stack.batches)) <= 4000
        assert stack.end - stack.first <= 3


def test_the_full_batch_is_there_once_and_repeats():
    data = examples(6)
    [stack] = ordered(data, None, shuffle=True).stacks(4, 0)
    assert stack.repeats
    assert stack.epoch == 4
    assert_equal(jax.tree.map(np.asarray, stack.batches), data)


def test_the_full_batch_of_jaxs_arrays_is_not_copied():
    x, y = jax.tree.map(jnp.asarray, examples(6))
    [stack] = ordered((x, y), None).stacks(0, 0)
    assert stack.batches[0] is x and stack.batches[1] is y


@pytest.mark.parametrize("size", [4, 5, 1, 12, 100, None])
@pytest.mark.parametrize("stack_bytes", [2**26, 60])
def test_one_pass_is_one_epoch_in_order(size, stack_bytes, monkeypatch):
    monkeypatch.setattr("vernal._data.superbatch.STACK_BYTES", stack_bytes)
    data = examples(12)
    # To measure, a batch size beyond what there is will do.
    results = list(unrolled(as_source(data, size).one_pass()))
    expected = vernal.batches(data, min(size or 12, 12), shuffle=False)
    for result, wanted in zip(results, expected, strict=True):
        assert_equal(result, wanted)
    loader = Loader(cut(data, [5, 5, 2]))
    results = list(unrolled(as_source(loader, None).one_pass()))
    for result, wanted in zip(results, loader.batches, strict=True):
        assert_equal(result, wanted)


# ----- loaders


class Loader:
    """Re-iterable, of no known length."""

    def __init__(self, batches):
        self.batches = batches
        self.times_read = 0

    def __iter__(self):
        self.times_read += 1
        return iter(self.batches)


class SizedLoader(Loader):
    def __len__(self):
        return len(self.batches)


def cut(data, sizes):
    ends = np.cumsum(sizes)
    return [
        jax.tree.map(lambda leaf, a=a, b=b: leaf[a:b], data)
        for a, b in zip([0, *ends], ends, strict=False)
    ]


LOADERS = {"list": list, "loader": Loader, "sized loader": SizedLoader}


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("stack_bytes", [2**26, 100])
@pytest.mark.parametrize("cuts", [[4, 4, 4], [1], [2, 5, 5, 1, 4, 4, 4, 2], [3, 2, 3, 2]], ids=str)
def test_stacks_hold_a_loaders_batches_in_its_order(kind, cuts, stack_bytes, monkeypatch):
    monkeypatch.setattr("vernal._data.superbatch.STACK_BYTES", stack_bytes)
    batches = cut(examples(sum(cuts)), cuts)
    make = lambda: ordered(LOADERS[kind](batches), None, shuffle=True)
    expected = batches * 3
    for start in range(2 * len(cuts)):
        for epoch, batch in {(0, start), divmod(start, len(cuts))}:
            results = take(unrolled(make().stacks(epoch, batch)), len(expected) - start)
            for result, wanted in zip(results, expected[start:], strict=True):
                assert_equal(result, wanted)


def test_a_loaders_batches_may_be_trees_and_lists_and_jax_arrays():
    x, y = examples(8)
    batches = [
        {"x": x[:4].tolist(), "y": jnp.asarray(y[:4])},
        {"x": pd.DataFrame(x[4:]), "y": y[4:]},
    ]
    results = take(unrolled(as_source(Loader(batches), None).stacks(0, 0)), 2)
    for result, rows in zip(results, (slice(4), slice(4, None)), strict=True):
        assert_equal(result, {"x": x[rows], "y": y[rows]})


@pytest.mark.parametrize("cuts", [[4, 4, 4], [5, 5, 2], [2, 5, 1, 4]], ids=str)
def test_a_loader_trains_as_a_loop_by_hand(cuts):
    """On each batch, in its order, an epoch after the other; NumPy does the same updates."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 2)).astype(np.float32), rng.normal(size=12).astype(np.float32)
    batches = cut((x, y), cuts)

    class Dot(eqx.Module):
        w: jax.Array

        def __call__(self, x):
            return jnp.dot(self.w, x)

    trainer = vernal.Trainer(optax.sgd(0.1), losses.MeanSquaredError())
    state, history = trainer.fit(Dot(jnp.zeros(2)), Loader(batches), epochs=3)
    w, values = np.zeros(2), []
    for a, b in batches * 3:
        values.append(np.mean((a @ w - b) ** 2))
        w = w - 0.1 * 2 * (a @ w - b) @ a / len(b)
    np.testing.assert_allclose(history.steps["loss"], values, rtol=1e-4)
    np.testing.assert_allclose(state.model.w, w, rtol=1e-4)
    assert int(state.epoch) == 3


def test_a_loader_is_read_anew_each_epoch():
    """So one that shuffles by itself, or augments, is asked each time."""

    class Counting(Loader):
        def __iter__(self):
            self.times_read += 1
            return iter([(np.full((2, 1), float(self.times_read), np.float32),) for _ in range(3)])

    loader = Counting([])
    loss = lambda model, batch, key: jnp.mean(batch[0]) + 0 * jnp.sum(model)
    _, history = vernal.Trainer(optax.sgd(0.1), loss).fit(jnp.zeros(1), loader, epochs=4)
    values = history.steps["loss"].reshape(4, 3)
    np.testing.assert_array_equal(values[:, 0], values[:, 2])
    np.testing.assert_array_equal(np.diff(values[:, 0]), np.ones(3))


@pytest.mark.parametrize(
    ("make", "called"),
    [
        (lambda batches: (batch for batch in batches), "generator"),
        (lambda batches: iter(batches), "list_iterator"),
        (lambda batches: map(lambda batch: batch, batches), "map"),
        (lambda batches: zip(*[iter(batches)] * 2, strict=False), "zip"),
    ],
)
def test_what_can_be_read_only_once_is_an_error_that_says_how(make, called):
    batches = make(cut(examples(8), [4, 4]))
    with pytest.raises(vernal.DataError) as caught:
        as_source(batches, None)
    message = str(caught.value)
    assert f"a {called}, which can be read only once" in message
    assert "a list" in message
    assert "__iter__" in message
    assert len(list(batches)) > 0  # nothing was taken from it


class Spent(Loader):
    """Gives its batches so many times, and then no more."""

    def __init__(self, batches, times):
        super().__init__(batches)
        self.times = times

    def __iter__(self):
        self.times_read += 1
        return iter(self.batches if self.times_read <= self.times else [])


def test_a_loader_that_is_empty_when_read_again_is_an_error():
    batches = cut((np.ones((4, 2), np.float32), np.ones(4, np.float32)), [2, 2])
    model = eqx.nn.Linear(2, "scalar", key=KEY)
    with pytest.raises(vernal.DataError, match="no batches when it was read again"):
        trainer = vernal.Trainer(optax.sgd(0.1), losses.MeanSquaredError())
        trainer.fit(model, Spent(batches, 2), epochs=5)


@pytest.mark.parametrize("place", [(0, 0), (0, 1), (1, 5)])
def test_so_it_is_wherever_a_run_starts(place):
    source = as_source(Spent(cut(examples(4), [2, 2]), 1), None)
    with pytest.raises(vernal.DataError, match="no batches when it was read again"):
        for _ in source.stacks(*place):
            pass


@pytest.mark.parametrize("batches", [[], Loader([]), SizedLoader([])], ids=LOADERS)
def test_a_loader_without_batches_is_an_error(batches):
    with pytest.raises(vernal.DataError, match="without a single batch"):
        as_source(batches, None)


def test_a_batch_size_is_not_for_a_loader():
    with pytest.raises(vernal.ArgumentError, match="batch_size=2 was given with a loader"):
        as_source(Loader(cut(examples(8), [4, 4])), 2)


def test_of_a_large_file_few_batches_are_held_at_once(tmp_path, monkeypatch):
    """However fast they go by: a run through a file needs no more memory than through a part."""
    live, most = set(), []
    made = _data.Stack.__init__

    def counted(stack, *args, **kwargs):
        made(stack, *args, **kwargs)
        live.add(id(stack))
        weakref.finalize(stack, live.discard, id(stack))
        most.append(len(live))

    x = np.random.default_rng(0).normal(size=(10_000, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    size = 100 * 8 * 4  # bytes of a hundred examples
    monkeypatch.setattr("vernal._data.superbatch.STACK_BYTES", 2 * size)
    monkeypatch.setattr("vernal._data.superbatch.ROOMIER", 1)
    monkeypatch.setattr(_data, "_SHARED_BYTES", size)
    monkeypatch.setattr("vernal._training.pace.HELD_BYTES", 3 * size)
    monkeypatch.setattr(_data.Stack, "__init__", counted)
    trainer = vernal.Trainer(optax.sgd(1e-3), lambda model, x, key: jnp.mean(jax.vmap(model)(x)))
    model = eqx.nn.Linear(8, 1, key=jax.random.key(0))
    state, history = trainer.fit(model, x, epochs=4, batch_size=100)
    assert len(most) > 100
    assert max(most) <= 10
    monkeypatch.undo()
    whole, _ = trainer.fit(model, np.array(x), epochs=4, batch_size=100)
    assert len(history.steps["loss"]) == 400
    np.testing.assert_array_equal(state.model.weight, whole.model.weight)


def test_batches_from_a_function_that_yields_them():
    x, y = examples(50)
    parts = [(x[i : i + 20], y[i : i + 20]) for i in range(0, 50, 20)]

    def batches():
        yield from parts

    trainer = vernal.Trainer(optax.sgd(1e-3), losses.MeanSquaredError())
    model = eqx.nn.Linear(2, y.shape[1], key=jax.random.key(0))
    expected, of_list = trainer.fit(model, parts, epochs=3)
    for data in (batches, lambda: iter(parts), functools.partial(iter, parts)):
        state, history = trainer.fit(model, data, epochs=3, validation_data=batches)
        assert len(history.steps["loss"]) == 9
        np.testing.assert_array_equal(history.steps["loss"], of_list.steps["loss"])
        np.testing.assert_array_equal(state.model.weight, expected.model.weight)
    with pytest.raises(vernal.DataError, match=r"data is a function that returns None"):
        trainer.fit(model, lambda: None, epochs=1)


def test_a_batch_that_is_a_list_of_arrays_is_a_tuple():
    """As the loaders of PyTorch give them."""
    x, y = examples(40)
    tuples = [(x[i : i + 10], y[i : i + 10]) for i in range(0, 40, 10)]
    trainer = vernal.Trainer(optax.sgd(1e-3), losses.MeanSquaredError())
    model = eqx.nn.Linear(2, y.shape[1], key=jax.random.key(0))
    _, expected = trainer.fit(model, tuples, epochs=2)
    _, history = trainer.fit(model, list(map(list, tuples)), epochs=2)
    np.testing.assert_array_equal(history.steps["loss"], expected.steps["loss"])


def breaking():
    """Two batches, and then an error."""
    x, y = examples(40)
    yield x[:10], y[:10]
    yield x[10:20], y[10:20]
    raise OSError("the disk is gone")


@pytest.mark.parametrize("seconds", [0.1, 0.0], ids=["one stack", "a stack a batch"])
def test_a_loaders_own_exception_comes_through_with_what_was_trained(seconds, monkeypatch):
    monkeypatch.setattr("vernal._data.loader_source._SECONDS", seconds)
    trainer = vernal.Trainer(optax.adam(1e-3), losses.MeanSquaredError())
    start = trainer.init(eqx.nn.Linear(2, 1, key=jax.random.key(0)))
    before = np.array(start.model.weight)
    with pytest.raises(OSError, match="the disk is gone") as caught:
        trainer.fit(start, breaking, epochs=3)
    error: Any = caught.value
    assert error.__notes__ == [
        "Training made 2 updates before: the error's `state` is the one after them, its "
        "`history` the record."
    ]
    state, history = trainer.fit(start, list(itertools.islice(breaking(), 2)), epochs=1)
    np.testing.assert_array_equal(error.state.model.weight, state.model.weight)
    assert (int(error.state.epoch), int(error.state.batch)) == (0, 2)
    np.testing.assert_array_equal(error.history.steps["loss"], history.steps["loss"])
    np.testing.assert_array_equal(start.model.weight, before)
    state, _ = trainer.fit(error.state, examples(40), epochs=1, batch_size=10)
    assert int(state.step) == 4  # the two that were left of the epoch


def test_so_it_does_in_a_loop_of_ones_own():
    trainer = vernal.Trainer(optax.adam(1e-3), losses.MeanSquaredError())
    with pytest.raises(OSError, match="the disk is gone") as caught:
        next(trainer.epochs(eqx.nn.Linear(2, 1, key=jax.random.key(0)), breaking))
    error: Any = caught.value
    assert int(error.state.step) == len(error.history.steps["loss"]) == 2


def test_a_slow_loader_is_trained_on_as_it_gives(monkeypatch, compiled):
    """A call does not wait for many batches, and what compiles does not depend on how many."""
    batches = cut(examples(60), [10] * 6)
    trainer = vernal.Trainer(optax.adam(1e-3), losses.MeanSquaredError())
    model = eqx.nn.Linear(2, 1, key=jax.random.key(0))
    expected, _ = trainer.fit(model, batches, epochs=2)
    compiled.clear()
    clock = SimpleNamespace(perf_counter=lambda seconds=itertools.count(0, 0.04): next(seconds))
    monkeypatch.setattr("vernal._data.loader_source.time", clock)
    source = as_source(batches, None)
    stacks = take(source.stacks(0, 0), 3)
    assert [stack.end - stack.first for stack in stacks] == [3, 3, 3]
    assert len({stack.capacity for stack in stacks}) == 1
    monkeypatch.undo()
    monkeypatch.setattr("vernal._data.loader_source._SECONDS", 0.0)
    state, _ = trainer.fit(model, SizedLoader(batches), epochs=2)
    np.testing.assert_array_equal(state.model.weight, expected.model.weight)
    assert compiled == []


def test_a_loader_that_has_a_length_but_does_not_know_it():
    """As PyTorch's of an iterable data set."""

    class Unknown(Loader):
        def __len__(self):
            raise TypeError("object of type 'IterableDataset' has no len()")

    batches = cut(examples(12), [4, 4, 4])
    trainer = vernal.Trainer(optax.sgd(1e-4), losses.MeanSquaredError())
    model = eqx.nn.Linear(2, 1, key=KEY)
    _, history = trainer.fit(model, Unknown(batches), epochs=2)
    _, expected = trainer.fit(model, batches, epochs=2)
    np.testing.assert_array_equal(history.steps["loss"], expected.steps["loss"])


def test_the_first_look_at_a_loader_is_the_beginning_of_the_first_epoch():
    loader = Loader(cut(examples(12), [4, 4, 4]))
    trainer = vernal.Trainer(optax.sgd(1e-4), losses.MeanSquaredError())
    trainer.fit(eqx.nn.Linear(2, 1, key=KEY), loader, epochs=2)
    assert loader.times_read == 2


def test_while_the_device_trains_the_next_batches_are_read(monkeypatch):
    """When the loader is asked for a stack, the call on the one before is queued already."""
    from vernal import _compiled, _loop

    events, ran = [], _compiled.program_run
    monkeypatch.setattr("vernal._data.loader_source._MOST_BATCHES", 2)

    def run(*args):
        events.append("call")
        return ran(*args)

    monkeypatch.setattr(_compiled, "program_run", run)
    fetched = _loop.Records.fetched
    monkeypatch.setattr(
        _loop.Records, "fetched", lambda records: (events.append("wait"), fetched(records))[1]
    )
    monkeypatch.setattr("vernal._training.pace.FIRST_WORK", 0)  # a chunk is one update at first
    parts = cut(examples(40), [2] * 20)

    def batches():
        for part in parts:
            events.append("read")
            yield part

    trainer = vernal.Trainer(optax.sgd(1e-4), losses.MeanSquaredError())
    trainer.fit(eqx.nn.Linear(2, 1, key=KEY), batches, epochs=1)
    queued, reads = 0, 0
    for event in events[events.index("call") :]:
        queued += {"call": 1, "wait": -1, "read": 0}[event]
        if event == "read":
            reads += 1
            assert queued >= 1
    assert reads > 10


# ----- loaders with a state of their own


class Stateful:
    """Shuffles by itself, in an order that goes on from epoch to epoch; counts what is read."""

    def __init__(self, n=40, size=4):
        self.data, self.size = examples(n), size
        self.rng = np.random.default_rng(3)
        self.read = 0

    def draw(self):
        return self.rng.permutation(len(self.data[0]))

    def batches(self, order, start):
        for i in range(start, len(order), self.size):
            self.read += 1
            rows = order[i : i + self.size]
            yield tuple(leaf[rows] / 100 for leaf in self.data)


class OfTheLoader(Stateful):
    """Tells its state as torchdata's loaders do: itself, and for the pass under way."""

    pass_ = None  # the generator's state before the pass; examples read in it

    def __iter__(self):
        before, start = self.pass_ or (self.rng.bit_generator.state, 0)
        self.rng.bit_generator.state = before
        order = self.draw()
        for batch in self.batches(order, start):
            start += self.size
            self.pass_ = before, start
            yield batch
        self.pass_ = None

    def state_dict(self):
        return {"pass": self.pass_, "generator": self.rng.bit_generator.state}

    def load_state_dict(self, state):
        self.pass_ = state["pass"]
        self.rng.bit_generator.state = state["generator"]


class EndingAtTheEnd(OfTheLoader):
    """Given back what it told at the end of a pass, its next pass is over at once."""

    over = ended = False

    def __iter__(self):
        if not self.over:
            self.ended = False
            yield from super().__iter__()
            self.ended = True
        self.over = False

    def state_dict(self):
        return super().state_dict() | {"ended": self.ended}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.over = state["ended"]


class OfTheIterator(Stateful):
    """Tells its state as grain's do: the iterator does, and each pass has the same order."""

    def __iter__(self):
        return Counted(self)


class Counted:
    def __init__(self, loader):
        self.loader, self.next = loader, 0

    def __iter__(self):
        return self

    def __next__(self):
        order = np.random.default_rng(5).permutation(len(self.loader.data[0]))
        batch = next(self.loader.batches(order, self.next), None)
        if batch is None:
            raise StopIteration
        self.next += self.loader.size
        return batch

    def get_state(self):
        return {"next": self.next}

    def set_state(self, state):
        self.next = state["next"]


def stopped_after(trainer, start, loader, updates):
    """A run that a loader's error ends after some updates: what the error keeps."""
    made = 0

    def until(batches):
        nonlocal made
        for batch in batches:
            if made == updates:
                raise ConnectionError("gone")
            made += 1
            yield batch

    loader.batches, batches = lambda *a: until(batches(*a)), loader.batches
    with pytest.raises(ConnectionError, match="gone") as caught:
        trainer.fit(start, loader, epochs=5)
    error: Any = caught.value
    assert "`state`" in error.__notes__[0]
    return error.state, error.history


@pytest.mark.parametrize("make", [OfTheLoader, EndingAtTheEnd, OfTheIterator])
@pytest.mark.parametrize("rooms", [256, 3], ids=["an epoch at once", "three batches at once"])
def test_a_loader_with_a_state_goes_on_where_it_was(make, rooms, monkeypatch):
    monkeypatch.setattr("vernal._data.loader_source._MOST_BATCHES", rooms)
    trainer = vernal.Trainer(optax.adam(1e-2), losses.MeanSquaredError())
    start = trainer.init(eqx.nn.Linear(2, 1, key=KEY))
    expected, record = trainer.fit(start, make(), epochs=3)
    for updates in (1, 3, 9, 10, 11, 25):  # an epoch has ten
        state, before = stopped_after(trainer, start, make(), updates)
        assert (int(state.step), int(state.epoch)) == (updates, updates // 10)
        loader = make()
        resumed, after = trainer.fit(state, loader, epochs=3 - updates // 10)
        np.testing.assert_array_equal(resumed.model.weight, expected.model.weight)
        joined = np.concatenate([before.steps["loss"], after.steps["loss"]])
        np.testing.assert_array_equal(joined, record.steps["loss"])
        # Of what was trained on already, no more is read than what lies behind the latest mark;
        # and one batch to see its shape.
        assert loader.read <= 30 - updates + min(rooms, 10) + 1


# ----- arrays in files


class Noted:
    """An array as in a file, that notes which rows are read, and is not to be read at once."""

    def __init__(self, array, chunk=None):
        self.array, self.shape, self.ndim, self.dtype = array, array.shape, array.ndim, array.dtype
        self.chunks = chunk and (chunk, *array.shape[1:])
        self.reads = []

    def __array__(self, dtype=None, copy=None):
        raise AssertionError("all of it is read")

    def __getitem__(self, rows):
        assert isinstance(rows, slice) and rows.step is None
        self.reads.append(range(len(self.array))[rows])
        return self.array[rows]


def as_mapped(array, path):
    np.save(path / "mapped.npy", array)
    return np.load(path / "mapped.npy", mmap_mode="r")


def as_h5(array, path, **options):
    with h5py.File(path / "file.h5", "w") as file:
        file.create_dataset("array", data=array, **options)
    return h5py.File(path / "file.h5")["array"]


def as_compressed_h5(array, path):
    _, *example = array.shape
    chunks = {"chunks": (7, *(1 for _ in example)), "maxshape": (None, *example)}
    return as_h5(array, path, compression="gzip", **chunks)


FILES = {
    "mapped": as_mapped,
    "h5py": as_h5,
    "h5py, compressed": as_compressed_h5,
    "like them": lambda array, path: Noted(array),
}
of_files = pytest.mark.parametrize("made", FILES.values(), ids=FILES)


@pytest.fixture
def in_parts(monkeypatch):
    """Small files are taken in parts, as large ones are."""
    monkeypatch.setattr("vernal._data.superbatch.STACK_BYTES", 400)
    monkeypatch.setattr(_data, "_SHARED_BYTES", 400)
    monkeypatch.setattr("vernal._data.files._READ_BYTES", 160)
    monkeypatch.setattr("vernal._data.files._GAP_BYTES", 32)


DTYPES = ["f8", "f4", "f2", "i8", "u1", "?"]


@of_files
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shuffle", [True, False], ids=["shuffled", "in order"])
@pytest.mark.usefixtures("in_parts")
def test_batches_of_a_file_are_those_of_memory(made, dtype, shuffle, tmp_path):
    x = np.random.default_rng(0).normal(size=(50, 4)) * 3
    x, y = x.astype(dtype), examples(50)[1]
    data = made(x, tmp_path), y
    for size in (7, 1, 25, 50, None):
        order = {"shuffle": shuffle, "key": KEY}
        batches = list(vernal.batches(data, size, **order))
        for batch, expected in zip(batches, vernal.batches((x, y), size, **order), strict=True):
            assert_equal(batch, expected)
            assert batch[0].dtype == expected[0].dtype
        stacks = take(unrolled(ordered(data, size, shuffle=shuffle).stacks(0, 0)), 120)
        wanted = take(unrolled(ordered((x, y), size, shuffle=shuffle).stacks(0, 0)), 120)
        for batch, expected in zip(stacks, wanted, strict=True):
            assert_equal(batch, expected)
            assert batch[0].dtype == expected[0].dtype


ADAM = vernal.Trainer(
    optax.inject_hyperparams(optax.adam)(learning_rate=1e-2), losses.MeanSquaredError()
)


def results(data, size):
    """All that can be done with data: what comes of it, bit for bit."""
    trainer, model = ADAM, eqx.nn.Linear(4, 1, key=jax.random.key(0))
    held_out = {"batch_size": size, "validation_data": data}
    for shuffle in (True, False):
        state, history = trainer.fit(model, data, epochs=3, shuffle=shuffle, **held_out)
        yield state.model.weight, dict(history.steps), dict(history.epochs)
    epochs = take(trainer.epochs(model, data, **held_out), 2)
    yield [(epoch.state.model.weight, epoch.metrics) for epoch in epochs]
    yield trainer.evaluate(model, data, batch_size=size)
    yield trainer.predict(model, data[0], batch_size=size)
    found = vernal.find_learning_rate(trainer, model, data, batch_size=size, updates=10)
    yield found.losses, found.smoothed
    yield trainer.step(trainer.init(model), jax.tree.map(lambda leaf: leaf[:5], data))[1]


@of_files
@pytest.mark.parametrize("size", [3, None], ids=["batches", "full batch"])
@pytest.mark.parametrize("which", ["x", "y", "both"])
@pytest.mark.usefixtures("in_parts")
def test_all_results_from_a_file_are_those_from_memory(made, size, which, tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 4)), rng.normal(size=(50, 1)).astype(np.float32)
    (tmp_path / "x").mkdir()
    data = (
        x if which == "y" else made(x, tmp_path / "x"),
        y if which == "x" else made(y, tmp_path),
    )
    for result, expected in zip(results(data, size), results((x, y), size), strict=True):
        assert_equal(result, expected)


@pytest.mark.parametrize("shuffle", [True, False], ids=["shuffled", "in order"])
@pytest.mark.usefixtures("in_parts")
def test_of_a_file_little_is_read_at_once(shuffle):
    x, labels = Noted(np.ones((200, 5))), Noted(np.zeros(200, np.int64))
    trainer = vernal.Trainer(optax.sgd(1e-2), losses.CrossEntropy())
    model = eqx.nn.Linear(5, 3, key=jax.random.key(0))
    held_out = Noted(np.ones((100, 5))), np.zeros(100, int)
    trainer.fit(
        *(model, (x, labels)), epochs=2, batch_size=4, shuffle=shuffle, validation_data=held_out
    )
    trainer.predict(model, x, batch_size=4)
    for array, most in ((x, 4), (labels, 20), (held_out[0], 4)):  # of 40 bytes, or of 8, a row
        assert len(set().union(*array.reads)) == len(array.array)
        assert max(map(len, array.reads)) == most


def test_of_a_large_file_little_is_held(tmp_path, monkeypatch):
    """Nor is it converted as a whole."""
    monkeypatch.setattr("vernal._data.superbatch.STACK_BYTES", 2**17)
    monkeypatch.setattr(_data, "_SHARED_BYTES", 2**17)
    monkeypatch.setattr("vernal._training.pace.HELD_BYTES", 2**18)
    monkeypatch.setattr("vernal._data.files._READ_BYTES", 2**17)
    x = np.random.default_rng(0).normal(size=(2**16, 16))  # 8 MiB
    sum_ = vernal.Trainer(optax.sgd(1e-3), lambda model, x, key: jnp.mean(jax.vmap(model)(x)))
    model = eqx.nn.Linear(16, 1, key=jax.random.key(0))
    for array in (as_mapped(x, tmp_path), as_h5(x, tmp_path), Noted(x)):
        for run in (
            functools.partial(sum_.evaluate, model, array, batch_size=128),
            functools.partial(sum_.fit, model, array, epochs=1, batch_size=128),
        ):
            run()  # compiling takes memory, too
            tracemalloc.start()
            run()
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert peak < 3 * 2**20


def test_a_files_chunks_are_read_once_each(monkeypatch):
    """One may have to be decompressed as a whole, however little of it is wanted."""
    monkeypatch.setattr("vernal._data.files._READ_BYTES", 100)
    x = Noted(np.arange(120, dtype=np.float32).reshape(60, 2), chunk=6)
    file = FileArray(x)
    for read in (lambda: list(file.blocks()), lambda: file[np.random.permutation(60)]):
        x.reads.clear()
        read()
        assert [(read.start, read.stop) for read in x.reads] == [
            (start, start + 12) for start in range(0, 60, 12)
        ]


@pytest.mark.parametrize("chunk, near", [(6, 6), (None, 4)])
def test_of_a_file_what_lies_between_is_left_out(chunk, near, monkeypatch):
    """Unless it is so little, or of the same chunk, that another read would take longer."""
    monkeypatch.setattr("vernal._data.files._GAP_BYTES", 4 * 8)
    x = Noted(np.arange(120, dtype=np.float32).reshape(60, 2), chunk)
    rows = np.array([59, 7, 20 + near, 2, 20, 7, 21 + 2 * near])
    np.testing.assert_array_equal(FileArray(x)[rows], x.array[rows])
    first = [(2, 8)] if chunk else [(2, 3), (7, 8)]
    reads = [*first, (20, 21 + near), (21 + 2 * near, 22 + 2 * near), (59, 60)]
    assert [(read.start, read.stop) for read in x.reads[1:]] == reads


def changed(array, row, value):
    array = array.copy()
    array[row] = value
    return array


def wrong(x, labels):
    """What is wrong with data: a loss, a model's outputs, x, y."""
    mse, entropy = losses.MeanSquaredError(), losses.CrossEntropy()
    y, far = labels[:, None].astype(float), 44  # not in the part of y that is read first
    yield mse, 1, changed(changed(x, (33, 2), np.inf), (40, 0), np.nan), y
    yield mse, 1, changed(x, (33, 2), 1e300), y
    yield mse, 1, x[:, :3], y
    yield mse, 1, x, y[:40]
    yield mse, 1, x[:0], y[:0]
    yield mse, 1, x.astype("S3"), y
    yield mse, 1, x[:0].astype("S3"), y[:0]
    yield mse, 1, x, y[:, 0]
    yield entropy, 3, x, labels + 1
    yield entropy, 3, x, changed(labels + 1, far, 0)
    yield entropy, 3, x, changed(labels, far, 7)
    yield entropy, 3, x, np.where(labels, 1, -1)
    yield entropy, 3, x, changed(np.where(labels, 1, -1), far, 0)
    yield entropy, 3, x, labels.astype(float)
    yield entropy, 3, x, changed(labels.astype(float), far, 0.5)
    yield entropy, 3, x, np.eye(3)[labels]
    yield entropy, 3, x, changed(np.eye(3)[labels], far, 0)
    yield entropy, 3, x, labels[:, None] > 0
    yield entropy, "scalar", x, labels % 2
    yield entropy, "scalar", x, changed(labels % 2, far, 2)
    yield (lambda model, batch, key: jnp.mean(model(batch[0]) - batch[1])), 1, x, y


WRONG = list(wrong(np.random.default_rng(0).normal(size=(50, 4)), np.arange(50) % 3))


@of_files
@pytest.mark.parametrize("case", WRONG, ids=range(len(WRONG)))
@pytest.mark.usefixtures("in_parts")
def test_what_is_wrong_with_a_file_is_said_as_of_memory(made, case, tmp_path):
    loss, outputs, *data = case
    trainer = vernal.Trainer(optax.sgd(0.1), loss)
    model = eqx.nn.Linear(4, outputs, key=jax.random.key(0))

    def said(x, y):
        with pytest.raises(vernal.VernalError) as caught:
            trainer.fit(model, (x, y), epochs=1, batch_size=5)
        # Lines that mend an array are for one in memory.
        return re.sub(r"np\.asarray\(([xy])\)", r"\1", str(caught.value))

    expected = said(*data)
    (tmp_path / "x").mkdir()
    files = made(data[0], tmp_path / "x"), made(data[1], tmp_path)
    assert said(*files) == expected


def test_a_file_that_was_closed_is_an_error(tmp_path):
    x = as_h5(np.ones((5, 4)), tmp_path)
    x.file.close()
    trainer = vernal.Trainer(optax.sgd(0.1), losses.MeanSquaredError())
    with pytest.raises(vernal.DataError, match="x cannot be made an array"):
        trainer.fit(eqx.nn.Linear(4, 1, key=KEY), (x, np.ones((5, 1))), epochs=1)


@of_files
def test_a_file_is_not_put_on_a_device_as_a_whole(made, tmp_path, monkeypatch):
    x, y = examples(40)
    file, memory = (made(x, tmp_path), y), (x, jnp.asarray(y))
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert gathers_on_host(file) and gathers_on_host(memory)
    expected = take(unrolled(ordered(memory, 8, shuffle=True).stacks(0, 0)), 10)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    from_file, from_memory = ordered(file, 8, shuffle=True), ordered(memory, 8, shuffle=True)
    assert gathers_on_host(from_file.example) and not gathers_on_host(from_memory.example)
    for source in (from_file, from_memory):
        for batch, wanted in zip(take(unrolled(source.stacks(0, 0)), 10), expected, strict=True):
            assert_equal(batch, wanted)
    assert "_on_device" in vars(from_memory)
    assert "_on_device" not in vars(from_file)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_in_memory_is_in_no_file(kind):
    assert not in_files(as_source(KINDS[kind](*examples(12)), 5).example)
