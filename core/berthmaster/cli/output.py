"""How answers look: tables with colour on a terminal, plain aligned text in a pipe, or JSON.

A command makes a `Report` and knows nothing of where it goes. Plain text holds the same words as the
terminal, in columns that `awk` and eyes can read, and is never cut to a width.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_GAP = "   "
# Those of C0 but tab and end of line, and all of C1.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows under headers; columns in `numbers` (by index) are aligned to the right.

    `styles` are colours, on a terminal, of cells that have just that text.
    """

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: frozenset[int] = frozenset()
    styles: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """An answer: one sentence, facts by name, tables, remarks; `data` is all of it for programs.

    `steps` are what to do, (about what, command): never broken into lines, so that they can be copied.
    """

    sentence: str
    data: dict[str, Any]
    facts: tuple[tuple[str, str], ...] = ()
    tables: tuple[Table, ...] = ()
    steps: tuple[tuple[str, str], ...] = ()
    remarks: tuple[str, ...] = ()


def show(report: Report, *, as_json: bool, out: TextIO | None = None) -> None:
    """Write a report in the form that fits where it goes."""
    stream = sys.stdout if out is None else out
    if as_json:
        text = json.dumps(report.data, indent=2, ensure_ascii=False) + "\n"
        stream.write(_CONTROLS.sub(lambda it: f"\\u{ord(it[0]):04x}", text))
    elif stream.isatty():
        render_rich(report, stream)
    else:
        stream.write(render_plain(report))


def render_plain(report: Report) -> str:
    """Return a report as aligned text."""
    blocks = [report.sentence]
    if report.facts:
        width = max(len(name) for name, _ in report.facts) + 1
        blocks.append("\n".join(f"{name + ':':<{width}} {text}" for name, text in report.facts))
    for table in report.tables:
        lines = _align((table.headers, *table.rows), table.numbers)
        blocks.append("\n".join((f"{table.title}:", *lines)))
    if report.steps:
        lines = [f"  {about}:\n    {step}" for about, step in report.steps]
        blocks.append("\n".join(("What to do:", *lines)))
    if report.remarks:
        blocks.append("\n".join(f"note: {remark}" for remark in report.remarks))
    return _legible("\n\n".join(blocks) + "\n")


def render_rich(report: Report, stream: TextIO, *, width: int | None = None) -> None:
    """Write a report with rich, as wide as the terminal unless told."""
    # Late: a pipe and JSON do not pay for it.
    from rich.console import Console
    from rich.table import Table as RichTable

    console = Console(file=stream, width=width, highlight=False, soft_wrap=False)
    console.print(_text(report.sentence, style="bold"))
    if report.facts:
        grid = RichTable.grid(padding=(0, 2))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(overflow="fold")
        for name, text in report.facts:
            grid.add_row(name, _text(text))
        console.print()
        console.print(grid)
    for table in report.tables:
        print_table(console, table)
    if report.steps:
        console.print()
        console.print(_text("What to do", style="bold cyan"))
    for about, step in report.steps:
        console.print(_text(f" {about}:", style="dim"))
        console.print(_text(f"   {step}"), soft_wrap=True)
    if report.remarks:
        console.print()
    for remark in report.remarks:
        console.print(_text(f"note: {remark}", style="yellow"))


def print_table(console: Console, table: Table) -> None:
    """Print one table on a console of rich, under its title."""
    from rich import box
    from rich.table import Table as RichTable

    shown = RichTable(box=box.SIMPLE_HEAD, show_edge=False, header_style="bold")
    for index, header in enumerate(table.headers):
        is_last = index == len(table.headers) - 1
        shown.add_column(
            header,
            justify="right" if index in table.numbers else "left",
            overflow="fold",
            ratio=1 if is_last and index not in table.numbers else None,
        )
    for row in table.rows:
        shown.add_row(*(_text(cell, style=table.styles.get(cell, "")) for cell in row))
    console.print()
    console.print(_text(table.title, style="bold cyan"))
    console.print(shown)


def _text(words: str, style: str = "") -> Text:
    from rich.text import Text

    return Text(_legible(words), style=style)


def _legible(text: str) -> str:
    """Return a text that does nothing to a terminal: what users write on pods is shown, too."""
    return _CONTROLS.sub(lambda it: f"\\x{ord(it[0]):02x}", text)


def _align(rows: Sequence[tuple[str, ...]], numbers: Iterable[int]) -> list[str]:
    right = frozenset(numbers)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  "
        + _GAP.join(
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
