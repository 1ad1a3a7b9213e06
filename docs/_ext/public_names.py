"""The public names of the package, for the reference and for the test of its examples."""

import inspect
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

import vernal

MODULES = ("nn", "losses", "metrics", "callbacks", "plot")


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


def has_docstring(thing: Any) -> bool:
    """Say whether a thing, or the class that it is made of, has a docstring of its own."""
    own = thing if inspect.isclass(thing) or inspect.isroutine(thing) else type(thing)
    doc = vars(own).get("__doc__") if inspect.isclass(own) else own.__doc__
    return bool(doc) and not doc.startswith(f"{own.__name__}(")  # what a dataclass writes
