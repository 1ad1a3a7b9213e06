"""Both programs on each page for users of another framework print what the page shows."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "coming_from"
PROGRAMS = FOLDER / "programs"
PAGES = sorted(path for path in FOLDER.glob("*.md") if path.name != "index.md")
PEERS = {"equinox", "flax", "keras", "lightning"}


def parts(page):
    text = page.read_text(encoding="utf-8")
    shown = re.search(r"```text\n(.*?)```", text, re.DOTALL)
    assert shown is not None
    return re.findall(r"\{literalinclude\} programs/(\w+\.py)", text), shown[1]


def printed(program, folder):
    command = [sys.executable, "-W", "ignore", str(PROGRAMS / program)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_each_page_shows_a_program_twice_and_no_program_is_left_over():
    assert {page.stem for page in PAGES} == PEERS
    programs = [parts(page)[0] for page in PAGES]
    assert all(ours == "vernal_fit.py" for _, ours in programs)
    assert sorted({name for pair in programs for name in pair}) == sorted(
        path.name for path in PROGRAMS.glob("*.py")
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_both_programs_train_on_the_same_data(page):
    sources = [(PROGRAMS / name).read_text(encoding="utf-8") for name in parts(page)[0]]
    data = [re.findall(r"(?m)^rng = .*?^train, .*?$", source, re.DOTALL) for source in sources]
    assert len(data[0]) == 1 and data[0] == data[1]
    for source in sources:
        compile(source, page.name, "exec")


def test_the_program_with_vernal_prints_what_each_page_shows(tmp_path):
    output = printed("vernal_fit.py", tmp_path)
    assert [parts(page)[1] for page in PAGES] == [output] * len(PAGES)
    assert (tmp_path / "rings.safetensors").is_file()


# Equinox is always here. `nox -s peers` installs the others, and runs what is marked.
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.stem, marks=[pytest.mark.peers] * (page.stem != "equinox"))
        for page in PAGES
    ],
)
def test_the_other_program_prints_what_the_page_shows(page, tmp_path):
    programs, shown = parts(page)
    assert printed(programs[0], tmp_path) == shown
