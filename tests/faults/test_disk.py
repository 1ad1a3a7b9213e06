"""Disks that are full, and directories that cannot be written to or that vanish."""

import shutil
from typing import Any

import pytest
from runs import at_event, fail, made_by, run_of

import vernal

# Tensorstore may end a write that failed after Orbax has closed the loop that waits for it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def test_whatever_fails_in_the_directory_leaves_the_checkpoints_before(
    expected, tmp_path, long, tried
):
    """The N-th thing made, opened or renamed there fails, as on a full disk, for every N."""
    number, named = 1, 0
    while number < (10**6 if long else 60):
        directory, events = tmp_path / f"fails-at-{number}", []

        def fails(event, events=events):
            events.append(event)
            fail(event)

        at_event(directory, number, fails)
        try:
            made = made_by("ragged", directory, every_steps=16)
            assert made == expected("ragged")  # Orbax can do without some of it
        except vernal.CheckpointError as error:
            said = str(error).replace("\n  ", "")
            assert str(directory) in said
            named += "the checkpoint of step" in said
        if not events:  # there are no more
            break
        assert made_by("ragged", directory) == expected("ragged"), (number, events)
        leftover = [path.name for path in directory.iterdir() if not path.name.isdecimal()]
        assert not leftover, leftover
        tried(f"a full disk at an event in the directory: {events[0]}")
        shutil.rmtree(directory)
        number += 1 if long else 13
    assert named > 0


def test_files_that_cannot_grow_leave_the_checkpoints_before(
    script, expected, tmp_path, long, tried
):
    """No file may be larger than so many bytes: what is written outside of Python fails too."""
    ends = set()
    for limit in range(0, 12000, 500) if long else (2500,):
        directory = tmp_path / str(limit)
        ended = script.run("ragged", directory, "--every-steps", 4, "--limit", limit)
        ends.add(ended.status)
        if ended.status:
            assert "CheckpointError" in ended.error and str(directory) in ended.error, ended.error
        assert made_by("ragged", directory) == expected("ragged"), limit
        tried("a limit on the size of files, which Orbax's own writes meet")
    assert ends >= ({0, 1} if long else {1}), ends


def test_a_directory_that_is_no_directory_is_named_before_training(tmp_path):
    tr, start, how = run_of("plain")
    (tmp_path / "file").write_text("")
    with pytest.raises(vernal.CheckpointError, match="file") as raised:
        tr.fit(start, **how, checkpoints=vernal.Checkpoints(tmp_path / "file"))
    assert not hasattr(raised.value, "state")
    with pytest.raises(vernal.CheckpointError, match="below"):
        tr.fit(start, **how, checkpoints=vernal.Checkpoints(tmp_path / "file" / "below"))


def test_a_directory_that_vanishes_is_named(tmp_path):
    tr, start, how = run_of("plain")
    directory = tmp_path / "run"

    def vanish(epoch):
        if epoch.index == 3:
            while directory.exists():  # the checkpoint before is still being written, perhaps
                shutil.rmtree(directory, ignore_errors=True)
            directory.write_text("something else is there now")

    how["callbacks"] = [vanish]
    checkpoints = vernal.Checkpoints(directory, every_seconds=None, every_epochs=1)
    with pytest.raises(vernal.CheckpointError, match=r"step (9|12|15) ") as raised:
        tr.fit(start, **how, checkpoints=checkpoints)
    assert str(directory) in str(raised.value).replace("\n  ", "")
    error: Any = raised.value
    assert int(error.state.step) >= 12
    # A later run, elsewhere, is none the worse for it.
    how.pop("callbacks")
    state, _ = tr.fit(start, **how, checkpoints=vernal.Checkpoints(tmp_path / "other"))
    assert int(state.step) == 36
