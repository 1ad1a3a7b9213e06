# %% [markdown]
# # 1. Linear regression
#
# Training changes a model's numbers until it gives the answers you want. It has four parts:
#
# - **data**: questions with answers;
# - a **model**: a function with *parameters*, numbers that can change;
# - a **loss**: a number that says how wrong the model is;
# - an **optimizer**: a rule that changes the parameters to lower the loss.
#
# You may skip folded code, and the section "Going further".
#
# ## Data
#
# An answer is 1.1 times input 1, plus 2.1 times input 2, plus 3.1: two *weights* and a *bias*.
# Training should find them.

# %%
import numpy as np

rng = np.random.default_rng(12345)
x = rng.uniform(-10, 10, (200, 2))  # 200 examples, in rows of 2 inputs
true_weights, true_bias = np.array([[1.1], [2.1]]), 3.1
y = x @ true_weights + true_bias  # @ multiplies each input by its weight, and adds up

# %% [markdown]
# The left picture hides input 2. On the right, input 2 is near 0: now a line shows. The orange line
# is a guess: weight 1 is 1.5. Dashes are its errors.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
from pathlib import Path

import matplotlib.pyplot as plt

PICTURES = Path("build/tutorials")
PICTURES.mkdir(parents=True, exist_ok=True)
BLUE, ORANGE = "#0072B2", "#D55E00"

is_near = np.abs(x[:, 1]) < 1
near_x, near_y = x[is_near, 0], y[is_near, 0]

fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
left.scatter(x[:, 0], y, s=12, color=BLUE)
left.set(xlabel="input 1", ylabel="answer", title="All examples: no line in sight")
right.axline((0, 0), slope=1.5, color=ORANGE, label="guess: weight 1 is 1.5")
right.vlines(near_x, 1.5 * near_x, near_y, color="0.5", linestyles="dashed", label="its errors")
right.scatter(near_x, near_y, s=20, color=BLUE, zorder=3, label="data with input 2 near 0")
right.set(xlabel="input 1", title="A slice of the data, and a guess")
right.legend()
fig.savefig(PICTURES / "01_points.png")

# %% [markdown]
# ## Model
#
# Where input 2 is near 0, a line fits: a weight times input 1, plus a bias. So we give each input a
# weight, and add one bias.


# %%
def predict(weights, bias, x):
    return x @ weights + bias


# %% [markdown]
# ## Loss
#
# We square the errors, so that they cannot cancel. Their average is the *mean squared error*.


# %%
def mean_squared_error(weights, bias, x, y):
    return ((predict(weights, bias, x) - y) ** 2).mean()


zeros = np.array([[0.0], [0.0]])
loss = mean_squared_error(zeros, 0.0, x, y)
print(f"All parameters at zero: {loss:.1f}")

# %% [markdown]
# Rings join weights with the same loss. This map keeps the bias at 0, so the loss is not 0 even at
# the true weights, and the lowest place is a little beside them.


# %% tags=["hide-input"] jupyter={"source_hidden": true}
def draw_map(ax):
    weights_1, weights_2 = np.linspace(-1.1, 3.3, 80), np.linspace(-0.6, 4.3, 80)
    heights = [
        [mean_squared_error(np.array([[w1], [w2]]), 0.0, x, y) for w1 in weights_1]
        for w2 in weights_2
    ]
    levels = [12, 16, 32, 64, 128, 256]
    lines = ax.contour(weights_1, weights_2, heights, levels, norm="log", vmax=1_000)
    ax.clabel(lines, levels[1:], fontsize=9)
    ax.plot(*true_weights, "*", color="black", markersize=12, label="true weights")
    ax.set(xlabel="weight 1", ylabel="weight 2", aspect="equal")


fig, ax = plt.subplots(figsize=(6, 4.5), layout="constrained")
draw_map(ax)
ax.plot(0, 0, "o", color=ORANGE, label="all at zero")
guess = np.array([[1.5], [2.1]])
ax.plot(*guess, "s", color=BLUE, label="the guess")
ax.set_title("The loss as a landscape: a bowl")
ax.legend(loc="upper right")
fig.savefig(PICTURES / "01_landscape.png")

# %% [markdown]
# ## Gradient
#
# The optimizer has no map. It goes by slopes: the rise of the loss, divided by a small increase of
# one parameter.

# %%
rise = mean_squared_error(np.array([[1e-6], [0.0]]), 0.0, x, y) - loss
print(f"Slope along weight 1: {rise / 1e-6:.3f}")

# %% [markdown]
# The slopes along all parameters are the *gradient*. `jax.grad` makes a function that returns it.

# %%
import jax  # computes slopes, among other things

gradient = jax.grad(mean_squared_error, argnums=(0, 1))  # along the weights and the bias
grad_weights, grad_bias = gradient(zeros, 0.0, x, y)
print(f"All slopes: {grad_weights[0, 0]:.3f} {grad_weights[1, 0]:.3f} {grad_bias:.3f}")

# %% [markdown]
# ## Optimizer, by hand
#
# The gradient points uphill, so *gradient descent* steps the other way. A step is the *rate* times
# each slope. **Do you expect** 1.1, 2.1 and 3.1 after 100 steps?

# %%
RATE = 0.001
weights, bias = zeros, 0.0
for _ in range(100):
    grad_weights, grad_bias = gradient(weights, bias, x, y)
    weights = weights - RATE * grad_weights
    bias = bias - RATE * grad_bias
print("By hand, 100 steps: weights", *weights[:, 0], "bias", bias)


# %% tags=["hide-input"] jupyter={"source_hidden": true}
@jax.jit  # compiles a function into fast code: tutorial 6 shows how much faster
def fast_gradient(weights, bias, x, y):
    return gradient(weights, bias, x, y)


def descend(x, y, rate, steps):
    """Run the same loop as above, and keep the path."""
    weights, bias, path = zeros, 0.0, []
    for _ in range(steps):
        path.append((weights, bias))
        grad_weights, grad_bias = fast_gradient(weights, bias, x, y)
        weights = weights - rate * grad_weights
        bias = bias - rate * grad_bias
    return weights, bias, path


_, _, path = descend(x, y, RATE, 100)
curve_by_hand = np.array([mean_squared_error(*place, x, y) for place in path])

fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4.5), layout="constrained")
left.plot(np.arange(1, 101), curve_by_hand, color=BLUE)
left.set(xlabel="step", ylabel="loss", title="The loss")
draw_map(right)
path_1, path_2 = [w[0, 0] for w, _ in path], [w[1, 0] for w, _ in path]
right.plot(path_1, path_2, ".-", color=ORANGE, markersize=5, label="100 steps")
right.set_title("The path")
right.legend(loc="upper right")
fig.savefig(PICTURES / "01_path.png")

# %% [markdown]
# The weights arrive soon. The loss stays above 0, because the bias is still far from 3.1: its slope
# is small, so its steps are small.
#
# ## The same with Vernal
#
# `nn.Linear` is the same model. Its *key* is for random weights, and does nothing here: we ask for
# zeros.
#
# A `Trainer` holds the optimizer and the loss. `optax.sgd` is gradient descent. An *epoch* is one
# pass through the data: here one step on all 200 examples. `fit` returns a *state*, which holds the
# trained model, and a *history*.

# %%
import optax  # a library of optimizers

import vernal
from vernal import losses, nn

zero = jax.nn.initializers.zeros
model = nn.Linear(2, 1, weight_init=zero, key=jax.random.key(0))  # 2 inputs, 1 output
trainer = vernal.Trainer(optax.sgd(RATE), losses.MeanSquaredError())
state, history = trainer.fit(model, (x, y), epochs=100)
print("Vernal,  100 steps: weights", *state.model.weight[0], "bias", *state.model.bias)

# %% [markdown]
# The numbers agree. Now we add noise, train for longer, and ask for the answer where input 1 is 1
# and input 2 is 2. The truth is 1.1 × 1 + 2.1 × 2 + 3.1 = 8.4.

# %%
y_noisy = y + rng.normal(0, 0.5, y.shape)
state, noisy_history = trainer.fit(model, (x, y_noisy), epochs=10_000)
print("Trained: weights", *state.model.weight[0], "bias", *state.model.bias)
print("The model says", trainer.predict(state, np.array([[1.0, 2.0]])))

# %% [markdown]
# The noise is why the numbers are close, and not exact.
#
# Now you know the four parts of training. Next: [2. Shape fixing](02_shape_fixing). Or go further
# below. [Learn](index) says how to run these pages.

# %% [markdown]
# ## Going further
#
# These parts may wait: no later tutorial needs them.
#
# ### One product, three spellings
#
# `x @ true_weights` is a matrix product. Here it is in a loop, and with `einsum`. `einsum` adds up
# over the letter that is missing after the arrow.

# %%
print("The first five answers:", y[:5, 0])

by_hand = [[x1 * 1.1 + x2 * 2.1] for x1, x2 in x]
by_product = x @ true_weights
by_einsum = np.einsum("ni,io->no", x, true_weights)

print("The first product, by hand, as a matrix product and with einsum:")
print(f"  {by_hand[0][0]:.8f} {by_product[0, 0]:.8f} {by_einsum[0, 0]:.8f}")
print("  All agree:", np.allclose(by_hand, by_product), np.allclose(by_hand, by_einsum))

# %% [markdown]
# ### The slope, in a picture
#
# We move weight 1 alone. The loss stays above 150, because weight 2 and the bias are still 0.
#
# `jax.grad` follows operators such as `@` and `**`, and the functions of `jax.numpy`. NumPy's own
# functions it cannot follow: write `jax.numpy.abs` in place of `np.abs`.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
SMALL = 1e-6
slope = rise / SMALL
steps_aside = np.linspace(-1, 3.5, 50)
curve = [mean_squared_error(np.array([[w], [0]]), 0.0, x, y) for w in steps_aside]

fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
ax.plot(steps_aside, curve, color=BLUE, label="loss, all else at zero")
ax.plot([-1, 1], [loss - slope, loss + slope], "--", color=ORANGE, label="slope at 0")
ax.plot(0, loss, "o", color=ORANGE)
ax.set(xlabel="weight 1", ylabel="loss", title="A slope below zero: a larger weight is better")
ax.legend()
fig.savefig(PICTURES / "01_slope.png")

# %% [markdown]
# ### One squared error, twice
#
# Optax is a library of optimizers and losses. It has the squared error, too. A model with all
# parameters at zero predicts 0:

# %%
prediction, answer = 0.0, y[0, 0]
squared_by_hand = (prediction - answer) ** 2
squared_by_optax = optax.losses.squared_error(prediction, answer)

print(f"One squared error, by hand {squared_by_hand:.4f} and from Optax {squared_by_optax:.4f}")

# %% [markdown]
# ### All losses, twice
#
# By hand and with Vernal, the losses of the first steps agree, too.

# %%
print("The first five losses by hand:    ", curve_by_hand[:5].round(3))
print("The first five losses with Vernal:", history.steps["loss"][:5].round(3))

# %% [markdown]
# ### A model's summary
#
# `vernal.summary` lists a model's layers. Ours has 3 parameters of 4 bytes each. (`f32[2]` means 2
# numbers of 32 bits. *FLOPs* are sums and products.)

# %%
print(vernal.summary(model, x))

# %% [markdown]
# ### What noise does
#
# Without noise, the true parameters have no loss at all. The guess of the first picture has some,
# though its weight 2 is right already. With noise, the loss stops near 0.25, the square of 0.5,
# because no model predicts noise.

# %%
print(f"The guess: {mean_squared_error(guess, 0.0, x, y):.1f}")
print(f"The true parameters: {mean_squared_error(true_weights, true_bias, x, y):.1f}")
print(f"The loss at the end: {noisy_history.epochs['loss'][-1]:.4f}")

# %% [markdown]
# ### The best parameters, directly
#
# Over both inputs, the points lie close to a plane. *Least squares* computes the best plane without
# any steps. It agrees with training.

# %%
columns = np.column_stack([x, np.ones(len(x))])
best = np.linalg.lstsq(columns, y_noisy)[0][:, 0]

print(f"Least squares: weights {best[0]:.4f} {best[1]:.4f} bias {best[2]:.4f}")

# %% [markdown]
# ### Which optimizer is faster?
#
# *Adam* is an optimizer that gives each parameter its own step size. We put it in place of `sgd`,
# *stochastic gradient descent*, and change nothing else. Both start from the same random weights.
# Then we count the steps until the loss is within 1% of its end. **What do you expect?**


# %%
from vernal import plot

MANY_STEPS = 10_000


def steps_needed(history):
    loss = history.steps["loss"]
    return int(np.argmax(loss <= 1.01 * loss[-1]))  # the place of the first True


model = nn.Linear(2, 1, key=jax.random.key(0))
_, sgd_history = trainer.fit(model, (x, y_noisy), epochs=MANY_STEPS)
adam = vernal.Trainer(optax.adam(RATE), losses.MeanSquaredError())
state, adam_history = adam.fit(model, (x, y_noisy), epochs=MANY_STEPS)

(weight_1, weight_2), bias = state.model.weight[0], state.model.bias[0]
print(f"After {MANY_STEPS:,} steps of Adam: weights {weight_1:.4f} {weight_2:.4f} bias {bias:.4f}")
print(f"SGD needed  {steps_needed(sgd_history):,} steps")
print(f"Adam needed {steps_needed(adam_history):,} steps")

# %% [markdown]
# `plot.history` draws the loss over the epochs. A dot marks the lowest. The loss axis is
# *logarithmic*: each label is ten times the one below.

# %%
fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
plot.history(sgd_history, ax=ax, label="SGD")
plot.history(adam_history, ax=ax, label="Adam")
ax.set_title("The same rate, two optimizers")
fig.savefig(PICTURES / "01_optimizers.png")

# %% [markdown]
# Adam is slower here. Each of its steps moves a parameter by about the rate, 0.001. So the bias
# needs more than 3,000 steps to get to 3.1.
#
# ### Why the bias is slow, and the remedy
#
# The inputs are as large as 10. So the loss is steep along the weights and flat along the bias. At
# a rate that the steep direction allows, the flat one takes many steps. The remedy is to *scale*
# the inputs: subtract their mean, and divide by their standard deviation.
#
# First we keep the rate. **Do you expect** fewer steps?

# %%
scaled = (x - x.mean(axis=0)) / x.std(axis=0)
_, scaled_history = trainer.fit(model, (scaled, y_noisy), epochs=MANY_STEPS)

print(f"SGD at {RATE}, inputs as they are: {steps_needed(sgd_history):,} steps")
print(f"SGD at {RATE}, inputs scaled:      {steps_needed(scaled_history):,} steps")

# %% [markdown]
# More steps! The weights are now as slow as the bias. But nothing is steep any more, so the rate
# can be a hundred times higher.

# %%
FAST = 0.1
fast = vernal.Trainer(optax.sgd(FAST), losses.MeanSquaredError())
_, fast_history = fast.fit(model, (scaled, y_noisy), epochs=1_000)

print(f"SGD at {FAST}, inputs scaled:        {steps_needed(fast_history)} steps")

# %% [markdown]
# Here are maps of weight 1 and the bias. Weight 2 stays at its best value. Scaled inputs turn the
# long valley into a round bowl, where the steepest way down leads straight to the bottom. So scale
# your inputs.


# %% tags=["hide-input"] jupyter={"source_hidden": true}
def draw_contours(ax, x, y, weight_2, weights, biases):
    heights = [
        [mean_squared_error(np.array([[weight], [weight_2]]), bias, x, y) for weight in weights]
        for bias in biases
    ]
    levels = [1, 3, 8, 16, 32, 64, 128]
    lines = ax.contour(weights, biases, heights, levels, norm="log", vmax=1_000, cmap="viridis")
    ax.clabel(lines, levels[1:], fontsize=9)
    ax.set(xlabel="weight 1", ylabel="bias", aspect="equal")


WEIGHTS, BIASES = np.linspace(-4.2, 5.2, 120), np.linspace(-0.9, 6.1, 90)

_, _, long_path = descend(x, y_noisy, RATE, 3_000)
_, _, straight_path = descend(scaled, y_noisy, FAST, 30)

scaled_best = np.linalg.lstsq(np.column_stack([scaled, np.ones(len(x))]), y_noisy)[0][:, 0]


def draw_path(ax, path):
    weights, biases = np.array([w[0, 0] for w, _ in path]), np.array([b for _, b in path])
    ax.plot(weights, biases, ".-", color=ORANGE, markersize=4)


fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
draw_contours(left, x, y_noisy, best[1], WEIGHTS, BIASES)
draw_path(left, long_path)
left.set_title(f"As they are: 3,000 steps at {RATE}")
wide_weights, wide_biases = np.linspace(-2, 14, 60), np.linspace(-6, 10, 60)
draw_contours(right, scaled, y_noisy, scaled_best[1], wide_weights, wide_biases)
draw_path(right, straight_path)
right.set_title(f"Scaled: 30 steps at {FAST}")
fig.savefig(PICTURES / "01_scaling.png")

# %% [markdown]
# ### Exercises
#
# The answers are folded.
#
# **Exercise 1.** Measure the slopes along weight 2 and along the bias by a small difference. Do all
# three slopes agree with `jax.grad`?

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
slope_2 = (mean_squared_error(np.array([[0.0], [SMALL]]), 0.0, x, y) - loss) / SMALL
slope_bias = (mean_squared_error(zeros, SMALL, x, y) - loss) / SMALL

grad_weights, grad_bias = gradient(zeros, 0.0, x, y)
print(f"Slopes by a small difference: {slope:.3f} {slope_2:.3f} {slope_bias:.3f}")
print(f"Slopes from jax.grad:         {grad_weights[0, 0]:.3f} {grad_weights[1, 0]:.3f}", end=" ")
print(f"{grad_bias:.3f}")

# %% [markdown]
# **Exercise 2.** Train 100 steps at a rate of 0.03, from zero and without noise, by hand and with
# Vernal. Does the loss fall? Do the two still agree?

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
wild_weights, _, wild_path = descend(x, y, 0.03, 100)
first, last = (mean_squared_error(*wild_path[place], x, y) for place in (0, -1))
wild = vernal.Trainer(optax.sgd(0.03), losses.MeanSquaredError())
zero_model = nn.Linear(2, 1, weight_init=jax.nn.initializers.zeros, key=jax.random.key(0))
wild_state, _ = wild.fit(zero_model, (x, y), epochs=100)

print(f"The loss grows from {first:.1f} to {last:.1e}: it diverges.")
print("Each step leaps across the valley and lands higher on the other side.")
print("  weights by hand:    ", *wild_weights[:, 0])
print("  weights with Vernal:", *wild_state.model.weight[0])
print("The last digits may differ. A number of 32 bits has about 7 digits, so each sum is rounded.")
print("The two programs add up in another order, and each leap enlarges the difference.")

# %% [markdown]
# **Exercise 3.** SGD diverges at 0.03. Give Adam a rate of 0.1, on the noisy data. **What do you
# expect?**

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
fast_adam = vernal.Trainer(optax.adam(0.1), losses.MeanSquaredError())
_, fast_adam_history = fast_adam.fit(model, (x, y_noisy), epochs=1_000)
fast_adam_steps = steps_needed(fast_adam_history)

print(f"Adam needed {fast_adam_steps} steps at a rate of 0.1, and did not diverge.")
print("A steep loss does not lengthen its steps. So compare optimizers at a rate that suits each.")

# %%
print("Pictures are in", PICTURES)
