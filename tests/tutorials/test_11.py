"""The figures of the eleventh tutorial: one device and eight have the same losses."""

import numpy as np
import pytest
from tutorial import assert_pictures, tutorial


@pytest.fixture(scope="module")
def done():
    return tutorial("11")


def test_leaves_pictures_only_where_it_says(done):
    assert_pictures("11", done, others=r"build/tutorials/11_job/.*")


def test_one_device_and_eight_have_the_same_losses(done):
    one, eight, split = (done.variables[name] for name in ("one", "eight", "split"))
    assert one[-1] < 0.05 * one[0]
    np.testing.assert_allclose(eight, one, rtol=1e-5)
    np.testing.assert_allclose(split, one, rtol=1e-5)
    assert not np.array_equal(eight, one)  # they add in another order
    assert f"devices 1, steps 640, final loss {one[-1]:.6f}" in done.printed
    assert f"devices 8, steps 640, final loss {eight[-1]:.6f}" in done.printed
    assert done.printed.count("each device has the whole weight: True") == 4
    assert done.printed.count("each device has the whole weight: False") == 1


def test_a_batch_that_cannot_be_shared_is_explained(done):
    assert "batch_size=100" in done.printed and "Try batch_size=96." in done.printed


def test_the_exercises(done):
    assert "eight again: True and four: False" in done.printed
    np.testing.assert_allclose(done.variables["four"], done.variables["eight"], rtol=1e-5)
    waits = {n: f"{1000 * seconds:.1f} ms" for n, seconds in done.variables["waits"].items()}
    assert waits == {8: "14.0 ms", 1024: "16.0 ms"}
