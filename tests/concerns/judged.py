"""An engine with the resources concern alone, asked in one line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from berthmaster.api.objects import Namespace, ObjectMeta, Pod, pod_from_manifest
from berthmaster.api.policy import PlacementPolicySpec
from berthmaster.concerns.resources import CONCERN
from berthmaster.concerns.shape import Surrounding
from berthmaster.placement.engine import Engine
from berthmaster.placement.shapes import PodRequest
from support.builders import make_node, make_pod_manifest

Manifest = dict[str, Any]

ZONE, HOST = "topology.kubernetes.io/zone", "kubernetes.io/hostname"
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


class Judged:
    """Nodes by name with their zone; pods, namespaces and storage as a test adds them."""

    def __init__(self, zones: dict[str, str], *, labels: dict[str, Manifest] | None = None) -> None:
        self.engine = Engine([CONCERN])
        self.serial = 0
        for name, zone in zones.items():
            own = {HOST: name, **({ZONE: zone} if zone else {}), **(labels or {}).get(name, {})}
            self.engine.ledger.write_node(make_node(name, labels=own), None)

    def add_namespace(self, name: str, **labels: str) -> None:
        self.observe(Namespace(metadata=ObjectMeta(name=name, labels=labels)))

    def observe(self, *found: Surrounding, is_gone: bool = False) -> None:
        for each in found:
            self.engine.observe(each, is_gone=is_gone)

    def put(self, node: str, labels: Manifest | None = None, **fields: Any) -> Pod:
        """Let a pod be on a node."""
        self.serial += 1
        pod = pod_from_manifest(labelled(f"there-{self.serial}", labels, node=node, **fields))
        self.engine.ledger.see(pod)
        return pod

    def request(self, pod: Manifest) -> PodRequest:
        return self.engine.read_request(pod_from_manifest(pod), PlacementPolicySpec())

    def fits(self, labels: Manifest | None = None, **fields: Any) -> set[str]:
        """Return the nodes that a new pod fits."""
        return {name for name, why in self.why(labels, **fields).items() if not why}

    def why(self, labels: Manifest | None = None, **fields: Any) -> dict[str, str]:
        """Return why a new pod does not fit each node, empty where it does."""
        request = self.request(labelled("new", labels, **fields))
        verdicts = self.engine.verdicts(request)
        return {it.node: it.reason.text if it.reason else "" for it in verdicts}

    def assume(self, node: str, labels: Manifest | None = None, **fields: Any) -> str:
        """Answer for a pod that nobody has seen yet; return the decision's id."""
        self.serial += 1
        decision = f"decision-{self.serial}"
        pod = pod_from_manifest(labelled("", labels, **fields))
        ledger = self.engine.ledger
        ledger.assume(
            decision,
            node=node,
            usages=ledger.usages_of(pod, {}),
            namespace=pod.metadata.namespace,
            name="",
            owner=None,
            now_s=0.0,
        )
        return decision


def labelled(
    name: str,
    labels: Manifest | None,
    *,
    is_leaving: bool = False,
    is_stored: bool = False,
    **fields: Any,
) -> Manifest:
    """Return a pod; one that is neither stored nor on a node has no uid and no version."""
    manifest = make_pod_manifest(name, **fields)
    manifest["metadata"]["labels"] = labels or {}
    if not is_stored and not fields.get("node"):
        manifest["metadata"]["uid"] = ""
    if is_stored:
        manifest["metadata"]["resourceVersion"] = "7"
    if is_leaving:
        manifest["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    return manifest


def term(labels: Manifest | None = None, key: str = ZONE, **more: Any) -> Manifest:
    """Return a term about pods with these labels; None is no selector at all."""
    selector = {} if labels is None else {"labelSelector": {"matchLabels": labels}}
    return {"topologyKey": key, **selector, **more}


def near(*terms: Manifest) -> Manifest:
    """Return an affinity to pods."""
    return {"podAffinity": {REQUIRED: list(terms)}}


def far(*terms: Manifest) -> Manifest:
    """Return an anti-affinity to pods."""
    return {"podAntiAffinity": {REQUIRED: list(terms)}}


def spread(
    labels: Iterable[tuple[str, str]] | Manifest, key: str = ZONE, skew: int = 1, **more: Any
) -> Manifest:
    """Return a constraint that may not be broken."""
    return {
        "topologyKey": key,
        "maxSkew": skew,
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": dict(labels)},
        **more,
    }
