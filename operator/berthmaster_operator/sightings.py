"""The little that the operator keeps of the objects that its informers watch.

150,000 pods pass through here, so each becomes four strings and a flag at once. A pod belongs to the
node that it is bound to, else to the one that our allocation sends it to.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from berthmaster.api import names
from berthmaster.api.allocation import read_allocation
from berthmaster.api.objects import Condition, ConfigMap, Struct
from berthmaster.api.policy import Mode


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSeen:
    """A pod; `node` is empty while nobody knows where it goes."""

    uid: str
    namespace: str
    node: str
    is_finished: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSeen:
    """A Node and our own condition on it."""

    name: str
    uid: str
    condition: Condition | None


@dataclass(frozen=True, slots=True, kw_only=True)
class InventorySeen:
    """A NodeInventory as stored; `status` is raw JSON, read only when it is needed."""

    name: str
    uid: str
    version: str
    owner_uid: str
    status: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelsSeen:
    """The ConfigMap of disk models."""

    name: str
    namespace: str
    uid: str
    data: dict[str, str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSeen:
    """A pod of the webhook, and the digest of the certificate that it serves, empty for none."""

    name: str
    serving: str


class _Owner(Struct, frozen=True):
    uid: str = ""


class _Meta(Struct, frozen=True):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    annotations: dict[str, str] | None = None
    owner_references: list[_Owner] | None = None


class _PodSpec(Struct, frozen=True):
    node_name: str = ""


class _PodStatus(Struct, frozen=True):
    phase: str = ""


class _Pod(Struct, frozen=True):
    metadata: _Meta = _Meta()
    spec: _PodSpec = _PodSpec()
    status: _PodStatus = _PodStatus()


class _NodeStatus(Struct, frozen=True):
    conditions: list[Condition] | None = None


class _Node(Struct, frozen=True):
    metadata: _Meta = _Meta()
    status: _NodeStatus = _NodeStatus()


class _Inventory(Struct, frozen=True):
    metadata: _Meta = _Meta()
    status: msgspec.Raw = msgspec.Raw(b"{}")


class _Stub(Struct, frozen=True):
    metadata: _Meta = _Meta()


_stub = msgspec.json.Decoder(_Stub).decode
_pod = msgspec.json.Decoder(_Pod).decode
_node = msgspec.json.Decoder(_Node).decode
_inventory = msgspec.json.Decoder(_Inventory).decode
_config_map = msgspec.json.Decoder(ConfigMap).decode


def decode_pod(raw: bytes) -> PodSeen:
    """Read a pod; raises `msgspec.ValidationError` on a field of the wrong type."""
    pod = _pod(raw)
    node = pod.spec.node_name
    if not node:
        text = (pod.metadata.annotations or {}).get(names.ALLOCATION)
        allocation = read_allocation(text) if text else None
        if allocation is not None and allocation.mode != Mode.OBSERVE:
            node = allocation.node
    return PodSeen(
        uid=pod.metadata.uid,
        namespace=pod.metadata.namespace,
        node=node,
        is_finished=pod.status.phase in ("Succeeded", "Failed"),
    )


def decode_replica(raw: bytes) -> ReplicaSeen:
    """Read a pod of the webhook; raises as `decode_pod`."""
    metadata = _pod(raw).metadata
    return ReplicaSeen(
        name=metadata.name, serving=(metadata.annotations or {}).get(names.SERVING, "")
    )


def decode_node(raw: bytes) -> NodeSeen:
    """Read a Node; raises as `decode_pod`."""
    node = _node(raw)
    ours = (it for it in node.status.conditions or () if it.type == names.DISK_IO_READY_ON_NODE)
    return NodeSeen(name=node.metadata.name, uid=node.metadata.uid, condition=next(ours, None))


def decode_inventory(raw: bytes) -> InventorySeen:
    """Read a NodeInventory; raises as `decode_pod`."""
    found = _inventory(raw)
    owners = found.metadata.owner_references or []
    return InventorySeen(
        name=found.metadata.name,
        uid=found.metadata.uid,
        version=found.metadata.resource_version,
        owner_uid=owners[0].uid if owners else "",
        status=bytes(found.status),
    )


def decode_models(raw: bytes) -> ModelsSeen:
    """Read the ConfigMap of disk models; raises as `decode_pod`."""
    found = _config_map(raw)
    return ModelsSeen(
        name=found.metadata.name,
        namespace=found.metadata.namespace,
        uid=found.metadata.uid,
        data=found.data,
    )


def decode_version(raw: bytes) -> str:
    """Read only the resourceVersion, of an object that must not be kept, such as a Secret."""
    return _stub(raw).metadata.resource_version


def is_older(version: str, than: str) -> bool:
    """Tell whether a resourceVersion is surely older; versions that are no numbers never are."""
    return version.isdecimal() and than.isdecimal() and int(version) < int(than)
