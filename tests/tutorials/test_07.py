"""The figures of the seventh tutorial: digits."""

import re

import numpy as np
import pytest
from scipy.signal import correlate2d
from sklearn.datasets import load_digits
from sklearn.metrics import confusion_matrix
from sklearn.neighbors import KNeighborsClassifier
from tutorial import assert_pictures, tutorial


def quick():
    return tutorial("07", quick=True)


def test_leaves_pictures_only_where_it_says():
    assert_pictures("07", quick())
    assert len(list(quick().folder.rglob("*.png"))) == 6


def test_says_that_it_is_quick():
    printed, variables, _ = quick()
    assert printed.startswith("Quick: 3 epochs instead of 40.\n")
    assert variables["EPOCHS"] == 3
    assert len(variables["history"].epochs["loss"]) == 3


def test_splits_into_three_parts_with_the_same_shares_of_digits():
    printed, variables, _ = quick()
    images, labels = load_digits(return_X_y=True)
    counts = np.bincount(labels)
    assert f"How many of 0, 1, ..., 9: {' '.join(map(str, counts))}\n" in printed
    parts = variables["split"](variables["SEED"])
    assert [len(y) for _, y in parts] == [1257, 180, 360]
    for x, y in parts:
        assert x.shape == (len(y), 1, 8, 8) and x.min() == 0 and x.max() == 1
        assert np.abs(np.bincount(y) / len(y) - counts / len(labels)).max() < 0.01
    # Together they are all images: none is in two parts.
    together = np.concatenate([x.reshape(-1, 64) for x, _ in parts]) * 16
    assert sorted(map(tuple, together)) == sorted(map(tuple, images))


def test_filters_and_pools_as_scipy_does():
    printed, variables, _ = quick()
    expected = correlate2d(variables["image"], [[-1, 0, 1]] * 3, mode="same")
    np.testing.assert_allclose(variables["by_hand"], expected, atol=1e-6)
    np.testing.assert_allclose(variables["by_layer"], expected, atol=1e-5)
    assert f"nine products: {expected[3, 2]}\n" in printed
    assert "Conv2d agrees with the loop: True" in printed
    largest = expected.reshape(4, 2, 4, 2).max(axis=(1, 3))
    np.testing.assert_allclose(variables["pooled"], largest, atol=1e-5)


def test_shows_what_the_layers_with_a_state_and_a_key_do():
    printed, variables, _ = quick()
    assert "after:  mean 0.00, standard deviation 1.00\n" in printed
    dropped = re.findall(r"^in training: \[(.*)\]$", printed, re.MULTILINE)
    assert len(set(dropped)) == 2
    assert all(set(line.split()) == {"0.", "2."} for line in dropped)
    assert f"in use:      [{' '.join(10 * ['1.'])}]" in printed
    assert "Twice the same: True" in printed
    assert "Alone as among others: True" in printed
    parameters = 32 * 9 + 32 + 2 * 32 + 64 * 32 * 9 + 64 + 2 * 64 + 256 * 10 + 10
    assert f"\nParameters: {parameters:,}, " in printed
    # Training changed the averages that normalisation keeps.
    model, state = variables["state"].model, variables["state"].model_state
    mean, _ = state.get(model.norm1.batch_state_index)
    assert np.abs(mean).max() > 0.01


def test_an_untrained_network_is_as_wrong_as_a_guess():
    printed, _, _ = quick()
    assert re.search(rf"^of equal probabilities: +{np.log(10):.2f}$", printed, re.MULTILINE)
    (before,) = re.findall(r"^of all, before training: +([\d.]+)$", printed, re.MULTILINE)
    assert abs(float(before) - np.log(10)) < 0.3


def test_learns_in_three_epochs_and_counts_its_mistakes():
    printed, variables, _ = quick()
    # The last training of the script is another one: its test images are not these.
    x_test, y_test, result = variables["x_test"], variables["y_test"], variables["result"]
    chosen = np.argmax(variables["trainer"].predict(variables["state"], x_test), axis=1)
    wrong = int((chosen != y_test).sum())
    assert 1 - wrong / 360 == pytest.approx(result["accuracy"]) and result["accuracy"] > 0.9
    assert f"accuracy {result['accuracy']:.3f}: {wrong} mistakes in 360 images\n" in printed
    np.testing.assert_array_equal(result["confusion"], confusion_matrix(y_test, chosen))
    assert set(variables["doubtful"][:wrong]) == set(np.flatnonzero(chosen != y_test))


def test_the_nearest_neighbour_is_the_one_of_scikit_learn():
    _, variables, _ = quick()
    (x, y), _, (x_test, y_test) = variables["split"](variables["SEED"])
    nearest = KNeighborsClassifier(1).fit(x.reshape(-1, 64), y)
    wrong = (nearest.predict(x_test.reshape(-1, 64)) != y_test).sum()
    assert variables["neighbour_mistakes"] == wrong
    accuracy, shifted = variables["accuracies"]["nearest neighbour"]
    assert accuracy == pytest.approx(1 - wrong / 360)
    moved = np.zeros_like(x_test)
    moved[..., 1:] = x_test[..., :-1]
    assert shifted == pytest.approx(nearest.score(moved.reshape(-1, 64), y_test))
    assert 0.6 < shifted < 0.7  # a third of its accuracy


def test_shifted_images_are_read_by_the_network_that_trained_on_such():
    _, variables, _ = quick()
    _, before = variables["accuracies"]["network"]
    _, after = variables["accuracies"]["network, augmented"]
    assert after > before + 0.1


def test_repeats_it_for_other_seeds():
    _, variables, _ = quick()
    assert list(variables["by_seed"]) == [0, 1, 2, 3, 4]
    assert min(variables["by_seed"].values()) > 0.9


@pytest.mark.long
def test_reads_98_percent_of_the_test_images_with_each_of_five_seeds():
    printed, variables, _ = tutorial("07")
    assert "Quick" not in printed
    assert list(variables["by_seed"]) == [0, 1, 2, 3, 4]
    assert min(variables["by_seed"].values()) >= 0.98
    (wrong,) = re.findall(r": (\d+) mistakes in 360 images", printed)
    assert int(wrong) < variables["neighbour_mistakes"]
    as_they_are, shifted = variables["accuracies"]["network"]
    assert 0.04 < as_they_are - shifted < 0.2  # about a tenth
    as_they_are, shifted = variables["accuracies"]["network, augmented"]
    assert as_they_are - shifted < 0.02
