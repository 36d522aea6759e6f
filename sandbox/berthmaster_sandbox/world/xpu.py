"""Simulated nodes with XPUs on a real control plane: kubelets, device plugins, and the judge.

One kubelet per node admits the pods that are bound to it and calls the plugins of the node's dialects,
which look for their pod at the API server and write to it, as slowly and as mortal as the host's habits
say. kwok starts a pod on such a node (its name begins with `xpu-`) when the kubelet has admitted it; a
pod that was turned away becomes Failed with UnexpectedAdmissionError. While a plugin is down nothing of its
resource is allocatable.

    pods --watch--> kubelet --Allocate--> plugin: which pod?  --> pods/annotations
                       '--> pods/status --kwok--> Running
    hosts --> Node.status, Node annotations, NodeXPU (where an agent is wished for)

The judge knows nothing of Berthmaster: `findings` is everything that ever was wrong with what plugins
handed out (`xpu_books.py`), `rejections` are the pods that a kubelet turned away. All times are seconds.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from berthmaster.cluster.client import ApiError, Client, PatchKind, read_items
from berthmaster.cluster.informers import EventKind, Informer
from berthmaster_sandbox.simnodes import build_node
from berthmaster_sandbox.world.kubelets import NODES, VerdictWriter, check_name, insist, make_node
from berthmaster_sandbox.world.listing import EventsInOrder
from berthmaster_sandbox.world.living import Work, World
from berthmaster_sandbox.world.numa_verdicts import Rejected
from berthmaster_sandbox.world.xpu_books import Fault, Finding
from berthmaster_sandbox.world.xpu_hosts import Dialect, Host
from berthmaster_sandbox.world.xpu_kubelet import XpuKubelet
from berthmaster_sandbox.world.xpu_plugins import Effect, Look, Wait, Write
from berthmaster_sandbox.world.xpu_pods import PodView, decode_pod

logger = logging.getLogger(__name__)

PODS = "/api/v1/pods"
API_VERSION = "berthmaster.io/v1alpha1"
NODE_XPUS = f"/apis/{API_VERSION}/nodexpus"
# A vXPU plugin says so often that it is there.
REPORT_PERIOD_S = 30.0


def build_node_xpu(host: Host, owner: Mapping[str, Any]) -> dict[str, Any]:
    """Return the NodeXPU by which an agent tells of every single device; `owner` refers to the Node."""
    devices = [
        {
            "index": it.index,
            "id": it.id,
            "memoryMiB": it.memory_mib,
            "numaNode": it.numa_node,
            "serialNumber": it.board,
        }
        for it in host.devices
    ]
    return {
        "apiVersion": API_VERSION,
        "kind": "NodeXPU",
        "metadata": {"name": host.name, "ownerReferences": [dict(owner)]},
        "spec": {"source": "Agent", "devices": devices},
    }


class XpuWorld(World):
    """Kubelets and plugins of nodes with XPUs; `async with` starts and stops everything.

    The seed is that of all chance.
    """

    def __init__(self, client: Client, *, seed: int = 0) -> None:
        super().__init__()
        self._client = client
        self._rng = random.Random(seed)  # noqa: S311 - no secret
        self._nodes: dict[str, _Node] = {}
        self._verdicts = VerdictWriter(client)
        self._changed = asyncio.Event()
        # Pods turned away so far, as `namespace/name`.
        self.rejections: dict[str, Rejected] = {}
        pods = EventsInOrder(self._see_pod, key=lambda pod: pod.uid)
        self._pods = pods.informer = Informer(
            client,
            PODS,
            decode=decode_pod,
            key=lambda pod: pod.uid,
            version=lambda pod: pod.body.version,
            on_event=pods.take,
            on_sync=pods.flush,
        )

    def _informers(self) -> Sequence[Informer[Any]]:
        return (self._pods,)

    def _others(self) -> Iterable[Work]:
        return self._verdicts.work()

    def _stop(self) -> None:
        for node in self._nodes.values():
            for task in node.tasks:
                task.cancel()

    # Nodes.

    async def add_host(
        self,
        host: Host,
        *,
        labels: Mapping[str, str] | None = None,
        taints: Sequence[Mapping[str, str]] = (),
        has_agent: bool = False,
    ) -> None:
        """Create the host's Node, or give an existing one XPUs, and start its kubelet and plugins.

        With `has_agent` a NodeXPU tells of every single device. Raises ClusterError, and ValueError for
        a name that kwok would not leave to us.
        """
        check_name(host.name)
        if host.name in self._nodes:
            raise ValueError(f"node {host.name} has its XPUs already")
        manifest = build_node(host.name, labels=labels, taints=taints)
        base = manifest["status"]["capacity"]
        owner = await make_node(
            self._client, manifest, {**base, **host.capacity()}, {**base, **host.allocatable()}
        )
        node = _Node(XpuKubelet(host, clock=time.time, rng=self._rng), owner)
        self._nodes[host.name] = node
        await self._annotate_node(node)
        if has_agent:
            await self._client.create(NODE_XPUS, build_node_xpu(host, owner))
        for pod in self._pods.store.values():
            if pod.body.node == host.name:
                self._take(node, pod)
        node.tasks.append(self._start(self._admit_all(node)))
        node.tasks.append(self._start(self._report(node)))

    async def set_health(self, node: str, index: int, *, is_healthy: bool) -> None:
        """Let a device break, or work again; its plugin tells at once."""
        known = self._nodes[node]
        host = known.kubelet.host
        devices = tuple(
            replace(it, is_healthy=is_healthy) if it.index == index else it for it in host.devices
        )
        known.kubelet.change(replace(host, devices=devices))
        await self._publish_resources(known)
        await self._annotate_node(known)

    def crash(self, node: str, dialect: Dialect) -> None:
        """Kill a plugin at once; it comes back by itself after its habit."""
        self._nodes[node].kubelet.plugins[dialect].crash()
        self._revive_later(self._nodes[node])

    async def _publish_resources(self, node: _Node) -> None:
        host = node.kubelet.host
        status = {"capacity": host.capacity(), "allocatable": host.allocatable(node.kubelet.down)}
        await self._client.patch(f"{NODES}/{host.name}/status", {"status": status}, PatchKind.MERGE)

    async def _annotate_node(self, node: _Node) -> None:
        host = node.kubelet.host
        if Dialect.VXPU in node.kubelet.down or not host.annotations(0):
            return
        body = {"metadata": {"annotations": host.annotations(time.time())}}
        await self._client.patch(f"{NODES}/{host.name}", body, PatchKind.MERGE)

    async def _report(self, node: _Node) -> None:
        """Say again and again that the plugins are there."""
        while True:
            await asyncio.sleep(REPORT_PERIOD_S)
            await insist(partial(self._annotate_node, node), node.kubelet.host.name)

    # The judge.

    @property
    def findings(self) -> list[Finding]:
        """Return everything that ever was wrong on any node."""
        return [it for node in self._nodes.values() for it in node.kubelet.books.findings]

    def found(self, fault: Fault) -> list[Finding]:
        """Return the findings of one kind."""
        return [it for it in self.findings if it.fault is fault]

    def kubelet(self, node: str) -> XpuKubelet:
        """Return a node's kubelet, to be read."""
        return self._nodes[node].kubelet

    @property
    def admitted(self) -> int:
        """Return how many pods were admitted."""
        verdicts = (it for node in self._nodes.values() for it in node.kubelet.verdicts.values())
        return sum(not isinstance(it, Rejected) for it in verdicts)

    async def settled(self, *, deadline_s: float = 30.0) -> None:
        """Wait until every pod that the watch showed is judged and every verdict is written.

        Raises `TimeoutError`.
        """
        async with asyncio.timeout(deadline_s):
            while any(it.is_busy for it in self._nodes.values()):
                await self._changed.wait()
            await self._verdicts.written()

    # What kubelets do.

    def _see_pod(self, kind: EventKind, pod: PodView) -> None:
        node = self._nodes.get(pod.body.node)
        if node is None:
            return
        if kind is EventKind.DELETED:
            node.pickups.pop(pod.uid, None)
            node.kubelet.forget(pod.uid)
        else:
            self._take(node, pod)

    def _take(self, node: _Node, pod: PodView) -> None:
        habits = node.kubelet.host.habits
        wait_s = habits.pickup_s + self._rng.random() * habits.pickup_jitter_s
        is_new = pod.uid not in node.kubelet.verdicts and pod.uid not in node.pickups
        if wait_s == 0.0 or pod.body.is_finished:
            self._learn(node, pod)
        elif is_new and not pod.body.is_going:
            node.pickups[pod.uid] = pod
            asyncio.get_running_loop().call_later(wait_s, self._pick_up, node, pod.uid)

    def _pick_up(self, node: _Node, uid: str) -> None:
        pod = node.pickups.pop(uid, None)
        if pod is not None:
            self._learn(node, pod)

    def _learn(self, node: _Node, pod: PodView) -> None:
        node.kubelet.learn(pod)
        node.wake.set()

    async def _admit_all(self, node: _Node) -> None:
        while True:
            pod = node.kubelet.next_pod()
            node.is_admitting = pod is not None
            self._tell()
            if pod is None:
                node.wake.clear()
                await node.wake.wait()
                continue
            await self._admit(node, pod)

    async def _admit(self, node: _Node, pod: PodView) -> None:
        work = node.kubelet.admit(pod)
        answer: Any = None
        while True:
            try:
                effect = work.send(answer)
            except StopIteration as done:
                verdict = done.value
                break
            answer = await self._do(node, effect)
        self._revive_later(node)
        if isinstance(verdict, Rejected):
            logger.info("pod rejected", extra={"pod": pod.key, "reason": verdict.reason})
            self.rejections[pod.key] = verdict
        habits = node.kubelet.host.habits
        wait_s = habits.verdict_s + self._rng.random() * habits.verdict_jitter_s
        if not isinstance(verdict, Rejected):
            wait_s += habits.start_s
        post: Callable[[], None] = partial(self._verdicts.post, pod.body, verdict)
        asyncio.get_running_loop().call_later(wait_s, post)

    async def _do(self, node: _Node, effect: Effect) -> Any:
        found: list[Any] = []
        match effect:
            case Wait(seconds=seconds):
                await asyncio.sleep(seconds)
            case Look():
                await insist(partial(self._list, node, found), node.kubelet.host.name)
                return [it for it in found if it.body.node == node.kubelet.host.name]
            case Write(pod=pod, annotations=annotations):
                await insist(partial(self._annotate, pod, annotations, found), pod.key)
                return bool(found)
        return None

    async def _list(self, node: _Node, found: list[PodView]) -> None:
        found.clear()
        query = {"fieldSelector": f"spec.nodeName={node.kubelet.host.name},status.phase=Pending"}
        async for page in self._client.list_pages(PODS, query):
            found.extend(decode_pod(bytes(it)) for it in read_items(page))

    async def _annotate(
        self, pod: PodView, annotations: Mapping[str, str], found: list[bool]
    ) -> None:
        path = f"/api/v1/namespaces/{pod.body.namespace}/pods/{pod.body.name}"
        body = {"metadata": {"uid": pod.uid, "annotations": dict(annotations)}}
        try:
            await self._client.patch(path, body, PatchKind.STRATEGIC)
        except ApiError as error:
            if not error.is_not_found and not error.is_conflict:
                raise
        else:
            found.append(True)

    def _revive_later(self, node: _Node) -> None:
        """See to it that every dead plugin has a next life."""
        for dialect in node.kubelet.down:
            key = (dialect, node.kubelet.plugins[dialect].lives)
            if key not in node.reviving:
                node.reviving.add(key)
                node.tasks.append(self._start(self._revive(node, dialect)))

    async def _revive(self, node: _Node, dialect: Dialect) -> None:
        host = node.kubelet.host
        await insist(partial(self._publish_resources, node), host.name)
        await asyncio.sleep(host.habits.restart_s)
        node.kubelet.plugins[dialect].restart()
        await insist(partial(self._publish_resources, node), host.name)
        await insist(partial(self._annotate_node, node), host.name)

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class _Node:
    """A node's kubelet and the tasks that play it."""

    def __init__(self, kubelet: XpuKubelet, owner: dict[str, Any]) -> None:
        self.kubelet = kubelet
        self.owner = owner
        self.wake = asyncio.Event()
        self.is_admitting = False
        # Bound pods of which the kubelet has yet to hear.
        self.pickups: dict[str, PodView] = {}
        self.tasks: list[asyncio.Task[None]] = []
        # Lives of plugins whose successor is under way.
        self.reviving: set[tuple[Dialect, int]] = set()

    @property
    def is_busy(self) -> bool:
        return self.is_admitting or bool(self.pickups) or not self.kubelet.is_idle
