"""What a turn of one mode cost, and the tables of many turns.

Ratios are of two modes in the same round, which ran one after the other; the table tells their median and
their extremes over the rounds, so that a round in which somebody else used the machine stands apart.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from benching import figures

READS, BYTES = "reads", "bytes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """The figures of one mode in one turn."""

    pods_per_s: float
    latencies_ms: list[float]
    cpu_ms: Mapping[str, float]
    waited: float
    counts: Mapping[str, float]
    outcomes: Mapping[str, float]

    @property
    def writes(self) -> dict[str, float]:
        """Return the requests per pod that change something."""
        return {name: count for name, count in self.counts.items() if name not in (READS, BYTES)}

    @property
    def requests(self) -> float:
        """Return the requests per pod, those that only read included."""
        return sum(self.writes.values()) + self.counts.get(READS, 0.0)

    @property
    def cpu_sum_ms(self) -> float:
        """Return the CPU per pod of all processes together."""
        return sum(self.cpu_ms.values())


Turns = Mapping[str, list[Turn]]
# Which modes are held against each other, the letters that stand for them, and what is aimed at in pods per second.
RATIOS = (
    ("(b)/(a)", "required", "plain", "1.0"),
    ("(c)/(a)", "bind", "plain", "1.5"),
    ("(d)/(a)", "queue", "plain", "-"),
    ("(e)/(b)", "five", "required", "0.6"),
)


def all_tables(turns: Turns) -> tuple[str, ...]:
    """Return every table that has rows."""
    makers = (_summary, _ratios, _by_process, _by_write, _by_outcome)
    return tuple(text for maker in makers if (text := maker(turns)))


def _summary(turns: Turns) -> str:
    rows = []
    for mode, its in turns.items():
        latencies = [ms for turn in its for ms in turn.latencies_ms]
        rows.append(
            (
                mode,
                figures.spread([turn.pods_per_s for turn in its], 0),
                f"{figures.percentile(latencies, 50):.0f}",
                f"{figures.percentile(latencies, 99):.0f}",
                figures.spread([turn.cpu_sum_ms for turn in its]),
                figures.spread([sum(turn.writes.values()) for turn in its], 2),
                figures.spread([turn.requests for turn in its], 2),
                figures.spread([turn.counts[BYTES] / 1024 for turn in its]),
                figures.spread([turn.waited for turn in its], 1),
            )
        )
    header = (
        *("mode", "pods/s", "p50 ms", "p99 ms", "CPU ms/pod", "writes/pod", "requests/pod"),
        *("etcd KiB/pod", "processes waiting for a core"),
    )
    return figures.table(header, rows)


def _ratios(turns: Turns) -> str:
    """Return the ratios of modes that were both there; empty if none were."""
    rows = []
    for name, mode, base, aim in RATIOS:
        if mode in turns and base in turns:
            pairs = list(zip(turns[mode], turns[base], strict=True))
            speeds = [one.pods_per_s / other.pods_per_s for one, other in pairs]
            costs = [one.cpu_sum_ms / other.cpu_sum_ms for one, other in pairs]
            words = f"{name} {mode} to {base}"
            rows.append((words, figures.spread(speeds, 2), aim, figures.spread(costs, 2)))
    header = ("ratio", "of pods/s", "at least", "of CPU per pod")
    return figures.table(header, rows) if rows else ""


def _by_process(turns: Turns) -> str:
    names = list(next(iter(turns.values()))[0].cpu_ms)
    rows = [
        (name, *(figures.spread([turn.cpu_ms[name] for turn in turns[mode]], 2) for mode in turns))
        for name in names
    ]
    return figures.table(("CPU ms per pod", *turns), rows)


def _by_write(turns: Turns) -> str:
    medians = {
        mode: {
            name: statistics.median(turn.writes.get(name, 0.0) for turn in its)
            for name in sorted({name for turn in its for name in turn.writes})
        }
        for mode, its in turns.items()
    }
    names = sorted(
        {name for its in medians.values() for name, count in its.items() if count >= 0.01}
    )
    rows = [
        (f"`{name}`", *(f"{medians[mode].get(name, 0.0):.2f}" for mode in turns)) for name in names
    ]
    return figures.table(("writes per pod", *turns), rows)


def _by_outcome(turns: Turns) -> str:
    """Say what the webhook answered, in the modes that reach it."""
    rows = []
    for mode, its in turns.items():
        names = sorted({name for turn in its for name in turn.outcomes})
        for name in names:
            shares = [turn.outcomes.get(name, 0.0) for turn in its]
            rows.append((mode, name, figures.spread(shares, 3)))
    return figures.table(("mode", "outcome", "answers per pod"), rows) if rows else ""
