"""A small checkpoint, each of its bits flipped by itself."""

import os
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from runs import flipped

import vernal
from vernal import losses, nn


def is_never_read(path, is_right):
    """Whether a file may hold anything at all, or be gone: no bit of it matters, then.

    A restore takes some ten milliseconds. Most files of a checkpoint are none of its concern, such
    as what Orbax wrote before it merged the arrays: three restores decide all bits of one of these.
    """
    whole = path.read_bytes()
    path.write_bytes(bytes(byte ^ 0xFF for byte in whole))
    never = is_right(path)
    path.write_bytes(b"")
    never = never and is_right(path)
    path.unlink()
    never = never and is_right(path)
    path.write_bytes(whole)
    return never


@pytest.mark.filterwarnings("ignore:the checkpoint .* is damaged")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_every_flipped_bit_of_a_checkpoint_is_noticed_or_does_not_matter(tmp_path, long, tried):
    model = nn.Linear(1, 1, key=jax.random.key(0))
    trainer = vernal.Trainer(optax.sgd(0.1), losses.MeanSquaredError())
    data = np.ones((4, 1), np.float32), np.zeros((4, 1), np.float32)
    checkpoints = vernal.Checkpoints(tmp_path, every_seconds=None, keep=1)
    state, _ = trainer.fit(model, data, epochs=2, checkpoints=checkpoints)
    like = nn.Linear(1, 1, key=jax.random.key(1))

    def is_right(*damaged):
        """Whether the model is restored; if not, that is said."""
        try:
            found = vernal.load(tmp_path, like)
        except vernal.CheckpointError:
            return False
        assert np.array_equal(found.weight, state.model.weight), damaged
        assert found.bias == state.model.bias, damaged
        return True

    paths = [Path(root, name) for root, _, names in os.walk(tmp_path) for name in names]
    read = [path for path in sorted(paths) if not is_never_read(path, is_right)]
    assert {path.parent.name for path in read} >= {"arrays", "description"}, read
    unread = sum(path.stat().st_size for path in paths if path not in read)
    tried("a bit of a file of a checkpoint that may hold anything", 8 * unread)
    ends = {True: 0, False: 0}
    for path in read:
        for bit in range(0, 8 * path.stat().st_size, 1 if long else 1999):
            flipped(path, bit)
            ends[is_right(path, bit)] += 1
            flipped(path, bit)
    assert min(ends.values()) > 0, ends
    tried("a flipped bit of a checkpoint, each of them", sum(ends.values()))
    assert is_right()
