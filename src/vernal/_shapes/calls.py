"""Which modules of a model are called, and with what: watched from outside, during a trace."""

import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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
        arguments: The arguments by name, as they were when the call began.
        result: What the call returned; `None`, too, if it raised.
        outer: The call that this one was made from.
    """

    module: eqx.Module
    path: str
    arguments: dict[str, Any]
    result: Any = None
    outer: "Call | None" = field(default=None, repr=False)


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
        failed: The innermost call that was left by the exception that ended the context.
    """

    def __init__(self, model: PyTree):
        self.made: list[Call] = []
        self.failed: Call | None = None
        self._modules = module_paths(model)
        self._frames: dict[FrameType, Call] = {}
        self._scopes: dict[FrameType, Any] = {}
        self._open: list[Call] = []

    def __enter__(self) -> "Calls":
        self._previous: Any = sys.getprofile()
        sys.setprofile(self._see)
        return self

    def __exit__(self, kind, error: BaseException | None, frames) -> None:
        sys.setprofile(None)
        if hasattr(self._previous, "enable"):  # a cProfile.Profile, which sets itself
            self._previous.enable()
        else:
            sys.setprofile(self._previous)
        left = set(_frames_left(error))
        for frame, call in self._frames.items():
            if frame in left:
                self.failed = call
        self._frames.clear()  # they keep all their variables

    def _see(self, frame: FrameType, event: str, result: Any) -> None:
        if frame.f_code.co_name != "__call__":
            return
        if event == "call":
            self._begin(frame)
        elif event == "return" and frame in self._frames:
            self._end(frame, result)

    def _begin(self, frame: FrameType) -> None:
        code = frame.f_code
        if not code.co_argcount:
            return
        self_name, *names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        module = frame.f_locals.get(self_name)
        if not isinstance(module, eqx.Module) or id(module) not in self._modules:
            return
        outer = self._open[-1] if self._open else None
        if outer is not None and outer.module is module:
            return  # the module called a method that it inherits
        path, module = self._modules[id(module)]
        arguments = {name: shapes_of(frame.f_locals[name]) for name in names}
        call = Call(module, path, arguments, outer=outer)
        self._scopes[frame] = jax.named_scope(f"{SCOPE}{len(self.made)}")
        self._scopes[frame].__enter__()
        self.made.append(call)
        self._open.append(call)
        self._frames[frame] = call

    def _end(self, frame: FrameType, result: Any) -> None:
        call = self._frames[frame]
        call.result = shapes_of(result)
        self._open.remove(call)
        self._scopes.pop(frame).__exit__(None, None, None)
        if isinstance(call.module, eqx.nn.Shared):  # it returns copies, to be called
            for path, module in module_paths(result).values():
                self._modules[id(module)] = f"{call.path}.pytree{path}", module


def _frames_left(error: BaseException | None) -> Iterator[FrameType]:
    """Go through the frames that an exception left, and those of the exceptions before it."""
    while error is not None:
        for left in (error.__traceback__, getattr(error, "full_traceback", None)):
            yield from (frame for frame, _ in traceback.walk_tb(left))
        error = error.__context__


def watched(
    function: Callable, model: PyTree, *args: PyTree
) -> tuple[Any, Calls, Exception | None]:
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
