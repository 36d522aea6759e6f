"""`why --full`: the whole table of a decision as the leader has it in its memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from berthmaster.cli import words
from berthmaster.cli.errors import CommandError
from berthmaster.cli.output import Report, Table
from berthmaster.cli.reaching import Leader


async def fetch(leader: Leader, pod: str, decision_id: str) -> dict[str, Any]:
    """Return the decision, or the last one about the pod where its id is not known.

    Raises CommandError where the leader has it no more.
    """
    found = await leader.get_json(
        "/decisions", **({"id": decision_id} if decision_id else {"pod": pod})
    )
    if found is None:
        raise CommandError(
            f"the leader has no decision about {pod} in its memory: it keeps the last 10,000 of its own "
            "time; `why` without --full works out what holds now"
        )
    return found


def add_table(report: Report, told: Mapping[str, Any], *, nodes_shown: int) -> Report:
    """Return the report with the decision's table."""
    at = datetime.fromtimestamp(told["time"], UTC)
    when = f"{at:%Y-%m-%d %H:%M:%S} UTC"
    data = {**report.data, "table": told}
    rows = told["table"]
    if rows is None:
        remark = f"the decision {told['id']} of {when} is known, its table had to make room for later ones"
        return replace(report, data=data, remarks=(*report.remarks, remark))
    concerns = list(dict.fromkeys(name for row in rows for name in row.get("scores", ())))
    shown = tuple(_row(row, concerns) for row in rows[:nodes_shown])
    table = Table(
        title=f"Decision {told['id']} of {when}",
        headers=("NODE", "TOTAL", *(words.title(it).upper() for it in concerns), "REFUSED"),
        rows=shown,
        numbers=frozenset(range(1, len(concerns) + 2)),
    )
    remarks = report.remarks
    if len(rows) > nodes_shown:
        hidden = words.nodes(len(rows) - nodes_shown)
        remarks = (*remarks, f"{hidden} not shown: see --nodes, or -o json for all")
    return replace(report, data=data, tables=(*report.tables, table), remarks=remarks)


def _row(row: Mapping[str, Any], concerns: list[str]) -> tuple[str, ...]:
    if "refused" in row:
        return (row["node"], "-", *("-" for _ in concerns), row["refused"])
    scores = (words.number(row["scores"][it]) for it in concerns)
    return (row["node"], words.number(row["score"]), *scores, "-")
