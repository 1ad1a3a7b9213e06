# %% [markdown]
# # 9. A small language model
#
# A language model guesses what comes next in a text. The first tutorial promised that such a model
# is trained like a straight line: with data, a model, a loss and an optimizer. Here we keep the
# promise. The model is a *transformer*, as in the large ones, but it fits on a laptop.
#
# The full run trains for about a minute on two cores. If the environment variable `VERNAL_QUICK` is
# set, a smaller model trains for a shorter time. The first line of the output then says so.

# %%
import os
import re
import textwrap
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import vernal
from vernal import losses, plot

QUICK = bool(os.environ.get("VERNAL_QUICK"))
SEED = 0
CONTEXT = 64  # characters that the model sees at once
WIDTH = 32 if QUICK else 64  # numbers for each character
HEADS = 4
BLOCKS = 2 if QUICK else 3
DROPOUT = 0.1
EPOCHS = 3 if QUICK else 12
BATCH = 8
RATE = 0.008 if QUICK else 0.004
WARM_UP = 100  # steps

PICTURES = Path("build/tutorials")
PICTURES.mkdir(parents=True, exist_ok=True)

if QUICK:
    print("Quick: 3 epochs instead of 12, width 32 instead of 64, 2 blocks instead of 3.")

# %% [markdown]
# ## A text
#
# We need a text that you have already. Python brings parts of its language reference along, for
# `help("while")` and the like. They stand in the module `pydoc_data.topics`. The text is by the
# Python developers, under the licence of Python (PSF License). It differs a little from one version
# of Python to the next, so your numbers may differ a little, too.
#
# We keep the paragraphs that are plain prose. They begin with a capital, end with a full stop or a
# colon, and have no symbols of code in between. `dict.fromkeys` drops paragraphs that occur twice.

# %%
from pydoc_data.topics import topics

PROSE = re.compile(r"[A-Z][A-Za-z0-9 ,.;:'\"()_*-]{40,}[.:]")

everything = "\n\n".join(topics.values())
one_line_each = (" ".join(paragraph.split()) for paragraph in everything.split("\n\n"))
paragraphs = [text for text in dict.fromkeys(one_line_each) if PROSE.fullmatch(text)]

print(f"{len(paragraphs)} paragraphs. One of them:")
print(textwrap.fill(paragraphs[3], 80))

# %% [markdown]
# Every tenth paragraph is held out: the model never trains on it. If a paragraph stood in both
# parts, the model could learn it by heart, and the held-out loss would be too good.

# %%
held_out_text = "\n".join(paragraphs[::10])
train_text = "\n".join(text for i, text in enumerate(paragraphs) if i % 10)

print(f"to train on: {len(train_text):,} characters, held out: {len(held_out_text):,}")

# %% [markdown]
# ## Characters to numbers
#
# A model computes with numbers. So we list all characters, and each gets its place in the list.

# %%
characters = sorted(set(train_text + held_out_text))
number_of = {character: number for number, character in enumerate(characters)}


def encode(text):
    return np.array([number_of[character] for character in text], np.int32)


def decode(numbers):
    return "".join(characters[number] for number in numbers)


print(f"{len(characters)} characters:", repr("".join(characters)))
print("Python becomes", encode("Python"), "and again", decode(encode("Python")))

# %% [markdown]
# ## Guess from one character, by counting
#
# What follows a `q`? Almost always a `u`. Count, for each character, how often each other character
# follows it. The counts divided by their sum are guesses. Such a model of pairs is called a
# *bigram* model. Every count starts at 0.1, so that no pair is impossible.

# %%
train_numbers, held_out_numbers = encode(train_text), encode(held_out_text)

counts = np.full((len(characters), len(characters)), 0.1)
np.add.at(counts, (train_numbers[:-1], train_numbers[1:]), 1)
bigram = counts / counts.sum(axis=1, keepdims=True)

for character in "qth":
    row = bigram[number_of[character]]
    likely = np.argsort(-row)[:3]
    print(f"after {character}:", *(f"{characters[i]!r} {row[i]:.2f} " for i in likely))

# %%
letters = " abcdefghijklmnopqrstuvwxyz"
places = encode(letters)
fig, ax = plt.subplots(figsize=(6.5, 5.5), layout="constrained")
shown = ax.imshow(bigram[np.ix_(places, places)], cmap="Blues", vmin=0, vmax=0.6)
ax.set_xticks(range(len(letters)), letters.replace(" ", "␣"))
ax.set_yticks(range(len(letters)), letters.replace(" ", "␣"))
ax.set(xlabel="next character", ylabel="this character", title="Which character follows which")
fig.colorbar(shown, label="probability")
fig.savefig(PICTURES / "09_bigram.png")

# %% [markdown]
# ## How good is a guess?
#
# The loss is the cross-entropy from tutorial 7: minus the logarithm of the probability that the
# model gave to the right character, on average. The unit is called *nats per character*. Its
# exponential is easier to picture: a loss of log 8 is the doubt between 8 equal choices.
#
# We measure three models on the held-out text: all characters alike, each by how often it occurs,
# and the pairs. **Which do you expect to be how far apart?**

# %%
frequencies = (counts.sum(axis=0) / counts.sum())[held_out_numbers[1:]]
pairs = bigram[held_out_numbers[:-1], held_out_numbers[1:]]
alike_loss = np.log(len(characters))
single_loss = -np.log(frequencies).mean()
bigram_loss = -np.log(pairs).mean()

print(f"{'held-out loss':<24}{'nats':>6}{'choices':>9}")
for name, loss in {"alike": alike_loss, "single": single_loss, "pairs": bigram_loss}.items():
    print(f"{name:<24}{loss:>6.2f}{np.exp(loss):>9.1f}")

# %% [markdown]
# And what does the bigram model write? We draw each next character by its probability.

# %%
rng = np.random.default_rng(SEED)
written = encode("T").tolist()
for _ in range(300):
    written.append(rng.choice(len(characters), p=bigram[written[-1]]))
bigram_sample = decode(written)

print(textwrap.fill(bigram_sample, 80))

# %% [markdown]
# The pairs are right, the words are not. One character is too little to guess from.
#
# ## Look back
#
# Read `one two one t`. What comes next? You look for an earlier `t`, and see that a `w` came after
# it. Let us compute just that. For each position we need three things:
#
# - the **query**, what the position looks for: its own character;
# - the **key**, by which others find it: the character *before* it;
# - the **value**, what it has to offer: its own character.
#
# Each character is a row of zeros with a single 1. The product of a query and a key is 1 if the two
# are the same character, and 0 if not.

# %%
short = "one two one t"
alphabet = sorted(set(short))
one_hot = np.eye(len(alphabet))[[alphabet.index(character) for character in short]]

query = one_hot
key = np.vstack([np.zeros(len(alphabet)), one_hot[:-1]])  # nothing stands before the first
value = one_hot
scores = query @ key.T  # a row for each position that looks, a column for each that is looked at

print("the last t finds:", [f"{j}: {short[j]}" for j in np.flatnonzero(scores[-1])])

# %% [markdown]
# To make weights of the scores, we multiply them by 5 and take the softmax of each row. The weights
# of a row then add up to 1. With them we average the values. The result is a guess.


# %%
def softmax(scores):
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


weights = softmax(5 * scores)
guess = (weights @ value)[-1]

print("after 'one two one t':", *(f"{c!r} {p:.2f} " for c, p in zip(alphabet, guess, strict=True)))

# %% [markdown]
# But there is a flaw. Look at the first `o`. It finds the `n` right after it: the very character
# that it has to guess. In training, the model would only learn to copy the answer. So no position
# may look at later ones. This rule is the *causal mask*: scores of later positions become minus
# infinity, and their weights zero.

# %%
may_look = np.tril(np.ones((len(short), len(short)), bool))  # itself, and all before
masked_weights = softmax(np.where(may_look, 5 * scores, -np.inf))

fig, axes = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
titles = "without the mask", "with the causal mask"
for ax, numbers, title in zip(axes, (weights, masked_weights), titles, strict=True):
    shown = ax.imshow(numbers, cmap="Blues", vmin=0, vmax=1)
    ax.set_xticks(range(len(short)), short.replace(" ", "␣"))
    ax.set_yticks(range(len(short)), short.replace(" ", "␣"))
    ax.set(title=title, xlabel="looks at", ylabel="position")
fig.colorbar(shown, ax=axes, label="weight")
fig.savefig(PICTURES / "09_attention.png")

print("the last t, with the mask:", alphabet[np.argmax(masked_weights[-1] @ value)])

# %% [markdown]
# Dark cells are large weights. A row without a match spreads its weight evenly over all that it may
# look at. The row of the last `t` still finds the `w`.
#
# This is *attention*. As a formula, for queries $Q$, keys $K$ and values $V$ with $d$ numbers each:
#
# $$\text{softmax}\left(\frac{Q K^\top}{\sqrt{d}}\right) V$$
#
# We chose the queries, keys and values by hand. A transformer learns them: each is a matrix times
# the numbers of a position. The root keeps the scores at the same size, however large $d$ is.
#
# `eqx.nn.MultiheadAttention` computes this formula, several times side by side. Each time is a
# *head*, with matrices of its own, and can look for something else. One more matrix puts the heads
# together. With one head we can check it by hand.

# %%
one_head = eqx.nn.MultiheadAttention(num_heads=1, query_size=8, key=jax.random.key(SEED))
x = rng.normal(size=(5, 8)).astype(np.float32)  # five positions, eight numbers each
mask = np.tril(np.ones((5, 5), bool))

q = x @ one_head.query_proj.weight.T
k = x @ one_head.key_proj.weight.T
v = x @ one_head.value_proj.weight.T
looked_up = softmax(np.where(mask, q @ k.T / np.sqrt(8), -np.inf)) @ v
by_hand = looked_up @ one_head.output_proj.weight.T
by_layer = one_head(x, x, x, mask=mask)

print("MultiheadAttention agrees:", np.allclose(by_hand, by_layer, atol=1e-5))

# %% [markdown]
# ## A block
#
# A *block* lets each position look back, and then think about what it found:
#
# - attention fetches from other positions;
# - a small network, the same for each position, works on the result.
#
# Each of the two *adds* its result to the numbers that are there. So a block only has to learn a
# change, and gradients pass through many blocks. Before each of the two, a `LayerNorm` brings the
# numbers of a position to mean 0 and standard deviation 1. Other than batch normalisation it needs
# no batch, and no state.
#
# The layers of Equinox take one position. `jax.vmap` applies them to each position of a text.

# %%
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray


class Block(eqx.Module):
    norm1: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    norm2: eqx.nn.LayerNorm
    mlp: eqx.nn.MLP
    dropout: eqx.nn.Dropout

    def __init__(self, key: PRNGKeyArray):
        attention_key, mlp_key = jax.random.split(key)
        self.norm1 = eqx.nn.LayerNorm(WIDTH)
        self.attention = eqx.nn.MultiheadAttention(HEADS, WIDTH, key=attention_key)
        self.norm2 = eqx.nn.LayerNorm(WIDTH)
        self.mlp = eqx.nn.MLP(
            WIDTH, WIDTH, width_size=4 * WIDTH, depth=1, activation=jax.nn.gelu, key=mlp_key
        )
        self.dropout = eqx.nn.Dropout(DROPOUT)

    def __call__(
        self,
        x: Float[Array, "length width"],
        mask: Bool[Array, "length length"],
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "length width"]:
        key1, key2 = (None, None) if key is None else jax.random.split(key)
        normal = jax.vmap(self.norm1)(x)
        x = x + self.dropout(self.attention(normal, normal, normal, mask=mask), key=key1)
        normal = jax.vmap(self.norm2)(x)
        return x + self.dropout(jax.vmap(self.mlp)(normal), key=key2)


# %% [markdown]
# ## The model
#
# An *embedding* is a table: it has a row of numbers for each character, and training changes them.
# Attention does not see the order of the positions. So a second table has a row for each position,
# and we add the two. Both begin with small numbers, so that the first changes count. Then come the
# blocks. At the end, a linear layer makes a logit for each possible next character, at each
# position.


# %%
def small_numbers(rows: int, key: PRNGKeyArray) -> Float[Array, "rows width"]:
    return 0.1 * jax.random.normal(key, (rows, WIDTH))


class LanguageModel(eqx.Module):
    characters: eqx.nn.Embedding
    positions: eqx.nn.Embedding
    blocks: list[Block]
    norm: eqx.nn.LayerNorm
    last: eqx.nn.Linear

    def __init__(self, key: PRNGKeyArray):
        keys = jax.random.split(key, 3 + BLOCKS)
        self.characters = eqx.nn.Embedding(weight=small_numbers(len(characters), keys[0]))
        self.positions = eqx.nn.Embedding(weight=small_numbers(CONTEXT, keys[1]))
        self.blocks = [Block(block_key) for block_key in keys[3:]]
        self.norm = eqx.nn.LayerNorm(WIDTH)
        self.last = eqx.nn.Linear(WIDTH, len(characters), key=keys[2])

    def __call__(
        self, numbers: Int[Array, "length"], key: PRNGKeyArray | None = None
    ) -> Float[Array, "length characters"]:
        length = len(numbers)
        x = jax.vmap(self.characters)(numbers) + jax.vmap(self.positions)(jnp.arange(length))
        mask = jnp.tril(jnp.ones((length, length), bool))
        keys = [None] * BLOCKS if key is None else jax.random.split(key, BLOCKS)
        for block, block_key in zip(self.blocks, keys, strict=True):
            x = block(x, mask, block_key)
        return jax.vmap(self.last)(jax.vmap(self.norm)(x))


model = LanguageModel(jax.random.key(SEED))
parameters = sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_array)))

print(f"{parameters:,} parameters")

# %% [markdown]
# ## Windows
#
# We cut the text into windows of 64 characters. The answers are the same text, one character later.
# So each window asks 64 questions at once: guess the second character from the first, the third
# from the first two, and so on.


# %%
def windows(numbers):
    count = (len(numbers) - 1) // CONTEXT
    x = numbers[: count * CONTEXT].reshape(count, CONTEXT)
    y = numbers[1 : count * CONTEXT + 1].reshape(count, CONTEXT)
    return x, y


train, held_out = windows(train_numbers), windows(held_out_numbers)

print("x", train[0].shape, "y", train[1].shape)
print("x:", repr(decode(train[0][0])))
print("y:", repr(decode(train[1][0])))

# %% [markdown]
# A batch is 8 windows, so a step learns from 8 · 64 = 512 guesses. `CrossEntropy` averages over
# all of them: the logits of a window have shape `(64, characters)`, the answers `(64,)`.
#
# ## The optimizer
#
# Transformers are usually trained with a few additions, and Optax has them all:
#
# - *AdamW* is Adam that also shrinks all weights a little in each step.
# - The learning rate follows a *schedule*. It rises slowly at first, while the gradients are wild,
#   and falls to zero at the end, for the fine work. `vernal.steps` counts the steps of the run.
# - *Clipping* shortens a gradient that is longer than 1, so that one odd batch does no harm.

# %%
steps = vernal.steps(train, BATCH, EPOCHS)
schedule = optax.warmup_cosine_decay_schedule(0.0, RATE, WARM_UP, steps)
optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.1))

fig, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
ax.plot(jax.vmap(schedule)(jnp.arange(steps)), color="#0072B2")
ax.set(xlabel="step", ylabel="learning rate", title="Warm-up, then half a cosine")
fig.savefig(PICTURES / "09_schedule.png")

# %% [markdown]
# ## Training
#
# The rest you know. **What loss do you expect before the first step?**

# %%
trainer = vernal.Trainer(optimizer, losses.CrossEntropy())
loss_before = trainer.evaluate(model, held_out)["loss"]

print(f"before training {loss_before:.2f}, all alike {alike_loss:.2f}")

# %%
state, history = trainer.fit(
    model, train, epochs=EPOCHS, batch_size=BATCH, validation_data=held_out
)
loss_after = history.epochs["val_loss"][-1]

print(f"{steps:,} steps in {history.seconds:.0f} s")
print(f"{'held-out loss':<24}{'nats':>6}{'choices':>9}")
for name, loss in {"pairs": bigram_loss, "transformer": loss_after}.items():
    print(f"{name:<24}{loss:>6.2f}{np.exp(loss):>9.1f}")

# %%
fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
plot.history(history, ax=ax)
ax.axhline(bigram_loss, color="0.5", linestyle="--")
ax.text(EPOCHS, bigram_loss, "pairs", color="0.4", ha="right", va="bottom")
ax.set(yscale="linear", ylabel="nats per character", title="val_loss: on held-out text")
fig.savefig(PICTURES / "09_training.png")

# %% [markdown]
# The model is better than the pairs, on text that it has never seen. Does it really look back? We
# take the loss at each position of the window apart. At the first position the model sees one
# character, as the pairs do. At the last it sees 64. **What curve do you expect?**

# %%
logits = np.array(trainer.predict(state, held_out[0], batch_size=64))
token_losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, held_out[1])
by_position = np.array(token_losses).mean(axis=0)

fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
ax.plot(np.arange(1, CONTEXT + 1), by_position, "o-", markersize=3, color="#0072B2")
ax.axhline(bigram_loss, color="0.5", linestyle="--")
ax.text(CONTEXT, bigram_loss, "pairs", color="0.4", ha="right", va="bottom")
ax.set(xlabel="characters that the model sees", ylabel="nats per character")
ax.set_title("The first few characters help most")
fig.savefig(PICTURES / "09_positions.png")

print(f"with 1 character {by_position[0]:.2f}, with 33 to 64 {by_position[32:].mean():.2f}")

# %% [markdown]
# With one character the model is worse than the pairs: only one question in 64 is of that kind, so
# it had little practice. At full size, five characters more make a large difference. After about
# ten the curve is flat: a model as small as this makes little of what lies further back.

# %% [markdown]
# ## Writing
#
# To write, the model guesses the next character, we draw one, append it, and ask again. The
# *temperature* divides the logits before the softmax. Below 1 it makes likely characters likelier.
# Near 0 only the likeliest is left.
#
# `filter_jit` compiles anew for each shape of an array, and for each value of a plain number. So
# the window always has 64 numbers, and length and temperature are arrays. Where the text is
# shorter, zeros fill the end. The causal mask hides them. Dropout must be off, so we put the model
# in inference mode, as `evaluate` and `predict` do by themselves.


# %%
@eqx.filter_jit
def draw_next(model, window, length, temperature, key):
    logits = model(window)[length - 1]
    return jax.random.categorical(key, logits / temperature)


def write(model, start, count, temperature=0.7, seed=SEED):
    model = eqx.nn.inference_mode(model)
    written = encode(start).tolist()
    for key in jax.random.split(jax.random.key(seed), count):
        seen = written[-CONTEXT:]
        window = jnp.array(seen + [0] * (CONTEXT - len(seen)), jnp.int32)
        length = jnp.array(len(seen))
        written.append(int(draw_next(model, window, length, jnp.array(temperature), key)))
    return decode(written)


sample_before = write(model, "The ", 300)
sample_after = write(state.model, "The ", 300)

print("BEFORE TRAINING", textwrap.fill(sample_before, 80), sep="\n")
print("THE PAIRS", textwrap.fill(bigram_sample, 80), sep="\n")
print("AFTER TRAINING", textwrap.fill(sample_after, 80), sep="\n")

# %% [markdown]
# How many of the words are real? We take the words of three letters or more, and count those that
# occur in the training text.

# %%
real_words = set(re.findall(r"[a-z]{3,}", train_text.lower()))


def share_of_real_words(text):
    words = re.findall(r"[a-z]{3,}", text.lower())
    return sum(word in real_words for word in words) / len(words)


shares = {
    "before training": share_of_real_words(sample_before),
    "pairs": share_of_real_words(bigram_sample),
    "after training": share_of_real_words(sample_after),
}
for name, share in shares.items():
    print(f"{name:<16}{share:.0%} real words")

# %% [markdown]
# At full size, most words are real, and they stand in an order that sounds like a manual. The
# sentences mean nothing. The model has learned how the text looks, from about a hundred thousand
# characters.
#
# ## Exercises
#
# **Exercise 1.** Write with the temperatures 0.2, 0.7 and 1.5. What changes? Measure the share of
# real words. The answer is folded below.

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
by_temperature = {}
for temperature in (0.2, 0.7, 1.5):
    text = write(state.model, "The ", 300, temperature)
    by_temperature[temperature] = share_of_real_words(text)
    print(f"temperature {temperature}, {by_temperature[temperature]:.0%} real words:")
    print(textwrap.fill(text, 80))

# %% [markdown]
# A low temperature repeats the most common phrases. A high one spells badly.
#
# **Exercise 2.** Test the causal mask. Take a window, change its character number 40, and compare
# the logits of all 64 positions before and after. Which may change?

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
window = held_out[0][:1]
changed = window.copy()
changed[0, 39] = number_of["z"] if window[0, 39] != number_of["z"] else number_of["q"]
differences = np.abs(trainer.predict(state, window) - trainer.predict(state, changed))
positions = 1 + np.flatnonzero(differences[0].max(axis=1) > 1e-4)

print(f"positions that change: {positions.min()} to {positions.max()}")

# %% [markdown]
# **Exercise 3.** How far does counting get, with more characters than one? Count what follows the
# last `n` characters, for `n` from 0 to 7. Most long contexts are rare, so mix in the guess from
# one character less, as if it had been seen 5 times: `(count + 5 * shorter) / (total + 5)`. Compare
# the held-out loss with that of the transformer.

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
from collections import Counter

longest = 7
counted_losses = []
guesses = np.full(len(held_out_text) - longest, 1 / len(characters))  # all alike, to begin with
for n in range(longest + 1):
    endings = range(longest, len(train_text))
    followed = Counter(train_text[i - n : i + 1] for i in endings)
    totals = Counter(train_text[i - n : i] for i in endings)
    for place, i in enumerate(range(longest, len(held_out_text))):
        context, character = held_out_text[i - n : i], held_out_text[i]
        count, total = followed[context + character], totals[context]
        guesses[place] = (count + 5 * guesses[place]) / (total + 5)
    counted_losses.append(-np.log(guesses).mean())

fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
ax.plot(counted_losses, "o-", color="#D55E00", label="counting")
ax.axhline(loss_after, color="#0072B2", linestyle="--", label="transformer")
ax.set(xlabel="characters to guess from", ylabel="held-out loss, nats per character")
ax.legend()
fig.savefig(PICTURES / "09_counting.png")

print("counting, 0 to 7 characters:", *(f"{loss:.2f}" for loss in counted_losses))
print(f"transformer: {loss_after:.2f}")

# %% [markdown]
# Counting is a strong opponent on a text as small and repetitive as this. At full size, our
# transformer beats it up to three characters. From four on, counting wins. But more than about five
# characters no longer help, for long pieces of text hardly occur twice. Counting knows nothing else
# to do with them. Transformers took over where text and models are many thousands of times larger.
#
# ## The same four parts
#
# | | tutorial 1 | here |
# |---|---|---|
# | data | `x` and `y`, 200 examples | windows of text, and the same one character later |
# | model | `nn.Linear(2, 1)`, 3 parameters | embeddings and blocks |
# | loss | mean squared error | cross-entropy |
# | optimizer | SGD, then Adam | AdamW with a schedule |
#
# The `Trainer` is the same, and so is the call of `fit`. Large language models are larger in each
# part: more text, pieces of words instead of characters, many more blocks, many devices. To guess
# the next piece of text, and to turn the knobs so that the loss falls, is still how their training
# begins.

# %%
print("Pictures are in", PICTURES)
