"""What the README shows is what happens."""

import contextlib
import io
import re
from pathlib import Path

import vernal

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
# (language, content) of each fenced block, in order.
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_every_example_does_what_is_shown():
    """Each block of Python goes on where the one before ended; a block of text is its outcome."""
    names, compared = {}, []
    for (language, content), (following, shown) in zip(
        BLOCKS, [*BLOCKS[1:], ("", "")], strict=True
    ):
        if language != "python":
            continue
        printed, outcome = io.StringIO(), "output"
        with contextlib.redirect_stdout(printed):
            try:
                exec(compile(content, "README.md", "exec"), names)
            except vernal.VernalError as error:
                outcome = type(error).__name__
                print(f"{outcome}: {error}")
        assert printed.getvalue().strip() == (shown.strip() if following == "text" else "")
        compared += [outcome] if following == "text" else []
    assert compared == ["output", "ShapeError"]


def test_the_first_blocks_are_the_example_and_its_output():
    languages = [language for language, _ in BLOCKS]
    first = languages.index("python")
    assert languages[first : first + 2] == ["python", "text"]
    assert BLOCKS[first][1].count("print(") == BLOCKS[first + 1][1].count("\n")


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)]+)\)", README)
    local = [link for link in links if not link.startswith("https://")]
    assert local
    for link in local:
        assert (ROOT / link).is_file(), link


def test_commands_are_there():
    noxfile = (ROOT / "noxfile.py").read_text(encoding="utf-8")
    sessions = re.findall(r"nox -s (\w+)", README)
    assert {"tutorials", "tests"} <= set(sessions)
    for session in sessions:
        assert re.search(rf"^@nox\.session.*?\ndef {session}\(", noxfile, re.DOTALL | re.MULTILINE)


def test_every_tutorial_is_listed():
    for path in (ROOT / "tutorials").glob("[0-9][0-9]_*.py"):
        assert f"(tutorials/{path.name})" in README
