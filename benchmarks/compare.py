"""Vernal and its peers side by side: the same data, network, optimizer and number of updates.

`python benchmarks/compare.py [workloads] [--rivals ...]` prints a table for each workload, and one
of all speeds at the end, and writes `build/benchmarks/compare.json`. `nox -s bench` runs it with
every peer that installs.

Each rival is a process of its own. It reads its data, and trains once: the time of that first run,
with what it compiles, and the time from the start of `python` to its end are taken then, and the
memory that the process took at most. Two of them begin at once, `fit` with the loop by hand: what
they compile keeps one core busy, mostly. Then the rivals take turns, one by one, so that a machine
that slows down does so for all; in another order each turn, and after a pause, because the threads
of some spin on for a while. A turn is one run, or as many as take 0.4 s, of which the mean counts;
one that is far behind `fit` has one turn or two. Rivals whose loop is in Python train for a tenth
of the epochs, or less where that would take long: `≈` stands before what all epochs would take, and
their first fit and their loss are of the shorter run. The memory that a process happens to get
makes it some hundredths faster or slower, for as long as it lives: so `fit`, and whoever is about
as fast, take as many turns again in a second process. On a machine that is too slow for all of it
in about `--minutes`, those that stand last in the list are left out, and named.

`speed` is that of `fit` relative to a rival: the median of the ratios of turns, and the ratio of
the best times. Above 1, `fit` is faster. The last column is the loss over ten thousand examples, or
all, after the last whole run, the same arithmetic for all: nobody wins by doing less.
"""

import argparse
import importlib
import json
import math
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
BUILD = HERE.parent / "build" / "benchmarks"
PAUSE = 0.1  # seconds before each turn
TURN = 0.4  # seconds: a shorter run is made again and again, and the mean counts
# Children keep the bytecode of what they import, as Python does by default.
ENVIRONMENT = {name: value for name, value in os.environ.items() if "BYTECODE" not in name}
NEAR = 1.1  # times as fast or slow as `fit`: for whoever is farther off, one process will do
BEHIND = 1.5  # times as slow as `fit`: then one turn will do, instead of two
FAR = 4  # times what the first run of `fit` takes, in another's: a tenth of it will do in turns
MEASURED = 10_000  # examples of which the loss is told
ALWAYS = 4  # rivals that begin however late it is
COMPILED = ("vernal", "own", "scan")  # rivals whose loop over steps is compiled
# name -> the module and function here, what it is
RIVALS = {
    "vernal": ("ours.prepare", "`Trainer.fit`, `equinox.nn`"),
    "loop": ("by_hand.prepare_loop", "hand-written Equinox loop"),
    "scan": ("by_hand.prepare_scan", "best hand-written `lax.scan`"),
    "own": ("ours.prepare_own", "`Trainer.fit`, `vernal.nn`"),
    "nnx": ("flax_nnx.prepare", "Flax NNX"),
    "keras": ("keras_jax.prepare", "Keras 3 on JAX"),
    "keras-many": ("keras_jax.prepare_many", "Keras 3, `steps_per_execution`"),
    "torch": ("torch_loop.prepare", "PyTorch loop"),
    "sklearn": ("sklearn_mlp.prepare", "scikit-learn"),
    "klax": ("klax_fit.prepare", "klax"),
    "lightning": ("lightning_fit.prepare", "Lightning"),
}


def work(rival: str, name: str) -> None:
    """Be one rival: train once, then as often as each line that comes in says."""
    began = float(sys.stdin.readline())
    sys.path.insert(0, str(HERE))
    from workloads import Unfit, workload

    module, function = RIVALS[rival][0].split(".")
    try:
        prepare = getattr(importlib.import_module(f"rivals.{module}"), function)
        # A loop in Python would take minutes for what `fit` does in half a second.
        whole = workload(name)
        chosen = whole if rival in COMPILED else workload(f"{name}-")
        run, outputs = prepare(chosen)
    except ModuleNotFoundError as error:
        return tell(missing=f"{error.name} is not installed")
    except Unfit as error:
        return tell(missing=str(error))
    start = time.perf_counter()
    run()
    first, since = time.perf_counter() - start, time.time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak_mib = peak / 2**10 / (1024 if sys.platform == "darwin" else 1)
    tell(first=first, whole=since, peak=peak_mib, shortened=whole.epochs / chosen.epochs)
    for command in sys.stdin:
        if command.strip() == "shorten":
            run, _ = prepare(workload(f"{name}--"))
            run()
            tell(shortened=whole.epochs / workload(f"{name}--").epochs)
            continue
        runs = int(command)
        start = time.perf_counter()
        for _ in range(runs):
            run()
        tell(seconds=(time.perf_counter() - start) / runs)
    x, y = (part[:MEASURED] for part in chosen.data())
    tell(loss=chosen.loss(outputs(x), y))


def tell(**facts) -> None:
    """Say something to the process that compares."""
    print("\n@" + json.dumps(facts), flush=True)


class Rival:
    """A rival's process, and what it told; of its turns the seconds, `None` for one not taken."""

    def __init__(self, name: str, workload: str):
        self.name = name
        command = [sys.executable, __file__, "--be", name, workload]
        pipe, env = subprocess.PIPE, ENVIRONMENT | {"WORKLOADS_KEPT_IN": str(BUILD)}
        self._log = (BUILD / f"{workload}-{name}.log").open("w+")
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=self._log, text=True, env=env
        )
        self.took = 0.0  # seconds, by all turns
        self.facts: dict = {"seconds": []}
        print(time.time(), file=self._process.stdin, flush=True)

    def ready(self) -> None:
        """Wait until it has trained for the first time."""
        self.facts |= self._answer()

    def _answer(self) -> dict:
        assert self._process.stdout is not None
        for answer in self._process.stdout:
            if answer.startswith("@"):
                return json.loads(answer[1:])
        self._log.seek(0)
        last = (self._log.read().strip().splitlines() or ["without a word"])[-1]
        return {"missing": f"it ended: {last[:160]}"}

    @property
    def runs(self) -> bool:
        """Whether it takes part."""
        return "missing" not in self.facts

    @property
    def best(self) -> float:
        """Its best time so far, in seconds."""
        return min(taken(self.facts), default=0.0)

    def shorten(self) -> None:
        """From now on, train for a tenth of the epochs."""
        print("shorten", file=self._process.stdin, flush=True)
        self.facts |= self._answer()

    def turn(self) -> None:
        """Train again, once or as often as takes a while."""
        start = time.perf_counter()
        runs = max(1, round(TURN / (self.best or TURN)))
        print(runs, file=self._process.stdin, flush=True)
        answer = self._answer()
        if seconds := answer.pop("seconds", None):
            seconds *= self.facts.get("shortened", 1)
        self.facts["seconds"].append(seconds)
        self.facts |= answer
        self.took += time.perf_counter() - start

    def ask(self) -> None:
        """Have it tell its loss."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def hear(self) -> None:
        """Wait for the loss that was asked for."""
        if self.runs:
            self.facts |= self._answer()

    def end(self) -> None:
        """Let it go."""
        self._process.kill()
        with self._process, self._log:  # waits, and closes
            pass


def taken(facts: dict) -> list[float]:
    """The seconds of the turns that a rival took."""
    return [seconds for seconds in facts["seconds"] if seconds is not None]


def compare(workload: str, ends: dict[str, float], turns: int, patience: float) -> dict[str, dict]:
    """Have rivals take turns on a workload, and whoever is as fast as `fit` again.

    `ends` are the times, by `time.perf_counter`, after which each of them does not begin any more.
    """
    rivals = begin(workload, ends)
    fit = rivals[0]
    for rival in rivals:
        if rival.runs and rival.facts["first"] > max(patience, FAR * fit.facts.get("first", 0)):
            rival.shorten()
    take_turns(rivals, turns, patience)
    for tell in (Rival.ask, Rival.hear, Rival.end):  # all at once
        for rival in rivals:
            tell(rival)
    take_turns_again(workload, rivals, ends, turns, patience)
    late = {"missing": "no time was left for it", "seconds": [None] * len(fit.facts["seconds"])}
    return dict.fromkeys(ends, late) | {rival.name: rival.facts for rival in rivals}


def begin(workload: str, ends: dict[str, float]) -> list[Rival]:
    """Start rivals, two at once, and wait until they have trained for the first time."""
    rivals, names = [], [*ends]
    for place in range(0, len(names), 2):
        now, pair = time.perf_counter(), names[place : place + 2]
        begun = [Rival(name, workload) for name in pair if now < ends[name]]
        for rival in begun:
            rival.ready()
        rivals += begun
    return rivals


def take_turns(taking_part: list[Rival], turns: int, patience: float) -> None:
    """Have rivals take turns; one that is behind takes two of them, one that is far behind one."""
    for turn in range(turns):
        # None comes always after the same other, and none while another's threads still spin.
        for rival in random.Random(turn).sample(taking_part, len(taking_part)):
            behind = rival.best / (taking_part[0].best or 1)
            enough = turn > (behind < BEHIND) and behind > NEAR
            if rival.runs and not enough and rival.took < patience:
                time.sleep(PAUSE)
                rival.turn()
            else:
                rival.facts["seconds"].append(None)


def take_turns_again(
    workload: str, rivals: list[Rival], ends: dict[str, float], turns: int, patience: float
) -> None:
    """Have `fit`, and whoever is about as fast, take as many turns in a second process."""
    fit = rivals[0]
    # With layers of its own, it is no rival.
    others = [rival for rival in rivals if rival.runs and rival.name != "own"]
    near = [rival.name for rival in others if fit.best / NEAR < rival.best < NEAR * fit.best]
    if len(near) < 2:
        return
    again = {rival.name: rival for rival in begin(workload, {name: ends[name] for name in near})}
    take_turns([*again.values()], turns, patience)
    for rival in again.values():
        rival.end()
    for rival in rivals:
        seconds = again[rival.name].facts["seconds"] if rival.name in again else [None] * turns
        rival.facts["seconds"] += seconds


def speed(facts: dict[str, dict], rival: str, layers: str = "vernal") -> tuple[float, float] | None:
    """How many times as fast as a rival `fit` is: the median of the turns, and the best times."""
    if layers not in facts or rival not in facts:
        return None
    pairs = zip(facts[layers]["seconds"], facts[rival]["seconds"], strict=True)
    both = [(ours, theirs) for ours, theirs in pairs if ours and theirs]
    if not both:
        return None
    turns = statistics.median(theirs / ours for ours, theirs in both)
    return turns, min(taken(facts[rival])) / min(taken(facts[layers]))


def summary(results: dict[str, dict[str, dict]], layers: str) -> str:
    """How many times as fast `fit` is as each rival, for all workloads: a table in Markdown."""
    rivals = list(dict.fromkeys(name for facts in results.values() for name in facts))
    rows = [
        f"How many times as fast as each rival {RIVALS[layers][1]} is (turns):\n",
        f"| rival | {' | '.join(f'({workload})' for workload in results)} |",
        "|---" * (len(results) + 1) + "|",
    ]
    for rival in rivals:
        speeds = [speed(facts, rival, layers) for facts in results.values()]
        cells = [f"{found[0]:.2f}" if found else "–" for found in speeds]
        rows.append(f"| {RIVALS[rival][1]} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def table(workload: str, facts: dict[str, dict]) -> str:
    """A workload's figures in Markdown."""
    from workloads import workload as named

    w = named(workload)
    what = f"{w.kind} {' → '.join(map(str, w.sizes))}, {w.examples:,} examples"
    how = "full batch" if w.batch_size is None else f"batches of {w.batch_size}"
    rows = [
        f"({workload}) {what}, {how}, {w.steps:,} steps of {w.optimizer}",
        "",
        "| rival | second fit, s: median (min to max) | speed of `fit`: turns, best "
        "| first fit, s | from `python` on, s | peak memory, MiB | loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, told in facts.items():
        if "missing" in told:
            rows.append(f"| {RIVALS[name][1]} | – {told['missing']} | | | | | |")
            continue
        times, found = taken(told), speed(facts, name)
        ratios = f"{found[0]:.2f}, {found[1]:.2f}" if found else ""
        about = "≈ " if told.get("shortened", 1) > 1 else ""
        middle = f"{about}{statistics.median(times):.3g} ({min(times):.3g} to {max(times):.3g})"
        rows.append(
            f"| {RIVALS[name][1]} | {middle} | {ratios} | {told['first']:.2f} | "
            f"{told['whole']:.1f} | {told['peak']:,.0f} | {told['loss']:.4g} |"
        )
    return "\n".join(rows) + "\n"


def keep_data(name: str) -> None:
    """Have a workload's data written to files; by another process, whose memory is none of ours."""
    # What is a process's memory at most begins, on Linux, with that of the one that started it.
    code = f"from workloads import workload; workload({name!r}).keep({str(BUILD)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=HERE, check=True)


def import_once(modules: set[str]) -> None:
    """Import what rivals need, so that Python has its bytecode when they are timed."""
    commands = [[sys.executable, "-c", f"import rivals.{module}"] for module in modules]
    nowhere = subprocess.DEVNULL
    processes = [
        subprocess.Popen(command, cwd=HERE, env=ENVIRONMENT, stdout=nowhere, stderr=nowhere)
        for command in commands
    ]
    for process in processes:
        process.wait()


def main() -> None:
    """Compare, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("workloads", nargs="*", default=list("abcdefg"))
    parser.add_argument("--rivals", nargs="*", default=list(RIVALS), choices=list(RIVALS))
    parser.add_argument("--turns", type=int, default=4, help="at most; few for slow rivals")
    parser.add_argument("--patience", type=float, default=5, help="seconds for a rival's turns")
    parser.add_argument("--minutes", type=float, default=10.25, help="then peers are left out")
    parser.add_argument("--be", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.be:
        return work(*options.be)
    BUILD.mkdir(parents=True, exist_ok=True)
    import_once({RIVALS[name][0].partition(".")[0] for name in options.rivals})
    sys.path.insert(0, str(HERE))
    print(f"Python {platform.python_version()}, {platform.machine()}, {platform.system()}\n")
    results, began = {}, time.perf_counter()
    share = 60 * options.minutes / len(options.workloads)
    last = len(options.rivals) - 1
    for number, name in enumerate(options.workloads, 1):
        keep_data(name)
        # The last rival is left out when a workload's share is over, the others a little later.
        ends = {
            rival: began + share * (number + (last - place) / 4) if place >= ALWAYS else math.inf
            for place, rival in enumerate(options.rivals)
        }
        results[name] = compare(name, ends, options.turns, options.patience)
        print(table(name, results[name]), flush=True)
        (BUILD / "compare.json").write_text(json.dumps(results, indent=1))
    for layers in ("vernal", "own"):
        if layers in options.rivals:
            print(summary(results, layers))


if __name__ == "__main__":
    main()
