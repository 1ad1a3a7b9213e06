# %% [markdown]
# # 2. Shape fixing, and a terrible fit
#
# Mistakes of shape are common, and the bad ones do not stop the program. It runs, the loss falls,
# and the result is wrong. Here we make two classic ones on purpose. Then we make none, and get a
# terrible fit all the same.

# %%
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

import vernal
from vernal import losses, nn, plot

EXAMPLES = 100
RATE = 0.001
STEPS = 10_000
START = -0.92962414  # the weight that the terrible fit starts from

PICTURES = Path("build/tutorials")
PICTURES.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## Data
#
# Our data is a parabola, $y = 2x^2$: 100 numbers and their answers. Both have the shape `(100,)`.

# %%
x = np.linspace(-10, 10, EXAMPLES)
y = 2 * x**2

print("x has shape", x.shape, "and y has shape", y.shape)

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
ax.scatter(x, y, s=12, color="#0072B2")
ax.set(xlabel="x", ylabel="y", title="The data")
fig.savefig(PICTURES / "02_data.png")

# %% [markdown]
# Is that 100 examples of one number, or one example of 100 numbers? You know, but the program has
# to guess.
#
# ## Mistake 1: one example of 100 numbers
#
# Code often reads the number of inputs from the last axis, `x.shape[-1]`. Equinox is the library of
# models that Vernal trains, and `eqx.nn.Linear` is its linear layer. It should have one weight.
# **How many will it have?**

# %%
import equinox as eqx

layer = eqx.nn.Linear(x.shape[-1], 1, key=jax.random.key(0))

print("Mistake 1: the layer's weight has shape", layer.weight.shape, "instead of (1, 1).")
print(f"  100 numbers go in, and {layer(x).size} comes out, not 100.")

# %% [markdown]
# Nothing complains. In Vernal, the first axis counts the examples. So `fit` refuses the layer
# before it trains:

# %%
trainer = vernal.Trainer(optax.adam(RATE), losses.MeanSquaredError())


def show_error(model, data):
    try:
        trainer.fit(model, data, epochs=1)
    except vernal.ShapeError as error:
        print("ShapeError:", error)


show_error(nn.Linear(100, 1, key=jax.random.key(0)), (x, y))

# %% [markdown]
# The layer must take one number: `nn.Linear(1, 1)`. The data needs a fix, too. For a layer, an
# example is a row of numbers, even a row of one. Vernal suggests how to get there:

# %%
model = nn.Linear(1, 1, key=jax.random.key(0))

show_error(model, (x, y))

# %% [markdown]
# `x[:, None]` adds an axis of length 1. It makes a column: 100 examples of one number.

# %%
x_column = x[:, None]

print("x has shape", x.shape, "and x[:, None] has shape", x_column.shape)

# %% [markdown]
# ## One example, or a batch
#
# A layer from `vernal.nn` takes one example or many, a *batch*. A layer from `equinox.nn` takes
# **one** example. `jax.vmap` turns a function of one example into a function of a batch.

# %%
equinox_layer = eqx.nn.Linear(1, 1, key=jax.random.key(0))

print("vernal.nn, one example: ", model(x_column[0]).shape)
print("vernal.nn, a batch:     ", model(x_column).shape)
print("equinox.nn, one example:", equinox_layer(x_column[0]).shape)
print("equinox.nn, a batch:    ", jax.vmap(equinox_layer)(x_column).shape)

# %% [markdown]
# `fit` applies `jax.vmap` for you, so it trains both kinds. You need it where you call a model
# yourself.
#
# ## Mistake 2: a hundred answers for each prediction
#
# Suppose you fix `x` and forget `y`. Then predictions are a column and answers are flat. We
# subtract three numbers that agree perfectly. **What do you expect:** three zeros?

# %%
column = np.array([[1.0], [2.0], [3.0]])
flat = np.array([1.0, 2.0, 3.0])
table = column - flat

print(table)

# %% tags=["hide-input"] jupyter={"source_hidden": true}
from matplotlib.patches import Rectangle

fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")


def draw_cells(numbers, left, top, colors):
    for (row, place), number in np.ndenumerate(numbers):
        corner, color = (left + place, top - row), colors[int(row == place)]
        ax.add_patch(Rectangle(corner, 1, 1, facecolor=color, edgecolor="0.3"))
        ax.text(corner[0] + 0.5, corner[1] + 0.5, f"{number:g}", ha="center", va="center", size=16)


draw_cells(column, 0, 2, ("#56B4E9", "#56B4E9"))
draw_cells(flat[None, :], 1.5, 3.5, ("#E69F00", "#E69F00"))
draw_cells(table, 1.5, 2, ("white", "#009E73"))
ax.text(-0.2, 1.5, "column\n(3, 1)", ha="right", va="center", size=13)
ax.text(4.7, 4, "minus flat\n(3,)", ha="left", va="center", size=13)
ax.text(4.7, 1.5, "is a table\n(3, 3)", ha="left", va="center", size=13)
ax.set(xlim=(-1.6, 6.6), ylim=(-0.2, 4.8), aspect="equal", title="Every pair has a difference")
ax.axis("off")
fig.savefig(PICTURES / "02_broadcasting.png")

# %% [markdown]
# This is *broadcasting*: NumPy and JAX line up shapes from the right, and repeat along each axis of
# length 1. The table holds every prediction minus every answer. We want only its diagonal.

# %%
predictions = np.zeros((EXAMPLES, 1))

print("Mistake 2:", predictions.shape, "minus", y.shape, "has shape", (predictions - y).shape)

# %% [markdown]
# The mean of the table's squares is one number, as a loss should be. So it trains. Vernal's own
# losses refuse the shapes, so we write a loss: a function of the model, the data and a random key
# (not needed here). Our answers are a line, $y = 3x$.
#
# The loss pulls each prediction towards **all** answers. **What line do you expect?**

# %%
line = 3 * x


def broken_loss(model, batch, key):
    x, y = batch
    difference = jax.vmap(model)(x) - y  # (100, 1) minus (100,): a table
    return (difference**2).mean()


broken = vernal.Trainer(optax.adam(RATE), broken_loss)
broken_state, history = broken.fit(model, (x_column, line), epochs=STEPS)

first, last = history.epochs["loss"][[0, -1]]
print(f"The loss falls, from {first:.1f} to {last:.1f}, and looks like learning.")
print(f"But the line should rise by 3, and it rises by {abs(broken_state.model.weight[0, 0]):.4f}.")

# %% [markdown]
# The best prediction is the average of all answers, 0. Nothing crashed. With its own loss, Vernal
# stops:

# %%
show_error(model, (x_column, line))

# %% [markdown]
# We follow the suggestion, and it trains. `plot.predictions` draws the data, and a line for each
# model.

# %%
fixed_state, history = trainer.fit(model, (x_column, line[:, None]), epochs=STEPS)

print("With y[:, None]:")
print(f"  the loss at the end is {history.epochs['loss'][-1]:.4f}")
print(f"  the line rises by {fixed_state.model.weight[0, 0]:.4f}")

# %%
fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
lines = {"flat y: wrong": broken_state, "y[:, None]: right": fixed_state}
plot.predictions(lines, (x_column, line[:, None]), ax=ax)
ax.set_title("The same model and data, two shapes of y")
fig.savefig(PICTURES / "02_flat_answers.png")

# %% [markdown]
# **Exercise 1.** `vernal.update_cost(trainer, model, data)` asks the compiler for the cost of one
# step. How much does the table cost? Compare `broken` with `trainer`. (The answer is folded below.)

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
print("With the table:", vernal.update_cost(broken, model, (x_column, line)))
print("Without:", vernal.update_cost(trainer, model, (x_column, line[:, None])))
print("(FLOP are sums and products.)")

# %% [markdown]
# **Exercise 2.** Somebody writes `x[None, :]` and `y[None, :]`. Both get the shape `(1, 100)`. What
# does Vernal say about `nn.Linear(1, 1)` and this data?

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
show_error(model, (x[None, :], y[None, :]))
print("One example of 100 numbers: mistake 1 again, spelled out.")

# %% [markdown]
# ## The terrible fit
#
# All shapes are right now. Back to the parabola, with a straight line as the model. The loss is
# half the squared error, **summed** over the examples: a multiple of the mean squared error, so the
# same line is best. The model's weight starts at a fixed number, so that you see the same digits.
# `predict` gives a trained model's answers. **What line do you expect?**


# %%
def half_squared_error(model, batch, key):
    x, y = batch
    return ((jax.vmap(model)(x) - y) ** 2).sum() / 2


start = jax.nn.initializers.constant(START)
model = nn.Linear(1, 1, weight_init=start, key=jax.random.key(0))
summing = vernal.Trainer(optax.adam(RATE), half_squared_error)
state, history = summing.fit(model, (x_column, y[:, None]), epochs=STEPS)

predictions = summing.predict(state, x_column)
print(f"A line on a parabola, after {STEPS:,} steps:")
print(f"  weight {state.model.weight[0, 0]:.1e}, as good as zero; bias {state.model.bias[0]:.6f}")
print(f"  predictions from {predictions.min():.5f} to {predictions.max():.5f}")
print(f"  answers from {y.min():.5f} to {y.max():.5f}, on average {y.mean():.5f}")

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
plot.predictions({"straight line": state}, (x_column, y[:, None]), ax=left)
left.axhline(y.mean(), color="0.5", linestyle="dashed", linewidth=1, label="average of the answers")
left.legend()
left.set_title("The terrible fit")
plot.history(history, ax=right)
right.set_title("Its loss is still falling")
fig.savefig(PICTURES / "02_terrible_fit.png")

# %% [markdown]
# The line is flat, because the parabola falls on the left as much as it rises on the right. And it
# is too low: the best flat line is at the average, 68. Adam's steps are about as long as the rate.
# So 10,000 steps of 0.001 reach about 10.
#
# **Exercise 3.** Train at a rate of 0.01. Where does the line end? Then give the model
# `x_column**2` in place of `x_column`. Is the fit still terrible?

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
faster = vernal.Trainer(optax.adam(0.01), half_squared_error)
faster_state, _ = faster.fit(model, (x_column, y[:, None]), epochs=STEPS)
squares_state, squares_history = faster.fit(model, (x_column**2, y[:, None]), epochs=STEPS)

print(f"Ten times the rate: bias {faster_state.model.bias[0]:.2f}, almost the average.")
print(f"With squares: weight {squares_state.model.weight[0, 0]:.4f}", end=", ")
print(f"bias {squares_state.model.bias[0]:.4f}, a perfect fit.")
print("A line follows the parabola if its input is already bent.")

# %% [markdown]
# So two things are wrong, and neither is a mistake in the program. The training stopped too early.
# And no straight line follows a parabola. The next tutorial gives it a better model.

# %%
print("Pictures are in", PICTURES)
