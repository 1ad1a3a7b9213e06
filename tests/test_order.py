"""The order of examples: each once an epoch, as (key, epoch) alone decide; and `fit` follows it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    KEY,
    TELLER,
    assert_equal_trees,
    batches_of,
    cut,
    examples,
    fingerprint,
    seen,
)
from hypothesis import given
from hypothesis import strategies as st

import vernal
from vernal._limits import limits

sizes = st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))


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
        assert_equal_trees(batch, again)
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
    assert_equal_trees(batch, data)


def test_no_key_is_the_key_0_and_old_keys_are_keys_too():
    data = examples(30)
    expected = list(vernal.batches(data, 10, key=jax.random.key(0)))
    for batches in (vernal.batches(data, 10), vernal.batches(data, 10, key=jax.random.PRNGKey(0))):
        for batch, other in zip(batches, expected, strict=True):
            assert_equal_trees(batch, other)


# ----- what `fit` trains on

SUPERBATCHES = {
    "several epochs": {},
    "one batch": {"superbatch_bytes": 1},
    "parts of an epoch": {"superbatch_bytes": 100},
    "on the device": {"gathers_on_host": False},
}


@pytest.mark.parametrize("changes", SUPERBATCHES.values(), ids=SUPERBATCHES)
@pytest.mark.parametrize(("n", "size"), [(12, 4), (15, 4)], ids=["even", "ragged"])
def test_fit_trains_on_the_batches_of_epoch_after_epoch(n, size, changes):
    data, length = examples(n), -(-n // size)
    for shuffle in (True, False):
        batches = batches_of(data, size, 4, shuffle=shuffle)
        expected = [fingerprint(batch) for batch in batches]
        assert len(expected) == 4 * length
        for start in range(0, 2 * length, 2):
            # A batch may be counted from the start of any epoch before it.
            for at in {(0, start), divmod(start, length)}:
                with limits(**changes):
                    result = seen(
                        data,
                        at=at,
                        epochs=4 - start // length,
                        batch_size=size,
                        shuffle=shuffle,
                    )
                assert result == expected[start:]


def test_single_examples_and_the_full_batch_are_batches_too():
    for size in (1, None):
        expected = [fingerprint(batch) for batch in batches_of(examples(5), size, 3)]
        assert seen(examples(5), epochs=3, batch_size=size) == expected


@pytest.mark.parametrize("changes", [{}, {"superbatch_bytes": 60}], ids=["whole", "in parts"])
@pytest.mark.parametrize("size", [4, 5, 100, None])
def test_measuring_is_one_pass_in_order(size, changes):
    x, _ = examples(12)
    with limits(**changes):
        predicted = TELLER.predict(lambda x: x, x, batch_size=size)
        results = TELLER.evaluate(jnp.zeros(1), examples(12), batch_size=size)
    np.testing.assert_array_equal(predicted, x)
    batches = vernal.batches(examples(12), min(size or 12, 12), shuffle=False)
    fingerprints, lengths = zip(*((fingerprint(b), len(b[0])) for b in batches), strict=True)
    assert results["seen"] == pytest.approx(np.average(fingerprints, weights=lengths), rel=1e-6)


def test_measuring_a_loader_is_one_pass_in_order():
    batches = cut(examples(12), [5, 5, 2])
    results = TELLER.evaluate(jnp.zeros(1), batches)
    fingerprints = [fingerprint(batch) for batch in batches]
    assert results["seen"] == pytest.approx(np.average(fingerprints, weights=[5, 5, 2]), rel=1e-6)


# ----- vernal.steps


@given(sizes, st.integers(0, 4))
def test_steps_are_as_many_as_fit_makes(n_and_size, epochs):
    n, size = n_and_size
    data = examples(n)
    batches = sum(1 for _ in vernal.batches(data, size)) * epochs
    assert vernal.steps(data, size, epochs) == batches
    assert vernal.steps(cut(data, [n]), epochs=epochs) == epochs


def test_steps_are_counted_before_the_run():
    data = examples(10)
    assert vernal.steps(data) == 1
    assert vernal.steps(data, 100, 2) == 2
    assert len(seen(data, batch_size=3, epochs=2)) == vernal.steps(data, 3, 2)
    with pytest.raises(vernal.DataError, match="no `len`"):
        vernal.steps(lambda: iter([data]))
    with pytest.raises(vernal.ArgumentError, match="batch_size"):
        vernal.steps([data], 3)
    with pytest.raises(vernal.ArgumentError, match="epochs"):
        vernal.steps(data, 3, epochs=-1)
