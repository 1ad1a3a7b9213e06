"""Make the pictures of the README and the front page: `python docs/make_pictures.py`."""

from pathlib import Path

import jax
import matplotlib
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import vernal
from vernal import losses, metrics, nn, plot

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
    # No version and no date in the file: the same picture is the same bytes.
    fig.savefig(IMAGES / "fit.png", metadata={"Software": None})


def digits() -> None:
    """Draw how the README's example trains, and what it confuses."""
    x, y = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(x / 16, y, random_state=0)
    model = nn.MLP(64, 10, width_size=128, depth=2, key=jax.random.key(0))
    measured = {"accuracy": metrics.accuracy, "confusion": metrics.confusion_matrix}
    trainer = vernal.Trainer(optax.adam(1e-3), losses.CrossEntropy(), metrics=measured)
    new = x_test, y_test
    state, history = trainer.fit(
        model, (x_train, y_train), epochs=30, batch_size=32, validation_data=new
    )

    fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.6), dpi=100, layout="constrained")
    plot.history(history, ax=left)
    left.set_title("training (loss) and new images (val_loss)")
    plot.confusion_matrix(trainer.evaluate(state, new)["confusion"], ax=right)
    right.set_title("450 new images")
    fig.savefig(IMAGES / "digits.png", metadata={"Software": None})


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    fit()
    digits()
