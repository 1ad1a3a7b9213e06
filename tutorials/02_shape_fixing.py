# %% [markdown]
# # 2. Shape fixing
#
# The worst mistakes of shape raise no error: the program runs, and the result is wrong.
#
# Take a column of 1, 2 and 3, and subtract 1, 2 and 3. **Do you expect** three zeros?

# %% tags=["hide-input"] jupyter={"source_hidden": true}
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.patches import Rectangle

import vernal
from vernal import losses, nn, plot

PICTURES = Path("build/tutorials")
PICTURES.mkdir(parents=True, exist_ok=True)

column = np.array([[1.0], [2.0], [3.0]])
flat = np.array([1.0, 2.0, 3.0])
table = column - flat


def draw_cells(numbers, left, top, colors):
    for (row, place), number in np.ndenumerate(numbers):
        corner, color = (left + place, top - row), colors[int(row == place)]
        ax.add_patch(Rectangle(corner, 1, 1, facecolor=color, edgecolor="0.3"))
        ax.text(corner[0] + 0.5, corner[1] + 0.5, f"{number:g}", ha="center", va="center", size=16)


fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
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
# This is *broadcasting*. NumPy and JAX line up shapes from the right. A missing axis counts as
# length 1, and an axis of length 1 is repeated. We wanted only the diagonal.
#
# ## Rows and columns
#
# Our data is a line: 100 examples of one number. A *layer* is a part of a model, such as
# `nn.Linear`. It needs a row for each example, even if the row has one number. `x[:, None]` turns
# `x` into such a column. We forget to do this to `y`.

# %%
RATE, STEPS = 0.001, 1_000
x = np.linspace(-10, 10, 100)
y = 3 * x
x_column = x[:, None]
print("x_column minus y:", x_column.shape, "minus", y.shape, "is", (x_column - y).shape)

# %% [markdown]
# ## A loss that looks right
#
# Vernal's losses refuse such shapes, so we write our own. It takes the model, a batch (x and y) and
# a random key, which only some losses use. **Will** the line rise by 3 when x grows by 1?


# %%
def broken_loss(model, batch, key):
    x, y = batch
    return ((model(x) - y) ** 2).mean()  # (100, 1) minus (100,): a table


model = nn.Linear(1, 1, key=jax.random.key(0))
broken = vernal.Trainer(optax.sgd(RATE), broken_loss)
broken_state, history = broken.fit(model, (x_column, y), epochs=STEPS)
print("The loss falls:", history.epochs["loss"][:5].round(1))
print(f"The line rises by {broken_state.model.weight[0, 0]:.4f}")

# %% [markdown]
# Nothing crashed. But each prediction is compared with all 100 answers. The average answer is 0, so
# the best compromise is to predict 0. Vernal's own loss stops the program, and suggests a remedy:

# %%
trainer = vernal.Trainer(optax.sgd(RATE), losses.MeanSquaredError())
try:
    trainer.fit(model, (x_column, y), epochs=STEPS)
except vernal.ShapeError as error:
    print("ShapeError:", error)

# %% [markdown]
# We take the suggestion:

# %%
fixed_state, _ = trainer.fit(model, (x_column, y[:, None]), epochs=STEPS)
print(f"With y[:, None], the line rises by {fixed_state.model.weight[0, 0]:.4f}")

# %% tags=["hide-input"] jupyter={"source_hidden": true}
y_column = y[:, None]

fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
lines = {"flat y: wrong": broken_state, "y[:, None]: right": fixed_state}
plot.predictions(lines, (x_column, y_column), ax=ax)
ax.set_title("The same model and data, two shapes of y")
fig.savefig(PICTURES / "02_flat_answers.png")

# %% [markdown]
# Now you know why inputs and answers should be columns. Next: [3. Nonlinear
# regression](03_nonlinear_regression). Or go further below.

# %% [markdown]
# ## Going further
#
# These parts may wait: no later tutorial needs them.
#
# ### The table in numbers

# %%
print(column - flat)

# %% [markdown]
# ### Flat inputs
#
# Is a flat `x` 100 examples of one number, or one example of 100 numbers? You know, but a program
# has to guess. What does Vernal say if both `x` and `y` are flat? In its message, `(1,)` is the
# shape of one example, and `(100, 1)` is the shape of all.


# %%
def show_error(model, data):
    try:
        trainer.fit(model, data, epochs=1)
    except vernal.ShapeError as error:
        print("ShapeError:", error)


show_error(model, (x, y))

# %% [markdown]
# ### A layer with 100 weights
#
# Code often reads the number of inputs from the last axis, `x.shape[-1]`. With flat `x` it is 100.
# We make two layers with 100 weights. The first is a layer of Equinox, the library of models that
# Vernal builds on. Its layers take **one** example. **Will** it complain?

# %%
import equinox as eqx

layer = eqx.nn.Linear(x.shape[-1], 1, key=jax.random.key(0))
print("The layer's weight has shape", layer.weight.shape, "instead of (1, 1).")
print(f"100 numbers go in, and {layer(x).size} comes out, not 100.")

show_error(nn.Linear(x.shape[-1], 1, key=jax.random.key(0)), (x, y))

# %% [markdown]
# The layer does not complain. It mistakes 100 examples for one. But `fit` refuses the data.

# %% [markdown]
# ### One example, or a batch
#
# A layer from `vernal.nn` takes one example, of shape `(1,)`, or many, a *batch*, of shape `(100,
# 1)`. A layer from `equinox.nn` takes **one** example.
#
# `jax.vmap` turns a function of one example into a function of a batch.

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
# ### The terrible fit
#
# Now all shapes are right, and the fit is terrible all the same. The model is a straight line, and
# the data is a parabola, $y = 2x^2$. The loss is half the squared error, **summed** over the
# examples: a multiple of the mean squared error, so the same line is best. *Adam* is an optimizer
# that gives each parameter its own step size. The model's weight starts at a fixed number, so that
# you see the same digits. `predict` gives a trained model's answers. **What line do you expect?**

# %%
START = -0.92962414  # the weight that the terrible fit starts from
MANY_STEPS = 10_000
parabola = 2 * x_column**2
average = parabola.mean()


def half_squared_error(model, batch, key):
    x, y = batch
    return ((jax.vmap(model)(x) - y) ** 2).sum() / 2


start = jax.nn.initializers.constant(START)
curve_model = nn.Linear(1, 1, weight_init=start, key=jax.random.key(0))
summing = vernal.Trainer(optax.adam(RATE), half_squared_error)
state, history = summing.fit(curve_model, (x_column, parabola), epochs=MANY_STEPS)

predictions = summing.predict(state, x_column)
print(f"A line on a parabola, after {MANY_STEPS:,} steps:")
print(f"  weight {state.model.weight[0, 0]:.1e}, as good as zero; bias {state.model.bias[0]:.6f}")
print(f"  predictions from {predictions.min():.5f} to {predictions.max():.5f}")
print(f"  answers from {parabola.min():.5f} to {parabola.max():.5f}", end=", ")
print(f"on average {average:.5f}")

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
plot.predictions({"straight line": state}, (x_column, parabola), ax=left)
left.axhline(average, color="0.5", linestyle="dashed", linewidth=1, label="average of the answers")
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
# So two things are wrong, and neither is a mistake in the program. The training stopped too early.
# And no straight line follows a parabola.
#
# ### Exercises
#
# The answers are folded.
#
# **Exercise 1.** `vernal.update_cost(trainer, model, data)` asks the compiler for the cost of one
# step. How much does the table cost? Compare `broken` with `trainer`.

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
print("With the table:", vernal.update_cost(broken, model, (x_column, y)))
print("Without:", vernal.update_cost(trainer, model, (x_column, y_column)))
print("(FLOP are sums and products.)")

# %% [markdown]
# **Exercise 2.** Somebody writes `x[None, :]` and `y[None, :]`. Both get the shape `(1, 100)`. What
# does Vernal say about `nn.Linear(1, 1)` and this data?

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
show_error(model, (x[None, :], y[None, :]))
print("Vernal sees one example of 100 numbers, and suggests the transpose: a column.")

# %% [markdown]
# **Exercise 3.** Train the terrible fit at a rate of 0.01. Where does the line end? Then give the
# model `x_column**2` in place of `x_column`. Is the fit still terrible?

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
faster = vernal.Trainer(optax.adam(0.01), half_squared_error)
faster_state, _ = faster.fit(curve_model, (x_column, parabola), epochs=MANY_STEPS)
squares_state, squares_history = faster.fit(curve_model, (x_column**2, parabola), epochs=MANY_STEPS)

print(f"Ten times the rate: bias {faster_state.model.bias[0]:.2f}, almost the average.")
print(f"With squares: weight {squares_state.model.weight[0, 0]:.4f}", end=", ")
print(f"bias {squares_state.model.bias[0]:.4f}, a perfect fit.")
print("A line follows the parabola if its input is already bent.")

# %%
print("Pictures are in", PICTURES)
