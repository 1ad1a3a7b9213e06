# %% [markdown]
# # 11. Many devices: one run, shared
#
# A GPU or a TPU is one *device*, and large machines have eight of them or more. To make a run
# shorter, devices can share each batch: each computes the gradient of its part, and the gradients
# are averaged. This is called *data-parallel* training. In Vernal you change one argument.
#
# You need no such machine to try it: JAX can make several devices of one CPU. Nothing gets faster
# that way, but every number is as it would be.

# %%
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

SEED = 0
EPOCHS = 40
BATCH_SIZE = 64

PICTURES = Path("build/tutorials")
PICTURES.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## The same script
#
# JAX decides how many devices there are when it starts. So the training is a script of its own,
# which we start twice: with one device, and with eight. A *mesh* is JAX's word for devices in a
# row, or in a grid. Its axis has a name, here `data`.

# %%
JOB = f"""
import sys
import jax
import numpy as np
import optax
import vernal
from vernal import losses, nn

devices = jax.device_count()
mesh = jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

rng = np.random.default_rng({SEED})
x = rng.uniform(-3, 3, (1000, 2))
y = np.sin(x[:, :1]) * np.cos(x[:, 1:])
model = nn.MLP(
    2, 1, width_size=64, depth=2, activation=jax.numpy.tanh, key=jax.random.key({SEED})
)

trainer = vernal.Trainer(optax.adam(3e-3), losses.MeanSquaredError(), mesh=mesh)
state, history = trainer.fit(
    model, (x, y), epochs={EPOCHS}, batch_size={BATCH_SIZE}, progress=False
)
weight = state.model.layers[0].weight
loss = history.epochs["loss"][-1]
print(f"devices {{devices}}, steps {{int(state.step)}}, final loss {{loss:.6f}}")
print(f"each device has the whole weight: {{weight.sharding.is_fully_replicated}}")
np.save(sys.argv[1], history.epochs["loss"])
"""

folder = PICTURES.resolve() / "11_job"
folder.mkdir(exist_ok=True)
(folder / "job.py").write_text(JOB)


def run(script, devices, file):
    """Run a script with so many devices made of the CPU; return what it saved and printed."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    command = [sys.executable, script, file]
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    print(done.stdout, end="")
    return np.load(folder / file)


# %% [markdown]
# **What do you expect of the losses?** The batches are the same. But eight devices add their
# numbers in another order, and each sum is rounded.

# %%
one = run("job.py", 1, "one.npy")
eight = run("job.py", 8, "eight.npy")

print(f"largest difference of the loss, relative: {(abs(one - eight) / one).max():.0e}")

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
ax.plot(np.arange(1, EPOCHS + 1), one, label="one device")
ax.plot(np.arange(1, EPOCHS + 1), eight, "--", label="eight devices")
ax.set(xlabel="epoch", ylabel="loss", yscale="log", title="The same run on one device and on eight")
ax.legend()
fig.savefig(PICTURES / "11_losses.png")

# %% [markdown]
# The curves are one. The differences are those of rounding. With the same number of devices, a run
# has the same bits again. With another number, it has the same losses up to rounding. (In a long
# run, rounding may grow: where a `relu` is just at its hinge, say, the last bit decides on which
# side it is.)
#
# ## What each device does
#
# A batch has 64 examples, so each of the eight devices gets eight of them. After its gradient, each
# device gets the sum of all gradients: the only time in a step that devices wait for each other.
# The last batch of an epoch has 40 examples: 1,000 are 15 batches of 64, and 40. Eight devices
# share 40, too. A last batch that they cannot share is trained on by all of them, as it is.
#
# A batch size that eight does not divide is refused, with the size that works:

# %%
WRONG = JOB.replace(f"batch_size={BATCH_SIZE}", "batch_size=100")
(folder / "wrong.py").write_text(WRONG)
environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
wrong = subprocess.run(
    [sys.executable, "wrong.py", "wrong.npy"],
    cwd=folder,
    env=environment,
    stderr=subprocess.PIPE,
    text=True,
    check=False,
)
print(wrong.stderr[wrong.stderr.rindex("vernal.ArgumentError") :].strip())

# %% [markdown]
# ## Models that are too large for one device
#
# So far each device has the whole model. A model may also be split: then each device has a part of
# each array, and of the optimizer's memory for it, and fetches the other parts when it needs them.
# This is called *fully sharded* training. You say how each array is split, and `fit` keeps it so.

# %%
SPLIT = JOB.replace(
    "trainer = ",
    """
from jax.sharding import NamedSharding, PartitionSpec

def split(leaf):
    divides = hasattr(leaf, "shape") and leaf.shape[0] % devices == 0
    spec = PartitionSpec("data") if divides else PartitionSpec()
    return jax.device_put(leaf, NamedSharding(mesh, spec)) if hasattr(leaf, "shape") else leaf

model = jax.tree.map(split, model)
trainer = """,
)
(folder / "split.py").write_text(SPLIT)
split = run("split.py", 8, "split.npy")

print(f"largest difference of the loss, relative: {(abs(one - split) / one).max():.0e}")

# %% [markdown]
# The losses are the same again, and now no device has the whole weight.
#
# ## Exercises
#
# **Exercise 1.** How large is the difference with two devices, and with four?

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
differences = {}
for devices in (2, 4):
    other = run("job.py", devices, "other.npy")
    differences[devices] = (abs(one - other) / one).max()
print({devices: f"{difference:.0e}" for devices, difference in differences.items()})

# %% [markdown]
# **Exercise 2.** A step with gradients of G bytes on n devices sends about 2 G (n − 1) / n bytes
# from each device. A link carries 50 GB a second, and the model has 100 million parameters of four
# bytes. How long does a device wait in a step, with 8 devices and with 1,024?

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
gradient_bytes = 4 * 100e6
waits = {n: 2 * gradient_bytes * (n - 1) / n / 50e9 for n in (8, 1024)}
print({n: f"{1000 * seconds:.1f} ms" for n, seconds in waits.items()})

# %%
print("Pictures are in", PICTURES)
