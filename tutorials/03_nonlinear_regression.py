# %% [markdown]
# # 3. Nonlinear regression: a network that bends
#
# The last tutorial ended with a straight line on a parabola. No line can follow a curve. So here we
# build models that bend, a small network and a wide one. Then we see how much width helps.
#
# The data is the parabola again, as columns from the start.

# %%
from pathlib import Path

import equinox as eqx
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

import vernal
from vernal import losses, nn, plot

EXAMPLES = 100
RATE = 0.001
STEPS = 3_000
WIDTHS = [1, 4, 16, 64, 128]
KEY = jax.random.key(2)  # where the random weights come from

PICTURES = Path("build/tutorials")
PICTURES.mkdir(parents=True, exist_ok=True)

x = np.linspace(-10, 10, EXAMPLES)[:, None]
y = 2 * x**2

# %% [markdown]
# ## What makes a network bend
#
# Two layers, one after the other, are still a line: a line of a line is a line. To bend it, put an
# *activation* between the layers: a function that is not a line itself. The simplest is `relu`. It
# keeps positive numbers, and makes all others zero. Its picture is flat, has one bend, and then
# rises.
#
# So a hidden layer with 4 numbers, followed by a relu, gives 4 pieces with one bend each. The last
# layer weighs them and adds them up. The result is a curve that can bend in 4 places.
#
# ## A network of your own
#
# In Equinox a model is a class: the fields are its layers, `__call__` is what they do to **one**
# example. Ours goes 1 → 4 → 4 → relu → 1. There is no activation after the first layer. By the rule
# above, the first two layers are then worth one. Let us see whether that matters.
#
# Vernal has no base class for models. The Trainer takes any `eqx.Module`, and finds the parameters
# itself.


# %%
class SmallNetwork(eqx.Module):
    first: nn.Linear
    second: nn.Linear
    last: nn.Linear

    def __init__(self, key):
        # One key for each layer: the same key twice would draw the same numbers twice.
        keys = jax.random.split(key, 3)
        self.first = nn.Linear(1, 4, key=keys[0])
        self.second = nn.Linear(4, 4, key=keys[1])
        self.last = nn.Linear(4, 1, key=keys[2])

    def __call__(self, x):
        x = self.first(x)
        x = jax.nn.relu(self.second(x))
        return self.last(x)


# %% [markdown]
# ## Three models, one trainer
#
# The first is the straight line, to compare with. The last is a network with one wide hidden layer,
# 1 → 128 → relu → 1. Such networks are common, and are called multi-layer perceptrons. Vernal has a
# class for them: `nn.MLP(1, 1, width_size=128, depth=1)`, where `depth` counts the hidden layers.
# Its activation is relu by default.
#
# All three get the same optimizer and the same number of steps. One trainer serves them all. It
# holds the choices, and nothing of any model.

# %%
models = {
    "line": nn.Linear(1, 1, key=KEY),
    "small, 4 wide": SmallNetwork(KEY),
    "128 wide": nn.MLP(1, 1, width_size=128, depth=1, key=KEY),
}
trainer = vernal.Trainer(optax.adam(RATE), losses.MeanSquaredError())

states, histories = {}, {}
for name, model in models.items():
    states[name], histories[name] = trainer.fit(model, (x, y), epochs=STEPS)

# %% [markdown]
# `evaluate` measures the loss of a trained model. The loss is a mean of squares. Its square root is
# easier to picture: the error of a typical prediction, in the units of `y`. The answers go from 0
# to 200.

# %%
print(f"{'model':<16}{'loss':>8}{'typical error':>16}")
for name, state in states.items():
    loss = trainer.evaluate(state, (x, y))["loss"]
    print(f"{name:<16}{loss:>8.1f}{loss**0.5:>16.1f}")

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
plot.predictions(states, (x, y), ax=left)
left.set_title(f"Three models after {STEPS:,} steps")
for name, history in histories.items():
    plot.history(history, ax=right, label=name)
right.set_title("Their losses")
fig.savefig(PICTURES / "03_three_models.png")

# %% [markdown]
# The line is hopeless. The small network is better, not great: it has found the two arms, and draws
# each of them as one straight stroke. The wide network is clearly better. It bends in more places,
# and follows the data round the bottom. It misses the ends of the arms, where the parabola is
# steepest.
#
# ## How much width helps
#
# Let us try a few widths in between, with one hidden layer each.

# %%
print(f"\n{'width':>5}{'parameters':>12}{'loss':>9}{'typical error':>16}")
width_losses = []
for width in WIDTHS:
    model = nn.MLP(1, 1, width_size=width, depth=1, key=KEY)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_array)))
    state, _ = trainer.fit(model, (x, y), epochs=STEPS)
    loss = trainer.evaluate(state, (x, y))["loss"]
    width_losses.append(loss)
    print(f"{width:>5}{parameters:>12}{loss:>9.1f}{loss**0.5:>16.1f}")

fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
ax.loglog(WIDTHS, width_losses, "o-")
ax.set_xticks(WIDTHS, map(str, WIDTHS))
ax.minorticks_off()
ax.set_xlabel("width of the hidden layer")
ax.set_ylabel(f"loss after {STEPS:,} steps")
ax.set_title("A wider network makes a smaller error")
fig.savefig(PICTURES / "03_widths.png")

# %% [markdown]
# Each larger width makes the error smaller. There are two reasons. More units can bend in more
# places. And more units learn faster. Adam moves each parameter by at most about 0.001 a step, so
# by about 3 in all. Many small changes together lift a curve to 200. The loss curves show it: at
# 3,000 steps both networks were still learning.
#
# The width-4 network here and the small network above end close to each other. So the extra layer
# without an activation helped little, as expected.
#
# And the keys? A relu that is zero for every example has no gradient, and never learns. Among 128
# units, a few lost ones do not matter. Among 4 they do, so small networks depend on luck.
#
# ## Try it
#
# - Set `KEY` to `jax.random.key(0)`. What happens to the small network?
# - Set `STEPS` to 30,000. How far do 4 units get, with more time?
# - Put a relu after the first layer of the small network, too.

# %%
print("\nPictures are in", PICTURES)
