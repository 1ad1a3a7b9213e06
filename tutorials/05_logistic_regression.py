# %% [markdown]
# # 5. Yes or no: logistic regression, then a network
#
# Many questions have only two answers, yes or no. A model learns such answers here, first for
# points on a line. Then it learns from a real table: is a tumour malignant or benign?

# %%
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import vernal
from vernal import callbacks, losses, metrics, nn, plot

SEED = 4
EXAMPLES = 100
TRUE_W, TRUE_B = 2, 1
RATE = 0.1  # for the points on a line
STEPS = 3_000

BLUE, ORANGE = "#0072B2", "#D55E00"
PICTURES = Path("build/tutorials")
PICTURES.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## Labels
#
# These are the points from the end of the last tutorial. For each x we compute z = 2x + 1, and add
# noise between 0 and 1. The *label* is 1 if z is positive, and 0 if not.

# %%
rng = np.random.default_rng(SEED)
x = np.linspace(-5, 5, EXAMPLES)[:, None]  # a column, as the layers need it
z = TRUE_W * x + TRUE_B + rng.uniform(0, 1, (EXAMPLES, 1))
labels = np.where(z > 0, 1.0, 0.0)

first_one, last_zero = x[labels == 1].min(), x[labels == 0].max()
print(f"The first one is at x = {first_one:.2f}, the last zero at x = {last_zero:.2f}")

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
ax.scatter(x, labels, s=14, color="0.4")
pair = {"s": 150, "facecolors": "none", "edgecolors": ORANGE, "linewidths": 2}
ax.scatter([first_one, last_zero], [1, 0], label="in the wrong order", **pair)
ax.set(xlabel="x", ylabel="label", yticks=[0, 1], title="100 points, each 0 or 1")
ax.legend(loc="center right")
fig.savefig(PICTURES / "05_labels.png")

# %% [markdown]
# The noise has put one pair in the wrong order: a one comes before a zero.
#
# ## From a line to a curve
#
# Could a straight line predict the labels? **What do you expect** of the best one at both ends?

# %%
line_w, line_b = np.polyfit(x[:, 0], labels[:, 0], 1)
line = line_w * x + line_b

print(f"The line goes from {line[0, 0]:.2f} to {line[-1, 0]:.2f}")

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
ax.scatter(x, labels, s=14, color="0.4", label="labels")
ax.plot(x, line, color=ORANGE, linestyle="--", linewidth=2, label="a line")
ax.plot(x, 1 / (1 + np.exp(-(2 * x + 1))), color=BLUE, linewidth=2, label="a curve")
ax.set(xlabel="x", ylabel="label, or prediction", title="A line leaves the range from 0 to 1")
ax.legend(loc="lower right")
fig.savefig(PICTURES / "05_line_and_curve.png")

# %% [markdown]
# The curve stays between 0 and 1. So we can read it as a *probability*: how likely is the label 1?
# It needs one function, which turns any number z into a number between 0 and 1:


# %%
def logistic(z):
    return 1 / (1 + np.exp(-z))


for number in (-4, -2, 0, 2, 4):
    print(f"z = {number:>2}: {logistic(number):.3f}")

print("Rounding gives the same labels:", np.array_equal(np.round(logistic(z)), labels))

# %% [markdown]
# This is the *logistic function*, and z is called a *logit*. In the picture, z is the line 2x + 1.
# To fit such a curve is called *logistic regression*.
#
# ## Sure and wrong
#
# Now we need a loss. Suppose that a label is 1, and the model says how likely that is. Compare two
# candidates for the cost.

# %%
probabilities = np.array([0.99, 0.9, 0.5, 0.1, 0.01, 0.001])

print("says   squared error   -log")
for probability in probabilities:
    print(f"{probability:<7}{(1 - probability) ** 2:>12.4f}{-np.log(probability):>8.4f}")

# %% tags=["hide-input"] jupyter={"source_hidden": true}
says = np.linspace(0.001, 1, 500)

fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
ax.plot(says, (1 - says) ** 2, "--", color=ORANGE, linewidth=2, label="squared error")
ax.plot(says, -np.log(says), color=BLUE, linewidth=2, label="-log(prediction)")
ax.set(
    xlabel="prediction, where the label is 1", ylabel="cost", title="Sure and wrong is expensive"
)
ax.legend()
fig.savefig(PICTURES / "05_costs.png")

# %% [markdown]
# Both cost nothing if the model is sure and right. The squared error never costs more than 1,
# whether a wrong prediction is 0.1 or 0.001. With the logarithm, the cost of being sure and wrong
# has no upper limit.
#
# If the label is 0, the model gave it the probability 1 - p, so the cost is -log(1 - p). The
# average of these costs is the *binary cross-entropy*. It is the error in the second widget of the
# last tutorial:
#
# $$-\frac{1}{n} \sum_i \big( y_i \log p_i + (1 - y_i) \log (1 - p_i) \big).$$
#
# For each point one of the two terms is zero.
#
# **Exercise 1.** Write it with NumPy, as `cross_entropy(p, labels)`. What does it cost to say 0.5
# for each point? And what does the curve in the picture cost? The answer is folded below.


# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
def cross_entropy(p, labels):
    return -np.mean(labels * np.log(p) + (1 - labels) * np.log(1 - p))


cost_of_half = cross_entropy(np.full_like(labels, 0.5), labels)
cost_of_curve = cross_entropy(logistic(2 * x + 1), labels)
print(f"0.5 for each point costs {cost_of_half:.4f}, the logarithm of 2")
print(f"The curve costs {cost_of_curve:.4f}")

# %% [markdown]
# ## Fit the curve
#
# `losses.BinaryCrossEntropy` takes the logit z, and applies the logistic function itself. So the
# model is the plain layer from the first tutorial.

# %%
trainer = vernal.Trainer(optax.adam(RATE), losses.BinaryCrossEntropy())
model = nn.Linear(1, 1, key=jax.random.key(0))
state, history = trainer.fit(model, (x, labels), epochs=STEPS)
fitted_w, fitted_b = float(state.model.weight[0, 0]), float(state.model.bias[0])

print(f"After {STEPS:,} steps: w = {fitted_w:.2f}, b = {fitted_b:.2f}")
print(f"The loss is {trainer.evaluate(state, (x, labels))['loss']:.4f}")

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
fine = np.linspace(-5, 5, 500)[:, None]
ax.scatter(x, labels, s=14, color="0.4", label="labels")
ax.plot(fine, logistic(trainer.predict(state, fine)), color=BLUE, linewidth=2, label="fitted")
ax.plot(fine, logistic(2 * fine + 1), "--", color=ORANGE, linewidth=2, label="w = 2, b = 1")
ax.set(xlabel="x", ylabel="label, or probability", title="The fitted curve is steeper")
ax.legend(loc="lower right")
fig.savefig(PICTURES / "05_fitted.png")

# %% [markdown]
# The curve crosses one half near x = -0.8, between the pair. It is much steeper than the curve with
# w = 2 and b = 1, because the labels are rounded. Where the logistic function is 0.7, each label is
# 1, and not 7 in 10 of them. If the pair were in the right order, w would grow without end.
#
# Now leave out the noise and the rounding. The answers are then probabilities. **What do you
# expect** for w and b?

# %%
soft = logistic(TRUE_W * x + TRUE_B)
soft_state, _ = trainer.fit(model, (x, soft), epochs=STEPS)
soft_w, soft_b = float(soft_state.model.weight[0, 0]), float(soft_state.model.bias[0])

print(f"Without noise and rounding: w = {soft_w:.3f}, b = {soft_b:.3f}")

# %% [markdown]
# ## A real table
#
# Each row of this table is one of 569 tumours, with 30 measurements of its cells. The label is 0
# for *malignant*, and 1 for *benign*. It comes with scikit-learn, a library of classical methods.

# %%
from sklearn.datasets import load_breast_cancer

table = load_breast_cancer()
names = ["malignant", "benign"]

print("The table has the shape", table.data.shape)
print("Malignant:", np.sum(table.target == 0), "and benign:", np.sum(table.target == 1))
for column in (0, 3, 4):
    values = table.data[:, column]
    print(f"{table.feature_names[column]}: from {values.min():.3g} to {values.max():.4g}")

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
for label, color, marker in ((0, ORANGE, "x"), (1, BLUE, "o")):
    rows = table.data[table.target == label]
    ax.scatter(rows[:, 0], rows[:, 1], s=18, c=color, marker=marker, alpha=0.7, label=names[label])
ax.set(xlabel="mean radius", ylabel="mean texture", title="Two of the 30 measurements")
ax.legend()
fig.savefig(PICTURES / "05_table.png")

# %% [markdown]
# ## Three parts
#
# A model can learn its training examples by heart. So we divide the table into three parts:
#
# - the **training** part: gradients come from here;
# - the **validation** part: it decides when to stop;
# - the **test** part: it is used once, at the end.
#
# If you choose a model by some examples, you also choose luck on them. So never choose anything by
# the test part.
#
# `stratify` keeps the share of malignant tumours the same in each part. The function also scales
# the measurements, by the training part alone. The others stand for tumours not seen yet.

# %%
from sklearn.model_selection import train_test_split


def split(seed):
    """Divide the table into training, validation and test, each a pair (x, y)."""
    x, y = table.data, table.target[:, None].astype(float)
    x_rest, x_test, y_rest, y_test = train_test_split(
        x, y, test_size=0.2, stratify=y, random_state=seed
    )
    x_train, x_validation, y_train, y_validation = train_test_split(
        x_rest, y_rest, test_size=0.2, stratify=y_rest, random_state=seed
    )
    mean, deviation = x_train.mean(axis=0), x_train.std(axis=0)
    return (
        ((x_train - mean) / deviation, y_train),
        ((x_validation - mean) / deviation, y_validation),
        ((x_test - mean) / deviation, y_test),
    )


train, validation, test = split(SEED)

for name, part in (("Training", train), ("Validation", validation), ("Test", test)):
    print(f"{name}: {len(part[0])} tumours, {part[1].mean():.0%} of them benign")

# %% [markdown]
# ## Logistic regression against a network
#
# The first model is the layer again, with 30 numbers in: 31 parameters. The second has a hidden
# layer of 20, and 641 parameters. Its activation, `tanh`, is a logistic curve that goes from -1
# to 1.


# %%
def new_models(seed):
    key = jax.random.key(seed)
    return {
        "logistic regression": nn.Linear(30, 1, key=key),
        "network": nn.MLP(30, 1, width_size=20, depth=1, activation=jnp.tanh, key=key),
    }


# %% [markdown]
# Once a network learns examples by heart, the validation loss rises, while the training loss still
# falls. Two *callbacks* watch the validation loss after each epoch.
#
# - `EarlyStopping` stops the run once this loss has not improved for 20 epochs.
# - `BestState` makes `fit` return the state of the best epoch, and not the last one.
#
# One step takes a *batch* of 32 tumours, so an epoch has 12 steps. `fit` shuffles them before each
# epoch, by its `key`. Two *metrics* are measured beside the loss. The *accuracy* is the share of
# correct answers. The *confusion matrix* counts each kind of mistake.

# %%
table_trainer = vernal.Trainer(
    optax.adam(0.01),
    losses.BinaryCrossEntropy(),
    metrics={"accuracy": metrics.accuracy, "confusion": metrics.confusion_matrix},
)


def train_one(model, train, validation, seed):
    return table_trainer.fit(
        model,
        train,
        validation_data=validation,
        epochs=500,  # at most
        batch_size=32,
        callbacks=[callbacks.EarlyStopping(patience=20), callbacks.BestState()],
        key=jax.random.key(seed),
    )


states, histories = {}, {}
for name, model in new_models(SEED).items():
    states[name], histories[name] = train_one(model, train, validation, SEED)
    validation_losses = histories[name].epochs["val_loss"]
    print(f"{name}: {len(validation_losses)} epochs, best after {validation_losses.argmin() + 1}")

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, panels = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
for ax, (name, history) in zip(panels, histories.items(), strict=True):
    plot.history(history, ax=ax)
    ax.set_title(name.capitalize())
fig.savefig(PICTURES / "05_losses.png")

# %% [markdown]
# The dot marks the best epoch. The network is faster, and its validation loss soon rises again.
#
# ## The test
#
# Now we use the test part, once. scikit-learn fits its own logistic regression, to compare. **Which
# do you expect** to be best?

# %%
from sklearn.linear_model import LogisticRegression

results = {name: table_trainer.evaluate(state, test) for name, state in states.items()}
reference = LogisticRegression(max_iter=1_000).fit(train[0], train[1][:, 0])
reference_accuracy = reference.score(test[0], test[1][:, 0])

for name, result in results.items():
    print(f"{name}: {result['accuracy']:.3f} of the test part are correct")
print(f"scikit-learn's logistic regression: {reference_accuracy:.3f}")

# %% [markdown]
# All three are right for about 97 of 100 tumours. (One tumour more or less changes the accuracy by
# 0.009.) The network is not clearly better! So try the simple model first.
#
# Which mistakes were made? The confusion matrix shows them.

# %%
fig, panels = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for ax, (name, result) in zip(panels, results.items(), strict=True):
    plot.confusion_matrix(result["confusion"], labels=names, ax=ax)
    ax.set_title(name.capitalize())
fig.savefig(PICTURES / "05_confusion.png")

# %% [markdown]
# Each row is a true kind, each column a predicted one. The number at the top right counts the worst
# mistake: malignant, but taken for benign.
#
# **Exercise 2.** So far a tumour counts as benign if its probability is above 0.5. Choose a higher
# limit for the logistic regression. In the validation part, it must take no malignant tumour for
# benign. What happens in the test part?

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
best = states["logistic regression"]
says_benign = logistic(table_trainer.predict(best, validation[0]))
limit = max(0.5, says_benign[validation[1] == 0].max())


def mistakes(part, limit):
    benign = logistic(table_trainer.predict(best, part[0])) > limit
    missed = np.sum(benign & (part[1] == 0))
    false_alarms = np.sum(~benign & (part[1] == 1))
    return int(missed), int(false_alarms)


for name, part in (("validation", validation), ("test", test)):
    for each in (0.5, limit):
        missed, false_alarms = mistakes(part, each)
        print(f"{name}, limit {each:.4f}: missed {missed}, false alarms {false_alarms}")

# A higher limit never misses more tumours, and never has fewer false alarms. Here a single tumour,
# which looks benign, decides the limit. So the price is high. And the limit is no promise for the
# test part: we chose it for other tumours.

# %% [markdown]
# **Exercise 3.** One split may be lucky. Repeat the logistic regression with the seeds 0 to 4. How
# far apart are the five accuracies? Is each at least 0.95?


# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
def accuracy_for(seed, name="logistic regression"):
    train, validation, test = split(seed)
    state, _ = train_one(new_models(seed)[name], train, validation, seed)
    return table_trainer.evaluate(state, test)["accuracy"]


accuracies = [accuracy_for(seed) for seed in range(5)]
print("The five accuracies:", " ".join(f"{accuracy:.3f}" for accuracy in accuracies))
print(f"Their mean is {np.mean(accuracies):.3f}, the smallest is {min(accuracies):.3f}")

# %% [markdown]
# The split alone moves the accuracy by one or two in a hundred. So compare two methods over several
# splits.

# %%
print("Pictures are in", PICTURES)
