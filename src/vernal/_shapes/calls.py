"""Which modules of a model are called, and with what: watched from outside, during a trace."""

import inspect
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PyTree

from vernal._shapes.modules import module_paths, shapes_of

# Every operation that a call makes has this and the call's number among its `jax.named_scope`s.
SCOPE = "vernal-call-"


@dataclass
class Call:
    """One call of a module. Arrays are kept as `jax.ShapeDtypeStruct`s.

    Attributes:
        module: The module that was called.
        path: Where it is in the model, as Python writes it: ".layers[0]"; "" is the model itself.
        arguments: The arguments by name, without a key, as they were when the call began.
        depth: How many calls it was made inside of.
        result: What the call returned; `None`, too, if it raised.
    """

    module: eqx.Module
    path: str
    arguments: dict[str, Any]
    depth: int
    result: Any = None


def located(root: PyTree, path: str, module: eqx.Module) -> str:
    """Name a module by its path, for a message: `MLP.layers[0] (Linear)`."""
    name = type(module).__name__
    return f"{type(root).__name__}{path} ({name})" if path else name


class Calls:
    """Watches, as a context manager, for calls of a model's modules.

    The model stays as it is: Python reports each call of a function (see `sys.setprofile`), in this
    thread and until the context is left.

    Attributes:
        made: Every `Call`, in the order in which they began.
        failed: Those that were left by the exception that ended the context, the innermost last.
    """

    def __init__(self, model: PyTree):
        self.made: list[Call] = []
        self.failed: list[Call] = []
        self._modules = module_paths(model)
        self._frames: dict[FrameType, Call] = {}
        self._open: list[tuple[Call, Any]] = []  # each with its `jax.named_scope`

    def __enter__(self) -> "Calls":
        self._previous: Any = sys.getprofile()
        sys.setprofile(self._see)
        return self

    def __exit__(self, kind, error: BaseException | None, frames) -> None:
        if hasattr(self._previous, "enable"):  # a cProfile.Profile, before Python 3.12
            self._previous.enable()
        else:
            sys.setprofile(self._previous)
        left: set[FrameType] = set()
        while error is not None:  # and those before it
            for frames in (error.__traceback__, getattr(error, "full_traceback", None)):
                left.update(frame for frame, _ in traceback.walk_tb(frames))
            error = error.__context__
        self.failed = [call for frame, call in self._frames.items() if frame in left]
        self._frames.clear()  # they keep all their variables

    def _see(self, frame: FrameType, event: str, result: Any) -> None:
        if frame.f_code.co_name != "__call__":
            return
        if event == "call":
            self._begin(frame)
        elif event == "return" and frame in self._frames:
            self._end(result)

    def _begin(self, frame: FrameType) -> None:
        names = inspect.getargs(frame.f_code).args
        module = frame.f_locals.get(names[0]) if names else None
        if id(module) not in self._modules:
            return
        if self._open and self._open[-1][0].module is module:
            return  # the module called a method that it inherits
        path, module = self._modules[id(module)]
        arguments = {name: shapes_of(frame.f_locals[name]) for name in names[1:] if name != "key"}
        call = Call(module, path, arguments, depth=len(self._open))
        scope = jax.named_scope(f"{SCOPE}{len(self.made)}")
        scope.__enter__()
        self._open.append((call, scope))
        self.made.append(call)
        self._frames[frame] = call

    def _end(self, result: Any) -> None:
        call, scope = self._open.pop()
        scope.__exit__(None, None, None)
        call.result = shapes_of(result)
        if isinstance(call.module, eqx.nn.Shared):  # it returns copies, to be called
            for path, module in module_paths(result).values():
                self._modules[id(module)] = f"{call.path}.pytree{path}", module


def watched(function: Callable, model: PyTree, *args: Any) -> tuple[Any, Calls, Exception | None]:
    """Trace `function(model, *args)` on the shapes of `args`, and watch the model's modules.

    The model is closed over and not an argument, so that its modules keep their identity.

    Returns:
        The result, as shapes, or `None`; the calls; the exception, or `None`.
    """
    calls = Calls(model)

    def traced(*args):
        with calls:
            return function(model, *args)

    try:
        return eqx.filter_eval_shape(traced, *shapes_of(args)), calls, None
    except Exception as error:
        return None, calls, error
