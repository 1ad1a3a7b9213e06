"""What counts as an array: whatever NumPy makes one of, in any tree."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from helpers import KEY, assert_equal_trees, examples, seen

import vernal


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
        assert_equal_trees(batch, expected)
    np.testing.assert_array_equal(np.fromfile(tmp_path / "x", np.float32), x.ravel())


def test_any_tree_of_arrays_is_data():
    x, y = examples(12)
    data = {"image": x, "about": {"label": y[:, 0].tolist(), "weight": jnp.arange(12)}}
    for batch in vernal.batches(data, 5, key=KEY):
        assert set(batch) == {"image", "about"}
        np.testing.assert_array_equal(batch["about"]["label"], 10 * batch["image"][:, 0])
        np.testing.assert_array_equal(batch["about"]["weight"], batch["image"][:, 0] / 2)


# ----- numbers that would become other numbers


CONVERTED = {
    "float32, the other byte order": (np.float32(1.25), ">f4", np.float32),
    "float64, the other byte order": (1.25, ">f8", np.float32),
    "long double": (1.25, np.longdouble, np.float32),
    "complex long double": (1.25 + 2j, np.clongdouble, np.complex64),
    "int64": (-(2**31), np.int64, np.int32),
    "int64, the other byte order": (2**31 - 1, ">i8", np.int32),
    "uint64": (2**32 - 1, np.uint64, np.uint32),
    "inf": (np.inf, np.float64, np.float32),
    "bool": (True, bool, bool),
    "int8": (-128, np.int8, np.int8),
    "float16": (1.25, np.float16, np.float16),
    "bfloat16": (1.25, jnp.bfloat16, jnp.bfloat16),
}


@pytest.mark.parametrize("kind", CONVERTED)
def test_a_batch_has_the_same_numbers_in_jaxs_dtype(kind):
    """In a dtype that JAX takes as it is: in the byte order of the machine, of 32 bits at most."""
    value, dtype, expected = CONVERTED[kind]
    data = np.full((5, 2), value, dtype)
    for batch in vernal.batches(data, 2):
        assert batch.dtype == np.dtype(expected)
        assert batch.dtype.isnative
        assert (batch == np.array(value, expected)).all()


def test_with_double_precision_64_bits_stay():
    data = np.full((4, 1), 2**40), np.full((4, 1), 1e300), np.full((4, 1), 1.5, np.longdouble)
    with jax.enable_x64(True):
        (batch,) = vernal.batches(data)
        integers, large, long = (np.asarray(part) for part in batch)
    assert (integers == 2**40).all()
    assert (large == 1e300).all()
    assert long.dtype == np.float64


def put(array, where, value):
    array = array.copy()
    array[where] = value
    return array


X = np.random.default_rng(0).normal(size=(6, 2))
LETTERS = list("bcabca")
CODES = np.array([1, 2, 0, 1, 2, 0])
DAYS = np.arange("2020-01-01", "2020-01-07", dtype="M8[D]")


class Tensor:
    """As PyTorch's: NumPy cannot read it where it has a gradient."""

    def __init__(self, array):
        self.array, self.shape, self.ndim, self.dtype = array, array.shape, array.ndim, "float32"

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("Can't call numpy() on Tensor that requires grad.")

    def detach(self):
        return self

    cpu = detach

    def numpy(self):
        return self.array


# What is refused, what is said of it, and what the line that is suggested makes of it.
REFUSED = {
    "int64": (put(np.zeros((6, 2), int), (3, 1), 2**40), "data[3, 1] is 1099511627776", "f4"),
    "a negative int64": (put(np.zeros(6, int), 3, -(2**40)), "data[3] is -1099511627776", "f4"),
    "uint64": (np.full(6, 2**40, np.uint64), "data[0] is 1099511627776 | uint32", "f4"),
    "a list of int64": ([2**40, 1, 2], "data[0] is 1099511627776 | int32", "f4"),
    "float64": (put(X, (3, 1), -1e300), "data[3, 1] is -1e+300 | float32", None),
    "float64 beside NaN and inf": (
        put(put(put(X, (3, 1), 1e300), (0, 0), np.nan), (0, 1), np.inf),
        "data[3, 1] is 1e+300 | float32",
        None,
    ),
    "long double": (np.full(6, np.longdouble("1e100")), "data[0] is 1e+100 | float32", None),
    "complex": (np.full(6, 1e300j), "data[0] is 1e+300j | complex64", None),
    "objects": (X.astype(object), "object values.", "f4"),
    "objects with NaN": (put(X, (1, 1), np.nan).astype(object), "object values.", "f4"),
    "objects, some large": (np.array([2**70, 1, 1.5], object), "object values.", "f4"),
    "a frame": (pd.DataFrame({"a": X[:, 0], "b": X[:, 1] > 0}), "object values.", "f4"),
    "a frame of nullable types": (
        pd.DataFrame({"a": [1, 2, 3], "b": [1.5, 2.5, 3.5]}).convert_dtypes().astype(object),
        "object values.",
        "f4",
    ),
    "missing values of a frame": (
        pd.DataFrame({"a": pd.array([1, None, 3], "Int64"), "b": pd.array([1.5, 2, 3], "Float64")}),
        "object values: data[1, 0] is <NA>.",
        np.array([[1, 1.5], [np.nan, 2], [3, 3]], np.float32),
    ),
    "strings of numbers": (np.array([["1.5", "2"]]), "data[0, 0] is '1.5'", "f4"),
    "strings": (np.array(LETTERS), "data[0] is 'b'", CODES),
    "a list of strings": (LETTERS, "data[0] is 'b'", CODES),
    "a series of strings": (pd.Series(LETTERS), "data[0] is 'b'", CODES),
    "categories": (
        pd.Series(pd.Categorical(LETTERS, list("cab"))),  # in an order of their own
        "data[0] is 'b'",
        np.array([2, 0, 1, 2, 0, 1]),
    ),
    "dates": (DAYS, "datetime64[D] values: data[0] is 2020-01-01", np.arange(6.0)),
    "dates of a series": (pd.Series(DAYS), "datetime64", np.arange(6.0)),
    "dates with a zone": (pd.Series(DAYS).dt.tz_localize("UTC"), "object", np.arange(6.0)),
    "a missing date": (
        put(DAYS, 2, np.datetime64("NaT", "D")),
        "datetime64",
        np.array([0, 1, np.nan, 3, 4, 5]),
    ),
    "spans of time": (DAYS - DAYS[0], "timedelta64[D]", 86400.0 * np.arange(6)),
    "spans of a series": (pd.Series(DAYS - DAYS[0]), "timedelta64", 86400.0 * np.arange(6)),
    "records": (
        np.array([(1.5, 2), (3.5, 4)], [("a", "f4"), ("b", "i4")]),
        "data[0] is (1.5, 2)",
        np.array([[1.5, 2], [3.5, 4]]),
    ),
    "a sparse matrix": (scipy.sparse.csr_matrix(X), "data is <Compressed Sparse", X),
    "random keys": (
        jax.random.split(KEY, 3),
        "key<fry> values.",
        np.asarray(jax.random.key_data(jax.random.split(KEY, 3))),
    ),
    "a tensor with a gradient": (Tensor(X), "requires grad", X),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_would_become_other_numbers_is_refused_with_a_line_that_works(kind):
    data, says, expected = REFUSED[kind]
    with pytest.raises(vernal.DataError) as caught:
        vernal.batches(data, 2)
    text = " ".join(str(caught.value).split())
    for part in says.split(" | "):
        assert part in text
    [code] = re.findall(r"Try (.+?)(?: for a quantity)?(?:, or jax.config.+)?\.$", text)
    made = np.asarray(eval(code, {"np": np, "jax": jax, "data": data}))
    batches = vernal.batches(made, 2, shuffle=False)
    taken = np.concatenate([np.asarray(batch) for batch in batches])
    if expected is None:
        scale = np.abs(np.asarray(data)[np.isfinite(data)]).max()
        expected = np.asarray(data) / scale
    elif isinstance(expected, str):
        expected = np.asarray(data).astype(expected)
    np.testing.assert_allclose(taken, expected, rtol=1e-6, atol=1e-30)


def test_a_value_that_is_no_number_is_named():
    strange = {"n/a": "'n/a'", None: "None", pd.NA: "<NA>", pd.Timestamp("2020"): "2020-01-01"}
    for value, shown in strange.items():
        data = put(X.astype(object), (4, 1), value)
        with pytest.raises(vernal.DataError, match=re.escape(f"data[4, 1] is {shown}")):
            vernal.batches(data, 2)


def test_a_category_that_is_missing_is_no_label():
    """Pandas' code of a missing value is -1: another label to JAX."""
    data = pd.Series([*LETTERS, None], dtype="category")
    with pytest.raises(vernal.DataError, match="it holds object values") as caught:
        vernal.batches(data, 2)
    assert "codes" not in str(caught.value)


class Masked:
    """As netCDF4's variables: a file whose slices are masked."""

    def __init__(self, array):
        self.array, self.shape, self.ndim, self.dtype = array, array.shape, array.ndim, array.dtype

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.array)

    def __len__(self):
        return len(self.array)

    def __getitem__(self, rows):
        return self.array[rows]


MASKED = {
    "array": lambda array: array,
    "list": list,
    "file": Masked,
}


@pytest.mark.parametrize("kind", MASKED)
def test_what_is_masked_does_not_come_back(kind):
    array = np.ma.masked_greater(X, 1)
    rows = ~np.any(array.mask, axis=1)
    assert 0 < rows.sum() < len(X)
    data = MASKED[kind](array)
    row, column = np.argwhere(array.mask)[0]
    with pytest.raises(vernal.DataError) as caught:
        vernal.batches(data, 2)
    text = " ".join(str(caught.value).split())
    assert f"data[{row}, {column}] is masked" in text
    [keep, line] = re.findall(r"keep = (.+) Then index .+, as in (.+)\.$", text)[0]
    names = {"np": np, "data": data}
    names["keep"] = eval(keep, names)
    batches = vernal.batches(eval(line, names), 2, shuffle=False)
    np.testing.assert_array_equal(np.concatenate(list(batches)), X[rows].astype(np.float32))


def test_an_array_without_a_masked_value_is_an_array():
    for data in (np.ma.array(X), Masked(np.ma.array(X))):
        (batch,) = vernal.batches(data)
        np.testing.assert_array_equal(batch, X.astype(np.float32))


class Dataset:
    """As PyTorch's: its items are examples, or batches; it has no `__iter__`."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


def test_a_dataset_is_explained_with_lines_that_make_batches():
    x, y = examples(6)
    batches = [(x[:3], y[:3]), (x[3:], y[3:])]
    for items in (list(zip(x, y, strict=True)), batches):
        data = Dataset(items)
        with pytest.raises(vernal.DataError, match="a Dataset without __iter__") as caught:
            seen(data, epochs=1)
        text = " ".join(str(caught.value).split())
        names = {"np": np, "data": data}
        if items is batches:
            made = eval(re.findall(r"are batches, try (.+?)\. If", text)[0], names)
            assert seen(made, epochs=2) == seen(batches, epochs=2)
        else:
            made = eval(re.findall(r"are examples, try (.+?), or", text)[0], names)
            assert_equal_trees(made, (x, y))
    np.testing.assert_array_equal(next(vernal.batches(Dataset(list(x)), shuffle=False)), x)


def test_a_batch_is_at_most_all_examples():
    data = examples(5)
    (batch,) = vernal.batches(data, 8)
    assert_equal_trees(batch, data)
    assert seen(data, epochs=2, batch_size=8) == seen(data, epochs=2)
