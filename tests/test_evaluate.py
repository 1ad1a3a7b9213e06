"""What `evaluate` and `predict` hold in memory: the activations of one batch, not of all."""

import json
import subprocess
import sys

CODE = """
import json, resource
import jax, numpy as np, optax, vernal
from vernal import losses, nn

trainer = vernal.Trainer(optax.sgd(0.1), losses.MeanSquaredError())
model = nn.MLP(4, 1, 4096, 1, key=jax.random.key(0))
x = np.ones((64 * 500, 4), np.float32)

labels = np.arange(len(x)) % 500
judge = vernal.Trainer(
    optax.sgd(0.1), losses.CrossEntropy(), metrics={"confusion": vernal.metrics.confusion_matrix}
)
classifier = nn.MLP(4, 500, 8, 1, key=jax.random.key(0))

def peak(method, examples):
    if method == "a large metric":
        judge.evaluate(classifier, (x[:examples], labels[:examples]), batch_size=50)
    elif method == "predict":
        trainer.predict(model, x[:examples], batch_size=500)
    else:
        trainer.evaluate(model, (x[:examples], x[:examples, :1]), batch_size=500)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

told = {}
for method in ("predict", "evaluate", "a large metric"):
    told[method] = peak(method, 4 * 500), peak(method, 64 * 500)
print(json.dumps(told))
"""


def test_measuring_holds_the_activations_of_a_few_batches():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    # Of 60 more batches that were measured: their activations.
    sizes = {"predict": 500 * 4096 * 4, "evaluate": 500 * 4096 * 4}
    # Of 600 more: a confusion matrix, in double precision.
    sizes["a large metric"] = 500 * 500 * 8
    for method, (few, many) in told.items():
        assert many - few < 16 * sizes[method], method
