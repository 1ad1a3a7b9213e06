"""What compiles, and how often; and what is imported."""

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vernal
from vernal import losses, nn
from vernal._data.superbatch import Stack
from vernal._training import pace as _pace
from vernal._training.chunks import Loop
from vernal._training.compiled_loop import run
from vernal._training.progress import Progress
from vernal._training.records import Records

X = np.linspace(-1, 1, 106, dtype=np.float32)[:, None]
DATA = (X, X**2)


def programs() -> int:
    """How many loops were compiled so far."""
    return run.jitted._cache_size()


def fresh():
    """A trainer that has compiled nothing yet, and a model of its own."""
    trainer = vernal.Trainer(optax.adam(1e-3), losses.MeanSquaredError())
    return trainer, nn.MLP(1, 1, 8, 1, key=jax.random.key(0))


@pytest.mark.parametrize("size", [None, 10, 53], ids=["full batch", "ragged tail", "even"])
def test_one_fit_compiles_the_loop_once_and_a_second_nothing(size, compiled):
    trainer, model = fresh()
    before = programs()
    _, history = trainer.fit(model, DATA, epochs=300, batch_size=size)
    assert len(history.steps["loss"]) == 300 * (1 if size is None else -(-106 // size))
    assert programs() == before + 1  # a ragged tail is a second body of the same loop
    compiled.clear()
    # Other lengths of the run, other values: the same program.
    other = nn.MLP(1, 1, 8, 1, key=jax.random.key(5))
    compiled.clear()
    state, _ = trainer.fit(other, DATA, epochs=300, batch_size=size)
    trainer.fit(model, (X + 1, X), epochs=17, batch_size=size)
    trainer.fit(state, DATA, epochs=3, batch_size=size)
    assert compiled == []


def test_the_listener_sees_compilations(compiled):
    jax.jit(lambda x: x + 12345)(jnp.ones(3))
    assert len(compiled) >= 1


def test_epochs_step_evaluate_and_predict_compile_once(compiled):
    trainer, model = fresh()

    def all_of_it():
        state = trainer.init(model)
        for epoch in trainer.epochs(state, DATA, batch_size=10, validation_data=DATA):
            if epoch.index == 2:
                break
        for batch in vernal.batches(DATA, 53):
            state, _ = trainer.step(state, batch)
        trainer.evaluate(state, DATA, batch_size=50)
        trainer.predict(state, X, batch_size=50)

    all_of_it()
    compiled.clear()
    all_of_it()
    assert compiled == []


def test_another_trainer_with_the_same_choices_compiles_nothing(compiled):
    trainer, model = fresh()
    trainer.fit(model, DATA, epochs=2)
    compiled.clear()
    twin = vernal.Trainer(trainer.optimizer, losses.MeanSquaredError())
    twin.fit(model, DATA, epochs=2)
    assert compiled == []


def test_importing_vernal_imports_nothing_slow():
    """What costs start-up time is imported when it is used."""
    code = (
        "import sys, jax, equinox, optax; before = set(sys.modules); import vernal; "
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(run.stdout.split()) == {"vernal"}


# ----- how long chunks are, by a clock that only the test moves on


@pytest.fixture
def clock(monkeypatch):
    """Now, in seconds; to look at it takes 1 µs."""
    now = SimpleNamespace(seconds=0.0)

    def perf_counter():
        now.seconds += 1e-6
        return now.seconds

    monkeypatch.setattr("vernal._training.chunks.time", SimpleNamespace(perf_counter=perf_counter))
    return now


@pytest.fixture
def chunks(monkeypatch):
    """The updates of each chunk of a run."""
    seen = []

    def show(self, chunk, validation=None):
        if chunk:
            seen.append(sum(records.updates for records in chunk))

    monkeypatch.setattr(Progress, "show", show)
    return seen


@pytest.mark.parametrize("first", [1, 7500], ids=["short at first", "long at first"])
@pytest.mark.parametrize(("host", "device"), [(100, 1), (1, 100), (50, 100)])
def test_chunks_take_a_quarter_of_a_second(host, device, first, clock, chunks, monkeypatch):
    """An update takes the host and the device so many µs, at the same time."""
    call, fetched, done, latest = Loop._call, Records.fetched, {}, [0.0]

    def queue(self, *args):
        records = call(self, *args)
        clock.seconds += 1e-6 * host * records.updates
        latest[0] = max(latest[0], clock.seconds) + 1e-6 * device * records.updates
        done[id(records)] = records, latest[0]
        return records

    def wait(self):
        clock.seconds = max(clock.seconds, done[id(self)][1])
        return fetched(self)

    monkeypatch.setattr(Loop, "_call", queue)
    monkeypatch.setattr(Records, "fetched", wait)
    monkeypatch.setattr("vernal._training.pace.FIRST_WORK", 10_000 * first)
    monkeypatch.setattr("vernal._training.pace.REPEATS", 250)
    trainer, model = fresh()
    trainer.fit(model, DATA, epochs=75_000)
    assert sum(chunks) == 75_000
    assert len(chunks) > 20
    assert max(chunks) <= (7500 if first > 1 else 5000)
    # It takes some chunks to find out.
    settled = chunks[len(chunks) // 2 : -2]
    assert 2250 <= min(settled) <= max(settled) <= 3000


class Recurrent(eqx.Module):
    """Few parameters, and much that is made of them."""

    weight: jax.Array

    def __call__(self, x):
        return jax.lax.fori_loop(0, 50, lambda _, x: x + jnp.sin(self.weight @ x), x)


def test_a_model_with_loops_of_its_own_shows_its_first_update(chunks):
    """How long an update takes cannot be told from the number of parameters."""
    trainer, _ = fresh()
    trainer.fit(Recurrent(jnp.full((1, 1), 0.01)), DATA, epochs=40)
    assert chunks[:2] == [1, 1]
    assert sum(chunks) == 40
    chunks.clear()
    trainer, model = fresh()
    trainer.fit(model, DATA, epochs=40)
    assert chunks == [40]


def test_a_chunk_ends_when_a_slow_loader_has_taken_its_time(clock, chunks):
    def loader():
        for _ in range(2000):
            clock.seconds += 1e-3
            yield DATA

    trainer, model = fresh()
    trainer.fit(model, loader, epochs=1)
    assert sum(chunks) == 2000
    assert max(chunks) <= 2 * 256  # are stacked at once; the first were before the first chunk


@pytest.mark.parametrize(
    "length, turn", [(390, 30), (312, 26), (64, 32), (28, 28), (13, 13), (7, 16), (101, 16)]
)
def test_an_accelerators_epoch_is_made_in_whole_turns_where_it_can_be(length, turn, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    stack = Stack((X[:, None], X[:, None]), 0, length, 0, 1, length)
    assert _pace.unroll(10**6, True, stack) == turn
    assert _pace.unroll(10**13, True, stack) == 1  # what takes long asks the host in no time
    whole = replace(stack, length=1, repeats=True)
    assert _pace.unroll(10**6, True, whole) == 32


@pytest.mark.parametrize("work", [1, 10**6, 10**9, 10**12, 10**15])
def test_an_accelerators_first_chunk_is_long_where_updates_are_large(work, monkeypatch):
    here = _pace.first(work)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    there = _pace.first(work)
    assert min(here, there) >= 1
    assert (there > here) == (10**7 < work < 10**13)
    assert _pace.may_hold() > _pace.HELD_BYTES
