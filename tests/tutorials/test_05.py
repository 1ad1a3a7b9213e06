"""The figures of the fifth tutorial: logistic regression, and a network, on a real table."""

import re
from typing import Any

import jax
import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from tutorial import assert_pictures, tutorial

SEED = 4
PATIENCE, EPOCHS = 20, 500
SOONEST = 3  # epochs: a run that stops sooner has learned nothing


def points():
    x = np.linspace(-5, 5, 100)
    z = 2 * x + 1 + np.random.default_rng(SEED).uniform(0, 1, 100)
    return x, np.round(1 / (1 + np.exp(-z)))


def best_curve(x, y):
    """The curve of the least cross-entropy, by Newton's method."""
    columns, found = np.column_stack([x, np.ones_like(x)]), np.zeros(2)
    for _ in range(50):
        p = 1 / (1 + np.exp(-columns @ found))
        curvature = columns.T @ (columns * (p * (1 - p))[:, None])
        found += np.linalg.solve(curvature, columns.T @ (y - p))
    return found


def test_leaves_pictures_only_where_it_says():
    assert_pictures("05", tutorial("05"))


def test_the_labels_are_rounded_values_of_the_logistic_function():
    printed, variables, _ = tutorial("05")
    x, labels = points()
    np.testing.assert_array_equal(variables["labels"][:, 0], labels)
    assert "Rounding gives the same labels: True" in printed
    # Not quite sharp: two neighbours are in the wrong order.
    first_one, last_zero = np.flatnonzero(labels)[0], np.flatnonzero(labels == 0)[-1]
    assert last_zero == first_one + 1
    places = f"The first one is at x = {x[first_one]:.2f}, the last zero at x = {x[last_zero]:.2f}"
    assert places in printed
    w, b = np.polyfit(x, labels, 1)
    assert f"The line goes from {b - 5 * w:.2f} to {b + 5 * w:.2f}\n" in printed
    assert b - 5 * w < 0 and b + 5 * w > 1
    values = (1 + np.tanh(np.array([-4, -2, 0, 2, 4]) / 2)) / 2
    assert f"{values.round(3)}\n" in printed


def test_to_be_sure_and_wrong_costs_much():
    printed, variables, _ = tutorial("05")
    rows = re.findall(r"^(0\.\d+) +(\d\.\d{4}) +(\d\.\d{4})$", printed, re.MULTILINE)
    assert [float(says) for says, _, _ in rows] == [0.99, 0.9, 0.5, 0.1, 0.01, 0.001]
    for says, squared, logarithm in np.array(rows, float):
        assert (squared, logarithm) == pytest.approx(
            ((1 - says) ** 2, np.log(1 / says)), abs=5.1e-5
        )
    # The first exercise.
    assert variables["cost_of_half"] == pytest.approx(np.log(2))
    x, labels = points()
    right = np.where(labels == 1, 1, -1) * (2 * x + 1)
    assert variables["cost_of_curve"] == pytest.approx(np.mean(np.log1p(np.exp(-right))))


def test_fits_a_curve_that_is_steeper_than_the_truth():
    printed, variables, _ = tutorial("05")
    w, b = best_curve(*points())
    assert (variables["fitted_w"], variables["fitted_b"]) == pytest.approx((w, b), rel=0.01)
    assert w > 2 * 5  # five times as steep as the truth, and far outside of tutorial 4's map
    assert -b / w == pytest.approx(-0.8, abs=0.02)
    probabilities = [0, 1 / (1 + np.exp(0.8 * w - b)), 1]
    (found,) = re.findall(r"Probabilities at -3, -0.8, 2: \[(.*)\]\n", printed)
    assert np.array(found.split(), float) == pytest.approx(probabilities, abs=0.01)
    (loss,) = re.findall(r"The loss is (.*)\n", printed)
    x, labels = points()
    least = np.mean(np.log1p(np.exp(-np.where(labels == 1, 1, -1) * (w * x + b))))
    assert float(loss) == pytest.approx(least, abs=1e-4)
    # It crosses one half between the two neighbours in the wrong order. If they were in the right
    # order, nothing would stop w from growing.
    first_one, last_zero = np.flatnonzero(labels)[0], np.flatnonzero(labels == 0)[-1]
    assert x[first_one] < -b / w < x[last_zero]
    labels[[first_one, last_zero]] = 0, 1
    assert labels.tolist() == sorted(labels)


def test_recovers_the_truth_without_noise_and_rounding():
    printed, variables, _ = tutorial("05")
    assert (variables["soft_w"], variables["soft_b"]) == pytest.approx((2, 1), abs=5e-3)
    assert "Without noise and rounding: w = 2.00" in printed


def test_divides_the_table_and_scales_it_by_the_training_part():
    printed, variables, _ = tutorial("05")
    table: Any = load_breast_cancer()
    assert "(569, 30)\nMalignant: 212 and benign: 357\n" in printed
    parts = [variables[name] for name in ("train", "validation", "test")]
    for part, again in zip(parts, variables["split"](SEED), strict=True):
        np.testing.assert_array_equal(part[0], again[0])
        np.testing.assert_array_equal(part[1], again[1])
    assert "Training, validation, test: 364 91 114\n" in printed
    assert [len(x) for x, _ in parts] == [364, 91, 114]
    for x, y in parts:
        assert x.shape == (len(y), 30) and y.shape == (len(y), 1)
        assert y.mean() == pytest.approx(357 / 569, abs=0.01)  # stratified
    train, validation, test = (x for x, _ in parts)
    np.testing.assert_allclose(train.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(train.std(axis=0), 1)
    # Scaled by one rule, they are the table's rows again, each once.
    everything = np.concatenate([train, validation, test])
    scale = table.data.std(axis=0) / everything.std(axis=0)
    restored = (everything - everything.mean(axis=0)) * scale + table.data.mean(axis=0)
    both = (rows[np.lexsort(rows.T.round(6))] for rows in (restored, table.data))
    np.testing.assert_allclose(*both, rtol=1e-6, atol=1e-9)


def test_stops_early_and_keeps_the_best_epoch():
    _, variables, _ = tutorial("05")
    validation = variables["validation"]
    best_epochs = {}
    for name, history in variables["histories"].items():
        values = history.epochs["val_loss"]
        best_epochs[name] = values.argmin()
        assert len(values) == values.argmin() + 1 + PATIENCE < EPOCHS
        assert values.argmin() > SOONEST - 1
        kept = variables["table_trainer"].evaluate(variables["states"][name], validation)
        assert kept["loss"] == pytest.approx(values.min(), rel=1e-5)
    models = variables["models"]
    sizes = [
        sum(leaf.size for leaf in jax.tree.leaves(model) if hasattr(leaf, "size"))
        for model in models.values()
    ]
    assert sizes == [31, 641]
    # The network is faster, and soon learns by heart.
    assert best_epochs["network"] < best_epochs["logistic regression"]
    record = variables["histories"]["network"].epochs
    assert record["val_loss"][-1] > 1.2 * record["val_loss"].min()
    assert record["loss"][-1] < record["loss"][record["val_loss"].argmin()]


def test_is_right_on_the_held_out_part_as_scikit_learn_is():
    printed, variables, _ = tutorial("05")
    train, test = variables["train"], variables["test"]
    y = test[1][:, 0]
    reference = LogisticRegression(max_iter=10_000).fit(train[0], train[1][:, 0])
    accuracy = reference.score(test[0], y)
    assert f"scikit-learn's logistic regression: {accuracy:.3f}\n" in printed
    for name, result in variables["results"].items():
        state = variables["states"][name]
        benign = np.array([float(state.model(x.astype(np.float32))[0]) > 0 for x in test[0]])
        assert result["accuracy"] == pytest.approx(np.mean(benign == y))
        assert f"{name}: {np.mean(benign == y):.3f} of the test part are correct" in printed
        assert np.mean(benign == y) == pytest.approx(accuracy, abs=0.03)
        assert np.mean(benign == y) == pytest.approx(0.97, abs=0.015)  # about 97 of 100
        counts = [[np.sum((y == row) & (benign == column)) for column in (0, 1)] for row in (0, 1)]
        np.testing.assert_array_equal(variables["counts"][name], counts)


def test_a_higher_limit_misses_no_malignant_tumour_of_the_validation_part():
    printed, variables, _ = tutorial("05")
    lines = re.findall(r"(\w+), limit (.*): missed (\d+), false alarms (\d+)\n", printed)
    assert [name for name, *_ in lines] == ["validation", "validation", "test", "test"]
    missed, alarms = np.array([line[2:] for line in lines], int).T
    assert missed[1] == 0 < missed[0]
    assert missed[3] <= missed[2]
    assert alarms[1] > alarms[0] and alarms[3] > alarms[2]
    for part, at_half in (("validation", 0), ("test", 2)):
        state = variables["states"]["logistic regression"]
        x, y = variables[part]
        benign = np.array([float(state.model(row.astype(np.float32))[0]) > 0 for row in x])
        assert missed[at_half] == np.sum(benign & (y[:, 0] == 0))
        assert alarms[at_half] == np.sum(~benign & (y[:, 0] == 1))


def test_five_splits_reach_the_promised_accuracy():
    printed, variables, _ = tutorial("05")
    accuracies = variables["accuracies"]
    assert len(accuracies) == 5 and min(accuracies) >= 0.95
    assert 0.005 < max(accuracies) - min(accuracies) < 0.035  # one or two in a hundred
    (mean, least) = re.findall(r"Their mean is (.*), the smallest is (.*)\n", printed)[0]
    assert (float(mean), float(least)) == pytest.approx(
        (np.mean(accuracies), min(accuracies)), abs=6e-4
    )


@pytest.mark.long
@pytest.mark.parametrize("seed", range(5))
def test_each_of_five_seeds_reaches_the_promised_accuracy(seed):
    _, variables, _ = tutorial("05")
    for network in (False, True):
        assert variables["accuracy_for"](seed, network) >= 0.95
