"""Runs that go on from each of their checkpoints: the same bits as without."""

import shutil

import numpy as np
import pytest
from runs import RUNS, hash_of, run_of

import vernal

# Without `--long`: after how many steps it saves, and from how many checkpoints it goes on. What is
# not here is a part of "all at once". Some of the steps are within an epoch, which has 1, 3, 4 or 7
# of them; and the parts of an epoch of 4 have two lengths, so that little is compiled.
SHORT = {
    "all at once": (6, 3),
    "full batch": (5, 1),
    "early stopping": (5, 3),
    "streaming": (6, 2),
    "stateful loader": (6, 3),
    "validated by a loader": (6, 3),
    "steps per epoch": (5, 1),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name not in SHORT)) for name in RUNS]
)
def test_a_run_goes_on_from_each_step(name, tmp_path, long, tried):
    tr, start, how = run_of(name)
    expected = hash_of(*tr.fit(start, **how))
    whole = tmp_path / "whole"
    steps, some = (1, None) if long else SHORT[name]
    every = vernal.Checkpoints(whole, every_seconds=None, every_steps=steps, keep=10**6)
    tr, start, how = run_of(name)
    state, history = tr.fit(start, **how, checkpoints=every)
    assert hash_of(state, history) == expected
    numbers = sorted(int(path.name) for path in whole.iterdir())
    # Before the first step, after each that is asked for, and at the end.
    assert len(numbers) >= len(history.steps["loss"]) // steps + 1
    if not long:
        numbers = np.random.default_rng(0).permutation(numbers)[:some]
    for number in numbers:
        part = tmp_path / "part"
        part.mkdir()
        shutil.copytree(whole / str(number), part / str(number))
        tr, start, how = run_of(name)
        again = vernal.Checkpoints(part, every_seconds=None)
        assert hash_of(*tr.fit(start, **how, checkpoints=again)) == expected, number
        shutil.rmtree(part)
        tried(f"going on from a step of a run: {name}")
