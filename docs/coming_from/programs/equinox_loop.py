import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

rng = np.random.default_rng(0)
x = rng.normal(size=(1000, 2)).astype(np.float32)
radius = np.linalg.norm(x, axis=1)
x, radius = x[abs(radius - 1.2) > 0.1], radius[abs(radius - 1.2) > 0.1]
labels = (radius > 1.2).astype(np.int32)  # inside a ring, or outside
train, held_out = (x[:700], labels[:700]), (x[700:], labels[700:])

model = eqx.nn.MLP(2, 2, width_size=32, depth=1, key=jax.random.key(0))
optimizer = optax.adam(1e-2)
opt_state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))


def loss_of(model, x, labels):
    logits = jax.vmap(model)(x)
    terms = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.mean(terms)


@eqx.filter_jit
def step(model, opt_state, x, labels):
    loss, grads = eqx.filter_value_and_grad(loss_of)(model, x, labels)
    updates, opt_state = optimizer.update(grads, opt_state, model)
    return eqx.apply_updates(model, updates), opt_state, loss


validate = eqx.filter_jit(loss_of)
best, best_model, waited = np.inf, model, 0
for epoch in range(100):
    order = rng.permutation(len(train[0]))
    for rows in np.split(order, len(order) // 50):
        model, opt_state, loss = step(model, opt_state, train[0][rows], train[1][rows])

    val_loss = validate(model, *held_out)
    waited += 1
    if val_loss < best:
        best, best_model, waited = val_loss, model, 0
    if waited == 10:
        break

logits = jax.vmap(best_model)(held_out[0])
print(f"accuracy {jnp.mean(logits.argmax(axis=1) == held_out[1]):.2f}")
eqx.tree_serialise_leaves("rings.eqx", best_model)
