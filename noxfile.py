"""The project's commands: `nox -l` lists them, `nox -s tests` runs one.

What follows `--` is passed on: `nox -s tests -- -k shapes`, `nox -s tutorials -- 01`.
"""

import functools
import os
import re
import shutil
import sys
import tarfile
import tempfile
import zipfile
from itertools import chain
from pathlib import Path

import nox
import nox.command

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_venv = "yes"  # the installs below bring a kept environment up to date
nox.options.sessions = ["tests", "lint", "types", "tutorials"]

ROOT = Path(__file__).parent
PYPROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
PYTHONS = nox.project.python_versions(PYPROJECT)


# Each file of tests in one process, and as many processes at once as there are cores.
PYTEST = ("pytest", "--numprocesses", "auto", "--dist", "loadfile")
# Each process, and each that a test starts, would compile all that it imports if none kept it.
KEEP_BYTECODE = {"PYTHONDONTWRITEBYTECODE": None}


def group(name: str) -> tuple[str, ...]:
    """Return the requirements of one dependency group: older versions of pip have no `--group`."""
    return nox.project.dependency_groups(PYPROJECT, name)


def lowest_versions() -> list[str]:
    """Return `name==version` for every `name>=version` that the package and its extras ask for."""
    project = PYPROJECT["project"]
    wanted = chain(project["dependencies"], *project["optional-dependencies"].values())
    return [requirement.replace(">=", "==") for requirement in wanted if ">=" in requirement]


def find_python(version: str) -> str | None:
    """Return the path of an installed Python such as "3.12": here, in pyenv, or on the path."""
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return sys.executable
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for path in pyenv.glob(f"versions/{version}.*/bin/python"):
        return str(path)
    # pyenv puts a shim for each of its versions on the path; that of an inactive one only fails.
    paths = [p for p in os.environ["PATH"].split(os.pathsep) if Path(p) != pyenv / "shims"]
    return shutil.which(f"python{version}", path=os.pathsep.join(paths))


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests on the Python that runs nox."""
    session.install("-e", ".[all]", *group("test"))
    run_tests(session)


def run_tests(session: nox.Session) -> None:
    """Run the tests, and those of several devices, which a CPU simulates if it is told at once."""
    session.run(*PYTEST, *session.posargs, env=KEEP_BYTECODE)
    if not session.posargs:
        devices = {**KEEP_BYTECODE, "JAX_NUM_CPU_DEVICES": "8"}
        session.run(*PYTEST, "tests/devices", env=devices)


def newest_python() -> str | None:
    """Return the path of the newest supported Python that is installed."""
    found = (find_python(version) for version in reversed(PYTHONS))
    return next((path for path in found if path), None)


@nox.session(python=newest_python() or False)
def tests_newest(session: nox.Session) -> None:
    """Run the tests on the newest Python here, with the newest JAX: what users install."""
    if session.python is False:
        session.skip(f"none of {', '.join(PYTHONS)} is on this machine")
    # A kept environment would keep the JAX that was the newest once.
    session.install("--upgrade", "-e", ".[all]", *group("test"))
    run_tests(session)


@nox.session(python=newest_python() or False)
def tests_documents(session: nox.Session) -> None:
    """Test what README, documentation and docstrings show, on the newest Python here."""
    if session.python is False:
        session.skip(f"none of {', '.join(PYTHONS)} is on this machine")
    session.install("--upgrade", "-e", ".[all]", *group("test"))
    session.run(*PYTEST, "tests/documents", *session.posargs, env=KEEP_BYTECODE)


@nox.session
def tests_tutorials(session: nox.Session) -> None:
    """Test what the tutorials print and draw, at their full size, on the Python that runs nox.

    `docs` runs them as notebooks on the newest Python.
    """
    session.install("-e", ".[all]", *group("test"))
    session.run(*PYTEST, "tests/tutorials", *session.posargs, env=KEEP_BYTECODE)


# A Python that is not installed gets no environment (False): its session only says so.
@nox.session(reuse_venv=False)  # a kept environment would keep the JAX that was the newest once
@nox.parametrize(
    "python, version, pins",
    [
        *(nox.param(find_python(v) or False, v, [], id=f"{v}-newest") for v in PYTHONS),
        nox.param(
            find_python(PYTHONS[0]) or False,
            PYTHONS[0],
            lowest_versions(),
            id=f"{PYTHONS[0]}-lowest",
        ),
    ],
)
def tests_matrix(session: nox.Session, version: str, pins: list[str]) -> None:
    """Run the tests on each supported Python, and once with the lowest allowed versions."""
    if session.python is False:
        session.skip(f"Python {version} is missing on this machine")
    session.install("-e", ".[all]", *group("test"), *pins)
    run_tests(session)


@nox.session
def faults(session: nox.Session) -> None:
    """Try every fault, and all long sweeps, of which `nox -s tests` tries a few: it takes long."""
    session.install("-e", ".[all]", *group("test"))
    every = *PYTEST, "--dist", "load", "--long"
    session.run(*every, "tests/faults", *session.posargs, env=KEEP_BYTECODE)
    rooms = "tests", "tests/documents", "tests/tutorials", "--ignore", "tests/faults"
    others = *every, *rooms, "-m", "long", *session.posargs
    # 5: none was left by what was passed on, such as `-k`.
    session.run(*others, env=KEEP_BYTECODE, success_codes=[0, 5])
    devices = *every, "tests/devices", "-m", "long", *session.posargs
    eight = {**KEEP_BYTECODE, "JAX_NUM_CPU_DEVICES": "8"}
    session.run(*devices, env=eight, success_codes=[0, 5])


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting with ruff, and the direction of imports with import-linter."""
    session.install(*group("lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    # It reads the package's source, and imports nothing: nothing needs to be installed.
    session.run("lint-imports", "--no-cache", env={"PYTHONPATH": "src"})


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of the package and the tests with pyright."""
    session.install("-e", ".[all]", *group("types"))
    session.run("pyright")


@nox.session
def tutorials(session: nox.Session) -> None:
    """Run the tutorials without a display: all in order, or those named, as in `-- 01 05`."""
    scripts = sorted(ROOT.glob("tutorials/[0-9][0-9]_*.py"))
    names = tuple(session.posargs) or ("",)  # every name begins with ""
    for name in names:
        if not any(script.name.startswith(name) for script in scripts):
            known = ", ".join(script.name for script in scripts)
            session.error(f"no tutorial's name begins with {name!r}; there are: {known}")
    session.install("-e", ".[all]", *group("tutorials"))
    for script in scripts:
        if script.name.startswith(names):
            session.run("python", f"tutorials/{script.name}", env={"MPLBACKEND": "Agg"})


SITE = ROOT / "build" / "site"


@nox.session(python=newest_python())
def docs(session: nox.Session) -> None:
    """Build the site under build/site and test it in a browser; `-- serve` shows it instead.

    It is built with the newest Python here, and the newest JAX: what users install.
    """
    session.install("-e", ".[all]", *group("docs"))
    # Nothing is kept: every cell runs. Warnings, such as a broken link, are errors. One page after
    # the other: two kernels that start at once may be given the same port, and wait for ever.
    shutil.rmtree(SITE, ignore_errors=True)
    options = "--fresh-env", "--fail-on-warning", "--keep-going"
    session.run("sphinx-build", "--quiet", "--builder", "html", *options, "docs", str(SITE))
    if "serve" in session.posargs:
        address = "--bind", "localhost", "--directory", str(SITE)
        session.run("python", "-m", "http.server", *address, "8000")
        return

    install_browser(session)
    tests = "tests/site", "tests/tutorials"
    spread = "--numprocesses", "auto", "--dist", "load"
    session.run("pytest", *spread, "--browser", "-m", "browser", *tests, *session.posargs)


def install_browser(session: nox.Session) -> None:
    """Install Chromium and its driver from Debian's packages, where they are missing."""
    if all(map(shutil.which, ("chromium", "chromedriver"))):
        return
    packages = "chromium", "chromium-driver"
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        session.error(f"the site's tests need a browser: apt-get install {' '.join(packages)}")
    session.run("apt-get", "update", external=True, silent=True)
    install = "apt-get", "install", "--yes", "--no-install-recommends"
    session.run(*install, *packages, external=True, silent=True)


@nox.session(reuse_venv=False)  # clean, so that a requirement missing from the wheel shows
def build(session: nox.Session) -> None:
    """Build the sdist and the wheel from it, check both, and run the README's example."""
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    if session.venv_backend == "uv":
        session.run("uv", "build", "--out-dir", "dist", external=True)
    else:
        session.install("build")
        session.run("python", "-m", "build", "--outdir", "dist")
    (sdist,) = dist.glob("*.tar.gz")
    (wheel,) = dist.glob("*.whl")
    check_files(session, sdist, wheel)
    session.install(str(wheel), "scikit-learn")  # which the README's example takes its data from

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.search(r"```python\n(.*?)```.*?```text\n(.*?)```", readme, re.DOTALL)
    if blocks is None:
        session.error("README.md has no ```python block with a ```text block after it")
    code, expected = blocks.groups()
    with tempfile.TemporaryDirectory() as empty, session.chdir(empty):
        # -I: only what is installed can be imported. stderr=None: no progress bar in the output.
        printed = session.run("python", "-I", "-c", code, silent=True, stderr=None)
    if printed.strip() != expected.strip():
        session.error(f"README.md shows\n{expected}\nbut its example printed\n{printed}")


def check_files(session: nox.Session, sdist: Path, wheel: Path) -> None:
    """Check that both hold each of the package's files, its papers, and nothing else."""
    sources = [path for path in (ROOT / "src" / "vernal").rglob("*") if path.is_file()]
    sources = {p.relative_to(ROOT / "src").as_posix() for p in sources if p.suffix != ".pyc"}
    with tarfile.open(sdist) as archive:
        root = sdist.name.removesuffix(".tar.gz")
        members = [member.name for member in archive.getmembers() if member.isfile()]
        in_sdist = {name.removeprefix(f"{root}/") for name in members}
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = set(archive.namelist())

    papers = {"CHANGELOG.md", "CITATION.cff", "LICENSE", "README.md", "PKG-INFO"}
    made = {"pyproject.toml", ".gitignore"}
    info = "-".join(wheel.name.split("-")[:2]) + ".dist-info"
    notes = {f"{info}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "licenses/LICENSE")}
    wanted = {
        sdist.name: (in_sdist, {f"src/{name}" for name in sources} | papers | made),
        wheel.name: (in_wheel, sources | notes),
    }
    for name, (found, needed) in wanted.items():
        if found != needed:
            session.error(f"{name} lacks {needed - found} and should not have {found - needed}")
    if "vernal/py.typed" not in in_wheel:
        session.error("vernal/py.typed is missing: the package's types would not count")


@nox.session(python=newest_python())
def peers(session: nox.Session) -> None:
    """Run the programs on the pages for users of Keras, Lightning, Flax and Equinox."""
    session.install("--no-compile", "-e", ".[all]", *group("test"), *group("bench"))
    session.run("pytest", "--peers", "tests/documents/test_coming_from.py", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Time Vernal and its peers: `nox -s bench -- a c` for some of the workloads."""
    # At once, which takes less time. What is imported is compiled then; pip would compile all.
    install = functools.partial(session.install, "--no-compile")
    peers = group("bench")
    try:
        install("-e", ".[all]", *peers)
    except nox.command.CommandFailed:
        install("-e", ".[all]")
        for peer in peers:  # the table names those that do not install here
            install(peer, success_codes=range(256))
    session.run("python", "benchmarks/compare.py", *session.posargs)
