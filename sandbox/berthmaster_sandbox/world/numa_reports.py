"""The NodeResourceTopology that a topology updater publishes of a kubelet, in either dialect.

Both read what the kubelet's podresources socket tells: of each running pod its app containers and
sidecars, never its ordinary init containers. NFD's topology-updater and the resource-topology-exporter
then differ in whom they count, how they charge what lies in several zones, and what they write beside
the zones. Upstream writes in random order; give a random generator to have that.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from berthmaster_sandbox.world.numa_fingerprints import fingerprint
from berthmaster_sandbox.world.numa_kubelet import NumaKubelet, Running
from berthmaster_sandbox.world.numa_machines import CPU, Machine, Zone
from berthmaster_sandbox.world.numa_placements import METADATA, VECTOR, encode
from berthmaster_sandbox.world.numa_pods import Qos, Role
from berthmaster_sandbox.world.numa_verdicts import Holding

API_VERSION = "topology.node.k8s.io/v1alpha2"
KIND = "NodeResourceTopology"
FINGERPRINT = "nodeTopologyPodsFingerprint"
FINGERPRINT_METHOD = "nodeTopologyPodsFingerprintMethod"
FINGERPRINT_ANNOTATION = "topology.node.k8s.io/fingerprint"
UPDATE_ANNOTATION = "k8stopoawareschedwg/rte-update"
ALL_PODS = "all"
EXCLUSIVE_PODS = "with-exclusive-resources"

Report = dict[str, Any]
# Zone id to resource name to amount.
_Table = dict[int, dict[str, int]]

_DEPRECATED_POLICIES = {
    ("single-numa-node", "pod"): "SingleNUMANodePodLevel",
    ("single-numa-node", "container"): "SingleNUMANodeContainerLevel",
    ("restricted", "pod"): "RestrictedPodLevel",
    ("restricted", "container"): "RestrictedContainerLevel",
    ("best-effort", "pod"): "BestEffortPodLevel",
    ("best-effort", "container"): "BestEffortContainerLevel",
}


class Dialect(Enum):
    """Name the updaters."""

    NFD = "nfd-topology-updater"
    RTE = "resource-topology-exporter"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportHabits:
    """What an updater is told to write.

    `method` is which pods RTE's fingerprint covers; NFD's covers all. RTE also tells in which zone each
    container lies, if there is more than one zone and no container lies in several.
    """

    dialect: Dialect = Dialect.NFD
    has_fingerprint: bool = True
    method: str = EXCLUSIVE_PODS
    trigger: str = "reactive"
    has_placement: bool = True


def build_report(
    node: str,
    kubelet: NumaKubelet,
    habits: ReportHabits,
    *,
    owner: Mapping[str, Any] | None = None,
    rng: random.Random | None = None,
) -> Report:
    """Return the whole object as it is now; `owner` is an owner reference."""
    metadata: dict[str, Any] = {"name": node}
    if owner is not None:
        metadata["ownerReferences"] = [dict(owner)]
    report: Report = {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata}
    attributes = _policy_attributes(kubelet.machine)
    if habits.dialect is Dialect.NFD:
        settings = kubelet.machine.settings
        key = (settings.topology_manager_policy, settings.topology_manager_scope)
        report["topologyPolicies"] = [_DEPRECATED_POLICIES.get(key, "None")]
        if habits.has_fingerprint and kubelet.pods:
            attributes.append((FINGERPRINT, _fingerprint(kubelet.pods.values())))
    else:
        attributes.reverse()
        annotations = {UPDATE_ANNOTATION: habits.trigger}
        if habits.has_fingerprint:
            is_all = habits.method == ALL_PODS
            text = _fingerprint(
                it for it in kubelet.pods.values() if is_all or _is_exclusive(kubelet, it)
            )
            attributes = [(FINGERPRINT, text), (FINGERPRINT_METHOD, habits.method), *attributes]
            annotations[FINGERPRINT_ANNOTATION] = text
        metadata["annotations"] = annotations
    report["zones"] = _zones(kubelet, habits.dialect, rng)
    placement = _placement(kubelet) if habits.dialect is Dialect.RTE else None
    if placement is not None and habits.has_placement:
        text, vectors = placement
        attributes.append((METADATA, text))
        for zone, vector in vectors.items():
            report["zones"][zone]["attributes"] = [{"name": VECTOR, "value": vector}]
    report["attributes"] = [{"name": name, "value": value} for name, value in attributes]
    return report


def _placement(kubelet: NumaKubelet) -> tuple[str, dict[int, str]] | None:
    """Return the placement attributes; zones are named by their places, as RTE numbers them."""
    zone_of = {}
    for running in kubelet.pods.values():
        for container in running.pod.containers:
            if container.role is Role.INIT:
                continue
            zones = _zones_of(kubelet, running.holdings[container.name])
            if len(zones) > 1:
                return None
            for zone in zones:
                zone_of[running.pod.namespace, running.pod.name, container.name] = zone
    ids = [it.id for it in kubelet.machine.zones]
    if len(ids) < 2 or ids != list(range(len(ids))):
        return None
    return encode(zone_of, len(ids))


def _zones_of(kubelet: NumaKubelet, holding: Holding) -> set[int]:
    """Return the zones in which a container has anything of its own."""
    zones = {zone for zone, count in holding.cpus.items() if count}
    for block_zones, _ in holding.memory.values():
        zones.update(block_zones)
    for name, ids in holding.devices.items():
        for id_ in ids:
            zones.update(kubelet.device_zones(name, id_))
    return zones


def _policy_attributes(machine: Machine) -> list[tuple[str, str]]:
    return [
        ("topologyManagerPolicy", machine.settings.topology_manager_policy),
        ("topologyManagerScope", machine.settings.topology_manager_scope),
    ]


def _fingerprint(pods: Iterable[Running]) -> str:
    return fingerprint((it.pod.namespace, it.pod.name) for it in pods)


def _shown(running: Running) -> Iterator[Holding]:
    """Yield what podresources shows: containers that run for the pod's whole life."""
    for container in running.pod.containers:
        if container.role is not Role.INIT:
            yield running.holdings[container.name]


def _is_exclusive(kubelet: NumaKubelet, running: Running) -> bool:
    return any(_zones_of(kubelet, it) for it in _shown(running))


def _zones(
    kubelet: NumaKubelet, dialect: Dialect, rng: random.Random | None
) -> list[dict[str, Any]]:
    machine = kubelet.machine
    allocatable = _allocatable(machine)
    available = {id_: dict(amounts) for id_, amounts in allocatable.items()}
    for running in kubelet.pods.values():
        if dialect is Dialect.NFD:
            _charge_nfd(kubelet, running, available)
        else:
            _charge_rte(kubelet, running, available)
    zones = [
        {
            "name": f"node-{zone.id}",
            "type": "Node",
            "costs": [
                {"name": f"node-{other.id}", "value": zone.distance(other.id)}
                for other in machine.zones
            ],
            "resources": _shuffled(
                [
                    _resource(name, _capacity(zone, name, amount), amount, available[zone.id][name])
                    for name, amount in allocatable[zone.id].items()
                ],
                rng,
            ),
        }
        for zone in machine.zones
    ]
    return _shuffled(zones, rng) if dialect is Dialect.NFD else zones


def _shuffled(items: list[dict[str, Any]], rng: random.Random | None) -> list[dict[str, Any]]:
    return items if rng is None else rng.sample(items, len(items))


def _resource(name: str, capacity: int, allocatable: int, available: int) -> dict[str, Any]:
    return {
        "name": name,
        "capacity": str(capacity),
        "allocatable": str(allocatable),
        "available": str(available),
    }


def _allocatable(machine: Machine) -> _Table:
    """Return what may be had of each zone, of the resources that the kubelet reports for it."""
    table: _Table = {}
    for zone in machine.zones:
        amounts: dict[str, int] = {}
        cpus = zone.cpus - zone.reserved_cpus
        if machine.settings.has_exclusive_cpus and cpus:
            amounts[CPU] = cpus
        if machine.settings.has_pinned_memory:
            amounts |= {name: size for name, size in zone.allocatable().items() if size}
        for device in machine.devices:
            if zone.id in device.zones and device.is_healthy:
                amounts[device.resource] = amounts.get(device.resource, 0) + 1
        table[zone.id] = amounts or {CPU: 0}
    return table


def _capacity(zone: Zone, name: str, allocatable: int) -> int:
    if name == CPU:
        return zone.cpus
    return max(zone.capacity().get(name, 0), allocatable)


def _charge_nfd(kubelet: NumaKubelet, running: Running, available: _Table) -> None:
    """Take off what a pod holds; a device of several zones counts in its last one only."""
    pod = running.pod
    is_guaranteed = pod.qos is Qos.GUARANTEED
    has_whole_cpus = is_guaranteed and any(it.whole_cpus for it in pod.containers)
    for holding in _shown(running):
        if has_whole_cpus:
            _charge(available, CPU, holding.cpus)
        for name, ids in holding.devices.items():
            for id_ in ids:
                zones = kubelet.device_zones(name, id_)
                _charge(available, name, {zone: 1 for zone in zones[-1:]})
        for name, (block_zones, size) in holding.memory.items() if is_guaranteed else ():
            left = size
            for zone in block_zones:
                part = min(left, available[zone].get(name, 0))
                _charge(available, name, {zone: part})
                left -= part


def _charge_rte(kubelet: NumaKubelet, running: Running, available: _Table) -> None:
    """Take off what a pod holds; what is of several zones counts in full in each, down to zero."""
    for holding in _shown(running):
        _charge(available, CPU, holding.cpus)
        for name, ids in holding.devices.items():
            for id_ in ids:
                _charge(available, name, dict.fromkeys(kubelet.device_zones(name, id_), 1))
        for name, (zones, size) in holding.memory.items():
            _charge(available, name, dict.fromkeys(zones, size))


def _charge(available: _Table, name: str, amounts: Mapping[int, int]) -> None:
    for zone, amount in amounts.items():
        if name in available[zone]:
            available[zone][name] = max(available[zone][name] - amount, 0)


def amounts_of(report: Mapping[str, Any], field: str = "available") -> dict[str, dict[str, int]]:
    """Return a report's amounts by zone and resource name."""
    zones: Sequence[Mapping[str, Any]] = report["zones"]
    return {
        zone["name"]: {it["name"]: int(it[field]) for it in zone["resources"]} for zone in zones
    }
