"""The report: what was done, what came of it, and every broken promise, as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from berthmaster_sandbox.chaos.plan import Plan
from berthmaster_sandbox.chaos.recount import Kind
from berthmaster_sandbox.chaos.storm import Outcome


def describe(outcome: Outcome) -> str:
    """Return one outcome in a line."""
    first = "never" if outcome.first_s is None else f"{outcome.first_s:.1f} s"
    return (
        f"{outcome.fault}: lasted {outcome.lasted_s:.1f} s, first placement after {first}, "
        f"{outcome.pods} pods counted, {outcome.waiting} wait, {len(outcome.violations)} violations"
    )


def write_report(
    plan: Plan, outcomes: Sequence[Outcome], tally: Mapping[str, int], *, seconds: float
) -> str:
    """Return the report of a run."""
    violations = [it for outcome in outcomes for it in outcome.violations]
    by_kind = Counter(it.kind for it in violations)
    lines = [
        f"Seed {plan.seed}, {plan.nodes} nodes, {seconds:.0f} s; pods: "
        + ", ".join(f"{count} {what}" for what, count in tally.items()),
        "",
        *_table(
            (
                "fault",
                "times",
                "lasted s",
                "first placement after s",
                "slowest create s",
                "excused",
            ),
            _rows(outcomes),
        ),
        "",
        *_table(("broken promise", "times"), ((it.value, str(by_kind.get(it, 0))) for it in Kind)),
    ]
    if violations:
        lines += ["", *(f"* {o.fault}: {it}" for o in outcomes for it in o.violations)]
    return "\n".join(lines)


def _rows(outcomes: Sequence[Outcome]) -> Iterable[tuple[str, ...]]:
    for name in sorted({it.fault for it in outcomes}):
        its = [it for it in outcomes if it.fault == name]
        yield (
            name,
            str(len(its)),
            _range([it.lasted_s for it in its]),
            _range([it.first_s for it in its if it.first_s is not None]),
            f"{max(it.slowest_s for it in its):.1f}",
            str(sum(it.excused for it in its)),
        )


def _range(numbers: Sequence[float]) -> str:
    if not numbers:
        return "never"
    low, high = min(numbers), max(numbers)
    return f"{low:.1f}" if f"{low:.1f}" == f"{high:.1f}" else f"{low:.1f}..{high:.1f}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(header)} |",
        f"|{'---|' * len(header)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
