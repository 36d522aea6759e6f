"""Numbers made ready to read: percentiles, spread, and tables as docs/benchmarks.md has them."""

from __future__ import annotations

import os
import platform
import statistics
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that so many percent of the values do not exceed."""
    ordered = sorted(values)
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(0, int(rank) - 1)]


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Return `median (lowest-highest)`."""
    middle = statistics.median(values)
    if len(values) == 1:
        return f"{middle:.{digits}f}"
    return f"{middle:.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table; columns whose cells all begin with a digit stand to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    right = [
        all(row[index][:1].isdigit() or row[index][:1] in "-<>" for row in cells)
        for index in range(len(header))
    ]
    lines = [
        f"| {' | '.join(header)} |",
        f"| {' | '.join('---:' if it else '---' for it in right)} |",
        *(f"| {' | '.join(row)} |" for row in cells),
    ]
    return "\n".join(lines)


def circumstances() -> str:
    """Return when and where this ran, and how busy the machine was over the last minute."""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    load = " ".join(f"{it:.1f}" for it in os.getloadavg())
    return (
        f"{now}; {os.cpu_count()} cores of {_processor()}; "
        f"Python {platform.python_version()}; load average {load}"
    )


def command() -> str:
    """Return the command line that this process was started with."""
    return " ".join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])


def report(title: str, *parts: str) -> None:
    """Print a section: what was run, when and where, then the parts."""
    print(f"\n## {title}\n\n    {command()}\n\n{circumstances()}\n")
    for part in parts:
        print(f"{part}\n", flush=True)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
