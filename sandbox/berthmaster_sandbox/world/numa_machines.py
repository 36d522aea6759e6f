"""A simulated machine with NUMA zones, and how its kubelet is set up.

Owns the checks that a kubelet makes before it starts. Amounts are whole CPUs (hardware threads) and
bytes. Every zone is a socket of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from typing import NamedTuple

CPU = "cpu"
MEMORY = "memory"
PODS = "pods"
HUGEPAGES_PREFIX = "hugepages-"
TOPOLOGY_POLICIES = ("none", "best-effort", "restricted", "single-numa-node")
TOPOLOGY_SCOPES = ("container", "pod")
LOCAL_DISTANCE = 10
REMOTE_DISTANCE = 20
# The bits of the kubelet's masks.
_MAX_ZONE_ID = 63


class Mask(NamedTuple):
    """A set of zones: bit n is zone n."""

    bits: int
    zones: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Zone:
    """One NUMA node.

    `memory` is all of its memory, that of huge pages included; `hugepages` are bytes by resource name
    (`hugepages-2Mi`). `reserved_memory` is kept for the system, by resource name. The first
    `reserved_cpus` CPUs are never exclusive. `distances` name only what differs from 10 here, 20 there.
    """

    id: int
    cpus: int
    memory: int
    hugepages: Mapping[str, int] = field(default_factory=dict)
    reserved_cpus: int = 0
    reserved_memory: Mapping[str, int] = field(default_factory=dict)
    distances: Mapping[int, int] = field(default_factory=dict)

    def capacity(self) -> dict[str, int]:
        """Return the bytes of each kind of memory that there are."""
        return {MEMORY: self.memory, **self.hugepages}

    def allocatable(self) -> dict[str, int]:
        """Return the bytes of each kind of memory that pods may have."""
        amounts = {MEMORY: self.memory - sum(self.hugepages.values()), **self.hugepages}
        return {name: size - self.reserved_memory.get(name, 0) for name, size in amounts.items()}

    def distance(self, other: int) -> int:
        """Return the distance to another zone, as ACPI's SLIT has it."""
        return self.distances.get(other, LOCAL_DISTANCE if other == self.id else REMOTE_DISTANCE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One device of a device plugin; without `zones` its plugin reports no NUMA nodes for it."""

    resource: str
    id: str
    zones: tuple[int, ...] = ()
    is_healthy: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class KubeletSettings:
    """The kubelet's options, by their own names and with their own defaults."""

    topology_manager_policy: str = "none"
    topology_manager_scope: str = "container"
    prefer_closest_numa_nodes: bool = False
    max_allowable_numa_nodes: int = 8
    cpu_manager_policy: str = "none"
    full_pcpus_only: bool = False
    memory_manager_policy: str = "None"

    @property
    def has_exclusive_cpus(self) -> bool:
        """Return whether whole CPUs of Guaranteed pods are theirs alone."""
        return self.cpu_manager_policy == "static"

    @property
    def has_pinned_memory(self) -> bool:
        """Return whether memory of Guaranteed pods comes from chosen zones."""
        return self.memory_manager_policy == "Static"


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The hardware of a node and its kubelet's options.

    Raises:
        ValueError: no such machine, or a kubelet would not start on it.
    """

    zones: tuple[Zone, ...]
    devices: tuple[Device, ...] = ()
    settings: KubeletSettings = field(default_factory=KubeletSettings)
    threads_per_core: int = 1
    max_pods: int = 110

    def __post_init__(self) -> None:
        self._check_settings()
        self._check_zones()
        ids = {zone.id for zone in self.zones}
        if len({(it.resource, it.id) for it in self.devices}) != len(self.devices):
            raise ValueError("two devices of one resource have the same id")
        for device in self.devices:
            if not ids.issuperset(device.zones):
                raise ValueError(f"device {device.id} is in a zone that the machine lacks")

    def _check_settings(self) -> None:
        settings = self.settings
        if settings.topology_manager_policy not in TOPOLOGY_POLICIES:
            raise ValueError(f"topology manager policy {settings.topology_manager_policy!r}")
        if settings.topology_manager_scope not in TOPOLOGY_SCOPES:
            raise ValueError(f"topology manager scope {settings.topology_manager_scope!r}")
        if settings.cpu_manager_policy not in {"none", "static"}:
            raise ValueError(f"CPU manager policy {settings.cpu_manager_policy!r}")
        if settings.memory_manager_policy not in {"None", "Static"}:
            raise ValueError(f"memory manager policy {settings.memory_manager_policy!r}")
        is_counted = settings.topology_manager_policy != "none"
        if is_counted and len(self.zones) > settings.max_allowable_numa_nodes:
            raise ValueError(f"{len(self.zones)} zones are more than max-allowable-numa-nodes")
        if settings.has_exclusive_cpus and not any(zone.reserved_cpus for zone in self.zones):
            raise ValueError("the static CPU manager needs reserved CPUs")
        if settings.has_pinned_memory and not any(
            zone.reserved_memory.get(MEMORY) for zone in self.zones
        ):
            raise ValueError("the Static memory manager needs reserved memory")

    def _check_zones(self) -> None:
        ids = [zone.id for zone in self.zones]
        if not ids or ids != sorted(set(ids)) or ids[0] < 0 or ids[-1] > _MAX_ZONE_ID:
            raise ValueError(f"zone ids {ids} are not ascending numbers of 0 to {_MAX_ZONE_ID}")
        for zone in self.zones:
            if zone.reserved_cpus > zone.cpus or min(zone.allocatable().values()) < 0:
                raise ValueError(f"zone {zone.id} keeps more for the system than it has")
            if zone.cpus % self.threads_per_core:
                raise ValueError(f"zone {zone.id} has half a core")

    @cached_property
    def zone_by_id(self) -> Mapping[int, Zone]:
        """Return the zones by id."""
        return {zone.id: zone for zone in self.zones}

    @cached_property
    def masks(self) -> tuple[Mask, ...]:
        """Return every set of zones in the order in which the kubelet goes through them."""
        ids = [zone.id for zone in self.zones]
        return tuple(
            Mask(sum(1 << id_ for id_ in chosen), chosen)
            for size in range(1, len(ids) + 1)
            for chosen in combinations(ids, size)
        )

    @cached_property
    def every_zone(self) -> int:
        """Return the mask of all zones."""
        return sum(1 << zone.id for zone in self.zones)

    def capacity(self) -> dict[str, int]:
        """Return the Node's `status.capacity`, as plain numbers."""
        total = {CPU: sum(zone.cpus for zone in self.zones), PODS: self.max_pods}
        for zone in self.zones:
            for name, size in zone.capacity().items():
                total[name] = total.get(name, 0) + size
        for device in self.devices:
            total[device.resource] = total.get(device.resource, 0) + 1
        return total

    def allocatable(self) -> dict[str, int]:
        """Return the Node's `status.allocatable`, as plain numbers."""
        total = {CPU: sum(it.cpus - it.reserved_cpus for it in self.zones), PODS: self.max_pods}
        for zone in self.zones:
            for name, size in zone.allocatable().items():
                total[name] = total.get(name, 0) + size
        for device in self.devices:
            total[device.resource] = total.get(device.resource, 0) + int(device.is_healthy)
        return total
