"""Reads the package's docstrings, and finds public names that no page documents.

Docstrings are written for editors, in Markdown's way: code stands between single backticks. Here
they become reStructuredText, with a link wherever a name of the package is meant.
"""

import inspect
import re
from typing import Any

from public_names import has_docstring, public_names
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)


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
    # Lines of examples stay, as do the blank lines that end them.
    parts = re.split(r"(^ *>>> (?:.+\n?)+|`[^`]+`)", "\n".join(lines), flags=re.MULTILINE)
    text = ""
    for part in parts:
        if part.lstrip().startswith(">>>"):
            text += part
        elif part.startswith("`"):
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


def setup(app: Sphinx) -> dict[str, bool]:
    """Register both."""
    app.connect("autodoc-process-docstring", as_restructured_text, priority=400)
    app.connect("autodoc-process-signature", shorten_defaults)
    app.connect("build-finished", check_all_are_documented)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
