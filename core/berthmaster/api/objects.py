"""The parts of core Kubernetes objects that placement reads, decoded straight from JSON.

Slim msgspec structs: fields that nobody here reads are never built, which keeps 150,000 pods small.
All are immutable; a change arrives as a new object.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from berthmaster.api import names

Quantity = str | int | float
Resources = dict[str, Quantity]


class Struct(msgspec.Struct, frozen=True, kw_only=True, rename="camel", gc=False):
    """Immutable view of one JSON object; camelCase outside, snake_case inside."""


class OwnerReference(Struct, frozen=True):
    """Who an object belongs to."""

    api_version: str = ""
    kind: str = ""
    name: str = ""
    uid: str = ""
    controller: bool | None = None


class ObjectMeta(Struct, frozen=True):
    """Metadata; absent strings are empty, as in Go."""

    name: str = ""
    generate_name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    owner_references: list[OwnerReference] | None = None

    @property
    def created_s(self) -> float | None:
        """Return the creation in seconds since the epoch, by the API server's clock."""
        return _seconds(self.creation_timestamp)

    def controller(self) -> OwnerReference | None:
        """Return the owner that manages this object, if there is one."""
        for owner in self.owner_references or ():
            if owner.controller:
                return owner
        return None


def _seconds(text: str | None) -> float | None:
    return datetime.fromisoformat(text).timestamp() if text else None


class NodeSelectorRequirement(Struct, frozen=True):
    """One expression over a node label or field."""

    key: str
    operator: str
    values: list[str] | None = None


class NodeSelectorTerm(Struct, frozen=True):
    """Expressions that must all hold."""

    match_expressions: list[NodeSelectorRequirement] | None = None
    match_fields: list[NodeSelectorRequirement] | None = None


class NodeSelector(Struct, frozen=True):
    """Terms of which one must hold."""

    node_selector_terms: list[NodeSelectorTerm] | None = None


class NodeAffinity(Struct, frozen=True):
    """Required terms; preferences are kube-scheduler's business, and kept only to be added to."""

    required: NodeSelector | None = msgspec.field(
        default=None, name="requiredDuringSchedulingIgnoredDuringExecution"
    )
    preferred: list[Any] | None = msgspec.field(
        default=None, name="preferredDuringSchedulingIgnoredDuringExecution"
    )


class LabelSelectorRequirement(Struct, frozen=True):
    """One expression over the labels of pods, namespaces or volumes."""

    key: str
    operator: str
    values: list[str] | None = None


class LabelSelector(Struct, frozen=True):
    """Labels and expressions that must all hold; an empty selector selects everything."""

    match_labels: dict[str, str] | None = None
    match_expressions: list[LabelSelectorRequirement] | None = None


class PodAffinityTerm(Struct, frozen=True):
    """Pods, and how near to them or far from them."""

    label_selector: LabelSelector | None = None
    namespaces: list[str] | None = None
    topology_key: str = ""
    namespace_selector: LabelSelector | None = None
    match_label_keys: list[str] | None = None
    mismatch_label_keys: list[str] | None = None


class PodAffinity(Struct, frozen=True):
    """Required terms towards other pods; preferences are kube-scheduler's business."""

    required: list[PodAffinityTerm] | None = msgspec.field(
        default=None, name="requiredDuringSchedulingIgnoredDuringExecution"
    )


class Affinity(Struct, frozen=True):
    """What a pod requires of nodes and of the pods that are there."""

    node_affinity: NodeAffinity | None = None
    pod_affinity: PodAffinity | None = None
    pod_anti_affinity: PodAffinity | None = None


class TopologySpreadConstraint(Struct, frozen=True):
    """How evenly pods spread over domains."""

    max_skew: int = 1
    topology_key: str = ""
    when_unsatisfiable: str = ""
    label_selector: LabelSelector | None = None
    min_domains: int | None = None
    node_affinity_policy: str | None = None
    node_taints_policy: str | None = None
    match_label_keys: list[str] | None = None


class Toleration(Struct, frozen=True):
    """One toleration; empty key or effect means all of them."""

    key: str = ""
    operator: str = ""
    value: str = ""
    effect: str = ""


class ResourceRequirements(Struct, frozen=True):
    """Requests and limits of a container or of a whole pod."""

    requests: Resources | None = None
    limits: Resources | None = None


class ContainerPort(Struct, frozen=True):
    """A port; only `hostPort` matters for placement."""

    container_port: int = 0
    host_port: int = 0
    host_ip: str = msgspec.field(default="", name="hostIP")
    protocol: str = "TCP"


class SecurityContext(Struct, frozen=True):
    """A container's rights; only one of them matters to device plugins."""

    privileged: bool = False


class Container(Struct, frozen=True):
    """A container as placement sees it."""

    name: str = ""
    resources: ResourceRequirements | None = None
    ports: list[ContainerPort] | None = None
    restart_policy: str = ""
    security_context: SecurityContext | None = None

    @property
    def is_privileged(self) -> bool:
        """Return whether a container sees every device of its node, whatever it was given."""
        return self.security_context is not None and self.security_context.privileged

    @property
    def is_sidecar(self) -> bool:
        """Return whether an init container goes on running beside the pod's containers."""
        return self.restart_policy == "Always"


class ClaimSpec(Struct, frozen=True):
    """What a claim, or the template of one, asks of storage."""

    storage_class_name: str | None = None
    access_modes: list[str] | None = None
    volume_mode: str = "Filesystem"
    volume_name: str = ""
    volume_attributes_class_name: str = ""
    selector: LabelSelector | None = None
    resources: ResourceRequirements | None = None


class ClaimTemplate(Struct, frozen=True):
    """What a pod's own claim is made from."""

    metadata: ObjectMeta = ObjectMeta()
    spec: ClaimSpec = ClaimSpec()


class ClaimVolumeSource(Struct, frozen=True):
    """A claim by name."""

    claim_name: str = ""


class EphemeralVolumeSource(Struct, frozen=True):
    """A claim that is made for the pod and lives as long."""

    volume_claim_template: ClaimTemplate | None = None


class Volume(Struct, frozen=True):
    """A volume of a pod, as far as it stands for a claim."""

    name: str = ""
    persistent_volume_claim: ClaimVolumeSource | None = None
    ephemeral: EphemeralVolumeSource | None = None

    @property
    def has_claim(self) -> bool:
        """Return whether the volume comes from a claim."""
        return self.persistent_volume_claim is not None or self.ephemeral is not None


class SchedulingGate(Struct, frozen=True):
    """A reason for kube-scheduler to leave the pod alone."""

    name: str


class PodSpec(Struct, frozen=True):
    """The part of a pod's spec that placement reads."""

    node_name: str = ""
    scheduler_name: str = ""
    host_network: bool = False
    priority: int | None = None
    node_selector: dict[str, str] | None = None
    affinity: Affinity | None = None
    tolerations: list[Toleration] | None = None
    containers: list[Container] | None = None
    init_containers: list[Container] | None = None
    overhead: Resources | None = None
    resources: ResourceRequirements | None = None
    scheduling_gates: list[SchedulingGate] | None = None
    topology_spread_constraints: list[TopologySpreadConstraint] | None = None
    volumes: list[Volume] | None = None
    # Devices by Dynamic Resource Allocation; only that there are some is read.
    resource_claims: list[Any] | None = None
    # Pods that are scheduled together; again only that there is one is read.
    scheduling_group: Any = None

    def __post_init__(self) -> None:
        """Keep only volumes that stand for claims: every pod has one for its token."""
        if self.volumes is not None:
            claims = [it for it in self.volumes if it.has_claim]
            msgspec.structs.force_setattr(self, "volumes", claims or None)


class Condition(Struct, frozen=True):
    """A condition of a pod or a node."""

    type: str
    status: str = ""
    reason: str = ""
    message: str = ""
    last_transition_time: str | None = None


class ContainerStatus(Struct, frozen=True):
    """What the kubelet granted a container (in-place resize)."""

    name: str = ""
    allocated_resources: Resources | None = None
    resources: ResourceRequirements | None = None


class PodStatus(Struct, frozen=True):
    """The part of a pod's status that placement reads."""

    phase: str = ""
    reason: str = ""
    qos_class: str = ""
    start_time: str | None = None
    conditions: list[Condition] | None = None
    container_statuses: list[ContainerStatus] | None = None
    init_container_statuses: list[ContainerStatus] | None = None

    @property
    def started_s(self) -> float | None:
        """Return when the kubelet took the pod up or turned it away, in seconds since the epoch."""
        return _seconds(self.start_time)


class Pod(Struct, frozen=True):
    """A pod."""

    metadata: ObjectMeta = ObjectMeta()
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()

    @property
    def key(self) -> str:
        """Return `namespace/name`, or `namespace/generateName*` before the name is known."""
        name = self.metadata.name or f"{self.metadata.generate_name}*"
        return f"{self.metadata.namespace}/{name}"

    @property
    def annotations(self) -> dict[str, str]:
        """Return the annotations, empty when there are none."""
        return self.metadata.annotations or {}

    @property
    def gates(self) -> tuple[str, ...]:
        """Return the names of the scheduling gates, in order."""
        return tuple(gate.name for gate in self.spec.scheduling_gates or ())

    @property
    def asked_resources(self) -> frozenset[str]:
        """Return the resources that any container names."""
        found: set[str] = set()
        for container in (*(self.spec.init_containers or ()), *(self.spec.containers or ())):
            if container.resources is not None:
                found.update(container.resources.limits or (), container.resources.requests or ())
        return frozenset(found)

    @property
    def asked_scheduler(self) -> str:
        """Return the scheduler that the pod was created for, also where a policy replaced it."""
        replaced = self.annotations.get(names.REPLACED_SCHEDULER)
        return replaced or self.spec.scheduler_name or names.DEFAULT_SCHEDULER

    @property
    def is_finished(self) -> bool:
        """Return whether the pod is Succeeded or Failed and so holds nothing any more."""
        return self.status.phase in ("Succeeded", "Failed")


class Taint(Struct, frozen=True):
    """A taint of a node."""

    key: str
    effect: str = ""
    value: str = ""


class NodeSpec(Struct, frozen=True):
    """The part of a node's spec that placement reads."""

    unschedulable: bool = False
    taints: list[Taint] | None = None


class NodeStatus(Struct, frozen=True):
    """What a node has, and how it is."""

    capacity: Resources | None = None
    allocatable: Resources | None = None
    conditions: list[Condition] | None = None


class Node(Struct, frozen=True):
    """A node."""

    metadata: ObjectMeta = ObjectMeta()
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()


class Namespace(Struct, frozen=True):
    """A namespace, for its labels."""

    metadata: ObjectMeta = ObjectMeta()


class ReplicaSetSpec(Struct, frozen=True):
    """How many pods a ReplicaSet wants."""

    replicas: int | None = None


class ReplicaSet(Struct, frozen=True):
    """A ReplicaSet, for how many of its pods are to be spread."""

    metadata: ObjectMeta = ObjectMeta()
    spec: ReplicaSetSpec = ReplicaSetSpec()


class ConfigMap(Struct, frozen=True):
    """A ConfigMap."""

    metadata: ObjectMeta = ObjectMeta()
    data: dict[str, str] | None = None


_decode_pod = msgspec.json.Decoder(Pod).decode
_LABELS_REMEMBERED = 16384
# Sets of more are nobody's habit, and what is remembered must not grow with what strangers write.
_MOST_LABELS_SHARED = 64
_labels: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}


def decode_pod(raw: bytes | str) -> Pod:
    """Decode a pod; those of a workload share their labels."""
    pod = _decode_pod(raw)
    labels = pod.metadata.labels
    if labels and len(labels) <= _MOST_LABELS_SHARED:
        if len(_labels) >= _LABELS_REMEMBERED:
            _labels.clear()
        shared = _labels.setdefault(tuple(labels.items()), labels)
        msgspec.structs.force_setattr(pod.metadata, "labels", shared)
    return pod


decode_node = msgspec.json.Decoder(Node).decode
decode_namespace = msgspec.json.Decoder(Namespace).decode
_decode_replica_set = msgspec.json.Decoder(ReplicaSet).decode


def decode_replica_set(raw: bytes) -> ReplicaSet:
    """Decode a ReplicaSet, without what nobody here reads: a cluster keeps many old ones."""
    found = _decode_replica_set(raw)
    annotations = found.metadata.annotations or {}
    kept = {key: it for key, it in annotations.items() if key in names.SPREAD_RATES}
    stripped = ObjectMeta(
        name=found.metadata.name,
        namespace=found.metadata.namespace,
        uid=found.metadata.uid,
        resource_version=found.metadata.resource_version,
        annotations=kept or None,
    )
    return ReplicaSet(metadata=stripped, spec=found.spec)


def pod_from_manifest(manifest: Any) -> Pod:
    """Build a pod from a parsed manifest.

    Raises:
        msgspec.ValidationError: a field has the wrong type; the message holds its path.
    """
    return msgspec.convert(manifest, Pod)


def replica_set_from_manifest(manifest: Any) -> ReplicaSet:
    """Build a ReplicaSet from a parsed manifest; raises `msgspec.ValidationError` as above."""
    return msgspec.convert(manifest, ReplicaSet)


def node_from_manifest(manifest: Any) -> Node:
    """Build a node from a parsed manifest; raises `msgspec.ValidationError` as above."""
    return msgspec.convert(manifest, Node)
