"""Runs that go on from each of their checkpoints: the same bits as without."""

import shutil

import numpy as np
import pytest
from runs import RUNS, hash_of, run_of

import vernal

SHORT = ("ragged", "batch norm", "early stopping", "stateful loader", "validated by a loader")


@pytest.mark.parametrize("name", RUNS)
def test_a_run_goes_on_from_each_step(name, tmp_path, long, tried):
    tr, start, how = run_of(name)
    expected = hash_of(*tr.fit(start, **how))
    whole = tmp_path / "whole"
    steps = 1 if long else 5  # no multiple of an epoch's, which are 1, 3 or 4
    every = vernal.Checkpoints(whole, every_seconds=None, every_steps=steps, keep=10**6)
    tr, start, how = run_of(name)
    state, history = tr.fit(start, **how, checkpoints=every)
    assert hash_of(state, history) == expected
    numbers = sorted(int(path.name) for path in whole.iterdir())
    # Before the first step, after each that is asked for, and at the end.
    assert len(numbers) >= len(history.steps["loss"]) // steps + 1
    if not long:
        some = 3 if name in SHORT else 1
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
