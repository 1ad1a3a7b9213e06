"""What compiles again, and why: told through `logging`, or raised."""

import collections
import contextlib
import contextvars
import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PyTree

from vernal._shapes.calls import module_paths
from vernal.errors import RecompilationError

_log = logging.getLogger("vernal")
_forbidden = contextvars.ContextVar("_forbidden", default=False)
# What was compiled last, by program: as JAX's own caches it only grows, up to a limit.
_compiled: dict[str, collections.deque] = collections.defaultdict(
    lambda: collections.deque(maxlen=32)
)
_SHOWN = 3  # differences in one message


@contextlib.contextmanager
def no_recompilation() -> Iterator[None]:
    """Make it an error, inside a `with`, that something of Vernal's compiles again.

    What compiles for the first time, such as for another kind of model, may do so. Without this,
    each compilation is told to `logging.getLogger("vernal")`, at the level INFO.

    **Raises:** `RecompilationError`, before compiling, which says what is different now.
    """
    token = _forbidden.set(True)
    try:
        yield
    finally:
        _forbidden.reset(token)


def compiles(program: str, **parts: PyTree) -> None:
    """Tell that a program is about to be compiled, and what is different from the time before.

    To be called in the body of a jitted function: that runs only where JAX has no program yet.

    **Arguments:**

    - `program`: what the user calls it: "step", ...
    - `parts`: everything that decides whether a compiled program serves again, by its name.

    **Raises:** `RecompilationError` inside of `no_recompilation`.
    """
    new = _description(parts)
    closest = min(_compiled[program], key=lambda old: len(_changes(old, new)), default=None)
    changes = _changes(closest, new) if closest is not None else []
    if closest is None or 2 * len(changes) > len(new):  # another model: nothing to compare with
        _log.info("%s compiles, for the first time with such a model and data", program)
    else:
        error = RecompilationError(f"{program} compiles again: {_told(changes)}")
        if _forbidden.get():
            raise error
        _log.info("%s", error)
    _compiled[program].append(new)


def _description(parts: dict[str, PyTree]) -> dict[str, str]:
    """Every leaf and every static field: path -> what a compiled program depends on."""
    found = {}
    for name, part in parts.items():
        for keys, leaf in jax.tree_util.tree_flatten_with_path(part)[0]:
            found[name + jax.tree_util.keystr(keys)] = _shown(leaf)
        for path, module in module_paths(part).values() if name != "opt_state" else ():
            found.setdefault(name + path, type(module).__name__)
            for field in dataclasses.fields(module):  # pyright: ignore[reportArgumentType]
                if field.metadata.get("static", False):
                    value = getattr(module, field.name, None)
                    found[f"{name}{path}.{field.name}"] = _shown(value)
    return found


def _shown(leaf: Any) -> str:
    if eqx.is_array(leaf):
        weak = ", weakly typed" if getattr(leaf, "weak_type", False) else ""
        return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}{weak}]"
    if callable(leaf) and hasattr(leaf, "__qualname__"):
        return f"{leaf.__qualname__} at {id(leaf):#x}"
    return repr(leaf)


def _changes(old: dict[str, str], new: dict[str, str]) -> list[tuple[str, str, str]]:
    """Path, old and new, where they differ."""
    paths = [*new, *(path for path in old if path not in new)]
    pairs = ((path, old.get(path, "nothing"), new.get(path, "nothing")) for path in paths)
    return [(path, before, now) for path, before, now in pairs if before != now]


def _told(changes: list[tuple[str, str, str]]) -> str:
    if not changes:
        return "nothing has changed but the device, or JAX's caches were cleared."
    lines = [_line(*change) for change in changes[:_SHOWN]]
    more = f";\n  and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
    kept = [name for name in ("optimizer", "loss") if changes[0][0].startswith(name)]
    hint = f"\n  Make the {kept[0]} once, and keep it: a new one is a new program." if kept else ""
    return ";\n  ".join(lines) + more + "." + hint


def _line(path: str, before: str, now: str) -> str:
    before, now = before.partition(" at 0x")[0], now.partition(" at 0x")[0]
    return f"{path} is another {now}" if before == now else f"{path} was {before}, and is {now}"
