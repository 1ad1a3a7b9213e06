"""The figures of the third tutorial: nonlinear regression."""

import re

import numpy as np
from tutorial import assert_pictures, tutorial

# The final losses of the small network with the keys 0 to 9, as published.
SMALL_LOSSES = [4213, 4164, 487, 478, 4113, 490, 4143, 286, 4138, 487]

x = np.linspace(-10, 10, 100)
y = 2 * x**2


def losses_of(name: str, printed: str) -> np.ndarray:
    lines = re.findall(rf"^{name}: +([\d ]+)$", printed, re.MULTILINE)
    return np.array(lines[0].split(), float)


def test_leaves_pictures_only_where_it_says():
    assert_pictures("03", tutorial("03"))


def test_two_lines_make_a_line():
    printed, _, _ = tutorial("03")
    first, second = re.findall(r"the output changes by (\S+)$", printed, re.MULTILINE)
    assert abs(float(first) - float(second)) <= 1e-4
    assert float(first) != 0
    assert "\n[0. 0. 0. 1. 2.]\n" in printed  # relu of -2, -1, 0, 1, 2


def test_three_trained_models_better_and_better():
    printed, variables, _ = tutorial("03")
    line, small, wide = map(float, re.findall(r"^[\w ]+: loss (\S+)$", printed, re.MULTILINE))
    assert y.var() <= line + 0.05 < 1.01 * y.var()  # it ends near the average
    assert best_of_five_pieces() < small < 100
    assert wide < 5
    predictions = np.asarray(variables["states"]["4 hinges"].model(x[:, None]), float)[:, 0]
    np.testing.assert_allclose(np.mean((predictions - y) ** 2), small, atol=1)
    bends = abs(np.diff(predictions, 2)) > 1e-2  # a bend lies between two points: one or two places
    assert 2 <= np.sum(bends & ~np.roll(bends, 1)) <= 4


def test_three_slow_models_better_and_better():
    printed, variables, _ = tutorial("03")
    assert variables["STEPS"] == 3_000
    by_model = {}
    for name, state in variables["slow_states"].items():
        predictions = np.asarray(state.model(x[:, None]), float)[:, 0]
        by_model[name] = loss = np.mean((predictions - y) ** 2)
        row = re.search(rf"^{name} +(\S+) +(\S+)$", printed, re.MULTILINE)
        assert row is not None
        np.testing.assert_allclose(
            [float(row[1]), float(row[2])], np.array([loss, loss**0.5]), atol=0.06
        )
    line, small, wide = by_model.values()
    assert line > y.var()  # what always predicting the average would get
    assert y.var() / 2 > small > 2 * wide  # better, not great; then clearly better
    # The largest error of the wide one is at an end.
    error = abs(np.asarray(variables["slow_states"]["128 wide"].model(x[:, None]))[:, 0] - y)
    assert error.argmax() in (0, 99)


def test_the_hinges_add_up_to_the_network():
    printed, variables, _ = tutorial("03")
    model = variables["slow_states"]["small, 4 wide"].model
    predictions = np.asarray(model(x[:, None]))[:, 0]
    np.testing.assert_allclose(variables["total"], predictions, rtol=1e-5, atol=1e-3)
    parts = variables["parts"]
    assert parts.shape == (100, 4)
    for part in parts.T:  # straight, and zero on one side
        bends = np.flatnonzero(abs(np.diff(part, 2)) > 1e-3)
        assert len(bends) <= 2
        assert part[0] == 0 or part[-1] == 0
    lost = [number + 1 for number in range(4) if np.ptp(parts[:, number]) == 0]
    assert lost
    assert f"zero for every example: {lost}\n" in printed


def test_one_draw_proves_nothing():
    printed, _, _ = tutorial("03")
    small, wide = losses_of("small, 4 wide", printed), losses_of("128 wide", printed)
    np.testing.assert_allclose(small, SMALL_LOSSES, rtol=0.03)
    assert sum(small > 1_000) == 5  # half found one arm
    assert wide.shape == (10,)
    assert 50 < wide.min() < wide.max() < 120
    # With two relus: more keys find both arms, not all.
    two = losses_of("two relus", printed)
    ((one_relu, two_relus),) = re.findall(r"(\d+) of 10 .* one relu, and (\d+) with two", printed)
    assert int(one_relu) == 5 < int(two_relus) == sum(two < 1_000) < 10


def test_width_buys_speed_and_capacity():
    printed, variables, _ = tutorial("03")
    rows = re.findall(r"^ +(\d+) +(\d+) +(\d+\.\d) +(\d+\.\d+)$", printed, re.MULTILINE)
    assert [int(width) for width, *_ in rows] == [1, 4, 16, 64, 128]
    assert [int(parameters) for _, parameters, *_ in rows] == [4, 13, 49, 193, 385]
    few, many = (np.array([float(row[place]) for row in rows]) for place in (2, 3))
    assert (np.diff(few) < 0).all()
    assert (np.diff(many) < 0).all()
    assert (many < few).all()
    np.testing.assert_allclose(few, np.median(variables["after_few"], axis=1), rtol=1e-3, atol=0.1)
    # At 3,000 steps all widths are far from the data; with time, 16 are enough, and 4 are not.
    assert few[2] > 300
    assert many[2] < 1
    assert few[-1] < few[2] / 3
    assert many[1] > 5
    assert many[0] > 1_000


def best_of_five_pieces() -> float:
    """The least loss of any five straight pieces, connected or not."""
    cost = np.full((101, 101), np.inf)
    for start in range(100):
        for stop in range(start + 1, 101):
            part, answers = x[start:stop], y[start:stop]
            part, answers = part - part.mean(), answers - answers.mean()
            slope = part @ answers / max(part @ part, 1e-9)
            cost[start, stop] = np.sum((answers - slope * part) ** 2)
    best = cost[0]
    for _ in range(4):
        best = np.min(best[:, None] + cost, axis=0)
    return best[100] / 100


def test_four_hinges_get_as_far_as_five_pieces_can():
    printed, variables, _ = tutorial("03")
    ((loss, placed),) = re.findall(r"loss is (.*), and with hinges placed by hand (.*)\.", printed)
    bound = best_of_five_pieces()
    assert bound < float(loss) < 1.1 * bound
    assert bound < float(placed) < 1.02 * bound
    # The hinges of the question and a bias, no more, have this loss.
    hinges = [np.maximum(part, 0) for part in (-6 - x, -2 - x, x - 2, x - 6)]
    columns = np.stack([*hinges, np.ones(100)], axis=1)
    best = np.mean((columns @ np.linalg.lstsq(columns, y)[0] - y) ** 2)
    np.testing.assert_allclose(float(placed), best, rtol=0, atol=0.006)
    predictions = np.asarray(variables["four_state"].model(x[:, None]), float)[:, 0]
    np.testing.assert_allclose(np.mean((predictions - y) ** 2), float(loss), atol=0.01)


def test_goes_on_straight_outside_the_data():
    printed, _, _ = tutorial("03")
    inside, outside = map(int, re.findall(r"At \d+ it predicts (\d+),", printed))
    assert abs(inside - 200) <= 1
    assert abs(outside - (200 + 10 * 40)) < 40  # by the parabola's slope at 10
