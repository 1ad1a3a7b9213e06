"""How a table is laid out as text, and how numbers and shapes are written in it."""

import html
import io
import math
import shutil
from collections.abc import Mapping, Sequence

import equinox as eqx
import jax

_WIDTH = 100  # columns of a table that is not printed to a terminal


def as_text(columns: Mapping[str, Sequence[str]], *, texts: Sequence[str]) -> str:
    """Lay out a table in the width of the terminal, or else in 100 columns.

    Args:
        columns: For each title the cells below it, the last of which is the total.
        texts: The titles of columns that are wrapped where there is no room. The others hold
            numbers.
    """
    # Imported here, because rich takes a while to import.
    from rich import box, console, text
    from rich.table import Table

    table = Table(
        box=box.SIMPLE, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), show_footer=True
    )
    for title, cells in columns.items():
        is_text = title in texts
        side = "left" if is_text else "right"
        table.add_column(title, cells[-1], justify=side, no_wrap=not is_text, overflow="fold")
    for cells in list(zip(*columns.values(), strict=True))[:-1]:
        # A `Text` is shown as it is: in a string, rich takes "[0]" for markup.
        table.add_row(*(text.Text(cell) for cell in cells))

    width = shutil.get_terminal_size(fallback=(_WIDTH, 24)).columns
    file = io.StringIO()
    console.Console(file=file, width=width, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def as_html(columns: Mapping[str, Sequence[str]], *, caption: str) -> str:
    """Lay out a table for a notebook, with nothing wrapped."""
    lines = [_html_line("th", list(columns))]
    lines += [_html_line("td", cells) for cells in zip(*columns.values(), strict=True)]
    return f"<table>{''.join(lines)}</table><p>{html.escape(caption)}</p>"


def _html_line(tag: str, cells: Sequence[str]) -> str:
    parts = [f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells]
    return f"<tr>{''.join(parts)}</tr>"


def number(value: float | None, unit: str = "") -> str:
    """Write a number exactly below a million, else as in `1.23 MB`; `None` is unknown, a dash."""
    if value is None:
        return "–"
    if value < 1_000_000:
        return f"{value:,} {unit}".rstrip()
    thousands = min(6, int(math.log10(value / 0.9995)) // 3)  # 999.5 is 1.00 of the next unit
    digits = f"{value / 1000**thousands:#.3g}".rstrip(".")
    return f"{digits} {' kMGTPE'[thousands]}{unit}"


def shapes(arrays: Sequence[jax.ShapeDtypeStruct]) -> str:
    """Write shapes and dtypes as JAX does, such as `f32[10,64]`."""
    return ", ".join(eqx.tree_pformat(array, struct_as_array=True) for array in arrays)
