"""What is written on a pod, as JSON Patch operations: the pin, the gate taken off, annotations.

The operations fit the pod exactly as given, raw JSON data from an AdmissionReview or the API.
Missing levels are created; lists that somebody else wrote are only appended to, which is what the
API server allows on a stored pod that is still gated (the old list must be a prefix of the new one,
term by term). So one function pins both a pod that is being created and one that waits at the gate.

The operations of one function do not depend on those of another and may be joined in any order;
only annotations of one patch must be given together, since the first of them may create the map.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict, cast

import msgspec
from msgspec.structs import replace

from berthmaster.api.json_pointer import escape
from berthmaster.api.names import NODE_NAME_FIELD
from berthmaster.api.objects import NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod

Operation = dict[str, Any]
RawPod = Mapping[str, Any]


class _Metadata(TypedDict, total=False):
    uid: Any
    resourceVersion: Any
    annotations: Any


class _Spec(TypedDict, total=False):
    nodeSelector: Any
    affinity: Any
    schedulingGates: Any


class _Parts(TypedDict, total=False):
    metadata: _Metadata
    spec: _Spec


_decode_parts = msgspec.json.Decoder(_Parts).decode

_AFFINITY = "/spec/affinity"
_NODE_AFFINITY = f"{_AFFINITY}/nodeAffinity"
REQUIRED_KEY = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED_KEY = "preferredDuringSchedulingIgnoredDuringExecution"
TERMS_KEY = "nodeSelectorTerms"
_GATES = "/spec/schedulingGates"
_ANNOTATIONS = "/metadata/annotations"


def read_parts(raw: bytes | msgspec.Raw) -> RawPod:
    """Return of a pod's JSON what the functions here and in `injecting` look at, a tenth of it."""
    return cast(RawPod, _decode_parts(raw))


def pin_at_creation(pod: RawPod, node: str) -> list[Operation]:
    """Return what requires the node in addition to everything that the pod requires already.

    The node's name is AND-ed into every term, as the last of its `matchFields`; terms that are
    empty match no node and stay so, as does a list without terms. A term that carries the same
    pin already is left alone, so on its own output this returns nothing.

    A term that names another node cannot match any more. Whether a term is left is for `can_pin`,
    and for the resources concern, whose filter accepts only nodes that the pod's terms accept.
    """
    node_affinity, operations = _node_affinity(pod, REQUIRED_KEY, {TERMS_KEY: [_term(node)]})
    if operations:
        return operations
    terms = node_affinity[REQUIRED_KEY].get(TERMS_KEY) or ()
    for index, term in enumerate(terms):
        fields = term.get("matchFields")
        path = f"{_NODE_AFFINITY}/{REQUIRED_KEY}/{TERMS_KEY}/{index}/matchFields"
        if _is_empty(term) or _requirement(node) in (fields or ()):
            continue
        if fields is None:
            operations.append(_add(path, [_requirement(node)]))
        else:
            operations.append(_add(f"{path}/-", _requirement(node)))
    return operations


def unpinned(pod: Pod, node: str) -> Pod:
    """Return a pod as it was before it was pinned to a node; one that was not stays as it is."""
    affinity = pod.spec.affinity
    own = affinity.node_affinity if affinity is not None else None
    if affinity is None or own is None or own.required is None:
        return pod
    pin = NodeSelectorRequirement(key=NODE_NAME_FIELD, operator="In", values=[node])
    terms = own.required.node_selector_terms or []
    bare = [_without(it, pin) for it in terms]
    if bare == terms:
        return pod
    kept = [it for it in bare if it.match_expressions or it.match_fields]
    required = NodeSelector(node_selector_terms=kept) if kept else None
    before = replace(affinity, node_affinity=replace(own, required=required))
    return replace(pod, spec=replace(pod.spec, affinity=before))


def pin_gated(pod: RawPod, node: str) -> list[Operation]:
    """Return the same for a stored pod that carries a gate; send it with `guard` and `remove_gate`."""
    return pin_at_creation(pod, node)


def can_pin(pod: RawPod, node: str) -> bool:
    """Return whether a term would be left that can match the node, looking only at names.

    Labels are not looked at. False where each term is empty, names another node, or excludes this
    one; such a pin would leave the pod waiting for ever.
    """
    affinity = pod.get("spec", {}).get("affinity") or {}
    required = (affinity.get("nodeAffinity") or {}).get(REQUIRED_KEY)
    if required is None:
        return True
    return any(
        not _is_empty(term) and all(_allows(it, node) for it in term.get("matchFields") or ())
        for term in required.get(TERMS_KEY) or ()
    )


def prefer(weights: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return preferred terms for nodes, each by a weight of 1..100; `injecting` adds them to a pod."""
    return [{"weight": weight, "preference": _term(node)} for node, weight in weights.items()]


def set_node_affinity(pod: RawPod, parts: Mapping[str, object]) -> list[Operation]:
    """Return what sets parts of the node affinity whole, with the levels above where they are missing."""
    affinity = pod.get("spec", {}).get("affinity")
    if affinity is None:
        return [_add(_AFFINITY, {"nodeAffinity": dict(parts)})]
    if affinity.get("nodeAffinity") is None:
        return [_add(_NODE_AFFINITY, dict(parts))]
    return [_add(f"{_NODE_AFFINITY}/{key}", value) for key, value in parts.items()]


def bind(node: str) -> list[Operation]:
    """Return what sets the node of a pod that is being created; a stored pod cannot be changed so."""
    return [_add("/spec/nodeName", node)]


def remove_gate(pod: RawPod, gate: str) -> list[Operation]:
    """Return what takes the gate off, tested first; nothing if the pod does not carry it.

    With the last gate the list goes too, so that the pod looks as if it never had one.
    """
    gates = pod.get("spec", {}).get("schedulingGates") or ()
    index = next((i for i, it in enumerate(gates) if it.get("name") == gate), None)
    if index is None:
        return []
    path = f"{_GATES}/{index}"
    return [
        _test(f"{path}/name", gate),
        {"op": "remove", "path": _GATES if len(gates) == 1 else path},
    ]


def annotate(pod: RawPod, key: str, value: str) -> list[Operation]:
    """Return what sets one annotation. For more than one in a patch use `annotate_all`."""
    return annotate_all(pod, {key: value})


def annotate_all(pod: RawPod, annotations: Mapping[str, str]) -> list[Operation]:
    """Return what sets annotations, leaving others and those that hold the value already alone."""
    known = pod.get("metadata", {}).get("annotations")
    if known is None:
        return [_add(_ANNOTATIONS, dict(annotations))] if annotations else []
    return [
        _add(f"{_ANNOTATIONS}/{escape(key)}", value)
        for key, value in annotations.items()
        if known.get(key) != value
    ]


def guard(pod: RawPod) -> list[Operation]:
    """Return the tests that let a patch through only on this very pod in this very version."""
    metadata = pod["metadata"]
    return [
        _test("/metadata/uid", metadata["uid"]),
        _test("/metadata/resourceVersion", metadata["resourceVersion"]),
    ]


def _without(term: NodeSelectorTerm, pin: NodeSelectorRequirement) -> NodeSelectorTerm:
    fields = [it for it in term.match_fields or () if it != pin]
    return (
        term if fields == (term.match_fields or []) else replace(term, match_fields=fields or None)
    )


def _node_affinity(
    pod: RawPod, key: str, value: object
) -> tuple[Mapping[str, Any], list[Operation]]:
    """Return the node affinity, and what sets `key` in it where that or a level above is missing."""
    node_affinity = (pod.get("spec", {}).get("affinity") or {}).get("nodeAffinity") or {}
    if node_affinity.get(key) is not None:
        return node_affinity, []
    return {}, set_node_affinity(pod, {key: value})


def _requirement(node: str) -> dict[str, Any]:
    return {"key": NODE_NAME_FIELD, "operator": "In", "values": [node]}


def _term(node: str) -> dict[str, Any]:
    return {"matchFields": [_requirement(node)]}


def _is_empty(term: Mapping[str, Any]) -> bool:
    return not term.get("matchExpressions") and not term.get("matchFields")


def _allows(field: Mapping[str, Any], node: str) -> bool:
    named = node in (field.get("values") or ())
    return named if field.get("operator") == "In" else not named


def _add(path: str, value: object) -> Operation:
    return {"op": "add", "path": path, "value": value}


def _test(path: str, value: object) -> Operation:
    return {"op": "test", "path": path, "value": value}
