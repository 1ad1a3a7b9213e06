"""Several processes train one model: on loopback, killed and restarted, in other numbers."""

import csv
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

# Each process has two devices. The last one may kill itself, or be the one that ends the run.
SCRIPT = """
import json, os, signal, sys
rank, number, port, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
options = json.loads(sys.argv[5])
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
model = eqx.nn.MLP(4, 1, 16, 1, activation=jax.nn.tanh, key=jax.random.key(0))
if options.get("split"):
    def split(leaf):
        spec = PartitionSpec("data") if leaf.shape[0] % 16 == 0 else PartitionSpec()
        return jax.device_put(leaf, NamedSharding(mesh, spec))
    arrays, rest = eqx.partition(model, eqx.is_array)
    model = eqx.combine(jax.tree.map(split, arrays), rest)
is_last = rank == number - 1

def at_the_end(epoch):
    if is_last and epoch.index == options.get("kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    if is_last and epoch.index == options.get("interrupt"):
        os.kill(os.getpid(), signal.SIGINT)
    return is_last and epoch.index == options.get("stop")

data, size = (x, y), 64
if options.get("loader"):
    def data():
        for i in range(0, 192, 64):
            share = 64 // number
            rows = slice(i + rank * share, i + (rank + 1) * share)
            yield x[rows], y[rows]
    size = None
trainer = vernal.Trainer(optax.adam(1e-2), losses.MeanSquaredError(), mesh=mesh)
checkpoints = vernal.Checkpoints(folder + "/run", every_epochs=1)
state, history = trainer.fit(
    model, data, epochs=options["epochs"], batch_size=size, validation_data=(x[:50], y[:50]),
    callbacks=[callbacks.CSVLog(folder + "/log.csv"), callbacks.BestState("val_loss"), at_the_end],
    checkpoints=checkpoints if options.get("saves", True) else None,
)
predicted = np.asarray(trainer.predict(state, x[:16]))
measured = trainer.evaluate(state, (x, y))["loss"]
with open(f"{folder}/{rank}.json", "w") as file:
    json.dump([history.epochs["loss"].tolist(), predicted.ravel().tolist(), measured], file)
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def run(folder: Path, number: int, **options):
    """Run the script in so many processes; return what each printed, and what it has found."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.json"):
        old.unlink()
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu"}
    shared = [str(number), str(free_port()), str(folder), json.dumps(options)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(rank), *shared],
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
    if "kill" in options:
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


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process finds in eight epochs."""
    return run(tmp_path_factory.mktemp("alone"), 1, epochs=8)


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("split", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_run_goes_on_in_other_numbers_of_processes_after_one_was_killed(
    tmp_path, alone, split, long
):
    run(tmp_path, 1, epochs=1, split=split)
    run(tmp_path, 2, epochs=8, kill=3, split=split)
    run(tmp_path, 4 if long else 2, epochs=5, split=split)
    assert_same(run(tmp_path, 1, epochs=8, split=split), alone)
    rows = list(csv.reader((tmp_path / "log.csv").read_text().splitlines()))
    assert [row[0] for row in rows] == ["epoch", *map(str, range(8))]


def test_each_process_may_read_its_own_part_of_each_batch(tmp_path):
    one = run(tmp_path / "one", 1, epochs=3, loader=True, saves=False)
    two = run(tmp_path / "two", 2, epochs=3, loader=True, saves=False)
    assert_same(two, one)


@pytest.mark.parametrize("how", ["stop", "interrupt"])
def test_one_process_ends_the_run_of_all(tmp_path, how):
    found = run(tmp_path, 2, epochs=1000, saves=False, **{how: 2})
    assert found is not None and len(found[0]) == 3
