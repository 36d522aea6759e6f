"""The doctor's report: every finding, then what to do, in an order in which it makes sense."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from berthmaster.cli.doctor import (
    accelerators,
    calling,
    certificates,
    datasets,
    definitions,
    gating,
    inventories,
    leading,
    neighbours,
    pods,
    policies,
    powers,
    probing,
    programs,
    rights,
    topologies,
    workloads,
)
from berthmaster.cli.doctor.facts import Facts
from berthmaster.cli.doctor.findings import Check, Finding, Part, State
from berthmaster.cli.output import Report, Table
from berthmaster.cluster.errors import ClusterError

API_SERVER = Part("API server")
# What everything else rests on comes first.
CHECKS: tuple[Check, ...] = (
    definitions.check,
    rights.check,
    programs.check,
    leading.check,
    gating.check,
    calling.check,
    certificates.check,
    neighbours.check,
    probing.check,
    policies.check,
    inventories.check,
    topologies.check,
    datasets.check,
    powers.check,
    accelerators.check,
    workloads.check,
    pods.check,
)
_STYLES = {
    State.OK.value: "green",
    State.WARNING.value: "yellow",
    State.BROKEN.value: "bold red",
    State.NOT_CHECKED.value: "dim",
}
_ORDER = list(State)


def diagnose(facts: Facts) -> list[Finding]:
    """Return all findings, part by part."""
    found = [API_SERVER.ok(f"answers, Kubernetes {facts.server_version}")]
    for check in CHECKS:
        found.extend(check(facts))
    return found


def unreachable(error: ClusterError) -> list[Finding]:
    """Return the one finding that there is where nothing could be asked."""
    return [API_SERVER.broken(" ".join(str(error).split()), "kubectl cluster-info")]


def worst(findings: Sequence[Finding]) -> State:
    """Return the worst state."""
    return max((it.state for it in findings), key=_ORDER.index, default=State.OK)


def is_broken(findings: Sequence[Finding]) -> bool:
    """Return whether something does not work."""
    return worst(findings) is State.BROKEN


def build_report(findings: Sequence[Finding]) -> Report:
    """Return the findings as a table, and the ways out as commands to copy."""
    steps = dict.fromkeys((it.part, it.way_out) for it in findings if it.way_out)
    return Report(
        sentence=_sentence(findings),
        tables=(
            Table(
                title="Findings",
                headers=("PART", "STATE", "FOUND"),
                rows=tuple((it.part, it.state.value, it.found) for it in findings),
                styles=_STYLES,
            ),
        ),
        steps=tuple(steps),
        data={
            "state": worst(findings).value,
            "findings": [
                {
                    "part": it.part,
                    "state": it.state.value,
                    "found": it.found,
                    "wayOut": it.way_out or None,
                }
                for it in findings
            ],
        },
    )


def _sentence(findings: Sequence[Finding]) -> str:
    counts = Counter(it.state for it in findings)
    if set(counts) <= {State.OK}:
        return f"Berthmaster is well: {counts[State.OK]} findings, all ok."
    parts = [f"{counts[state]} {state.value}" for state in reversed(_ORDER) if counts[state]]
    word = {
        State.BROKEN: "Berthmaster is broken",
        State.WARNING: "Berthmaster works, with warnings",
        State.NOT_CHECKED: "Berthmaster is well as far as could be checked",
    }[worst(findings)]
    return f"{word}: {', '.join(parts)}."
