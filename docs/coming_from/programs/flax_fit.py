import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

rng = np.random.default_rng(0)
x = rng.normal(size=(1000, 2)).astype(np.float32)
radius = np.linalg.norm(x, axis=1)
x, radius = x[abs(radius - 1.2) > 0.1], radius[abs(radius - 1.2) > 0.1]
labels = (radius > 1.2).astype(np.int32)  # inside a ring, or outside
train, held_out = (x[:700], labels[:700]), (x[700:], labels[700:])


class MLP(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(2, 32, rngs=rngs)
        self.out = nnx.Linear(32, 2, rngs=rngs)

    def __call__(self, x):
        return self.out(jax.nn.relu(self.hidden(x)))


def loss_of(model, x, labels):
    terms = optax.losses.softmax_cross_entropy_with_integer_labels(model(x), labels)
    return jnp.mean(terms)


@nnx.jit
def step(model, optimizer, x, labels):
    loss, grads = nnx.value_and_grad(loss_of)(model, x, labels)
    optimizer.update(model, grads)
    return loss


model = MLP(nnx.Rngs(0))
optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
best, best_params, waited = np.inf, None, 0
for epoch in range(100):
    order = rng.permutation(len(train[0]))
    for rows in np.split(order, len(order) // 50):
        step(model, optimizer, train[0][rows], train[1][rows])

    val_loss = loss_of(model, *held_out)
    waited += 1
    if val_loss < best:
        best, waited = val_loss, 0
        best_params = jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))
    if waited == 10:
        break

nnx.update(model, best_params)
logits = model(held_out[0])
print(f"accuracy {jnp.mean(logits.argmax(axis=1) == held_out[1]):.2f}")
