"""Loaders: ready batches, in an order of their own, with a state of their own or without."""

import functools
import itertools
import re
import threading
import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from helpers import (
    KEY,
    TELLER,
    as_float64,
    assert_close,
    cut,
    examples,
    fingerprint,
    loop_by_hand,
    seen,
    tells,
)

import vernal
from vernal import losses, nn
from vernal._limits import limits


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


LOADERS = {"list": list, "loader": Loader, "sized loader": SizedLoader}


@pytest.mark.parametrize("changes", [{}, {"superbatch_bytes": 100}], ids=["whole", "in parts"])
@pytest.mark.parametrize("cuts", [[4, 4, 4], [1], [2, 5, 5, 1, 4, 4, 4, 2], [3, 2, 3, 2]], ids=str)
def test_fit_trains_on_a_loaders_batches_in_its_order(cuts, changes):
    batches = cut(examples(sum(cuts)), cuts)
    expected = [fingerprint(batch) for batch in batches] * 3
    for start in range(0, 2 * len(cuts), 3):
        for at in {(0, start), divmod(start, len(cuts))}:
            with limits(**changes):
                result = seen(batches, at=at, epochs=3 - start // len(cuts))
            assert result == expected[start:]


@pytest.mark.parametrize("kind", LOADERS)
def test_any_iterable_is_a_loader(kind):
    batches = cut(examples(10), [4, 4, 2])
    expected = [fingerprint(batch) for batch in batches] * 2
    assert seen(LOADERS[kind](batches), epochs=2) == expected


def test_a_loaders_batches_may_be_trees_and_lists_and_jax_arrays():
    x, y = examples(8)
    batches = [
        {"x": x[:4].tolist(), "y": jnp.asarray(y[:4])},
        {"x": pd.DataFrame(x[4:]), "y": y[4:]},
    ]
    told = lambda model, batch, key: tells(model, (batch["x"], batch["y"]), key)
    trainer = vernal.Trainer(optax.sgd(0.1), told)
    _, history = trainer.fit(jnp.zeros(1), Loader(batches), epochs=1)
    expected = [fingerprint(batch) for batch in cut((x, y), [4, 4])]
    assert history.steps["seen"].tolist() == expected


@pytest.mark.parametrize("cuts", [[4, 4, 4], [2, 5, 1, 4]], ids=str)
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
        TELLER.fit(jnp.zeros(1), batches, epochs=1)
    message = str(caught.value)
    assert called in message
    assert "list" in message
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
    with pytest.raises(vernal.DataError, match=r"a Spent .* when it was read again"):
        trainer = vernal.Trainer(optax.sgd(0.1), losses.MeanSquaredError())
        trainer.fit(model, Spent(batches, 2), epochs=5)


@pytest.mark.parametrize("at", [(0, 0), (0, 1), (1, 5)])
def test_so_it_is_wherever_a_run_starts(at):
    with pytest.raises(vernal.DataError, match=r"a Spent .* when it was read again"):
        seen(Spent(cut(examples(4), [2, 2]), 1), at=at, epochs=3)


@pytest.mark.parametrize("batches", [[], Loader([]), SizedLoader([])], ids=LOADERS)
def test_a_loader_without_batches_is_an_error(batches):
    with pytest.raises(vernal.DataError, match="without a single batch"):
        TELLER.fit(jnp.zeros(1), batches, epochs=1)


def test_a_batch_size_is_not_for_a_loader():
    with pytest.raises(vernal.ArgumentError, match="batch_size=2 was given with a loader"):
        seen(Loader(cut(examples(8), [4, 4])), epochs=1, batch_size=2)


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


@pytest.mark.parametrize("batches", [256, 1], ids=["one superbatch", "one a batch"])
def test_a_loaders_own_exception_comes_through_with_what_was_trained(batches):
    trainer = vernal.Trainer(optax.adam(1e-3), losses.MeanSquaredError())
    start = trainer.init(eqx.nn.Linear(2, 1, key=jax.random.key(0)))
    before = np.array(start.model.weight)
    gone = pytest.raises(OSError, match="the disk is gone")
    with limits(loader_batches=batches), gone as caught:
        trainer.fit(start, breaking, epochs=3)
    error: Any = caught.value
    [note] = error.__notes__
    assert "2 " in note and "`state`" in note and "`history`" in note
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


def test_a_slow_loader_is_trained_on_as_it_gives(compiled):
    """What compiles does not depend on how many batches it has given."""
    batches = cut(examples(60), [10] * 6)
    trainer = vernal.Trainer(optax.adam(1e-3), losses.MeanSquaredError())
    model = eqx.nn.Linear(2, 1, key=jax.random.key(0))
    expected, _ = trainer.fit(model, batches, epochs=2)
    compiled.clear()
    with limits(loader_seconds=0.0):
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


def test_while_the_device_trains_the_next_batches_are_read():
    """A loader that waits for steps on batches that it gave before is not kept waiting."""
    steps, done = itertools.count(1), threading.Event()
    parts = cut(examples(40), [2] * 20)

    def count(_):
        if next(steps) == 6:
            done.set()

    def loss(model, batch, key):
        jax.debug.callback(count, batch[0][0, 0])
        return jnp.mean(jax.vmap(model)(batch[0]) ** 2)

    def batches():
        for number, part in enumerate(parts):
            if number == 12:
                assert done.wait(120)
            yield part

    trainer = vernal.Trainer(optax.sgd(1e-4), loss)
    with limits(loader_batches=2):
        _, history = trainer.fit(eqx.nn.Linear(2, 1, key=KEY), batches, epochs=1)
    assert len(history.steps["loss"]) == 20


@pytest.mark.parametrize("number", [0, 2])
def test_a_batch_that_is_none_is_an_error_that_names_it(number):
    whole = cut(examples(12), [4, 4, 4])
    batches = [*whole[:number], None, *whole[number:]]
    for data in (batches, Loader(batches), lambda: iter(batches)):
        with pytest.raises(vernal.DataError) as caught:
            TELLER.fit(jnp.zeros(1), data, epochs=1)
        message = caught.value.args[0]
        assert message.startswith(f"batch {number} of data, counted from 0, is None;")
        [line] = re.findall(r"Leave it out: (.+)\.$", message)
        assert seen(eval(line, {"data": data}), epochs=2) == seen(whole, epochs=2)


def test_a_loader_may_fill_the_same_memory_again():
    batches = cut(examples(12), [4, 4, 4])
    memory = tuple(np.empty_like(part) for part in batches[0])

    def refilled():
        for batch in batches:
            for part, filled in zip(memory, batch, strict=True):
                part[...] = filled
            yield memory

    assert seen(refilled, epochs=2) == seen(batches, epochs=2)


# ----- batches for a loss of one's own, whose parts have no examples in common


def of_graph(model, graph, key):
    """The mean over the edges of a graph."""
    senders, receivers = graph["edges"].T
    values = jax.vmap(model)(graph["nodes"])
    return graph["scale"] * jnp.mean((values[senders] - values[receivers]) ** 2)


def graphs(sizes):
    rng = np.random.default_rng(1)
    for nodes, edges in sizes:
        x = rng.normal(size=(nodes, 3)).astype(np.float32)
        yield {"nodes": x, "edges": rng.integers(0, nodes, (edges, 2)), "scale": 0.5}


def test_parts_of_several_lengths_train_as_in_a_loop_by_hand():
    with jax.enable_x64(True):
        batches = as_float64(list(graphs([(5, 8), (4, 2), (5, 8)])))
        model = as_float64(eqx.nn.Linear(3, 1, key=jax.random.key(0)))
        optimizer = optax.sgd(0.1)
        loss = lambda model, batch, key, state: (of_graph(model, batch, key), {}, state)
        expected = loop_by_hand(loss, optimizer, model, batches * 2)
        trainer = vernal.Trainer(optimizer, of_graph)
        state, history = trainer.fit(model, batches, epochs=2)
        assert_close(state.model, expected.model)
        assert_close(history.steps["loss"], expected.steps["loss"])
        # Each batch counts once: these have no number of examples.
        means = expected.steps["loss"].reshape(2, -1).mean(axis=1)
        assert_close(history.epochs["loss"], means)
        measured = [float(of_graph(state.model, batch, None)) for batch in batches]
        assert_close(np.float64(trainer.evaluate(state, batches)["loss"]), np.mean(measured))
        _, info = trainer.step(trainer.init(model), batches[0])
        assert_close(info["loss"], expected.steps["loss"][0])


def test_parts_of_one_length_count_by_it():
    batches = cut(examples(5), [4, 1])
    mean = lambda model, batch, key: jnp.mean(batch[0]) + 0 * jnp.sum(model)
    trainer = vernal.Trainer(optax.sgd(0.1), mean)
    loss = trainer.evaluate(jnp.zeros(1), batches)["loss"]
    assert loss == pytest.approx(np.mean(examples(5)[0]))


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
@pytest.mark.parametrize("at_once", [256, 3], ids=["an epoch at once", "three batches at once"])
def test_a_loader_with_a_state_goes_on_where_it_was(make, at_once):
    with limits(loader_batches=at_once):
        goes_on_where_it_was(make, at_once)


STATEFUL = vernal.Trainer(optax.adam(1e-2), losses.MeanSquaredError())


def goes_on_where_it_was(make, at_once):
    """Stop runs after some steps, and resume them with a new loader."""
    trainer = STATEFUL
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
        assert loader.read <= 30 - updates + min(at_once, 10) + 1


# ----- loaders without a state whose passes differ


class Broken(Exception):
    pass


def shuffling(data=None):
    """Batches from a function that shuffles by a generator of its own, which nobody can save."""
    x, y = data or examples(40)
    rng = np.random.default_rng(7)

    def batches():
        for rows in rng.permutation(len(x)).reshape(4, 10):
            yield x[rows] / 100, y[rows] / 100

    return batches


def in_order():
    x, y = examples(40)
    return [(x[i : i + 10] / 100, y[i : i + 10] / 100) for i in range(0, 40, 10)]


def resumed(tmp_path, loaders, *, breaks_in, **how):
    """Break a run off, go on with another loader; return the warnings.

    Args:
        tmp_path: The directory of the checkpoints.
        loaders: Makes the loader of each run: data, and validation data.
        breaks_in: Number of the epoch at whose end a callback fails.
        **how: Arguments of `Checkpoints`.
    """
    trainer = vernal.Trainer(optax.sgd(0.01), losses.MeanSquaredError())
    model = nn.Linear(2, 1, key=jax.random.key(0))

    def train(break_in):
        def stop(epoch):
            if epoch.index == break_in:
                raise Broken

        data, held_out = loaders()
        saving = vernal.Checkpoints(tmp_path, every_seconds=None, **how)
        more = {"validation_data": held_out, "callbacks": [stop], "progress": False}
        return trainer.fit(model, data, epochs=8, checkpoints=saving, **more)

    with pytest.raises(Broken):
        train(breaks_in)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        train(None)
    return told


@pytest.mark.parametrize("breaks_in", [1, 4])  # the second pass is not begun in the checkpoint
def test_a_resumed_run_says_that_a_loader_began_anew(tmp_path, breaks_in):
    told = resumed(tmp_path, lambda: (shuffling(), None), breaks_in=breaks_in, every_epochs=1)
    (told,) = told
    assert "data is the function batches whose passes differ, without a state" in str(told.message)
    assert "state_dict()" in str(told.message)
    assert told.filename == __file__


def test_so_it_does_of_a_validation_loader(tmp_path):
    loaders = lambda: (in_order(), shuffling())
    (told,) = resumed(tmp_path, loaders, breaks_in=4, every_epochs=2)
    assert "validation_data is the function batches whose passes differ" in str(told.message)


@pytest.mark.parametrize(
    ("loaders", "how"),
    [
        (lambda: (in_order(), in_order()), {"every_epochs": 1}),
        (lambda: (lambda: iter(in_order()), None), {"every_epochs": 1}),
        (lambda: (OfTheLoader(size=10), OfTheLoader(size=10)), {"every_epochs": 1}),
        # The first pass is that of the run before, and so are all that follow.
        (lambda: (shuffling(), None), {"every_steps": 3}),
    ],
    ids=["lists", "a function", "with a state", "in the first pass"],
)
def test_nothing_is_said_where_nothing_is_lost(tmp_path, loaders, how):
    breaks_in = 0 if "every_steps" in how else 3
    assert not resumed(tmp_path, loaders, breaks_in=breaks_in, **how)


def test_nothing_is_said_in_one_process(recwarn):
    trainer = vernal.Trainer(optax.sgd(0.01), losses.MeanSquaredError())
    data = shuffling()
    state, _ = trainer.fit(nn.Linear(2, 1, key=jax.random.key(0)), data, epochs=2)
    trainer.fit(state, data, epochs=2)
    assert not recwarn
