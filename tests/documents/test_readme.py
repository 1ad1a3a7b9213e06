"""What the README shows is what happens."""

import re
from pathlib import Path

import pytest
from helpers import Page

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def readme():
    return Page(ROOT / "README.md")


def test_every_example_does_what_is_shown(readme):
    assert readme.run() == ["output", "ShapeError"]


def test_the_first_blocks_are_the_example_and_its_output(readme):
    languages = [language for language, _ in readme.blocks]
    first = languages.index("python")
    assert languages[first : first + 2] == ["python", "text"]
    assert readme.blocks[first][1].count("print(") == readme.blocks[first + 1][1].count("\n")


def test_links_lead_somewhere(readme):
    links = re.findall(r"\]\(([^)]+)\)", readme.text)
    local = [link for link in links if not link.startswith("https://")]
    assert local
    for link in local:
        path, _, anchor = link.partition("#")
        assert (ROOT / path).is_file(), link
        if anchor:
            titles = re.findall(r"^#+ (.*)$", (ROOT / path).read_text(encoding="utf-8"), re.M)
            assert anchor in [re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles]


def test_commands_are_there(readme):
    noxfile = (ROOT / "noxfile.py").read_text(encoding="utf-8")
    sessions = re.findall(r"nox -s (\w+)", readme.text)
    assert {"tutorials", "tests"} <= set(sessions)
    for session in sessions:
        assert re.search(rf"^@nox\.session.*?\ndef {session}\(", noxfile, re.DOTALL | re.MULTILINE)


def test_every_tutorial_is_listed(readme):
    for path in (ROOT / "tutorials").glob("[0-9][0-9]_*.py"):
        assert f"(tutorials/{path.name})" in readme.text
