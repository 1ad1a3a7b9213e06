"""What the pages under docs/ show is what happens."""

import contextlib
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from helpers import Page

DOCS = Path(__file__).parents[2] / "docs"
# `test_coming_from.py` runs the programs of `coming_from/`, each in a process of its own.
PAGES = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")]
PAGES = sorted(page for page in PAGES if not page.startswith("coming_from/"))


def stand_in(monkeypatch, name, **functions):
    """Put a module in a package's place, with the functions of it that the pages call."""
    module = ModuleType(name)
    vars(module).update(functions)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def wandb(monkeypatch):
    calls = []

    class Run:
        def log(self, data, step=None):
            calls.append(("log", data, step))

    @contextlib.contextmanager
    def init(*, project):
        calls.append(("init", project))
        yield Run()
        calls.append(("finish",))

    stand_in(monkeypatch, "wandb", init=init)
    return calls


@pytest.fixture
def mlflow(monkeypatch):
    calls = []

    @contextlib.contextmanager
    def start_run():
        calls.append(("start_run",))
        yield
        calls.append(("end_run",))

    def log_metrics(metrics, step=None):
        calls.append(("log_metrics", metrics, step))

    stand_in(monkeypatch, "mlflow", start_run=start_run, log_metrics=log_metrics)
    return calls


@pytest.fixture
def optuna(monkeypatch):
    calls = []

    class Trial:
        def __init__(self, place):
            self.place = place

        def suggest_float(self, name, low, high, *, log):
            assert log
            calls.append(("suggest_float", name))
            return low * (high / low) ** self.place

    class Study:
        def optimize(self, objective, n_trials):
            places = [i / (n_trials - 1) for i in range(n_trials)]
            self.best_value = min(objective(Trial(place)) for place in places)

    def create_study(*, direction):
        assert direction == "minimize"
        return Study()

    stand_in(monkeypatch, "optuna", create_study=create_study)
    return calls


@pytest.mark.parametrize("name", PAGES)
def test_every_example_does_what_is_shown(name, wandb, mlflow, optuna, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    shown = Page(DOCS / name)
    languages = [language for language, _ in shown.blocks]
    assert len(shown.run()) == languages.count("text")

    services = {"wandb": wandb, "mlflow": mlflow, "optuna": optuna}
    used = [service for service in services if f"import {service}\n" in shown.text]
    assert [service for service, calls in services.items() if calls] == used
    if name == "log.md":
        assert_each_epoch_is_logged(wandb, mlflow)


def assert_each_epoch_is_logged(wandb, mlflow):
    assert [call[0] for call in wandb] == ["init", "log", "log", "log", "finish"]
    assert wandb[0] == ("init", "sine")
    assert [call[0] for call in mlflow] == ["start_run", *["log_metrics"] * 3, "end_run"]
    for calls in wandb, mlflow:
        logged = calls[1:-1]
        assert [step for _, _, step in logged] == [0, 1, 2]
        for _, metrics, _ in logged:
            assert set(metrics) == {"loss"} and type(metrics["loss"]) is float
    assert wandb[1:-1] == [("log", *call[1:]) for call in mlflow[1:-1]]  # the same run twice


def test_the_policy_names_the_versions_that_the_package_asks_for():
    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    page = (DOCS / "policies" / "versions.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| ([\d.]+) \| (.+) \|$", page, re.MULTILINE)
    lowest = dict(need.split(">=") for need in project["dependencies"])
    pythons = [c.rpartition(" ")[2] for c in project["classifiers"] if re.search(r"3\.\d+$", c)]
    assert rows.pop(0) == ("Python", pythons[0], pythons[-1])
    assert project["requires-python"] == f">={pythons[0]}"
    assert {name.lower() for name, _, _ in rows} == {"jax", "equinox", "optax", "numpy"}
    for name, version, newest in rows:
        assert (version, newest) == (lowest[name.lower()], "the newest")


def test_the_citation_names_the_version_and_the_licence():
    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = (DOCS.parent / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {project['version']}\n" in citation
    assert f"\nlicense: {project['license']}\n" in citation
