"""What is about to compile, told to whoever asked for it."""

from collections.abc import Callable

from jaxtyping import PyTree

# Called with a program's name, such as "step", and all that decides whether a compiled program
# serves again, by name. A watcher that raises prevents the compilation.
Watcher = Callable[[str, dict[str, PyTree]], None]

watchers: list[Watcher] = []


def compiles(program: str, **parts: PyTree) -> None:
    """Tell every watcher that a program is about to compile.

    To be called in the body of a jitted function, which runs only where JAX has no program yet.

    Args:
        program: What users call it: "step", "fit", ...
        **parts: Everything that decides whether a compiled program serves again, by its name.
    """
    for watcher in watchers:
        watcher(program, parts)
