"""Callbacks do at the end of an epoch what they say, and no more."""

import copy
import csv
import dataclasses
import math
import os
import re
import signal
import struct
import sys
from pathlib import Path
from unittest.mock import Mock

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from helpers import assert_same_bits
from tensorboardX import RecordWriter
from tensorboardX.proto import event_pb2

import vernal
from vernal import callbacks, losses, metrics, nn
from vernal._training.chunks import TrainingRun

NAN = math.nan
MODEL = nn.Linear(1, 1, key=jax.random.key(0))
TRAINER = vernal.Trainer(optax.sgd(0.1), losses.MeanSquaredError())
X = np.linspace(-1, 1, 8, dtype=np.float32)[:, None]
DATA = X, 3 * X + 1
STATE = TRAINER.init(MODEL)


def epoch(index, **metrics):
    return vernal.Epoch(index, STATE, metrics, seconds=0.5)


def epochs(values, name="val_loss"):
    """Epochs that measure one thing; `None` where it is not measured."""
    return [epoch(i, **({} if v is None else {name: v})) for i, v in enumerate(values)]


def stops(callback, values, name="val_loss"):
    """The index of the epoch that ends the run."""
    for one in epochs(values, name):
        if callback(one) is True:
            return one.index
    return None


# --- EarlyStopping ---


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        ([3, 2, 1, 1, 1], {"patience": 2}, 4),  # as good as the best is not better
        ([3, 2, 1, 2, 0.5, 2, 2], {"patience": 2}, 6),  # in a row
        ([3, 2, 1, 2, 1.5, 1.2], {"patience": 3}, 5),  # the best, and not the one before
        ([3, 2, 1, 0], {"patience": 1}, None),
        ([1, 1], {"patience": 1}, 1),
        ([1, 2, 2, 2, 2, 2], {}, 5),  # patience is five
        ([4.0, 3.5, 3.0, 2.5], {"patience": 2, "min_delta": 0.5}, None),  # 1.0 better after two
        ([4.0, 3.75, 3.5, 3.25], {"patience": 2, "min_delta": 0.5}, 2),
        ([4.0, 3.5], {"patience": 1, "min_delta": 0.5}, 1),  # by more than min_delta
        ([1, None, None, 2, None, 2], {"patience": 2}, 5),  # not measured does not count
        ([None] * 9, {"patience": 1}, None),
        ([1, NAN, NAN], {"patience": 2}, 2),
        ([NAN, NAN], {"patience": 2}, 1),
        ([NAN, 1, 0.5, 0.2], {"patience": 2}, None),
        ([math.inf, 5, math.inf, math.inf], {"patience": 2}, 3),
        ([1, 2, 3, 3, 2], {"patience": 2, "mode": "max"}, 4),
        ([1, NAN, 2, NAN, NAN], {"patience": 2, "mode": "max"}, 4),
        ([1.0, 1.5, 1.75], {"patience": 1, "min_delta": 0.5, "mode": "max"}, 1),
    ],
)
def test_early_stopping_stops_after_so_many_epochs_without_an_improvement(
    values, options, expected
):
    stopping = callbacks.EarlyStopping(**options)
    assert stops(stopping, values) == stopping.stopped_epoch == expected


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("val_loss", "min"),
        ("loss", "min"),
        ("mae", "min"),
        ("accuracy", "max"),
        ("val_accuracy", "max"),
        ("val_accuracy_of_birds", "max"),
        ("top_5", "max"),
        ("val_top_5_accuracy", "max"),
        ("r2", "max"),
        ("val_r2", "max"),
        ("stop_loss", "min"),
        ("accuracy_loss", "min"),
        ("error_rate", "min"),
        ("val_cross_entropy", "min"),
        ("val_perplexity", "min"),
        ("WER", "min"),
        ("val_acc", "max"),
        ("val_AUC", "max"),
        ("macro f1", "max"),
        ("f1_score", "max"),
        ("val_top5", "max"),
        ("mIoU", "max"),
        ("hits@10", "max"),
        ("ndcg@10", "max"),
        ("recall_of_class_3", "max"),
        ("log_likelihood", "max"),
        ("val_score", "max"),
    ],
)
def test_auto_goes_by_the_name(name, mode):
    falling, rising = [3, 2, 1], [1, 2, 3]
    better, worse = (falling, rising) if mode == "min" else (rising, falling)
    assert stops(callbacks.EarlyStopping(name, 1), better, name) is None
    assert stops(callbacks.EarlyStopping(name, 1), worse, name) == 1
    other = "min" if mode == "max" else "max"
    assert stops(callbacks.EarlyStopping(name, 1, mode=other), better, name) == 1
    best = callbacks.BestState(name)
    for one in epochs(better, name):
        best(one)
    assert (best.best, best.epoch, best.mode) == (better[-1], 2, mode)


UNCLEAR = ["inaccuracy", "learning_rate", "loss_scale", "val_accuracy_std", "brilliance_score"]


@pytest.mark.parametrize("name", [*UNCLEAR, "negative_log_likelihood"])
@pytest.mark.parametrize("make", [callbacks.EarlyStopping, callbacks.BestState])
def test_auto_asks_where_a_name_does_not_tell(make, name):
    assert make(name).mode == "auto"
    with pytest.raises(vernal.ArgumentError) as caught:
        make(name)(epoch(0, **{name: 1.0}))
    assert f'{make.__name__}({name!r}, mode="max")' in str(caught.value)
    chosen = make(name, mode="min")
    chosen(epoch(0, **{name: 1.0}))
    assert chosen.mode == "min" and chosen.best == 1.0


def test_early_stopping_tells_how_it_stands_and_forgets_at_the_start():
    stopping = callbacks.EarlyStopping("loss", 3)
    assert (stopping.best, stopping.waited, stopping.stopped_epoch) == (None, 0, None)
    for value, best, waited in [(2.0, 2.0, 0), (3.0, 2.0, 1), (2.5, 2.0, 2), (1.0, 1.0, 0)]:
        assert stopping(epoch(0, loss=value)) is False
        assert (stopping.best, stopping.waited) == (best, waited)
    assert [stopping(epoch(i, loss=1.0)) for i in (7, 8, 9)] == [False, False, True]
    assert stopping.stopped_epoch == 9
    stopping.start()
    assert (stopping.best, stopping.waited, stopping.stopped_epoch) == (None, 0, None)
    assert stopping(epoch(10, loss=50.0)) is False and stopping.best == 50.0


# --- BestState ---


def test_best_state_keeps_the_first_of_the_best():
    states = [TRAINER.init(MODEL) for _ in range(6)]
    best = callbacks.BestState()
    values = [None, NAN, 3.0, 1.0, 1.0, 2.0]
    for index, (state, value) in enumerate(zip(states, values, strict=True)):
        metrics = {} if value is None else {"val_loss": value}
        assert best(vernal.Epoch(10 + index, state, metrics, 0.1)) is None
    assert (best.best, best.epoch) == (1.0, 13)
    assert best.state is best.finish(STATE) is states[3]
    best.start()
    assert (best.best, best.epoch, best.state) == (None, None, None)


@pytest.mark.parametrize("values", [[], [None], [NAN, NAN]])
def test_without_a_best_state_it_is_the_given_one(values):
    best = callbacks.BestState()
    for one in epochs(values):
        best(one)
    assert best.finish(STATE) is STATE and best.state is None


# --- The state of an epoch ---


@pytest.fixture
def copies(monkeypatch):
    """After which steps a run copied its state for a callback."""
    made = []
    state = TrainingRun.state

    def counted(run):
        made.append(run.step)
        return state(run)

    monkeypatch.setattr(TrainingRun, "state", counted)
    return made


def test_a_state_is_copied_only_where_a_callback_asks_for_it(copies):
    stopping = callbacks.EarlyStopping("loss", patience=50)
    seen = []

    def every_other(epoch):
        if epoch.index % 2:
            seen.append(epoch.state)

    TRAINER.fit(MODEL, DATA, epochs=6, progress=False, callbacks=[stopping, every_other])
    assert copies == [int(state.step) for state in seen] == [2, 4, 6]


def test_an_epoch_that_is_kept_has_its_own_state_later():
    kept = []
    TRAINER.fit(MODEL, DATA, epochs=4, progress=False, callbacks=[kept.append])
    assert [int(epoch.state.step) for epoch in kept] == [1, 2, 3, 4]
    for epoch, expected in zip(kept, TRAINER.epochs(MODEL, DATA), strict=False):
        assert_same_bits(epoch.state.model, expected.state.model)
    assert dataclasses.replace(kept[0], index=7).state is kept[0].state
    copies = []
    TRAINER.fit(
        MODEL, DATA, epochs=4, progress=False, callbacks=[lambda e: copies.append(copy.copy(e))]
    )
    assert_same_bits([e.state.model for e in copies], [e.state.model for e in kept])
    with pytest.raises(AttributeError, match="no attribute 'stat'"):
        kept[0].stat  # noqa: B018


def test_the_best_state_is_let_go_before_the_next_is_copied(monkeypatch):
    best = callbacks.BestState("loss")
    state = TrainingRun.state
    held = []

    def watched(run):
        held.append(best.state)
        return state(run)

    monkeypatch.setattr(TrainingRun, "state", watched)
    TRAINER.fit(MODEL, DATA, epochs=4, progress=False, callbacks=[best])
    assert held == [None] * 4 and best.state is not None


def test_a_best_state_that_could_not_be_copied_is_not_the_best():
    def no_memory():
        raise MemoryError

    best = callbacks.BestState()
    best(epoch(0, val_loss=2.0))
    late = vernal.Epoch.with_state_on_demand(
        no_memory, index=1, metrics={"val_loss": 1.0}, seconds=0.1
    )
    with pytest.raises(MemoryError):
        best(late)
    assert (best.best, best.state) == (None, None)
    best(epoch(2, val_loss=3.0))
    assert (best.best, best.state) == (3.0, STATE)


# --- The arguments ---


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: callbacks.EarlyStopping(5), "monitor is 5; the name of a metric"),  # pyright: ignore
        (lambda: callbacks.BestState(None), "monitor is None"),  # pyright: ignore
        (lambda: callbacks.EarlyStopping(patience=0), "patience .* whole number from 1; it is 0"),
        (lambda: callbacks.EarlyStopping(patience=2.5), "it is 2.5"),  # pyright: ignore
        (lambda: callbacks.EarlyStopping(min_delta=-1e-3), "min_delta is -0.001; a finite"),
        (lambda: callbacks.EarlyStopping(min_delta=NAN), "min_delta is nan"),
        (lambda: callbacks.EarlyStopping(min_delta=math.inf), "min_delta is inf"),
        (lambda: callbacks.EarlyStopping(min_delta="1"), "min_delta is '1'"),  # pyright: ignore
        (lambda: callbacks.EarlyStopping(mode="most"), r"mode is .most.; .*auto"),  # pyright: ignore
        (lambda: callbacks.BestState(mode=max), "mode is the function max"),  # pyright: ignore
        (lambda: callbacks.CSVLog(3), "path is 3; a path is needed"),  # pyright: ignore
        (lambda: callbacks.TensorBoard(None), "directory is None"),  # pyright: ignore
    ],
)
def test_an_argument_that_cannot_be_used_is_refused(make, match):
    with pytest.raises(vernal.ArgumentError, match=match):
        make()


def test_numbers_of_numpy_are_numbers():
    stopping = callbacks.EarlyStopping(patience=np.int64(2), min_delta=np.float32(0.5))  # pyright: ignore
    assert stops(stopping, [4.0, 3.75, 3.5, 3.25]) == 2


def test_they_show_what_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stopping = callbacks.EarlyStopping("val_r2", 3)
    assert stops(stopping, [0.5, 0.1, 0.1, 0.1], "val_r2") == 3
    assert repr(stopping) == (
        "EarlyStopping(monitor='val_r2', patience=3, min_delta=0.0, mode='max', best=0.5, "
        "epoch=0, waited=3, stopped_epoch=3)"
    )
    best = callbacks.BestState()
    best(epoch(4, val_loss=0.25))
    assert repr(best) == "BestState(monitor='val_loss', mode='min', best=0.25, epoch=4)"
    assert repr(callbacks.CSVLog(Path("a/b.csv"))) == "CSVLog('a/b.csv', append=False)"
    assert repr(callbacks.TensorBoard(Path("runs"))) == "TensorBoard('runs')"


# --- CSVLog ---


def table(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def columns(path):
    header, *rows = table(path)
    numbers = [[float(cell or "nan") for cell in row] for row in rows]
    return dict(zip(header, zip(*numbers, strict=True), strict=True))


def said(error):
    """An error's message without its white space: it breaks where a line is full."""
    return "".join(str(error.value).split())


def test_csv_has_a_row_an_epoch_as_soon_as_it_is_over(tmp_path):
    path = tmp_path / "a" / "new" / "log.csv"
    log = callbacks.CSVLog(path)
    assert not path.parent.exists()
    log.start()
    assert table(path) == [["epoch", "seconds"]]
    assert log(epoch(3, loss=0.5, mae=2.0)) is None
    assert table(path) == [["epoch", "seconds", "loss", "mae"], ["3", "0.5", "0.5", "2.0"]]
    log(epoch(4, mae=1.0, loss=0.25))
    assert table(path)[2:] == [["4", "0.5", "0.25", "1.0"]]
    assert os.listdir(path.parent) == ["log.csv"]


def test_csv_numbers_read_back_exactly(tmp_path):
    rng = np.random.default_rng(0)
    values = [*rng.normal(size=50), 1 / 3, 1e-310, 5e300, math.inf, -math.inf, NAN, -0.0]
    seconds = rng.uniform(size=len(values))
    log = callbacks.CSVLog(tmp_path / "log.csv")
    for index, (value, time) in enumerate(zip(values, seconds, strict=True)):
        single = np.float32(value) if abs(value) < 1e30 else 0.0
        metrics = {"loss": float(value), "single": single}
        log(vernal.Epoch(index, STATE, metrics, float(time)))
    rows = table(tmp_path / "log.csv")[1:]
    read = np.array([[float(cell) for cell in row] for row in rows])
    singles = [float(np.float32(v)) if abs(v) < 1e30 else 0.0 for v in values]
    expected = np.array([range(len(values)), seconds, values, singles], np.float64).T
    assert read.tobytes() == expected.tobytes()
    by_pandas = pd.read_csv(tmp_path / "log.csv")
    np.testing.assert_allclose(by_pandas["loss"], values, rtol=1e-15)
    assert by_pandas["epoch"].dtype == np.int64


def test_csv_is_widened_by_what_is_measured_first_later(tmp_path, monkeypatch):
    path = tmp_path / "log.csv"
    log = callbacks.CSVLog(path)
    log(epoch(0, loss=3.0))
    assert not [row for row in table(path) if len(row) != 3]

    # At every moment the file is whole: the one before, or the one after.
    moments = []
    replace = os.replace

    def replaced(source, target):
        moments.append((table(target), table(source)))
        replace(source, target)

    monkeypatch.setattr(os, "replace", replaced)
    log(epoch(1, loss=2.0, val_loss=4.0))
    header = ["epoch", "seconds", "loss"]
    first = ["0", "0.5", "3.0"]
    assert moments == [([header, first], [[*header, "val_loss"], [*first, ""]])]
    log(epoch(2, loss=1.0))
    log(epoch(3, loss=0.5, val_loss=2.0, **{'of "birds", ü': 1.0}))
    assert os.listdir(tmp_path) == ["log.csv"]
    read = pd.read_csv(path)
    assert list(read) == [*header, "val_loss", 'of "birds", ü']
    assert read["epoch"].tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(read["val_loss"], [NAN, 4.0, NAN, 2.0])
    np.testing.assert_array_equal(read['of "birds", ü'], [NAN, NAN, NAN, 1.0])


def test_csv_has_a_column_for_each_metric_whatever_its_name(tmp_path):
    names = ["loss", "epoch", "seconds", "metric epoch", "a,b", 'a"b']
    log = callbacks.CSVLog(tmp_path / "log.csv")
    log(epoch(7, **{name: float(i) for i, name in enumerate(names)}))
    header, row = table(tmp_path / "log.csv")
    assert len(set(header)) == len(header) == 2 + len(names)
    assert row == ["7", "0.5", *(str(float(i)) for i in range(len(names)))]
    callbacks.CSVLog(tmp_path / "log.csv", append=True)(epoch(8, epoch=9.0))
    assert table(tmp_path / "log.csv")[0] == header
    assert columns(tmp_path / "log.csv")["metric epoch"] == (1.0, 9.0)


def test_csv_tells_nan_from_what_was_not_measured(tmp_path):
    log = callbacks.CSVLog(tmp_path / "log.csv")
    log(epoch(0, loss=NAN, val_loss=NAN))
    log(epoch(1, loss=NAN))
    assert table(tmp_path / "log.csv")[1:] == [["0", "0.5", "nan", "nan"], ["1", "0.5", "nan", ""]]


@pytest.mark.parametrize("append", [False, True])
def test_csv_begins_anew_or_goes_on(append, tmp_path):
    path = tmp_path / "log.csv"
    first = callbacks.CSVLog(path)
    first(epoch(0, loss=3.0))
    first(epoch(1, loss=2.0, val_loss=2.5))
    second = callbacks.CSVLog(str(path), append=append)
    for round in range(2):  # the second time, the same object in another run
        second.start()
        second(epoch(2 + round, mae=1.0, loss=1.0))
    read = pd.read_csv(path)
    if append:
        assert list(read) == ["epoch", "seconds", "loss", "val_loss", "mae"]
        assert read["epoch"].tolist() == [0, 1, 2, 3]
        assert read["loss"].tolist() == [3.0, 2.0, 1.0, 1.0]
        np.testing.assert_array_equal(read["mae"], [NAN, NAN, 1.0, 1.0])
    else:
        assert list(read) == ["epoch", "seconds", "mae", "loss"]
        assert read["epoch"].tolist() == [3]


def test_csv_can_append_to_nothing_and_to_an_empty_file(tmp_path):
    (tmp_path / "empty.csv").touch()
    for name in "new.csv", "empty.csv":
        callbacks.CSVLog(tmp_path / name, append=True)(epoch(0, loss=1.0))
        assert table(tmp_path / name) == [["epoch", "seconds", "loss"], ["0", "0.5", "1.0"]]


def test_csv_goes_on_after_a_row_that_was_torn(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("epoch,seconds,loss\n0,0.5,3.0\n1,0.5,2.")
    callbacks.CSVLog(path, append=True)(epoch(1, loss=2.5))
    assert table(path)[1:] == [["0", "0.5", "3.0"], ["1", "0.5", "2.5"]]


def test_csv_does_not_go_on_with_what_it_did_not_write(tmp_path):
    path = tmp_path / "log.csv"
    for content in b"name,age\nx,3\n", b"\xff\xfe\x00garbage\n":
        path.write_bytes(content)
        with pytest.raises(vernal.ArgumentError, match="append=False") as caught:
            callbacks.CSVLog(path, append=True).start()
        assert said(caught).startswith(f"{path}hasthecolumns")
        assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["log.csv"]


def test_csv_keeps_a_link_a_link(tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "log.csv"
    link.symlink_to(tmp_path / "there" / "real.csv")
    callbacks.CSVLog(link)(epoch(0, loss=1.0))
    assert link.is_symlink()
    assert table(tmp_path / "there" / "real.csv")[0] == ["epoch", "seconds", "loss"]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (".", "itexists,andisnotafile"),
        ("file/log.csv", "(Notadirectory|Fileexists)"),
        ("pipe", "itexists,andisnotafile"),
        ("x" * 300, "Filenametoolong"),
    ],
)
def test_csv_says_before_training_that_a_path_cannot_be_written(path, reason, tmp_path):
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    log = callbacks.CSVLog(tmp_path / path)
    with pytest.raises(vernal.ArgumentError) as caught:
        log.start()
    assert re.match(f"{re.escape(str(tmp_path / path))}cannotbewritten:{reason}", said(caught))
    assert sorted(os.listdir(tmp_path)) == ["file", "pipe"]


# --- TensorBoard ---


def scalars(directory):
    """The events of each file in a directory, as (tag, step, value): read byte by byte."""
    files = []
    for path in sorted(Path(directory).iterdir()):
        content, at, events = path.read_bytes(), 0, []
        while at < len(content):  # a length, its checksum, an event, its checksum
            (length,) = struct.unpack_from("<Q", content, at)
            event = event_pb2.Event()  # pyright: ignore
            event.ParseFromString(content[at + 12 : at + 12 + length])
            events += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
            at += length + 16
        files.append(events)
    return files


def test_tensorboard_has_the_metrics_by_epoch(tmp_path):
    board = callbacks.TensorBoard(tmp_path / "new" / "runs")
    assert not (tmp_path / "new").exists()
    board.start()
    assert board(epoch(7, loss=0.5)) is None
    board(epoch(8, loss=0.25, val_loss=2.0))
    assert board.finish(STATE) is STATE
    [events] = scalars(tmp_path / "new" / "runs")
    assert events == [("train/loss", 7, 0.5), ("train/loss", 8, 0.25), ("val/loss", 8, 2.0)]


def test_tensorboard_has_a_tag_for_each_metric(tmp_path):
    names = ["loss", "val_loss", "train/loss", "val/loss", "learning_rate", "a b", "a_b", "/loss"]
    callbacks.TensorBoard(tmp_path)(epoch(0, **{name: float(i) for i, name in enumerate(names)}))
    [events] = scalars(tmp_path)
    tags = [tag for tag, _, _ in events]
    assert tags[:2] == ["train/loss", "val/loss"] and tags[4] == "learning_rate"
    assert len(set(tags)) == len(names)


def test_tensorboard_has_tensorflows_format(tmp_path):
    callbacks.TensorBoard(tmp_path / "runs")(epoch(3, loss=0.5, val_loss=2.0))
    [file] = (tmp_path / "runs").iterdir()
    assert "tfevents" in file.name  # what TensorBoard looks for
    content, at = file.read_bytes(), 0
    writer = RecordWriter(str(tmp_path / "again"))
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        writer.write(content[at + 12 : at + 12 + length])
        at += length + 16
    writer.close()
    assert (tmp_path / "again").read_bytes() == content


def test_tensorboard_adds_a_file_a_run(tmp_path):
    board = callbacks.TensorBoard(str(tmp_path))
    for run in range(3):  # all of them within a second
        board.start()
        board(epoch(run, loss=float(run)))
        board.finish(STATE)
    assert scalars(tmp_path) == [[("train/loss", run, float(run))] for run in range(3)]


def test_tensorboard_needs_no_start_and_closes_what_a_run_that_raised_left(tmp_path):
    board = callbacks.TensorBoard(tmp_path)
    board(epoch(0, loss=1.0))
    board.start()
    assert scalars(tmp_path)[0] == [("train/loss", 0, 1.0)]
    board.finish(STATE)
    assert board.finish(STATE) is STATE
    board(epoch(1, loss=2.0))  # in a loop over `epochs`, nobody starts anything
    board.finish(STATE)
    assert scalars(tmp_path) == [[("train/loss", 0, 1.0)], [], [("train/loss", 1, 2.0)]]


def test_tensorboard_is_imported_only_when_used_and_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    callbacks.CSVLog(tmp_path / "log.csv")
    with pytest.raises(vernal.MissingExtraError, match=r"pip install 'vernal\[tensorboard\]'"):
        callbacks.TensorBoard(tmp_path)


def test_tensorboard_says_before_training_that_a_directory_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    board = callbacks.TensorBoard(tmp_path / "file" / "runs")
    with pytest.raises(vernal.ArgumentError) as caught:
        board.start()
    assert said(caught).startswith(f"{tmp_path}/file/runscannotbewritten:Notadirectory.")


# --- In fit ---


def fit(*chosen, state: vernal.TrainState = STATE, epochs=6, **options):
    return TRAINER.fit(state, DATA, epochs=epochs, callbacks=chosen, progress=False, **options)


def test_fit_stops_early():
    stopping = callbacks.EarlyStopping("loss", 2, min_delta=1e9)
    state, history = fit(stopping)
    assert int(state.epoch) == len(history.epochs["loss"]) == 3
    assert (stopping.stopped_epoch, stopping.waited) == (2, 2)
    assert stopping.best == history.epochs["loss"][0]


def test_fit_stops_early_by_validated_epochs():
    stopping = callbacks.EarlyStopping(patience=2, min_delta=1e9)
    state, _ = fit(stopping, validation_data=DATA, validate_every=3, epochs=30)
    assert int(state.epoch) == 9


def test_fit_calls_every_callback_when_one_stops(tmp_path):
    log = callbacks.CSVLog(tmp_path / "log.csv")
    state, history = fit(lambda epoch: epoch.index == 1, log)
    assert int(state.epoch) == 2
    read = columns(tmp_path / "log.csv")
    np.testing.assert_array_equal(read["loss"], history.epochs["loss"])
    assert min(read["seconds"]) > 0


def test_fit_logs_what_the_history_has(tmp_path):
    chosen = callbacks.CSVLog(tmp_path / "log.csv"), callbacks.TensorBoard(tmp_path / "runs")
    _, history = fit(*chosen, validation_data=DATA, validate_every=2)
    read = columns(tmp_path / "log.csv")
    assert set(read) == {"epoch", "seconds", *history.epochs}
    for name, values in history.epochs.items():
        np.testing.assert_array_equal(read[name], values)
    [events] = scalars(tmp_path / "runs")
    for name, values in history.epochs.items():
        expected = [(i, np.float32(v)) for i, v in enumerate(values) if not math.isnan(v)]
        its_tag = {"loss": "train/loss", "val_loss": "val/loss"}[name]
        assert [(step, value) for tag, step, value in events if tag == its_tag] == expected


def test_a_callback_that_raises_leaves_the_state_usable(tmp_path):
    before, _ = fit(epochs=2)
    seen = []

    def fragile(epoch):
        seen.append(epoch.state)
        if epoch.index == 4:
            raise RuntimeError("the log is out of reach")

    board = callbacks.TensorBoard(tmp_path / "runs")
    with pytest.raises(RuntimeError, match="out of reach"):
        fit(board, fragile, state=before)
    assert [int(state.epoch) for state in seen] == [3, 4, 5]
    whole, _ = fit(epochs=8)
    again, _ = fit(state=before)
    on, _ = fit(board, state=seen[-1], epochs=3)
    for state in again, on:
        assert int(state.epoch) == 8
        np.testing.assert_array_equal(state.model.weight, whole.model.weight)
    steps = [[step for _, step, _ in events] for events in scalars(tmp_path / "runs")]
    assert steps == [[2, 3, 4], [5, 6, 7]]


def test_logs_do_not_repeat_epochs_that_are_trained_again(tmp_path):
    """Killed twice after the same checkpoint, with epochs in the logs that it does not have."""
    checkpoints = vernal.Checkpoints(tmp_path / "run", every_seconds=None, every_epochs=2)

    def run(dies):
        def die(epoch):
            if epoch.index == dies:
                raise ConnectionError

        logs = callbacks.CSVLog(tmp_path / "log.csv"), callbacks.TensorBoard(tmp_path / "runs")
        return fit(*logs, die, epochs=8, checkpoints=checkpoints)

    for _ in range(2):
        with pytest.raises(ConnectionError):
            run(dies=4)
        assert pd.read_csv(tmp_path / "log.csv")["epoch"].tolist() == [0, 1, 2, 3, 4]
    _, history = run(dies=None)
    read = columns(tmp_path / "log.csv")
    assert read["epoch"] == tuple(range(8))
    np.testing.assert_array_equal(read["loss"], history.epochs["loss"])
    [events] = scalars(tmp_path / "runs")
    expected = [("train/loss", i, np.float32(v)) for i, v in enumerate(history.epochs["loss"])]
    assert events == expected


# A step this long makes every epoch worse than the one before; or, from the solution, no better.
DIVERGING = vernal.Trainer(optax.sgd(3.0), losses.MeanSquaredError())


@pytest.mark.parametrize("early", [False, True])
def test_fit_returns_the_best_state(early):
    best = callbacks.BestState()
    stopping = callbacks.EarlyStopping(patience=2)
    chosen = [best, stopping] if early else [best]
    options = {"validation_data": DATA, "callbacks": chosen, "progress": False}
    state, history = DIVERGING.fit(MODEL, DATA, epochs=5, **options)
    assert len(history.epochs["loss"]) == (3 if early else 5)
    first, _ = DIVERGING.fit(MODEL, DATA, epochs=1, progress=False)
    assert int(state.epoch) == 1 and best.epoch == 0
    np.testing.assert_array_equal(state.model.weight, first.model.weight)
    assert DIVERGING.evaluate(state, DATA)["loss"] == best.best == history.epochs["val_loss"].min()


def test_fit_returns_the_last_state_where_there_is_no_best():
    best = callbacks.BestState()
    state, _ = fit(best, validation_data=DATA, validate_every=10)
    assert int(state.epoch) == 6 and best.state is None


def test_fit_returns_the_best_state_after_ctrl_c(capsys):
    def interrupting(epoch):
        if epoch.index == 2:
            signal.raise_signal(signal.SIGINT)

    best = callbacks.BestState("loss")
    state, history = DIVERGING.fit(
        MODEL, DATA, epochs=1_000_000, callbacks=[best, interrupting], progress=False
    )
    assert len(history.epochs["loss"]) < 1_000_000
    assert "Interrupted" in capsys.readouterr().err
    assert int(state.epoch) == 1 and state is best.state


def test_fit_forgets_the_run_before(tmp_path):
    best, stopping = callbacks.BestState("loss"), callbacks.EarlyStopping("loss", 3)
    log = callbacks.CSVLog(tmp_path / "log.csv")
    fit(best, stopping, log)
    assert best.epoch == 5
    lowest = best.best
    state, _ = DIVERGING.fit(MODEL, DATA, epochs=9, callbacks=[best, stopping, log], progress=False)
    assert best.best is not None and lowest is not None and best.best > lowest
    assert int(state.epoch) == best.epoch + 1 == 1
    assert stopping.stopped_epoch == 3
    assert pd.read_csv(tmp_path / "log.csv")["epoch"].tolist() == [0, 1, 2, 3]


def test_fit_calls_the_hooks_in_their_places():
    calls = []

    class Spy:
        def start(self):
            calls.append("start")

        def __call__(self, epoch):
            calls.append(epoch.index)

        def finish(self, state):
            calls.append("finish")
            return replacement if replace else state

    replacement, replace = TRAINER.init(MODEL), False
    state, _ = fit(Spy(), epochs=2)
    assert calls == ["start", 0, 1, "finish"] and int(state.epoch) == 2
    replace = True
    assert fit(Spy(), epochs=2)[0] is replacement


def test_fit_starts_nothing_before_the_checks(tmp_path):
    log = callbacks.CSVLog(tmp_path / "log.csv")
    log(epoch(0, loss=1.0))
    with pytest.raises(vernal.ShapeError):
        TRAINER.fit(MODEL, (X, X[:, 0]), epochs=2, callbacks=[log])
    assert len(table(tmp_path / "log.csv")) == 2


def test_fit_finds_a_path_that_cannot_be_written_before_training(tmp_path):
    seen = []
    with pytest.raises(vernal.ArgumentError, match="cannot be written"):
        fit(seen.append, callbacks.CSVLog(tmp_path))
    assert seen == []


@pytest.mark.parametrize("make", [callbacks.EarlyStopping, callbacks.BestState])
def test_fit_finds_a_monitor_that_is_not_measured_before_training(make):
    seen = []
    with pytest.raises(vernal.ArgumentError, match="val_loss"):
        fit(seen.append, make())
    with pytest.raises(vernal.ArgumentError, match="val_accuracy"):
        fit(seen.append, make("val_accuracy"), validation_data=DATA)
    assert seen == []
    fit(seen.append, make(), validation_data=DATA)
    assert len(seen) == 6


@pytest.mark.parametrize("make", [callbacks.EarlyStopping, callbacks.BestState])
def test_fit_suggests_the_name_that_was_meant(make):
    with pytest.raises(vernal.ArgumentError, match="Did you mean 'val_loss'"):
        fit(make("val_los"), validation_data=DATA)
    with pytest.raises(vernal.ArgumentError, match="Pass validation_data"):
        fit(make())


# --- Which values are best ---


def falls(prediction, target):
    return jnp.abs(prediction - target)


class Rises(metrics.AbstractMetric):
    """A metric of one's own, with a name of its own."""

    best = "max"

    def of_batch(self, prediction, target, weight):
        return -jnp.mean(jnp.abs(prediction - target))

    def value(self, mean, spread, total):
        return mean


MEASURED = {
    "gain": metrics.r2,
    "error": Rises(),
    "accuracy": metrics.mean_absolute_error,
    "mae": falls,
    "unheard": falls,
}
MEASURING = vernal.Trainer(optax.sgd(0.1), losses.MeanSquaredError(), metrics=MEASURED)


def test_fit_knows_a_metric_by_itself_and_else_by_its_name():
    best = {name: callbacks.BestState(f"val_{name}") for name in MEASURED if name != "unheard"}
    MEASURING.fit(MODEL, DATA, epochs=3, validation_data=DATA, callbacks=best.values())
    modes = {name: callback.mode for name, callback in best.items()}
    assert modes == {"gain": "max", "error": "max", "accuracy": "min", "mae": "min"}
    assert {callback.epoch for callback in best.values()} == {2}  # each gets better and better


def test_fit_asks_for_a_mode_that_it_does_not_know_before_training():
    seen = []
    with pytest.raises(vernal.ArgumentError, match=r"'unheard', mode=\"max\"\), or mode=\"min\""):
        chosen = [seen.append, callbacks.EarlyStopping("unheard")]
        MEASURING.fit(MODEL, DATA, epochs=3, callbacks=chosen)
    assert seen == []
    best = callbacks.BestState("error", mode="min")  # the user's word counts
    MEASURING.fit(MODEL, DATA, epochs=3, callbacks=[best])
    assert (best.mode, best.epoch) == ("min", 0)


def test_accuracies_rise_under_any_name():
    trainer = vernal.Trainer(
        optax.sgd(0.1),
        losses.CrossEntropy(),
        metrics={"loss_a": metrics.accuracy, "b": metrics.top_k(2)},
    )
    data = X, (X[:, 0] > 0).astype(int)
    best = [callbacks.BestState(name) for name in ("loss_a", "val_b")]
    model = nn.Linear(1, 3, key=jax.random.key(0))
    trainer.fit(model, data, epochs=0, validation_data=data, callbacks=best)
    assert [callback.mode for callback in best] == ["max", "max"]


# --- What callbacks measure ---


def extra(epoch):
    """A metric of a callback's own: best in the epoch with index 2."""
    epoch.metrics["val_f1"] = jnp.float32(1 - abs(epoch.index - 2) / 10)


def test_a_callbacks_metric_is_monitored_logged_and_recorded(tmp_path):
    log, board = callbacks.CSVLog(tmp_path / "log.csv"), callbacks.TensorBoard(tmp_path / "runs")
    best, stopping = callbacks.BestState("val_f1"), callbacks.EarlyStopping("val_f1", 2)
    state, history = fit(extra, best, stopping, log, board, epochs=20)
    assert int(state.epoch) == 3 and best.best == np.float32(1)
    expected = np.array([0.8, 0.9, 1.0, 0.9, 0.8], np.float32)
    np.testing.assert_array_equal(history.epochs["val_f1"], expected)
    np.testing.assert_array_equal(columns(tmp_path / "log.csv")["val_f1"], expected)
    [events] = scalars(tmp_path / "runs")
    assert [value for tag, _, value in events if tag == "val/f1"] == expected.tolist()


def test_what_a_callback_measures_now_and_then_is_nan_else():
    def second(epoch):
        if epoch.index % 2 == 0:
            epoch.metrics["own"] = 3.0
        epoch.metrics["loss"] = 0.0  # what the run measures stays in the record

    best = callbacks.BestState("own", mode="max")
    _, history = fit(second, best, epochs=4, validation_data=DATA, validate_every=3)
    np.testing.assert_array_equal(history.epochs["own"], [3, NAN, 3, NAN])
    assert list(np.isfinite(history.epochs["val_loss"])) == [False, False, True, False]
    assert (history.epochs["loss"] > 0).all() and best.epoch == 0


def test_what_a_callback_measures_is_resumed(tmp_path):
    whole = fit(extra, epochs=5)[1].epochs["val_f1"]
    for epochs in (2, 5):
        _, history = fit(extra, epochs=epochs, checkpoints=vernal.Checkpoints(tmp_path))
    np.testing.assert_array_equal(history.epochs["val_f1"], whole)


def test_the_order_of_callbacks_matters_and_fit_says_so():
    seen = []
    with pytest.raises(
        vernal.ArgumentError, match=r"callback before it .*\s*epoch.metrics\['val_f1'\]"
    ):
        fit(seen.append, callbacks.BestState("val_f1"), extra)
    assert seen == []
    # A function before it may measure anything: only an epoch tells.
    with pytest.raises(vernal.ArgumentError, match="Did you mean 'val_f1'") as caught:
        fit(extra, callbacks.BestState("val_f2"), epochs=5)
    kept = vars(caught.value)
    assert int(kept["state"].epoch) == len(kept["history"].epochs["loss"]) == 1
    fit(extra, callbacks.BestState("val_loss"), validation_data=DATA, validate_every=2)


# --- Answers ---


@pytest.mark.parametrize("yes", [True, np.True_, np.array(True), np.array([True]), jnp.array(True)])
def test_each_kind_of_truth_ends_the_run(yes):
    assert int(fit(lambda epoch: yes)[0].epoch) == 1


@pytest.mark.parametrize("no", [False, None, np.False_, jnp.array(False)])
def test_each_kind_of_falsehood_does_not(no):
    assert int(fit(lambda epoch: no, epochs=2)[0].epoch) == 2


@pytest.mark.parametrize("answer", ["stop", 0.5, {"stop": True}, 57, 1, 0, np.array([True, False])])
def test_another_answer_is_ignored_by_name(answer):
    def wordy(epoch):
        return answer

    with pytest.warns(
        RuntimeWarning, match="the function wordy returned .* only True ends the run"
    ):
        assert int(fit(wordy, epochs=2)[0].epoch) == 2


# --- Hooks ---


class Finishing:
    """A callback whose `finish` does as it is told."""

    def __init__(self, finish):
        self.finish = finish

    def __call__(self, epoch):
        pass


def test_a_finish_that_returns_nothing_leaves_the_state():
    seen = []
    state, _ = fit(Finishing(seen.append), Finishing(seen.append), epochs=2)
    assert seen == [state, state] and int(state.epoch) == 2


def test_a_finish_that_raises_or_returns_something_else_keeps_state_and_history():
    def broken(state):
        raise ConnectionError("the server is gone")

    best = callbacks.BestState("loss")
    wrong = Finishing(lambda state: state.model)
    for last, kind in ((Finishing(broken), ConnectionError), (wrong, vernal.ArgumentError)):
        with pytest.raises(kind) as caught:
            DIVERGING.fit(MODEL, DATA, epochs=3, callbacks=[best, last])
        assert vars(caught.value)["state"] is best.state  # as the callback before it wanted it
        assert len(vars(caught.value)["history"].epochs["loss"]) == 3


@dataclasses.dataclass
class Dated:
    """Has fields that are called as hooks are, and are none."""

    start: float = 0.0
    monitor: int = 3
    seen: int = 0

    def __call__(self, epoch):
        self.seen += 1

    @property
    def finish(self):
        return self.seen > 1


class Torchlike(eqx.Module):
    """A callable with half of two hooks."""

    weight: jax.Array

    def __call__(self, epoch):
        pass

    def state_dict(self):
        raise AssertionError("asked for half a hook")


def test_only_what_can_be_called_and_is_complete_is_a_hook(tmp_path):
    mock, dated = Mock(return_value=None), Dated()
    state, _ = fit(mock, dated, Torchlike(jnp.ones(2)), checkpoints=vernal.Checkpoints(tmp_path))
    assert int(state.epoch) == mock.call_count == dated.seen == 6
    called = {name for name, *_ in mock.mock_calls}
    assert called.isdisjoint({"start", "finish", "state_dict", "load_state_dict"})


class Kerasish:
    def on_epoch_end(self, epoch, logs=None):
        pass


@pytest.mark.parametrize(
    ("callback", "match"),
    [
        (Kerasish(), r"a Kerasish; .*\s*Write __call__\(self, epoch\) in place of on_epoch_end"),
        (callbacks.EarlyStopping, r"the class EarlyStopping; .*\s*Try EarlyStopping\(\)"),
        (lambda epoch, logs: None, r"the function <lambda>; a callable callback\(epoch\)"),
    ],
)
def test_what_is_no_callback_is_refused_with_a_hint(callback, match):
    with pytest.raises(vernal.ArgumentError, match=match):
        fit(callback)
