"""The workloads of the benchmark: data, sizes, and how long to train. NumPy alone."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

KEPT = "WORKLOADS_KEPT_IN"  # the environment's variable of the folder where data was written


class Unfit(Exception):
    """A rival has nothing for a workload: why, for the table."""


@dataclass(frozen=True)
class Workload:
    """What to train, on what, and for how long.

    `sizes` are, of a network of dense layers, the numbers of features from input to output; of the
    convolutional network, of channels; of the transformer, the vocabulary, width, heads and blocks.
    """

    name: str
    kind: str  # "dense", "convolutional" or "transformer"
    sizes: tuple[int, ...]
    examples: int
    batch_size: int | None  # None is the full batch; the last of an epoch may be smaller
    epochs: int
    activation: str = "relu"  # between dense layers
    optimizer: str = "adam"  # or "sgd"
    rate: float = 1e-3

    @property
    def steps(self) -> int:
        """How many, in all epochs."""
        return self.epochs * -(-self.examples // (self.batch_size or self.examples))

    @property
    def classifies(self) -> bool:
        """Whether the loss is the cross-entropy of integer labels, and not the squared error."""
        return self.kind != "dense"

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """The examples: what goes in, and what is to come out."""
        if folder := os.environ.get(KEPT):
            return tuple(np.load(self.file(folder, part)) for part in "xy")
        return self._made()

    def keep(self, folder: Path) -> None:
        """Write the data to files in a folder: processes that are told of it read them there."""
        for part, array in zip("xy", self._made(), strict=True):
            np.save(self.file(folder, part), array)

    def file(self, folder: str | Path, part: str) -> Path:
        """The file of "x" or "y"."""
        return Path(folder) / f"{self.name}-{part}.npy"

    def _made(self) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(0)
        if self.kind == "convolutional":
            from sklearn.datasets import load_digits

            images, labels = load_digits(return_X_y=True)
            x = np.asarray(images, np.float32) / 16
            return x.reshape(-1, 1, 8, 8), np.asarray(labels, np.int32)
        if self.kind == "transformer":
            # Each token follows from the one before it by a rule that is broken now and then.
            vocabulary = self.sizes[0]
            tokens = np.zeros((self.examples, LENGTH + 1), np.int32)
            tokens[:, 0] = rng.integers(vocabulary, size=self.examples)
            for i in range(LENGTH):
                drawn = rng.integers(vocabulary, size=self.examples)
                rule = (5 * tokens[:, i] + 3) % vocabulary
                tokens[:, i + 1] = np.where(rng.random(self.examples) < 0.1, drawn, rule)
            return tokens[:, :-1], tokens[:, 1:]
        x = rng.normal(size=(self.examples, self.sizes[0])).astype(np.float32)
        projected = x @ rng.normal(size=(self.sizes[0], self.sizes[-1])) / self.sizes[0] ** 0.5
        y = projected if len(self.sizes) == 2 else np.sin(2 * projected)
        return x, (y + 0.1 * rng.normal(size=y.shape)).astype(np.float32)

    def order(self, epoch: int) -> np.ndarray:
        """An epoch's order, for rivals whose loop is written by hand."""
        return np.random.default_rng(epoch).permutation(self.examples).astype(np.int32)

    def loss(self, outputs: np.ndarray, targets: np.ndarray) -> float:
        """The mean loss of a rival's outputs: the same arithmetic for all of them."""
        if not self.classifies:
            return float(np.mean((outputs.reshape(targets.shape) - targets) ** 2))
        outputs = outputs - outputs.max(-1, keepdims=True)
        chosen = np.take_along_axis(outputs, targets[..., None], -1)[..., 0]
        return float(np.mean(np.log(np.exp(outputs).sum(-1)) - chosen))


LENGTH = 32  # tokens in a sequence

WORKLOADS = {
    w.name: w
    for w in (
        Workload("a", "dense", (2, 1), 200, None, 1_000_000),
        Workload("b", "dense", (1, 128, 1), 1000, None, 2000, "tanh", "sgd", 1e-2),
        Workload("c", "dense", (10, 64, 64, 1), 10_000, 32, 120),
        Workload("d", "dense", (32, 256, 256, 1), 100_000, 256, 6),
        Workload("e", "dense", (784, 512, 512, 1), 60_000, 128, 2),
        Workload("f", "convolutional", (1, 16, 32), 1797, 64, 10),
        Workload("g", "transformer", (64, 64, 2, 2), 2048, 32, 4),
    )
}
# Not looked at while the loop was made: other widths, depths, optimizers, ragged tails.
HELD_BACK = {
    w.name: w
    for w in (
        Workload("h1", "dense", (5, 1), 1000, 100, 12_000, optimizer="sgd", rate=1e-2),
        Workload("h2", "dense", (3, 16, 16, 16, 2), 777, 50, 1800),
        Workload("h3", "dense", (20, 128, 1), 5000, 37, 300, "tanh", "sgd", 1e-2),
        Workload("h4", "dense", (64, 300, 100, 10), 20_000, 500, 20),
        Workload("h5", "dense", (8, 32, 1), 3000, None, 6000, "tanh"),
        Workload("h6", "dense", (100, 50, 50, 1), 30_001, 1000, 40, optimizer="sgd"),
    )
}


def workload(name: str) -> Workload:
    """The workload of a name; a tenth as long for each `-` behind it."""
    short = name.rstrip("-")
    found = {**WORKLOADS, **HELD_BACK}[short]
    return replace(found, epochs=max(1, found.epochs // 10 ** (len(name) - len(short))))
