"""Runs a tutorial, for the tests of what it prints and draws."""

import contextlib
import io
import os
import re
import runpy
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple

import jax
import matplotlib.pyplot as plt
import numpy as np

TUTORIALS = sorted((Path(__file__).parents[2] / "tutorials").glob("[0-9][0-9]_*.py"))


class Tutorial(NamedTuple):
    """A tutorial that has run.

    Attributes:
        printed: What it printed.
        variables: Its global variables at the end.
        folder: The folder in which it ran.
    """

    printed: str
    variables: dict[str, Any]
    folder: Path


@cache
def tutorial(number: str, *, ranks: str = "raise", quick: bool = False) -> Tutorial:
    """Run a tutorial, once for each file of tests.

    Args:
        number: The two digits that its name begins with.
        ranks: What JAX does when it would broadcast an array to another rank.
        quick: Whether it runs at the reduced size of the documentation's site.
    """
    (path,) = (path for path in TUTORIALS if path.name.startswith(number))
    folder, printed = Path(mkdtemp(prefix=f"tutorial-{number}-")), io.StringIO()
    promotion: Any = jax.numpy_rank_promotion(ranks)
    before = os.environ.pop("VERNAL_QUICK", None)
    if quick:
        os.environ["VERNAL_QUICK"] = "1"
    try:
        with contextlib.chdir(folder), contextlib.redirect_stdout(printed), promotion:
            variables = runpy.run_path(str(path))
    finally:
        os.environ.pop("VERNAL_QUICK", None)
        if before is not None:
            os.environ["VERNAL_QUICK"] = before
        plt.close("all")
    return Tutorial(printed.getvalue(), variables, folder)


def assert_pictures(number: str, done: Tutorial, *, others: str = r"(?!)") -> None:
    """Assert that a tutorial left pictures, and nothing else, and only where it says.

    Args:
        number: The tutorial's two digits.
        done: The tutorial.
        others: The names of files that are not pictures, as a regular expression.
    """
    assert done.printed.splitlines()[-1] == f"Pictures are in {Path('build/tutorials')}"
    files = [path for path in done.folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        if re.fullmatch(others, path.relative_to(done.folder).as_posix()):
            continue
        assert path.parent == done.folder / "build/tutorials"
        assert re.fullmatch(rf"{number}_\w+\.png", path.name)
        assert np.ptp(plt.imread(path)) > 0.5  # it is not blank
