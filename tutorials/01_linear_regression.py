# %% [markdown]
# # 1. Linear regression
#
# To train is to turn knobs until a machine gives the answers you want. Every training run, from
# this straight line to the largest language model, is made of the same four parts:
#
# - **data**: questions together with their answers;
# - a **model**: a function with knobs, its *parameters*;
# - a **loss**: one number that says how wrong the model is;
# - an **optimizer**: a rule that turns the knobs so that the loss falls.
#
# We start with a case in which we know how every knob should end up, because we made the data. So
# we can check whether training works. You need Python and a little NumPy.

# %%
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import vernal
from vernal import losses, nn, plot

SEED = 12345
EXAMPLES = 200
TRUE_WEIGHTS = [1.1, 2.1]
TRUE_BIAS = 3.1
NOISE = 0.5  # standard deviation
RATE = 0.001  # how far the optimizer goes in one step
FEW_STEPS = 100
MANY_STEPS = 10_000

PICTURES = Path("build/tutorials")
PICTURES.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## Data
#
# Each example has two inputs, drawn between -10 and 10. Its answer is
#
# $$y = 1.1\,x_1 + 2.1\,x_2 + 3.1.$$
#
# The two factors are the *weights*, the number at the end is the *bias*. Training sees neither.
#
# Examples are rows. So `x` has shape `(200, 2)`: 200 examples, 2 numbers each. And `y` has shape
# `(200, 1)`: 200 examples, 1 number each. Keep that last 1. The next tutorial shows what happens
# without it.

# %%
rng = np.random.default_rng(SEED)
x = rng.uniform(-10, 10, (EXAMPLES, 2))
weights = np.array(TRUE_WEIGHTS)[:, None]  # a column: 2 numbers in, 1 number out
y = x @ weights + TRUE_BIAS

print("x has shape", x.shape, "and y has shape", y.shape)
print("The first five answers:", y[:5, 0])

# %% [markdown]
# `x @ weights` is a matrix product: it multiplies each input by its weight and adds up, for all
# examples at once. The same sum has many spellings. The loop shows each operation. `@` is short and
# fast. `einsum` names each axis by a letter: here `n` for examples, `i` for inputs, `o` for
# outputs. It multiplies, and adds up over the letters that are missing after the arrow. Here, only
# `i` is missing.

# %%
by_loop = [[x1 * TRUE_WEIGHTS[0] + x2 * TRUE_WEIGHTS[1]] for x1, x2 in x]
by_matrix_product = x @ weights
by_einsum = np.einsum("ni,io->no", x, weights)

print("The first product, by hand, as a matrix product and with einsum:")
print(f"  {by_loop[0][0]:.8f} {by_matrix_product[0, 0]:.8f} {by_einsum[0, 0]:.8f}")
print("  All 200 agree:", np.allclose(by_loop, by_matrix_product), np.allclose(by_loop, by_einsum))

# %% [markdown]
# Measurements are never that clean. So we also make noisy answers, each off by about 0.5. We keep
# the clean ones for a first try.

# %%
y_noisy = y + rng.normal(0, NOISE, y.shape)

print("The first five noisy answers:", y_noisy[:5, 0].round(3))

# %% [markdown]
# ## Model
#
# The model has the same form as the rule that made the data: two weights and a bias. In a real
# problem you do not know the form. Then you choose a model that is rich enough.
#
# `nn.Linear(2, 1)` is that model: 2 numbers in, 1 number out. It needs a `key`, JAX's source of
# randomness, because parameters usually start at random. We start them at zero, so that everybody
# sees the same numbers.
#
# A model is a *PyTree*: a tree whose leaves are arrays, the parameters among them. A printed model
# shows them. `vernal.summary` makes a table of the layers: their inputs and outputs, the number of
# their parameters, and their memory. It takes `x` for the shapes.

# %%
model = nn.Linear(2, 1, weight_init=jax.nn.initializers.zeros, key=jax.random.key(0))

print(model)
print(vernal.summary(model, x))

# %% [markdown]
# Two weights and a bias are 3 parameters. JAX stores a number in 4 bytes, so they take 12.
# `f32[2]` is an array of 2 such numbers: one example. *FLOPs* count the sums and products of one
# prediction. XLA, the compiler that JAX uses, counts 5: a product and a sum for each weight, and a
# sum for the bias.
#
# ## Loss
#
# How wrong is one prediction? Take the difference from the answer and square it. The square has no
# sign, so errors cannot cancel. It also punishes one big error more than a few small ones.
#
# Optax is the library of optimizers and losses that Vernal builds on. It has this loss ready. We
# compute one by hand to compare. So far, our model predicts 0 for everything.

# %%
prediction, answer = 0.0, y[0, 0]
squared_by_hand = (prediction - answer) ** 2
squared_by_optax = optax.losses.squared_error(prediction, answer)

print(f"One squared error, by hand {squared_by_hand:.4f} and from Optax {squared_by_optax:.4f}")

# %% [markdown]
# The *mean squared error* is the average of these squares over all examples: one number for the
# model.
#
# ## Optimizer, by hand
#
# Which way to turn the knobs? The *gradient* answers that. It has one number for each parameter:
# how fast the loss rises if that parameter grows a little. So we go a small step the other way, and
# look again. This is *gradient descent*. *Stochastic gradient descent*, SGD, looks at a few
# examples at a time, for speed. With all examples at once, the two are the same.
#
# JAX works out the gradient of any function that is written with `jax.numpy`. You never
# differentiate by hand. So the whole training is ten lines.


# %%
def mean_squared_error(params, x, y):
    predictions = x @ params["weights"] + params["bias"]
    return jnp.mean((predictions - y) ** 2)


# value_and_grad gives the loss and its gradient; jit compiles the two to one fast program.
loss_and_grads = jax.jit(jax.value_and_grad(mean_squared_error))

params = {"weights": jnp.zeros((2, 1)), "bias": jnp.zeros(())}
curve_by_hand = []
for _ in range(FEW_STEPS):
    loss, grads = loss_and_grads(params, x, y)
    params = jax.tree.map(lambda param, grad: param - RATE * grad, params, grads)
    curve_by_hand.append(float(loss))

print(f"After {FEW_STEPS:,} steps by hand:")
print("  weights", *params["weights"][:, 0], "bias", params["bias"])

# %% [markdown]
# ## The same with Vernal
#
# A `Trainer` holds the choices: the optimizer and the loss. `fit` takes a model and data. It
# returns a *state*, with the trained model in it, and a *history*, the record of the run.
#
# One *epoch* is one pass through the data. By default, `fit` takes all examples at once. So here,
# one epoch is one step.

# %%
trainer = vernal.Trainer(optax.sgd(RATE), losses.MeanSquaredError())
state, history = trainer.fit(model, (x, y), epochs=FEW_STEPS)

print(f"After {FEW_STEPS:,} steps with Vernal:")
print("  weights", *state.model.weight[0], "bias", state.model.bias[0])

# %% [markdown]
# Both print the same numbers. There is no magic in a trainer. It saves you the loop, and the parts
# that real work needs: batches, shuffling, a loop that is compiled as a whole, and checks that
# explain mistakes.
#
# Note also that `model` itself has not changed. `fit` returns new values, and does not touch yours.

# %%
print("The first five losses by hand:    ", np.round(curve_by_hand[:5], 3))
print("The first five losses with Vernal:", history.steps["loss"][:5].round(3))

fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
ax.plot(np.arange(1, FEW_STEPS + 1), curve_by_hand, color="0.8", linewidth=6, label="by hand")
plot.history(history, ax=ax, label="with Vernal")
ax.set_title(f"SGD: the loss over the first {FEW_STEPS:,} steps")
fig.savefig(PICTURES / "01_loss_by_hand.png")

# %% [markdown]
# The loss falls, and then it nearly stops. The weights are close to 1.1 and 2.1, but the bias,
# 0.54, is far from 3.1. The inputs are as large as 10, so a small change of a weight changes the
# predictions a lot. The gradients of the weights are large, and the weights arrive first. The bias
# is slow.
#
# ## A better optimizer, and more steps
#
# *Adam* gives each parameter a step size of its own, so that the slow ones keep up. Most people
# start with it. The change is one word. We also take the noisy answers, and 10,000 steps.
#
# The model may start from random weights now: wherever it starts, it should end at the same place.

# %%
trainer = vernal.Trainer(optax.adam(RATE), losses.MeanSquaredError())
model = nn.Linear(2, 1, key=jax.random.key(0))
state, history = trainer.fit(model, (x, y_noisy), epochs=MANY_STEPS)
weights_found, bias_found = state.model.weight[0], state.model.bias[0]

print(f"After {MANY_STEPS:,} steps of Adam on noisy answers ({history.seconds:.1f} s):")
print(f"  weights {weights_found[0]:.4f} {weights_found[1]:.4f} bias {bias_found:.4f}")
print("  The truth: weights", *TRUE_WEIGHTS, "bias", TRUE_BIAS)

# %% [markdown]
# Training recovers all three, each within 0.01. Could more steps do better? For a straight line,
# *least squares* computes the best answer without training. It equals ours. So the remaining error
# comes from the noise in the answers. Only more data would help.

# %%
columns = np.column_stack([x, np.ones(EXAMPLES)])
best = np.linalg.lstsq(columns, y_noisy)[0][:, 0]

print(f"  Least squares: weights {best[0]:.4f} {best[1]:.4f} bias {best[2]:.4f}")
print(f"  Loss at the end: {history.epochs['loss'][-1]:.4f}; the noise alone: {NOISE**2}")

fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
plot.history(history, ax=left)
left.set_title(f"Adam: the loss over {MANY_STEPS:,} steps")
right.scatter(y_noisy, trainer.predict(state, x), s=8, alpha=0.6)
right.axline((0, 0), slope=1, color="0.5", linewidth=1)
right.set_title("Each example: on the line is right")
right.set_xlabel("answer")
right.set_ylabel("prediction")
fig.savefig(PICTURES / "01_adam.png")

# %% [markdown]
# The loss never gets to zero. It stops near 0.25, the square of the noise. No model can predict
# random numbers.
#
# ## Try it
#
# - Set `RATE` to 0.03. What happens to SGD? (Vernal's losses are in `history.steps["loss"]`.)
# - Give SGD 10,000 steps. Does the bias arrive?
# - Set `EXAMPLES` to 20,000. How close to the truth do you get now?

# %%
print("Pictures are in", PICTURES)
