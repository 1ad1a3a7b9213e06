"""Which of a model's modules are called, and with what: seen from outside, while it is traced."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PyTree

from vernal._data.files import as_shapes
from vernal._shapes.modules import module_paths

# Every operation that a call makes has this and the call's number among its `jax.named_scope`s.
SCOPE = "vernal-call-"


@dataclass
class Call:
    """One call of a module. Arrays are there as `jax.ShapeDtypeStruct`s."""

    module: eqx.Module
    path: str  # in the model, as Python writes it: ".layers[0]"; "" is the model itself
    arguments: dict[str, Any]  # by parameter, as they were when the call began
    result: Any = None  # None, too, if the call did not end well
    outer: "Call | None" = field(default=None, repr=False)  # the call that it was made from


def located(root: PyTree, path: str, module: eqx.Module) -> str:
    """A module by its path, for a message: `MLP.layers[0] (Linear)`."""
    name = type(module).__name__
    return f"{type(root).__name__}{path} ({name})" if path else name


class Calls:
    """Watches, as a context manager, for calls of a model's modules.

    Nothing is changed to see them: Python reports each call of a function to whoever asked (see
    `sys.setprofile`), in this thread and until the context is left.

    **Attributes:** `made`, every `Call` in the order in which they began; `failed`, the innermost
    of those that the exception went through that ended the context.
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

    def __exit__(self, kind, error: BaseException | None, traceback) -> None:
        sys.setprofile(None)
        if hasattr(self._previous, "enable"):  # a cProfile.Profile, which sets itself
            self._previous.enable()
        else:
            sys.setprofile(self._previous)
        failed = {id(call) for call in self._went_through(error)}
        self.failed = next((call for call in reversed(self.made) if id(call) in failed), None)
        self._frames.clear()  # they keep all their variables

    def _went_through(self, error: BaseException | None) -> Iterator[Call]:
        """The calls that an exception left, or one that it was raised in place of."""
        while error is not None:
            traceback = error.__traceback__
            while traceback is not None:
                if traceback.tb_frame in self._frames:
                    yield self._frames[traceback.tb_frame]
                traceback = traceback.tb_next
            error = error.__context__

    def _see(self, frame: FrameType, event: str, result: Any) -> None:
        code = frame.f_code
        if code.co_name != "__call__" or event not in ("call", "return"):
            return
        if event == "return":
            if (call := self._frames.get(frame)) is not None:
                call.result = _shapes(result)
                self._open.remove(call)
                self._scopes.pop(frame).__exit__(None, None, None)
                if isinstance(call.module, eqx.nn.Shared):  # it returns copies, to be called
                    for path, module in module_paths(result).values():
                        self._modules[id(module)] = f"{call.path}.pytree{path}", module
        elif code.co_argcount:
            values = frame.f_locals
            module = values.get(code.co_varnames[0])
            if isinstance(module, eqx.Module) and id(module) in self._modules:
                outer = self._open[-1] if self._open else None
                if outer is not None and outer.module is module:
                    return  # it called what it inherits
                path, module = self._modules[id(module)]
                arguments = {name: _shapes(values[name]) for name in _parameters(code)[1:]}
                call = Call(module, path, arguments, outer=outer)
                self._scopes[frame] = jax.named_scope(f"{SCOPE}{len(self.made)}")
                self._scopes[frame].__enter__()
                self.made.append(call)
                self._open.append(call)
                self._frames[frame] = call


def _parameters(code: CodeType) -> tuple[str, ...]:
    return code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]


def _shapes(value: PyTree) -> PyTree:
    shape = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    return jax.tree.map(lambda leaf: shape(leaf) if eqx.is_array(leaf) else leaf, value)


def watched(
    function: Callable, model: PyTree, *args: PyTree
) -> tuple[Any, Calls, Exception | None]:
    """Trace `function(model, *args)` on the shapes of `args`, and watch the model's modules.

    The model is taken as it is and not as an argument, so that its modules keep their identity.

    **Returns:** the result, as shapes, or `None`; the calls; the exception, or `None`.
    """
    calls = Calls(model)

    def traced(*args):
        with calls:
            return function(model, *args)

    try:
        return eqx.filter_eval_shape(traced, *as_shapes(args)), calls, None
    except Exception as error:
        return None, calls, error
