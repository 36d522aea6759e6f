"""The words of kube-scheduler for each refusal, and what is missing."""

from __future__ import annotations

from berthmaster.api.quantities import describe_size
from berthmaster.concerns.resources.across import claim_refusal
from berthmaster.concerns.resources.codes import (
    AFFINITY,
    ATTRACTED,
    CLAIM,
    CORDONED,
    INVALID,
    OBJECTED,
    ONCE_POD,
    PORTS,
    REPELLED,
    SPREAD,
    SPREAD_LABEL,
    TAINTED,
    VOLUME_AFFINITY,
    VOLUME_LIMIT,
    VOLUME_UNBOUND,
    VOLUME_ZONE,
    resource_code,
)
from berthmaster.concerns.resources.columns import ResourcesColumns
from berthmaster.concerns.resources.placement import first_untolerated
from berthmaster.concerns.resources.request import CPU, MEMORY, PODS, ResourcesRequest
from berthmaster.concerns.shape import Reason, Rows

_PLAIN = {
    AFFINITY: "node(s) didn't match Pod's node affinity/selector",
    CORDONED: "node(s) were unschedulable",
    ONCE_POD: (
        "node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode "
        "already in-use by another pod"
    ),
    VOLUME_LIMIT: "node(s) exceed max volume count",
    VOLUME_AFFINITY: "node(s) didn't match PersistentVolume's node affinity",
    VOLUME_UNBOUND: "node(s) didn't find available persistent volumes to bind",
    VOLUME_ZONE: "node(s) had no available volume zone",
    SPREAD_LABEL: ("node(s) didn't match pod topology spread constraints (missing required label)"),
    SPREAD: "node(s) didn't match pod topology spread constraints",
    ATTRACTED: "node(s) didn't match pod affinity rules",
    REPELLED: "node(s) didn't match pod anti-affinity rules",
    OBJECTED: "node(s) didn't satisfy existing pods anti-affinity rules",
}
_PORTS = "node(s) didn't have free ports for the requested pod ports"
_TAINTED = "node(s) had untolerated taint"
_IN_BYTES = (MEMORY, "ephemeral-storage")


def explain_code(
    columns: ResourcesColumns, rows: Rows, code: int, request: ResourcesRequest
) -> Reason:
    """Return the words for the code that the first of `rows` got."""
    row = int(rows[0])
    if code == INVALID:
        words = "; ".join(map(str, request.problems))
        return Reason(text=words, group=words)
    if code in _PLAIN:
        return Reason(text=_PLAIN[code], group=_PLAIN[code])
    if code == CLAIM:
        words = claim_refusal(columns, request.wishes) if request.wishes is not None else ""
        return Reason(text=words, group=words)
    if code == TAINTED:
        taints = columns.taints.sets[columns.taints.ids[row]]
        taint = first_untolerated(taints, request.tolerations)
        named = f" {{{taint.key}: {taint.value}}}" if taint else ""
        return Reason(text=_TAINTED + named, group=f"{_TAINTED}(s)")
    if code == PORTS:
        taken = [it for it in request.usage.ports if columns.ports.taken(it, rows)[0]]
        detail = ", ".join(f"{it.ip}:{it.number}/{it.protocol}" for it in taken)
        return Reason(text=_PORTS, group=_PORTS, detail=f"taken: {detail}")
    return _explain_resource(columns, row, code, request)


def _explain_resource(
    columns: ResourcesColumns, row: int, code: int, request: ResourcesRequest
) -> Reason:
    named = ""
    lacking = []
    for resource, asked in request.usage.amounts:
        capacity, used = columns.amounts(row, resource)
        if asked <= capacity - used:
            continue
        if not named and resource_code(columns.slots.get(resource)) == code:
            named = resource
        free, whole = _show(resource, capacity - used), _show(resource, capacity)
        lacking.append(f"{resource}: asks {_show(resource, asked)}, free {free} of {whole}")
    words = "Too many pods" if named == PODS else f"Insufficient {named or 'resources'}"
    return Reason(text=words, group=words, detail="; ".join(lacking))


def _show(resource: str, amount: int) -> str:
    if resource == CPU:
        return f"{amount / 1000:.3f}".rstrip("0").rstrip(".")
    if resource in _IN_BYTES or resource.startswith("hugepages-"):
        return describe_size(amount)
    return str(amount)
