# %% [markdown]
# # 2. Shape fixing, and a terrible fit
#
# Most mistakes in this trade are mistakes of shape. The bad ones do not stop the program. It runs,
# the loss falls, and the result is nonsense. Here we make the two classic mistakes on purpose. We
# see what they do without checks, read what Vernal says about them, and fix them.
#
# Then we train without a mistake and get a terrible fit all the same. That is a lesson, too.

# %%
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
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
# A parabola, $y = 2x^2$: 100 numbers and their answers. NumPy makes both with shape `(100,)`, one
# axis and nothing else.

# %%
x = np.linspace(-10, 10, EXAMPLES)
y = 2 * x**2

print("x has shape", x.shape, "and y has shape", y.shape)

# %% [markdown]
# Is that 100 examples of one number? Or one example of 100 numbers? The shape `(100,)` does not
# say. You know which one you mean. The program has to guess, and it may guess wrong.
#
# ## Mistake 1: one example of 100 numbers
#
# A layer needs to know how many numbers an example has. Code often reads that from the data's last
# axis. Here the last axis counts the examples, so the layer takes 100 numbers. Without checks
# nothing complains. The layer has 100 weights in place of one, and it runs.

# %%
layer = eqx.nn.Linear(x.shape[-1], 1, key=jax.random.key(0))

print("\nMistake 1: the layer's weight has shape", layer.weight.shape, "instead of (1, 1).")
print(f"  100 numbers go in, and {layer(x).size} comes out, not 100.")

# %% [markdown]
# Vernal has one rule: the first axis counts the examples, and the other axes are one example. So
# `fit` knows that an example is a single number, and refuses. It refuses before anything is
# compiled or trained, and it says what the layer needs.

# %%
trainer = vernal.Trainer(optax.adam(RATE), losses.MeanSquaredError())


def show_error(model, data):
    try:
        trainer.fit(model, data, epochs=1)
    except vernal.ShapeError as error:
        print("ShapeError:", error)


print("\nVernal on the layer that was made for 100 numbers:")
show_error(nn.Linear(100, 1, key=jax.random.key(0)), (x, y))

# %% [markdown]
# So the layer is wrong: one number goes in, `nn.Linear(1, 1)`. That leaves the data. For a layer,
# an example is a row of numbers, even a row of one. Vernal looks for a fix, checks it, and suggests
# it:

# %%
model = nn.Linear(1, 1, key=jax.random.key(0))

print("\nVernal on the right layer:")
show_error(model, (x, y))

# %% [markdown]
# `x[:, None]` adds an axis of length 1 at the end. Nothing is computed. The shape of the column is
# clear: 100 examples of one number each.

# %%
x_column = x[:, None]

print("\nx has shape", x.shape, "and x[:, None] has shape", x_column.shape)

# %% [markdown]
# ## Mistake 2: a hundred answers for each prediction
#
# Suppose you fix `x` and forget `y`. The model's predictions have shape `(100, 1)`, the answers
# `(100,)`. Now take the difference. NumPy and JAX *broadcast*: they line up shapes from the right,
# and stretch every axis of length 1. The column and the row become a table of 100 × 100: every
# prediction minus every answer.

# %%
predictions = np.zeros((EXAMPLES, 1))

print("\nMistake 2:", predictions.shape, "minus", y.shape, "has shape", (predictions - y).shape)

# %% [markdown]
# The mean of that table's squares is one number, as a loss should be. It has a gradient, and it
# falls. But now the loss pulls every prediction towards every answer. The best it can reach is
# their average.
#
# To see this, take answers that a straight line can match perfectly, $y = 3x$. In Vernal you can
# write a loss of your own, as a function of the model, the data and a random key. Vernal does not
# check the inside of your loss. So we make the mistake there.

# %%
line = 3 * x


def broken_loss(model, batch, key):
    x, y = batch
    difference = jax.vmap(model)(x) - y  # (100, 1) minus (100,): a table
    return jnp.mean(difference**2)


broken = vernal.Trainer(optax.adam(RATE), broken_loss)
state, history = broken.fit(model, (x_column, line), epochs=STEPS)

first, last = history.epochs["loss"][[0, -1]]
print(f"  The loss falls, from {first:.1f} to {last:.1f}, and looks like learning.")
print(f"  But the line should rise by 3, and it rises by {abs(state.model.weight[0, 0]):.4f}.")

# %% [markdown]
# Nothing crashed. You see only a curve that flattens early, and you would probably blame the model.
# But you can find the table, if you know where to look.
#
# JAX can list a program as a *jaxpr*: one operation in a line, with the shape of its result.
# `vernal.update_jaxpr` lists one whole step of training: forward through the model and the loss,
# back for the gradient, and then the optimizer. It runs nothing. Here we look only for tables.
# Print `program` to see all of it.

# %%
program = str(vernal.update_jaxpr(broken, model, (x_column, line)))
operations = [text.strip() for text in program.splitlines() if " = " in text]
tables = [operation for operation in operations if ":f32[100,100] = " in operation]

print(f"\nOne step has {len(operations)} operations. Of these {len(tables)} make a table:")
print(" ", "\n  ".join(tables))

# %% [markdown]
# `f32` means numbers of 32 bits, and `[100,100]` is the shape. The first line is the wrong
# subtraction. The second line is its square. The other lines compute the gradient.
#
# Vernal's own losses never broadcast a prediction against an answer:

# %%
print("\nVernal on a column x with a flat y:")
show_error(model, (x_column, line))

# %% [markdown]
# We follow the suggestion, and now it trains.

# %%
state, history = trainer.fit(model, (x_column, line[:, None]), epochs=STEPS)

print("\nWith y[:, None]:")
print(f"  the loss at the end is {history.epochs['loss'][-1]:.4f}")
print(f"  the line rises by {state.model.weight[0, 0]:.4f}")

# %% [markdown]
# The table was a waste, too. `vernal.update_cost` asks the compiler for the cost of one step: sums
# and products (FLOP), bytes read and written, and memory. Compare the two.

# %%
print("\nWith the table:", vernal.update_cost(broken, model, (x_column, line)))
print("Without:", vernal.update_cost(trainer, model, (x_column, line[:, None])))

# %% [markdown]
# ## The terrible fit
#
# All shapes are right now. So back to the parabola, with a straight line for a model.
#
# For a change, the loss is half the squared error, *summed* over the examples and not averaged. You
# will meet both. The half makes the gradient a little tidier. The sum makes the loss grow with the
# number of examples. Again it is a loss of our own, and this time the shapes agree.


# %%
def half_squared_error(model, batch, key):
    x, y = batch
    difference = jax.vmap(model)(x) - y
    return jnp.sum(difference**2) / 2


start = eqx.tree_at(lambda model: model.weight, model, jnp.full((1, 1), START))
trainer = vernal.Trainer(optax.adam(RATE), half_squared_error)
state, history = trainer.fit(start, (x_column, y[:, None]), epochs=STEPS)

predictions = trainer.predict(state, x_column)
print(f"\nA line on a parabola, after {STEPS:,} steps:")
print(f"  weight {state.model.weight[0, 0]:.1e}, as good as zero; bias {state.model.bias[0]:.6f}")
print(f"  predictions from {predictions.min():.5f} to {predictions.max():.5f}")
print(f"  answers from {y.min():.5f} to {y.max():.5f}, on average {y.mean():.5f}")

# %% [markdown]
# (`eqx.tree_at` makes a copy of a model with one part replaced. Models never change in place.)
#
# The line is flat. The parabola falls on the left as much as it rises on the right. If the line
# tilts, it loses on one side what it gains on the other.
#
# And it is too low! A flat line does best at the average of the answers, which is 68. This one
# stopped at 9.87. Why? Adam's steps are about as long as the learning rate, however steep the loss
# is. So Adam is steady. But 10,000 steps of 0.001 reach no further than 10. The bias was still on
# its way. The loss shows it, too: it was still falling.

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
plot.predictions({"straight line": state}, (x_column, y[:, None]), ax=left)
left.axhline(y.mean(), color="0.5", linestyle="dashed", linewidth=1, label="average of the answers")
left.legend()
left.set_title("The terrible fit")
plot.history(history, ax=right)
right.set_title("Its loss is still falling")
fig.savefig(PICTURES / "02_terrible_fit.png")

# %% [markdown]
# So two things are wrong, and neither is a mistake in the program:
#
# - The training stopped too early. More steps, or longer ones, fix that.
# - The model is too poor. No straight line follows a parabola, however long you train.
#
# The next tutorial gives it a better model.
#
# ## Try it
#
# - Set `RATE` to 0.01. Where does the line end now?
# - Fit `nn.Linear(1, 1)` to `x_column**2` instead of `x_column`. Is it still terrible?
# - Pass `x.reshape(1, 100)` and `y.reshape(1, 100)`. What does Vernal suggest?

# %%
print("\nPictures are in", PICTURES)
