"""Codes of the NUMA concern, upstream's words for them, and what would help."""

from __future__ import annotations

from berthmaster.concerns.numa.amounts import describe
from berthmaster.concerns.numa.request import INIT, SIDECAR, Amounts
from berthmaster.concerns.shape import Reason

UNRELIABLE = 1
MISSING = 2
STALE = 3
POD = 4
CONTAINER = 5
INIT_CONTAINER = 6
SIDECAR_CONTAINER = 7
MINIMAL_POD = 8
MINIMAL_CONTAINER = 9

_WORDS = {
    UNRELIABLE: "invalid node topology data",
    MISSING: "no node topology data",
    STALE: "stale node topology data",
    POD: "cannot align pod",
    CONTAINER: "cannot align container",
    INIT_CONTAINER: "cannot align init container",
    SIDECAR_CONTAINER: "cannot align sidecar container",
    MINIMAL_POD: "cannot align pod minimally",
    MINIMAL_CONTAINER: "cannot align container minimally",
}
_OF_STATES = {
    UNRELIABLE: "pods are there that are not in the topology",
    MISSING: "no NodeResourceTopology has this node's name",
    STALE: "what started or ended there is not in the topology",
}
Zones = list[tuple[int, dict[str, int]]]


def code_of(kind: str, *, is_pod_scope: bool) -> int:
    """Return the code for what no zone can serve."""
    if is_pod_scope:
        return POD
    return {INIT: INIT_CONTAINER, SIDECAR: SIDECAR_CONTAINER}.get(kind, CONTAINER)


def plain(code: int) -> Reason:
    """Return the words for a code that speaks of the node as a whole."""
    words = _WORDS[code]
    detail = _OF_STATES.get(code, "")
    return Reason(text=f"{words}: {detail}" if detail else words, group=words, detail=detail)


def cannot_align(code: int, name: str, amounts: Amounts, zones: Zones, unknown: str = "") -> Reason:
    """Return why no zone serves the amounts; `zones` are ids with what is free there.

    `amounts` are only those for which zones are looked at. Names the resource that falls short
    everywhere, the zone that has most of it and the request that would fit, else the zones between
    which the request is torn.
    """
    words = _WORDS[code]
    who = f"{name} " if name else "the pod "
    detail = who + (f"asks {unknown}, which the node has not" if unknown else _want(amounts, zones))
    return Reason(text=f"{words}: {detail}", group=words, detail=detail)


def cannot_align_minimally(
    code: int, name: str, widths: list[tuple[str, int, int]], is_full: bool
) -> Reason:
    """Return why a restricted kubelet would refuse; `widths` are resource, amount, fewest zones."""
    words = _WORDS[code]
    who = name or "the pod"
    asked = ", ".join(
        f"{describe(resource, amount)} {resource} in {count} zone{'s' if count > 1 else ''}"
        for resource, amount, count in widths
    )
    detail = f"{who} needs at least {asked}"
    if is_full:
        detail += "; no such zones have it free together"
    else:
        detail += (
            "; a restricted kubelet wants the same number for each, so ask more of what needs "
            "fewer zones, or use nodes with policy best-effort"
        )
    return Reason(text=f"{words}: {detail}", group=words, detail=detail)


def _want(amounts: Amounts, zones: Zones) -> str:
    asked = ", ".join(f"{describe(resource, amount)} {resource}" for resource, amount in amounts)
    if not zones:
        return f"asks {asked}, and the node has no NUMA zones"
    for resource, amount in amounts:
        most = max(zone.get(resource, -1) for _, zone in zones)
        if most < 0:
            return f"asks {describe(resource, amount)} {resource}, which no zone lists"
        if most < amount:
            best = next(id_ for id_, zone in zones if zone.get(resource, -1) == most)
            has = describe(resource, most)
            helps = f"; fits if the limit were {has}" if most and len(amounts) else ""
            others = [it for it in amounts if it[0] != resource]
            best_zone = dict(zones)[best]
            if any(best_zone.get(name, -1) < it for name, it in others):
                helps = ""
            return (
                f"asks {describe(resource, amount)} {resource}, "
                f"best zone node-{best} has {has}{helps}"
            )
    places = "; ".join(
        f"{resource} only in "
        + ", ".join(f"node-{id_}" for id_, zone in zones if zone.get(resource, -1) >= amount)
        for resource, amount in amounts
        if any(zone.get(resource, -1) < amount for _, zone in zones)
    )
    return f"asks {asked}, and no one zone has all of it: {places}"
