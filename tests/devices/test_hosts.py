"""Several processes train one model: on loopback, killed and restarted, in other numbers."""

import csv
import functools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import few_optimizations

# Each of several processes has two devices. The last one may kill itself, or be the one that ends a
# run. What follows knows `rank`, `number` of processes, `port` and `folder`,
SETUP = """
import json, os, signal
import jax
if number > 1:
    jax.distributed.initialize(
        f"127.0.0.1:{port}", number, rank, heartbeat_timeout_seconds=10, shutdown_timeout_seconds=10
    )
import equinox as eqx
import numpy as np
import optax
import vernal
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from vernal import callbacks, losses

mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
rng = np.random.default_rng(0)
x = rng.normal(size=(203, 4)).astype(np.float32)
y = np.sin(x.sum(axis=1, keepdims=True))
trainer = vernal.Trainer(optax.adam(1e-2), losses.MeanSquaredError(), mesh=mesh)
is_last = rank == number - 1

def split(leaf):
    spec = PartitionSpec("data") if leaf.shape[0] % 16 == 0 else PartitionSpec()
    return jax.device_put(leaf, NamedSharding(mesh, spec))

def loader():
    for i in range(0, 192, 64):
        share = 64 // number
        rows = slice(i + rank * share, i + (rank + 1) * share)
        yield x[rows], y[rows]

def train(options):
    model = eqx.nn.MLP(4, 1, 16, 1, activation=jax.nn.tanh, key=jax.random.key(0))
    if options.get("split"):
        arrays, rest = eqx.partition(model, eqx.is_array)
        model = eqx.combine(jax.tree.map(split, arrays), rest)

    def at_the_end(epoch):
        if is_last and epoch.index == options.get("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        if is_last and epoch.index == options.get("interrupt"):
            os.kill(os.getpid(), signal.SIGINT)
        return is_last and epoch.index == options.get("stop")

    data, size = (loader, None) if options.get("loader") else ((x, y), 64)
    log, best = callbacks.CSVLog(folder + "/log.csv"), callbacks.BestState("val_loss")
    checkpoints = vernal.Checkpoints(folder + "/run", every_epochs=1)
    state, history = trainer.fit(
        model, data, epochs=options["epochs"], batch_size=size, validation_data=(x[:50], y[:50]),
        callbacks=[log, best, at_the_end],
        checkpoints=checkpoints if options.get("saves", True) else None,
    )
    predicted = np.asarray(trainer.predict(state, x[:16]))
    measured = trainer.evaluate(state, (x, y))["loss"]
    return [history.epochs["loss"].tolist(), predicted.ravel().tolist(), measured]

"""
# and `runs`: the options of one run after the other.
TRAIN = """
found = [train(options) for options in runs]
with open(f"{folder}/{rank}.json", "w") as file:
    json.dump(found, file)
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@functools.cache
def this_process() -> dict:
    """Return the names of the script in this process: its runs share what is compiled."""
    names = {"rank": 0, "number": 1}
    exec(SETUP, names)
    return names


def run(folder: Path, number: int, *runs: dict) -> Any:
    """Run the script in so many processes, and look at what they print.

    Args:
        folder: Where it saves and logs.
        number: Of processes. One is this process, which has eight devices.
        *runs: The options of each run: the processes make one after the other.

    Returns:
        What each run has found; `None` if a process is killed.
    """
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.json"):
        old.unlink()
    shared = {"number": number, "folder": str(folder), "runs": runs}
    if number == 1:
        with few_optimizations():
            this_process().update(shared)
            exec(TRAIN, this_process())
        return json.loads((folder / "0.json").read_text())

    shared["port"] = free_port()
    environment = {
        **os.environ,
        "JAX_NUM_CPU_DEVICES": "2",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", f"globals().update({ {'rank': rank, **shared} }){SETUP}{TRAIN}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(number)
    ]
    try:
        printed = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    codes = [process.returncode for process in processes]
    if any("kill" in options for options in runs):
        assert codes[-1] == -9 and all(code != 0 for code in codes)
        return None
    assert codes == [0] * number, printed
    # Gloo's own lines aside.
    lines = [
        [line for line in "".join(each).splitlines() if line and "peer ranks" not in line]
        for each in printed
    ]
    assert all(not each for each in lines[1:]), lines
    found = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(number)]
    assert all(each == found[0] for each in found)  # every process has the same
    return found[0]


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("split", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_run_goes_on_in_other_numbers_of_processes_after_one_was_killed(tmp_path, split, long):
    [alone] = run(tmp_path / "alone", 1, {"epochs": 8})
    run(tmp_path, 1, {"epochs": 1, "split": split})
    run(tmp_path, 2, {"epochs": 8, "kill": 3, "split": split})
    if long:
        run(tmp_path, 4, {"epochs": 5, "split": split})
    [found] = run(tmp_path, 1, {"epochs": 8, "split": split})
    assert_same(found, alone)
    rows = list(csv.reader((tmp_path / "log.csv").read_text().splitlines()))
    assert [row[0] for row in rows] == ["epoch", *map(str, range(8))]


READS_ITS_PART = {"epochs": 3, "loader": True, "saves": False}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes find in three runs, of which one of them ends the last two."""
    ends = [{"epochs": 1000, "saves": False, how: 2} for how in ("stop", "interrupt")]
    return run(tmp_path_factory.mktemp("two"), 2, READS_ITS_PART, *ends)


def test_each_process_may_read_its_own_part_of_each_batch(tmp_path, two):
    [one] = run(tmp_path, 1, READS_ITS_PART)
    assert_same(two[0], one)


@pytest.mark.parametrize("how", ["stop", "interrupt"])
def test_one_process_ends_the_run_of_all(two, how):
    losses, *_ = two[1] if how == "stop" else two[2]
    assert len(losses) == 3
