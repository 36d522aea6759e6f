"""What a pod asks of other pods and of its volumes, and what it is to other pods."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from berthmaster.api.objects import (
    ClaimSpec,
    ClaimTemplate,
    Pod,
    PodAffinity,
    PodAffinityTerm,
    Quantity,
    TopologySpreadConstraint,
)
from berthmaster.api.quantities import QuantityError, ceil, parse_quantity
from berthmaster.api.storage import CLASS_BETA
from berthmaster.concerns.resources.label_selectors import (
    Labels,
    Requirement,
    Selector,
    matches,
    read_selector,
    require,
)

FlatLabels = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerTerm:
    """Pods of the named namespaces and of those selected, by labels, and what is near to them."""

    namespaces: tuple[str, ...]
    namespace_selector: Selector
    selector: Selector
    topology_key: str

    def matches(self, namespace: str, labels: Labels, namespace_labels: Labels) -> bool:
        """Return whether the term means a pod."""
        is_there = namespace in self.namespaces or matches(
            self.namespace_selector, namespace_labels
        )
        return is_there and matches(self.selector, labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A constraint DoNotSchedule; `counts_itself` says whether the pod is one of those counted."""

    topology_key: str
    max_skew: int
    min_domains: int
    selector: Selector
    honors_affinity: bool
    honors_taints: bool
    counts_itself: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimWant:
    """What a claim asks of a volume; `storage_class` is None where the default class is meant."""

    storage_class: str | None
    size_bytes: int
    access_modes: tuple[str, ...]
    volume_mode: str
    attributes_class: str
    selector: Selector
    is_selective: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimUse:
    """A volume of a pod that stands for a claim.

    `template` is what a claim that is made for the pod will ask; its name is empty while the pod has none.
    """

    name: str
    template: ClaimWant | None = None


# As `ResourcesUsage`: there may be one for each pod.
class Peer(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a pod is to others: `repels` are the pods that it keeps away, `claims` names of claims.

    `labels` are key, value, key, value, ... in the order of the keys. `is_leaving` is being deleted.
    """

    namespace: str
    labels: FlatLabels = ()
    is_leaving: bool = False
    repels: tuple[PeerTerm, ...] = ()
    claims: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What a pod asks beyond its node. All of it depends on other pods or on objects of storage.

    `labels` and `uid` are not part of what is asked: `objections`, the terms of other pods that keep
    this one away, stand for the labels once the request is resolved. So the pods of a StatefulSet,
    whose labels all differ, ask for the same.
    """

    namespace: str
    attracted: tuple[PeerTerm, ...] = ()
    follows_itself: bool = False
    repelled: tuple[PeerTerm, ...] = ()
    spread: tuple[Spread, ...] = ()
    claims: tuple[ClaimUse, ...] = ()
    objections: tuple[PeerTerm, ...] = ()
    labels: FlatLabels = field(default=(), compare=False)
    uid: str = field(default="", compare=False)


def read_peer(pod: Pod) -> Peer:
    """Return what a pod on a node is to others."""
    metadata = pod.metadata
    affinity = pod.spec.affinity
    return Peer(
        namespace=metadata.namespace,
        labels=_flat(metadata.labels),
        is_leaving=metadata.deletion_timestamp is not None,
        repels=_peer_terms(affinity.pod_anti_affinity if affinity else None, pod),
        claims=tuple(it.name for it in _claims(pod) if it.name),
    )


def peer_basis(pod: Pod) -> tuple[object, ...]:
    """Return all that `read_peer` reads: equal for pods that are the same to others."""
    metadata, affinity = pod.metadata, pod.spec.affinity
    repels = affinity.pod_anti_affinity if affinity else None
    return (
        metadata.namespace,
        metadata.labels,
        metadata.deletion_timestamp is not None,
        repels,
        repels and bool(metadata.resource_version),
        pod.spec.volumes,
        pod.spec.volumes and metadata.name,
    )


def read_wishes(pod: Pod) -> Wishes:
    """Return what a pod asks beyond its node."""
    metadata = pod.metadata
    labels = metadata.labels or {}
    affinity = pod.spec.affinity
    attracted = _peer_terms(affinity.pod_affinity if affinity else None, pod)
    constraints = pod.spec.topology_spread_constraints or ()
    return Wishes(
        namespace=metadata.namespace,
        attracted=attracted,
        follows_itself=all(matches(it.selector, labels) for it in attracted),
        repelled=_peer_terms(affinity.pod_anti_affinity if affinity else None, pod),
        spread=tuple(
            _spread(it, labels) for it in constraints if it.when_unsatisfiable == "DoNotSchedule"
        ),
        claims=_claims(pod),
        labels=_flat(labels),
        uid=metadata.uid,
    )


def read_want(spec: ClaimSpec, storage_class: str | None) -> ClaimWant:
    """Return what a claim asks; a size that cannot be read counts 0."""
    requests = (spec.resources and spec.resources.requests) or {}
    return ClaimWant(
        storage_class=storage_class,
        size_bytes=read_bytes(requests.get("storage", 0)),
        access_modes=tuple(sorted(set(spec.access_modes or ()))),
        volume_mode=spec.volume_mode,
        attributes_class=spec.volume_attributes_class_name,
        selector=read_selector(spec.selector),
        is_selective=spec.selector is not None,
    )


def read_bytes(quantity: Quantity) -> int:
    """Return a quantity in bytes; one that cannot be read counts 0."""
    try:
        return ceil(parse_quantity(quantity))
    except QuantityError:
        return 0


def unfold(labels: FlatLabels) -> dict[str, str]:
    """Return labels as a mapping."""
    return dict(zip(labels[::2], labels[1::2], strict=True))


def _flat(labels: Labels | None) -> FlatLabels:
    return tuple(text for pair in sorted((labels or {}).items()) for text in pair)


def _peer_terms(affinity: PodAffinity | None, pod: Pod) -> tuple[PeerTerm, ...]:
    required = affinity.required if affinity else None
    return tuple(_peer_term(it, pod) for it in required or ())


def _peer_term(term: PodAffinityTerm, pod: Pod) -> PeerTerm:
    selector = read_selector(term.label_selector)
    if not pod.metadata.resource_version:
        # A stored pod's selector has these merged in by the API server, for good.
        labels = pod.metadata.labels or {}
        selector = require(
            selector,
            *_of_keys(term.match_label_keys, "In", labels),
            *_of_keys(term.mismatch_label_keys, "NotIn", labels),
        )
    namespaces = list(term.namespaces or ())
    if not namespaces and term.namespace_selector is None:
        namespaces = [pod.metadata.namespace]
    return PeerTerm(
        namespaces=tuple(sorted(set(namespaces))),
        namespace_selector=read_selector(term.namespace_selector),
        selector=selector,
        topology_key=term.topology_key,
    )


def _spread(constraint: TopologySpreadConstraint, labels: Labels) -> Spread:
    keyed = _of_keys(constraint.match_label_keys, "In", labels)
    selector = require(read_selector(constraint.label_selector), *keyed)
    return Spread(
        topology_key=constraint.topology_key,
        max_skew=constraint.max_skew,
        min_domains=constraint.min_domains or 1,
        selector=selector,
        honors_affinity=(constraint.node_affinity_policy or "Honor") == "Honor",
        honors_taints=constraint.node_taints_policy == "Honor",
        counts_itself=matches(selector, labels),
    )


def _of_keys(keys: Iterable[str] | None, operator: str, labels: Labels) -> list[Requirement]:
    return [Requirement(key, operator, (labels[key],)) for key in keys or () if key in labels]


def _claims(pod: Pod) -> tuple[ClaimUse, ...]:
    found = []
    for volume in pod.spec.volumes or ():
        if volume.persistent_volume_claim is not None:
            found.append(ClaimUse(name=volume.persistent_volume_claim.claim_name))
        elif volume.ephemeral is not None:
            template = volume.ephemeral.volume_claim_template or ClaimTemplate()
            name = f"{pod.metadata.name}-{volume.name}" if pod.metadata.name else ""
            classes = (template.metadata.annotations or {}).get(CLASS_BETA)
            want = read_want(template.spec, classes or template.spec.storage_class_name)
            found.append(ClaimUse(name=name, template=want))
    return tuple(found)
