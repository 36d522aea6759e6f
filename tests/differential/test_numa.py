"""Our verdict on random nodes with NUMA zones against that of a simulated kubelet.

The simulated kubelet is written from the kubelet's rules alone (`berthmaster_sandbox.world`). In each world
some pods run, an updater has just looked, and one pod more is asked about: our filter, with the settings
that nobody has changed, sees the Node, the pods and the NodeResourceTopology, and the kubelet is asked
itself. What the node as a whole has no room for is left out; that is another concern's matter. Where the two
differ there must be a cause that has a name, can be seen in the world, and without which they agree.

    python -m pytest tests/differential/test_numa.py
    DIFFERENTIAL_WORLDS=20000 python -m pytest tests/differential/test_numa.py -s      for an hour
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import chain, combinations
from typing import Any

import pytest

from berthmaster.api.inventory import NodeInventoryStatus
from berthmaster.api.objects import node_from_manifest, pod_from_manifest
from berthmaster.api.policy import PlacementPolicySpec
from berthmaster.api.topology import topology_from_manifest
from berthmaster.cli.cases.worlds import as_read
from berthmaster.concerns.numa import CONCERN as NUMA
from berthmaster.concerns.numa.inventory import PodOnNode, build_topology
from berthmaster.concerns.numa.request import holds_exclusive
from berthmaster.concerns.resources import CONCERN as RESOURCES
from berthmaster.placement.engine import Engine
from berthmaster_sandbox.world.numa_kubelet import NumaKubelet
from berthmaster_sandbox.world.numa_machines import (
    TOPOLOGY_POLICIES,
    TOPOLOGY_SCOPES,
    Machine,
)
from berthmaster_sandbox.world.numa_pods import PodView, Role, read_pod
from berthmaster_sandbox.world.numa_random import NumaCase, Traits, build_case, node_has_room
from berthmaster_sandbox.world.numa_reports import EXCLUSIVE_PODS, Dialect, ReportHabits
from berthmaster_sandbox.world.numa_verdicts import UNEXPECTED_ADMISSION_ERROR, Admitted, Rejected

pytestmark = pytest.mark.timeout(4 * 3600)

Manifest = dict[str, Any]
Change = Callable[[Manifest], Manifest]
WORLDS = int(os.environ.get("DIFFERENTIAL_WORLDS", "600"))
POLICY = PlacementPolicySpec()
NATIVE = ("memory", "hugepages-1Gi")
# Half of the worlds have one updater, half the other.
HABITS = (
    ReportHabits(dialect=Dialect.NFD),
    ReportHabits(dialect=Dialect.RTE, method=EXCLUSIVE_PODS),
)


@dataclass(frozen=True)
class World:
    """What our filter sees, and the kubelet's own answer."""

    case: NumaCase
    habits: ReportHabits
    report: Manifest
    running: tuple[Manifest, ...]
    pod: Manifest
    verdict: Admitted | Rejected

    @property
    def view(self) -> PodView:
        return read_pod(self.pod)

    @property
    def policy(self) -> str:
        return self.case.machine.settings.topology_manager_policy

    def is_admitted(self) -> bool:
        return isinstance(self.verdict, Admitted)


def build_world(seed: int, policy: str, scope: str) -> World:
    case = build_case(seed, Traits(policies=[policy], scopes=[scope]))
    habits = HABITS[seed % len(HABITS)]
    return World(
        case=case,
        habits=habits,
        report=case.report(habits),
        running=case.running,
        pod=case.next_pod,
        verdict=case.kubelet.copy().admit(read_pod(case.next_pod)),
    )


def refusal(world: World) -> str:
    """Return why our filter refuses the pod, by the way that an object takes: empty if it does not."""
    pods = [pod_from_manifest(it) for it in world.running]
    seen = []
    for pod in pods:
        is_exclusive, devices = holds_exclusive(pod)
        seen.append(
            PodOnNode(
                uid=pod.metadata.uid,
                namespace=pod.metadata.namespace,
                name=pod.metadata.name,
                created_s=1.0,
                started_s=2.0,
                is_exclusive=is_exclusive,
                devices=devices,
            )
        )
    written = {"time": "2026-01-01T00:00:00Z", "fieldsV1": {"f:zones": {}}}
    metadata = {**world.report["metadata"], "managedFields": [written]}
    built = build_topology(topology_from_manifest({**world.report, "metadata": metadata}), seen)
    status = NodeInventoryStatus(topology=built.topology, zones=built.zones)
    node = node_from_manifest(world.case.node_manifest())
    engine = Engine([RESOURCES, NUMA])
    engine.configure([POLICY])
    engine.ledger.write_node(
        node,
        as_read(node.metadata.name, status),
    )
    for pod in pods:
        engine.ledger.see(pod)
    (verdict,) = engine.verdicts(engine.read_request(pod_from_manifest(world.pod), POLICY))
    return verdict.reason.text if verdict.reason is not None else ""


# Causes: what can be seen in a world, and the same world without it.


def without_init(manifest: Manifest) -> Manifest:
    """Return a pod of which only what runs for its whole life is left."""
    found = deepcopy(manifest)
    spec = found["spec"]
    spec["initContainers"] = [it for it in spec.get("initContainers", ()) if "restartPolicy" in it]
    return found


def has_init(manifest: Manifest) -> bool:
    return any(it.role is Role.INIT for it in read_pod(manifest).containers)


def is_unexpected(world: World, words: str) -> bool:
    """Return whether the kubelet took the pod and could not give it something after all."""
    it = world.verdict
    return (
        world.policy in ("none", "best-effort")
        and isinstance(it, Rejected)
        and it.reason == UNEXPECTED_ADMISSION_ERROR
        and words in it.message
    )


def would_be_admitted(world: World, machine: Machine, change: Change = deepcopy) -> bool:
    """Return whether the kubelet of such a machine would admit the pod, all pods being changed."""
    kubelet = NumaKubelet(machine)
    for manifest in world.running:
        kubelet.admit(read_pod(change(manifest)))
    return isinstance(kubelet.admit(read_pod(change(world.pod))), Admitted)


def is_of_memory_manager(world: World) -> bool:
    """None and best-effort refuse nobody, so nor do we; but the memory manager keeps groups of zones apart."""
    machine = world.case.machine
    settings = replace(machine.settings, memory_manager_policy="None")
    return is_unexpected(world, "[memorymanager]") and would_be_admitted(
        world, replace(machine, settings=settings)
    )


def is_of_cpu_manager(world: World) -> bool:
    """A container that can have a whole zone does not use CPUs of init containers elsewhere again."""
    return is_unexpected(world, "not enough cpus") and would_be_admitted(
        world, world.case.machine, without_init
    )


def without_memory(world: World) -> World:
    report = deepcopy(world.report)
    for zone in report["zones"]:
        zone["resources"] = [it for it in zone["resources"] if it["name"] not in NATIVE]
    return replace(world, report=report)


def is_of_init_memory(world: World) -> bool:
    """Memory of an init container is not used again by a container that lies in another zone."""
    has_memory = any(
        size
        for running in world.case.kubelet.pods.values()
        for it in running.pod.containers
        if it.role is Role.INIT
        for _, size in running.holdings[it.name].memory.values()
    )
    kubelet = NumaKubelet(world.case.machine)
    for manifest in world.running:
        kubelet.admit(read_pod(without_init(manifest)))
    return has_memory and isinstance(kubelet.admit(world.view), Admitted)


def is_of_init_kinds(world: World) -> bool:
    """With scope pod the kubelet looks for zones without the kinds of memory that only init containers ask."""
    containers = world.view.containers
    of_apps = {name for it in containers if it.role is Role.APP for name in it.requests}
    kinds = {name for it in containers for name in it.requests if name in NATIVE}
    without = world.case.kubelet.copy().admit(read_pod(without_init(world.pod)))
    return bool(kinds - of_apps) and isinstance(without, Admitted)


def is_of_shared_devices(world: World) -> bool:
    """Of a device of several zones nobody tells that those of the other zones are one less, too."""
    shared = shared_devices(world)
    pod = deepcopy(world.pod)
    for it in (*pod["spec"]["containers"], *pod["spec"]["initContainers"]):
        for side in it["resources"].values():
            for name in shared & side.keys():
                del side[name]
    asking = [it for it in world.view.containers if shared & it.limits.keys()]
    without = world.case.kubelet.copy().admit(read_pod(pod))
    return len(asking) > 1 and isinstance(without, Admitted)


def has_shared_devices_in_nfd(world: World) -> bool:
    """A held device of several zones is missing from one of them only, in NFD's numbers."""
    asked = {name for it in world.view.containers for name in it.limits}
    return world.habits.dialect is Dialect.NFD and any(
        len(world.case.kubelet.device_zones(name, id_)) > 1
        for running in world.case.kubelet.pods.values()
        for holding in running.holdings.values()
        for name, ids in holding.devices.items()
        if name in asked
        for id_ in ids
    )


def with_other_updater(world: World) -> World:
    return replace(world, habits=HABITS[1], report=world.case.report(HABITS[1]))


def has_leftovers(world: World) -> bool:
    """Init containers of pods that others placed hold something in zones that nobody tells."""
    return any(map(has_init, world.running))


def without_leftovers(world: World) -> World:
    """Return the world with a report that tells what they hold, and without them."""
    report = deepcopy(world.report)
    for zone in report["zones"]:
        id_ = int(zone["name"].removeprefix("node-"))
        kubelet = world.case.kubelet
        free = {"cpu": kubelet.free_cpus(id_), **kubelet.free_memory(id_)}
        for it in zone["resources"]:
            least = min(int(it["available"]), free.get(it["name"], int(it["available"])))
            it["available"] = str(least)
    return replace(world, report=report, running=tuple(map(without_init, world.running)))


def shared_devices(world: World) -> set[str]:
    return {it.resource for it in world.case.machine.devices if len(it.zones) > 1}


def has_shared_init_devices(world: World) -> bool:
    """A device of several zones that an init container had binds to any of them."""
    shared = shared_devices(world)
    return any(it.role is Role.INIT and shared & it.limits.keys() for it in world.view.containers)


def without_shared_init_devices(world: World) -> World:
    pod = deepcopy(world.pod)
    for it in pod["spec"]["initContainers"]:
        for side in it["resources"].values():
            for name in shared_devices(world) & side.keys():
                del side[name]
    return replace(world, pod=pod)


def has_odd_cpus(world: World) -> bool:
    """Of CPUs that init containers had, perhaps one less is used again if a number is odd."""
    counts = [(it.role, it.whole_cpus) for it in world.view.containers]
    return any(role is Role.INIT and count for role, count in counts) and any(
        count % 2 for _, count in counts
    )


def without_init_cpus(world: World) -> World:
    pod = deepcopy(world.pod)
    for it in pod["spec"]["initContainers"]:
        if "restartPolicy" not in it:
            for side in it["resources"].values():
                side.update({"cpu": "500m"} if "cpu" in side else {})
    return replace(world, pod=pod)


def has_memory_across_zones(world: World) -> bool:
    """Which zones the memory of another pod ties together is not reported."""
    return world.policy == "restricted" and any(
        len(zones) > 1
        for running in world.case.kubelet.pods.values()
        for holding in running.holdings.values()
        for zones, _ in holding.memory.values()
    )


def goes_on_after_several_zones(world: World) -> bool:
    """Which of several zones gives how much, or which are taken, depends on what no report tells."""
    return world.policy == "restricted" and _first_across(world) is not None


def until_several_zones(world: World) -> World:
    pod, last = deepcopy(world.pod), _first_across(world)
    for group in ("initContainers", "containers"):
        listed = pod["spec"].get(group, [])
        names = [it["name"] for it in listed]
        if last in names:
            pod["spec"][group] = listed[: names.index(last) + 1]
            if group == "initContainers":
                pod["spec"]["containers"] = [{"name": "pause", "image": "any"}]
    return replace(world, pod=pod)


def _first_across(world: World) -> str | None:
    if not isinstance(world.verdict, Admitted):
        return None
    zones = world.verdict.zones
    named = [it.name for it in world.view.containers]
    return next((it for it in named[:-1] if len(zones[it]) > 1), None)


@dataclass(frozen=True)
class Cause:
    """Why we may differ. `relief` makes a world without it, where that has to show that it is the cause."""

    name: str
    is_there: Callable[[World], bool]
    relief: Callable[[World], World] | None = None


# We admit, the kubelet refuses.
TOO_KIND = (
    Cause("memory manager", is_of_memory_manager),
    Cause("CPU manager", is_of_cpu_manager),
    Cause("device of several zones", has_shared_devices_in_nfd, with_other_updater),
    Cause("device of several zones, twice", is_of_shared_devices),
    Cause("memory of init containers", is_of_init_memory),
    Cause("hugepages of init containers", is_of_init_kinds),
)
# We refuse, the kubelet admits.
TOO_STRICT = (
    Cause("init containers of others", has_leftovers, without_leftovers),
    Cause("odd CPUs used again", has_odd_cpus, without_init_cpus),
    Cause("device of several zones", has_shared_init_devices, without_shared_init_devices),
    Cause("memory across zones", has_memory_across_zones, without_memory),
    Cause("after several zones", goes_on_after_several_zones, until_several_zones),
)


def explain_strict(world: World) -> str:
    """Return the fewest causes together without which we would admit, empty if there are none."""
    there = [it for it in TOO_STRICT if it.is_there(world)]
    sets: Iterator[Sequence[Cause]] = chain.from_iterable(
        combinations(there, count) for count in range(1, len(there) + 1)
    )
    for causes in sets:
        relieved = world
        for cause in causes:
            relieved = cause.relief(relieved) if cause.relief is not None else relieved
        if not refusal(relieved):
            return " and ".join(it.name for it in causes)
    return ""


def explain_kind(world: World) -> str:
    """Return the first cause without which we would refuse, or the kubelet admit."""
    for it in TOO_KIND:
        if it.is_there(world) and (it.relief is None or refusal(it.relief(world))):
            return it.name
    return ""


@dataclass
class Tally:
    """What came out of the worlds of one policy and scope."""

    counts: Counter[str] = field(default_factory=Counter)
    causes: Counter[str] = field(default_factory=Counter)
    unexplained: list[str] = field(default_factory=list)

    def note(self, seed: int, world: World) -> None:
        if not node_has_room(world.case):
            self.counts["no room"] += 1
            return
        ours = refusal(world)
        if world.is_admitted() == (not ours):
            self.counts["both admit" if world.is_admitted() else "both refuse"] += 1
            return
        side = "we refuse" if ours else "we admit"
        self.counts[side] += 1
        cause = explain_strict(world) if ours else explain_kind(world)
        self.causes[f"{side}: {cause}"] += 1
        if not cause:
            self.unexplained.append(f"seed {seed}: {ours or 'admitted'}; {world.verdict}")

    def __str__(self) -> str:
        found: Mapping[str, int] = {**self.counts, **self.causes}
        return ", ".join(f"{count} {name}" for name, count in sorted(found.items()))


@pytest.mark.parametrize("scope", TOPOLOGY_SCOPES)
@pytest.mark.parametrize("policy", TOPOLOGY_POLICIES)
def test_every_verdict_is_the_kubelet_s(policy: str, scope: str) -> None:
    tally = Tally()
    for seed in range(WORLDS):
        tally.note(seed, build_world(seed, policy, scope))
    print(f"\n{policy}, {scope}, {WORLDS} worlds: {tally}")

    assert not tally.unexplained, "\n".join(tally.unexplained)
    assert tally.counts["both admit"] > WORLDS / 4
    assert tally.counts["we admit"] < WORLDS / 50
    assert tally.counts["we refuse"] < WORLDS / 50
    # Without refusals of both there would be little to compare.
    if policy in ("restricted", "single-numa-node"):
        assert tally.counts["both refuse"] > WORLDS / 50
