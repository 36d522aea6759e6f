"""What the kernel says a process has used: CPU seconds, resident memory, time spent waiting for a core."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process has used since its start; `waited_s`: its main thread was ready, no core was."""

    cpu_s: float
    waited_s: float

    @classmethod
    def of(cls, pid: int) -> Self:
        """Read a living process; ended threads are counted in `cpu_s`, ended children are not."""
        stat = Path(f"/proc/{pid}/stat").read_text()
        # The second field is a name in brackets that may hold anything.
        fields = stat.rpartition(")")[2].split()
        schedule = Path(f"/proc/{pid}/schedstat").read_text().split()
        return cls((int(fields[11]) + int(fields[12])) / _TICKS_PER_S, int(schedule[1]) / _NS)

    def since(self, before: Usage) -> Usage:
        """Return what was used between two readings."""
        return Usage(self.cpu_s - before.cpu_s, self.waited_s - before.waited_s)


def resident_mib(pid: int, *, peak: bool = False) -> float:
    """Return the resident memory of a living process, now or at its highest."""
    wanted = "VmHWM:" if peak else "VmRSS:"
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(wanted):
            return int(line.split()[1]) / 1024
    raise ValueError(f"/proc/{pid}/status has no {wanted}")
