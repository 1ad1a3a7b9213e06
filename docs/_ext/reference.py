"""Reads the package's docstrings, and finds public names that no page documents.

Docstrings are written for editors, in Markdown's way: code stands between single backticks. Here
they become reStructuredText, with a link wherever a name of the package is meant.
"""

import ast
import inspect
import re
import textwrap
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


# Names that only the package knows.
SHOWN_DEFAULTS = {"default_weight_init": "lecun_normal()", "_identity": "identity"}
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


def write_signature(app: Sphinx, what: str, name: str, thing: Any, *_: Any) -> Any:
    """Write arguments without types, and defaults as the source has them."""
    # What a module imports is asked for, too, before it is left out.
    if what not in ("class", "function", "method") or not thing.__module__.startswith("vernal."):
        return None
    parameters = inspect.signature(thing).parameters.values()
    sources = defaults_of(thing)
    written = []
    for each in parameters:
        if each.name == "self":
            continue
        if each.kind is each.KEYWORD_ONLY and "*" not in written:
            written.append("*")
        default = ""
        if each.default is not each.empty:
            source = sources.get(each.name, repr(each.default))
            default = f"={SHOWN_DEFAULTS.get(source, source)}"
        written.append(each.name + default)
    return f"({', '.join(written)})", None


def defaults_of(thing: Any) -> dict[str, str]:
    """Return the source of each default of a function, or of a class that it is called by."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(thing)))).body
    if isinstance(node, ast.ClassDef):
        made = [each for each in node.body if getattr(each, "name", "") == "__init__"]
        if not made:
            fields = [each for each in node.body if isinstance(each, ast.AnnAssign) and each.value]
            return {ast.unparse(each.target): ast.unparse(each.value) for each in fields}
        (node,) = made
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args][-len(arguments.defaults) or None :]
    pairs = [
        *zip(positional, arguments.defaults, strict=False),
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]
    return {each.arg: ast.unparse(default) for each, default in pairs if default is not None}


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
    app.connect("autodoc-process-signature", write_signature)
    app.connect("build-finished", check_all_are_documented)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
