"""What every tutorial keeps to, whatever it teaches."""

import re
from pathlib import Path

import jupytext
import nbformat
import pytest
from tutorial import TUTORIALS

ANSWER = {"tags": ["hide-cell"], "jupyter": {"source_hidden": True, "outputs_hidden": True}}
DRAWING = {"tags": ["hide-input"], "jupyter": {"source_hidden": True}}


def metadata(cell):
    # Jupytext notes how many empty lines follow a cell.
    return {name: value for name, value in cell.metadata.items() if "lines_to" not in name}


def test_they_are_numbered_and_tested():
    assert [path.name[:2] for path in TUTORIALS] == [
        f"{number:02}" for number in range(1, len(TUTORIALS) + 1)
    ]
    tests = sorted(path.stem[5:] for path in Path(__file__).parent.glob("test_[0-9][0-9].py"))
    assert tests == [path.name[:2] for path in TUTORIALS]


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.name)
def test_opens_as_a_notebook(path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith(f"# %% [markdown]\n# # {int(path.name[:2])}. ")
    notebook = jupytext.reads(text, fmt="py:percent")
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert cell.source
        assert metadata(cell) in ({}, ANSWER, DRAWING)
        assert metadata(cell) == {} or cell.cell_type == "code"
        if cell.cell_type == "code":
            compile(cell.source, path.name, "exec")


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.name)
def test_asks_two_or_three_exercises_and_answers_them(path):
    notebook = jupytext.read(path, fmt="py:percent")
    exercises = sum(
        len(re.findall(r"^\*\*Exercise", cell.source, re.MULTILINE))
        for cell in notebook.cells
        if cell.cell_type == "markdown"
    )
    answers = [cell for cell in notebook.cells if metadata(cell) == ANSWER]
    assert 2 <= exercises <= 3
    assert len(answers) == exercises
