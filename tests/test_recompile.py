"""What compiles again says why, and can be forbidden."""

import logging
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import filled

import vernal
from vernal import losses, nn

pytestmark = pytest.mark.usefixtures("compiled_fast")

KEY = jax.random.key(0)


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


DATA = (normal(23, 3), normal(23, 1))


@pytest.fixture
def told(caplog):
    """What was told, one string a compilation."""
    caplog.set_level(logging.INFO, logger="vernal")
    return lambda: [r.getMessage() for r in caplog.records if r.name == "vernal"]


class Scale(eqx.Module):
    """A model that no other test has."""

    by: jax.Array

    def __call__(self, x):
        return self.by * x


def mlp(width=5, activation=jax.nn.relu, **options):
    return filled(lambda: nn.MLP(3, 1, width, 1, activation, **options, key=KEY))


def fresh(width=5):
    """A trainer that has compiled nothing, and a model."""
    return (
        vernal.Trainer(optax.sgd(1e-3), losses.MeanSquaredError()),
        mlp(width),
    )


def test_a_second_run_of_the_same_program_tells_nothing(told, caplog):
    trainer, model = fresh()
    state, _ = trainer.fit(model, DATA, epochs=2, batch_size=4)
    assert len(told()) == 1
    trainer.fit(state, DATA, epochs=3, batch_size=4)
    assert len(told()) == 1


CHANGES = {
    "batch size": (dict(batch_size=8), "x was float32[4,3], and is float32[8,3]"),
    "full batch": (dict(batch_size=None), "x was float32[4,3], and is float32[23,3]"),
    "width": (dict(model=mlp(7)), "model.layers[0].weight was float32[5,3]"),
    "a static field": (
        dict(model=mlp(use_final_bias=False)),
        "model.use_final_bias was True, and is False",
    ),
    "activation": (
        dict(model=mlp(activation=jnp.tanh)),
        "model.activation was relu, and is tanh",
    ),
    "dtype": (dict(data=(DATA[0], DATA[1] > 0)), "y was float32[4,1], and is bool[4,1]"),
}


@pytest.mark.parametrize(("change", "said"), CHANGES.values(), ids=CHANGES)
def test_fit_tells_what_changed(change, said, told):
    trainer, model = fresh()
    start: dict[str, Any] = {"model": model, "data": DATA, "batch_size": 4}
    for choice in (start, start | change):
        trainer.fit(choice["model"], choice["data"], epochs=1, batch_size=choice["batch_size"])
    assert told()[-1].startswith("fit compiles again: ")
    assert said in " ".join(told()[-1].split())
    assert all(len(line) <= 100 for line in told()[-1].splitlines())


def test_a_new_optimizer_is_named_with_the_remedy(told):
    trainer, model = fresh(6)
    trainer.step(trainer.init(model), DATA)
    other = vernal.Trainer(optax.sgd(1e-3), trainer.loss)
    other.step(other.init(model), DATA)
    message = told()[-1]
    assert "optimizer.update is another chain.<locals>.update_fn" in message
    assert "Make the optimizer once" in message


def test_a_new_loss_is_named_with_the_remedy(told):
    trainer, model = fresh(6)

    def square(model, batch, key):
        return jnp.mean((jax.vmap(model)(batch[0]) - batch[1]) ** 2)

    trainer.step(trainer.init(model), DATA)
    other = vernal.Trainer(trainer.optimizer, square)
    other.step(other.init(model), DATA)
    assert "loss was MeanSquaredError, and is" in told()[-1]
    assert "Make the loss once" in told()[-1]


def test_another_model_is_a_first_time(told):
    trainer, model = fresh()
    trainer.predict(model, DATA[0])
    trainer.predict(eqx.nn.Conv1d(1, 1, 2, key=KEY), DATA[0][:, None])
    assert told()[-1] == "predict compiles, for the first time with such a model and data"


def test_no_recompilation_makes_it_an_error_before_compiling(compiled):
    trainer, model = fresh(9)
    state, _ = trainer.step(trainer.init(model), DATA)
    short = (DATA[0][:7], DATA[1][:7])
    with vernal.no_recompilation():
        trainer.predict(Scale(jnp.ones(3)), DATA[0])  # another kind of model: a first time
        compiled.clear()
        for call in (
            lambda: trainer.step(state, short),
            lambda: trainer.step(state, (DATA[0], DATA[1].astype(np.float16))),
        ):
            with pytest.raises(vernal.RecompilationError, match=r"step compiles again: [xy] was"):
                call()
        assert compiled == []
        state, _ = trainer.step(state, DATA)  # nothing was lost
    trainer.step(state, short)  # and outside it is allowed again
    assert compiled != []


@pytest.mark.parametrize("call", ["fit", "evaluate", "predict"])
def test_no_recompilation_holds_for_every_program(call):
    trainer, model = fresh(11)

    def run(n):
        data = (DATA[0][:n], DATA[1][:n])
        if call == "fit":
            return trainer.fit(model, data, epochs=1)
        return (
            trainer.evaluate(model, data) if call == "evaluate" else trainer.predict(model, data[0])
        )

    run(20)
    with vernal.no_recompilation():
        run(20)
        with pytest.raises(vernal.RecompilationError, match=f"{call} compiles again: x was"):
            run(19)
