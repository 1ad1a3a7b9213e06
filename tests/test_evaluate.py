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

def peak(method, examples):
    if method == "predict":
        trainer.predict(model, x[:examples], batch_size=500)
    else:
        trainer.evaluate(model, (x[:examples], x[:examples, :1]), batch_size=500)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

told = {}
for method in ("predict", "evaluate"):
    told[method] = peak(method, 4 * 500), peak(method, 64 * 500)
print(json.dumps(told))
"""


def test_measuring_holds_the_activations_of_a_few_batches():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    of_a_batch = 500 * 4096 * 4
    for few, many in json.loads(done.stdout).values():
        assert many - few < 16 * of_a_batch  # of 60 more that were measured
