"""What compiles, and how often; and what is imported."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vernal
from vernal import losses, nn

X = np.linspace(-1, 1, 106, dtype=np.float32)[:, None]
DATA = (X, X**2)


def fresh():
    """A trainer that has compiled nothing yet, and a model of its own."""
    trainer = vernal.Trainer(optax.adam(1e-3), losses.MeanSquaredError())
    return trainer, nn.MLP(1, 1, 8, 1, key=jax.random.key(0))


@pytest.mark.parametrize("size", [None, 10], ids=["full batch", "ragged batches"])
def test_a_fit_compiles_at_its_start_and_a_second_nothing(size, compiled):
    trainer, model = fresh()

    def clear(epoch):
        if epoch.index == 0:
            assert compiled
            compiled.clear()

    options = {"batch_size": size, "callbacks": [clear]}
    state, history = trainer.fit(model, DATA, epochs=300, **options)
    assert len(history.steps["loss"]) == 300 * (1 if size is None else 11)
    assert compiled == []  # after the first epoch
    # Other lengths of the run, other values: the same program.
    other = nn.MLP(1, 1, 8, 1, key=jax.random.key(5))
    compiled.clear()
    trainer.fit(other, DATA, epochs=300, batch_size=size)
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
