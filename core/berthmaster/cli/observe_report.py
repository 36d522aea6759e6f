"""`observe-report`: for how many pods we would have chosen otherwise than kube-scheduler did, and what that is worth.

Pure: a tally of pods that observe comes in, a report goes out. Savings are what pods would have had taken one by
one; they are an aim and no promise, and the remarks say what cannot be known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from berthmaster.cli import savings, words
from berthmaster.cli.observed import Counts, Gain, Past, Tally
from berthmaster.cli.output import Report, Table
from berthmaster.placement.filling import Resource

NAMESPACES_SHOWN = 20
_HOW = (
    "where a pod would have gone, and what that promised, was written on it when it was created; its own node is "
    "judged now, as if the pod came once more"
)
_ALONE = (
    "each pod is taken by itself: had all of them gone where they were to go, some would have met there, so savings "
    "need not add up to the sum"
)
_GONE = (
    "pods that are deleted are not known any more; a longer look needs the metrics of the webhook"
)


def build_report(tally: Tally, *, notes: Sequence[str] = ()) -> Report:
    """Return everything that was counted."""
    counts, past = tally.counts, tally.overcommit()
    return Report(
        sentence=_sentence(counts),
        facts=tuple(_facts(tally, counts)),
        tables=tuple(_tables(tally, past)),
        remarks=(*(_remarks(tally) if counts.elsewhere else ()), *notes),
        data=_data(tally, counts, past, notes),
    )


def _sentence(counts: Counts) -> str:
    if not counts.bound:
        return "No pod that observes has both a decision and a node."
    what = "1 observed pod is" if counts.bound == 1 else f"{counts.bound} observed pods are"
    return (
        f"{counts.elsewhere} of {what} on another node than Berthmaster would have chosen "
        f"({100 * counts.elsewhere / counts.bound:.0f} %)."
    )


def _facts(tally: Tally, counts: Counts) -> Iterator[tuple[str, str]]:
    yield "As chosen", str(counts.agreeing)
    yield "Elsewhere", f"{counts.elsewhere}, {tally.judged} of them judged"
    yield "No node yet", str(counts.unbound)
    yield "No decision", f"{counts.undecided} (no node fitted, or nobody decided)"
    if tally.turned_away:
        yield (
            "Turned away",
            f"{tally.turned_away} by the kubelet of a node that was not ours to choose",
        )


def _tables(tally: Tally, past: dict[Resource, Past]) -> Iterator[Table]:
    rows = tuple(
        (
            words.title(concern),
            str(gain.judged),
            str(gain.refused),
            _mean(gain.score_there, gain.scored),
            _mean(gain.score_chosen, gain.scored),
            "; ".join(_saved(concern, gain, past)) or "-",
        )
        for concern, gain in sorted(tally.gains.items())
    )
    if rows:
        yield Table(
            title="Pods that are elsewhere, by what they ask",
            headers=(
                "CONCERN",
                "PODS",
                "REFUSED",
                "SCORE THERE",
                "AS CHOSEN",
                "WOULD HAVE SAVED",
            ),
            rows=rows,
            numbers=frozenset({1, 2, 3, 4}),
        )
    if len(tally.by_namespace) > 1:
        yield _namespaces(tally)
    if tally.examples:
        yield Table(
            title="Those that lose most",
            headers=("POD", "IS ON", "CHOSEN", "WHY"),
            rows=tuple(
                (it.pod, it.node, it.chosen, it.why or f"scores {words.number(it.loss)} less")
                for it in tally.examples
            ),
        )


def _namespaces(tally: Tally) -> Table:
    ordered = sorted(tally.by_namespace.items(), key=lambda it: (-it[1].elsewhere, it[0]))
    return Table(
        title="By namespace, the most first",
        headers=("NAMESPACE", "AS CHOSEN", "ELSEWHERE"),
        rows=tuple(
            (name, str(it.agreeing), str(it.elsewhere)) for name, it in ordered[:NAMESPACES_SHOWN]
        ),
        numbers=frozenset({1, 2}),
    )


def _mean(total: float, count: int) -> str:
    return words.number(total / count) if count else "-"


def _saved(concern: str, gain: Gain, past: dict[Resource, Past]) -> Iterator[str]:
    for name, figure in sorted(gain.saved.items()):
        if figure:
            yield savings.describe(name, figure)
    for resource, it in past.items():
        if resource.concern == concern:
            amount = words.amount(it.amount, resource.unit) or f"{it.amount:.4g} {resource.unit}"
            yield f"{amount} of {resource.resource} past the line of {words.nodes(it.nodes)}"


def _remarks(tally: Tally) -> Iterator[str]:
    yield _HOW
    yield _ALONE
    yield _GONE
    if tally.not_judged:
        yield (
            f"{tally.not_judged} of the pods elsewhere are counted and not judged: finished, moved while this was "
            "counted, or more than --judge allows"
        )


def _data(
    tally: Tally, counts: Counts, past: dict[Resource, Past], notes: Sequence[str]
) -> dict[str, Any]:
    return {
        "agreeing": counts.agreeing,
        "elsewhere": counts.elsewhere,
        "unbound": counts.unbound,
        "undecided": counts.undecided,
        "judged": tally.judged,
        "notJudged": tally.not_judged,
        "turnedAway": tally.turned_away,
        "concerns": {
            concern: {
                "pods": gain.judged,
                "refused": gain.refused,
                "scored": gain.scored,
                "meanScoreThere": gain.score_there / gain.scored if gain.scored else None,
                "meanScoreChosen": gain.score_chosen / gain.scored if gain.scored else None,
                "saved": gain.saved,
            }
            for concern, gain in sorted(tally.gains.items())
        },
        "pastTheLine": [
            {
                "concern": it.concern,
                "resource": it.resource,
                "unit": it.unit,
                "amount": past[it].amount,
                "nodes": past[it].nodes,
            }
            for it in past
        ],
        "namespaces": {
            name: {"agreeing": it.agreeing, "elsewhere": it.elsewhere}
            for name, it in sorted(tally.by_namespace.items())
        },
        "examples": [
            {"pod": it.pod, "node": it.node, "chosen": it.chosen, "why": it.why, "loss": it.loss}
            for it in tally.examples
        ],
        "notes": list(notes),
    }
