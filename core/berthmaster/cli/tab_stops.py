"""Text with tabs to columns, as Go's text/tabwriter lays it out with 2 blanks of padding.

A cell is text that ends in a tab; a column is a run of consecutive lines that have a cell at that place,
as wide as its longest cell and two blanks. What stands behind the last tab of a line is in no column, so a
line without tabs ends all runs, and one that ends in a tab keeps blanks at its end.
"""

from __future__ import annotations

from collections.abc import Iterable

_PADDING = 2


def lay_out(lines: Iterable[str]) -> str:
    """Return the lines with their tabs replaced by blanks."""
    rows = [line.split("\t") for line in lines]
    widths = [[0] * (len(row) - 1) for row in rows]
    for column in range(max((len(row) - 1 for row in rows), default=0)):
        run: list[int] = []
        for at, row in enumerate([*rows, []]):
            if len(row) - 1 > column:
                run.append(at)
                continue
            width = max((len(rows[it][column]) for it in run), default=0) + _PADDING
            for it in run:
                widths[it][column] = width
            run = []
    return "".join(
        "".join(cell.ljust(width) for cell, width in zip(row, sizes, strict=False)) + row[-1] + "\n"
        for row, sizes in zip(rows, widths, strict=True)
    )
