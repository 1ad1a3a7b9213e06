# %% [markdown]
# # 7. Digits: a network that looks
#
# Here a network learns to read handwritten digits. So far each input was a number with a meaning of
# its own. In an image it matters which pixels are neighbours. A *convolutional network* makes use
# of that. Two of its layers are special: one keeps a state, the other needs random numbers.
#
# The full run takes about half a minute. If the environment variable `VERNAL_QUICK` is set, the
# networks train for a few epochs only. The first line of the output then says so.

# %%
import os
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import vernal
from vernal import callbacks, losses, metrics, nn, plot

QUICK = bool(os.environ.get("VERNAL_QUICK"))
SEED = 0
TEST, VALIDATION = 360, 180  # images that are not trained on
EPOCHS = 3 if QUICK else 40  # at most
PATIENCE = 10  # epochs without a better validation loss
BATCH = 64
RATE = 0.002
DROPOUT = 0.5

PICTURES = Path("build/tutorials")
PICTURES.mkdir(parents=True, exist_ok=True)

if QUICK:
    print("Quick: 3 epochs instead of 40.")

# %% [markdown]
# ## Look at the images first
#
# Scikit-learn brings 1,797 small images of digits. A pixel is a number from 0, white, to 16, black.

# %%
from sklearn.datasets import load_digits

digits = load_digits()
images, labels = digits.images, digits.target

print("images", images.shape, "labels", labels.shape)
print(images[0].astype(int))

# %% [markdown]
# Can you see the digit in the numbers? Here it is as a picture, and 31 more after it. Cover the
# titles and read the digits yourself. Which ones are hard?

# %%
fig, axes = plt.subplots(4, 8, figsize=(8, 5), layout="constrained")
for ax, image, label in zip(axes.flat, images, labels, strict=False):
    ax.imshow(image, cmap="gray_r")
    ax.set_title(label)
    ax.axis("off")
fig.savefig(PICTURES / "07_digits.png")

# %% [markdown]
# Does each digit occur about as often as the others? If one were rare, a high accuracy could hide
# that the model never finds it.

# %%
print("How many of 0, 1, ..., 9:", *np.bincount(labels))

# %% [markdown]
# ## Three parts
#
# We split the images as in tutorial 5. The network learns from the first part. The validation part
# decides when to stop. The test part is used once, at the end. `stratify` keeps the share of each
# digit the same in all three.
#
# Two steps of preparation: we divide by 16, so that a pixel lies between 0 and 1. And we insert an
# axis for *channels*. A colour photo has three channels: red, green and blue. Ours has one.

# %%
from sklearn.model_selection import train_test_split


def split(seed):
    x = (images / 16).astype(np.float32)[:, None]
    x_rest, x_test, y_rest, y_test = train_test_split(
        x, labels, test_size=TEST, stratify=labels, random_state=seed
    )
    x_train, x_validation, y_train, y_validation = train_test_split(
        x_rest, y_rest, test_size=VALIDATION, stratify=y_rest, random_state=seed
    )
    return (x_train, y_train), (x_validation, y_validation), (x_test, y_test)


train, validation, test = split(SEED)

for name, (x, y) in {"train": train, "validation": validation, "test": test}.items():
    print(f"{name:<10} x {x.shape} y {y.shape}")

# %% [markdown]
# ## A filter looks at nine pixels
#
# Take the 3 × 3 numbers below. Lay them over nine pixels of an image, multiply each pixel by the
# number above it, and add up. **What comes out where all nine pixels are equal? What comes out
# where the left is white and the right is black?**

# %%
edge_filter = np.array([[-1.0, 0.0, 1.0]] * 3, np.float32)
image = train[0][0, 0]
patch = image[2:5, 1:4]  # rows 2 to 4, columns 1 to 3

print(edge_filter)
print(patch)
print("The sum of the nine products:", (edge_filter * patch).sum())

# %% [markdown]
# Equal pixels give 0. A step from white to black gives a positive number. A step from black to
# white gives a negative one. Now we move the filter over the whole image, pixel by pixel. A border
# of zeros lets it reach the edge.

# %%
padded = np.pad(image, 1)
by_hand = np.array(
    [
        [(edge_filter * padded[row : row + 3, column : column + 3]).sum() for column in range(8)]
        for row in range(8)
    ]
)

fig, axes = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained")
axes[0].imshow(image, cmap="gray_r")
axes[0].set_title("one image")
axes[1].imshow(edge_filter, cmap="PuOr_r", vmin=-3, vmax=3)
axes[1].set_title("the filter")
for (row, column), number in np.ndenumerate(edge_filter):
    axes[1].text(column, row, f"{number:.0f}", ha="center", va="center", fontsize=14)
shown = axes[2].imshow(by_hand, cmap="PuOr_r", vmin=-3, vmax=3)
axes[2].set_title("the image, filtered")
fig.colorbar(shown, ax=axes[2], shrink=0.9)
for ax in axes:
    ax.set(xticks=[], yticks=[])
fig.savefig(PICTURES / "07_filter.png")

# %% [markdown]
# The left edges of the strokes are orange, the right edges purple. The result is again an image of
# 8 × 8, called a *feature map*. Moving a filter over an image is a *convolution*.
#
# Equinox has this layer: `eqx.nn.Conv2d(1, 1, kernel_size=3, padding=1)`, where the first two
# numbers count the channels of the input and of the output. It starts with random filters and
# learns better ones. We put ours in its place: `eqx.tree_at` makes a new layer with another part.
# Its first argument says which part.

# %%
convolution = eqx.nn.Conv2d(
    1, 1, kernel_size=3, padding=1, use_bias=False, key=jax.random.key(SEED)
)
convolution = eqx.tree_at(lambda layer: layer.weight, convolution, edge_filter[None, None])
by_layer = convolution(image[None])[0]  # one channel in, one channel out

print("Conv2d agrees with the loop:", np.allclose(by_hand, by_layer, atol=1e-5))

# %% [markdown]
# Nine numbers serve all 64 places. A layer that connects every pixel to every pixel would need
# 64 · 64 = 4,096. And an edge is an edge wherever it is: if the image moves, the feature map moves
# with it.
#
# ## Pooling keeps the strongest
#
# Often it is enough to know that a stroke is near. `MaxPool2d` takes the largest of each 2 × 2
# pixels. The map shrinks to half its height and width.

# %%
pool = eqx.nn.MaxPool2d(kernel_size=2, stride=2)
pooled = pool(by_layer[None])[0]

by_layer = np.asarray(by_layer, np.float64)
print(by_layer[:2].round(1))
print("becomes")
print(np.asarray(pooled[:1], np.float64).round(1))

# %% [markdown]
# ## A layer with a state
#
# Numbers that run through many layers may become very large or very small. Then training is slow.
# *Batch normalisation* brings each channel back: it subtracts the mean over the batch, and divides
# by the standard deviation.
#
# The layer runs inside of `vmap`, which gives it one example at a time. So it needs a name for the
# axis of the batch. Vernal calls this axis "batch", and we do the same here.

# %%
norm, norm_state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(
    1, axis_name="batch", mode="batch", momentum=0.9
)
batch = train[0][:BATCH]
normal, norm_state_after = jax.vmap(norm, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(
    batch, norm_state
)

print(f"before: mean {batch.mean():.2f}, standard deviation {batch.std():.2f}")
print(f"after:  mean {abs(normal.mean()):.2f}, standard deviation {normal.std():.2f}")

# %% [markdown]
# Later you want to read a single image, and there is no batch. The layer then uses means and
# variances that it kept from training: running averages over many batches. They change in every
# step, but no gradient trains them. So they are not parameters. Equinox keeps them in a *state*
# beside the model: `make_with_state` makes both, and the layer returns its output together with the
# new state.
#
# ## A layer with a key
#
# *Dropout* sets each number to zero with a probability, here one half, and doubles the rest. The
# network cannot rely on any single number, so it learns more robust rules. Which numbers go is
# random, so the layer needs a key. In use, nothing is dropped.

# %%
dropout = eqx.nn.Dropout(DROPOUT)

for key in jax.random.split(jax.random.key(SEED), 2):
    print("in training:", dropout(jnp.ones(10), key=key))
print("in use:     ", eqx.nn.inference_mode(dropout)(jnp.ones(10)))

# %% [markdown]
# ## The network
#
# Twice the same: convolution, normalisation, relu, pooling. The image shrinks from 8 × 8 to 4 × 4
# to 2 × 2, and the channels grow from 1 to 32 to 64. Then a linear layer computes ten numbers, one
# for each digit. `__call__` takes **one** image, the state and a key. It hands the state from layer
# to layer.
#
# `Float[Array, "1 8 8"]` is the shape of an argument, for the reader. It comes from jaxtyping.

# %%
from jaxtyping import Array, Float, PRNGKeyArray


class DigitNetwork(eqx.Module):
    conv1: eqx.nn.Conv2d
    norm1: eqx.nn.BatchNorm
    conv2: eqx.nn.Conv2d
    norm2: eqx.nn.BatchNorm
    pool: eqx.nn.MaxPool2d
    dropout: eqx.nn.Dropout
    last: eqx.nn.Linear

    def __init__(self, key: PRNGKeyArray):
        key1, key2, key3 = jax.random.split(key, 3)
        self.conv1 = eqx.nn.Conv2d(1, 32, kernel_size=3, padding=1, key=key1)
        self.norm1 = eqx.nn.BatchNorm(32, axis_name="batch", mode="batch", momentum=0.9)
        self.conv2 = eqx.nn.Conv2d(32, 64, kernel_size=3, padding=1, key=key2)
        self.norm2 = eqx.nn.BatchNorm(64, axis_name="batch", mode="batch", momentum=0.9)
        self.pool = eqx.nn.MaxPool2d(kernel_size=2, stride=2)
        self.dropout = eqx.nn.Dropout(DROPOUT)
        self.last = eqx.nn.Linear(64 * 2 * 2, 10, key=key3)

    def __call__(
        self, image: Float[Array, "1 8 8"], state: eqx.nn.State, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "10"], eqx.nn.State]:
        x, state = self.norm1(self.conv1(image), state)
        x = self.pool(jax.nn.relu(x))
        x, state = self.norm2(self.conv2(x), state)
        x = self.pool(jax.nn.relu(x))
        x = self.dropout(jnp.ravel(x), key=key)
        return self.last(x), state


# %% [markdown]
# `make_with_state` makes the network and its state. Both go to `trainer.init`, which returns the
# state of the whole training. It also takes the key of the run. From it Vernal makes another key
# for each image in each step.

# %%
trainer = vernal.Trainer(
    optax.adam(RATE),
    losses.CrossEntropy(),
    metrics={"accuracy": metrics.accuracy, "confusion": metrics.confusion_matrix},
)
model, model_state = eqx.nn.make_with_state(DigitNetwork)(jax.random.key(SEED))
start = trainer.init(model, model_state=model_state, key=jax.random.key(SEED + 1))

print(vernal.summary(start, train[0]))

# %% [markdown]
# ## The loss for ten answers
#
# The ten numbers of the network are *logits*. *Softmax* turns them into probabilities: it raises e
# to the power of each, and divides by the sum. The loss is minus the logarithm of the probability
# of the right digit. This is the *cross-entropy*. **How large is it for a network that guesses?**

# %%
logits = trainer.predict(start, train[0][:1])[0]
probabilities = np.exp(logits) / np.exp(logits).sum()
answer = train[1][0]

print("probabilities before training:", np.round(probabilities, 2))
print(f"cross-entropy of one image:  {-np.log(probabilities[answer]):.2f}")
print(f"of all, before training:     {trainer.evaluate(start, train)['loss']:.2f}")
print(f"of equal probabilities:      {np.log(10):.2f}")

# %% [markdown]
# ## Training
#
# The call is the same as before. `EarlyStopping` ends the run after 10 epochs without a better
# validation loss. `BestState` gives us the state of the best epoch. The call stands in a function,
# for the exercises train again.


# %%
def fit(start, train, validation):
    return trainer.fit(
        start,
        train,
        epochs=EPOCHS,
        batch_size=BATCH,
        validation_data=validation,
        callbacks=[callbacks.EarlyStopping(patience=PATIENCE), callbacks.BestState()],
    )


state, history = fit(start, train, validation)

print(f"{len(history.epochs['loss'])} epochs in {history.seconds:.0f} s")
print(f"best validation loss {history.epochs['val_loss'].min():.3f}")

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
plot.history(history, ax=left)
plot.history(history, ax=right, metrics=("accuracy",))
left.set_title("Cross-entropy")
right.set_title("Accuracy")
fig.savefig(PICTURES / "07_training.png")

# %% [markdown]
# Is it a surprise that the network does better on the validation part, at least at first? Dropout
# makes training harder. `evaluate`, `predict` and validation put the model in *inference mode*:
# dropout is off, and normalisation uses the running averages.
#
# We can see both. The same image gets the same answer twice, and it gets the same answer alone as
# among others.

# %%
x_test, y_test = test
logits = trainer.predict(state, x_test)
again = trainer.predict(state, x_test)
alone = trainer.predict(state, x_test[:1])

print("Twice the same:", np.array_equal(logits, again))
print("Alone as among others:", np.allclose(logits[:1], alone, atol=1e-4))

# %% [markdown]
# ## The test
#
# Now, once, the part that nobody has looked at. At full size, expect more than 98 of 100 right.

# %%
result = trainer.evaluate(state, test)
chosen = np.argmax(logits, axis=1)
mistakes = np.flatnonzero(chosen != y_test)

print(f"accuracy {result['accuracy']:.3f}: {len(mistakes)} mistakes in {len(y_test)} images")

# %% [markdown]
# A *confusion matrix* counts each kind of answer: rows are the digits, columns are the predictions.

# %%
fig, ax = plt.subplots(figsize=(6, 5.5), layout="constrained")
plot.confusion_matrix(result["confusion"], ax=ax)
ax.set_title("Test images: digit and prediction")
fig.savefig(PICTURES / "07_confusion.png")

# %% [markdown]
# A matrix only counts. So look at every mistake: the digit by its label, the prediction, and the
# probability that the network gave to its prediction. After the mistakes, in grey, come the right
# predictions that were least certain. Would you have read these better?

# %%
probabilities = np.array(jax.nn.softmax(logits, axis=1))
of_the_label = probabilities[np.arange(len(y_test)), y_test]
doubtful = np.lexsort((of_the_label, chosen == y_test))  # mistakes first, then the least certain
rows = 1 + len(mistakes) // 6

fig, axes = plt.subplots(
    rows, 6, figsize=(9, 1.9 * rows + 0.2), squeeze=False, layout="constrained"
)
for ax, i in zip(axes.flat, doubtful, strict=False):
    ax.imshow(x_test[i, 0], cmap="gray_r")
    ax.axis("off")
    ax.set_title(
        f"a {y_test[i]}, read as {chosen[i]}\n({probabilities[i, chosen[i]]:.0%})",
        fontsize=10,
        color="#D55E00" if i in mistakes else "0.5",
    )
fig.savefig(PICTURES / "07_mistakes.png")

# %% [markdown]
# ## What the filters found
#
# The first layer has 32 filters, and nobody designed them. Here are eight of their feature maps for
# one image, after the relu. Which of them mark edges, and which mark whole strokes?

# %%
example = x_test[:1]
maps = jax.nn.relu(jax.vmap(state.model.conv1)(example))[0]
strongest = np.argsort(-np.array(maps.std(axis=(1, 2))))[:8]

fig, axes = plt.subplots(3, 3, figsize=(6, 6.5), layout="constrained")
axes[0, 0].imshow(example[0, 0], cmap="gray_r")
axes[0, 0].set_title("the image")
for ax, channel in zip(axes.flat[1:], strongest, strict=True):
    ax.imshow(maps[channel], cmap="Oranges")
    ax.set_title(f"filter {channel}")
for ax in axes.flat:
    ax.axis("off")
fig.savefig(PICTURES / "07_feature_maps.png")

# %% [markdown]
# ## Exercises
#
# **Exercise 1.** Is the network good? Compare it with a rule that needs no training: find the
# training image that is nearest, and copy its label. The distance of two images is the sum of the
# squared differences of their pixels. How many mistakes does it make on the test images? The answer
# is folded below.

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
pixels_train = train[0].reshape(len(train[0]), 64)
pixels_test = x_test.reshape(len(x_test), 64)
squared_lengths = (pixels_train**2).sum(axis=1)[None]
# |a - b|² = |a|² - 2 a·b + |b|², and |a|² is the same for all neighbours of a.
nearest = np.argmin(squared_lengths - 2 * pixels_test @ pixels_train.T, axis=1)
neighbour_mistakes = int((train[1][nearest] != y_test).sum())

print(f"nearest neighbour: {neighbour_mistakes} mistakes, the network: {len(mistakes)}")

# %% [markdown]
# The rule is strong on these images, because they are small and centred. At full size, the network
# makes fewer mistakes. Always compare with something simple.
#
# **Exercise 2.** Are they read by their shape, or by their place? Shift every test image by one
# pixel to the right, and measure again, the network and the nearest neighbour. Then train the same
# network on images that are shifted at random, in each step anew. `nn.Augment(fn)` is a layer for
# that: it calls `fn(image, key)` in training, and leaves the image as it is in use. Hint:
# `jnp.pad` an image by one pixel, and cut out 8 × 8 with `jax.lax.dynamic_slice`.


# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
def shift_at_random(image, key):
    padded = jnp.pad(image, ((0, 0), (1, 1), (1, 1)))
    row, column = jax.random.randint(key, (2,), 0, 3)
    return jax.lax.dynamic_slice(padded, (0, row, column), image.shape)


class ShiftedDigitNetwork(eqx.Module):
    augment: nn.Augment
    network: DigitNetwork

    def __init__(self, key):
        self.augment = nn.Augment(shift_at_random)
        self.network = DigitNetwork(key)

    def __call__(self, image, state, key=None):
        augment_key, network_key = (None, None) if key is None else jax.random.split(key)
        return self.network(self.augment(image, key=augment_key), state, network_key)


model, model_state = eqx.nn.make_with_state(ShiftedDigitNetwork)(jax.random.key(SEED))
start = trainer.init(model, model_state=model_state, key=jax.random.key(SEED + 1))
augmented, _ = fit(start, train, validation)

x_shifted = np.pad(x_test, ((0, 0), (0, 0), (0, 0), (1, 0)))[..., :8]
pixels_shifted = x_shifted.reshape(len(x_shifted), 64)
nearest = np.argmin(squared_lengths - 2 * pixels_shifted @ pixels_train.T, axis=1)
accuracies = {
    "nearest neighbour": (1 - neighbour_mistakes / TEST, (train[1][nearest] == y_test).mean()),
    "network": (
        result["accuracy"],
        trainer.evaluate(state, (x_shifted, y_test))["accuracy"],
    ),
    "network, augmented": (
        trainer.evaluate(augmented, test)["accuracy"],
        trainer.evaluate(augmented, (x_shifted, y_test))["accuracy"],
    ),
}
print(f"{'accuracy':<20}{'as they are':>12}{'shifted':>10}")
for name, (as_they_are, shifted) in accuracies.items():
    print(f"{name:<20}{as_they_are:>12.3f}{shifted:>10.3f}")

# %% [markdown]
# At full size, the shift costs the nearest neighbour about a third of its accuracy. The network
# loses about a tenth. The network that trained on shifted images hardly notices the shift. On the
# images as they are it is no better, for they are all centred.
#
# **Exercise 3.** One split may be lucky. Repeat the training for the seeds 1 to 4, each with
# another split and other random weights. How much does the accuracy vary?

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
by_seed = {SEED: result["accuracy"]}
for seed in range(SEED + 1, SEED + 5):
    train, validation, test = split(seed)
    model, model_state = eqx.nn.make_with_state(DigitNetwork)(jax.random.key(seed))
    start = trainer.init(model, model_state=model_state, key=jax.random.key(seed + 1))
    other, _ = fit(start, train, validation)
    by_seed[seed] = trainer.evaluate(other, test)["accuracy"]

print("accuracy by seed:", *(f"{accuracy:.3f}" for accuracy in by_seed.values()))

# %% [markdown]
# At full size, all five are above 0.98. They differ by a few images. So a difference of three
# mistakes between two networks says nothing yet.
#
# One caution remains. The same 13 people wrote all 1,797 digits, and our split puts each writer in
# all three parts. Other people's digits would be harder.
#
# So far `fit` ran the loop. In the next tutorial you write it yourself.

# %%
print("Pictures are in", PICTURES)
