# %% [markdown]
# # 6. Under the hood: what JAX does for you
#
# The tutorials so far left the engine under the hood. Here we open it. We train a small network on
# a curve, first by hand and slowly, then by hand and fast, then with Vernal. On the way you meet
# three words that you will read everywhere in the world of JAX: *PyTree*, *jit* and *jaxpr*.

# %%
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import vernal
from vernal import losses, nn, plot

SEED = 21
EXAMPLES = 1000
COEFFICIENTS = [1.0, -2.0, 1.0, -2.0]  # of x cubed, x squared, x and 1
WIDTH = 128
RATE = 0.01
STEPS = 1_000
SLOW_STEPS = 50
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"

PICTURES = Path("build/tutorials")
PICTURES.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## Random numbers from a key
#
# NumPy's generator gives other numbers at each call, because it remembers how far it is. JAX has no
# such memory. Its random numbers are computed from a *key*. **What do you expect: does the second
# line differ from the first?**

# %%
key = jax.random.key(SEED)
print("From a key:         ", jax.random.normal(key, (3,)))
print("From the key again: ", jax.random.normal(key, (3,)))

# %% [markdown]
# The same key gives the same numbers. To get other numbers, split the key: each part is a new key.

# %%
key, noise_key = jax.random.split(key)
print("From one part:      ", jax.random.normal(key, (3,)))
print("From the other part:", jax.random.normal(noise_key, (3,)))

# %% [markdown]
# ## Data
#
# The answers follow a polynomial of degree 3, with a little noise. Let us look.

# %%
x_raw = jnp.linspace(-10, 10, EXAMPLES)
y_raw = jnp.polyval(jnp.array(COEFFICIENTS), x_raw)
y_raw = y_raw + jax.random.normal(noise_key, x_raw.shape)

fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
ax.scatter(x_raw, y_raw, s=4, color=BLUE)
ax.set(xlabel="x", ylabel="y", title="A polynomial of degree 3")
fig.savefig(PICTURES / "06_data.png")

# %% [markdown]
# The answers reach from about -1,200 to 800. The first tutorial showed that training likes inputs
# of about the size 1. So we subtract the mean and divide by the standard deviation, of x and of y.
# And we make columns: 1,000 examples of one number.


# %%
def standardise(values):
    return ((values - values.mean()) / values.std())[:, None]


x, y = standardise(x_raw), standardise(y_raw)

print("x has shape", x.shape, f"mean {abs(float(x.mean())):.2f}, deviation {float(x.std()):.2f}")
print("y has shape", y.shape, f"mean {abs(float(y.mean())):.2f}, deviation {float(y.std()):.2f}")

# %% [markdown]
# ## Model
#
# `nn.MLP` is a network of layers: here 1 number in, 128 in the hidden layer, 1 number out. Between
# them stands `tanh`, which bends. The third tutorial used `relu`, which has a corner. `tanh` is
# smooth:

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, ax = plt.subplots(figsize=(6, 3), layout="constrained")
grid = np.linspace(-4, 4, 200)
ax.plot(grid, np.maximum(grid, 0), color=ORANGE, linestyle="dashed", label="relu")
ax.plot(grid, np.tanh(grid), color=BLUE, label="tanh")
ax.set(xlabel="input", ylabel="output", ylim=(-1.5, 2), title="Two ways to bend")
ax.legend()
fig.savefig(PICTURES / "06_tanh.png")

# %% [markdown]
# We draw the weights ourselves, so that you see where they come from: normal numbers, times 5/3,
# divided by the square root of the number of inputs. Then a layer's outputs are about as large as
# its inputs. `tanh` shrinks numbers, and 5/3 is the usual factor against that.

# %%
first_key, second_key = jax.random.split(key)
first_weights = jax.random.normal(first_key, (WIDTH, 1)) * (5 / 3) / 1**0.5
second_weights = jax.random.normal(second_key, (1, WIDTH)) * (5 / 3) / WIDTH**0.5

print("first layer: ", first_weights.shape, "second layer:", second_weights.shape)

# %% [markdown]
# Equinox is the library that Vernal's layers are built on. A model in Equinox never changes.
# Instead, `tree_at` makes a new model with other parts. Its first argument says which parts.

# %%
import equinox as eqx


def weights_of(model):
    return [layer.weight for layer in model.layers]


made = nn.MLP(1, 1, width_size=WIDTH, depth=1, activation=jnp.tanh, key=key)
model = eqx.tree_at(weights_of, made, [first_weights, second_weights])

print("The first weight of the model as made:", made.layers[0].weight[0, 0])
print("The first weight of our model:        ", model.layers[0].weight[0, 0])

# %% [markdown]
# ## A model is a tree
#
# This model holds layers, and these hold arrays. Let us list all arrays. `jax.tree.leaves` walks
# through anything made of tuples, lists, dicts and modules, and collects what is at the ends.
# `eqx.filter` first drops all that is no array, such as `tanh`.

# %%
params = eqx.filter(model, eqx.is_array)
for leaf in jax.tree.leaves(params):
    print(leaf.shape, leaf.dtype)

# %% [markdown]
# JAX calls such a nest a *PyTree*, and its ends *leaves*. Without the leaves there is the
# *structure*. To *flatten* a tree is to take the two apart. The structure puts them together again.

# %%
leaves, structure = jax.tree.flatten(params)
again = jax.tree.unflatten(structure, leaves)

print(len(leaves), "leaves; the first one again:", again.layers[0].weight.shape)

# %% [markdown]
# To do the same with every leaf, *map* a function over the tree. To get one result from all leaves,
# *reduce* the tree. **How many parameters has the model?** Count first: 128 weights, 128 biases,
# and so on.

# %%
sizes = jax.tree.map(lambda leaf: leaf.size, params)
total = jax.tree.reduce(lambda a, b: a + b, sizes)

print("sizes:", jax.tree.leaves(sizes), "and their sum:", total)

# %% [markdown]
# ## One step of training, for a whole tree
#
# The model takes one example. `jax.vmap` makes a function of one example into a function of many.
# So the loss is:


# %%
def mean_squared_error(model, x, y):
    predictions = jax.vmap(model)(x)
    return jnp.mean((predictions - y) ** 2)


print(f"Before training: {mean_squared_error(model, x, y):.3f}")

# %% [markdown]
# Its gradient has one number for each parameter. So it is a tree of the same structure: a module
# with the same fields. `eqx.filter_value_and_grad` returns the loss and this tree.

# %%
loss, grads = eqx.filter_value_and_grad(mean_squared_error)(model, x, y)

print("the same structure:", jax.tree.structure(grads) == structure)
print("the gradient of the first layer's weights:", grads.layers[0].weight.shape)

# %% [markdown]
# Now a step of SGD is two lines for a model of any size: map over the gradients, and add.


# %%
def step(model, x, y):
    loss, grads = eqx.filter_value_and_grad(mean_squared_error)(model, x, y)
    changes = jax.tree.map(lambda grad: -RATE * grad, grads)
    return eqx.apply_updates(model, changes), loss


stepped, _ = step(model, x, y)
print(f"Before the step {loss:.4f}, after it {mean_squared_error(stepped, x, y):.4f}")

# %% [markdown]
# ## How long does it take?
#
# Each line of `step` runs by itself: Python tells JAX to multiply, waits, tells it to add. We time
# a few steps. (A first step warms up.)


# %%
def train(step, steps):
    """Make some steps, and return the model, all losses and the seconds that they took."""
    trained, _ = step(model, x, y)
    jax.block_until_ready(trained)  # JAX returns before it has finished: this waits
    trained, curve = model, []
    began = time.perf_counter()
    for _ in range(steps):
        trained, loss = step(trained, x, y)
        curve.append(loss)
    jax.block_until_ready(curve)
    return trained, np.array(curve), time.perf_counter() - began


_, slow_curve, slow_seconds = train(step, SLOW_STEPS)
slow_seconds *= STEPS / SLOW_STEPS  # for as many steps as below

print(f"Line by line: {slow_seconds:.1f} s for {STEPS:,} steps (measured on {SLOW_STEPS})")

# %% [markdown]
# *jit* stands for "just in time". It makes one program of all lines of a function, when it is
# called for the first time. The compiler, XLA, joins operations and plans the memory. **How much
# faster do you expect it to be?**

# %%
jitted, jit_curve, jit_seconds = train(eqx.filter_jit(step), STEPS)

print(f"Jitted step: {jit_seconds:.2f} s, {slow_seconds / jit_seconds:.0f} times as fast")

# %% [markdown]
# One thing is left for Python: the loop. For each step, it enters the compiled program anew. Vernal
# compiles the loop, too. We let it compile first, as above, and then time the run.

# %%
trainer = vernal.Trainer(optax.sgd(RATE), losses.MeanSquaredError())
trainer.fit(model, (x, y), epochs=1)
state, history = trainer.fit(model, (x, y), epochs=STEPS)
fit_seconds = history.seconds

print(f"Vernal: {fit_seconds:.2f} s, {slow_seconds / fit_seconds:.0f} times as fast")
print(f"  and {jit_seconds / fit_seconds:.1f} times as fast as the jitted step")

# %% [markdown]
# These times are from the machine that ran this page. Yours will differ. In all three the work is
# the same, and so are the losses:

# %%
every_hundredth = slice(0, STEPS, 100)
print("step  ", *(f"{step:5}" for step in range(STEPS)[every_hundredth]))
print("by jit", *(f"{loss:.3f}" for loss in jit_curve[every_hundredth]))
print("Vernal", *(f"{loss:.3f}" for loss in history.steps["loss"][every_hundredth]))
print(
    f"Step {SLOW_STEPS}: line by line {slow_curve[-1]:.3f}, by jit {jit_curve[SLOW_STEPS - 1]:.3f}"
)

# %% [markdown]
# ## What did JAX compile?
#
# Before JAX compiles a function, it *traces* it. It calls the function once with placeholders that
# have a shape and no numbers, and writes down each operation. The list is a *jaxpr*. Here is that
# of one prediction. `a` to `d` are the weights and biases, `e` is the input:

# %%
jaxpr = jax.make_jaxpr(lambda example: model(example))(x[0])
operations = [equation.primitive.name for equation in jaxpr.eqns]

print(jaxpr)

# %% [markdown]
# Read it from the top: a product with the first weights (`dot_general`), plus the biases, `tanh`, a
# product with the second weights, plus the bias. That is the whole network. It also shows why
# Vernal can check your shapes before anything runs: a trace has all the shapes, and costs little.
#
# `vernal.update_jaxpr` shows the same for a step of training, with the gradient and the optimizer.

# %%
whole_step = vernal.update_jaxpr(trainer, model, (x, y))

print("one prediction:      ", len(operations), "operations")
print("one step of training:", str(whole_step).count(" = "), "operations")

# %% [markdown]
# ## Before and after
#
# The dashed lines are the errors. We draw every twentieth example, so that you can see them.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
some = slice(None, None, 20)
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
plot.predictions({"before training": model}, (x[some], y[some]), residuals=True, ax=left)
plot.predictions({"after training": state}, (x[some], y[some]), residuals=True, ax=right)
left.set_title(f"before: mean squared error {history.steps['loss'][0]:.3f}")
right.set_title(f"after: {trainer.evaluate(state, (x, y))['loss']:.3f}")
fig.savefig(PICTURES / "06_before_and_after.png")

# %% [markdown]
# The curve follows the data, with a wave in the middle, and misses the ends. The losses still fall,
# so more steps will help.
#
# ## Exercises
#
# **Exercise 1.** The *norm* of the gradient is the root of the sum of all its squared numbers.
# Compute it with `jax.tree.map` and `jax.tree.reduce`, and compare with `optax.tree.norm(grads)`.
# The answer is folded below.

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
squares = jax.tree.map(lambda grad: jnp.sum(grad**2), grads)
norm = jax.tree.reduce(lambda a, b: a + b, squares) ** 0.5
print(f"by hand {norm:.5f}, by Optax {optax.tree.norm(grads):.5f}")

# %% [markdown]
# **Exercise 2.** Train for 20 times as many steps. Which error do you get? Draw the curve again:
# how do the ends look?

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
longer, long_history = trainer.fit(model, (x, y), epochs=20 * STEPS)
print(f"after {STEPS:,} steps {history.steps['loss'][-1]:.3f}")
print(f"after {20 * STEPS:,} steps {long_history.steps['loss'][-1]:.4f}")

fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
both = {"after 1,000 steps": state, "after 20,000 steps": longer}
plot.predictions(both, (x[some], y[some]), ax=ax)
fig.savefig(PICTURES / "06_longer.png")

# %% [markdown]
# **Exercise 3.** The network has seen x between about -1.7 and 1.7. What does it predict at 4, and
# what would the polynomial say?

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
far = 4.0
far_raw = far * x_raw.std() + x_raw.mean()
true_raw = jnp.polyval(jnp.array(COEFFICIENTS), far_raw)
truth = float((true_raw - y_raw.mean()) / y_raw.std())
guess = float(trainer.predict(longer, jnp.array([[far]]))[0, 0])
print(f"the network says {guess:.1f}, the polynomial {truth:.1f}")
# Outside of the data, each tanh is flat. A network knows only the region that it has seen.

# %%
print("Pictures are in", PICTURES)
