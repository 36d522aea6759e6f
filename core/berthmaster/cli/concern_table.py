"""Concerns by node: what every concern says of each node, for a pod that more than one of them speaks to.

A node that fits has the score that each concern gives it, and the total. Of one that does not fit each concern
says `ok` or `no`, asked by itself; a second table has the words of every no. So the first stays narrow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from berthmaster.cli import words
from berthmaster.cli.output import Table
from berthmaster.concerns.shape import Reason
from berthmaster.placement.engine import Verdict

TITLE = "Concerns by node, the best first"
REFUSED_TITLE = "Refused, by which concern and why"
_OK, _NO, _NONE = "ok", "no", "-"
_STYLES = {_OK: "dim", _NO: "red", _NONE: "dim"}
# What every pod asks; it only breaks ties, and stands behind the others.
_LAST = "resources"


def is_wanted(asked: Sequence[str]) -> bool:
    """Return whether more than one concern speaks to the pod, beside the one that always does."""
    return len([it for it in asked if it != _LAST]) > 1


def build(
    verdicts: Sequence[Verdict],
    asked: Sequence[str],
    objections: Mapping[str, Mapping[str, Reason]],
) -> Iterator[Table]:
    """Yield the tables, their rows in the order of the verdicts."""
    columns = sorted(asked, key=lambda it: it == _LAST)
    headers = ("NODE", "TOTAL", *(words.title(it).upper() for it in columns))
    yield Table(
        title=TITLE,
        headers=headers,
        rows=tuple(_row(it, columns, objections.get(it.node, {})) for it in verdicts),
        numbers=frozenset(range(1, len(headers))),
        styles=_STYLES,
    )
    refused = tuple(
        (it.node, words.title(concern), reason.sentence)
        for it in verdicts
        for concern, reason in objections.get(it.node, {}).items()
    )
    if refused:
        yield Table(title=REFUSED_TITLE, headers=("NODE", "CONCERN", "WHY"), rows=refused)


def _row(
    verdict: Verdict, columns: Sequence[str], objections: Mapping[str, Reason]
) -> tuple[str, ...]:
    if verdict.reason is None:
        scores = (words.number(verdict.scores[it]) for it in columns)
        return (verdict.node, words.number(verdict.score), *scores)
    return (verdict.node, _NONE, *(_NO if it in objections else _OK for it in columns))
