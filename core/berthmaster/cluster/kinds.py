"""The kinds of objects that decisions depend on: where the API server keeps them, how to read them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import msgspec

from berthmaster.api import names
from berthmaster.api.datasets import (
    CacheSighting,
    Dataset,
    dataset_from_manifest,
    sighting_from_manifest,
)
from berthmaster.api.inventory import NodeInventory, inventory_from_manifest
from berthmaster.api.objects import (
    Namespace,
    Node,
    Pod,
    ReplicaSet,
    decode_namespace,
    decode_node,
    decode_pod,
    decode_replica_set,
)
from berthmaster.api.policy import PlacementPolicy, policy_from_manifest
from berthmaster.api.storage import (
    CSINode,
    PersistentVolume,
    PersistentVolumeClaim,
    StorageClass,
    decode_claim,
    decode_csi_node,
    decode_storage_class,
    decode_volume,
)

T = TypeVar("T")

_decode_object = msgspec.json.Decoder(dict[str, Any]).decode


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind(Generic[T]):
    """One kind. `decode` gets the JSON of an object, `key` tells it from others of its kind."""

    name: str
    path: str
    decode: Callable[[bytes], T]
    key: Callable[[T], str]
    version: Callable[[T], str]
    # Somebody else's, whose CRD need not be there.
    is_optional: bool = False

    @property
    def plural(self) -> str:
        """Return the name in paths and rules: `pods`."""
        return self.path.rpartition("/")[2]


def _read_inventory(raw: bytes) -> NodeInventory:
    return inventory_from_manifest(_decode_object(raw))


def _read_dataset(group: str, raw: bytes) -> Dataset:
    return dataset_from_manifest(_of_group(group, raw))


def _read_sighting(group: str, raw: bytes) -> CacheSighting:
    return sighting_from_manifest(_of_group(group, raw))


def _of_group(group: str, raw: bytes) -> dict[str, Any]:
    # Items of a list do not say of which group they are.
    return {**_decode_object(raw), "apiVersion": f"{group}/{names.DATASHIM_VERSION}"}


def _read_policy(raw: bytes) -> PlacementPolicy:
    return policy_from_manifest(_decode_object(raw))


def _name(obj: Any) -> str:
    name: str = obj.metadata.name
    return name


def _version(obj: Any) -> str:
    version: str = obj.metadata.resource_version
    return version


_OURS = f"/apis/{names.API_VERSION}"
_STORAGE = "/apis/storage.k8s.io/v1"

PODS: Kind[Pod] = Kind(
    name="Pod",
    path="/api/v1/pods",
    decode=decode_pod,
    # One of the same name may come before the last one is seen to go.
    key=lambda pod: pod.metadata.uid,
    version=_version,
)
NODES: Kind[Node] = Kind(
    name="Node", path="/api/v1/nodes", decode=decode_node, key=_name, version=_version
)
NAMESPACES: Kind[Namespace] = Kind(
    name="Namespace",
    path="/api/v1/namespaces",
    decode=decode_namespace,
    key=_name,
    version=_version,
)
INVENTORIES: Kind[NodeInventory] = Kind(
    name="NodeInventory",
    path=f"{_OURS}/nodeinventories",
    decode=_read_inventory,
    key=lambda inventory: inventory.name,
    version=lambda inventory: inventory.resource_version,
)
POLICIES: Kind[PlacementPolicy] = Kind(
    name="PlacementPolicy",
    path=f"{_OURS}/placementpolicies",
    decode=_read_policy,
    key=lambda policy: policy.name,
    version=lambda policy: policy.resource_version,
)
STORAGE_CLASSES: Kind[StorageClass] = Kind(
    name="StorageClass",
    path=f"{_STORAGE}/storageclasses",
    decode=decode_storage_class,
    key=_name,
    version=_version,
)
VOLUMES: Kind[PersistentVolume] = Kind(
    name="PersistentVolume",
    path="/api/v1/persistentvolumes",
    decode=decode_volume,
    key=_name,
    version=_version,
)
CLAIMS: Kind[PersistentVolumeClaim] = Kind(
    name="PersistentVolumeClaim",
    path="/api/v1/persistentvolumeclaims",
    decode=decode_claim,
    key=lambda claim: claim.key,
    version=_version,
)
CSI_NODES: Kind[CSINode] = Kind(
    name="CSINode",
    path=f"{_STORAGE}/csinodes",
    decode=decode_csi_node,
    key=_name,
    version=_version,
)
REPLICA_SETS: Kind[ReplicaSet] = Kind(
    name="ReplicaSet",
    path="/apis/apps/v1/replicasets",
    decode=decode_replica_set,
    key=lambda found: found.metadata.uid,
    version=_version,
)
DATASETS: tuple[Kind[Dataset], ...] = tuple(
    Kind(
        name="Dataset",
        path=f"/apis/{group}/{names.DATASHIM_VERSION}/{names.DATASETS}",
        decode=partial(_read_dataset, group),
        key=lambda dataset: dataset.key,
        version=lambda dataset: dataset.resource_version,
        is_optional=True,
    )
    for group in names.DATASHIM_GROUPS
)
CACHE_SIGHTINGS: tuple[Kind[CacheSighting], ...] = tuple(
    Kind(
        name="DatasetInternal",
        path=f"/apis/{group}/{names.DATASHIM_VERSION}/{names.DATASETS_INTERNAL}",
        decode=partial(_read_sighting, group),
        key=lambda found: found.key,
        version=lambda found: found.resource_version,
        is_optional=True,
    )
    for group in names.DATASHIM_GROUPS
)
# What concerns are told of beside nodes and pods, in the order in which they refer to each other.
SURROUNDINGS: tuple[Kind[Any], ...] = (
    STORAGE_CLASSES,
    VOLUMES,
    CLAIMS,
    CSI_NODES,
    REPLICA_SETS,
    *DATASETS,
    *CACHE_SIGHTINGS,
)
