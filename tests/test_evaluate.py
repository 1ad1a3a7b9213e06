"""What `evaluate` and `predict` hold in memory: the activations of one batch, not of all."""

import weakref

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vernal
from vernal import losses, nn
from vernal._training import evaluate as _evaluate
from vernal._training.jit import pack
from vernal._training.objective import Objective

HIDDEN = 512
BATCH = 50
MODEL = nn.MLP(4, 1, HIDDEN, 1, key=jax.random.key(0))
TRAINER = vernal.Trainer(optax.sgd(0.1), losses.MeanSquaredError())


def temporary(method, batches):
    """The bytes that the compiled program needs for so many batches, beside inputs and outputs."""
    x = np.zeros((batches, BATCH, 4), np.float32)
    if method == "predict":
        packed, program, data = pack((MODEL, None, None)), _evaluate.compiled_predict, x
    else:
        packed = pack((Objective(TRAINER.loss, {}, None), MODEL, None))
        program, data = _evaluate.compiled_evaluate, (x, x[..., :1])
    analysis = program.lower(packed, data, single=False).compile().memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


@pytest.mark.parametrize("method", ["predict", "evaluate"])
def test_the_compiled_program_holds_one_batchs_activations(method):
    few, many = temporary(method, 4), temporary(method, 64)
    activations = 4 * BATCH * HIDDEN
    assert many < few + activations
    if jax.default_backend() == "cpu":  # a GPU's libraries take memory to work in
        assert activations <= few < 4 * activations


class Slow(eqx.Module):
    """Its input, after many products of matrices, which XLA makes in threads of its own."""

    def __call__(self, x):
        eye = jnp.eye(128) * (1 + 0 * x[0])
        power = jax.lax.fori_loop(0, 3, lambda i, y: y @ eye, eye)
        return x * power[0, 0]


@pytest.mark.parametrize("n", [1000, 1013], ids=["even", "with a tail"])
@pytest.mark.parametrize("sees", ["what is ready", "what is held"])
def test_predict_works_on_one_stack_while_it_gathers_the_next(n, sees, monkeypatch):
    monkeypatch.setattr(
        "vernal._data.superbatch.STACK_BYTES", 17 * BATCH
    )  # two batches, of 8 bytes
    monkeypatch.setattr("vernal._data.superbatch.ROOMIER", 1)
    program, outputs = _evaluate.compiled_predict, []

    def watched(*args, **options):
        if sees == "what is ready":
            assert all(output.is_ready() for output in outputs[:-1])
        else:
            assert sum(output() is not None for output in outputs) <= 2
        output = program(*args, **options)
        outputs.append(output if sees == "what is ready" else weakref.ref(output))
        return output

    monkeypatch.setattr(_evaluate, "compiled_predict", watched)
    x = np.linspace(-1, 1, 2 * n, dtype=np.float32).reshape(n, 2)
    predicted = TRAINER.predict(Slow(), x, batch_size=BATCH)
    np.testing.assert_allclose(predicted, x, atol=1e-5)
    assert len(outputs) == 10 + (n > 1000)
