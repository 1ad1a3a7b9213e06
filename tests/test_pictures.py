"""Pictures look as they did when somebody looked at them: compared with pictures kept here.

After a change that is meant, `python tests/test_pictures.py` draws them anew. Look at them then.
"""

from pathlib import Path

import equinox as eqx
import jax
import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.testing.compare import compare_images

import vernal
from vernal import nn, plot

matplotlib.use("Agg")
import matplotlib.pyplot as plt

KEPT = Path(__file__).parent / "pictures"
RNG = np.random.default_rng(0)
X = np.linspace(-3, 3, 40, dtype=np.float32)[:, None]
Y = 2 * X + 1 + RNG.normal(0, 1, X.shape).astype(np.float32)


def line(slope, intercept):
    model = nn.Linear(1, 1, key=jax.random.key(0))
    arrays = np.full((1, 1), slope, np.float32), np.full(1, intercept, np.float32)
    return eqx.tree_at(lambda m: (m.weight, m.bias), model, arrays)


class Ring(eqx.Module):
    """Chooses class 1 outside of a circle, class 2 far outside of it."""

    def __call__(self, x):
        radius = jax.numpy.sum(x**2)
        return jax.numpy.stack([1 - radius, radius - 1, 2 * radius - 5])


def curves():
    steps = np.arange(1, 201)
    losses = {"loss": 4 * np.exp(-steps / 40) + 0.1, "val_loss": 4 * np.exp(-steps / 50) + 0.2}
    losses["val_loss"] += 0.004 * np.maximum(0, steps - 120)
    return plot.history(vernal.History({}, losses))


def fits():
    models = {"a guess": line(-1.0, 3.0), "trained": line(2.0, 1.0)}
    return plot.predictions(models, (X, Y), residuals=True)


def left_over():
    return plot.residuals(line(2.0, 1.0), (X, Y))


def boundary():
    points = RNG.normal(0, 1.3, (150, 2)).astype(np.float32)
    radius = np.sum(points**2, axis=1)
    return plot.decision_boundary(Ring(), (points, (radius > 1).astype(int) + (radius > 4)))


def confusion():
    matrix = [[50, 2, 0], [4, 41, 5], [0, 1, 9]]
    return plot.confusion_matrix(matrix, labels=["cat", "dog", "fox"])


DRAWN = {f.__name__: f for f in (curves, fits, left_over, boundary, confusion)}


def draw(name, path):
    global RNG
    RNG = np.random.default_rng(1)
    with matplotlib.rc_context(matplotlib.rcParamsDefault):
        matplotlib.rcParams["figure.constrained_layout.use"] = True
        ax = DRAWN[name]()
        assert isinstance(ax, Axes)
        plt.gcf().savefig(path, dpi=100, metadata={"Software": None})
        plt.close("all")


@pytest.mark.parametrize("name", DRAWN)
def test_looks_as_it_did(name, tmp_path):
    drawn = tmp_path / f"{name}.png"
    draw(name, drawn)
    # Root mean square of the difference, of 255: the edges of letters may differ by version.
    differs = compare_images(str(KEPT / f"{name}.png"), str(drawn), tol=8)
    assert differs is None


def test_another_picture_is_noticed(tmp_path):
    draw("fits", tmp_path / "fits.png")
    other = tmp_path / "other.png"
    plot.predictions({"a guess": line(-1.0, 3.0), "trained": line(1.8, 1.0)}, (X, Y))
    plt.gcf().savefig(other, dpi=100)
    plt.close("all")
    assert compare_images(str(KEPT / "fits.png"), str(other), tol=8) is not None


if __name__ == "__main__":
    KEPT.mkdir(exist_ok=True)
    for name in DRAWN:
        draw(name, KEPT / f"{name}.png")
