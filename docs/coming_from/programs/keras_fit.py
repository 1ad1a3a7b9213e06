import os

os.environ["KERAS_BACKEND"] = "jax"

import keras
import numpy as np

rng = np.random.default_rng(0)
x = rng.normal(size=(1000, 2)).astype(np.float32)
radius = np.linalg.norm(x, axis=1)
x, radius = x[abs(radius - 1.2) > 0.1], radius[abs(radius - 1.2) > 0.1]
labels = (radius > 1.2).astype(np.int32)  # inside a ring, or outside
train, held_out = (x[:700], labels[:700]), (x[700:], labels[700:])

model = keras.Sequential(
    [keras.Input((2,)), keras.layers.Dense(32, activation="relu"), keras.layers.Dense(2)]
)
model.compile(
    optimizer=keras.optimizers.Adam(1e-2),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
history = model.fit(
    *train,
    epochs=100,
    batch_size=50,
    validation_data=held_out,
    callbacks=[keras.callbacks.EarlyStopping(patience=10, restore_best_weights=True)],
    verbose=0,
)

print(f"accuracy {model.evaluate(*held_out, verbose=0)[1]:.2f}")
logits = model.predict(held_out[0], verbose=0)
model.save_weights("rings.weights.h5")
