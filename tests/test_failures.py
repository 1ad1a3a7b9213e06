"""Steps that fail while they run: the state before them is kept, and the reason is told."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import KEY, assert_same_bits

import vernal
from vernal import losses

X = np.linspace(-1, 1, 32, dtype=np.float32)[:, None]
DATA = X, 10 * X


class Checked(eqx.Module):
    """Fails once its output is larger than 3."""

    linear: eqx.nn.Linear

    def __call__(self, x):
        y = self.linear(x)
        return eqx.error_if(y, jnp.abs(y) > 3.0, "the solver did not converge")


class Calls(eqx.Module):
    """Calls a function in Python, which fails once its output is larger than 3."""

    linear: eqx.nn.Linear

    def __call__(self, x):
        def check(y):
            if abs(y[0]) > 3:
                raise KeyError("no such range")
            return np.zeros((), np.float32)

        y = self.linear(x)
        of_host = jax.ShapeDtypeStruct((), jnp.float32)
        values = jax.lax.stop_gradient(y)
        return y + jax.pure_callback(check, of_host, values, vmap_method="sequential")


MODELS = {
    "error_if": (Checked, "EquinoxRuntimeError: the solver did not converge"),
    "callback": (Calls, "KeyError: 'no such range'"),
}


def model_of(name):
    return MODELS[name][0](eqx.nn.Linear(1, 1, key=KEY))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch_size", [None, 12])
def test_the_state_before_the_step_and_the_record_are_kept(name, batch_size, capfd):
    trainer = vernal.Trainer(optax.sgd(0.02), losses.MeanSquaredError())
    model = model_of(name)
    with pytest.raises(vernal.CallError) as caught:
        trainer.fit(model, DATA, epochs=100, batch_size=batch_size, progress=False)
    error = caught.value
    message = " ".join(str(error).split())
    step = int(error.state.step)
    assert step > 5
    assert message.startswith(f"step {step} failed while it ran: {MODELS[name][1]}")
    assert len(error.history.steps["loss"]) == step
    # It is the state of a run that ends there.
    right, history = trainer.fit(
        model, DATA, epochs=1, steps_per_epoch=step, batch_size=batch_size, progress=False
    )
    assert_same_bits(error.state.model, right.model)
    np.testing.assert_array_equal(error.history.steps["loss"], history.steps["loss"])
    assert "jax.jit" not in message
    with pytest.raises(Exception, match=r"converge|no such range"):
        trainer.fit(error.state, DATA, epochs=1, batch_size=batch_size, progress=False)


def test_without_a_copy_of_the_state_the_last_checkpoint_is_what_there_is():
    trainer = vernal.Trainer(optax.sgd(0.02), losses.MeanSquaredError(), on_nonfinite="ignore")
    with pytest.raises(vernal.CallError, match="last checkpoint") as caught:
        trainer.fit(model_of("error_if"), DATA, epochs=100, progress=False)
    assert caught.value.state is None


def test_a_run_resumes_from_the_checkpoint_before_the_step(tmp_path):
    trainer = vernal.Trainer(optax.sgd(0.02), losses.MeanSquaredError())
    checkpoints = vernal.Checkpoints(tmp_path, every_seconds=None, every_steps=3)

    def run():
        trainer.fit(model_of("error_if"), DATA, epochs=100, checkpoints=checkpoints, progress=False)

    with pytest.raises(vernal.CallError) as first:
        run()
    with pytest.raises(vernal.CallError) as second:
        run()
    assert_same_bits(first.value.state, second.value.state)
    assert len(second.value.history.steps["loss"]) == int(first.value.state.step)


def test_a_step_that_fails_while_it_runs_says_so_and_keeps_the_state():
    trainer = vernal.Trainer(optax.sgd(0.02), losses.MeanSquaredError())
    state, _ = trainer.step(trainer.init(model_of("error_if")), DATA)
    x, y = DATA
    for _ in range(2):  # the second call goes another way through JAX
        with pytest.raises(vernal.CallError, match=r"step 1 failed .*did not converge"):
            trainer.step(state, (x * 1e6, y))
    after, _ = trainer.step(state, DATA)
    assert int(after.step) == 2
