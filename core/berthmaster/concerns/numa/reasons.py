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
CROWDED = 10

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
    CROWDED: "zones are not certain yet",
}
_OF_STATES = {
    UNRELIABLE: "pods are there that are not in the topology, its kubelet turned one away since, or its "
    "NodeInventory was deleted",
    MISSING: "no NodeResourceTopology has this node's name",
    STALE: "what started or ended there is not in the topology",
    CROWDED: "pods that ask otherwise are on their way there, or not in the topology yet, and may take what "
    "this one would get; it fits when the topology shows them, if enough is left",
}
# By the words, which are what refusals are counted by.
LABELS = {words: words.title().replace(" ", "") for words in _WORDS.values()}
OF_NODE = frozenset(_OF_STATES)
# The words for what a kubelet would refuse.
ALIGNMENTS = frozenset(words for code, words in _WORDS.items() if code not in OF_NODE)
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


def has_not(code: int, name: str, resource: str) -> Reason:
    """Return the words for a resource that the Node does not have at all."""
    return _reason(code, name, f"asks {resource}, which the node has not")


def uncertain(code: int, name: str, other_scope: str = "") -> Reason:
    """Return the words for a container that fits, if only it were certain where."""
    words = (
        "may get zones of which it is not certain which and how much of each, and so not what is left for "
        "the containers after it"
    )
    return _reason(code, name, words + _help((), other_scope, is_named=False, is_pod=not name))


def cannot_align(
    code: int,
    name: str,
    amounts: Amounts,
    zones: Zones,
    *,
    nearest: tuple[int, Amounts] | None = None,
    limits: Amounts = (),
    other_scope: str = "",
    is_bound: bool = False,
) -> Reason:
    """Return why no zone serves the amounts; `zones` are ids with what is free there.

    `amounts` are only those for which zones are looked at. Names the resource that falls short
    everywhere and the zone that has most of it, else the zones between which the request is torn and
    the `nearest`, with what it has of what is short; then what would help: other `limits`, or the
    `other_scope`. Bound: to the zones of what an init container had.
    """
    short = _short(amounts, zones)
    holding = [id_ for id_, zone in zones if all(zone.get(name, -1) >= it for name, it in amounts)]
    words = short or _torn(amounts, zones, nearest)
    if is_bound and holding:
        words = f"asks {', '.join(map(_amount, amounts))}, which node-{holding[0]} has"
    if is_bound:
        words += "; what init containers had must be used again, which binds it to their zones"
    # What is short everywhere has been named, and is short in the nearest zone, too.
    words += _help(limits, other_scope, is_named=bool(short), is_pod=not name)
    return _reason(code, name, words)


def cannot_align_minimally(
    code: int,
    name: str,
    widths: list[tuple[str, int, int]],
    *,
    limits: Amounts = (),
    other_scope: str = "",
) -> Reason:
    """Return why a restricted kubelet would refuse; `widths` are resource, amount, fewest zones.

    And what would help: other `limits`, or the `other_scope`.
    """
    asked = ", ".join(
        f"{describe(resource, amount)} {resource} in {count} zone{'s' if count > 1 else ''}"
        for resource, amount, count in widths
    )
    detail = f"needs at least {asked}"
    if len({count for _, _, count in widths}) == 1:
        detail += "; no such zones have it free together"
    else:
        detail += (
            "; a restricted kubelet wants the same number for each, so ask more of what needs "
            "fewer zones, or use nodes with policy best-effort"
        )
    detail += _help(limits, other_scope, is_named=False, is_pod=not name)
    return _reason(code, name, detail)


def _reason(code: int, name: str, words: str) -> Reason:
    detail = f"{name or 'the pod'} {words}"
    return Reason(text=f"{_WORDS[code]}: {detail}", group=_WORDS[code], detail=detail)


def _short(amounts: Amounts, zones: Zones) -> str:
    """Return which resource no zone has enough of, empty if there is none."""
    if not zones:
        return f"asks {', '.join(map(_amount, amounts))}, and the node has no NUMA zones"
    for resource, amount in amounts:
        asked = _amount((resource, amount))
        most = max(zone.get(resource, -1) for _, zone in zones)
        if most < 0:
            return f"asks {asked}, which no zone lists"
        if most < amount:
            best = next(id_ for id_, zone in zones if zone.get(resource, -1) == most)
            return f"asks {asked}, best zone node-{best} has {describe(resource, most)}"
    return ""


def _torn(amounts: Amounts, zones: Zones, nearest: tuple[int, Amounts] | None) -> str:
    """Return which zones have enough of what, where none has enough of all."""
    places = "; ".join(
        f"{resource} only in "
        + ", ".join(f"node-{id_}" for id_, zone in zones if zone.get(resource, -1) >= amount)
        for resource, amount in amounts
        if any(zone.get(resource, -1) < amount for _, zone in zones)
    )
    torn = f"asks {', '.join(map(_amount, amounts))}, and no one zone has all of it: {places}"
    if nearest is not None:
        id_, has = nearest
        wanted = dict(amounts)
        short = (f"asks {_amount((it, wanted[it]))}, free {describe(it, free)}" for it, free in has)
        torn += f"; nearest is node-{id_}: {', '.join(short)}"
    return torn


def _help(limits: Amounts, other_scope: str, *, is_named: bool, is_pod: bool) -> str:
    """Return the nearest changes that were found to help, such as `; fits if the limit were 8`."""
    found = []
    together = " together" if is_pod else ""
    if len(limits) > 1:
        found.append(f"if the limits{together} were {', '.join(map(_amount, limits))}")
    for resource, amount in limits if len(limits) == 1 else ():
        what = ("limits" if is_pod else "limit") + ("" if is_named else f" of {resource}")
        found.append(f"if the {what}{together} were {describe(resource, amount)}")
    if other_scope:
        found.append(f"in scope {other_scope}")
    return f"; fits {', or '.join(found)}" if found else ""


def _amount(it: tuple[str, int]) -> str:
    resource, amount = it
    return f"{describe(resource, amount)} {resource}" if amount else resource
