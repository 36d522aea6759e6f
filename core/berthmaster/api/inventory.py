"""NodeInventory: what one node has, normalised from every vendor's dialect.

The operator writes it, the webhook reads it. Each concern owns one list of `status`; the fields of
concerns that have nothing to say about a node stay absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field

from berthmaster.api.schema import Cores, Model, Size, StatusCondition

MOST_DATASETS = 1024


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


Quantities = dict[str, Annotated[str, Field(max_length=64)]]


class Zone(Model):
    """One NUMA zone of the node; amounts as exact quantities by resource."""

    id: Annotated[int, Field(ge=0, le=63, description="The zone's id, unique on the node.")]
    capacity: Quantities = Field(default_factory=dict, description="What the hardware has.")
    allocatable: Quantities = Field(default_factory=dict, description="What pods may have.")
    available: Quantities = Field(
        default_factory=dict, description="What is not held exclusively, as last reported."
    )
    costs: dict[str, int] = Field(
        default_factory=dict, description="Distance to other zones by id; 10 is local."
    )


# The zones of a pod's containers, as text.
LONGEST_ZONES = 256


class Freshness(StrEnum):
    """How far a topology can be relied upon."""

    FRESH = "Fresh"
    STALE = "Stale"
    UNRELIABLE = "Unreliable"


class Topology(Model):
    """How the kubelet aligns, and which pods the zones' numbers count."""

    policy: Annotated[
        Literal["none", "best-effort", "restricted", "single-numa-node"],
        Field(description="The kubelet's topology manager policy."),
    ] = "none"
    scope: Annotated[
        Literal["container", "pod"], Field(description="The kubelet's topology manager scope.")
    ] = "container"
    max_numa_nodes: Annotated[
        int, Field(ge=2, le=1024, alias="maxNUMANodes", description="Most zones of one answer.")
    ] = 8
    cpu_manager_policy: Annotated[
        Literal["none", "static"] | None, Field(description="Absent: not reported.")
    ] = None
    memory_manager_policy: Annotated[
        Literal["none", "static"] | None, Field(description="Absent: not reported.")
    ] = None
    freshness: Annotated[
        Freshness, Field(description="Whether the zones' numbers can be relied upon.")
    ] = Freshness.FRESH
    reported_pods: Annotated[
        tuple[str, ...],
        Field(description="UIDs of pods with exclusive resources that `available` counts."),
    ] = ()
    reported_zones: Annotated[
        tuple[Annotated[str, Field(max_length=LONGEST_ZONES)], ...],
        Field(
            description="Where the updater says that each of `reportedPods` lies, in their order: the zone "
            "of each container that holds anything alone, such as `0,1`, `-` where it is none; empty: not "
            "told. Absent: the updater tells it of no pod."
        ),
    ] = ()
    fingerprint: Annotated[str, Field(description="The updater's fingerprint of its pods.")] = ""


class TopologySource(Model):
    """Which state of the vendor's object `zones` comes from."""

    uid: Annotated[str, Field(description="UID of the NodeResourceTopology.")] = ""
    written_s: Annotated[
        float | None,
        Field(description="When the updater last wrote, in seconds, by the API server's clock."),
    ] = None


class XPU(Model):
    """One accelerator with memory of its own."""

    index: Annotated[int, Field(ge=0, le=63, description="Its place on the node.")]
    id: Annotated[str, Field(description="Its id, unique on the node.")]
    registered_id: Annotated[
        str, Field(description="Its id by HAMi's registration; empty: slices are not served.")
    ] = ""
    model: Annotated[str, Field(description="Its model.")] = ""
    memory_mib: Annotated[int, Field(ge=0, alias="memoryMiB", description="Its memory.")] = 0
    healthy: Annotated[bool, Field(description="Whether it can be used.")] = True
    cordoned: Annotated[bool, Field(description="Whether it takes no new pods.")] = False
    numa_node: Annotated[int, Field(ge=-1, le=63, description="-1: not known.")] = -1
    board: Annotated[str, Field(description="The board's serial number.")] = ""


class XPUNode(Model):
    """How the node's devices are known, and which dialects it serves."""

    source: Annotated[
        Literal["Capacity", "HAMiAnnotation", "Agent"], Field(description="Who tells the devices.")
    ] = "Capacity"
    topology: Annotated[
        Literal["Auto", "None", "P800x8"], Field(description="Which cards go together.")
    ] = "Auto"
    shared: Annotated[bool, Field(description="Whether shares by memory are served.")] = False
    cards: Annotated[int, Field(ge=0, description="Whole cards that are served.")] = 0
    sliced: Annotated[bool, Field(description="Whether slices of cards are served.")] = False


class XPUSource(Model):
    """Which state of the NodeXPU `xpus` comes from."""

    generation: int = 0


class PowerLink(StrEnum):
    """Where a node's curve comes from, in the order in which they are tried."""

    MODEL_SERVER = "ModelServer"
    MODEL = "Model"
    MEASURED = "Measured"
    UNKNOWN = "Unknown"


class Reading(Model):
    """One value of a sensor, when it was sampled (seconds since the epoch), and by what."""

    value: Annotated[float, Field(description="In degrees Celsius, pascal or watts.")]
    sampled_s: Annotated[float, Field(description="When, in seconds since the epoch.")]
    source: Annotated[str, Field(max_length=64, description="By what it was read.")] = ""


class NamedReading(Reading):
    """A reading in an inventory."""

    name: Annotated[str, Field(max_length=64, description="inlet, deltaP, ambient, cpu1, ...")]


class PodUsage(Model):
    """What a pod uses."""

    uid: Annotated[str, Field(max_length=64, description="UID of the pod.")]
    usage: Annotated[Cores, Field(description="Its CPU usage.")]


class Exponential(Model):
    """Watts as k0 + k1 * e^(k2 * percent) of CPU usage in percent of capacity."""

    k0: float
    k1: float
    k2: float


class PowerCurve(Model):
    """Watts of the whole node at some CPU usages, in rising order; between them it is straight."""

    cores: Annotated[
        tuple[float, ...], Field(max_length=256, description="CPU usages, in cores.")
    ] = ()
    watts: Annotated[
        tuple[float, ...], Field(max_length=256, description="Watts, one for each of `cores`.")
    ] = ()
    gaps: Annotated[
        tuple[float, ...],
        Field(
            max_length=256,
            description="CPU usages that the model gave no answer for; the curve is not known there.",
        ),
    ] = ()


class Power(Model):
    """What running a pod costs here: the curve for the present temperature, and what it starts from."""

    link: Annotated[
        PowerLink, Field(description="Where the curve comes from, in the chain of fallbacks.")
    ] = PowerLink.UNKNOWN
    model: Annotated[str, Field(max_length=512, description="The model, for people.")] = ""
    curve: Annotated[PowerCurve | None, Field(description="Absent: not known.")] = None
    curve_s: Annotated[
        float | None, Field(description="When the curve was made, in seconds since the epoch.")
    ] = None
    exponential: Annotated[
        Exponential | None, Field(description="The model itself, where it has this form.")
    ] = None
    usage: Annotated[
        Cores | None, Field(description="CPU usage of the node; absent: not known, or stale.")
    ] = None
    usage_sampled_s: Annotated[
        float | None, Field(description="When `usage` was sampled, in seconds since the epoch.")
    ] = None
    usage_window_s: Annotated[
        float, Field(description="The time before that which `usage` is an average over.")
    ] = 0.0
    pod_usage: Annotated[
        tuple[PodUsage, ...],
        Field(max_length=256, description="CPU usage of pods that started lately."),
    ] = ()
    readings: Annotated[
        tuple[NamedReading, ...], Field(max_length=16, description="Last readings, by name.")
    ] = ()

    @property
    def values(self) -> dict[str, float]:
        """Return the readings' values by name."""
        return {it.name: it.value for it in self.readings}


class DatasetRole(StrEnum):
    """What a node is to a dataset: its gateway, a place of its data, or such a place behind a gateway."""

    GATEWAY = "gateway"
    DATA = "data"
    BACKING = "backing"


class NodeDataset(Model):
    """A usable dataset that is here."""

    namespace: Annotated[str, Field(max_length=63, description="The Dataset's namespace.")]
    name: Annotated[str, Field(max_length=253, description="The Dataset's name.")]
    role: Annotated[
        DatasetRole,
        Field(
            description="gateway: the cache's gateway runs here. data: the data are here, and there is "
            "no gateway. backing: the data are here, and are reached through a gateway."
        ),
    ]

    @property
    def key(self) -> str:
        """Return `namespace/name`."""
        return f"{self.namespace}/{self.name}"


class Sources(Model):
    """Generations of the source objects, per concern."""

    diskio: DiskSource | None = None
    topology: TopologySource | None = None
    xpu: XPUSource | None = None


class NodeInventoryStatus(Model):
    """The inventory proper."""

    sources: Sources | None = None
    disks: Annotated[
        tuple[Disk, ...] | None, Field(description="Absent: the node has no NodeDiskDevice.")
    ] = None
    topology: Annotated[
        Topology | None, Field(description="Absent: the node has no NodeResourceTopology.")
    ] = None
    zones: Annotated[
        tuple[Zone, ...] | None,
        Field(description="NUMA zones; absent: the node has no NodeResourceTopology."),
    ] = None
    xpu: Annotated[
        XPUNode | None, Field(description="Absent: nothing tells of accelerators here.")
    ] = None
    xpus: Annotated[
        tuple[XPU, ...] | None,
        Field(max_length=64, description="Accelerators; absent: nothing tells of any."),
    ] = None
    power: Annotated[
        Power | None, Field(description="Absent: nothing is known of the node's power.")
    ] = None
    datasets: Annotated[
        tuple[NodeDataset, ...] | None,
        Field(
            max_length=MOST_DATASETS,
            description="Usable datasets whose cache is on the node; absent: none.",
        ),
    ] = None
    gateway_busy: Annotated[
        bool | None,
        Field(description="Whether the gateways here are overloaded; absent: not measured."),
    ] = None
    conditions: tuple[StatusCondition, ...] | None = None
    xpu_summary: Annotated[
        str | None, Field(description="For people: devices that take pods, of all, and their size.")
    ] = None
    power_now: Annotated[
        str | None, Field(description="For people: watts now, and where the curve comes from.")
    ] = None
    free_zones: Annotated[
        str | None,
        Field(
            description="For people: CPUs that are free in each zone, of those that pods may have, "
            "as last reported. What was given since is in the webhook's books alone."
        ),
    ] = None
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
