"""Random nodes with NUMA zones, pods that run there, and one pod more: the same for the same seed.

For differential tests: the kubelet's own answer to the next pod stands beside everything that a
scheduler would know, the Node, the running pods and the NodeResourceTopology of an updater that has
just looked. A scheduler that looks at zones alone is right to differ where `node_has_room` is false:
that is another one's test. Amounts are few and coarse, so that what is left and what is asked often meet exactly.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from berthmaster_sandbox.world.numa_kubelet import NumaKubelet
from berthmaster_sandbox.world.numa_machines import (
    CPU,
    MEMORY,
    PODS,
    TOPOLOGY_POLICIES,
    TOPOLOGY_SCOPES,
    Device,
    KubeletSettings,
    Machine,
    Zone,
)
from berthmaster_sandbox.world.numa_pods import read_pod
from berthmaster_sandbox.world.numa_reports import Report, ReportHabits, build_report
from berthmaster_sandbox.world.numa_verdicts import Admitted, Rejected

Manifest = dict[str, Any]

NODE = "numa-0001"
GI = 2**30
HUGEPAGES = "hugepages-1Gi"
GPU = "vendor.example/gpu"
NIC = "vendor.example/nic"
# A device without NUMA nodes.
KEY = "vendor.example/key"


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What random worlds may have.

    `policies`, `scopes`, `managers` (CPU, memory) are chosen from; the chances are of one pod or
    machine to have a thing.
    """

    policies: Sequence[str] = TOPOLOGY_POLICIES
    scopes: Sequence[str] = TOPOLOGY_SCOPES
    managers: Sequence[tuple[str, str]] = (
        ("static", "Static"),
        ("static", "Static"),
        ("static", "None"),
        ("none", "None"),
    )
    most_zones: int = 4
    most_pods: int = 8
    guaranteed: float = 0.75
    init_containers: float = 0.25
    sidecars: float = 0.2
    fractional_cpus: float = 0.15
    pod_level: float = 0.05
    gaps: float = 0.2
    spanning_devices: float = 0.15
    closest: float = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class NumaCase:
    """A node, the manifests of the pods that run there, and the pod that comes next."""

    seed: int
    machine: Machine
    kubelet: NumaKubelet
    running: tuple[Manifest, ...]
    next_pod: Manifest

    def node_manifest(self) -> Manifest:
        """Return the Node."""
        return build_node_manifest(NODE, self.machine)

    def report(self, habits: ReportHabits) -> Report:
        """Return what an updater publishes that looks now, in upstream's random order."""
        rng = random.Random(self.seed)  # noqa: S311 - no secret
        return build_report(NODE, self.kubelet, habits, rng=rng)


def kubelet_admits(case: NumaCase, pod: Manifest | None = None) -> tuple[bool, str]:
    """Return whether the kubelet admits the case's next pod (or another), and its reason if not."""
    verdict = case.kubelet.copy().admit(read_pod(case.next_pod if pod is None else pod))
    return isinstance(verdict, Admitted), verdict.reason if isinstance(verdict, Rejected) else ""


def node_has_room(case: NumaCase, pod: Manifest | None = None) -> bool:
    """Return whether the node as a whole has what the pod asks, as kube-scheduler counts.

    Unlike the kubelet, kube-scheduler refuses a node that lacks a resource altogether.
    """
    there = case.machine.allocatable()
    used: dict[str, Fraction] = {PODS: Fraction(len(case.running))}
    for manifest in case.running:
        for name, amount in read_pod(manifest).node_request().items():
            used[name] = used.get(name, Fraction(0)) + amount
    asked = read_pod(case.next_pod if pod is None else pod).node_request()
    return all(
        used.get(name, 0) + amount <= there.get(name, 0)
        for name, amount in {PODS: Fraction(1), **asked}.items()
        if amount
    )


def build_node_manifest(name: str, machine: Machine) -> Manifest:
    """Return a Node that has the machine's capacity and allocatable."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "uid": f"uid-{name}", "labels": {}},
        "spec": {},
        "status": {
            "capacity": {key: str(amount) for key, amount in machine.capacity().items()},
            "allocatable": {key: str(amount) for key, amount in machine.allocatable().items()},
        },
    }


def build_case(seed: int, traits: Traits | None = None) -> NumaCase:
    """Return the case of a seed."""
    rng = random.Random(seed)  # noqa: S311 - no secret
    chances = traits or Traits()
    machine = build_machine(rng, chances)
    kubelet = NumaKubelet(machine)
    running = []
    for index in range(rng.randint(0, chances.most_pods)):
        pod = build_pod(rng, chances, f"running-{index}")
        if isinstance(kubelet.admit(read_pod(pod)), Admitted):
            running.append({**pod, "status": {"phase": "Running"}})
    # Some went again, so that not only the lowest zones are full.
    for pod in list(running):
        if rng.random() < 0.3:
            running.remove(pod)
            kubelet.remove(pod["metadata"]["uid"])
    return NumaCase(
        seed=seed,
        machine=machine,
        kubelet=kubelet,
        running=tuple(running),
        next_pod=build_pod(rng, chances, "next", node=""),
    )


def build_machine(rng: random.Random, traits: Traits) -> Machine:
    """Return a random machine on which a kubelet starts."""
    count = rng.randint(1, traits.most_zones)
    ids = list(range(count))
    if rng.random() < traits.gaps:
        ids = sorted(rng.sample(range(2 * count + 1), count))
    threads = rng.choice((1, 2))
    cpus = rng.choice((4, 6, 8)) * threads
    zones = tuple(
        Zone(
            id=id_,
            cpus=cpus,
            memory=rng.choice((8, 12, 16)) * GI + 2 * GI,
            hugepages={HUGEPAGES: 2 * GI},
            # The first zone keeps something; the others may.
            reserved_cpus=threads if not index or rng.random() < 0.3 else 0,
            reserved_memory={MEMORY: GI} if not index or rng.random() < 0.3 else {},
            distances={other: rng.choice((12, 20, 21, 32)) for other in ids if other != id_},
        )
        for index, id_ in enumerate(ids)
    )
    cpu_policy, memory_policy = rng.choice(traits.managers)
    return Machine(
        zones=zones,
        devices=_build_devices(rng, traits, ids),
        threads_per_core=threads,
        settings=KubeletSettings(
            topology_manager_policy=rng.choice(traits.policies),
            topology_manager_scope=rng.choice(traits.scopes),
            prefer_closest_numa_nodes=rng.random() < traits.closest,
            cpu_manager_policy=cpu_policy,
            memory_manager_policy=memory_policy,
        ),
    )


def _build_devices(rng: random.Random, traits: Traits, ids: list[int]) -> tuple[Device, ...]:
    devices = [
        Device(resource=GPU, id=f"gpu-{zone}-{index}", zones=(zone,))
        for zone in ids
        for index in range(rng.choice((0, 1, 2, 2)))
    ]
    for index, zone in enumerate(rng.sample(ids, max(1, len(ids) - 1))):
        is_spanning = rng.random() < traits.spanning_devices
        zones = tuple(ids) if is_spanning else (zone,)
        devices.append(Device(resource=NIC, id=f"nic-{index}", zones=zones))
    devices += [Device(resource=KEY, id=f"key-{index}") for index in range(2)]
    return tuple(devices)


def build_pod(rng: random.Random, traits: Traits, name: str, *, node: str = NODE) -> Manifest:
    """Return a random pod that the API server would take."""
    is_guaranteed = rng.random() < traits.guaranteed
    spec: Manifest = {"containers": [], "initContainers": []}
    for index in range(rng.choice((1, 1, 2, 3))):
        spec["containers"].append(_build_container(rng, traits, f"app-{index}", is_guaranteed))
    if rng.random() < traits.init_containers:
        spec["initContainers"].append(_build_container(rng, traits, "init-0", is_guaranteed))
    if rng.random() < traits.sidecars:
        sidecar = _build_container(rng, traits, "sidecar-0", is_guaranteed)
        at = rng.randint(0, len(spec["initContainers"]))
        spec["initContainers"].insert(at, {**sidecar, "restartPolicy": "Always"})
    if rng.random() < traits.pod_level:
        whole = {CPU: str(rng.randint(8, 16)), MEMORY: f"{rng.randint(12, 24)}Gi"}
        spec["resources"] = {"requests": dict(whole), "limits": dict(whole)}
    if node:
        spec["nodeName"] = node
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "uid": f"uid-{name}"},
        "spec": spec,
        "status": {"phase": "Pending"},
    }


def _build_container(
    rng: random.Random, traits: Traits, name: str, is_guaranteed: bool
) -> Manifest:
    requests: dict[str, str] = {}
    if is_guaranteed or rng.random() < 0.7:
        is_fractional = rng.random() < traits.fractional_cpus
        requests[CPU] = "1500m" if is_fractional else str(rng.choice((1, 1, 2, 2, 3, 4, 6, 8)))
        requests[MEMORY] = f"{rng.choice((1, 1, 2, 3, 4, 6, 8))}Gi"
    if is_guaranteed and rng.random() < 0.15:
        requests[HUGEPAGES] = f"{rng.choice((1, 2))}Gi"
    for device, chance in ((GPU, 0.3), (NIC, 0.15), (KEY, 0.1)):
        if rng.random() < chance:
            requests[device] = str(rng.choice((1, 1, 2)))
    limits = dict(requests)
    if not is_guaranteed:
        limits.pop(MEMORY, None)
    return {"name": name, "image": "any", "resources": {"requests": requests, "limits": limits}}
