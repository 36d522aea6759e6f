"""The independent count after a turn: is every pod there, and no node past its line in any concern?

Read from the API server's objects alone. Nodes, disks and devices are counted as chaos counts them
(`berthmaster_sandbox.chaos.recount`). Zones are counted by kubelets that never saw a pod before: each
admits the pods of its node afresh, aligned, or turns one away. Datasets and power have no line that could be
passed; of a pod that asks all five concerns it is looked whether the answer names what its node really is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benching.fleets import CONCERNS, DEVICES, WATTS_FULL, WATTS_IDLE, WORKLOADS, Workload
from berthmaster.api import names
from berthmaster_sandbox.chaos.recount import Disk, Lines, Seen, decided, key_of, recount
from berthmaster_sandbox.world.disk_books import FAKE_DISKS
from berthmaster_sandbox.world.numa_kubelet import NumaKubelet
from berthmaster_sandbox.world.numa_machines import CPU, Machine
from berthmaster_sandbox.world.numa_pods import read_pod
from berthmaster_sandbox.world.numa_verdicts import Rejected
from berthmaster_sandbox.world.xpu_hosts import K200_MIB

Obj = Mapping[str, Any]
# Answers tell watts to a tenth.
_WATTS_STEP = 0.1
_WORKLOADS = {it.name: it for it in WORKLOADS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What the pods stand on: Nodes as JSON and, for a fleet, each one's machine and where gateways are."""

    nodes: Sequence[Obj]
    machine: Machine | None = None
    # Names of nodes by dataset.
    gateways: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @property
    def lines(self) -> Lines:
        """Return the lines of a fleet's disks and devices; none without a machine."""
        if self.machine is None:
            return Lines()
        amount = FAKE_DISKS["fakeDevice"].capacity
        disk = Disk(read=amount.read, write=amount.write, total=amount.total)
        devices = dict.fromkeys(range(DEVICES), K200_MIB)
        hosts = [it["metadata"]["name"] for it in self.nodes]
        return Lines(disks=dict.fromkeys(hosts, disk), devices=dict.fromkeys(hosts, devices))


def find_faults(ground: Ground, pods: Sequence[Obj], *, expected: int, at_s: float) -> list[str]:
    """Return what is wrong, in words; `at_s` is when the pods were listed, as Unix time."""
    bound = [it for it in pods if it["spec"].get("nodeName")]
    found = [
        str(it) for it in recount(Seen(nodes=ground.nodes, pods=pods, at_s=at_s), ground.lines)
    ]
    if len(bound) != expected:
        found.append(f"{len(bound)} pods are bound, expected {expected}")
    if ground.machine is not None:
        found += _past_zones(ground.machine, bound)
        places = {it["metadata"]["name"]: it["metadata"].get("labels", {}) for it in ground.nodes}
        found += [
            f"{key_of(pod)}: {words}"
            for pod in bound
            if (workload := _workload_of(pod)) is not None
            for words in _faults_of_answer(ground, places, pod, workload)
        ]
    return found


def _past_zones(machine: Machine, pods: Iterable[Obj]) -> Iterator[str]:
    by_node: dict[str, list[Obj]] = defaultdict(list)
    for pod in pods:
        by_node[pod["spec"]["nodeName"]].append(pod)
    for node, its in by_node.items():
        kubelet = NumaKubelet(machine)
        for pod in sorted(its, key=lambda it: (it["metadata"]["creationTimestamp"], key_of(it))):
            verdict = kubelet.admit(read_pod(pod))
            if isinstance(verdict, Rejected):
                yield f"{node}: its kubelet turns {key_of(pod)} away: {verdict.message}"
        yield from (f"{node}: {words}" for words in kubelet.audit())


def _workload_of(pod: Obj) -> Workload | None:
    return _WORKLOADS.get((pod["metadata"].get("labels") or {}).get("dataset.0.id", ""))


def _faults_of_answer(
    ground: Ground, places: Mapping[str, Mapping[str, str]], pod: Obj, workload: Workload
) -> Iterator[str]:
    """Find what the answer lacks, or says otherwise than the pod and its node do."""
    answer, node = decided(pod), pod["spec"]["nodeName"]
    allocated = answer.get("allocated", {})
    if lacking := sorted(CONCERNS - allocated.keys() | CONCERNS - answer.get("scores", {}).keys()):
        yield f"expected an answer of all five concerns, {', '.join(lacking)} gave none"
        return
    devices = allocated["xpu"]["devices"]
    given = sum(int(it["mem"]) for it in devices)
    if (given, len(devices)) != (workload.mib, workload.devices):
        yield f"has {given} MiB of {len(devices)} devices, asked {workload.mib} of {workload.devices}"
    if len(allocated["numa"]["zones"]) != 1:
        yield f"expected in one zone, found {allocated['numa']['zones']}"
    bandwidth = workload.bandwidth * 2**20
    if int(allocated["diskio"]["rbps"]) != bandwidth:
        yield f"has {allocated['diskio']['rbps']} of read bandwidth, asked {bandwidth}"
    tier = _tier(places, node, ground.gateways[workload.name])
    told = allocated["dataset"].get("datasets", {}).get(workload.name, {}).get("tier")
    if told != tier:
        yield f"its data score {told} by the answer, {tier} by the labels of {node}"
    watts, told_watts = _watts(ground, workload), allocated["power"].get("watts")
    if told_watts is None or abs(float(told_watts) - watts) > _WATTS_STEP:
        yield f"costs {told_watts} W by the answer, {watts:.2f} by the model"


def _watts(ground: Ground, workload: Workload) -> float:
    """Return what the pod adds by the PowerModel, a straight line."""
    cores = ground.machine.capacity()[CPU] if ground.machine is not None else 1
    return (WATTS_FULL - WATTS_IDLE) * workload.cpus / cores


def _tier(places: Mapping[str, Mapping[str, str]], node: str, gateways: Iterable[str]) -> int:
    """Return what the nearest gateway scores by the labels of nodes, as the default policy has it."""
    if node in gateways:
        return 100
    for label, tier in ((names.ZONE, 50), (names.REGION, 25)):
        if places[node].get(label) in {places[it].get(label) for it in gateways}:
            return tier
    return 0
