"""The parts of storage objects that placement reads: claims, volumes, classes, nodes' drivers.

Decoded like the objects in `objects.py`, and then stripped of metadata that nobody here reads, since a
cluster may have as many claims as pods.
"""

from __future__ import annotations

from typing import Any

import msgspec

from berthmaster.api.objects import (
    ClaimSpec,
    NodeSelector,
    ObjectMeta,
    Quantity,
    Resources,
    Struct,
)

IS_DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
IS_DEFAULT_CLASS_BETA = "storageclass.beta.kubernetes.io/is-default-class"
BIND_COMPLETED = "pv.kubernetes.io/bind-completed"
SELECTED_NODE = "volume.kubernetes.io/selected-node"
CLASS_BETA = "volume.beta.kubernetes.io/storage-class"
NO_PROVISIONER = "kubernetes.io/no-provisioner"
WAIT_FOR_FIRST_CONSUMER = "WaitForFirstConsumer"
READ_WRITE_ONCE_POD = "ReadWriteOncePod"

_ANNOTATIONS = frozenset({BIND_COMPLETED, SELECTED_NODE, CLASS_BETA})


class ClaimStatus(Struct, frozen=True):
    """Whether a claim is bound."""

    phase: str = ""


class PersistentVolumeClaim(Struct, frozen=True):
    """A claim."""

    metadata: ObjectMeta = ObjectMeta()
    spec: ClaimSpec = ClaimSpec()
    status: ClaimStatus = ClaimStatus()

    @property
    def key(self) -> str:
        """Return `namespace/name`."""
        return f"{self.metadata.namespace}/{self.metadata.name}"

    @property
    def storage_class(self) -> str:
        """Return the class, empty where there is none."""
        return _class_of(self.metadata, self.spec.storage_class_name)

    @property
    def is_bound(self) -> bool:
        """Return whether the claim is bound for good, as kube-scheduler sees it."""
        return bool(self.spec.volume_name) and BIND_COMPLETED in (self.metadata.annotations or {})

    @property
    def size(self) -> Quantity:
        """Return the storage that is asked for."""
        requests = (self.spec.resources and self.spec.resources.requests) or {}
        return requests.get("storage", "0")


class ObjectReference(Struct, frozen=True):
    """Another object."""

    namespace: str = ""
    name: str = ""
    uid: str = ""


class VolumeNodeAffinity(Struct, frozen=True):
    """From which nodes a volume can be reached."""

    required: NodeSelector | None = None


class CSISource(Struct, frozen=True):
    """A volume of a CSI driver."""

    driver: str = ""
    volume_handle: str = ""


class VolumeSpec(Struct, frozen=True):
    """What a volume is, who has it, and from where it can be reached."""

    capacity: Resources | None = None
    access_modes: list[str] | None = None
    volume_mode: str = "Filesystem"
    storage_class_name: str = ""
    volume_attributes_class_name: str = ""
    claim_ref: ObjectReference | None = None
    node_affinity: VolumeNodeAffinity | None = None
    csi: CSISource | None = None


class VolumeStatus(Struct, frozen=True):
    """Whether a volume is free."""

    phase: str = ""


class PersistentVolume(Struct, frozen=True):
    """A volume."""

    metadata: ObjectMeta = ObjectMeta()
    spec: VolumeSpec = VolumeSpec()
    status: VolumeStatus = VolumeStatus()

    @property
    def storage_class(self) -> str:
        """Return the class, empty where there is none."""
        return _class_of(self.metadata, self.spec.storage_class_name)


class TopologyExpression(Struct, frozen=True):
    """A label that must have one of some values."""

    key: str = ""
    values: list[str] | None = None


class TopologyTerm(Struct, frozen=True):
    """Expressions that must all hold."""

    match_label_expressions: list[TopologyExpression] | None = None


class StorageClass(Struct, frozen=True):
    """A class of storage."""

    metadata: ObjectMeta = ObjectMeta()
    provisioner: str = ""
    volume_binding_mode: str = "Immediate"
    allowed_topologies: list[TopologyTerm] | None = None

    @property
    def is_default(self) -> bool:
        """Return whether claims that name no class get this one."""
        annotations = self.metadata.annotations or {}
        return "true" in (annotations.get(IS_DEFAULT_CLASS), annotations.get(IS_DEFAULT_CLASS_BETA))


class Allocatable(Struct, frozen=True):
    """How many volumes a driver can attach."""

    count: int | None = None


class CSINodeDriver(Struct, frozen=True):
    """A CSI driver on a node."""

    name: str = ""
    allocatable: Allocatable | None = None


class CSINodeSpec(Struct, frozen=True):
    """The CSI drivers of a node."""

    drivers: list[CSINodeDriver] | None = None


class CSINode(Struct, frozen=True):
    """What CSI drivers say about a node of the same name."""

    metadata: ObjectMeta = ObjectMeta()
    spec: CSINodeSpec = CSINodeSpec()


def decode_claim(raw: bytes) -> PersistentVolumeClaim:
    """Decode a PersistentVolumeClaim."""
    claim = _decode_claim(raw)
    metadata = claim.metadata
    kept = {key: it for key, it in (metadata.annotations or {}).items() if key in _ANNOTATIONS}
    stripped = msgspec.structs.replace(metadata, labels=None, annotations=kept or None)
    return msgspec.structs.replace(claim, metadata=stripped)


def decode_volume(raw: bytes) -> PersistentVolume:
    """Decode a PersistentVolume."""
    volume = _decode_volume(raw)
    kept = {
        key: it for key, it in (volume.metadata.annotations or {}).items() if key in _ANNOTATIONS
    }
    stripped = msgspec.structs.replace(volume.metadata, annotations=kept or None)
    return msgspec.structs.replace(volume, metadata=stripped)


_decode_claim = msgspec.json.Decoder(PersistentVolumeClaim).decode
_decode_volume = msgspec.json.Decoder(PersistentVolume).decode
decode_storage_class = msgspec.json.Decoder(StorageClass).decode
decode_csi_node = msgspec.json.Decoder(CSINode).decode


def claim_from_manifest(manifest: Any) -> PersistentVolumeClaim:
    """Build a claim from a parsed manifest; raises `msgspec.ValidationError` if it is none."""
    return msgspec.convert(manifest, PersistentVolumeClaim)


def volume_from_manifest(manifest: Any) -> PersistentVolume:
    """Build a volume from a parsed manifest; raises `msgspec.ValidationError` if it is none."""
    return msgspec.convert(manifest, PersistentVolume)


def storage_class_from_manifest(manifest: Any) -> StorageClass:
    """Build a class from a parsed manifest; raises `msgspec.ValidationError` if it is none."""
    return msgspec.convert(manifest, StorageClass)


def csi_node_from_manifest(manifest: Any) -> CSINode:
    """Build a CSINode from a parsed manifest; raises `msgspec.ValidationError` if it is none."""
    return msgspec.convert(manifest, CSINode)


def _class_of(metadata: ObjectMeta, named: str | None) -> str:
    return (metadata.annotations or {}).get(CLASS_BETA, named or "")
