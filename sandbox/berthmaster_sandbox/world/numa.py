"""Simulated nodes with NUMA zones: their kubelets, their topology updaters, and the judge.

One kubelet per node admits the pods that are bound to it, in the order in which it learns of them. kwok
starts a pod on such a node (its name begins with `numa-` or `xpu-`) only when the kubelet has set the pod's
condition PodReadyToStartContainers; a rejected pod becomes Failed with the kubelet's reason and
message, and never runs. One updater per node publishes what is left, late: `delay_s` after a change it
looks, and `lag_s` after that it writes what it saw.

    pods --watch--> kubelet: admitted or rejected --> pods/status --kwok--> Running
                       '--delay--> updater looks --lag--> NodeResourceTopology

The judge knows nothing of Berthmaster: `rejections` are the pods that scheduling sent to a node which
could not take them, `overfilled` is every zone of which the kubelet's books ever gave more than there
is, and `judge` looks whether what the API server shows is what the kubelets decided. All times are seconds.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from berthmaster.cluster.client import ApiError, Client, ClusterError, PatchKind, Query, read_items
from berthmaster.cluster.informers import EventKind, Informer
from berthmaster_sandbox.simnodes import build_node
from berthmaster_sandbox.world.kubelets import VerdictWriter, check_name, insist, make_node
from berthmaster_sandbox.world.listing import EventsInOrder
from berthmaster_sandbox.world.living import Work, World
from berthmaster_sandbox.world.numa_kubelet import NumaKubelet
from berthmaster_sandbox.world.numa_machines import Machine
from berthmaster_sandbox.world.numa_pods import PodView, decode_pod
from berthmaster_sandbox.world.numa_reports import (
    API_VERSION,
    Dialect,
    Report,
    ReportHabits,
    build_report,
)
from berthmaster_sandbox.world.numa_verdicts import Rejected, Verdict

logger = logging.getLogger(__name__)

PODS = "/api/v1/pods"
NODES = "/api/v1/nodes"
REPORTS = f"/apis/{API_VERSION}/noderesourcetopologies"
NFD_NAMESPACE = "node-feature-discovery"
NFD_MANAGER = "node-feature-discovery-topology-updater"
# How long a kubelet or an updater of the vendors' waits at the most until the next look.
PERIOD_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdaterHabits:
    """How one updater behaves. A random part of up to `jitter_s` is added to `delay_s`.

    `distort` gets the object about to be written and returns what is written instead, None for nothing.
    """

    report: ReportHabits = field(default_factory=ReportHabits)
    delay_s: float = 1.0
    jitter_s: float = 0.0
    lag_s: float = 0.0
    period_s: float = PERIOD_S
    distort: Callable[[Report], Report | None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """A pod that a kubelet turned away."""

    node: str
    pod: str
    uid: str
    reason: str
    message: str


class NumaWorld(World):
    """Kubelets and updaters of nodes with NUMA zones; `async with` starts and stops everything.

    The API server needs NodeResourceTopology's CRD. The seed is that of jitter and of the updaters'
    random order.
    """

    def __init__(self, client: Client, *, seed: int = 0) -> None:
        super().__init__()
        self._client = client
        self._rng = random.Random(seed)  # noqa: S311 - no secret
        self._nodes: dict[str, _Node] = {}
        self._verdicts = VerdictWriter(client)
        self._published = asyncio.Event()
        self._pod_event = asyncio.Event()
        self._audits: dict[str, None] = {}
        # Pods admitted so far, and those turned away, in order.
        self.admitted = 0
        self.rejections: list[Rejection] = []
        # Reports written so far.
        self.reports = 0
        pods = EventsInOrder(self._see_pod, key=lambda pod: pod.uid)
        self._pods = pods.informer = Informer(
            client,
            PODS,
            decode=decode_pod,
            key=lambda pod: pod.uid,
            version=lambda pod: pod.version,
            on_event=pods.take,
            on_sync=pods.flush,
        )

    def _informers(self) -> Sequence[Informer[Any]]:
        return (self._pods,)

    def _others(self) -> Iterable[Work]:
        return self._verdicts.work()

    def _stop(self) -> None:
        for node in self._nodes.values():
            node.stop()

    # Nodes.

    async def add_node(
        self,
        name: str,
        machine: Machine,
        *,
        habits: UpdaterHabits | None = None,
        labels: Mapping[str, str] | None = None,
        taints: Sequence[Mapping[str, str]] = (),
        starts_pods: bool = True,
    ) -> None:
        """Create a node, or give an existing one zones, and start its kubelet and its updater.

        Without `starts_pods` the kubelet only turns pods away, and those that it admits run when the node's other
        kubelet (of `XpuWorld`) admits them, too.
        Labels and taints are those of a node that is created. Raises ClusterError, and ValueError for a name that kwok would not leave to us.
        """
        check_name(name)
        if name in self._nodes:
            raise ValueError(f"node {name} has its zones already")
        manifest = build_node(name, labels=labels)
        manifest["spec"] = {"taints": [dict(taint) for taint in taints]}
        owner = await make_node(self._client, manifest, machine.capacity(), machine.allocatable())
        node = _Node(name, NumaKubelet(machine), habits or UpdaterHabits(), owner)
        node.starts_pods = starts_pods
        self._nodes[name] = node
        for pod in sorted(self._pods.store.values(), key=lambda it: (it.created, it.uid)):
            if pod.node == name:
                self._take(node, pod)
        self.start_updater(name)

    def set_habits(self, node: str, habits: UpdaterHabits) -> None:
        """Change how a node's updater behaves, also of one that is dead."""
        self._nodes[node].habits = habits
        self._nodes[node].touch()

    def start_updater(self, node: str) -> None:
        """Start a node's updater, which looks and writes at once; a running one goes on."""
        known = self._nodes[node]
        if known.updater is None:
            known.is_new = True
            known.touch()
            known.updater = self._start(self._update(known))

    def stop_updater(self, node: str) -> None:
        """Kill a node's updater at once; what it published stays."""
        self._nodes[node].stop()

    # The judge.

    @property
    def overfilled(self) -> tuple[str, ...]:
        """Return everything of which a kubelet ever gave more than there is; see `NumaKubelet.audit`."""
        return tuple(self._audits)

    @property
    def rejected(self) -> Counter[str]:
        """Return how many pods were turned away, by reason."""
        return Counter(it.reason for it in self.rejections)

    def kubelet(self, node: str) -> NumaKubelet:
        """Return a node's kubelet, to be read."""
        return self._nodes[node].kubelet

    def verdict(self, uid: str) -> Verdict | None:
        """Return what a kubelet said of a pod, None while none did."""
        for node in self._nodes.values():
            if uid in node.verdicts:
                return node.verdicts[uid]
        return None

    async def judge(self, *, deadline_s: float = 30.0) -> list[str]:
        """List the pods afresh and return what is wrong with those that are there now.

        A pod that no kubelet admitted, one that runs though it was turned away, and everything of
        which more is given than there is. Raises ClusterError, and `TimeoutError` when the pod watch
        does not show a listed pod.
        """
        listed: list[PodView] = []
        async for page in self._client.list_pages(PODS):
            pods = (decode_pod(bytes(item)) for item in read_items(page))
            listed.extend(it for it in pods if it.node in self._nodes and not it.is_finished)
        async with asyncio.timeout(deadline_s):
            while any(self._is_unknown(pod) for pod in listed):
                await self._pod_event.wait()
        found = [
            f"{pod.node}: {pod.key} runs though it was turned away"
            for pod in listed
            if pod.phase == "Running"
            and isinstance(self._nodes[pod.node].verdicts.get(pod.uid), Rejected)
        ]
        for name, node in self._nodes.items():
            found += [f"{name}: {it}" for it in node.kubelet.audit()]
        return found

    def _is_unknown(self, pod: PodView) -> bool:
        """Return whether the watch, which must not be older than the list, has yet to show a pod."""
        node = self._nodes[pod.node]
        return pod.uid not in node.verdicts and pod.uid not in node.gone and not pod.is_going

    async def settled(self, *, deadline_s: float = 30.0) -> None:
        """Wait until every verdict is written and every living updater has written what it sees.

        Raises `TimeoutError`.
        """
        async with asyncio.timeout(deadline_s):
            await self._verdicts.written()
            while any(it.updater is not None and it.is_behind for it in self._nodes.values()):
                await self._published.wait()

    # What kubelets do.

    def _see_pod(self, kind: EventKind, pod: PodView) -> None:
        node = self._nodes.get(pod.node)
        if node is None:
            return
        if kind is EventKind.DELETED:
            node.verdicts.pop(pod.uid, None)
            node.gone.add(pod.uid)
            self._let_go(node, pod.uid)
        else:
            self._take(node, pod)
        self._pod_event.set()
        self._pod_event = asyncio.Event()

    def _take(self, node: _Node, pod: PodView) -> None:
        if pod.is_finished:
            self._let_go(node, pod.uid)
        elif pod.uid not in node.verdicts and not pod.is_going:
            self._admit(node, pod)

    def _let_go(self, node: _Node, uid: str) -> None:
        if uid in node.kubelet.pods:
            node.kubelet.remove(uid)
            node.touch()

    def _admit(self, node: _Node, pod: PodView) -> None:
        verdict = node.kubelet.admit(pod)
        node.verdicts[pod.uid] = verdict
        for found in node.kubelet.audit():
            self._audits[f"{node.name}: {found}"] = None
        if isinstance(verdict, Rejected):
            logger.info("pod rejected", extra={"pod": pod.key, "reason": verdict.reason})
            self.rejections.append(
                Rejection(
                    node=node.name,
                    pod=pod.key,
                    uid=pod.uid,
                    reason=verdict.reason,
                    message=verdict.message,
                )
            )
        else:
            self.admitted += 1
            node.touch()
        if node.starts_pods or isinstance(verdict, Rejected):
            self._verdicts.post(pod, verdict)

    # What updaters do.

    async def _update(self, node: _Node) -> None:
        while True:
            try:
                async with asyncio.timeout(node.habits.period_s):
                    await node.wake.wait()
            except TimeoutError:
                pass
            if not node.is_new:
                await asyncio.sleep(node.habits.delay_s + self._rng.random() * node.habits.jitter_s)
            node.is_new = False
            node.wake.clear()
            seen = node.changes
            habits = node.habits
            owner = await self._owner(node, habits.report.dialect)
            report: Report | None = build_report(
                node.name, node.kubelet, habits.report, owner=owner, rng=self._rng
            )
            if report is not None and habits.distort is not None:
                report = habits.distort(report)
            await asyncio.sleep(habits.lag_s)
            if report is not None:
                await self._publish(node.name, report, habits.report.dialect)
            node.shown = seen
            self._published.set()
            self._published = asyncio.Event()

    async def _owner(self, node: _Node, dialect: Dialect) -> dict[str, Any] | None:
        """Return whose end is the report's end: the Node, or NFD's namespace where there is one."""
        if dialect is Dialect.RTE:
            return node.owner
        path = f"/api/v1/namespaces/{NFD_NAMESPACE}"
        try:
            namespace = await self._client.get(path)
        except ClusterError:
            return None
        uid = namespace["metadata"]["uid"]
        return {"apiVersion": "v1", "kind": "Namespace", "name": NFD_NAMESPACE, "uid": uid}

    async def _publish(self, name: str, report: Report, dialect: Dialect) -> None:
        if dialect is Dialect.NFD:
            await insist(partial(self._apply, name, report), name)
        else:
            await insist(partial(self._merge, name, report), name)
        self.reports += 1

    async def _apply(self, name: str, report: Report) -> None:
        query: Query = {"fieldManager": NFD_MANAGER, "force": True}
        await self._client.patch(f"{REPORTS}/{name}", report, PatchKind.APPLY, query)

    async def _merge(self, name: str, report: Report) -> None:
        try:
            await self._client.patch(f"{REPORTS}/{name}", report, PatchKind.MERGE)
        except ApiError as error:
            if not error.is_not_found:
                raise
            await self._client.create(REPORTS, report)


class _Node:
    """A node's kubelet, its verdicts by uid, and its updater."""

    def __init__(
        self, name: str, kubelet: NumaKubelet, habits: UpdaterHabits, owner: dict[str, Any]
    ) -> None:
        self.name = name
        self.kubelet = kubelet
        self.habits = habits
        self.owner = owner
        # Whether pods run when this kubelet has admitted them.
        self.starts_pods = True
        self.verdicts: dict[str, Verdict] = {}
        # Uids of pods that were deleted.
        self.gone: set[str] = set()
        self.wake = asyncio.Event()
        self.updater: asyncio.Task[None] | None = None
        # The updater has yet to look for the first time.
        self.is_new = True
        # Changes so far, and how many of them the last report shows.
        self.changes = 0
        self.shown = -1

    @property
    def is_behind(self) -> bool:
        return self.shown < self.changes

    def touch(self) -> None:
        self.changes += 1
        self.wake.set()

    def stop(self) -> None:
        if self.updater is not None:
            self.updater.cancel()
            self.updater = None
