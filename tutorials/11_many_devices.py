# %% [markdown]
# # 11. Many devices: one run, shared
#
# A GPU or a TPU is one *device*, and large machines have eight of them or more. To make a run
# shorter, devices can share each batch: each computes the gradient of its part, and the gradients
# are averaged. This is called *data-parallel* training. In Vernal you change one argument.
#
# You need no such machine to try it: JAX can make several devices from one CPU. Nothing gets faster
# that way, but the program is the same.

# %%
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

PICTURES = Path("build/tutorials")
PICTURES.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## The same script
#
# JAX decides how many devices there are when it starts. So the training is a script of its own,
# which we start twice: with one device, and with eight. A *mesh* is JAX's word for devices in a
# row, or in a grid. Its axis has a name, here `data`. The last argument of the script is for later.

# %%
JOB = """
import sys
import jax
import numpy as np
import optax
import vernal
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from vernal import losses, nn

file, batch_size, splits = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "split"
devices = jax.device_count()
mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))

rng = np.random.default_rng(0)
x = rng.uniform(-3, 3, (1000, 2))
y = np.sin(x[:, :1]) * np.cos(x[:, 1:])
model = nn.MLP(2, 1, width_size=64, depth=2, activation=jax.numpy.tanh, key=jax.random.key(0))

def split(leaf):
    if not isinstance(leaf, jax.Array) or leaf.shape[0] % devices:
        return leaf
    return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec("data")))

if splits:
    model = jax.tree.map(split, model)

trainer = vernal.Trainer(optax.adam(3e-3), losses.MeanSquaredError(), mesh=mesh)
state, history = trainer.fit(model, (x, y), epochs=40, batch_size=batch_size, progress=False)

weight, loss = state.model.layers[0].weight, history.epochs["loss"][-1]
print(f"devices {devices}, steps {int(state.step)}, final loss {loss:.6f}")
print(f"each device has the whole weight: {weight.sharding.is_fully_replicated}")
np.save(file, history.epochs["loss"])
"""

folder = PICTURES.resolve() / "11_job"
folder.mkdir(exist_ok=True)
(folder / "job.py").write_text(JOB)


def run(devices, batch_size=64, split="whole"):
    """Run the script with this number of devices from one CPU; return the losses."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    command = [sys.executable, "job.py", "losses.npy", str(batch_size), split]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    print(done.stdout, end="")
    return np.load(folder / "losses.npy")


# %% [markdown]
# **What do you expect of the losses?** The batches are the same. But eight devices add their
# numbers in another order, and each sum is rounded.

# %%
one = run(1)
eight = run(8)

print(f"largest relative difference of the loss: {(abs(one - eight) / one).max():.0e}")

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
ax.plot(np.arange(1, len(one) + 1), one, label="one device")
ax.plot(np.arange(1, len(one) + 1), eight, "--", label="eight devices")
ax.set(xlabel="epoch", ylabel="loss", yscale="log", title="The same run on one device and on eight")
ax.legend()
fig.savefig(PICTURES / "11_losses.png")

# %% [markdown]
# The curves lie on each other. The differences are those of rounding; in a long run they may grow.
#
# ## What each device does
#
# A batch has 64 examples, so each of the eight devices gets eight of them. After its gradient, each
# device gets the average of all gradients. Here that is the only time in a step that devices wait
# for each other. The last batch of an epoch has 40 examples: 1,000 are 15 batches of 64, and 40.
# Eight devices share 40, too. If they cannot share the last batch, each of them computes all of it.
#
# A batch size that eight does not divide is refused, with one that works:

# %%
try:
    run(8, batch_size=100)
except subprocess.CalledProcessError as error:
    print(error.stderr[error.stderr.rindex("vernal.ArgumentError") :].strip())

# %% [markdown]
# ## Models that are too large for one device
#
# So far each device has the whole model. A model may also be split: then each device has a part of
# each array that divides, and of the optimizer's state for it, and fetches the other parts when it
# needs them. This is called *fully sharded* training. In the script, `PartitionSpec("data")` splits
# an array's first axis over the mesh's axis `data`. `fit` keeps arrays split as they are.

# %%
split = run(8, split="split")

print(f"largest relative difference of the loss: {(abs(one - split) / one).max():.0e}")

# %% [markdown]
# The losses are the same again, and now no device has the whole weight.
#
# ## Exercises
#
# **Exercise 1.** Run the script with eight devices again. Are the losses equal in all bits? And
# those of four devices?

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
again, four = run(8), run(4)
print("eight again:", np.array_equal(eight, again), "and four:", np.array_equal(eight, four))

# %% [markdown]
# **Exercise 2.** A step with gradients of G bytes on n devices sends about 2 G (n − 1) / n bytes
# from each device. The cable between two devices carries 50 GB a second. The model has 100 million
# parameters of four bytes. How long does a device wait in a step, with 8 devices and with 1,024?

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
gradient_bytes = 4 * 100e6
waits = {n: 2 * gradient_bytes * (n - 1) / n / 50e9 for n in (8, 1024)}
print({n: f"{1000 * seconds:.1f} ms" for n, seconds in waits.items()})

# %%
print("Pictures are in", PICTURES)
