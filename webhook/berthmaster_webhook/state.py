"""The cluster in memory: informers feed the engine's node table and its ledger.

Pods go to the ledger; nodes and inventories are joined by name, and a row is written only when
something that placement reads has changed, so that heartbeats cost nothing. Policies and namespaces
give the settings; namespaces and the objects of storage are told to the engine. One object that
cannot be understood is logged, counted and skipped; it never stops the others.

Whoever wants to know of changes adds a callback: for pods, for settings, and for help, which is
whatever may let a waiting pod fit that did not fit before, with its cause (`Help`). All callbacks are
synchronous and quick, and see the ledger as it is after the change.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import msgspec

from berthmaster.api.datasets import CacheSighting, Dataset
from berthmaster.api.inventory import Freshness, NodeInventory, NodeInventoryStatus
from berthmaster.api.objects import (
    Namespace,
    Node,
    ObjectMeta,
    Pod,
)
from berthmaster.api.policy import PlacementPolicy, PolicySet
from berthmaster.cluster import kinds
from berthmaster.cluster.client import Client
from berthmaster.cluster.informers import EventKind, Informer
from berthmaster.cluster.kinds import Kind
from berthmaster.concerns.shape import AnyConcern, Surrounding
from berthmaster.placement.engine import Engine
from berthmaster_webhook.guarding import guarded
from berthmaster_webhook.metrics import Metrics

T = TypeVar("T")

PodListener = Callable[[EventKind, Pod], None]
Listener = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Help:
    """Why a pod may fit that did not before.

    `node` may have room now. `is_news`: something beside rows has changed (pods near and far, domains,
    storage, datasets), which helps only whom such things matter to. Neither: anybody may fit anywhere.
    """

    node: str = ""
    is_news: bool = False


HelpListener = Callable[[Help], None]
ANYTHING, NEWS = Help(), Help(is_news=True)


class ClusterState:
    """Engine, ledger, policies and namespaces, kept up to date by `run`."""

    def __init__(
        self,
        client: Client,
        concerns: Sequence[AnyConcern],
        metrics: Metrics,
        *,
        assume_ttl_s: float,
    ) -> None:
        self.engine = Engine(concerns, assume_ttl_s=assume_ttl_s)
        self.ledger = self.engine.ledger
        self.policies = PolicySet()
        self.on_pod: list[PodListener] = []
        # After a pod event came through the living watch, and after a whole list.
        self.on_pods_current: list[Listener] = []
        # With the namespace whose labels changed, empty where policies did.
        self.on_settings: list[Callable[[str], None]] = []
        self.on_help: list[HelpListener] = []
        self._metrics = metrics
        self._labels: dict[str, dict[str, str]] = {}
        self._written: dict[str, tuple[Node, NodeInventory | None]] = {}
        # Of nodes that are there and whose inventories are not any more: what is left of them.
        self._lost: dict[str, NodeInventory] = {}
        self._news = self.engine.news
        self._client = client
        self._informers: dict[str, Informer[Any]] = {}
        self.namespaces = self._follow(kinds.NAMESPACES, self._take_namespace)
        self.policy_objects = self._follow(kinds.POLICIES, self._take_policy)
        self.nodes = self._follow(kinds.NODES, self._take_node)
        self.inventories = self._follow(kinds.INVENTORIES, self._take_inventory)
        for kind in kinds.SURROUNDINGS:
            self._follow(kind, self._take_surrounding)
        # Last: where a node is there already, its pods are charged without a second look.
        self.pods = self._follow(
            kinds.PODS,
            self._take_pod,
            keep=_identity,
            on_sync=self._tell_pods_current,
            on_progress=lambda _: self._tell_pods_current(),
        )

    async def run(self) -> None:
        """Follow the cluster until cancelled; trouble with the API server is retried for ever."""
        async with asyncio.TaskGroup() as tasks:
            for informer in self._informers.values():
                tasks.create_task(informer.run())

    async def synced(self) -> None:
        """Wait until everything has been listed once."""
        for informer in self._informers.values():
            await informer.synced.wait()

    def renew(self) -> None:
        """Watch everything anew from where it was: what made one watch miss something made others."""
        for informer in self._informers.values():
            informer.renew()

    @property
    def is_synced(self) -> bool:
        """Return whether everything has been listed once and pods are not being listed anew."""
        return not self.not_synced and bool(self.pods.resource_version)

    @property
    def not_synced(self) -> tuple[str, ...]:
        """Return the kinds that have not been listed yet."""
        waiting = (path for path, it in self._informers.items() if not it.synced.is_set())
        return tuple(path.rpartition("/")[2] for path in waiting)

    def policy(self, name: str) -> PlacementPolicy | None:
        """Return the policy of this name, None if there is none (or none that can be read)."""
        return self.policy_objects.store.get(name)

    def namespace_labels(self, name: str) -> Mapping[str, str] | None:
        """Return a namespace's labels, None while it has not been seen."""
        return self._labels.get(name)

    def tell_help(self, help_: Help = ANYTHING) -> None:
        """Say that a waiting pod may fit now, and why."""
        for listener in self.on_help:
            guarded(partial(listener, help_), "help not told", node=help_.node)

    def _follow(
        self, kind: Kind[T], on_event: Callable[[EventKind, T], None], **further: Any
    ) -> Informer[T]:
        informer = self._informers[kind.path] = Informer(
            self._client,
            kind.path,
            decode=kind.decode,
            key=kind.key,
            version=kind.version,
            on_event=on_event,
            on_bad_object=self._count_bad(kind.name),
            is_optional=kind.is_optional,
            **further,
        )
        return informer

    def _take_pod(self, kind: EventKind, pod: Pod) -> None:
        uid = pod.metadata.uid
        # An answer may be seen first where nobody sent it, or at its end: its room comes free, too.
        before = self.ledger.held_for(pod)
        self._handle("Pod", pod.key, lambda: self._book(kind, pod))
        after = self.ledger.entry(uid)
        for listener in self.on_pod:
            self._handle("Pod", pod.key, partial(listener, kind, pod))
        if before is not None and self.ledger.frees(before, after):
            self.tell_help(Help(before.node))
        self._tell_news()

    def _book(self, kind: EventKind, pod: Pod) -> None:
        is_gone = kind is EventKind.DELETED
        if is_gone:
            self.ledger.forget(pod)
        else:
            self.ledger.see(pod)
        if is_gone or pod.is_finished:
            self.engine.observe(pod, is_gone=is_gone)

    def _take_surrounding(self, kind: EventKind, found: Surrounding) -> None:
        name = found.key if isinstance(found, Dataset | CacheSighting) else found.metadata.name
        is_gone = kind is EventKind.DELETED
        self._handle(
            type(found).__name__, name, lambda: self.engine.observe(found, is_gone=is_gone)
        )
        self._tell_news()

    def _tell_news(self) -> None:
        """Tell of help by what is no row: a pod to be near to, a volume, a claim."""
        news = self.engine.news
        if news != self._news:
            self._news = news
            self.tell_help(NEWS)

    def _tell_pods_current(self) -> None:
        for listener in self.on_pods_current:
            guarded(listener, "progress of the pod watch not told")

    def _take_node(self, kind: EventKind, node: Node) -> None:
        name = node.metadata.name
        if kind is EventKind.DELETED:
            self._written.pop(name, None)
            self._lost.pop(name, None)
            self.ledger.remove_node(name)
            # A domain without it may be one fewer to spread over.
            self.tell_help(NEWS)
        else:
            self._write(node, self.inventories.store.get(name, self._lost.get(name)))

    def _take_inventory(self, kind: EventKind, inventory: NodeInventory) -> None:
        name = inventory.name
        node = self.nodes.store.get(name)
        if kind is not EventKind.DELETED:
            self._lost.pop(name, None)
        elif node is not None:
            inventory = self._lost[name] = _lost(inventory)
        if node is not None:
            self._write(node, inventory)

    def _write(self, node: Node, inventory: NodeInventory | None) -> None:
        name = node.metadata.name
        if inventory is not None and inventory.node_uid not in ("", node.metadata.uid):
            # It describes a node of the same name that is gone.
            inventory = None
        essence = (_essence(node), inventory and inventory.model_copy(update=_NO_VERSION))
        before = self._written.get(name)
        if before == essence:
            return
        if not self._handle("Node", name, lambda: self.ledger.write_node(node, inventory)):
            # It may have been taken over in part and without what its pods hold, so nothing is placed there.
            self.ledger.remove_node(name)
        self._written[name] = essence
        if before is None or _but_power(before) != _but_power(essence):
            is_news = before is None or before[0] != essence[0] or self.engine.news != self._news
            self._news = self.engine.news
            self.tell_help(Help(name, is_news=is_news))

    def _take_policy(self, kind: EventKind, policy: PlacementPolicy) -> None:
        self.policies = PolicySet(self.policy_objects.store.values())
        self._handle(
            "PlacementPolicy", policy.name, lambda: self.engine.configure(self.policies.specs)
        )
        self._tell_settings()
        self.tell_help()

    def _take_namespace(self, kind: EventKind, namespace: Namespace) -> None:
        name, labels = namespace.metadata.name, namespace.metadata.labels or {}
        self._take_surrounding(kind, namespace)
        if kind is EventKind.DELETED:
            self._labels.pop(name, None)
        elif self._labels.get(name) != labels:
            self._labels[name] = labels
            self._tell_settings(name)

    def _tell_settings(self, namespace: str = "") -> None:
        for listener in self.on_settings:
            guarded(partial(listener, namespace), "settings not told", namespace=namespace)

    def _count_bad(self, kind: str) -> Callable[[bytes, Exception], None]:
        # The informer logs it with its name and the fault.
        return lambda _raw, _error: self._metrics.bad_objects.labels(kind).inc()

    def _handle(self, kind: str, name: str, act: Callable[[], object]) -> bool:
        """Do what an object asks for; one that our code trips over is counted and skipped."""
        is_done = guarded(act, "object skipped", kind=kind, object=name)
        if not is_done:
            self._metrics.bad_objects.labels(kind).inc()
        return is_done


def _identity(pod: Pod) -> Pod:
    """Return what tells a pod apart; what it holds is in the ledger, and a whole pod takes 7 KB."""
    metadata = pod.metadata
    return Pod(
        metadata=ObjectMeta(
            name=metadata.name,
            namespace=sys.intern(metadata.namespace),
            uid=metadata.uid,
            resource_version=metadata.resource_version,
        )
    )


def _lost(inventory: NodeInventory) -> NodeInventory:
    """Return what is left when an inventory vanishes before its node, as when its CRD is deleted.

    The node still has its zones, so it must not look like one that has none; of nothing is known what is free.
    """
    topology = inventory.status.topology
    if topology is not None:
        topology = topology.model_copy(update={"freshness": Freshness.UNRELIABLE})
    left = NodeInventoryStatus(topology=topology, zones=inventory.status.zones)
    return inventory.model_copy(update={"status": left})


_NO_VERSION = {"resource_version": ""}
_NO_POWER = {"power": None, "power_now": None}


def _but_power(
    essence: tuple[Node, NodeInventory | None],
) -> tuple[Node, NodeInventoryStatus | None]:
    """Return the essence without what moves often and refuses nobody: what a node draws."""
    node, inventory = essence
    if inventory is None:
        return node, None
    return node, inventory.status.model_copy(update=_NO_POWER)


def _essence(node: Node) -> Node:
    """Return the node without what a heartbeat moves."""
    conditions = [
        msgspec.structs.replace(it, last_transition_time=None, message="")
        for it in node.status.conditions or ()
    ]
    return msgspec.structs.replace(
        node,
        metadata=msgspec.structs.replace(node.metadata, resource_version=""),
        status=msgspec.structs.replace(node.status, conditions=conditions),
    )
