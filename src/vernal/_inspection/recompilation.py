"""What compiles again, and why: logged, or raised as an error."""

import collections
import contextlib
import contextvars
import dataclasses
import logging
import re
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PyTree

from vernal._data.arrays import PARTS
from vernal._shapes.modules import module_paths
from vernal._training.compilation import watchers
from vernal.errors import RecompilationError

_log = logging.getLogger("vernal")
_forbidden = contextvars.ContextVar("_forbidden", default=False)
# The programs that compiled, by name, each as a description of all it depends on.
_compiled: dict[str, list[dict[str, str]]] = collections.defaultdict(list)
_SHOWN = 3  # differences in one message


@contextlib.contextmanager
def no_recompilation() -> Iterator[None]:
    """Make it an error, inside a `with`, that one of Vernal's programs compiles again.

    A first compilation stays allowed, such as one for another kind of model. Outside of the `with`,
    Vernal logs each compilation to `logging.getLogger("vernal")`, at the level INFO.

    Raises:
        RecompilationError: A program is about to compile again; the message says what changed.

    Example:
        >>> state, _ = trainer.fit(model, (x, y), epochs=1)
        >>> with vernal.no_recompilation():
        ...     state, _ = trainer.fit(state, (x, y), epochs=5)
    """
    token = _forbidden.set(True)
    try:
        yield
    finally:
        _forbidden.reset(token)


def _watch(program: str, parts: dict[str, PyTree]) -> None:
    """Log that a program is about to compile, and what changed since the last time.

    Args:
        program: What users call it: "step", "fit", ...
        parts: Everything that decides whether a compiled program serves again, by its name.

    Raises:
        RecompilationError: The program compiles again, inside of `no_recompilation`.
    """
    new = _description(parts)
    changes = min((list(_changes(old, new)) for old in [{}, *_compiled[program]]), key=len)
    if 2 * len(changes) > len(new):  # another model
        _log.info("%s compiles, for the first time with such a model and data", program)
    else:
        error = RecompilationError(f"{program} compiles again: {_listed(changes)}")
        if _forbidden.get():
            raise error
        _log.info("%s", error)
    _compiled[program].append(new)


watchers.append(_watch)


def _description(parts: dict[str, Any]) -> dict[str, str]:
    """Describe every leaf and static field that a compiled program depends on, by its path."""
    found = {}
    for name, part in parts.items():
        for keys, leaf in jax.tree_util.tree_leaves_with_path(part):
            found[name + jax.tree_util.keystr(keys)] = _shown(leaf)
        if name == "state":  # the optimizer's state repeats the model's modules
            name, part = "model", part.model
        for path, module in module_paths(part).values():
            found.setdefault(name + path, type(module).__name__)
            for field in dataclasses.fields(module):  # pyright: ignore[reportArgumentType]
                if field.metadata.get("static", False):
                    value = getattr(module, field.name, None)
                    found[f"{name}{path}.{field.name}"] = _shown(value)
    return {_users_name(path): shown for path, shown in found.items()}


def _users_name(path: str) -> str:
    """Return a path without the parts that only Vernal knows of."""
    for i, part in enumerate(PARTS):
        path = path.replace(f"batch[{i}]", part)
    return re.sub(r"^(choices\.|state\.)?(objective\.)?", "", path)


def _shown(leaf: Any) -> str:
    if eqx.is_array(leaf):
        return str(jax.typeof(leaf))
    if callable(leaf) and hasattr(leaf, "__qualname__"):
        return f"{leaf.__qualname__} at {id(leaf):#x}"
    return repr(leaf)


def _changes(old: dict[str, str], new: dict[str, str]) -> Iterator[str]:
    """Yield a sentence for each difference."""
    for path in new | old:
        before, now = old.get(path, "nothing"), new.get(path, "nothing")
        if before != now:
            before, now = before.partition(" at 0x")[0], now.partition(" at 0x")[0]
            change = f"is another {now}" if before == now else f"was {before}, and is {now}"
            yield f"{path} {change}"


def _listed(changes: list[str]) -> str:
    if not changes:
        return "nothing has changed but the device, or JAX's caches were cleared."
    shown = changes[:_SHOWN]
    if len(changes) > _SHOWN:
        shown.append(f"and {len(changes) - _SHOWN} more")
    kept = re.match("optimizer|loss", changes[0])
    hint = f"\n  Make the {kept[0]} once, and keep it: a new one is a new program." if kept else ""
    return ";\n  ".join(shown) + "." + hint
