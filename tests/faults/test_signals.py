"""Signals, and errors of others: what was saved is there, and handlers are as they were."""

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from runs import X, Y, hash_of, made_by, run_of

import vernal


@pytest.fixture
def handlers():
    """Fails if a handler is not what it was before."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    assert [signal.getsignal(number) for number in numbers] == before


def test_sigterm_saves_and_ends_with_143_and_nobody_else_trains_there_before(
    script, expected, tmp_path, tried
):
    directory = tmp_path / "run"
    process = script.begin("ragged", directory, "--seconds", 2)
    script.wait_for_training(process, directory)
    tr, start, how = run_of("ragged")
    with pytest.raises(vernal.CheckpointError, match=f"process {process.pid} trains with"):
        tr.fit(start, **how, checkpoints=vernal.Checkpoints(directory))
    process.send_signal(signal.SIGTERM)
    ended = script.end(process)
    assert ended.status == 143, ended.error
    assert str(directory) in ended.error.replace("\n  ", "")
    assert made_by("ragged", directory) == expected("ragged")
    tried("SIGTERM")


HANGING = """
import sys, time, vernal
from runs import run_of

def hang(epoch):
    print("hangs", flush=True)
    time.sleep(600)

tr, start, how = run_of("ragged")
tr.fit(start, **how, callbacks=[hang], checkpoints=vernal.Checkpoints(sys.argv[1]))
"""


def test_a_second_sigterm_ends_a_process_that_hangs(script, tmp_path):
    command = [sys.executable, "-c", HANGING, str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, cwd=Path(__file__).parent, env=script.environment
    ) as process:
        assert process.stdout and process.stdout.readline() == b"hangs\n"
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == -signal.SIGTERM


LOSING = """
import os, signal, sys, vernal
from runs import X, Y, run_of

def batches():
    for i in range(450):
        if i == 449:  # the scheduler ends the loader's workers, too
            os.kill(os.getpid(), signal.SIGTERM)
            raise ConnectionError("a worker is gone")
        yield X, Y

tr, start, how = run_of("ragged")
tr.fit(start, batches, epochs=1, checkpoints=vernal.Checkpoints(sys.argv[1]))
print("here")
"""


def test_sigterm_saves_what_an_error_after_it_would_lose(script, tmp_path):
    command = [sys.executable, "-c", LOSING, str(tmp_path)]
    how = {"cwd": Path(__file__).parent, "env": script.environment}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, **how)
    assert ended.returncode == 143, ended.stderr
    assert ended.stdout == ""
    tr, start, _ = run_of("ragged")
    assert int(vernal.load(tmp_path, tr.init(start)).step) > 0  # those that it had read, or fewer


def test_two_runs_in_one_process_do_not_share_a_directory(tmp_path):
    tr, start, how = run_of("ragged")
    saving = vernal.Checkpoints(tmp_path)
    seen = []

    def again(epoch):
        with pytest.raises(vernal.CheckpointError, match="this process trains with") as caught:
            tr.fit(start, **how, checkpoints=saving)
        seen.append(caught)

    how["epochs"] = 1
    tr.fit(start, **how, callbacks=[again], checkpoints=saving)
    assert len(seen) == 1
    tr.fit(start, **how, checkpoints=saving)


def test_a_worker_that_outlives_its_run_does_not_keep_the_directory(tmp_path):
    tr, start, how = run_of("ragged")
    saving = vernal.Checkpoints(tmp_path)
    workers = []

    def fork(epoch):
        if not workers:
            number = os.fork()
            if number == 0:
                time.sleep(60)
                os._exit(0)
            workers.append(number)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of processes with threads, forked
        tr.fit(start, **how, callbacks=[fork], checkpoints=saving)
    how["epochs"] = 20
    tr.fit(start, **how, checkpoints=saving)
    os.kill(workers[0], signal.SIGKILL)
    os.waitpid(workers[0], 0)


def at_epoch(index, act):
    """A callback that does something after an epoch."""

    def callback(epoch):
        if epoch.index == index:
            act()

    return callback


def test_ctrl_c_saves_and_returns_what_there_is(tmp_path, handlers, capsys):
    tr, start, how = run_of("ragged")
    expected = hash_of(*tr.fit(start, **how))
    checkpoints = vernal.Checkpoints(tmp_path / "run", every_seconds=None)
    interrupt = at_epoch(4, lambda: signal.raise_signal(signal.SIGINT))
    state, history = tr.fit(start, **how, callbacks=[interrupt], checkpoints=checkpoints)
    assert int(state.epoch) == 5 and len(history.epochs["loss"]) == 5
    assert str(tmp_path / "run") in capsys.readouterr().err
    assert hash_of(*tr.fit(start, **how, checkpoints=checkpoints)) == expected


def test_a_second_ctrl_c_raises_and_loses_nothing_that_was_trained(tmp_path, handlers):
    tr, start, how = run_of("ragged")
    expected = hash_of(*tr.fit(start, **how))

    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    checkpoints = vernal.Checkpoints(tmp_path / "run", every_seconds=None, every_epochs=2)
    with pytest.raises(KeyboardInterrupt):
        tr.fit(start, **how, callbacks=[at_epoch(4, twice)], checkpoints=checkpoints)
    seen = []
    after = lambda epoch: seen.append(epoch.index)
    assert hash_of(*tr.fit(start, **how, callbacks=[after], checkpoints=checkpoints)) == expected
    assert seen[0] == 5


def test_sigterm_goes_to_a_handler_that_was_there(tmp_path):
    tr, start, how = run_of("plain")
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        terminate = at_epoch(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        checkpoints = vernal.Checkpoints(tmp_path, every_seconds=None)
        state, _ = tr.fit(start, **how, callbacks=[terminate], checkpoints=checkpoints)
        assert heard == [signal.SIGTERM]
        assert int(state.epoch) == 3
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("epochs", [1, 40], ids=["in its last epoch", "early"])
def test_ctrl_c_in_a_run_within_a_callback_ends_both(epochs, tmp_path, handlers):
    tr, start, how = run_of("plain")
    checkpoints = vernal.Checkpoints(tmp_path / "run", every_seconds=None)
    expected, inner = hash_of(*tr.fit(start, **how)), []

    def probe():
        interrupt = at_epoch(0, lambda: signal.raise_signal(signal.SIGINT))
        _, history = tr.fit(start, **how | {"epochs": epochs, "callbacks": [interrupt]})
        inner.append(len(history.epochs["loss"]))

    _, history = tr.fit(start, **how, callbacks=[at_epoch(2, probe)], checkpoints=checkpoints)
    assert inner == [1] and len(history.epochs["loss"]) == 3
    assert hash_of(*tr.fit(start, **how, checkpoints=checkpoints)) == expected


def test_a_worker_that_a_loader_forks_can_be_ended(tmp_path, handlers):
    """As multiprocessing does it, whose `join` would wait for ever."""
    endings, running = [], []

    def batches():
        in_run = signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        worker = os.fork()
        if worker == 0:
            try:
                while True:
                    time.sleep(1)
            finally:
                os._exit(1)
        try:
            yield X[:16], Y[:16]
        finally:  # the pass may not be read to its end
            if in_run:  # Ctrl-C in a terminal reaches it, too, and does not end it
                os.kill(worker, signal.SIGINT)
                time.sleep(0.1)
                running.append(os.waitpid(worker, os.WNOHANG)[0] == 0)
            os.kill(worker, signal.SIGTERM)
            time.sleep(0.5)
            os.kill(worker, signal.SIGKILL)
            endings.append(os.waitpid(worker, 0)[1])

    tr, start, _ = run_of("plain")
    checkpoints = vernal.Checkpoints(tmp_path / "run", every_seconds=None)
    with warnings.catch_warnings():  # JAX and Python warn of a fork among threads
        warnings.simplefilter("ignore")
        tr.fit(start, batches, epochs=3, checkpoints=checkpoints, progress=False)
    assert len(endings) >= 3 and set(endings) == {signal.SIGTERM}
    assert running and all(running)


def test_a_thread_saves_too(tmp_path):
    tr, start, how = run_of("plain")
    expected, made = hash_of(*tr.fit(start, **how)), []
    checkpoints = vernal.Checkpoints(tmp_path, every_seconds=0)
    run = lambda: made.append(hash_of(*tr.fit(start, **how, checkpoints=checkpoints)))
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert made == [expected]


class Broken(Exception):
    """Somebody else's error."""


def broken():
    raise Broken("as an example")


def broken_loader(after):
    """A loader that breaks in its sixth pass, if it is to."""
    passes = []

    def batches():
        passes.append(1)
        for start in range(0, 60, 16):
            if after and len(passes) == 6 and start == 32:
                broken()
            yield X[start : start + 16], Y[start : start + 16]

    return batches


@pytest.mark.parametrize("where", ["callback", "loader", "loss"])
def test_an_error_of_somebody_else_leaves_the_checkpoints(where, tmp_path, handlers):
    tr, start, how = run_of("plain")
    good, bad = dict(how), dict(how)
    checkpoints = vernal.Checkpoints(tmp_path / "run", every_seconds=None, every_epochs=1)
    failing = tr
    if where == "callback":
        bad["callbacks"] = [at_epoch(5, broken)]
    elif where == "loader":
        good["data"], bad["data"] = broken_loader(False), broken_loader(True)
        del good["batch_size"], bad["batch_size"]
    else:

        def loss(model, batch, key):
            broken()

        failing = vernal.Trainer(tr.optimizer, loss)
    expected = hash_of(*tr.fit(start, **good))
    with pytest.raises(vernal.CallError if where == "loss" else Broken):
        failing.fit(start, **bad, checkpoints=checkpoints)
    if where != "loss":
        assert len(list((tmp_path / "run").iterdir())) == 2
    state, history = tr.fit(start, **good, checkpoints=checkpoints)
    assert hash_of(state, history) == expected
    assert np.isfinite(history.steps["loss"]).all()
