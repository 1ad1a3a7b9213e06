# %% [markdown]
# # 4. Something to move
#
# In the first tutorial an optimizer turned the knobs. Here you turn them yourself. You move a line
# until it fits some points. You watch its error fall. Then an optimizer does the same, and you can
# compare its way with yours.

# %%
import html
import json
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import vernal
from vernal import losses

SEED = 4
EXAMPLES = 100
TRUE_W, TRUE_B = 2, 20
GUESS_W, GUESS_B = -5.0, 3.0
RATE = 0.001  # how far the optimizer goes in one step
STEPS = 3_000

PICTURES = Path("build/tutorials")
PICTURES.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## The points
#
# There are 100 points. They lie along a line that rises by 2 and passes through 20 where x is 0.
# Each point is off the line by some noise, about 1 up or down.

# %%
rng = np.random.default_rng(SEED)
x = np.linspace(-5, 5, EXAMPLES)
y = TRUE_W * x + TRUE_B + rng.normal(size=EXAMPLES)

fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
ax.scatter(x, y, s=14, color="0.4")
ax.set(xlabel="x", ylabel="y", title="100 points along a line")
fig.savefig(PICTURES / "04_points.png")

# %% [markdown]
# ## A very bad guess
#
# A line has two numbers. The *weight* w says how fast the line rises. The *bias* b is its height
# where x is 0. Together they give the prediction w x + b for each x.
#
# Suppose we know nothing, and guess w = -5 and b = 3. How bad is that?


# %%
def draw_guess(ax, w, b):
    prediction = w * x + b
    ax.vlines(x, y, prediction, color="0.7", linewidth=0.8)
    ax.scatter(x, y, s=14, color="0.4", label="points")
    ax.plot(x, prediction, color="#0072B2", linewidth=2, label=f"guess: w = {w:g}, b = {b:g}")
    ax.set(xlabel="x", ylabel="y", title="A very bad guess")
    ax.legend(loc="lower left")


fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
draw_guess(ax, GUESS_W, GUESS_B)
fig.savefig(PICTURES / "04_bad_guess.png")

# %% [markdown]
# A thin line joins each point to the prediction. Its length is the point's *residual*, the error
# for that point. A good guess has short thin lines.
#
# ## One number for the error
#
# We want one number for all of the residuals. The first tutorial used the *mean squared error*.
# Square each residual, then take the average.
#
# **Exercise 1.** Write a function `mean_squared_error(w, b)` with NumPy, for the points above. What
# is the error of the guess? The answer is folded below.


# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
def mean_squared_error(w, b):
    residuals = w * x + b - y
    return np.mean(residuals**2)


guess_error = mean_squared_error(GUESS_W, GUESS_B)
print(f"The mean squared error of the guess is {guess_error:.5f}")

# %% [markdown]
# The root of the mean squared error is about 27. So a typical prediction of this guess is off by
# about 27, where the noise is about 1.
#
# ## Let Vernal try first
#
# Below you will move the line by hand. You can then watch an optimizer do the same. So we let
# Vernal train now, and record its way. The rest of this tutorial explains how it works.
#
# Our model has two parameters and nothing else. `jnp` is JAX's version of NumPy. A parameter must
# be a JAX array, because JAX computes the gradients.


# %%
class Line(eqx.Module):
    w: jax.Array
    b: jax.Array

    def __call__(self, x):
        return self.w * x + self.b


guess = Line(w=jnp.array(GUESS_W), b=jnp.array(GUESS_B))

# %% [markdown]
# The first tutorial used `fit`, which runs the whole training. `trainer.epochs` runs it one epoch
# at a time. Between two epochs your own code can look at the model. Here each epoch is one step,
# because a step takes all of the points. We write down the step's number, w and b.


# %%
def record(trainer, model, data, steps):
    path = [(0, float(model.w), float(model.b))]
    for epoch in trainer.epochs(model, data):
        model = epoch.state.model
        path.append((epoch.index + 1, float(model.w), float(model.b)))
        if len(path) > steps:
            return path


trainer = vernal.Trainer(optax.sgd(RATE), losses.MeanSquaredError())
path = record(trainer, guess, (x, y), STEPS)

print(f"The optimizer's way has {len(path):,} points. The first three are:")
for step, w, b in path[:3]:
    print(f"  step {step}: w = {w:.3f}, b = {b:.3f}")

# %% [markdown]
# ## Move it yourself
#
# The next cell writes a web page. A notebook shows the page below the cell. It is also a file, and
# any browser opens it. The function fills in a template, `by_hand.html`, with the points and the
# recorded way. Skip the code if you like: there is no training in it.

# %%
BESIDE = Path(globals().get("__file__", "")).parent  # a notebook runs in the tutorials' folder
TEMPLATES = [BESIDE / "by_hand.html", Path("tutorials/by_hand.html")]


def axis(name, smallest, largest, tick):
    return {"name": name, "min": smallest, "max": largest, "tick": tick}


def thinned(path, points=150):
    """Keep the first steps, then fewer and fewer, and the last one."""
    kept = np.geomspace(1, len(path), points).astype(int) - 1
    return [path[index] for index in np.unique(kept)]


class Page:
    """A web page to move w and b, written to a file. A notebook shows it."""

    def __init__(self, file, **task):
        self.file = file
        template = next(path for path in TEMPLATES if path.exists())
        self.text = template.read_text(encoding="utf-8").replace("TASK<", f"{json.dumps(task)}<")
        file.write_text(self.text, encoding="utf-8")

    def __repr__(self):
        return f"Open {self.file} in a browser."

    def _repr_html_(self):
        style = "width: 100%; height: 720px; border: 1px solid #8888; border-radius: 8px"
        frame = f'<iframe title="By hand" srcdoc="{html.escape(self.text)}" style="{style}">'
        return f"<div>{frame}</iframe></div>"


# %% [markdown]
# Move w and b, and make the error small. What do you expect: is the best w the same for each b?
#
# Beside the points is a map. Each place on the map is one pair of w and b, so it is one line. A
# ring joins the places with the same error. Your trail shows where you were. When you are done,
# press "Let the optimizer try".

# %%
LINE_AXES = {
    "x": axis("x", -5.2, 5.2, 2.5),
    "y": axis("y", -30, 50, 20),
    "w": axis("w", -10, 10, 5),
    "b": axis("b", -10, 30, 10),
}
line_page = Page(
    PICTURES / "04_line.html",
    kind="line",
    x=x.tolist(),
    y=y.tolist(),
    start=[GUESS_W, GUESS_B],
    path=thinned(path),
    axes=LINE_AXES,
)
line_page

# %% [markdown]
# Here is the same as a picture, for a reader without a browser. The right panel shows the
# optimizer's way.


# %%
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


fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
draw_guess(left, GUESS_W, GUESS_B)
draw_map(right, LINE_AXES, mean_squared_error, path)
fig.savefig(PICTURES / "04_line.png")

# %% [markdown]
# The rings are not tilted. So the best w is the same for each b, and the other way round.
#
# At first the optimizer changed mostly w. Then it changed only b, more and more slowly. It never
# saw the map. How did it know the direction?
#
# ## The direction: one number first
#
# Take a simpler error with a single knob, w: f(w) = w² + 3w − 5. Suppose we stand at w = 10. Which
# way is down? Change w a little, and look.


# %%
def f(w):
    return w**2 + 3 * w - 5


print(f"f(10) is {f(10.0):.0f}, and f(10.001) is {f(10.001):.6f}")
print(f"The slope is about {(f(10.001) - f(10.0)) / 0.001:.3f}")

# %% [markdown]
# The slope at 10 is about 23. It is positive, so f rises to the right, and down is to the left.
#
# For this f we can compute the slope at any w: it is 2w + 3. (The slope of w² is 2w, the slope of
# 3w is 3, and -5 changes nothing.) This rule is the *derivative* of f. At the lowest point the
# slope is zero: 2w + 3 = 0, so w = -1.5.
#
# An optimizer goes a small step against the slope, again and again. This is *gradient descent*. The
# step is the slope times a small number, the *learning rate*.


# %%
def slope(w):
    return 2 * w + 3


def descend(slope, w, rate, steps=1_000):
    way = [w]
    for _ in range(steps):
        w = w - rate * slope(w)
        way.append(w)
    return way


way = descend(slope, 10.0, rate=0.01)

print(f"The first three places: {way[0]:.4f}, {way[1]:.4f}, {way[2]:.4f}")
print(f"After {len(way) - 1:,} steps: w = {way[-1]:.4f}")

# %%
ws = np.linspace(-12, 11, 200)

fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
ax.plot(ws, f(ws), color="0.4", label="f(w) = w² + 3w − 5")
ax.plot(way[::10], f(np.array(way[::10])), "o", color="#D55E00", label="every 10th step")
ax.plot(way[-1], f(way[-1]), "s", color="#0072B2", markersize=9, label="after 1,000 steps")
ax.set(xlabel="w", ylabel="f(w)", title="Down the slope")
ax.legend(loc="upper center")
fig.savefig(PICTURES / "04_descent.png")

# %% [markdown]
# The steps get shorter by themselves, because the slope gets flatter. So descent ends at -1.5, as
# it should.
#
# **Exercise 2.** The rate 0.01 is a choice. Which rate reaches -1.5 in a single step? And where is
# w after 1,000 steps with the rate 1? Think first, then try.

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
# From 10 the step is rate * 23, and -1.5 is 11.5 away: the rate is 11.5 / 23 = 0.5.
one_step = descend(slope, 10.0, rate=0.5, steps=1)
# With the rate 1, each step lands as far on the other side: -13, 10, -13, 10, ...
back_and_forth = descend(slope, 10.0, rate=1.0)

print("With the rate 0.5, one step leads to", one_step[-1])
print("With the rate 1:", back_and_forth[:4], "... and in the end", back_and_forth[-1])

# %% [markdown]
# We worked out the derivative on paper. For a network with a million parameters nobody does that.
# `jax.grad` takes a function, and returns the function of its slope.

# %%
slope_by_jax = jax.grad(f)

print("The slope at 10, by hand", slope(10.0), "and from JAX", slope_by_jax(10.0))

way_by_jax = descend(slope_by_jax, 10.0, rate=0.01)
print(f"After {len(way_by_jax) - 1:,} steps with JAX's slope: w = {way_by_jax[-1]:.4f}")

# %% [markdown]
# ## Then two numbers
#
# The error of the line has two knobs. So it has two slopes, one for w and one for b. Together they
# are the *gradient*. `argnums=(0, 1)` asks JAX for the slopes of the first two arguments.
#
# The loop is the same as before. It goes a small step against each slope. `jax.jit` only makes it
# faster.


# %%
def error_of_line(w, b):
    return jnp.mean((w * x + b - y) ** 2)


gradient = jax.jit(jax.grad(error_of_line, argnums=(0, 1)))

w, b = GUESS_W, GUESS_B
print("At the guess the slopes are {:.1f} for w and {:.1f} for b".format(*gradient(w, b)))

for _ in range(STEPS):
    slope_w, slope_b = gradient(w, b)
    w, b = w - RATE * slope_w, b - RATE * slope_b

print(f"After {STEPS:,} steps by hand: w = {w:.4f}, b = {b:.4f}")

# %% [markdown]
# At the guess, the slope for w is more than three times as steep. So the optimizer changes w
# faster. Once w is right, only the slope for b is left.
#
# Now Vernal, with `fit`. The optimizer, the rate and the number of steps are the same.

# %%
state, history = trainer.fit(guess, (x, y), epochs=STEPS)
fitted = state.model
is_same = path[-1] == (STEPS, float(fitted.w), float(fitted.b))

print(f"After {STEPS:,} steps with Vernal: w = {fitted.w:.4f}, b = {fitted.b:.4f}")
print("The recorded way ends at exactly these numbers:", is_same)
print(f"The error fell from {guess_error:.2f} to {mean_squared_error(fitted.w, fitted.b):.2f}")

# %% [markdown]
# Both find w and b. They are close to 2 and 20, which made the points. The error is near 1, and
# that is the noise: its mean square is about 1.
#
# **Exercise 3.** b is still a little low. Is that the noise, or has training not arrived yet?
# Compare with `np.polyfit(x, y, 1)`, which computes the best line directly. Then train for 10,000
# steps.

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
best_w, best_b = np.polyfit(x, y, 1)
longer, _ = trainer.fit(guess, (x, y), epochs=10_000)

# It is both. More steps close the gap to the best line. The best line itself is off: the noise.
print(f"The best line:      w = {best_w:.4f}, b = {best_b:.4f}")
print(f"After  3,000 steps: w = {fitted.w:.4f}, b = {fitted.b:.4f}")
print(f"After 10,000 steps: w = {longer.model.w:.4f}, b = {longer.model.b:.4f}")

# %% [markdown]
# ## A look ahead: yes or no
#
# Some questions have only two answers: is it a cat, or not? Write 1 for yes and 0 for no. Then the
# points lie on two levels. No line fits them well. But the same two numbers also make another
# curve. It turns w x + b into a number between 0 and 1.

# %%
rng = np.random.default_rng(SEED)
z = 2 * x + 1 + rng.uniform(0, 1, EXAMPLES)
labels = np.round(1 / (1 + np.exp(-z)))

print("Of the labels,", int(labels.sum()), "are 1 and", int((1 - labels).sum()), "are 0.")

# %% [markdown]
# The next tutorial explains the curve and its error, which is named *cross-entropy*. Vernal has
# that error ready. Again we record the optimizer's way, from another bad guess.

# %%
LOGISTIC_RATE = 0.1
LOGISTIC_GUESS = Line(w=jnp.array(-3.0), b=jnp.array(3.0))

logistic_trainer = vernal.Trainer(optax.sgd(LOGISTIC_RATE), losses.BinaryCrossEntropy())
logistic_path = record(logistic_trainer, LOGISTIC_GUESS, (x, labels), STEPS)
step, w, b = logistic_path[-1]

print(f"After {step:,} steps: w = {w:.4f}, b = {b:.4f}")

# %% [markdown]
# Move it yourself first. What does w do to this curve? What does b do?

# %%
LOGISTIC_AXES = {
    "x": axis("x", -5.2, 5.2, 2.5),
    "y": axis("y", -0.1, 1.1, 0.5),
    "w": axis("w", -5, 5, 2.5),
    "b": axis("b", -5, 5, 2.5),
}
logistic_page = Page(
    PICTURES / "04_logistic.html",
    kind="logistic",
    x=x.tolist(),
    y=labels.tolist(),
    start=[-3.0, 3.0],
    path=thinned(logistic_path),
    axes=LOGISTIC_AXES,
)
logistic_page


# %%
def cross_entropy(w, b):
    return np.mean(np.logaddexp(0, w * x + b) - labels * (w * x + b))


fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
left.scatter(x, labels, s=14, color="0.4", label="points")
left.plot(x, 1 / (1 + np.exp(3 * x - 3)), color="#0072B2", linewidth=2, label="the guess")
left.plot(
    x, 1 / (1 + np.exp(-w * x - b)), "--", color="#D55E00", linewidth=2, label="the optimizer"
)
left.set(xlabel="x", ylabel="label", title="A curve between 0 and 1")
left.legend(loc="center right")
draw_map(right, LOGISTIC_AXES, cross_entropy, logistic_path)
fig.savefig(PICTURES / "04_logistic.png")

# %% [markdown]
# The weight w makes the step steep, and its sign says on which side the ones are. The bias b moves
# the step to the left or right. The optimizer stopped on the way: the floor of this valley falls
# only slowly, to a lowest point outside the map. The next tutorial says why.

# %%
print("Pictures are in", PICTURES)
