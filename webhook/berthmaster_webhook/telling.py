"""What a log line about a pod says of it: which pod, and by which decision it was placed, if it was."""

from __future__ import annotations

from berthmaster.api import names
from berthmaster.api.allocation import read_allocation
from berthmaster.api.objects import Pod


def about(pod: Pod, decision_id: str = "", **fields: object) -> dict[str, object]:
    """Return the line's fields; without an id it is the one that stands on the pod."""
    if not decision_id:
        allocation = read_allocation(pod.annotations.get(names.ALLOCATION))
        decision_id = allocation.id if allocation is not None else ""
    told = {"decision": decision_id} if decision_id else {}
    return {"pod": pod.key, **told, **fields}
