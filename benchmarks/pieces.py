"""What each piece of the loop is worth: `fit` as it is, against `fit` with the piece undone.

`python benchmarks/pieces.py` prints a table. The two take turns in one process; `times as fast` is
the median of the ratios of turns, and the ratio of the best times. Above 1, the piece pays. The
last rows are what is paid for: not for speed, but for what a run promises.
"""

import argparse
import contextlib
import statistics
import time
from dataclasses import replace
from unittest.mock import patch

import jax
from rivals.equinox_models import model, optimizer
from rivals.ours import Terminal, loss_of
from workloads import workload

import vernal
from vernal._data import array_source as _data
from vernal._training import checks as _checks
from vernal._training import compiled as _compiled
from vernal._training import jit as _jit
from vernal._training import pace as _pace
from vernal._training import update as _update

program = _compiled.program_run.jitted.__wrapped__
as_by_default = jax.jit(program, static_argnums=0, donate_argnums=1)
library = {name: how for name, how in _jit.cpu_options().items() if "ynn" not in name}
by_library = jax.jit(program, static_argnums=0, donate_argnums=1, compiler_options=library)
copying = _jit.jit_updates(lambda *args: program(*args), static_argnums=0, donate_argnums=1)
preflight, stacks = _checks.preflight, _data.ArraySource.stacks


def looped(*args, **kwargs):
    """The preflight, for which no model has convolutions."""
    return preflight(*args, **kwargs)._replace(convolves=False)


def with_copies(*args):
    """The loop, in which each turn begins with a copy of the parameters."""
    with patch.object(_update, "_LARGE", 2**62):
        return copying(*args)


def filled(source, *place):
    """Stacks that are filled from the first one on."""
    with patch.object(source, "_endless", False):
        yield from stacks(source, *place)


# what is undone -> on which workload, and how
PIECES = {
    "many updates a call, not one": (
        "c",
        patch.object(_compiled.Compiled, "_capacity", lambda *_: 1),
    ),
    "chunks of 0.25 s, not of 1 ms": ("c", patch.multiple(_pace, SECONDS=1e-3, GROWTH=1)),
    "four updates a turn of the loop": ("a", patch.object(_pace, "unroll", lambda *_: 1)),
    "two updates a turn of the loop": ("c", patch.object(_pace, "unroll", lambda *_: 1)),
    "large parameters changed in place": (
        "d",
        patch.object(_compiled, "program_run", with_copies),
    ),
    "first stacks filled in part": ("e", patch.object(_data.ArraySource, "stacks", filled)),
    "gathered by NumPy, not by XLA": (
        "e",
        patch.object(_data, "gathers_on_host", lambda arrays: False),
    ),
    "stacks left as NumPy's arrays": ("c-", patch.object(_data, "put", jax.device_put)),
    "convolutions outside of loops": ("f", patch.object(_checks, "preflight", looped)),
    "two convolutional updates a call": ("f", patch.object(_pace, "unroll", lambda *_: 1)),
    "convolutions by XLA, not by a library": (
        "f",
        patch.object(_compiled, "program_run", by_library),
    ),
    "the same bits as single updates (a)": (
        "a",
        patch.object(_compiled, "program_run", as_by_default),
    ),
    "the same bits as single updates (c)": (
        "c",
        patch.object(_compiled, "program_run", as_by_default),
    ),
    "numbers that stop being finite": ("c", {"on_nonfinite": "ignore"}),
    "the progress bar": ("c", {"progress": False}),
}


def measure(name: str, undone, turns: int) -> tuple[float, float]:
    """How many times as fast a workload is than with something undone."""
    w = workload(name)
    made, data = model(w, jax.random.key(0)), w.data()
    trainer = vernal.Trainer(optimizer(w), loss_of(w))
    options = {"epochs": w.epochs, "batch_size": w.batch_size}
    others, other_options, how = trainer, options, contextlib.nullcontext()
    if not isinstance(undone, dict):
        how = undone
    elif "progress" in undone:
        other_options = options | undone
    else:
        others = replace(trainer, **undone)
    seconds = [], []
    for turn in range(-1, turns):
        for side, (fitted, with_, context) in enumerate(
            ((trainer, options, contextlib.nullcontext()), (others, other_options, how))
        ):
            start = time.perf_counter()
            with context, contextlib.redirect_stderr(Terminal()):
                state, _ = fitted.fit(made, data, **with_)
                jax.block_until_ready(jax.tree.leaves(state.opt_state))
            if turn >= 0:
                seconds[side].append(time.perf_counter() - start)
    ratios = [b / a for a, b in zip(*seconds, strict=True)]
    return statistics.median(ratios), min(seconds[1]) / min(seconds[0])


def main() -> None:
    """Measure all of them, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--only", nargs="*", default=list(PIECES), choices=list(PIECES))
    options = parser.parse_args()
    print("| piece | workload | times as fast: turns, best |\n|---|---|---|")
    for piece in options.only:
        name, undone = PIECES[piece]
        told = measure(name, undone, options.turns)
        print(f"| {piece} | ({name}) | {told[0]:.2f}, {told[1]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
