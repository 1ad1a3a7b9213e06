"""The figures of the third tutorial: nonlinear regression."""

import re

from tutorial import assert_pictures, tutorial


def test_leaves_pictures_only_where_it_says():
    assert_pictures("03", tutorial("03"))


def test_width_makes_the_error_smaller():
    printed, variables, _ = tutorial("03")
    trainer, data = variables["trainer"], (variables["x"], variables["y"])
    assert variables["STEPS"] == 3_000
    by_model = {
        name: trainer.evaluate(state, data)["loss"] for name, state in variables["states"].items()
    }
    line, small, wide = by_model.values()
    spread = variables["y"].var()  # what always predicting the average would get
    assert line > spread
    assert spread / 2 > small > 2 * wide  # better, not great; then clearly better
    for name, loss in by_model.items():
        assert re.search(rf"^{name} +{loss:.1f} +{loss**0.5:.1f}$", printed, re.MULTILINE)
    rows = re.findall(r"^ +(\d+) +(\d+) +([\d.]+) +[\d.]+$", printed, re.MULTILINE)
    assert [int(width) for width, _, _ in rows] == [1, 4, 16, 64, 128]
    assert [int(parameters) for _, parameters, _ in rows] == [4, 13, 49, 193, 385]
    by_width = [float(loss) for _, _, loss in rows]
    assert by_width == sorted(by_width, reverse=True)
    assert by_width[-1] < by_width[0] / 20
