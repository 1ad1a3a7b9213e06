"""A small checkpoint, each of its bits flipped by itself."""

import os

import jax
import numpy as np
import optax
import pytest
from runs import flipped

import vernal
from vernal import losses, nn


@pytest.mark.filterwarnings("ignore:the checkpoint .* is damaged")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_every_flipped_bit_of_a_checkpoint_is_noticed_or_does_not_matter(tmp_path, long, tried):
    model = nn.Linear(1, 1, key=jax.random.key(0))
    trainer = vernal.Trainer(optax.sgd(0.1), losses.MeanSquaredError())
    data = np.ones((4, 1), np.float32), np.zeros((4, 1), np.float32)
    checkpoints = vernal.Checkpoints(tmp_path, every_seconds=None, keep=1)
    state, _ = trainer.fit(model, data, epochs=2, checkpoints=checkpoints)
    like = nn.Linear(1, 1, key=jax.random.key(1))
    paths = [os.path.join(root, name) for root, _, names in os.walk(tmp_path) for name in names]
    ends = {"right": 0, "error": 0}
    for path in sorted(paths):
        for bit in range(0, 8 * os.path.getsize(path), 1 if long else 1999):
            flipped(path, bit)
            try:
                found = vernal.load(tmp_path, like)
                assert np.array_equal(found.weight, state.model.weight), (path, bit)
                assert found.bias == state.model.bias, (path, bit)
                ends["right"] += 1
            except vernal.CheckpointError:
                ends["error"] += 1
            flipped(path, bit)
    assert min(ends.values()) > 0, ends
    tried("a flipped bit of a checkpoint, each of them", sum(ends.values()))
    assert np.array_equal(vernal.load(tmp_path, like).weight, state.model.weight)
