"""Arrays in files: read as they are needed, with the results that arrays in memory give."""

import dataclasses
import functools
import itertools
import re
import tracemalloc

import equinox as eqx
import h5py
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import KEY, assert_equal_trees, examples, seen

import vernal
from vernal import losses
from vernal._limits import limits


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
def in_parts():
    """Small files are taken in parts, as large ones are."""
    with limits(superbatch_bytes=400, read_bytes=160, gap_bytes=32):
        yield


DTYPES = ["f8", ">f4", "f2", "i8", ">i8", "u1", "?"]


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
            assert_equal_trees(batch, expected)
            assert batch[0].dtype == expected[0].dtype


@of_files
@pytest.mark.parametrize("shuffle", [True, False], ids=["shuffled", "in order"])
@pytest.mark.usefixtures("in_parts")
def test_fit_trains_on_the_same_batches_of_a_file(made, shuffle, tmp_path):
    x, y = examples(50)
    for size in (7, 25):
        how = {"epochs": 3, "batch_size": size, "shuffle": shuffle}
        assert seen((made(x, tmp_path), y), **how) == seen((x, y), **how)


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
    epochs = [
        epoch for epoch, _ in zip(trainer.epochs(model, data, **held_out), "ab", strict=False)
    ]
    yield [(epoch.state.model.weight, epoch.metrics) for epoch in epochs]
    yield trainer.evaluate(model, data, batch_size=size)
    yield trainer.predict(model, data[0], batch_size=size)
    found = vernal.find_learning_rate(trainer, model, data, batch_size=size, updates=10)
    yield found.losses, found.smoothed
    yield trainer.step(trainer.init(model), jax.tree.map(lambda leaf: leaf[:5], data))[1]


@pytest.mark.parametrize(
    ("kind", "size", "which"),
    [*((kind, 3, "both") for kind in FILES), ("mapped", None, "x"), ("h5py", None, "y")],
)
@pytest.mark.usefixtures("in_parts")
def test_all_results_from_a_file_are_those_from_memory(kind, size, which, tmp_path):
    made = FILES[kind]
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 4)), rng.normal(size=(50, 1)).astype(np.float32)
    (tmp_path / "x").mkdir()
    data = (
        x if which == "y" else made(x, tmp_path / "x"),
        y if which == "x" else made(y, tmp_path),
    )
    for result, expected in zip(results(data, size), results((x, y), size), strict=True):
        assert_equal_trees(result, expected)


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


def test_of_a_large_file_little_is_held(tmp_path):
    """Nor is it converted as a whole."""
    x = np.random.default_rng(0).normal(size=(2**16, 16))  # 8 MiB
    sum_ = vernal.Trainer(optax.sgd(1e-3), lambda model, x, key: jnp.mean(jax.vmap(model)(x)))
    model = eqx.nn.Linear(16, 1, key=jax.random.key(0))
    for array in (as_mapped(x, tmp_path), as_h5(x, tmp_path), Noted(x)):
        for run in (
            functools.partial(sum_.evaluate, model, array, batch_size=128),
            functools.partial(sum_.fit, model, array, epochs=1, batch_size=128),
        ):
            with limits(superbatch_bytes=2**17, chunk_bytes=2**18, read_bytes=2**17):
                run()  # compiling takes memory, too
                tracemalloc.start()
                run()
                _, peak = tracemalloc.get_traced_memory()
                tracemalloc.stop()
            assert peak < 3 * 2**20


def reads_of_a_batch(x, size):
    """The rows of a shuffled batch, sorted; and what was read for it, in order."""
    batches = vernal.batches(x, size, key=KEY)
    next(batches)  # values are checked before
    x.reads.clear()
    rows = np.sort(next(batches)[:, 0] / x.array.shape[1]).astype(int)
    return rows, sorted(x.reads, key=lambda read: read.start)


def test_a_files_chunks_are_read_once_each():
    """One may have to be decompressed as a whole, however little of it is wanted."""
    x = Noted(np.arange(120, dtype=np.float32).reshape(60, 2), chunk=6)
    with limits(read_bytes=100):
        _, reads = reads_of_a_batch(x, 30)
    chunks = [row // 6 for read in reads for row in (read.start, read.stop - 1)]
    pairs = list(zip(chunks[::2], chunks[1::2], strict=True))
    assert len(pairs) > 1
    for (_, before), (after, _) in itertools.pairwise(pairs):
        assert before < after
    assert max(len(read) for read in reads) <= 12  # a hundred bytes, in whole chunks


@pytest.mark.parametrize(("chunk", "near"), [(6, 6), (None, 4)])
def test_of_a_file_what_lies_between_is_left_out(chunk, near):
    """Unless it is so little, or of the same chunk, that another read would take longer."""
    x = Noted(np.arange(800, dtype=np.float32).reshape(400, 2), chunk)
    with limits(gap_bytes=4 * 8):
        rows, reads = reads_of_a_batch(x, 60)
    gaps = np.flatnonzero(np.diff(rows) > near)
    starts, ends = rows[[0, *(gaps + 1)]], rows[[*gaps, -1]]
    assert [(read.start, read.stop - 1) for read in reads] == [*zip(starts, ends, strict=True)]
    assert len(reads) > 10


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
    yield mse, 1, changed(x.astype(int), (33, 2), 2**40), y
    yield mse, 1, x, changed(y.astype(np.uint64), (44, 0), 2**40)
    yield (lambda model, batch, key: jnp.mean(batch[0])), 1, changed(x, (33, 2), 1e300), y
    yield mse, 1, x[:, :3], y
    yield mse, 1, x, y[:40]
    yield mse, 1, x[:0], y[:0]
    yield mse, 1, np.full(x.shape, b"no"), y
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
# Each mistake in one kind of file; one mistake in each.
MISTAKES = [*(("like them", i) for i in range(len(WRONG))), *((kind, 0) for kind in FILES)]


@pytest.mark.parametrize(("kind", "case"), MISTAKES[:-1])
@pytest.mark.usefixtures("in_parts")
def test_what_is_wrong_with_a_file_is_said_as_of_memory(kind, case, tmp_path):
    made = FILES[kind]
    loss, outputs, *data = WRONG[case]
    trainer = vernal.Trainer(optax.sgd(0.1), loss)
    model = eqx.nn.Linear(4, outputs, key=jax.random.key(0))

    def said(x, y):
        with pytest.raises(vernal.VernalError) as caught:
            trainer.fit(model, (x, y), epochs=1, batch_size=5)
        # Lines that mend an array are for one in memory, which also has lines that make numbers.
        message = re.sub(r"np\.asarray\(([xy])\)", r"\1", caught.value.args[0])
        return re.sub(
            r"Try np\.unique.*", "Encode them as numbers first, or drop those examples.", message
        )

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


def test_a_file_is_not_put_on_a_device_as_a_whole():
    x, y = examples(40)
    with limits(gathers_on_host=False, read_bytes=80):
        file = Noted(x)
        from_file = seen((file, y), epochs=2, batch_size=8)
        from_memory = seen((x, jnp.asarray(y)), epochs=2, batch_size=8)
    assert from_file == from_memory
    assert max(len(read) for read in file.reads) <= 10


@pytest.mark.long
def test_rows_from_two_to_the_31_on_are_read(tmp_path):
    """An order of so many rows takes 9 GB."""
    rows, size = 2**31 + 2**10, 2**20
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(rows)
        file.seek(2**31)
        file.write(b"\x01" * 2**10)  # all before is 0
    x = np.memmap(path, np.uint8, "r", shape=(rows, 1))

    def mean(model, batch, key):
        return jnp.mean(batch.astype(jnp.float32)) * model

    trainer = vernal.Trainer(optax.sgd(0.0), mean)
    state = dataclasses.replace(trainer.init(jnp.ones(())), batch=np.int32(rows // size))
    _, history = trainer.fit(state, x, epochs=1, batch_size=size, shuffle=False)
    assert history.steps["loss"].tolist() == [1.0]
