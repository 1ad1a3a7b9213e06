"""Power cuts: what the disk holds at any moment is enough to go on from."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from runs import made_by, run_of

import vernal
from vernal._checkpointing import durable, manager


def test_a_checkpoint_is_on_the_disk_before_an_older_one_is_deleted(tmp_path, monkeypatch, tried):
    synced, deleted = {}, []
    sync, rmtree = durable.sync, shutil.rmtree

    def note(path):
        sync(path)
        found = os.stat(path)
        synced[found.st_ino] = found.st_mtime_ns

    def check(path, *args, **kwargs):
        if path.parent == tmp_path and path.name.isdecimal():
            newest = max(tmp_path.glob("[0-9]"), key=lambda each: int(each.name))
            parts = [newest / "arrays", newest / "description"]
            files = [each for part in parts for each in part.rglob("*") if each.is_file()]
            assert len(files) > 5
            for each in [*files, *parts, tmp_path]:
                found = os.stat(each)
                # The directory changed by the name of the newest alone.
                assert synced[found.st_ino] == found.st_mtime_ns, each
            deleted.append(path.name)
        return rmtree(path, *args, **kwargs)

    monkeypatch.setattr(durable, "sync", note)
    monkeypatch.setattr(manager.shutil, "rmtree", check)
    tr, start, how = run_of("ragged")
    saving = vernal.Checkpoints(tmp_path, every_seconds=None, every_epochs=3)
    tr.fit(start, **how, checkpoints=saving)
    assert deleted == ["1", "2", "3"]
    tried("a checkpoint on the disk before an older one is deleted", len(deleted))


def newest(directory):
    """The number of the newest checkpoint; 0 if there is none."""
    names = [path.name for path in directory.glob("*")]
    return max([0, *(int(name) for name in names if name.isdecimal())])


@contextlib.contextmanager
def mounted(image: Path, place: Path):
    """Mount the image of a disk, if this process may."""
    place.mkdir(exist_ok=True)
    command = ["mount", "-o", "loop", str(image), str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this process may not mount the image of a disk")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_run_goes_on_after_the_power_was_cut(script, expected, tmp_path, long, tried):
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("there is no mkfs.ext4")
    image, copy = tmp_path / "image", tmp_path / "copy"
    with image.open("wb") as file:
        file.truncate(2**25)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    rng, cuts = np.random.default_rng(0), 0
    with mounted(image, tmp_path / "disk") as disk:
        while cuts < (30 if long else 1):
            shutil.rmtree(disk / "run", ignore_errors=True)
            process = script.begin("ragged", disk / "run", "--seconds", 0.3)
            script.wait_for_training(process, disk / "run")
            for _ in range(5 if long else 1):
                time.sleep(rng.uniform(0.3, 1.0))
                process.send_signal(signal.SIGSTOP)
                saved = newest(disk / "run")
                shutil.copyfile(image, copy)
                process.send_signal(signal.SIGCONT)
                with mounted(copy, tmp_path / "again") as again, warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # the newest may be cut off
                    there = newest(again / "run")
                    assert made_by("ragged", again / "run") == expected("ragged")
                    lost = len(list((again / "run").glob("damaged-*")))
                    assert there - lost >= saved - 2, (there, lost, saved)
                cuts += 1
            process.kill()
            process.communicate()
    tried("the power cut at a random time", cuts)
