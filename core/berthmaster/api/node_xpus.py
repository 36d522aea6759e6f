"""NodeXPU: the devices of a node as an agent or an administrator describes them, and who has them.

`spec` is inventory and wishes, `status` a picture for people and what the agent measures; the ledger
alone decides. Where nobody writes one for a node with devices, the operator does, from what device
plugins say on the Node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from berthmaster.api.hami import MOST_DEVICES
from berthmaster.api.schema import Model, StatusCondition

Source = Literal["Capacity", "HAMiAnnotation", "Agent"]
TopologyRule = Literal["Auto", "None", "P800x8"]
Health = Literal["Healthy", "Unhealthy", "Unknown"]

_HIGHEST_MIB = 2**40
_SHOWN_CHARS = 200
_Count = Annotated[int, Field(ge=0, le=_HIGHEST_MIB)]


class NodeXPUDevice(Model):
    """One device with memory of its own, not a board: a K200 board carries two."""

    index: Annotated[
        int, Field(ge=0, le=MOST_DEVICES - 1, description="DevID; rules of position use it.")
    ]
    id: Annotated[str, Field(min_length=1, max_length=253, description="Unique on the node.")]
    model: Annotated[str, Field(max_length=64, description="As K200 or P800 OAM.")] = ""
    pci_address: Annotated[str, Field(max_length=64, description="As 0000:86:00.0.")] = ""
    serial_number: Annotated[
        str, Field(max_length=64, description="The board's; devices of one board share it.")
    ] = ""
    inode: Annotated[str, Field(max_length=253, description="As /dev/xpu0.")] = ""
    memory_mib: Annotated[
        int, Field(ge=1, le=_HIGHEST_MIB, alias="memoryMiB", description="Its memory.")
    ]
    l3_mib: Annotated[_Count, Field(alias="l3MiB", description="Its L3 cache.")] = 0
    numa_node: Annotated[int, Field(ge=-1, le=63, description="-1: not known.")] = -1
    cores: Annotated[int, Field(ge=0, le=100000, description="Compute, in percent.")] = 100
    max_slices: Annotated[
        int, Field(ge=0, le=100000, description="Most slices of it; 0: no limit.")
    ] = 0
    firmware_version: Annotated[str, Field(max_length=64, description="Of the device.")] = ""
    cpld_version: Annotated[str, Field(max_length=64, description="Of the board.")] = ""
    cordoned: Annotated[bool, Field(description="Takes no new pods.")] = False


class NodeXPUSpec(Model):
    """What there is, and what its owner wishes."""

    source: Annotated[
        Source,
        Field(
            description="Who fills it: Agent (an agent, or an administrator by hand) is believed "
            "before the plugins' annotation and capacity; the others are kept up by the operator."
        ),
    ] = "Agent"
    topology: Annotated[
        TopologyRule,
        Field(
            description="Which cards go together. P800x8: two wings of four. None: any. Auto: "
            "P800x8 for whole cards and slices, None for shares."
        ),
    ] = "Auto"
    devices: Annotated[
        tuple[NodeXPUDevice, ...], Field(max_length=MOST_DEVICES, description="The devices.")
    ] = ()


class XPUAllocation(Model):
    """What one pod has of one device."""

    pod_uid: Annotated[str, Field(alias="podUID", description="The pod's uid.")] = ""
    namespace: Annotated[str, Field(description="The pod's namespace.")] = ""
    name: Annotated[str, Field(description="The pod's name.")] = ""
    memory_mib: Annotated[_Count, Field(alias="memoryMiB", description="MiB of this device.")] = 0
    dialect: Annotated[str, Field(description="How it was asked for.")] = ""
    phase: Annotated[
        Literal["Reserved", "Bound", "Assigned", "Releasing"],
        Field(
            description="Reserved: placed, not bound. Bound: not handed out by the device plugin "
            "yet. Assigned: handed out. Releasing: being deleted, still held."
        ),
    ] = "Bound"
    since: Annotated[str | None, Field(description="When the pod was made.")] = None


class XPUPending(Model):
    """A bound pod that asks for devices and has none that anybody knows of."""

    pod_uid: Annotated[str, Field(alias="podUID", description="The pod's uid.")] = ""
    namespace: Annotated[str, Field(description="The pod's namespace.")] = ""
    name: Annotated[str, Field(description="The pod's name.")] = ""
    memory_mib: Annotated[_Count, Field(alias="memoryMiB", description="MiB that it asks.")] = 0


class NodeXPUDeviceStatus(Model):
    """One device as it is."""

    index: Annotated[int, Field(ge=0, le=MOST_DEVICES - 1, description="As in `spec`.")]
    health: Annotated[Health, Field(description="Only Healthy devices take pods.")] = "Healthy"
    state: Annotated[str, Field(description="The state's letter by the vendor's tool.")] = ""
    reason: Annotated[str, Field(description="Why it is not healthy.")] = ""
    last_transition_time: Annotated[
        str | None, Field(description="When `health` last changed.")
    ] = None
    used_mib: Annotated[
        int | None, Field(alias="usedMiB", description="Measured: memory in use.")
    ] = None
    l3_used_mib: Annotated[
        int | None, Field(alias="l3UsedMiB", description="Measured: L3 cache in use.")
    ] = None
    utilisation_percent: Annotated[int | None, Field(description="Measured.")] = None
    temperature_celsius: Annotated[int | None, Field(description="Measured.")] = None
    power_watts: Annotated[int | None, Field(description="Measured.")] = None
    frequency_mhz: Annotated[int | None, Field(alias="frequencyMHz", description="Measured.")] = (
        None
    )
    allocated_mib: Annotated[
        int, Field(alias="allocatedMiB", description="What pods have of it.")
    ] = 0
    slice_mib: Annotated[
        int | None, Field(alias="sliceMiB", description="Size of its slices, where it has some.")
    ] = None
    allocations: Annotated[
        tuple[XPUAllocation, ...], Field(description="Who has how much of it.")
    ] = ()


class XPUTotals(Model):
    """Sums over the node; `largestFreeMiB` is what one pod can still get of one device."""

    devices: int = 0
    healthy: int = 0
    memory_mib: Annotated[int, Field(alias="memoryMiB")] = 0
    allocated_mib: Annotated[int, Field(alias="allocatedMiB")] = 0
    free_mib: Annotated[int, Field(alias="freeMiB")] = 0
    largest_free_mib: Annotated[int, Field(alias="largestFreeMiB")] = 0
    pending_mib: Annotated[int, Field(alias="pendingMiB")] = 0


class NodeXPUStatus(Model):
    """State: the agent's measurements, and what pods have."""

    observed_generation: int | None = None
    heartbeat_time: Annotated[
        str | None, Field(description="The agent's last sign of life; absent: there is no agent.")
    ] = None
    runtime_version: Annotated[str | None, Field(description="Of the XPU runtime.")] = None
    driver_version: Annotated[str | None, Field(description="Of the XPU driver.")] = None
    totals: Annotated[XPUTotals | None, Field(description="Sums over the node.")] = None
    devices: Annotated[
        tuple[NodeXPUDeviceStatus, ...], Field(description="Each device as it is.")
    ] = ()
    pending: Annotated[
        tuple[XPUPending, ...], Field(description="Bound pods without a device.")
    ] = ()
    conditions: tuple[StatusCondition, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeXPU:
    """A NodeXPU as read; faults that were passed over are in `problems`."""

    name: str
    uid: str = ""
    generation: int = 0
    spec: NodeXPUSpec = field(default_factory=NodeXPUSpec)
    status: NodeXPUStatus = field(default_factory=NodeXPUStatus)
    problems: tuple[str, ...] = ()


def node_xpu_from_manifest(manifest: Mapping[str, Any]) -> NodeXPU:
    """Read a NodeXPU; never raises: devices that cannot be read are left out and named."""
    metadata = _object(manifest.get("metadata"))
    spec, status = _object(manifest.get("spec")), _object(manifest.get("status"))
    problems: list[str] = []
    devices = _models(NodeXPUDevice, spec.get("devices"), "spec.devices", problems)
    found = _models(NodeXPUDeviceStatus, status.get("devices"), "status.devices", problems)
    heartbeat = status.get("heartbeatTime")
    return NodeXPU(
        name=str(metadata.get("name", "")),
        uid=str(metadata.get("uid", "")),
        generation=generation if isinstance(generation := metadata.get("generation"), int) else 0,
        spec=NodeXPUSpec(
            source=_one_of(spec, "source", ("Agent", "HAMiAnnotation", "Capacity"), problems),
            topology=_one_of(spec, "topology", ("Auto", "None", "P800x8"), problems),
            devices=_unique(devices, problems),
        ),
        status=NodeXPUStatus(
            heartbeat_time=heartbeat if isinstance(heartbeat, str) else None,
            devices=tuple(found),
        ),
        problems=tuple(problems),
    )


def _unique(devices: Sequence[NodeXPUDevice], problems: list[str]) -> tuple[NodeXPUDevice, ...]:
    """Return the devices by index, the first of those that share an index or an id."""
    kept: dict[int, NodeXPUDevice] = {}
    ids: set[str] = set()
    for device in devices:
        if device.index in kept or device.id in ids:
            problems.append(
                f"spec.devices: index {device.index} or id {device.id} is there already; "
                "the device is ignored"
            )
            continue
        kept[device.index] = device
        ids.add(device.id)
    return tuple(kept[index] for index in sorted(kept))


def _one_of(found: Mapping[str, Any], key: str, known: Sequence[str], problems: list[str]) -> Any:
    value = found.get(key, known[0])
    if value in known:
        return value
    problems.append(f"spec.{key}: expected one of {', '.join(known)}, found {value!r:.60}")
    return known[0]


def _models(model: type[Any], value: object, at: str, problems: list[str]) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list | tuple):
        problems.append(f"{at}: expected a list, found {type(value).__name__}")
        return []
    if len(value) > MOST_DEVICES:
        problems.append(f"{at}: more than {MOST_DEVICES}, the rest is not read")
    read = []
    for number, entry in enumerate(value[:MOST_DEVICES]):
        try:
            read.append(model.model_validate(entry))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            problems.append(f"{at}[{number}].{where}: {first['msg']}; it is ignored"[:_SHOWN_CHARS])
    return read


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
