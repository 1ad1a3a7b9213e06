# %% [markdown]
# # 6. Under the hood: what JAX does for you
#
# We train a small network in three ways: by hand and slowly, by hand and fast, then with Vernal. On
# the way you meet three words of JAX: *PyTree*, *jit* and *jaxpr*.
#
# ## Data
#
# The answers follow a polynomial of degree 3, with noise too small to see. As in the fifth
# tutorial, we bring the numbers to about size 1.

# %%
import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import vernal
from vernal import losses, nn

COEFFICIENTS = [1.0, -2.0, 1.0, -2.0]  # of x cubed, x squared, x and 1
RATE = 0.01
STEPS = 1_000

key, noise_key = jax.random.split(jax.random.key(21))  # two new keys from one
x_raw = jnp.linspace(-10, 10, 1_000)
y_raw = jnp.polyval(jnp.array(COEFFICIENTS), x_raw) + jax.random.normal(noise_key, x_raw.shape)


def standardise(values):
    return ((values - values.mean()) / values.std())[:, None]  # a column


x, y = standardise(x_raw), standardise(y_raw)

# %% tags=["hide-input"] jupyter={"source_hidden": true}
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from vernal import plot

PICTURES = Path("build/tutorials")
PICTURES.mkdir(parents=True, exist_ok=True)

fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
ax.scatter(x, y, s=4, color="#0072B2")
ax.set(xlabel="x", ylabel="y", title="A polynomial of degree 3, standardised")
fig.savefig(PICTURES / "06_data.png")

# %% [markdown]
# ## A model is a tree
#
# Our network holds layers, and these hold arrays. It also holds its activation, a function:
#
# ```text
# model
# ├── layers
# │   ├── 0: weight (128, 1), bias (128,)
# │   └── 1: weight (1, 128), bias (1,)
# └── activation: tanh
# ```
#
# JAX calls such a nest a *PyTree*, and each end a *leaf*. Lists, tuples and dicts are PyTrees, too.
# `jax.tree.map` calls a function on each leaf, and keeps the tree. **How many parameters** has the
# model? Count first.

# %%
model = nn.MLP(1, 1, width_size=128, depth=1, activation=jnp.tanh, key=key)
params = eqx.filter(model, eqx.is_array)  # only the arrays: tanh has no size
sizes = jax.tree.map(lambda leaf: leaf.size, params)

print("sizes:", jax.tree.leaves(sizes), "and their sum:", sum(jax.tree.leaves(sizes)))

# %% [markdown]
# ## One step, for a whole tree
#
# The gradient has one number for each parameter, so it is a tree, too. `jax.grad` refuses our
# model, because tanh is not an array. `eqx.filter_value_and_grad` leaves tanh out. It returns the
# loss and the gradient.
#
# A step multiplies each leaf of the gradient by the rate, and subtracts it from the model's leaf.
# An Equinox model never changes, so the step returns a new one.


# %%
def mean_squared_error(model, x, y):
    return jnp.mean((model(x) - y) ** 2)


def step(model, x, y):
    loss, grads = eqx.filter_value_and_grad(mean_squared_error)(model, x, y)
    changes = jax.tree.map(lambda grad: -RATE * grad, grads)  # for each leaf
    return eqx.apply_updates(model, changes), loss  # adds each change to its leaf


stepped, loss = step(model, x, y)
print(f"Before the step {loss:.4f}, after it {mean_squared_error(stepped, x, y):.4f}")

# %% [markdown]
# ## How long does it take?
#
# Each line of `step` runs by itself: Python tells JAX to multiply, then to add. The function
# `timed`, folded below, makes some steps. It returns their losses, and the time that 1,000 steps
# take.


# %% tags=["hide-input"] jupyter={"source_hidden": true}
def timed(step, model, count):
    """Make some steps, and return their losses, and the seconds that 1,000 such steps take."""
    jax.block_until_ready(step(model, x, y))  # JAX returns before it has finished: this waits
    curve = []
    began = time.perf_counter()
    for _ in range(count):
        model, loss = step(model, x, y)
        curve.append(loss)
    jax.block_until_ready(curve)
    return np.array(curve), (time.perf_counter() - began) * STEPS / count


# %%
slow_curve, slow_seconds = timed(step, model, 50)

print(f"1,000 steps, line by line: {slow_seconds:.1f} s, estimated from 50")

# %% [markdown]
# *jit* stands for "just in time". At the first call it compiles all lines of a function into one
# program. (`eqx.filter_jit` is `jax.jit` for models, and leaves tanh out.) **How much faster do you
# expect it to be?**

# %%
jit_curve, jit_seconds = timed(eqx.filter_jit(step), model, STEPS)

print(f"1,000 steps, jitted: {jit_seconds:.2f} s, {slow_seconds / jit_seconds:.0f} times as fast")

# %% [markdown]
# The loop is still Python's: for each step, Python starts the program again. Vernal compiles the
# loop, too. The first `fit` compiles, for any number of epochs, and we time the second: no time
# here includes compilation.

# %%
trainer = vernal.Trainer(optax.sgd(RATE), losses.MeanSquaredError())
trainer.fit(model, (x, y), epochs=1)
state, history = trainer.fit(model, (x, y), epochs=STEPS)
fit_seconds = history.seconds

print(f"1,000 steps by Vernal: {fit_seconds:.2f} s, {slow_seconds / fit_seconds:.0f} times as fast")
print(f"Last loss: by jit {jit_curve[-1]:.4f}, by Vernal {history.steps['loss'][-1]:.4f}")

# %% [markdown]
# Times differ from machine to machine. The losses agree. Dashed lines are the errors, for every
# twentieth example:

# %% tags=["hide-input"] jupyter={"source_hidden": true}
# The network's curve over the points, before and after training
some = slice(None, None, 20)
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
plot.predictions({"before training": model}, (x[some], y[some]), residuals=True, ax=left)
plot.predictions({"after training": state}, (x[some], y[some]), residuals=True, ax=right)
left.set_title(f"before: mean squared error {history.steps['loss'][0]:.3f}")
right.set_title(f"after: {trainer.evaluate(state, (x, y))['loss']:.3f}")
fig.savefig(PICTURES / "06_before_and_after.png")

# %% [markdown]
# The right curve still dips in the middle, because 1,000 steps are few. (Exercise 2, below, takes
# more.)
#
# ## What did JAX compile?
#
# Before JAX compiles a function, it *traces* the function. It calls the function once, with
# placeholders that have a shape and no numbers, and writes down each operation. The list is a
# *jaxpr*. Here is a small one:


# %%
def small(x):
    return jnp.tanh(3 * x) + 1


print(jax.make_jaxpr(small)(jnp.zeros(3)))

# %% [markdown]
# `a` is the input: `f32[3]` means 3 numbers of 32 bits, and `f32[]` a single one. Then `b` is 3
# times `a`, `c` is tanh of `b`, and `d`, the output, is `c` plus 1. A trace has all shapes and
# costs little. So Vernal can check your shapes before anything runs.
#
# Now you know that a model is a tree of arrays, and that JAX traces a function before it compiles
# it. Next: [7. Digits](07_digits), where a network reads handwriting. Or go further below.
#
# ## Going further
#
# ### Random numbers from a key
#
# NumPy's generator gives other numbers at each call, because it remembers how far it is. JAX has no
# such memory. **What do you expect: does the second line differ from the first?**

# %%
print("From a key:         ", jax.random.normal(jax.random.key(21), (3,)))
print("From the key again: ", jax.random.normal(jax.random.key(21), (3,)))
print("From one part:      ", jax.random.normal(key, (3,)))
print("From the other part:", jax.random.normal(noise_key, (3,)))

# %% [markdown]
# The same key gives the same numbers. To get other numbers, split the key: each part is a new key.
#
# ### Take a tree apart
#
# Without the leaves there is the *structure* of a tree. To *flatten* a tree is to take the two
# apart. The structure puts them together again. To get one result from all leaves, *reduce* the
# tree. The gradient has the structure of the parameters.

# %%
leaves, structure = jax.tree.flatten(params)
again = jax.tree.unflatten(structure, leaves)
total = jax.tree.reduce(lambda a, b: a + b, sizes)
_, grads = eqx.filter_value_and_grad(mean_squared_error)(model, x, y)

print(len(leaves), "leaves; the first one again:", again.layers[0].weight.shape)
print("All sizes, added by reduce:", total)
print("the same structure:", jax.tree.structure(grads) == structure)

# %% [markdown]
# ### Weights of your own
#
# Where do the weights come from? Here we draw them ourselves: random numbers from a normal
# distribution, times 5/3, divided by the square root of the number of inputs. Then a layer's
# outputs are about as large as its inputs. `tanh` shrinks numbers, and 5/3 is the usual factor
# against that. `tanh` bends without a corner, and is flat at both ends:

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, ax = plt.subplots(figsize=(6, 3), layout="constrained")
grid = np.linspace(-4, 4, 200)
ax.plot(grid, np.maximum(grid, 0), color="#D55E00", linestyle="dashed", label="relu")
ax.plot(grid, np.tanh(grid), color="#0072B2", label="tanh")
ax.set(xlabel="input", ylabel="output", ylim=(-1.5, 2), title="Two ways to bend")
ax.legend()
fig.savefig(PICTURES / "06_tanh.png")

# %% [markdown]
# `eqx.tree_at` makes a new model with other parts. Its first argument says which parts.


# %%
def weights_of(model):
    return [layer.weight for layer in model.layers]


first_key, second_key = jax.random.split(key)
first_weights = jax.random.normal(first_key, (128, 1)) * (5 / 3) / 1**0.5
second_weights = jax.random.normal(second_key, (1, 128)) * (5 / 3) / 128**0.5
drawn = eqx.tree_at(weights_of, model, [first_weights, second_weights])

print("The first weight of the model as made:", model.layers[0].weight[0, 0])
print("The first weight of the new model:    ", drawn.layers[0].weight[0, 0])

# %% [markdown]
# It starts with a larger loss, and ends at about the same. By hand and with Vernal, every hundredth
# loss agrees:

# %%
drawn_curve, _ = timed(eqx.filter_jit(step), drawn, STEPS)
_, drawn_history = trainer.fit(drawn, (x, y), epochs=STEPS)

every_hundredth = slice(0, STEPS, 100)
print("step  ", *(f"{number:5}" for number in range(STEPS)[every_hundredth]))
print("by jit", *(f"{loss:.3f}" for loss in drawn_curve[every_hundredth]))
print("Vernal", *(f"{loss:.3f}" for loss in drawn_history.steps["loss"][every_hundredth]))

# %% [markdown]
# ### The jaxpr of the network
#
# Here is the jaxpr of one prediction. `a` to `d` are the weights and biases, and `e` is the input.
# (`f32[128,1]` means 128 rows of 1 number.) Skip `transpose`, which swaps rows and columns, and the
# indented lines.

# %%
jaxpr = jax.make_jaxpr(lambda example: model(example))(x[0])

print(jaxpr)

# %% [markdown]
# Read from the top: a product with the first weights (`dot_general`), plus the biases, `tanh`, a
# second product, plus the bias. That is the whole network.
#
# `vernal.update_jaxpr` shows a step of training, with the gradient and the optimizer.

# %%
operations = [equation.primitive.name for equation in jaxpr.eqns]
whole_step = vernal.update_jaxpr(trainer, model, (x, y))

print("one prediction:      ", len(operations), "operations")
print("one step of training:", str(whole_step).count(" = "), "operations")

# %% [markdown]
# ### Exercises
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
# The network's curve after 1,000 and after 20,000 steps
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
