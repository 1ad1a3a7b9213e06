"""Make the README's picture: `python docs/make_pictures.py`."""

from pathlib import Path

import jax
import matplotlib
import numpy as np
import optax

import vernal
from vernal import losses, nn, plot

matplotlib.use("Agg")  # the same picture with and without a display
import matplotlib.pyplot as plt

IMAGES = Path(__file__).parent / "images"


def fit() -> None:
    """Draw two models on noisy points, and how their losses fell."""
    rng = np.random.default_rng(0)
    x = np.linspace(-6, 6, 150, dtype=np.float32)[:, None]
    y = np.sin(x) + x / 4 + rng.normal(0, 0.15, x.shape).astype(np.float32)
    key = jax.random.key(0)
    models = {
        "nn.Linear": nn.Linear(1, 1, key=key),
        "nn.MLP": nn.MLP(1, 1, width_size=32, depth=2, activation=jax.numpy.tanh, key=key),
    }
    trainer = vernal.Trainer(optax.adam(2e-3), losses.MeanSquaredError())
    runs = {name: trainer.fit(model, (x, y), epochs=1_000) for name, model in models.items()}

    fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3), dpi=100, layout="constrained")
    plot.predictions({name: state for name, (state, _) in runs.items()}, (x, y), ax=left)
    for name, (_, history) in runs.items():
        plot.history(history, ax=right, label=name)
    IMAGES.mkdir(exist_ok=True)
    # No version and no date in the file: the same picture is the same bytes.
    fig.savefig(IMAGES / "fit.png", metadata={"Software": None})


if __name__ == "__main__":
    fit()
