"""The examples in the docstrings do what they show, and every public name has one."""

import doctest
import inspect
import re
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

import vernal

DOCS = Path(__file__).parents[2] / "docs"
sys.path.insert(0, str(DOCS / "_ext"))
try:
    from public_names import public_names  # pyright: ignore[reportMissingImports]
finally:
    sys.path.remove(str(DOCS / "_ext"))

NAMES = dict(public_names())
# As one reads them, and not as they are computed: `ELLIPSIS` is not among these.
OPTIONS = doctest.NORMALIZE_WHITESPACE


def beginning():
    """Run the lines that all examples share: those on the first page of the reference."""
    text = (DOCS / "reference" / "index.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {}
    exec(code, names)
    return names


def examples(name, thing):
    found = doctest.DocTestFinder(exclude_empty=True).find(thing, name, globs={})
    return [test for test in found if test.examples]


def is_documented_elsewhere(thing):
    # The gallery of errors provokes them. `r2` and `confusion_matrix` are shown with their classes.
    is_error = inspect.isclass(thing) and issubclass(thing, vernal.VernalError)
    return is_error or not (inspect.isclass(thing) or inspect.isroutine(thing))


@pytest.mark.parametrize("name", NAMES)
def test_examples_do_what_they_show(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    thing = NAMES[name]
    tests = examples(name, thing)
    assert tests or is_documented_elsewhere(thing), f"{name} has no example"
    for test in tests:
        test.globs = beginning()
        result = doctest.DocTestRunner(optionflags=OPTIONS).run(test)
        assert result.failed == 0, capsys.readouterr().out
    plt.close("all")


def test_every_method_of_the_trainer_has_an_example():
    methods = [name for name in vars(vernal.Trainer) if not name.startswith("_")]
    named = {test.name for test in examples("vernal.Trainer", vernal.Trainer)}
    wanted = {f"vernal.Trainer.{name}" for name in methods if callable(vars(vernal.Trainer)[name])}
    wanted -= {"vernal.Trainer.trainable"}  # a field, whose default is a function
    assert wanted and wanted <= named
