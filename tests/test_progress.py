"""What a run shows while it runs: in a terminal, in a log, and in a notebook."""

import io
import re
import sys
from itertools import pairwise

import jax
import numpy as np
import optax
import pytest
from helpers import Terminal

import vernal
from vernal import callbacks, losses, metrics, nn
from vernal._training import progress

X = np.linspace(-1, 1, 40, dtype=np.float32)[:, None]
LABELS = (X[:, 0] > 0.1).astype(int)
MODEL = nn.Linear(1, 2, key=jax.random.key(0))
TRAINER = vernal.Trainer(
    optax.sgd(0.1), losses.CrossEntropy(), metrics={"accuracy": metrics.accuracy}
)


def fit(data=(X, LABELS), epochs=3, **options):
    options = {"validation_data": (X, LABELS), **options}
    return TRAINER.fit(MODEL, data, epochs=epochs, **options)


def a_terminal(monkeypatch, columns=80):
    """Make standard error a terminal that sees each change."""
    terminal = Terminal()
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setitem(progress._SECONDS, "bar", 0.0)
    monkeypatch.setattr(sys, "stderr", terminal)
    return terminal


def frames(terminal):
    """What a terminal showed, one after the other."""
    return [line.rstrip() for line in re.split(r"[\r\n]+", terminal.text) if line.strip()]


def values(line):
    """The measurements in a line, by name."""
    found = re.findall(r"  ([a-z_]\w*) (\S+)(?=  |$)", line)
    return {name: float(value) for name, value in found}


def rounded(record, index=-1):
    return {name: float(f"{column[index]:.3g}") for name, column in record.items()}


@pytest.mark.parametrize("wanted", ["auto", True, "bar"])
def test_a_terminal_has_a_bar_with_what_matters_first(wanted, monkeypatch, capsys):
    terminal = a_terminal(monkeypatch)
    _, history = fit(batch_size=20, progress=wanted)
    shown = frames(terminal)
    assert max(map(len, shown)) <= 80
    assert re.match(r"epoch 3/3 \S+ 100%  loss \S+  val_loss \S+  val_accuracy \S+", shown[-1])
    expected = rounded(history.epochs)
    assert values(shown[-1]) == {name: expected[name] for name in values(shown[-1])}
    assert capsys.readouterr().out == ""


def test_a_bar_shows_the_averages_of_the_epoch_so_far(monkeypatch):
    terminal = a_terminal(monkeypatch)
    sizes = [10, 10, 20]
    ends = np.cumsum([0, *sizes])
    batches = [(X[a:b], LABELS[a:b]) for a, b in pairwise(ends)]
    _, history = fit(lambda: iter(batches * 8), epochs=1, validation_data=None)
    losses_, weights = history.steps["loss"].astype(float), np.array(sizes * 8)
    made = 0
    for line in frames(terminal):
        made = int(re.search(r"  ([\d,]+) steps", line)[1])  # pyright: ignore
        so_far = np.average(losses_[:made], weights=weights[:made])
        assert values(line)["loss"] == pytest.approx(so_far, rel=6e-3)
    assert made == 24 and len(frames(terminal)) > 1


@pytest.mark.parametrize("columns", [80, 60, 45, 38])
def test_a_narrow_terminal_keeps_what_is_monitored(columns, monkeypatch):
    terminal = a_terminal(monkeypatch, columns)
    fit(callbacks=[callbacks.EarlyStopping("val_accuracy", 9)])
    last = frames(terminal)[-1]
    assert len(last) <= columns
    assert re.search(r"100%  val_accuracy (\d|0\.\d+)(  |$)", last)
    assert ("  loss " in last) == (columns > 45)
    # Each number is whole.
    assert set(values(last)) >= set(re.findall(r"[a-z_]+(?= )", last.split("%")[1])) - {""}


@pytest.mark.parametrize("wanted", ["auto", True, "lines"])
def test_a_log_has_a_line_for_the_last_epoch(wanted, capsys):
    _, history = fit(progress=wanted)
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "\r" not in err
    assert re.match(r"epoch 3/3  loss \S+  val_loss .*  \S+ examples/s\n$", err)
    assert values(err) == rounded(history.epochs)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"callbacks": [lambda epoch: None]}, [1, 2, 3, 4, 5, 6]),
        ({"validate_every": 2}, [2, 4, 6]),
        # Four steps come first: they end in the second epoch.
        ({"validation_data": None, "batch_size": 16}, [1, 6]),
    ],
)
def test_a_log_has_a_line_an_epoch_if_they_take_long(options, expected, capsys, monkeypatch):
    monkeypatch.setitem(progress._SECONDS, "lines", 0.0)
    _, history = fit(epochs=6, **options)
    lines = capsys.readouterr().err.splitlines()
    numbers = [int(re.match(r"epoch (\d)/6  ", line)[1]) for line in lines]  # pyright: ignore
    assert numbers[-1] == 6 and numbers == sorted(set(numbers))
    assert set(numbers) >= set(expected)
    for number, line in zip(numbers, lines, strict=True):
        assert values(line) == rounded(history.epochs, number - 1)


def test_what_a_callback_measures_is_shown_beside_the_validation(capsys):
    fit(callbacks=[lambda epoch: epoch.metrics.update(val_f1=0.25)])
    assert {"loss", "val_loss", "val_f1"} <= set(values(capsys.readouterr().err))


def test_a_run_that_goes_on_counts_all_epochs(capsys):
    state, _ = fit(epochs=2)
    TRAINER.fit(state, (X, LABELS), epochs=3)
    assert "epoch 5/5  " in capsys.readouterr().err
    fit(epochs=0)
    assert capsys.readouterr().err == ""  # nothing was trained


def test_a_run_that_ends_early_says_why_and_what_was_best(monkeypatch):
    terminal = a_terminal(monkeypatch)
    stopping = callbacks.EarlyStopping("loss", 2, min_delta=10.0)
    _, history = fit(epochs=9, callbacks=[stopping])
    best = f"{history.epochs['loss'][0]:.4g}"
    last = "stopped after epoch 3: loss did not improve for 2 epochs"
    assert frames(terminal)[-1] == f"{last}; best {best} in epoch 1"
    assert frames(terminal)[-2].startswith("epoch 3/9 ")

    def enough(epoch):
        return epoch.index == 1

    fit(epochs=9, callbacks=[enough])
    assert frames(terminal)[-1] == "stopped after epoch 2: the function enough ended the run"
    before = terminal.text
    fit(epochs=9, callbacks=[enough], progress=False)
    assert terminal.text == before


def test_epochs_of_unknown_length_show_steps(monkeypatch):
    terminal = a_terminal(monkeypatch)
    fit(lambda: iter([(X, LABELS)] * 4))
    assert re.match(r"epoch 3/3  12 steps  loss \S+  val_loss", frames(terminal)[-1])


def test_a_notebook_has_a_bar(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    fit()
    assert "\repoch 3/3 " in capsys.readouterr().err


def test_nothing_is_shown_where_nobody_reads(monkeypatch, capsys):
    fit(progress=False)
    monkeypatch.setattr(sys, "stderr", None)
    fit()
    assert capsys.readouterr().out == ""

    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    state, _ = fit()
    assert int(state.epoch) == 3


@pytest.mark.parametrize("wrong", ["tqdm", 1, None])
def test_another_choice_is_refused(wrong):
    with pytest.raises(vernal.ArgumentError, match='True, False, "auto", "bar" or "lines"'):
        fit(progress=wrong)
