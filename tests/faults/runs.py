"""The runs that the tests interrupt: `python runs.py NAME DIRECTORY` prints a hash of what it made.

`--kill-at N` ends the process, by SIGKILL, at the N-th thing that it makes, opens, renames or
removes in the directory.
"""

import argparse
import errno
import hashlib
import os
import resource
import signal
import sys
import time
from functools import cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import vernal
from vernal import callbacks, losses, nn

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 6)).astype(np.float32)
Y = (np.sin(X[:, :1]) + 0.1 * RNG.normal(size=(60, 1))).astype(np.float32)
HELD_OUT = X[:20] + 1, Y[:20] + 1


class Dropped(eqx.Module):
    """With dropout."""

    first: nn.Linear
    dropout: eqx.nn.Dropout
    last: nn.Linear

    def __init__(self):
        self.first, self.last = nn.Linear(6, 8, key=key(1)), nn.Linear(8, 1, key=key(2))
        self.dropout = eqx.nn.Dropout(0.3)

    def __call__(self, x, *, key=None):
        return self.last(self.dropout(jax.nn.relu(self.first(x)), key=key))


def shaken(x, key):
    """An example with a little noise."""
    return x + 0.1 * jax.random.normal(key, x.shape)


class Augmented(eqx.Module):
    """With noise in training alone."""

    augment: nn.Augment
    layers: nn.MLP

    def __init__(self):
        self.augment = nn.Augment(shaken)
        self.layers = nn.MLP(6, 1, 8, 1, key=key(3))

    def __call__(self, x, *, key=None):
        return self.layers(self.augment(x, key=key))


class Normed(eqx.Module):
    """With batch norm."""

    first: nn.Linear
    norm: eqx.nn.BatchNorm
    last: nn.Linear

    def __init__(self):
        self.first, self.last = nn.Linear(6, 8, key=key(1)), nn.Linear(8, 1, key=key(2))
        self.norm = eqx.nn.BatchNorm(8, axis_name="batch", mode="batch")

    def __call__(self, x, state):
        x, state = self.norm(self.first(x), state)
        return self.last(jax.nn.relu(x)), state


class Everything(eqx.Module):
    """With noise in training, batch norm and dropout."""

    augment: nn.Augment
    first: nn.Linear
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    last: nn.Linear

    def __init__(self):
        self.augment = nn.Augment(shaken)
        self.first, self.last = nn.Linear(6, 8, key=key(1)), nn.Linear(8, 3, key=key(2))
        self.norm = eqx.nn.BatchNorm(8, axis_name="batch", mode="batch")
        self.dropout = eqx.nn.Dropout(0.3)

    def __call__(self, x, state, *, key=None):
        noise, dropped = (None, None) if key is None else jax.random.split(key)
        x, state = self.norm(self.first(self.augment(x, key=noise)), state)
        return self.last(self.dropout(jax.nn.relu(x), key=dropped)), state


class Loader:
    """Batches in an order that its own state fixes, as loaders for large data have it."""

    def __init__(self, size):
        self.size, self.generator = size, np.random.default_rng(3)

    def __iter__(self):
        order = self.generator.permutation(len(X))
        for start in range(0, len(X), self.size):
            rows = order[start : start + self.size]
            yield X[rows], Y[rows]

    def state_dict(self):
        return {"generator": self.generator.bit_generator.state}

    def load_state_dict(self, kept):
        self.generator.bit_generator.state = kept["generator"]


def batches():
    """Batches from a function that has no state."""
    for start in range(0, 60, 16):
        yield X[start : start + 16], Y[start : start + 16]


def key(seed):
    """A new key: JAX's checker of keys sees one that is used twice."""
    return jax.random.key(seed)


@cache
def trainer(rate=1e-2):
    """A trainer, with a metric: the same one for a rate, so that it compiles once."""
    optimizer, averaged = optax.adam(1e-2 if isinstance(rate, str) else rate), None
    if rate in ("scheduled", "scheduled and averaged"):
        schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 10, 60)
        optimizer = optax.inject_hyperparams(optax.adam)(learning_rate=schedule)
    if rate in ("averaged", "scheduled and averaged"):
        optimizer = vernal.average_weights(optimizer, decay=0.9)
        averaged = vernal.averaged
    loss, r2 = losses.MeanSquaredError(), vernal.metrics.R2()
    return vernal.Trainer(optimizer, loss, metrics={"r2": r2}, eval_params=averaged)


def run_of(name: str) -> tuple[vernal.Trainer, Any, dict[str, Any]]:
    """A trainer, what it begins with, and what `fit` is given."""
    model, data = nn.MLP(6, 1, 8, 1, key=key(3)), (X, Y)
    arrays = {"data": data, "batch_size": 20, "epochs": 12}
    ragged = arrays | {"batch_size": 16}
    watched = {"validation_data": HELD_OUT}
    best = callbacks.BestState()
    stopping = callbacks.EarlyStopping(patience=3)
    tr = trainer()
    match name:
        case "plain":
            return tr, model, arrays
        case "full batch":
            return tr, model, {"data": data, "epochs": 40}
        case "in order":
            return tr, model, arrays | {"shuffle": False}
        case "ragged":
            return tr, model, ragged
        case "dropout":
            return tr, tr.init(Dropped(), key=key(5)), ragged
        case "batch norm":
            normed, model_state = eqx.nn.make_with_state(Normed)()
            return tr, tr.init(normed, model_state=model_state, key=key(5)), arrays
        case "schedule":
            return trainer("scheduled"), model, ragged
        case "early stopping":
            early = arrays | watched | {"epochs": 60, "callbacks": [best, stopping]}
            return trainer(5e-2), model, early
        case "validated":
            return tr, model, ragged | watched | {"validate_every": 2}
        case "streaming":
            return tr, model, {"data": batches, "epochs": 12}
        case "stateful loader":
            return tr, model, {"data": Loader(16), "epochs": 12}
        case "validated by a loader":
            return tr, model, ragged | {"validation_data": Loader(25), "validate_every": 2}
        case "averaged weights":
            return trainer("averaged"), model, ragged | watched | {"callbacks": [best]}
        case "steps per epoch":
            return tr, model, ragged | watched | {"steps_per_epoch": 7}
        case "augmented":
            return tr, Augmented(), ragged | watched
        case "weights of terms":
            several = nn.MLP(6, 3, 8, 1, key=key(3))
            weighted = X, np.repeat(Y, 3, axis=1), np.abs(X[:, :3])
            return tr, several, ragged | {"data": weighted}
        case "all at once":
            tr = trainer("scheduled and averaged")
            made, model_state = eqx.nn.make_with_state(Everything)()
            start = tr.init(made, model_state=model_state, key=key(5))
            weighted = X, np.repeat(Y, 3, axis=1), np.abs(X[:, :3])
            held_out = HELD_OUT[0], np.repeat(HELD_OUT[1], 3, axis=1)
            often = {"validation_data": held_out, "validate_every": 2}
            return tr, start, ragged | often | {"data": weighted, "callbacks": [best, stopping]}
    raise ValueError(name)


RUNS = (
    *("plain", "full batch", "in order", "ragged", "dropout", "batch norm", "schedule"),
    *("early stopping", "validated", "streaming", "stateful loader", "validated by a loader"),
    *("averaged weights", "steps per epoch", "augmented", "weights of terms", "all at once"),
)


def hash_of(state, history):
    """One hash of a state's arrays, its key and all that was recorded."""
    made = hashlib.sha256()
    for leaf in jax.tree.leaves(eqx.filter(state, eqx.is_array)):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        made.update(f"{leaf.shape} {leaf.dtype}".encode() + np.asarray(leaf).tobytes())
    for record in (history.steps, history.epochs):
        for column, values in record.items():
            made.update(column.encode() + values.tobytes())
    return made.hexdigest()


def flipped(path, bit):
    """Flip one bit of a file."""
    with open(path, "r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def made_by(name: str, directory=None, *, every_steps: int | None = None, seconds: float = 0.0):
    """Make a run, or what is left of it, in this process. Returns the hash of all that it made.

    Args:
        name: One of `RUNS`.
        directory: Where its checkpoints are; `None` for a run without.
        every_steps: As of `vernal.Checkpoints`.
        seconds: That each epoch takes longer.
    """
    tr, start, how = run_of(name)
    if seconds:
        how["callbacks"] = [*how.get("callbacks", []), Slowly(seconds)]
    if directory is not None:
        how["checkpoints"] = vernal.Checkpoints(directory, every_seconds=0, every_steps=every_steps)
    return hash_of(*tr.fit(start, **how))


class Slowly:
    """Takes some time after each epoch, for a process to be ended in."""

    def __init__(self, seconds):
        self.seconds = seconds

    def __call__(self, epoch):
        time.sleep(self.seconds)


def at_event(directory, number, act):
    """Do something at the N-th event in a directory; it is given the event's name."""
    seen = 0
    events = ("os.mkdir", "open", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")

    def hook(event, args):
        nonlocal seen
        path = args[0] if event in events else None
        if isinstance(path, str | os.PathLike) and str(directory) in os.fspath(path):
            seen += 1
            if seen == number:
                act(event)

    sys.addaudithook(hook)


def fail(event):
    """As on a full disk."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def kill(event):
    """As when the machine goes down."""
    print(f"at {event}", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def main():
    """Run, and print the hash."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=RUNS)
    parser.add_argument("directory")
    parser.add_argument("--seconds", type=float, default=0.0, help="that each epoch takes longer")
    parser.add_argument("--every-steps", type=int)
    parser.add_argument("--kill-at", type=int)
    parser.add_argument("--limit", type=int, help="bytes that a file may have at most")
    options = parser.parse_args()
    if options.kill_at:
        at_event(options.directory, options.kill_at, kill)
    if options.limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (options.limit, options.limit))
    print("begins now", flush=True)
    how = {"every_steps": options.every_steps, "seconds": options.seconds}
    print("hash", made_by(options.name, options.directory, **how), flush=True)


if __name__ == "__main__":
    main()
