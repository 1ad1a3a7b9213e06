# %% [markdown]
# # 10. Many models at once: which rate is best, and where do models disagree?
#
# One training run leaves two questions open. Would another learning rate have been better? And
# would the same network, started from other random weights, have agreed? To answer them, we train
# many models, in one program. That takes less time than one after another.

# %%
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

import vernal
from vernal import losses, nn

SEED = 0
EPOCHS = 1_500
RATES = np.geomspace(1e-5, 1.0, 8)  # each about 5 times the one before
MEMBERS = 16
KEY = jax.random.key(SEED)

PICTURES = Path("build/tutorials")
PICTURES.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## Data
#
# Noisy points of a wave, with a gap: between −1 and 1 there are none. Every fifth point is held
# out.

# %%
rng = np.random.default_rng(SEED)
x = np.sort(np.concatenate([rng.uniform(-3, -1, 40), rng.uniform(1, 3, 40)]))[:, None]
y = np.sin(2 * x) + rng.normal(0, 0.1, x.shape)
held_out = np.arange(len(x)) % 5 == 0
train, validation = (x[~held_out], y[~held_out]), (x[held_out], y[held_out])

fig, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
ax.scatter(*train, s=14, label="to train on")
ax.scatter(*validation, s=14, marker="s", label="held out")
ax.set(xlabel="x", ylabel="y", title="A wave with a gap")
ax.legend()
fig.savefig(PICTURES / "10_data.png")

# %% [markdown]
# ## Eight learning rates in one run
#
# A `Sweep` needs a trainer, a function that makes a model from a key, and a key for each model. A
# model of a sweep is called a *member*. We give all eight the same key, so that they begin with the
# same weights. Their learning rates differ.
#
# Normally the rate is fixed in the optimizer. `optax.inject_hyperparams` stores it in the
# optimizer's state, so that each member can have its own. The 1e-3 below is replaced.


# %%
def make_model(key):
    return nn.MLP(1, 1, width_size=32, depth=2, activation=jax.numpy.tanh, key=key)


trainer = vernal.Trainer(optax.inject_hyperparams(optax.adam)(1e-3), losses.MeanSquaredError())
sweep = vernal.Sweep(
    trainer, make_model, keys=[KEY] * len(RATES), hyperparams={"learning_rate": RATES}
)
result = sweep.fit(train, epochs=EPOCHS, validation_data=validation, validate_every=50)

# %% [markdown]
# The line above has the medians over all members. **Which rate do you expect to win?** Too small a
# rate changes too little in the time. With too large a rate, the loss jumps, or gets stuck.

# %%
last = np.array([history.epochs["val_loss"][-1] for history in result.histories])
for rate, loss in zip(RATES, last, strict=True):
    print(f"rate {rate:8.5f}: validation loss {loss:.4f}")
best = result.ranked("val_loss")[0]
print(f"the best rate of these: {RATES[best]:.5f}")

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
for i, (rate, history) in enumerate(zip(RATES, result.histories, strict=True)):
    color = plt.colormaps["viridis"](i / len(RATES))  # the darker, the smaller
    style = ("-", "--", "-.", ":")[i % 4]
    left.plot(history.epochs["loss"], style, color=color, label=f"{rate:.0e}")
left.set(xlabel="epoch", ylabel="loss", yscale="log", title="Training loss, by learning rate")
left.legend(fontsize="small", ncols=2)
right.loglog(RATES, last, "o-")
right.set(xlabel="learning rate", ylabel="loss", title="Validation loss at the end")
fig.savefig(PICTURES / "10_rates.png")

# %% [markdown]
# Rates with almost the same loss are equal in practice: only 16 points are held out.
#
# At first, each member has the losses of `fit` alone, up to rounding. Rounding grows with the
# steps. (With `exact=True`, a sweep has the same bits.) We check the best one.

# %%
alone = vernal.Trainer(optax.adam(RATES[best]), losses.MeanSquaredError())
state, history = alone.fit(make_model(KEY), train, epochs=EPOCHS, key=KEY)
difference = abs(history.epochs["loss"][:100] - result.histories[best].epochs["loss"][:100])
print(f"largest difference of the loss in the first 100 epochs: {difference.max():.0e}")

# %% [markdown]
# ## Sixteen members
#
# Now all members get the best rate, and each its own key: its own first weights. Together they are
# called a *deep ensemble* (Lakshminarayanan et al., 2017). Where there are points, training makes
# the members agree. **What do you expect in the gap, and outside of the data?**

# %%
ensemble = vernal.Sweep(alone, make_model, keys=jax.random.split(KEY, MEMBERS))
members = ensemble.fit(train, epochs=EPOCHS)

grid = np.linspace(-4.5, 4.5, 300)[:, None]
mean, std = members.predict(grid)
each = members.predict_each(grid)
print("the members' outputs:", each.shape)

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
ax.plot(grid, each[:, :, 0].T, color="0.7", linewidth=0.8)
ax.fill_between(
    grid[:, 0], (mean - 2 * std)[:, 0], (mean + 2 * std)[:, 0], alpha=0.3, label="mean ± 2 std"
)
ax.plot(grid, mean, color="#0072B2", label="their mean")
ax.plot(grid, np.sin(2 * grid), "--", color="#D55E00", label="the wave without noise")
ax.scatter(*train, s=14, color="black", zorder=3, label="to train on")
ax.set(xlabel="x", ylabel="y", ylim=(-3, 4), title="Sixteen networks, and where they disagree")
ax.legend(loc="lower center", ncols=2)
fig.savefig(PICTURES / "10_ensemble.png")

# %% [markdown]
# The gray lines are the members. The band is twice their standard deviation around their mean. The
# members agree where they have seen data, and differ in the gap and outside. But look at the dashed
# line: in the gap it lies outside of the band. There all members are wrong in the same way.

# %%
is_seen = (abs(grid[:, 0]) > 1.2) & (abs(grid[:, 0]) < 2.8)
is_gap, is_far = abs(grid[:, 0]) < 0.8, abs(grid[:, 0]) > 4
print(f"average spread within the data {std[is_seen].mean():.3f}")
print(f"average spread in the gap      {std[is_gap].mean():.3f}")
print(f"average spread far outside     {std[is_far].mean():.3f}")

# %% [markdown]
# The spread says where the members lack data. It is not the noise of the points, and not the size
# of the error.
#
# ## Exercises
#
# **Exercise 1.** Cut the training data into five parts. Train five members in one sweep: each on
# four parts, with the fifth as its validation data. `weights` has a row for each member: 1 for an
# example that it trains on, and 0 for the others. `validation_weights` has 1 for the fifth part.
# What is the average validation loss?

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
fold = np.arange(len(train[0])) % 5
trains = np.array([fold != i for i in range(5)], dtype=float)
folds = vernal.Sweep(alone, make_model, keys=jax.random.split(KEY, 5)).fit(
    train,
    epochs=EPOCHS,
    weights=trains,
    validation_data=train,
    validation_weights=1 - trains,
    validate_every=EPOCHS,
)
of_folds = [history.epochs["val_loss"][-1] for history in folds.histories]
print("five folds:", " ".join(f"{loss:.4f}" for loss in of_folds), f"mean {np.mean(of_folds):.4f}")

# %% [markdown]
# **Exercise 2.** Let each member of the ensemble stop when its validation loss has not improved for
# 5 validations. `callbacks` takes a function from a member's number to the list of its callbacks.
# Do all of them stop at the same epoch?

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
stopped = ensemble.fit(
    train,
    epochs=EPOCHS,
    validation_data=validation,
    validate_every=25,
    callbacks=lambda i: [vernal.callbacks.EarlyStopping("val_loss", patience=5)],
)
lengths = sorted(len(history.epochs["loss"]) for history in stopped.histories)
print(f"{len(stopped.ended)} members stopped early; epochs from {lengths[0]} to {lengths[-1]}")

# %%
print("Pictures are in", PICTURES)
