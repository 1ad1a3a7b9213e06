# %% [markdown]
# # 1. Linear regression
#
# To train a model is to change its numbers until it gives the answers you want. Every training run,
# from this straight line to the largest language model, has the same four parts:
#
# - **data**: questions together with their answers;
# - a **model**: a function with numbers that can change, its *parameters*;
# - a **loss**: one number that says how wrong the model is;
# - an **optimizer**: a rule that changes the parameters so that the loss falls.
#
# We make the data ourselves. So we can check what training finds.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

EXAMPLES = 200
TRUE_WEIGHTS = [1.1, 2.1]
TRUE_BIAS = 3.1
NOISE = 0.5  # standard deviation
RATE = 0.001  # a step is the rate times the slope
FEW_STEPS = 100
MANY_STEPS = 10_000

PICTURES = Path("build/tutorials")
PICTURES.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## Data
#
# Each example has two inputs between -10 and 10, and one answer. We multiply the inputs by 1.1 and
# 2.1, the *weights*. Then we add 3.1, the *bias*. Examples are rows: `x` holds 200 rows of 2
# numbers.

# %%
rng = np.random.default_rng(12345)
x = rng.uniform(-10, 10, (EXAMPLES, 2))
true_weights = np.array(TRUE_WEIGHTS)[:, None]  # a column: 2 numbers in, 1 number out
y = x @ true_weights + TRUE_BIAS

print("x has shape", x.shape, "and y has shape", y.shape)
print("The first five answers:", y[:5, 0])

# %% [markdown]
# `x @ true_weights` is a matrix product: multiply each input by its weight, and add up. Here are
# three spellings. `einsum` adds up over the letter that is missing after the arrow.

# %%
by_hand = [[x1 * TRUE_WEIGHTS[0] + x2 * TRUE_WEIGHTS[1]] for x1, x2 in x]
by_product = x @ true_weights
by_einsum = np.einsum("ni,io->no", x, true_weights)

print("The first product, by hand, as a matrix product and with einsum:")
print(f"  {by_hand[0][0]:.8f} {by_product[0, 0]:.8f} {by_einsum[0, 0]:.8f}")
print("  All agree:", np.allclose(by_hand, by_product), np.allclose(by_hand, by_einsum))

# %% [markdown]
# On the right are only the examples with a second input near 0. The orange line is a first guess.
# The dashed lines are its errors.

# %%
GUESS_WEIGHT, GUESS_BIAS = 1.5, 0.0
is_near = np.abs(x[:, 1]) < 1
near_x, near_y = x[is_near, 0], y[is_near, 0]

# %% tags=["hide-input"] jupyter={"source_hidden": true}
BLUE, ORANGE = "#0072B2", "#D55E00"

fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
left.scatter(x[:, 0], y, s=12, color=BLUE)
left.set(xlabel="input 1", ylabel="answer", title="All examples: no line in sight")
right.vlines(near_x, GUESS_WEIGHT * near_x + GUESS_BIAS, near_y, color="0.5", linestyles="dashed")
right.scatter(near_x, near_y, s=20, color=BLUE, zorder=3, label="data with input 2 near 0")
right.axline((0, GUESS_BIAS), slope=GUESS_WEIGHT, color=ORANGE, label="guess: 1.5 times input 1")
right.set(xlabel="input 1", title="A slice of the data, and a guess")
right.legend()
fig.savefig(PICTURES / "01_points.png")

# %% [markdown]
# ## Model
#
# In the slice the points lie close to a line. Over both inputs they lie on a plane. So our model
# has two weights and a bias.


# %%
def predict(weights, bias, x):
    return x @ weights + bias


guess = np.array([[GUESS_WEIGHT], [2.1]])  # weight 1 is wrong, weight 2 is right
print("The first three predictions of a guess:", predict(guess, GUESS_BIAS, x)[:3, 0].round(2))
print("The first three answers:               ", y[:3, 0].round(2))

# %% [markdown]
# ## Loss
#
# How wrong is one prediction? Square its difference from the answer, so that errors cannot cancel.
# Optax, a library of optimizers and losses, has the same function. A model with all parameters at
# zero predicts 0:

# %%
import optax

prediction, answer = 0.0, y[0, 0]
squared_by_hand = (prediction - answer) ** 2
squared_by_optax = optax.losses.squared_error(prediction, answer)

print(f"One squared error, by hand {squared_by_hand:.4f} and from Optax {squared_by_optax:.4f}")

# %% [markdown]
# The *mean squared error* is the average over all examples:


# %%
def mean_squared_error(weights, bias, x, y):
    return ((predict(weights, bias, x) - y) ** 2).mean()


print(f"All parameters at zero: {mean_squared_error(np.zeros((2, 1)), 0.0, x, y):.1f}")
print(f"The guess:              {mean_squared_error(guess, GUESS_BIAS, x, y):.1f}")
print(f"The true parameters:    {mean_squared_error(true_weights, TRUE_BIAS, x, y):.1f}")

# %% [markdown]
# We draw the losses as contours, like heights on a map. The map varies weight 1 and the bias, and
# holds weight 2 at the truth. So the loss at the orange dot is lower than with all three at zero.


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

fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
draw_contours(ax, x, y, TRUE_WEIGHTS[1], WEIGHTS, BIASES)
ax.plot(0, 0, "o", color=ORANGE, label="both zero")
ax.plot(TRUE_WEIGHTS[0], TRUE_BIAS, "*", color="black", markersize=12, label="truth")
ax.set_title("The loss as a landscape: a narrow valley")
ax.legend(loc="upper left")
fig.savefig(PICTURES / "01_landscape.png")

# %% [markdown]
# The optimizer has no map. It can only measure the slope at its own place. **What do you expect:**
# from the orange dot, which way is steepest?
#
# ## Gradient
#
# To find a slope, increase one parameter a little. The slope is the rise of the loss, divided by
# the increase. Now all three parameters are zero, also weight 2: a place that is not on the map.

# %%
SMALL = 1e-6
zeros = np.zeros((2, 1))
loss = mean_squared_error(zeros, 0.0, x, y)
slope_1 = (mean_squared_error(np.array([[SMALL], [0]]), 0.0, x, y) - loss) / SMALL
slope_2 = (mean_squared_error(np.array([[0], [SMALL]]), 0.0, x, y) - loss) / SMALL
slope_bias = (mean_squared_error(zeros, SMALL, x, y) - loss) / SMALL

print(f"Slopes by a small difference: {slope_1:.3f} {slope_2:.3f} {slope_bias:.3f}")

# %% tags=["hide-input"] jupyter={"source_hidden": true}
steps_aside = np.linspace(-1, 3.5, 50)
curve = [mean_squared_error(np.array([[w], [0]]), 0.0, x, y) for w in steps_aside]

fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
ax.plot(steps_aside, curve, color=BLUE, label="loss, all else at zero")
ax.plot([-1, 1], [loss - slope_1, loss + slope_1], "--", color=ORANGE, label="slope at 0")
ax.plot(0, loss, "o", color=ORANGE)
ax.set(xlabel="weight 1", ylabel="loss", title="A slope below zero: a larger weight is better")
ax.legend()
fig.savefig(PICTURES / "01_slope.png")

# %% [markdown]
# The three slopes together are the *gradient*. `jax.grad` makes a function that returns all slopes
# at once, even for a million parameters. `argnums` says for which arguments. (`jnp` is JAX's
# NumPy.)

# %%
import jax
import jax.numpy as jnp

gradient = jax.grad(mean_squared_error, argnums=(0, 1))
grad_weights, grad_bias = gradient(jnp.zeros((2, 1)), jnp.zeros(()), x, y)

print(f"Slopes from jax.grad:         {grad_weights[0, 0]:.3f} {grad_weights[1, 0]:.3f}", end=" ")
print(f"{grad_bias:.3f}")

# %% [markdown]
# They agree.
#
# ## Optimizer, by hand
#
# The gradient points uphill, so we take a small step the other way, and repeat: *gradient descent*.
# The *rate* says how small. `jax.jit` compiles a function into fast code. `value_and_grad` also
# returns the loss.

# %%
value_and_gradient = jax.jit(jax.value_and_grad(mean_squared_error, argnums=(0, 1)))


def descend(x, y, rate, steps):
    weights, bias = jnp.zeros((2, 1)), jnp.zeros(())  # the second is a single number
    path, curve = [(weights[0, 0], bias)], []
    for _ in range(steps):
        loss, (grad_weights, grad_bias) = value_and_gradient(weights, bias, x, y)
        weights = weights - rate * grad_weights
        bias = bias - rate * grad_bias
        path.append((weights[0, 0], bias))
        curve.append(loss)
    return weights, bias, np.array(path), np.array(curve)


# %% [markdown]
# **What do you expect** after 100 steps: weights near 1.1 and 2.1, and a bias near 3.1?

# %%
weights, bias, path, curve_by_hand = descend(x, y, RATE, FEW_STEPS)

print(f"After {FEW_STEPS:,} steps by hand:")
print("  weights", *weights[:, 0], "bias", bias)

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
left.semilogy(np.arange(1, FEW_STEPS + 1), curve_by_hand, color=BLUE)
left.set(xlabel="step", ylabel="loss", title="The loss")
draw_contours(right, x, y, TRUE_WEIGHTS[1], WEIGHTS, BIASES)
right.plot(path[:, 0], path[:, 1], ".-", color=ORANGE, markersize=4, label="100 steps")
right.plot(TRUE_WEIGHTS[0], TRUE_BIAS, "*", color="black", markersize=12, label="truth")
right.set_title("The path")
right.legend(loc="upper left")
fig.savefig(PICTURES / "01_path.png")

# %% [markdown]
# The loss axis is *logarithmic*: each label is ten times the one below. The map hides the path's
# third direction, weight 2. The path runs down the steep side of the valley, then slowly along the
# floor. So the bias is far from 3.1.
#
# ## The same with Vernal
#
# `nn.Linear(2, 1)` is the same model: 2 numbers in, 1 number out. Its weights start at zero, like
# ours. Every layer asks for a `key`, for random numbers.

# %%
import vernal
from vernal import losses, nn, plot

model = nn.Linear(2, 1, weight_init=jax.nn.initializers.zeros, key=jax.random.key(0))

print(vernal.summary(model, x))

# %% [markdown]
# It has 3 parameters of 4 bytes each. (`f32[2]` means 2 numbers of 32 bits. *FLOPs* are sums and
# products.)
#
# A `Trainer` holds the optimizer and the loss. `optax.sgd` is gradient descent, named after
# *stochastic gradient descent*, or SGD. `fit` returns a *state*, which has the trained model, and a
# *history* of the run. An *epoch* is one pass through the data. We pass no `batch_size`, so every
# step uses all 200 examples: an epoch is one step.

# %%
trainer = vernal.Trainer(optax.sgd(RATE), losses.MeanSquaredError())
state, history = trainer.fit(model, (x, y), epochs=FEW_STEPS)

print(f"After {FEW_STEPS:,} steps with Vernal:")
print("  weights", *state.model.weight[0], "bias", state.model.bias[0])
print("The first five losses by hand:    ", curve_by_hand[:5].round(3))
print("The first five losses with Vernal:", history.steps["loss"][:5].round(3))

# %% [markdown]
# The same numbers. A trainer saves you the loop, and never changes your `model`. It adds batches,
# shuffling, and checks that explain mistakes.
#
# **Exercise 1.** Train 100 steps at a rate of 0.03, by hand and with Vernal. Does the loss fall? Do
# the two still agree? (The answer is folded below.)

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
wild_weights, wild_bias, _, wild_curve = descend(x, y, 0.03, FEW_STEPS)
wild = vernal.Trainer(optax.sgd(0.03), losses.MeanSquaredError())
wild_state, _ = wild.fit(model, (x, y), epochs=FEW_STEPS)

print(f"The loss grows from {wild_curve[0]:.1f} to {wild_curve[-1]:.1e}: it diverges.")
print("Each step leaps across the valley and lands higher on the other side.")
print("  weights by hand:    ", *wild_weights[:, 0])
print("  weights with Vernal:", *wild_state.model.weight[0])
print("The last digits may differ. A number of 32 bits has about 7 digits, so each sum is rounded.")
print("The two programs add up in another order, and each leap enlarges the difference.")

# %% [markdown]
# ## Noise
#
# Now each answer is off by about 0.5, like a real measurement. The weights start at random. **What
# do you expect** of the loss at the end: zero?

# %%
y_noisy = y + rng.normal(0, NOISE, y.shape)
model = nn.Linear(2, 1, key=jax.random.key(0))
sgd = vernal.Trainer(optax.sgd(RATE), losses.MeanSquaredError())
state, sgd_history = sgd.fit(model, (x, y_noisy), epochs=MANY_STEPS)

(weight_1, weight_2), bias = state.model.weight[0], state.model.bias[0]
print(f"SGD:           weights {weight_1:.4f} {weight_2:.4f} bias {bias:.4f}")
print(f"Loss at the end: {sgd_history.epochs['loss'][-1]:.4f}")

# %% [markdown]
# The loss stops near 0.25, the square of the noise. No model can predict random numbers. *Least
# squares* computes the best plane directly. It agrees:

# %%
columns = np.column_stack([x, np.ones(EXAMPLES)])
best = np.linalg.lstsq(columns, y_noisy)[0][:, 0]

print(f"Least squares: weights {best[0]:.4f} {best[1]:.4f} bias {best[2]:.4f}")
print(f"The truth:     weights {TRUE_WEIGHTS[0]} {TRUE_WEIGHTS[1]} bias {TRUE_BIAS}")

# %% [markdown]
# ## Which optimizer is faster?
#
# *Adam* gives each parameter its own step size. We change that one thing. Then we count the steps
# until the loss is within 1% of its end. **What do you expect?**


# %%
def steps_needed(history):
    loss = history.steps["loss"]
    return int(np.argmax(loss <= 1.01 * loss[-1]))  # the place of the first True


adam = vernal.Trainer(optax.adam(RATE), losses.MeanSquaredError())
state, adam_history = adam.fit(model, (x, y_noisy), epochs=MANY_STEPS)

(weight_1, weight_2), bias = state.model.weight[0], state.model.bias[0]
print(f"After {MANY_STEPS:,} steps of Adam: weights {weight_1:.4f} {weight_2:.4f} bias {bias:.4f}")
print(f"SGD needed  {steps_needed(sgd_history):,} steps")
print(f"Adam needed {steps_needed(adam_history):,} steps")

# %% [markdown]
# `plot.history` draws the loss over the epochs. A dot marks the lowest.

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
# **Exercise 2.** SGD diverges at 0.03. Give Adam a rate of 0.1. **What do you expect?**

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
fast_adam = vernal.Trainer(optax.adam(0.1), losses.MeanSquaredError())
_, fast_adam_history = fast_adam.fit(model, (x, y_noisy), epochs=1_000)
fast_adam_steps = steps_needed(fast_adam_history)

print(f"Adam needed {fast_adam_steps} steps at a rate of 0.1, and did not diverge.")
print("A steep loss does not lengthen its steps. So compare optimizers at a rate that suits each.")

# %% [markdown]
# ## Why the bias is slow, and the remedy
#
# The inputs are as large as 10. So the loss is steep along the weights and flat along the bias. At
# a rate that the steep direction allows, the flat one takes many steps. (In exercise 1 the rate was
# too high.) The remedy is to *scale* the inputs: subtract their mean, and divide by their standard
# deviation.
#
# First we keep the rate. **Do you expect** fewer steps?

# %%
scaled = (x - x.mean(axis=0)) / x.std(axis=0)
_, scaled_history = sgd.fit(model, (scaled, y_noisy), epochs=MANY_STEPS)

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
# Scaled inputs turn the long valley into a round bowl. In a bowl the steepest way down leads
# straight to the bottom.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
_, _, long_path, _ = descend(x, y_noisy, RATE, 3_000)
_, _, straight_path, _ = descend(scaled, y_noisy, FAST, 30)

scaled_best = np.linalg.lstsq(np.column_stack([scaled, np.ones(EXAMPLES)]), y_noisy)[0][:, 0]

fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
draw_contours(left, x, y_noisy, best[1], WEIGHTS, BIASES)
left.plot(long_path[:, 0], long_path[:, 1], ".-", color=ORANGE, markersize=4)
left.set_title(f"As they are: 3,000 steps at {RATE}")
wide_weights, wide_biases = np.linspace(-2, 14, 60), np.linspace(-6, 10, 60)
draw_contours(right, scaled, y_noisy, scaled_best[1], wide_weights, wide_biases)
right.plot(straight_path[:, 0], straight_path[:, 1], ".-", color=ORANGE, markersize=4)
right.set_title(f"Scaled: 30 steps at {FAST}")
fig.savefig(PICTURES / "01_scaling.png")

# %% [markdown]
# So scale your inputs. The next tutorial is about their shape.

# %%
print("Pictures are in", PICTURES)
