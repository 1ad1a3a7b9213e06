"""The figures of the tenth tutorial: a sweep over rates, and an ensemble that knows its gap."""

import re

import jax
import numpy as np
import optax
import pytest
from tutorial import assert_pictures, tutorial

import vernal
from vernal import losses


@pytest.fixture(scope="module")
def done():
    return tutorial("10")


def test_leaves_pictures_only_where_it_says(done):
    assert_pictures("10", done)


def test_a_rate_in_the_middle_wins(done):
    last, rates = done.variables["last"], done.variables["RATES"]
    best = last.argmin()
    assert 0.001 < rates[best] < 0.05
    assert last[0] > 10 * last[best] and last[-1] > 10 * last[best]
    assert f"the best rate of these: {rates[best]:.5f}" in done.printed
    printed = [float(loss) for loss in re.findall(r"validation loss (\S+)", done.printed)]
    np.testing.assert_allclose(printed, last, atol=5e-5)


def test_each_member_is_what_fit_trains(done):
    assert done.variables["difference"].max() < 1e-4
    # Another one than the tutorial's: the smallest rate, all epochs.
    names = ("make_model", "KEY", "train", "EPOCHS", "RATES", "result")
    make_model, key, train, epochs, rates, result = (done.variables[name] for name in names)
    trainer = vernal.Trainer(optax.adam(rates[0]), losses.MeanSquaredError())
    _, history = trainer.fit(make_model(key), train, epochs=epochs, key=key, progress=False)
    np.testing.assert_allclose(
        result.histories[0].epochs["loss"], history.epochs["loss"], rtol=1e-3
    )


def test_the_ensemble_disagrees_where_it_has_no_data(done):
    std, is_seen, is_far = (done.variables[name] for name in ("std", "is_seen", "is_far"))
    assert std[is_far].mean() > 8 * std[is_seen].mean()
    each = np.stack([jax.vmap(s.model)(done.variables["grid"]) for s in done.variables["members"]])
    np.testing.assert_allclose(done.variables["mean"], each.mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(std, each.std(axis=0), atol=1e-4)
    assert f"within the data {std[is_seen].mean():.3f}" in done.printed
    is_gap, grid, mean = (done.variables[name] for name in ("is_gap", "grid", "mean"))
    assert std[is_gap].mean() > 3 * std[is_seen].mean()
    assert f"in the gap      {std[is_gap].mean():.3f}" in done.printed
    is_outside = np.abs(np.sin(2 * grid) - mean) > 2 * std
    assert is_outside[is_gap].mean() > 0.8
    assert f"far outside     {std[is_far].mean():.3f}" in done.printed


def test_the_exercises(done):
    of_folds = done.variables["of_folds"]
    assert len(of_folds) == 5 and 0 < np.mean(of_folds) < 0.05
    assert f"mean {np.mean(of_folds):.4f}" in done.printed
    lengths = done.variables["lengths"]
    assert lengths[0] < lengths[-1] <= done.variables["EPOCHS"]
