"""A table of text or of HTML, and how numbers and shapes stand in it."""

import html
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax

WIDTH = 100  # of a table of text, at most
_GAP = "  "
# The first columns hold text, which is shortened where it has to be: to these widths if that will
# do, or to the least, which fits whatever the others hold: numbers, rounded to nine characters.
_TEXT = (28, 10, 14, 14)
_LEAST = (16, 8, 13, 13)


class Number(NamedTuple):
    """A number's cell: as it should be, and where there is no room for that."""

    text: str
    short: str


def number(value: int) -> Number:
    """A count, as in `1,234,567`, else `1.23 M`."""
    return Number(f"{value:,}", scaled(value, ""))


def size(value: int) -> Number:
    """A size in bytes, exact below 10,000 B."""
    return Number(text := scaled(value, "B"), text)


def scaled(value: float, unit: str) -> str:
    if value < 10_000:
        return f"{value:,} {unit}".rstrip()
    power = 1
    while value >= 999.5 * 1000**power and power < 6:
        power += 1
    value /= 1000**power
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f} {'kMGTPE'[power - 1]}{unit}"


def shapes(arrays: Sequence[jax.ShapeDtypeStruct]) -> str:
    """Shapes and dtypes as in `(3,) f32`; a dtype that several have in a row is named once."""
    parts = []
    for dtype, group in itertools.groupby(arrays, lambda array: array.dtype):
        for shape, same in itertools.groupby(tuple(array.shape) for array in group):
            times = len(list(same))
            parts.append(f"{times} × {shape}" if times > 1 else str(shape))
        parts[-1] += f" {_short(dtype)}"
    return ", ".join(parts)


def _short(dtype) -> str:
    """A dtype's name as JAX writes it in a jaxpr: f32, bf16, i32, u8, bool."""
    name = str(dtype)
    for long in ("float", "uint", "int", "complex"):
        name = name.replace(long, long[0])
    return name


Cell = str | Number | None  # None: the cell before goes on into this one


def as_text(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Lay out a table, its last row the totals, in at most `WIDTH` columns."""
    full = [[cell.text if isinstance(cell, Number) else cell for cell in row] for row in rows]
    widths = _widths(header, full)
    if _total(widths) > WIDTH:
        short = lambda cell: cell.short if len(cell.text) > 9 else cell.text
        full = [[short(cell) if isinstance(cell, Number) else cell for cell in row] for row in rows]
        widths = _widths(header, full)
    for least in (_TEXT, _LEAST):
        spare = lambda i, least=least: widths[i] - least[i]
        while _total(widths) > WIDTH and spare(widest := max(range(len(least)), key=spare)) > 0:
            widths[widest] -= 1
    *lines, totals = [_line(row, widths) for row in (header, *full)]
    rule = "-" * _total(widths)
    return "\n".join(line.rstrip() for line in (lines[0], rule, *lines[1:], rule, totals))


def _widths(header: Sequence[str], rows: Sequence[Sequence[str | None]]) -> list[int]:
    widths = [len(title) for title in header]
    spanning = []
    for row in rows:
        for i, cell in enumerate(row):
            if cell is not None and row[i + 1 : i + 2] != [None]:
                widths[i] = max(widths[i], len(cell))
            elif cell is not None:
                spanning.append((i, len(cell)))
    for i, width in spanning:
        widths[i + 1] = max(widths[i + 1], width - len(_GAP) - widths[i])
    return widths


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _line(row: Sequence[str | None], widths: Sequence[int]) -> str:
    parts = []
    for i, (cell, width) in enumerate(zip(row, widths, strict=True)):
        if cell is None:
            continue
        if row[i + 1 : i + 2] == [None]:
            width += len(_GAP) + widths[i + 1]
        text = len(_LEAST) > i
        cell = shortened(cell, width, middle=i == 0 or cell.startswith("shared"))
        parts.append(cell.ljust(width) if text else cell.rjust(width))
    return _GAP.join(parts)


def shortened(text: str, width: int, *, middle: bool) -> str:
    """At most `width` characters of a text: without its middle, or without its end."""
    if len(text) <= width:
        return text
    end = (width - 1) // 2 if middle else 0
    return text[: width - 1 - end] + "…" + text[len(text) - end :]


def as_html(header: Sequence[str], rows: Sequence[Sequence[Cell]], caption: str) -> str:
    """The table for a notebook, with nothing shortened."""
    lines = [_html_line("th", header), *(_html_line("td", row) for row in rows)]
    table = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table>{table}</table><p>{html.escape(caption)}</p>"


def _html_line(tag: str, row: Sequence[Cell]) -> str:
    parts = []
    for i, cell in enumerate(row):
        if cell is None:
            continue
        text = html.escape(cell.text if isinstance(cell, Number) else cell)
        span = ' colspan="2"' if row[i + 1 : i + 2] == [None] else ""
        align = "left" if i < len(_LEAST) else "right"
        parts.append(f'<{tag}{span} style="text-align: {align}">{text}</{tag}>')
    return "".join(parts)
