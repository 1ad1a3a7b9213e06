"""Files that are damaged: each ends in the right numbers, or in `CheckpointError`."""

import hashlib
import json
import os
import re
import shutil
import struct
import warnings
from contextlib import contextmanager
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import pytest
from runs import flipped, hash_of, run_of

import vernal
from vernal import nn


def files_in(directory):
    """All files below a directory that are not empty."""
    paths = [os.path.join(root, name) for root, _, names in os.walk(directory) for name in names]
    return sorted(path for path in paths if os.path.getsize(path))


def damage(rng, paths, other):
    """Do one thing of many to one of some files. Returns what was done, for the test's message."""
    path = paths[rng.integers(len(paths))]
    size, kind = (
        os.path.getsize(path),
        rng.choice(["flip", "cut", "longer", "swap", "gone", "junk"]),
    )
    match kind:
        case "flip":
            for _ in range(rng.integers(1, 4)):
                flipped(path, int(rng.integers(8 * size)))
        case "cut":
            os.truncate(path, int(rng.integers(size)))
        case "longer":
            with open(path, "ab") as file:
                file.write(rng.bytes(int(rng.integers(1, 50))))
        case "swap":
            source = other[rng.integers(len(other))]
            if source != path:
                shutil.copyfile(source, path)
        case "gone":
            os.remove(path)
        case "junk":
            start = int(rng.integers(size))
            with open(path, "r+b") as file:
                file.seek(start)
                file.write(rng.bytes(int(rng.integers(1, size - start + 1))))
    return kind, path


@contextmanager
def warnings_of_damage():
    """Only those that a checkpoint is damaged."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the checkpoint .* is damaged")
        yield


# Of Orbax's reads that were under way when another failed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_checkpoint_is_passed_over_or_named(tmp_path, long, tried):
    tr, start, how = run_of("ragged")
    whole, copy = tmp_path / "whole", tmp_path / "copy"
    saving = lambda path: vernal.Checkpoints(path, every_seconds=None, every_steps=20, keep=2)
    expected = hash_of(*tr.fit(start, **how, checkpoints=saving(whole)))
    assert len(list(whole.iterdir())) == 2
    rng, ends = np.random.default_rng(1), {"right": 0, "error": 0}
    for trial in range(2000 if long else 12):
        shutil.copytree(whole, copy)
        newest = copy / max(os.listdir(copy), key=int)
        # The newest; or both of them, the older one too, in several files: some do not matter.
        places = [newest] if trial % 4 else sorted(copy.iterdir()) * 12
        done = [damage(rng, files_in(place), files_in(copy)) for place in places]
        try:
            with warnings_of_damage():
                made = hash_of(*tr.fit(start, **how, checkpoints=saving(copy)))
            assert made == expected, done
            ends["right"] += 1
        except vernal.CheckpointError as error:
            ends["error"] += 1
            assert "is whole" in error.args[0], (error.args[0], done)
            assert len(places) > 1, done
        shutil.rmtree(copy)
    assert min(ends.values()) > 0, ends
    tried("damage to a checkpoint: the right run, from the one before", ends["right"])
    tried("damage to all checkpoints: `CheckpointError`", ends["error"])


@pytest.mark.parametrize("which", [0, 1], ids=["the one before", "the newest"])
def test_damage_to_what_orbax_noted_of_a_checkpoint_does_not_matter(which, tmp_path):
    """Orbax takes one field that it does not know for the user's, and refuses a second one."""
    tr, start, how = run_of("plain")
    checkpoints = vernal.Checkpoints(tmp_path, every_seconds=None)
    expected = hash_of(*tr.fit(start, **how, checkpoints=checkpoints))
    (notes,) = sorted(tmp_path.iterdir())[which].glob("_CHECKPOINT_METADATA")
    whole = notes.read_text()
    notes.write_text(whole.replace("init_t", "init_T").replace("commit_t", "commit_T"))
    assert notes.read_text() != whole
    with warnings.catch_warnings():  # no checkpoint is passed over
        warnings.simplefilter("error")
        assert hash_of(*tr.fit(start, **how, checkpoints=checkpoints)) == expected
    assert len(list(tmp_path.iterdir())) == 2
    how["epochs"] += 1
    state, _ = tr.fit(start, **how, checkpoints=checkpoints)  # and another one is written
    assert int(state.epoch) == how["epochs"]
    assert hash_of(*tr.fit(start, **how, checkpoints=checkpoints)) == hash_of(*tr.fit(start, **how))


@pytest.fixture
def small(tmp_path):
    """A small model, and a file with it."""
    model = nn.Linear(2, 1, key=jax.random.key(5))
    vernal.save(tmp_path / "model.safetensors", model)
    return model, tmp_path / "model.safetensors"


def loads_right_or_not(path, model, like):
    """Whether a file has the model in it; if not, that is said."""
    try:
        found = vernal.load(path, like)
    except vernal.CheckpointError:
        return False
    arrays = lambda tree: jax.tree.leaves(eqx.filter(tree, eqx.is_array))
    for a, b in zip(arrays(found), arrays(model), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    return True


def test_every_flipped_bit_of_a_small_file_is_noticed(small, long, tried):
    model, path = small
    like, ends = nn.Linear(2, 1, key=jax.random.key(9)), {True: 0, False: 0}
    for bit in range(0, 8 * path.stat().st_size, 1 if long else 7):
        flipped(path, bit)
        ends[loads_right_or_not(path, model, like)] += 1
        flipped(path, bit)
    assert loads_right_or_not(path, model, like)
    # Of the bits that hold nothing, such as spaces in the header, few are left.
    assert ends[False] > 0.9 * sum(ends.values()), ends
    tried("a flipped bit of a safetensors file, each of them", sum(ends.values()))


def test_a_damaged_file_is_never_taken_for_another_model(tmp_path, long, tried):
    model = nn.MLP(4, 2, 16, 2, key=jax.random.key(5))
    whole, other = tmp_path / "whole.safetensors", tmp_path / "other.safetensors"
    vernal.save(whole, model)
    vernal.save(other, nn.MLP(4, 2, 16, 2, key=jax.random.key(8)))
    like, path = nn.MLP(4, 2, 16, 2, key=jax.random.key(9)), str(tmp_path / "tried.safetensors")
    rng = np.random.default_rng(2)
    for _ in range(2000 if long else 50):
        shutil.copyfile(whole, path)
        kind, _ = damage(rng, [path], [path])
        if kind != "gone":
            assert os.path.exists(path)
        loads_right_or_not(path, model, like)
        tried("damage to a safetensors file")


@pytest.mark.parametrize(
    "header",
    [
        b'{"weight":{"dtype":"F32","shape":[9223372036854775807],"data_offsets":[0,4]}}',
        b'{"weight":{"dtype":"F32","shape":[1,2],"data_offsets":[0,9223372036854775807]}}',
        b'{"weight":{"dtype":"F32","shape":[-1,2],"data_offsets":[0,8]}}',
        b'{"../weight":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}}',
        b'{"weight":{"dtype":"F99","shape":[1,2],"data_offsets":[0,8]}}',
        b'{"__metadata__":{"vernal.arrays":"[]"}}',
        b"[]",
        b"{" * 5000,
        b"",
    ],
    ids=["2**63", "offsets", "negative", "parent", "dtype", "digests", "list", "deep", "none"],
)
@pytest.mark.parametrize("length", [None, 2**63 - 1, 2**40, 0], ids=["its", "huge", "large", "0"])
def test_hostile_headers_are_errors(small, header, length, tried):
    model, path = small
    path.write_bytes(
        struct.pack("<Q", len(header) if length is None else length) + header + b"0" * 8
    )
    with pytest.raises(vernal.CheckpointError):
        vernal.load(path, model)
    tried("a hostile header of a safetensors file")


def test_nothing_is_unpickled():
    """There is no pickle in the package; and what reads files runs nothing of what they say."""
    root = Path(vernal.__file__).parent
    sources = {path.name: path.read_text(encoding="utf-8") for path in root.rglob("*.py")}
    assert len(sources) > 30
    for name, text in sources.items():
        for word in ("pickle", "marshal", "shelve", "joblib", "dill", "cloudpickle"):
            assert word not in text, (name, word)
    readers = list((root / "_checkpointing").glob("*.py"))
    assert len(readers) > 5
    for path in readers:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\b(eval|exec|__import__|import_module)\(", text), path


def test_a_checkpoint_that_says_another_shape_is_damaged(tmp_path):
    """Its digest is that of its content, as somebody who means harm would make it."""
    tr, start, how = run_of("plain")
    tr.fit(start, **how, checkpoints=vernal.Checkpoints(tmp_path, every_seconds=None, keep=1))
    (checkpoint,) = tmp_path.iterdir()
    described = checkpoint / "description" / "metadata"
    content = json.loads(described.read_text())["content"]
    for name, stored in content["arrays"].items():
        if not name.startswith("0."):
            stored[0] = [2**62]
    sha256 = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    described.write_text(json.dumps({"sha256": sha256, "content": content}))
    with pytest.raises(vernal.CheckpointError, match="damaged"):
        tr.fit(start, **how, checkpoints=vernal.Checkpoints(tmp_path))
    assert eqx.is_array(start.layers[0].weight)
