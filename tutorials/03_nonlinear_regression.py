# %% [markdown]
# # 3. Nonlinear regression: a network that bends
#
# A *network* is layers, one after another. But a linear layer on a linear layer is still a line:
# 2(3x + 1) + 4 = 6x + 6. To bend, a network needs something between its layers. The simplest is
# `relu`: it makes negative numbers zero.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

import vernal
from vernal import losses, nn, plot

PICTURES = Path("build/tutorials")
PICTURES.mkdir(parents=True, exist_ok=True)
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"

line = np.linspace(-3, 3, 301)
right_hinge, left_hinge = jax.nn.relu(line - 1), jax.nn.relu(-line - 1)

fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
left.plot(line, line, "--", color="0.6", label="in")
left.plot(line, jax.nn.relu(line), color=BLUE, linewidth=3, label="out")
left.set(xlabel="in", ylabel="out", title="relu: negative numbers become zero")
left.legend()
right.plot(line, right_hinge + left_hinge, color="0.8", linewidth=7, label="sum")
right.plot(line, right_hinge, "--", color=BLUE, label="relu(x - 1)")
right.plot(line, left_hinge, "-.", color=ORANGE, label="relu(-x - 1)")
right.set(xlabel="x", ylabel="output", title="Two hinges and their sum")
right.legend()
fig.savefig(PICTURES / "03_relu.png")

# %% [markdown]
# So relu has one bend, a hinge. In `relu(x - 1)`, the -1 moves the hinge to 1. A minus before x
# turns the hinge to the left: so `relu(-x - 1)` bends at -1. A weight after relu makes it steeper,
# or turns it down. Hinges add up to a bent line.
#
# ## A network of your own
#
# In Equinox, a library of models, a model is a class. We list its layers first, as in a dataclass,
# and `__call__` applies them. `fit` calls it with one example at a time. Ours has four hinges:
# 1 → 4 → relu → 1.
#
# The same key draws the same numbers, so `split` makes a key for each layer.


# %%
import equinox as eqx


class SmallNetwork(eqx.Module):
    hidden: nn.Linear
    last: nn.Linear

    def __init__(self, key):
        hidden_key, last_key = jax.random.split(key)
        self.hidden = nn.Linear(1, 4, key=hidden_key)
        self.last = nn.Linear(4, 1, key=last_key)

    def __call__(self, x):
        return self.last(jax.nn.relu(self.hidden(x)))


# %% [markdown]
# ## Three models
#
# A line, our network and one with 128 hinges learn a parabola. `nn.MLP` (*multilayer perceptron*)
# has relu between its layers. `depth=1` means one layer of hinges.
#
# *Adam* is an optimizer that gives each parameter its own step size: its steps are about as long as
# the rate, even where the slope is small. **Which model do you expect** to follow the curve?

# %%
x = np.linspace(-10, 10, 100)[:, None]
y = 2 * x**2

key = jax.random.key(0)
models = {
    "line": nn.Linear(1, 1, key=key),
    "4 hinges": SmallNetwork(key),
    "128 hinges": nn.MLP(1, 1, width_size=128, depth=1, key=key),
}
trainer = vernal.Trainer(optax.adam(0.06), losses.MeanSquaredError())
states = {}
for name, model in models.items():
    states[name], history = trainer.fit(model, (x, y), epochs=2_000)
    print(f"{name}: loss {history.epochs['loss'][-1]:.1f}")

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
plot.predictions(states, (x, y), ax=ax)
ax.set_title("Three models, trained")
fig.savefig(PICTURES / "03_three_models.png")

# %% [markdown]
# The parabola falls on the left as much as it rises on the right. So the best line is flat, at the
# average answer, 68. (Ours is still on its way.) Four hinges make at most five straight pieces. 128
# hinges are almost a curve.
#
# Now you know how a network bends. Next: [4. Something to move](04_by_hand). Or go further below.

# %% [markdown]
# ## Going further
#
# These parts may wait: no later tutorial needs them.
#
# ### Your own data
#
# Make x and y columns, and bring large numbers to about size 1, as tutorial 5 does. (Here we took a
# large rate instead.) If the loss jumps, take a smaller rate. If the loss falls slowly, take a
# larger one.
#
# ### relu in numbers

# %%
print(jax.nn.relu(np.array([-2.0, -1.0, 0.0, 1.0, 2.0])))

# %% [markdown]
# ### Two lines make a line
#
# Two linear layers, one after another, get three inputs at equal distances. **Do you expect** a
# curve?

# %%
first = nn.Linear(1, 4, key=jax.random.key(0))
second = nn.Linear(4, 1, key=jax.random.key(1))
outputs = second(first(np.array([[-1.0], [0.0], [1.0]])))[:, 0]

print(f"From -1 to 0 the output changes by {outputs[1] - outputs[0]:.4f}")
print(f"From  0 to 1 the output changes by {outputs[2] - outputs[1]:.4f}")

# %% [markdown]
# The slope is the same.
#
# ### A layer that adds nothing
#
# This network goes 1 → 4 → 4 → relu → 1. It has no relu after its first layer. So its first two
# layers are worth one. From here on we train at a rate of 0.001, which is lower.
#
# `evaluate` measures the loss. Its square root is a typical error. The answers go from 0 to 200.


# %%
class TwoLinear(eqx.Module):
    first: nn.Linear
    second: nn.Linear
    last: nn.Linear

    def __init__(self, key):
        key1, key2, key3 = jax.random.split(key, 3)
        self.first = nn.Linear(1, 4, key=key1)
        self.second = nn.Linear(4, 4, key=key2)
        self.last = nn.Linear(4, 1, key=key3)

    def __call__(self, x):
        hinges = jax.nn.relu(self.second(self.first(x)))
        return self.last(hinges)


RATE, STEPS, KEY = 0.001, 3_000, jax.random.key(2)
slow = vernal.Trainer(optax.adam(RATE), losses.MeanSquaredError())

slow_models = {
    "line": nn.Linear(1, 1, key=KEY),
    "small, 4 wide": TwoLinear(KEY),
    "128 wide": nn.MLP(1, 1, width_size=128, depth=1, key=KEY),
}
slow_states, slow_histories = {}, {}
print(f"{'model':<16}{'loss':>8}{'typical error':>16}")
for name, model in slow_models.items():
    slow_states[name], slow_histories[name] = slow.fit(model, (x, y), epochs=STEPS)
    loss = slow.evaluate(slow_states[name], (x, y))["loss"]
    print(f"{name:<16}{loss:>8.1f}{loss**0.5:>16.1f}")

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
plot.predictions(slow_states, (x, y), ax=left)
left.set_title(f"Three models after {STEPS:,} steps")
for name, history in slow_histories.items():
    plot.history(history, ax=right, label=name)
right.set_title("Their losses: a dot marks the lowest")
fig.savefig(PICTURES / "03_slow_models.png")

# %% [markdown]
# The losses are higher than above, because the training stopped early. More steps would help. The
# small network is better than the line, but not good. The wide one is clearly better.
#
# ### The hinges, one by one
#
# How does the small network bend? We draw each hinge with its weight.

# %%
small = slow_states["small, 4 wide"].model
hinges = np.asarray(jax.nn.relu(small.second(small.first(x))))
parts = hinges * np.asarray(small.last.weight)  # one column for each hinge
total = parts.sum(axis=1) + small.last.bias[0]

lost = [number + 1 for number in range(4) if not hinges[:, number].any()]
print("Hinges that are zero for every example:", lost)

# %% tags=["hide-input"] jupyter={"source_hidden": true}
STYLES = [(BLUE, "-"), (ORANGE, "--"), (GREEN, "-."), (PINK, ":")]

fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for number, (color, style) in enumerate(STYLES):
    left.plot(x, parts[:, number], style, color=color, label=f"hinge {number + 1}")
left.set(xlabel="x", ylabel="output", title="The hinges, one by one")
left.legend()
right.scatter(x, y, s=12, color="0.6", label="data")
right.plot(x, total, color=BLUE, label="sum of the hinges, and the bias")
right.set(xlabel="x", ylabel="y", title="Their sum, on the data")
right.legend()
fig.savefig(PICTURES / "03_hinges.png")

# %% [markdown]
# relu is flat where it is zero. So a hinge that is zero for every example has slope zero, and never
# learns. Hinges that bend at the same place draw one stroke together: so four hinges may give only
# two strokes.
#
# ### One draw proves nothing
#
# The key decides where the hinges start. So we train each network with ten keys. (`progress=False`
# hides the progress.) **Do you expect** ten similar losses?


# %%
def final_loss(model):
    state, _ = slow.fit(model, (x, y), epochs=STEPS, progress=False)
    return slow.evaluate(state, (x, y))["loss"]


keys = [jax.random.key(number) for number in range(10)]
small_losses = [final_loss(TwoLinear(key)) for key in keys]
wide_losses = [final_loss(nn.MLP(1, 1, width_size=128, depth=1, key=key)) for key in keys]

print("small, 4 wide:", *(f"{loss:.0f}" for loss in small_losses))
print("128 wide:     ", *(f"{loss:.0f}" for loss in wide_losses))

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
ax.semilogy(range(10), small_losses, "o", color=ORANGE, label="small, 4 wide")
ax.semilogy(range(10), wide_losses, "s", color=BLUE, label="128 wide")
ax.set(xlabel="key", ylabel="loss", title=f"Ten draws of each, {STEPS:,} steps")
ax.set(xticks=range(10), ylim=(40, 20_000))
ax.legend(loc="upper center", ncols=2)
fig.savefig(PICTURES / "03_ten_keys.png")

# %% [markdown]
# A loss of thousands means that only one side of the parabola is fitted: half of the small networks
# did that. Among 128 hinges a few lost ones do not matter. So compare models over several keys,
# never over one.
#
# ### How much width helps
#
# Now we vary the width alone, over three keys. We look at the loss after 3,000 and after 30,000
# steps. **Will** a small network catch up?

# %%
WIDTHS = [1, 4, 16, 64, 128]
MORE_STEPS = 30_000

after_few, after_many, trained = [], [], {}
for width in WIDTHS:
    few, many = [], []
    for key in keys[:3]:
        model = nn.MLP(1, 1, width_size=width, depth=1, key=key)
        trained[width], history = slow.fit(model, (x, y), epochs=MORE_STEPS, progress=False)
        few.append(history.steps["loss"][STEPS])
        many.append(history.steps["loss"][-1])
    after_few.append(few)
    after_many.append(many)

print(f"{'width':>5}{'parameters':>12}{'after 3,000':>14}{'after 30,000':>14}")
for width, few, many in zip(WIDTHS, after_few, after_many, strict=True):
    print(f"{width:>5}{3 * width + 1:>12}{np.median(few):>14.1f}{np.median(many):>14.4f}")
print("(Each loss is the middle one of three keys.)")

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
for all_losses, style, color, steps in [
    (after_few, "o-", ORANGE, STEPS),
    (after_many, "s--", BLUE, MORE_STEPS),
]:
    ax.loglog(WIDTHS, np.median(all_losses, axis=1), style, color=color, label=f"{steps:,} steps")
    ax.loglog(WIDTHS, all_losses, style[0], color=color, alpha=0.4)
ax.set_xticks(WIDTHS, map(str, WIDTHS))
ax.minorticks_off()
ax.set(xlabel="width", ylabel="loss", title="The loss by width: three keys, and the middle one")
ax.legend()
fig.savefig(PICTURES / "03_widths.png")

# %% [markdown]
# Width buys two things. One is **speed**: many hinges that each move a little lift the curve
# faster. Width 16 was far behind at 3,000 steps, and with more time it follows the data closely.
# The other is **capacity**: widths 1 and 4 improve, too, but stop early: they have too few bends.
#
# ### Exercises
#
# The answers are folded.
#
# **Exercise 1.** Put a relu after `TwoLinear`'s first layer, too: `nn.MLP` of width 4 and depth 2.
# Does that help, over ten keys?

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
two_losses = [final_loss(nn.MLP(1, 1, width_size=4, depth=2, key=key)) for key in keys]
both_arms = [sum(loss < 1_000 for loss in found) for found in (small_losses, two_losses)]

print("one relu: ", *(f"{loss:.0f}" for loss in small_losses))
print("two relus:", *(f"{loss:.0f}" for loss in two_losses))
print(f"{both_arms[0]} of 10 found both arms with one relu, and {both_arms[1]} with two.")

# %% [markdown]
# **Exercise 2.** Train a network of width 4 with key 2 for 30,000 steps. Then place its hinges by
# hand: `relu(-6 - x)` and `relu(-2 - x)` open to the left, `relu(x - 2)` and `relu(x - 6)` to the
# right. Add a bias. `np.linalg.lstsq` finds the weights that give the smallest loss. Which loss is
# lower?

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
four = nn.MLP(1, 1, width_size=4, depth=1, key=KEY)
four_state, _ = slow.fit(four, (x, y), epochs=MORE_STEPS)
four_loss = slow.evaluate(four_state, (x, y))["loss"]

columns = np.hstack([*(jax.nn.relu(h) for h in (-6 - x, -2 - x, x - 2, x - 6)), np.ones_like(x)])
placed_loss = np.mean((columns @ np.linalg.lstsq(columns, y)[0] - y) ** 2)

print(f"The loss is {four_loss:.2f}, and with hinges placed by hand {placed_loss:.2f}.")
print("Four bends make five straight pieces, and five pieces can hardly do better.")

fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
plot.predictions({"4 hinges": four_state}, (x, y), ax=ax)
ax.set_title("Four bends, five pieces")
fig.savefig(PICTURES / "03_four_hinges.png")

# %% [markdown]
# **Exercise 3.** `trained[128]`, the last network, has seen inputs from -10 to 10. What does it
# predict for 20? The parabola is at 800 there.

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
inside, outside = slow.predict(trained[128], np.array([[10.0], [20.0]]))[:, 0]

print(f"At 10 it predicts {inside:.0f}, and the parabola is at 200.")
print(f"At 20 it predicts {outside:.0f}, and the parabola is at 800.")
print("Outside the data there is nothing to bend it. It goes on almost straight.")

# %%
print("Pictures are in", PICTURES)
