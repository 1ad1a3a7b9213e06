# %% [markdown]
# # 4. Something to move
#
# Here you change the parameters yourself, until a line fits some points. Then an optimizer does the
# same, and you compare its path with yours.
#
# ## The points, and a very bad guess
#
# The points lie along the line 2x + 20. Noise moves each point up or down by about 1.

# %%
import equinox as eqx
import jax
import jax.numpy as jnp  # NumPy's functions, written in JAX
import numpy as np
import optax

import vernal
from vernal import losses

SEED = 4
EXAMPLES = 100
RATE = 0.001  # a step is the rate times the slope
STEPS = 3_000

rng = np.random.default_rng(SEED)
x = np.linspace(-5, 5, EXAMPLES)
y = 2 * x + 20 + rng.normal(size=EXAMPLES)

# %% [markdown]
# Suppose that we do not know the line, and guess -5x + 3. Our model has two parameters, w and b:
# each field is a JAX array. Without an `__init__` of ours, Equinox writes one, as a dataclass does.


# %%
class Line(eqx.Module):
    w: jax.Array
    b: jax.Array

    def __call__(self, x):
        return self.w * x + self.b


guess = Line(w=jnp.array(-5.0), b=jnp.array(3.0))

print("The first three answers:", y[:3].round(2))
print("The guess predicts:     ", guess(x[:3]).round(2))

# %% [markdown]
# ## Move it yourself
#
# A thin line joins each point to its prediction. Its length is the error, or *residual*. Move w and
# b, and make the mean squared error (MSE) small. On the map, each place is one pair of w and b. A
# ring joins places with the same MSE.
#
# 1. Fix b, and find the best w. **What do you expect:** is it the same for each b?
# 2. Change b, and find the best w again.
# 3. Press "Let the optimizer try". It starts from the guess.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
import html
import json
from pathlib import Path

import matplotlib.pyplot as plt

PICTURES = Path("build/tutorials")
PICTURES.mkdir(parents=True, exist_ok=True)
SCRIPT = globals().get("__file__", "")  # a notebook has none, and runs in the tutorials' folder
BESIDE = Path(SCRIPT).parent
TEMPLATES = [BESIDE / "by_hand.html", Path("tutorials/by_hand.html")]


def axis(name, smallest, largest, tick):
    return {"name": name, "min": smallest, "max": largest, "tick": tick}


LINE_AXES = {
    "x": axis("x", -5.2, 5.2, 2.5),
    "y": axis("y", -30, 50, 20),
    "w": axis("w", -10, 10, 5),
    "b": axis("b", -10, 30, 10),
}
LOGISTIC_AXES = {
    "x": axis("x", -5.2, 5.2, 2.5),
    "y": axis("y", -0.1, 1.1, 0.5),
    "w": axis("w", -5, 5, 2.5),
    "b": axis("b", -5, 5, 2.5),
}


def thinned(path, points=150):
    """Keep the first steps, then fewer and fewer, and the last one."""
    kept = np.geomspace(1, len(path), points).astype(int) - 1
    return [path[index] for index in np.unique(kept)]


class Page:
    """A web page to move w and b, in a file. A script says where, and a notebook shows it."""

    def __init__(self, kind, x, y, path, axes):
        template = next((each for each in TEMPLATES if each.exists()), None)
        if template is None:
            raise FileNotFoundError(
                "This tutorial needs the file by_hand.html. "
                f"Download it, and put it beside this tutorial, at {TEMPLATES[0].absolute()}"
            )
        task = {"kind": kind, "x": x.tolist(), "y": y.tolist(), "start": path[0][1:]}
        task |= {"path": thinned(path), "axes": axes}
        self.text = template.read_text(encoding="utf-8").replace("TASK<", f"{json.dumps(task)}<")
        self.file = PICTURES / f"04_{kind}.html"
        self.file.write_text(self.text, encoding="utf-8")
        if SCRIPT:
            print(self)

    def __repr__(self):
        return f"Open {self.file} in a browser."

    def _repr_html_(self):
        style = "width: 100%; height: 720px; border: 1px solid #8888; border-radius: 8px"
        frame = f'<iframe title="By hand" srcdoc="{html.escape(self.text)}" style="{style}">'
        return f"<div>{frame}</iframe></div>"


def record(trainer, model, data, steps):
    path = [(0, float(model.w), float(model.b))]
    for epoch in trainer.epochs(model, data):
        model = epoch.state.model
        path.append((epoch.index + 1, float(model.w), float(model.b)))
        if len(path) > steps:
            return path


recorder = vernal.Trainer(optax.sgd(RATE), losses.MeanSquaredError())
path = record(recorder, guess, (x, y), STEPS)
line_page = Page("line", x, y, path, LINE_AXES)
line_page

# %% [markdown]
# Whatever b is, the best w is near 2. The points lie evenly around x = 0. A change of b moves every
# prediction by the same amount, so the best tilt stays the same. At first the optimizer changed
# mostly w, then only b. It never saw the map. How did it know the direction?
#
# ## The direction
#
# It followed the slopes. `argnums` asks for both: argument 0 is w, and argument 1 is b.


# %%
def mean_squared_error(w, b):
    return ((w * x + b - y) ** 2).mean()


gradient = jax.jit(jax.grad(mean_squared_error, argnums=(0, 1)))  # jit makes it fast
w, b = -5.0, 3.0
slope_w, slope_b = gradient(w, b)

print(f"At the guess the slopes are {slope_w:.1f} for w and {slope_b:.1f} for b")

# %% [markdown]
# The slope for w is more than three times as steep, so w changes faster. Once w is right, only the
# slope for b is left. Each step moves both against their slopes:

# %%
for _ in range(STEPS):
    slope_w, slope_b = gradient(w, b)
    w, b = w - RATE * slope_w, b - RATE * slope_b

print(f"After {STEPS:,} steps by hand: w = {w:.4f}, b = {b:.4f}")

# %% [markdown]
# Vernal's `fit` does the same. It calls the model with one example at a time. For `nn.Linear`, an
# example is a row. For our `Line`, it is a number, so x is flat.

# %%
trainer = vernal.Trainer(optax.sgd(RATE), losses.MeanSquaredError())
state, history = trainer.fit(guess, (x, y), epochs=STEPS)
fitted = state.model

print(f"After {STEPS:,} steps with Vernal: w = {fitted.w:.4f}, b = {fitted.b:.4f}")
print(f"The MSE fell from {mean_squared_error(-5, 3):.2f} to {mean_squared_error(w, b):.2f}")

# %% [markdown]
# w and b are close to 2 and 20: the noise keeps them from being equal. The error is near 1, the
# mean square of the noise.
#
# Now you know what an optimizer does: it follows the slopes, without a map. Next: [5. Yes or
# no](05_logistic_regression), where each answer is 0 or 1. Or go further below.
#
# ## Going further
#
# ### One parameter, on paper
#
# Take a simpler error, f(w) = w² + 3w − 5, at w = 10. We find its slope three times:
#
# - by a small difference;
# - on paper: the slope of w² is 2w, and that of 3w is 3, so the *derivative* is 2w + 3;
# - with `jax.grad`.


# %%
def f(w):
    return w**2 + 3 * w - 5


def slope(w):
    return 2 * w + 3


slope_by_jax = jax.grad(f)

print(f"The slope at 10, by a small difference: {(f(10.001) - f(10.0)) / 0.001:.3f}")
print(f"The slope at 10, on paper {slope(10.0)} and from JAX {slope_by_jax(10.0)}")

# %% [markdown]
# At the lowest point the slope is zero: 2w + 3 = 0, so w = -1.5. **Do you expect** that gradient
# descent ends there?


# %%
def descend(slope, w, rate, steps=1_000):
    path = [w]
    for _ in range(steps):
        w = w - rate * slope(w)
        path.append(w)
    return path


path_on_paper = descend(slope, 10.0, rate=0.01)
path_by_jax = descend(slope_by_jax, 10.0, rate=0.01)

print("The path begins:", *[f"{w:.4f}" for w in path_on_paper[:3]])
print(f"After 1,000 steps with the slope on paper: w = {path_on_paper[-1]:.4f}")
print(f"After 1,000 steps with the slope from JAX: w = {path_by_jax[-1]:.4f}")

# %% tags=["hide-input"] jupyter={"source_hidden": true}
ws, dots = np.linspace(-12, 11, 200), np.array(path_on_paper[::10])

fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
ax.plot(ws, f(ws), color="0.4", label="f(w) = w² + 3w − 5")
ax.plot(dots, f(dots), "o", color="#D55E00", label="every 10th step")
ax.plot(dots[-1], f(dots[-1]), "s", color="#0072B2", markersize=9, label="after 1,000 steps")
ax.set(xlabel="w", ylabel="f(w)", title="Down the slope")
ax.legend(loc="upper center")
fig.savefig(PICTURES / "04_descent.png")

# %% [markdown]
# The steps get shorter by themselves, because the slope gets flatter.
#
# ### Watch a run, epoch by epoch
#
# How was the optimizer's path recorded? `fit` runs the whole training. `trainer.epochs` runs one
# epoch at a time, so that your own code can look at the model in between.

# %%
for epoch in trainer.epochs(guess, (x, y)):
    model = epoch.state.model
    print(f"After step {epoch.index + 1}: w = {model.w:.3f}, b = {model.b:.3f}")
    if epoch.index == 2:
        break

is_same = path[-1] == (STEPS, float(fitted.w), float(fitted.b))
print("The recorded path ends at exactly the numbers of fit:", is_same)

# %% [markdown]
# The folded code of the page has the same loop, in `record`. It keeps each pair of w and b. Here is
# the path on the map:


# %% tags=["hide-input"] jupyter={"source_hidden": true}
def draw_map(ax, axes, error, path):
    w_values = np.linspace(axes["w"]["min"], axes["w"]["max"], 100)
    b_values = np.linspace(axes["b"]["min"], axes["b"]["max"], 100)
    errors = np.array([[error(w, b) for w in w_values] for b in b_values])
    levels = errors.max() / 2.0 ** np.arange(12, 0, -1)  # doubles from ring to ring
    ax.contour(w_values, b_values, errors, levels, colors="0.6", linewidths=0.8)
    _, ws, bs = np.transpose(path)
    ax.plot(ws, bs, "--", color="#D55E00", linewidth=2, label="the optimizer")
    ax.plot(ws[0], bs[0], "o", color="#0072B2", markersize=8, label="the guess")
    ax.plot(ws[-1], bs[-1], "s", color="#D55E00", markersize=8)
    ax.set(xlabel="w", ylabel="b", title="The error doubles from ring to ring")
    ax.legend(loc="lower right")


fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
draw_map(ax, LINE_AXES, lambda w, b: np.mean((w * x + b - y) ** 2), path)
fig.savefig(PICTURES / "04_line.png")

# %% [markdown]
# ### A look ahead: yes or no
#
# Some questions have only two answers. Write 1 for yes and 0 for no, and the points lie on two
# levels. No line fits them well. But the same two parameters make a curve that does: 1 / (1 +
# exp(-(w x + b))), which stays between 0 and 1.

# %%
rng = np.random.default_rng(SEED)
z = 2 * x + 1 + rng.uniform(0, 1, EXAMPLES)
labels = np.round(1 / (1 + np.exp(-z)))

print("Of the labels,", int(labels.sum()), "are 1 and", int((1 - labels).sum()), "are 0.")

# %% [markdown]
# The error of this curve is named *cross-entropy*. The next tutorial explains it. Again we record
# an optimizer's path, from another bad guess.

# %%
logistic_guess = Line(w=jnp.array(-3.0), b=jnp.array(3.0))
logistic_trainer = vernal.Trainer(optax.sgd(0.1), losses.BinaryCrossEntropy())
logistic_path = record(logistic_trainer, logistic_guess, (x, labels), STEPS)
step, w, b = logistic_path[-1]

print(f"After {step:,} steps: w = {w:.4f}, b = {b:.4f}")

# %% [markdown]
# Move it yourself first. What does w do to this curve? What does b do?

# %%
logistic_page = Page("logistic", x, labels, logistic_path, LOGISTIC_AXES)
logistic_page


# %% tags=["hide-input"] jupyter={"source_hidden": true}
def curve(w, b):
    return 1 / (1 + np.exp(-(w * x + b)))


def cross_entropy(w, b):  # the next tutorial explains it
    return -np.mean(np.log(np.where(labels == 1, curve(w, b), 1 - curve(w, b))))


fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
left.scatter(x, labels, s=14, color="0.4", label="points")
left.plot(x, curve(-3, 3), color="#0072B2", linewidth=2, label="the guess")
left.plot(x, curve(w, b), "--", color="#D55E00", linewidth=2, label="the optimizer")
left.set(xlabel="x", ylabel="label", title="A curve between 0 and 1")
left.legend(loc="center right")
draw_map(right, LOGISTIC_AXES, cross_entropy, logistic_path)
fig.savefig(PICTURES / "04_logistic.png")

# %% [markdown]
# The weight w makes the curve steep, and its sign says on which side the ones are. The bias b moves
# the curve to the left or right. The optimizer has not arrived. The floor of this valley falls only
# slowly, to a lowest point outside the map. The next tutorial says why.

# %% [markdown]
# ### Exercises
#
# **Exercise 1.** How bad is the guess? Compute its mean squared error with NumPy. The answer is
# folded below.

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
residuals = -5 * x + 3 - y
mean_square = np.mean(residuals**2)

print(f"The mean squared error of the guess is {mean_square:.5f}")
print(f"Its root is {mean_square**0.5:.1f}: the size of a typical residual.")

# %% [markdown]
# **Exercise 2.** Take f again. Which rate leads from 10 to -1.5 in a single step? And where is w
# after 1,000 steps at a rate of 1? Think first, then try.

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
# From 10 the step is rate * 23, and -1.5 is 11.5 away: the rate is 11.5 / 23 = 0.5.
one_step = descend(slope, 10.0, rate=0.5, steps=1)
# With the rate 1, each step lands as far on the other side: -13, 10, -13, 10, ...
back_and_forth = descend(slope, 10.0, rate=1.0)

print("With the rate 0.5, one step leads to", one_step[-1])
print("With the rate 1:", back_and_forth[:4], "... and in the end", back_and_forth[-1])

# %% [markdown]
# **Exercise 3.** After 3,000 steps b is still a little low. Is that the noise, or too few steps?
# Compare with `np.polyfit(x, y, 1)`, which computes the best line directly. Then train for 10,000
# steps.

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
best_w, best_b = np.polyfit(x, y, 1)
longer, _ = trainer.fit(guess, (x, y), epochs=10_000)

# It is both. More steps close the gap to the best line. The best line itself is off: the noise.
print(f"The best line:      w = {best_w:.4f}, b = {best_b:.4f}")
print(f"After  3,000 steps: w = {fitted.w:.4f}, b = {fitted.b:.4f}")
print(f"After 10,000 steps: w = {longer.model.w:.4f}, b = {longer.model.b:.4f}")

# %%
print("Pictures are in", PICTURES)
