import jax
import numpy as np
import optax

import vernal
from vernal import callbacks, losses, metrics, nn

rng = np.random.default_rng(0)
x = rng.normal(size=(1000, 2)).astype(np.float32)
radius = np.linalg.norm(x, axis=1)
x, radius = x[abs(radius - 1.2) > 0.1], radius[abs(radius - 1.2) > 0.1]
labels = (radius > 1.2).astype(np.int32)  # inside a ring, or outside
train, held_out = (x[:700], labels[:700]), (x[700:], labels[700:])

model = nn.MLP(2, 2, width_size=32, depth=1, key=jax.random.key(0))

trainer = vernal.Trainer(
    optax.adam(1e-2), losses.CrossEntropy(), metrics={"accuracy": metrics.accuracy}
)
state, history = trainer.fit(
    model,
    train,
    epochs=100,
    batch_size=50,
    validation_data=held_out,
    callbacks=[callbacks.EarlyStopping(patience=10), callbacks.BestState()],
)

print(f"accuracy {trainer.evaluate(state, held_out)['accuracy']:.2f}")
logits = trainer.predict(state, held_out[0])
vernal.save("rings.safetensors", state.model)
