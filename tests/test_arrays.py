"""What counts as an array: whatever NumPy makes one of, in any tree."""

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from helpers import KEY, assert_equal_trees, examples

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
