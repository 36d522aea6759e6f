"""Bursts of Guaranteed pods onto nodes with NUMA zones, with an event clock: nothing waits, nothing is real.

The engine decides as in the webhook. The simulated kubelets (`world/numa_kubelet.py`), which know nothing of
us, admit what is bound to them when they learn of it, each pod after a delay of its own, so not in the
order of the decisions. Updaters look some time after a change, and write what they saw some time after
that; the operator's code makes inventories of that, late as well. Pods that fit nowhere wait, and are
asked about again when an inventory is written.

    decide --> bound --learn_s--> kubelet admits, or turns away --look_s--> updater looks
       ^                                                                        |
       '------------ publish_s ---------- operator <---------- lag_s -----------'

What could have been placed at all is told by a perfect packer of the same pods in the same order: an
online one, which never moves a pod, but knows every kubelet's true state at once. It asks the kubelet itself
whether it would admit the pod, and chooses by our own scores, reckoned from topologies that are never
late. A node that our filter refuses and the kubelet would not is one of its choices too.

All times are seconds.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import count
from typing import Any

from berthmaster.api import names
from berthmaster.api.allocation import write_allocation
from berthmaster.api.inventory import NodeInventory, NodeInventoryStatus, Sources
from berthmaster.api.objects import Node, Pod, node_from_manifest, pod_from_manifest
from berthmaster.api.policy import PlacementPolicySpec
from berthmaster.api.topology import topology_from_manifest
from berthmaster.concerns import numa, resources
from berthmaster.concerns.numa.inventory import PodOnNode, build_topology
from berthmaster.concerns.numa.request import holds_exclusive
from berthmaster.placement.engine import Decision, Engine
from berthmaster_sandbox.world.numa_kubelet import NumaKubelet
from berthmaster_sandbox.world.numa_machines import Machine
from berthmaster_sandbox.world.numa_pods import read_pod
from berthmaster_sandbox.world.numa_random import (
    Traits,
    build_machine,
    build_node_manifest,
    build_pod,
)
from berthmaster_sandbox.world.numa_reports import (
    ALL_PODS,
    EXCLUSIVE_PODS,
    Dialect,
    ReportHabits,
    build_report,
)
from berthmaster_sandbox.world.numa_verdicts import TOPOLOGY_AFFINITY_ERROR, Admitted, Rejected

Manifest = dict[str, Any]

# When the API server's clock stood at 0 of ours; its times are whole seconds.
EPOCH_S = 1_800_000_000
HABITS = (
    ReportHabits(dialect=Dialect.NFD),
    ReportHabits(dialect=Dialect.NFD, has_fingerprint=False),
    ReportHabits(dialect=Dialect.RTE, method=EXCLUSIVE_PODS),
    ReportHabits(dialect=Dialect.RTE, method=ALL_PODS),
    ReportHabits(dialect=Dialect.RTE, has_fingerprint=False),
)
# Every pod Guaranteed, every kubelet with both managers, so that all of it is aligned somewhere.
EVERYTHING = Traits(guaranteed=1.0, pod_level=0.0, managers=(("static", "Static"),), most_zones=8)
TRAITS = replace(EVERYTHING, init_containers=0.0, sidecars=0.0, spanning_devices=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What comes when. `shapes` is how many kinds of pods there are.

    A kubelet learns of a pod `learn_s` after the decision, and up to `jitter_s` later: without jitter in
    the order of the decisions.
    """

    nodes: int = 200
    pods: int = 2000
    shapes: int = 60
    burst: int = 100
    every_s: float = 2.0
    learn_s: float = 0.2
    jitter_s: float = 1.0
    look_s: float = 4.5
    lag_s: float = 0.5
    publish_s: float = 1.0
    # An updater looks anyway after so long.
    period_s: float = 60.0
    seed: int = 1
    traits: Traits = TRAITS


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What came of it: pods that run by their kubelet's policy, rejections by policy and reason.

    `at_once` are the pods that were given a node at their first turn. `overfilled` are the kubelets' own
    words for anything of which more was given than there is.
    """

    placed: Counter[str] = field(default_factory=Counter)
    rejections: Counter[tuple[str, str]] = field(default_factory=Counter)
    overfilled: set[str] = field(default_factory=set)
    at_once: int = 0

    def count_rejected(self, reason: str, policy: str = "") -> int:
        """Return how many pods were turned away for a reason, by kubelets of one policy or of any."""
        return sum(
            number
            for (of_policy, of_reason), number in self.rejections.items()
            if of_reason == reason and policy in ("", of_policy)
        )


class _Host:
    """One node: its kubelet, and what the operator knows of it."""

    def __init__(self, name: str, machine: Machine, habits: ReportHabits, seed: int) -> None:
        self.name = name
        self.kubelet = NumaKubelet(machine)
        self.node: Node = node_from_manifest(build_node_manifest(name, machine))
        self.on_node: dict[str, PodOnNode] = {}
        # Whether its updater is about to look: because of a change, or because its period is over.
        self.is_changed = self.is_watched = False
        # Whether something that runs there is not in what its updater wrote.
        self.is_behind = False
        self._habits = habits
        self._random = random.Random(seed)  # noqa: S311 - no secret
        self._status: NodeInventoryStatus | None = None
        self._report = self.look()
        self._written_s = 0.0
        # The pod that its kubelet could not align last, and when.
        self._torn: tuple[str, float] = ("", 0.0)

    def look(self) -> Manifest:
        """Return what its updater sees now."""
        return build_report(self.name, self.kubelet, self._habits, rng=self._random)

    def write(self, report: Manifest, now_s: float) -> None:
        """Store what its updater saw."""
        self._report, self._written_s = report, now_s

    def tear(self, pod: str, now_s: float) -> None:
        """Note that the kubelet could not align a pod."""
        self._torn = (pod, now_s)

    def inventory(self) -> NodeInventory:
        """Return what the operator makes of what is stored."""
        torn, torn_s = self._torn
        nrt = replace(
            topology_from_manifest(self._report),
            uid=f"nrt-{self.name}",
            written_s=_stamp(self._written_s),
        )
        built = build_topology(
            nrt,
            self.on_node.values(),
            previous=self._status,
            refused=torn if _stamp(self._written_s) <= _stamp(torn_s) else "",
        )
        self.is_behind = bool(built.unreflected)
        self._status = NodeInventoryStatus(
            sources=Sources(topology=built.source), topology=built.topology, zones=built.zones
        )
        return NodeInventory(name=self.name, status=self._status)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """What a plan's seed gives: nodes by name, and pods in the order in which they come."""

    nodes: dict[str, tuple[Machine, ReportHabits]]
    pods: list[Manifest]


def draw(plan: Plan) -> Draw:
    """Return a plan's nodes and pods, the same each time."""
    rng = random.Random(plan.seed)  # noqa: S311 - no secret
    nodes = {
        f"numa-{index:04d}": (build_machine(rng, plan.traits), rng.choice(HABITS))
        for index in range(plan.nodes)
    }
    shapes = [build_pod(rng, plan.traits, "shape", node="") for _ in range(plan.shapes)]
    pods = [_name(rng.choice(shapes), f"p{index:05d}") for index in range(plan.pods)]
    return Draw(nodes=nodes, pods=pods)


class _World:
    """The nodes and pods of a plan, and an engine that knows the nodes as they are at the start."""

    def __init__(self, plan: Plan) -> None:
        drawn = draw(plan)
        self.plan = plan
        self.pods = drawn.pods
        self.policy = PlacementPolicySpec()
        self.engine = Engine([resources.CONCERN, numa.CONCERN])
        self.hosts: dict[str, _Host] = {}
        for index, (name, (machine, habits)) in enumerate(drawn.nodes.items()):
            host = self.hosts[name] = _Host(name, machine, habits, plan.seed + index)
            self.engine.ledger.write_node(host.node, host.inventory())
        self.outcome = Outcome()
        self.now_s = 0.0

    def decide(self, manifest: Manifest, avoid: frozenset[str] = frozenset()) -> Decision:
        """Return the engine's answer for a pod."""
        request = self.engine.read_request(pod_from_manifest(manifest), self.policy)
        return self.engine.decide(request, manifest["metadata"]["uid"], avoid=avoid)

    def admit(self, host: _Host, manifest: Manifest) -> bool:
        """Let a kubelet learn of a pod; return whether it takes it."""
        policy = host.kubelet.machine.settings.topology_manager_policy
        verdict = host.kubelet.admit(read_pod(manifest))
        self.outcome.overfilled.update(f"{host.name}: {it}" for it in host.kubelet.audit())
        if isinstance(verdict, Rejected):
            self.outcome.rejections[policy, verdict.reason] += 1
            if verdict.reason == TOPOLOGY_AFFINITY_ERROR:
                host.tear(manifest["metadata"]["name"], self.now_s)
            return False
        self.outcome.placed[policy] += 1
        return True


class _Late(_World):
    """The world as it is: everybody learns of everything late."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._random = random.Random(plan.seed + 1)  # noqa: S311 - no secret
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = count()
        self._waiting: list[Manifest] = []
        self._is_retrying = False

    def run(self) -> Outcome:
        """Play until nothing happens any more."""
        for index, manifest in enumerate(self.pods):
            at_s = index // self.plan.burst * self.plan.every_s
            self._after(at_s, lambda it=manifest: self._create(it))  # type: ignore[misc]
        while self._events:
            self.now_s, _, happen = heapq.heappop(self._events)
            happen()
        return self.outcome

    def _after(self, delay_s: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now_s + delay_s, next(self._serial), happen))

    def _create(self, manifest: Manifest) -> None:
        if self._place(manifest):
            self.outcome.at_once += 1
        else:
            self._waiting.append(manifest)

    def _place(self, manifest: Manifest) -> bool:
        decision = self.decide(manifest)
        if decision.node is None:
            return False
        pod = pod_from_manifest(manifest)
        ledger = self.engine.ledger
        ledger.assume(
            decision.id,
            node=decision.node,
            usages=ledger.usages_of(pod, decision.allocated),
            namespace=pod.metadata.namespace,
            name=pod.metadata.name,
            owner=pod.metadata.name,
            now_s=self.now_s,
        )
        allocation = write_allocation(decision.allocation("required"))
        metadata = {
            **manifest["metadata"],
            "annotations": {names.ALLOCATION: allocation},
            "creationTimestamp": None,
        }
        spec = {**manifest["spec"], "nodeName": decision.node}
        bound = {**manifest, "metadata": metadata, "spec": spec}
        host = self.hosts[decision.node]
        delay_s = self.plan.learn_s + self._random.uniform(0, self.plan.jitter_s)
        self._after(delay_s / 2, lambda: self._show(host, bound, "Pending"))
        self._after(delay_s, lambda: self._learn(host, bound))
        return True

    def _show(self, host: _Host, manifest: Manifest, phase: str) -> None:
        """Let watches show a pod."""
        status = {"phase": phase}
        if phase != "Pending":
            taken = datetime.fromtimestamp(_stamp(self.now_s), UTC)
            status["startTime"] = taken.strftime("%Y-%m-%dT%H:%M:%SZ")
        pod = pod_from_manifest({**manifest, "status": status})
        self.engine.ledger.see(pod)
        if pod.is_finished:
            host.on_node.pop(pod.metadata.uid, None)
        else:
            started_s = _stamp(self.now_s) if phase == "Running" else None
            before = host.on_node.get(pod.metadata.uid)
            created_s = before.created_s if before is not None else _stamp(self.now_s)
            host.on_node[pod.metadata.uid] = _seen(pod, created_s, started_s)
        self._after(self.plan.publish_s, lambda: self._publish(host))

    def _learn(self, host: _Host, manifest: Manifest) -> None:
        is_admitted = self.admit(host, manifest)
        delay_s = self._random.uniform(0, self.plan.jitter_s)
        phase = "Running" if is_admitted else "Failed"
        self._after(delay_s, lambda: self._show(host, manifest, phase))
        if is_admitted and not host.is_changed:
            host.is_changed = True
            self._after(self.plan.look_s, lambda: self._look(host))

    def _look(self, host: _Host) -> None:
        host.is_watched = host.is_changed = False
        report = host.look()
        self._after(self.plan.lag_s, lambda: self._write(host, report))

    def _write(self, host: _Host, report: Manifest) -> None:
        host.write(report, self.now_s)
        self._after(self.plan.publish_s, lambda: self._publish(host))

    def _publish(self, host: _Host) -> None:
        self.engine.ledger.write_node(host.node, host.inventory())
        if host.is_behind and not host.is_watched:
            host.is_watched = True
            self._after(self.plan.period_s, lambda: self._look(host))
        if not self._is_retrying:
            self._is_retrying = True
            self._after(0.0, self._retry)

    def _retry(self) -> None:
        """Ask again about those who wait, in their order; of equal pods one is asked about first."""
        self._is_retrying = False
        hopeless: set[str] = set()
        left = []
        for manifest in self._waiting:
            shape = manifest["metadata"]["labels"]["shape"]
            if shape in hopeless or not self._place(manifest):
                hopeless.add(shape)
                left.append(manifest)
        self._waiting = left


class _Perfect(_World):
    """The world as nobody has it: everything is known at once."""

    def run(self) -> Outcome:
        """Place every pod that its turn finds room for."""
        for manifest in self.pods:
            host = self._choose(manifest)
            if host is None:
                continue
            pod = {**manifest, "spec": {**manifest["spec"], "nodeName": host.name}}
            if not self.admit(host, pod):
                raise AssertionError(f"{host.name} took a copy of {manifest['metadata']['name']}")
            running = pod_from_manifest({**pod, "status": {"phase": "Running"}})
            self.engine.ledger.see(running)
            host.on_node[running.metadata.uid] = _seen(running, 0.0, 0.0)
            # Later than any start: the topology counts everything that runs.
            host.write(host.look(), 100.0)
            self.engine.ledger.write_node(host.node, host.inventory())
        self.outcome.at_once = self.outcome.placed.total()
        return self.outcome

    def _choose(self, manifest: Manifest) -> _Host | None:
        tried: set[str] = set()
        while (node := self.decide(manifest, frozenset(tried)).node) is not None:
            if self._would_admit(self.hosts[node], manifest):
                return self.hosts[node]
            tried.add(node)
        others = (host for name, host in self.hosts.items() if name not in tried)
        return next((host for host in others if self._would_admit(host, manifest)), None)

    def _would_admit(self, host: _Host, manifest: Manifest) -> bool:
        view = read_pod(manifest)
        # kube-scheduler wants every resource to be there, which the kubelet does not look at.
        if not host.kubelet.machine.allocatable().keys() >= view.node_request().keys():
            return False
        return isinstance(host.kubelet.copy().admit(view), Admitted)


def play(plan: Plan) -> Outcome:
    """Return what comes of a plan with everybody late, decided by us."""
    return _Late(plan).run()


def play_perfectly(plan: Plan) -> Outcome:
    """Return what comes of a plan with a perfect packer."""
    return _Perfect(plan).run()


def _name(shape: Manifest, name: str) -> Manifest:
    text = str(sorted(shape["spec"].items()))
    metadata = {
        "name": name,
        "namespace": "default",
        "uid": f"uid-{name}",
        "labels": {"shape": text},
    }
    return {**shape, "metadata": metadata, "spec": dict(shape["spec"])}


def _seen(pod: Pod, created_s: float | None, started_s: float | None) -> PodOnNode:
    is_exclusive, devices = holds_exclusive(pod)
    return PodOnNode(
        uid=pod.metadata.uid,
        namespace=pod.metadata.namespace,
        name=pod.metadata.name,
        created_s=created_s,
        started_s=started_s,
        is_exclusive=is_exclusive,
        devices=devices,
    )


def _stamp(now_s: float) -> float:
    """Return a time as the API server writes it."""
    return float(EPOCH_S + int(now_s))
