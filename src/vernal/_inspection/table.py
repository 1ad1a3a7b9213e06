"""A model's table as text or as HTML, and how numbers and shapes are written in it."""

import html
import io
import itertools
import re
import shutil
import sys
from collections.abc import Mapping, Sequence

import jax

WIDTH = 100  # columns of a table that is not printed to a terminal

# The columns of text, each with the width that it can do with; the other columns hold numbers.
_TEXT = {"path": 32, "layer": 12, "input": 14, "output": 14}

# A table: for each title the cells below it. The last of them are the totals.
Columns = Mapping[str, Sequence[str]]


def as_text(columns: Columns, *, optional: Sequence[str]) -> str:
    """Lay out a table in the width of the terminal, or else in 100 columns.

    Args:
        columns: The table.
        optional: The titles of columns to leave out, one by one, until the others have room.
    """
    # Imported here, because rich takes a while to import.
    import rich.box
    import rich.console
    import rich.table
    import rich.text

    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if is_terminal else WIDTH
    shown = dict(columns)
    for title in optional:
        if _least_width(shown) > width:
            del shown[title]

    table = rich.table.Table(
        box=rich.box.SIMPLE, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), show_footer=True
    )
    for title, cells in shown.items():
        table.add_column(
            title,
            footer=cells[-1],
            justify="left" if title in _TEXT else "right",
            no_wrap=title not in ("layer", "input", "output"),
            overflow="ellipsis" if title == "layer" else "fold",
        )
    for cells in list(zip(*shown.values(), strict=True))[:-1]:
        # A `Text` is shown as it is: in a string, rich takes "[0]" for markup.
        table.add_row(*(rich.text.Text(cell) for cell in cells))

    file = io.StringIO()
    rich.console.Console(file=file, width=width, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def _least_width(columns: Columns) -> int:
    """Return the width that a table needs if text is shortened or wrapped."""
    gap = 2
    widths = []
    for title, cells in columns.items():
        longest = max(len(cell) for cell in (title, *cells))
        widths.append(min(longest, _TEXT.get(title, longest)) + gap)
    return sum(widths) - gap


def as_html(columns: Columns) -> str:
    """Lay out a table for a notebook."""

    def line(tag: str, cells: Sequence[str]) -> str:
        parts = []
        for title, cell in zip(columns, cells, strict=True):
            align = "left" if title in _TEXT else "right"
            parts.append(f'<{tag} style="text-align: {align}">{html.escape(cell)}</{tag}>')
        return f"<tr>{''.join(parts)}</tr>"

    lines = [line("th", list(columns))]
    lines += [line("td", cells) for cells in zip(*columns.values(), strict=True)]
    return f"<table>{''.join(lines)}</table>"


def shortened(path: str) -> str:
    """Shorten a path that is too long for its column: its end says more than its beginning."""
    most = _TEXT["path"]
    return path if len(path) <= most else "…" + path[len(path) - most + 1 :]


def count(value: int) -> str:
    """Write a count: exact below a million, as in `12,345`, and else as in `1.23 M`."""
    return f"{value:,}" if value < 1_000_000 else scaled(value, "")


def size(value: int) -> str:
    """Write a size in bytes, exact below 10,000 B, and else as in `4.50 MB`."""
    return scaled(value, "B")


def scaled(value: float, unit: str) -> str:
    """Write a number exactly below 10,000, and else with three digits and a prefix for its unit."""
    if value < 10_000:
        return f"{value:,} {unit}".rstrip()
    prefix = 0
    while value >= 999.5 and prefix < 6:
        value /= 1000
        prefix += 1
    digits = f"{value:#.3g}".rstrip(".")
    return f"{digits} {' kMGTPE'[prefix]}{unit}"


def shapes(arrays: Sequence[jax.ShapeDtypeStruct]) -> str:
    """Write shapes and dtypes, as in `3 × (10, 64) f32`: equal neighbors once.

    A dtype has its name in a jaxpr: f32, bf16, i32, u8, bool.
    """
    parts = []
    for (shape, dtype), same in itertools.groupby(arrays, lambda array: (array.shape, array.dtype)):
        short = re.sub("float|uint|int|complex", lambda match: match[0][0], str(dtype))
        count = len(list(same))
        times = f"{count} × " if count > 1 else ""
        parts.append(f"{times}{shape} {short}")
    return ", ".join(parts)
