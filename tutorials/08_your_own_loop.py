# %% [markdown]
# # 8. Your own loop: three ways to train, and a run that survives
#
# `fit` is a loop that Vernal writes for you. Sometimes you want to write it yourself: to look at
# each step, to stop by a rule of your own, to train two models in turn. Here we make the same run
# three times, each time with more of the loop in our own hands. Then we kill a run in the middle,
# and it goes on as if nothing had happened.

# %%
import signal
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import vernal
from vernal import losses, metrics, nn, plot

SEED = 0
EXAMPLES = 300
BATCH_SIZE = 32
EPOCHS = 30
RATE = 0.01
KEY = jax.random.key(SEED)

PICTURES = Path("build/tutorials")
PICTURES.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## Data
#
# Two spirals of points, one for each class. No straight line separates them.

# %%
rng = np.random.default_rng(SEED)
y = np.arange(EXAMPLES)[:, None] % 2  # the class: 0, 1, 0, 1, ...
turn = rng.uniform(0.3, 1.5, (EXAMPLES, 1))  # how far along its spiral a point is
angle = np.pi * (1.5 * turn + y)  # the second spiral is the first, half a turn on
x = turn * np.hstack([np.cos(angle), np.sin(angle)]) + rng.normal(0, 0.06, (EXAMPLES, 2))
data = (x, y)

fig, ax = plt.subplots(figsize=(5, 4), layout="constrained")
for label, color, marker in [(0, "#0072B2", "o"), (1, "#D55E00", "s")]:
    points = x[y[:, 0] == label]
    ax.scatter(points[:, 0], points[:, 1], s=14, color=color, marker=marker, label=f"class {label}")
ax.set(xlabel="first input", ylabel="second input", title="Two spirals")
ax.legend()
fig.savefig(PICTURES / "08_spirals.png")

# %% [markdown]
# ## The first way: `fit`
#
# Nothing is new here but the batches. With `batch_size=32`, a step looks at 32 examples. An *epoch*
# is one pass over all 300: nine batches of 32, and a last one of 12. Each epoch takes the examples
# in another order.

# %%
model = nn.MLP(2, 1, width_size=32, depth=2, key=KEY)
trainer = vernal.Trainer(
    optax.adam(RATE), losses.BinaryCrossEntropy(), metrics={"accuracy": metrics.accuracy}
)
by_fit, history = trainer.fit(model, data, epochs=EPOCHS, batch_size=BATCH_SIZE)

print(f"{int(by_fit.step)} steps, accuracy {history.epochs['accuracy'][-1]:.3f}")

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, ax = plt.subplots(figsize=(5, 4), layout="constrained")
plot.decision_boundary(by_fit, data, ax=ax)
ax.set_title("What the network has learned")
ax.get_legend().remove()  # the colors are those of the picture above
fig.savefig(PICTURES / "08_boundary.png")

# %% [markdown]
# ## The second way: `epochs`
#
# `trainer.epochs` is a loop that you write. It yields an `Epoch` after each pass over the data, and
# it does not end by itself. You end it with `break`. An epoch has an `index`, a `state` and
# `metrics`. So a rule of your own is an `if`. Here we also keep some states, to draw them.

# %%
kept = {}
for epoch in trainer.epochs(model, data, batch_size=BATCH_SIZE):
    if epoch.index in (0, 4, 9, 29):
        kept[epoch.index + 1] = epoch.state
        print(f"epoch {epoch.index + 1:2}: accuracy {epoch.metrics['accuracy']:.3f}")
    if epoch.index + 1 == EPOCHS:
        break
by_epochs = epoch.state

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, axes = plt.subplots(1, 4, figsize=(10, 3), layout="constrained", sharey=True)
for ax, (count, state) in zip(axes, kept.items(), strict=True):
    plot.decision_boundary(state, data, ax=ax)
    ax.set(title=f"epoch {count}", ylabel="")
    ax.get_legend().remove()
fig.savefig(PICTURES / "08_epochs.png")

# %% [markdown]
# Both runs trained the same model on the same data. **Do you expect the same weights?** Not nearly
# the same: the same in every bit.


# %%
def same_bits(one, other):
    """Say whether two trees have the same arrays."""
    return bool(eqx.tree_equal(one, other))


print("fit and epochs, the same weights:", same_bits(by_fit.model, by_epochs.model))

# %% [markdown]
# ## The third way: `step`
#
# `trainer.step` makes one step on one batch. It takes a *state* and returns a new one. The state
# holds everything that changes in training: the model, the memory of the optimizer, how many steps
# were made, and the key. `init` makes the first one.
#
# The order of the examples depends on the key and on the number of the epoch, on nothing else. So
# `vernal.batches` can make the batches of any epoch, exactly as `fit` makes them.

# %%
state = trainer.init(model)
for epoch_number in range(EPOCHS):
    for batch in vernal.batches(data, BATCH_SIZE, epoch=epoch_number):
        state, info = trainer.step(state, batch)
by_steps = state

print("the last batch:", {name: round(float(value), 3) for name, value in info.items()})
print("fit and step, the same weights:", same_bits(by_fit.model, by_steps.model))

# %% [markdown]
# So you can begin with `fit`, and go down to `epochs` or `step` on the day when you need it.
# Nothing else in your program changes.
#
# A state is a value. A step does not change the state that you give it. So you can go on from one
# state twice, as here with two batches, and still have it.

# %%
first, second = list(vernal.batches(data, BATCH_SIZE, epoch=0))[:2]
on_first, _ = trainer.step(by_fit, first)
on_second, _ = trainer.step(by_fit, second)

print("steps:", int(by_fit.step), int(on_first.step), int(on_second.step))
print("the same weights after other batches:", same_bits(on_first.model, on_second.model))

# %% [markdown]
# ## A run that survives
#
# A long run may be killed: the power fails, a machine is needed elsewhere. So `fit` can save the
# run as it goes, with `checkpoints`. Here is a script of its own that does. (It sleeps in each
# epoch, so that we have time to kill it.)

# %%
JOB = f"""
import sys
import time
import numpy as np
import optax
import jax
import vernal
from vernal import losses, metrics, nn

x, y = np.load("spirals.npz").values()
model = nn.MLP(2, 1, width_size=32, depth=2, key=jax.random.key({SEED}))
trainer = vernal.Trainer(
    optax.adam({RATE}), losses.BinaryCrossEntropy(), metrics={{"accuracy": metrics.accuracy}}
)

def report(epoch):
    print("epoch", epoch.index + 1, flush=True)
    time.sleep(0.1)

state, history = trainer.fit(
    model, (x, y), epochs={EPOCHS}, batch_size={BATCH_SIZE}, callbacks=[report], progress=False,
    checkpoints=vernal.Checkpoints("run", every_epochs=1),
)
vernal.save("model.safetensors", state.model)
print("finished; the history has", len(history.epochs["loss"]), "epochs", flush=True)
"""

folder = PICTURES.resolve() / "08_job"
folder.mkdir(exist_ok=True)
for old in [*folder.glob("run/**/*"), *folder.glob("*.safetensors")][::-1]:  # of an earlier try
    old.rmdir() if old.is_dir() else old.unlink()
np.savez(folder / "spirals.npz", x=x, y=y)
(folder / "job.py").write_text(JOB)

# %% [markdown]
# We start the script, read along, and kill it after its twelfth epoch. The signal SIGKILL ends a
# process at once: it cannot save anything any more.

# %%
command = [sys.executable, "job.py"]
job = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
seen = []
for line in job.stdout:
    seen.append(line.strip())
    if line == "epoch 12\n":
        job.kill()
        break
job.stdout.close()

print("The first run ended by", signal.Signals(-job.wait()).name, "after", seen[-1])
print("Is there a model?", (folder / "model.safetensors").exists())

# %% [markdown]
# Now we start the same script again, unchanged. **Where does it begin?**

# %%
again = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
lines = again.stdout.splitlines()

print("The second run began with", lines[0], "and ended with", lines[-2])
print(lines[-1])

# %% [markdown]
# It went on from the last checkpoint: perhaps the last epoch before the kill, perhaps one or two
# earlier, since a checkpoint is written in the background. Is its model the one that a run without
# a kill would have made?

# %%
resumed = vernal.load(folder / "model.safetensors", model)

print("killed and resumed, the same weights:", same_bits(by_fit.model, resumed))

# %% [markdown]
# Again every bit is the same. The state holds all that matters: with it, the past of a run does
# not.
#
# ## Exercises
#
# **Exercise 1.** Write a loop with `epochs` that stops when the accuracy is above 0.95 for the
# first time. The answer is folded below.

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
for epoch in trainer.epochs(model, data, batch_size=BATCH_SIZE):
    if epoch.metrics["accuracy"] > 0.95:
        break
stopped_after = epoch.index + 1
print(f"accuracy {epoch.metrics['accuracy']:.3f} after {stopped_after} epochs")

# %% [markdown]
# **Exercise 2.** Go on from the end of the run, `by_fit`, for 10 more epochs. Then make a new run
# of 40 epochs. Are the weights the same?

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
gone_on, _ = trainer.fit(by_fit, data, epochs=10, batch_size=BATCH_SIZE)
in_one_go, _ = trainer.fit(model, data, epochs=EPOCHS + 10, batch_size=BATCH_SIZE)
print("30 + 10 and 40 epochs, the same weights:", same_bits(gone_on.model, in_one_go.model))

# %% [markdown]
# **Exercise 3.** A step is a plain function of a state and a batch. So `jax.grad` can look through
# it. How does the weights' size after one step depend on the learning rate? Compute the slope, and
# compare it with a small difference.

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}


def size_after_a_step(rate):
    with_rate = vernal.Trainer(optax.sgd(rate), losses.BinaryCrossEntropy())
    after, _ = with_rate.step(with_rate.init(model), data)
    return optax.tree.norm(eqx.filter(after.model, eqx.is_array))


slope = jax.grad(size_after_a_step)(jnp.float32(0.1))
difference = (size_after_a_step(0.2) - size_after_a_step(0.0)) / 0.2
print(f"slope {slope:.3f}, by a difference {difference:.3f}")

# %%
print("Pictures are in", PICTURES)
