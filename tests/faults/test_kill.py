"""Processes that are killed, at any time, and started again until they are done."""

import random
import shutil
import signal
import time

import pytest
from runs import RUNS, made_by


def killed_until_done(script, name, directory, rng, most):
    """How often the process was killed, which is bounded, and the hash in the end."""
    for kills in range(most):
        process = script.begin(name, directory, "--seconds", 0.1)
        if rng.random() < 0.8:
            script.wait_for_training(process, directory)
        time.sleep(rng.uniform(0, 1))
        process.send_signal(signal.SIGKILL)
        ended = script.end(process)
        if ended.status == 0:
            return kills, ended.hash
        assert ended.status == -signal.SIGKILL, ended.error
    return most, made_by(name, directory)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_is_killed_at_random_times_is_the_same_run(
    name, script, expected, tmp_path, long, tried
):
    """Killed ten times each, at least, in all ways that a run can be; or one of them once."""
    if not long and name != "early stopping":
        pytest.skip("in nox -s faults")
    rng, kills, attempt = random.Random(name), 0, 0
    while kills < (10 if long else 1):
        attempt += 1
        directory = tmp_path / str(attempt)
        more, made = killed_until_done(script, name, directory, rng, 5 if long else 1)
        assert made == expected(name)
        kills += more
        shutil.rmtree(directory)
    tried("`kill -9` at a random time, then started again until done", kills)


def test_a_run_that_is_killed_at_each_point_of_a_save_is_the_same_run(
    script, expected, tmp_path, long, tried
):
    """At the N-th thing that is made, opened, renamed or removed, for every N; or for some."""
    seen, number = set(), 1 if long else 38
    while number < (10**6 if long else 60):
        directory = tmp_path / str(number)
        ended = script.run("ragged", directory, "--every-steps", 16, "--kill-at", number)
        if ended.status == 0:  # there are no more
            assert ended.hash == expected("ragged")
            break
        assert ended.status == -signal.SIGKILL, ended.error
        seen.add(ended.at)
        tried(f"`kill -9` at an event of a save: {ended.at}")
        assert made_by("ragged", directory) == expected("ragged"), (number, ended.at)
        shutil.rmtree(directory)
        number += 1 if long else 37
    if long:
        assert seen >= {"os.mkdir", "open", "os.rename", "os.rmdir"}, seen
