"""Build the patch that sets one condition of a pod or node, and tell when none is needed.

Pure. Conditions are a list keyed by `type` in built-in kinds, so a strategic merge patch to the
`status` subresource touches only our own entry and races with nobody. For custom resources, where
that patch language does not exist, `merged_conditions` gives the full list.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from berthmaster.cluster.client import JsonObject

ConditionStatus = Literal["True", "False", "Unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """State what a condition shall say; `type` of our own is a qualified name."""

    type: str
    status: ConditionStatus
    reason: str
    message: str = ""


def rfc3339(moment: datetime) -> str:
    """Write a time as Kubernetes' `Time`: UTC, whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def condition_patch(
    wanted: Condition,
    existing: Iterable[Mapping[str, object]],
    *,
    now: datetime,
    uid: str | None = None,
    heartbeat: bool = False,
) -> JsonObject | None:
    """Return a strategic merge patch for `/status`, or None if the condition says it all already.

    `lastTransitionTime` changes only with the status. `uid` makes the API server refuse the patch
    (422, the uid is immutable) for another object of the same name. `heartbeat` (nodes) writes `lastHeartbeatTime`, and
    so always gives a patch.
    """
    entry = _entry(wanted, existing, now=now)
    if entry is None and not heartbeat:
        return None
    if entry is None:
        entry = {"type": wanted.type}
    if heartbeat:
        entry["lastHeartbeatTime"] = rfc3339(now)
    patch: JsonObject = {"status": {"conditions": [entry]}}
    if uid is not None:
        patch["metadata"] = {"uid": uid}
    return patch


def merged_conditions(
    wanted: Condition, existing: Iterable[Mapping[str, object]], *, now: datetime
) -> list[JsonObject] | None:
    """Return the whole list with the condition set, in stable order, or None if nothing changes."""
    before = [dict(condition) for condition in existing]
    entry = _entry(wanted, before, now=now)
    if entry is None:
        return None
    if not any(condition.get("type") == wanted.type for condition in before):
        return [*before, entry]
    return [
        {**condition, **entry} if condition.get("type") == wanted.type else condition
        for condition in before
    ]


def _entry(
    wanted: Condition, existing: Iterable[Mapping[str, object]], *, now: datetime
) -> JsonObject | None:
    entry: JsonObject = {
        "type": wanted.type,
        "status": wanted.status,
        "reason": wanted.reason,
        "message": wanted.message,
    }
    old = next((each for each in existing if each.get("type") == wanted.type), None)
    if old is not None and all((old.get(key) or "") == text for key, text in entry.items()):
        return None
    if old is None or old.get("status") != wanted.status:
        entry["lastTransitionTime"] = rfc3339(now)
    return entry
