"""Reads the package's docstrings, and finds public names that no page documents.

Docstrings are written for editors, in Markdown's way: code stands between single backticks. Here
they become reStructuredText, with a link wherever a name of the package is meant.
"""

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging

import vernal

MODULES = ("nn", "losses", "metrics", "callbacks", "plot")
CODE = re.compile(r"`+([^`]+)`+(?=(\w)?)")
NAME = re.compile(r"(vernal\.)?([A-Za-z_]\w*\.)*[A-Za-z_]\w*")
logger = logging.getLogger(__name__)


def public_names() -> Iterator[tuple[str, Any]]:
    """Yield each public name, written in full, and what it stands for."""
    for name in vernal.__all__:
        thing = getattr(vernal, name)
        if not isinstance(thing, ModuleType):
            yield f"vernal.{name}", thing
    for name in MODULES:
        module = import_module(f"vernal.{name}")
        own = (each for each, thing in vars(module).items() if is_own(module, each, thing))
        for each in getattr(module, "__all__", sorted(own)):
            yield f"vernal.{name}.{each}", getattr(module, each)


def is_own(module: ModuleType, name: str, thing: Any) -> bool:
    """Say whether a module makes a public thing itself, and does not only import it."""
    if name.startswith("_") or isinstance(thing, ModuleType):
        return False
    made_by = thing if hasattr(thing, "__qualname__") else type(thing)
    return getattr(made_by, "__module__", None) == module.__name__


def links() -> dict[str, str]:
    """Return what each short name of the package stands for, written in full."""
    found = {}
    for full, thing in public_names():
        short = full.removeprefix("vernal.")
        found |= {full: full, short: full}
        found.setdefault(short.rpartition(".")[2], full)
        if inspect.isclass(thing):
            for name, member in vars(thing).items():
                if inspect.isfunction(member) and not name.startswith("_"):
                    found[f"{short}.{name}"] = f"{full}.{name}"
    for name in ("fit", "init", "step", "evaluate", "predict", "eval_model"):
        found[name] = found[f"Trainer.{name}"]
    return found


LINKS = links()
# Words that are arguments or fields more often than functions of the package.
LINKS = {
    name: full
    for name, full in LINKS.items()
    if name not in ("steps", "history", "predictions", "loss", "accuracy", "batches")
}


def as_restructured_text(app: Sphinx, what: str, name: str, thing: Any, options, lines) -> None:
    """Write a docstring's code, and signs that mean something else there, anew."""
    parts = re.split(r"(`[^`]+`)", "\n".join(lines))
    text = ""
    for part in parts:
        if part.startswith("`"):
            code = part.strip("`")
            full = LINKS.get(code)
            is_link = full is not None and not name.endswith(code)
            text += f":py:obj:`{code} <{full}>`" if is_link else f"``{code}``"
        else:
            after_code = text.endswith("`") and part[:1].isalnum()
            text += "\\ " * after_code + re.sub(r"([|*])", r"\\\1", part)
    text = re.sub(r"(?m)^( *)Returns:\n", r"\1:returns:\n", text)
    lines[:] = text.split("\n")


def shorten_defaults(app: Sphinx, what, name, thing, options, signature, returns):
    """Write a default that is a function by its name."""
    if signature is not None:
        return re.sub(r"<function (\w+)[^>]*>", r"\1", signature), returns


def check_all_are_documented(app: Sphinx, error: Exception | None) -> None:
    """Warn of each public name without a place in the reference, docstring or example."""
    if error is not None:
        return
    documented = app.env.domaindata["py"]["objects"]
    for name, thing in public_names():
        if name not in documented:
            logger.warning("the reference has no %s", name)
        if not has_docstring(thing):
            logger.warning("%s has no docstring", name)


def has_docstring(thing: Any) -> bool:
    """Say whether a thing, or the class that it is made of, has a docstring of its own."""
    own = thing if inspect.isclass(thing) or inspect.isroutine(thing) else type(thing)
    doc = vars(own).get("__doc__") if inspect.isclass(own) else own.__doc__
    return bool(doc) and not doc.startswith(f"{own.__name__}(")  # what a dataclass writes


def setup(app: Sphinx) -> dict[str, bool]:
    """Register both."""
    app.connect("autodoc-process-docstring", as_restructured_text, priority=400)
    app.connect("autodoc-process-signature", shorten_defaults)
    app.connect("build-finished", check_all_are_documented)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
