"""NodeInventory: what one node has, normalised from every vendor's dialect.

The operator writes it, the webhook reads it. Each concern owns one list of `status`; the fields of
concerns that have nothing to say about a node stay absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from berthmaster.api.schema import Model, Size, StatusCondition


class Bandwidth(Model):
    """Bytes per second in the disk's normalised units; `total` is a limit of its own."""

    read: Size = 0
    write: Size = 0
    total: Size = 0


class DiskModel(Model):
    """What an access costs, by block size, relative to the size that the disk was profiled with."""

    read_ratio: dict[str, str] = Field(default_factory=dict, description="Block size to factor.")
    write_ratio: dict[str, str] = Field(default_factory=dict, description="Block size to factor.")


class Disk(Model):
    """One disk of the node."""

    id: Annotated[str, Field(description="Device id, unique on the node.")]
    type: Annotated[
        str, Field(description="emptyDir: the disk that backs emptyDir volumes and layers.")
    ] = ""
    vendor: str = ""
    model: str = ""
    capacity: Annotated[Bandwidth, Field(description="What the disk can do.")] = Bandwidth()
    allocable: Annotated[
        Bandwidth | None, Field(description="What the last accepted report says is free.")
    ] = None
    reported_pods: Annotated[
        tuple[str, ...] | None, Field(description="UIDs of the pods that `allocable` counts.")
    ] = None
    function: Annotated[
        DiskModel | None,
        Field(description="The disk's model; absent: no function for it is known."),
    ] = None

    @property
    def model_key(self) -> str:
        """Return `<vendor>-<model>`, the key of the model function."""
        return f"{self.vendor}-{self.model}"


class DiskSource(Model):
    """Which generations of the vendors' objects `disks` comes from."""

    device_generation: int = 0
    stats_generation: int | None = None
    observed_generation: int | None = None


class Sources(Model):
    """Generations of the source objects, per concern."""

    diskio: DiskSource | None = None


class NodeInventoryStatus(Model):
    """The inventory proper."""

    sources: Sources | None = None
    disks: Annotated[
        tuple[Disk, ...] | None, Field(description="Absent: the node has no NodeDiskDevice.")
    ] = None
    conditions: tuple[StatusCondition, ...] | None = None
    free_disk: Annotated[
        str | None, Field(description="For people: free read/write share of the emptyDir disk.")
    ] = None


class NodeInventory(Model):
    """A node's inventory, named like the node."""

    name: str
    node_uid: str = ""
    resource_version: str = ""
    status: NodeInventoryStatus = NodeInventoryStatus()


def inventory_from_manifest(manifest: Mapping[str, Any]) -> NodeInventory:
    """Build an inventory from a parsed object.

    Raises:
        pydantic.ValidationError: a field is wrong; the error lists the paths.
    """
    metadata = manifest.get("metadata") or {}
    owners = metadata.get("ownerReferences") or [{}]
    return NodeInventory(
        name=metadata.get("name", ""),
        node_uid=owners[0].get("uid", ""),
        resource_version=metadata.get("resourceVersion", ""),
        status=NodeInventoryStatus.model_validate(manifest.get("status") or {}),
    )
