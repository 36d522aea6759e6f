"""One finding of the doctor, and how findings are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from berthmaster.cli.doctor.facts import Facts

APPLY = (
    "kubectl apply -k config/default   # of the version that is installed, or your overlay of it"
)


class State(StrEnum):
    """How it stands, the worst last."""

    OK = "ok"
    NOT_CHECKED = "not checked"
    WARNING = "warning"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was found about a part; `way_out` is a command, or what to do in words."""

    part: str
    state: State
    found: str
    way_out: str = ""


Check = Callable[[Facts], Iterator[Finding]]


@dataclass(frozen=True, slots=True)
class Part:
    """Makes the findings of one part."""

    name: str

    def ok(self, found: str) -> Finding:
        """Say that something is as it should be."""
        return Finding(part=self.name, state=State.OK, found=found)

    def not_checked(self, what: str, why: str, way_out: str = "") -> Finding:
        """Say that something could not be looked at, or cannot be told."""
        found = f"{what}: {why}"
        return Finding(part=self.name, state=State.NOT_CHECKED, found=found, way_out=way_out)

    def warning(self, found: str, way_out: str) -> Finding:
        """Say that something works and should not be left so."""
        return Finding(part=self.name, state=State.WARNING, found=found, way_out=way_out)

    def broken(self, found: str, way_out: str) -> Finding:
        """Say that something does not work."""
        return Finding(part=self.name, state=State.BROKEN, found=found, way_out=way_out)


def some(names: list[str] | tuple[str, ...], most: int = 3) -> str:
    """Return `a, b, c, ... (7)`."""
    shown = ", ".join(names[:most])
    return f"{shown}, ... ({len(names)})" if len(names) > most else shown
