"""The operator put together: who watches, who decides what to write, who may write, in which order it ends.

    informers (pods, nodes, NodeInventories, one ConfigMap) --+
    Kopf (the vendors' kinds, PlacementPolicy) ---------------+--> Fleet --dirty node--> WorkQueue
    audits (lists at start and every few minutes) ------------+                             |
                                                     leader? complete? --> NodeReconciler --+--> API

Every replica watches, one writes: `may_write` is the Lease, asked before each write. A new leader
forgets what it computed as a bystander and continues from what is stored, as after a restart.

The end: not ready, queues stop, the Lease is released, then Kopf, then the rest.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

import kopf

from berthmaster.api import names
from berthmaster.cluster.backoffs import Backoff
from berthmaster.cluster.client import Client
from berthmaster.cluster.errors import ClusterError
from berthmaster.cluster.events import EventRecorder
from berthmaster.cluster.informers import EventKind, Informer
from berthmaster.cluster.leases import Acquired, LeaderElector
from berthmaster.cluster.reviews import Doorkeeper
from berthmaster.cluster.serving import ServedPair
from berthmaster_operator import auditing, certifying, health, model_loading, watching
from berthmaster_operator.bindings import BindingReconciler
from berthmaster_operator.certifying import BundleOnly, CertificateReconciler, Configuration
from berthmaster_operator.cleaning import Cleaner
from berthmaster_operator.datasets.cache_pods import (
    CACHE_PODS,
    CachePod,
    CachePods,
    decode_cache_pod,
)
from berthmaster_operator.datasets.placements import PlacementWriter
from berthmaster_operator.datasets.reporting import DatasetReporter
from berthmaster_operator.fleet import Fleet
from berthmaster_operator.gates import GateConfiguration
from berthmaster_operator.handlers import (
    datasets,
    node_configs,
    node_disk_devices,
    node_disk_io_stats,
    node_resource_topologies,
    node_xpus,
    power_models,
)
from berthmaster_operator.handlers.disk_models import ModelsHandler
from berthmaster_operator.handlers.placement_policies import PolicyHandler
from berthmaster_operator.kinds import Kinds
from berthmaster_operator.metrics import Metrics
from berthmaster_operator.model_fetching import ModelFetcher
from berthmaster_operator.model_loading import ModelLoader
from berthmaster_operator.power.asking import Asker
from berthmaster_operator.power.collecting import Collector
from berthmaster_operator.power.fetching import Fetcher
from berthmaster_operator.reconciling import INVENTORIES, NodeReconciler
from berthmaster_operator.settings import Settings
from berthmaster_operator.sightings import (
    ConfigMapSeen,
    FailureSeen,
    InventorySeen,
    NodeSeen,
    PodSeen,
    ReplicaSeen,
    decode_config_map,
    decode_failure,
    decode_inventory,
    decode_node,
    decode_pod,
    decode_replica,
    decode_version,
)
from berthmaster_operator.work_queues import WorkQueue

logger = logging.getLogger(__name__)

# Finished pods hold nothing; without them the copy of a big cluster is smaller, and a pod that
# finishes comes as a deletion.
UNFINISHED = {"fieldSelector": "status.phase!=Succeeded,status.phase!=Failed"}
# A deletion shows the pod as it was before, so why it failed is asked for.
FAILED = {"fieldSelector": "status.phase=Failed"}
# Before a dataset's faults are told.
DATASET_SETTLE_S = 2.0
# No dataset's key: those that were touched.
PENDING_DATASETS = ""
KOPF_STOP_TIMEOUT_S = 10.0


class Program:
    """One operator process; make it inside the event loop, then await `run`."""

    def __init__(self, settings: Settings, client: Client, *, identity: str) -> None:
        self.settings = settings
        self.metrics = Metrics()
        client.on_answer = self.metrics.count_request
        client.on_doubt = self._renew_watches
        self._client = client
        self.events = EventRecorder(client, f"{names.GROUP}/operator", instance=settings.pod_name)
        clock = asyncio.get_running_loop().time
        self.fleet = Fleet(
            diskio_namespace=settings.diskio_namespace, clock=clock, on_dirty=self._mark
        )
        self.elector = LeaderElector(
            client,
            settings.namespace,
            names.OPERATOR_LEASE,
            identity,
            on_acquired=self._begin_leading,
            on_lost=self._stop_leading,
            # What was to be written in the pause was passed over.
            on_resumed=self._mark_all,
        )
        self._gates_by_webhook = settings.gates == "webhook"
        self._make_reconcilers(clock)
        self.policies = PolicyHandler(self.fleet, self.events, self._policy_changed)
        self._models = ModelsHandler(self.loader, self.models.add)
        self._make_informers()
        self._stop_kopf = asyncio.Event()
        self._is_stopping = False

    def _make_reconcilers(self, clock: Callable[[], float]) -> None:
        client, fleet, metrics = self._client, self.fleet, self.metrics
        settings, may_write = self.settings, self.elector.is_leader
        nodes = NodeReconciler(
            client,
            fleet,
            may_write=may_write,
            events=self.events,
            metrics=metrics,
            inventory_pause_s=settings.inventory_pause_s,
            clock=clock,
        )
        cleaner = Cleaner(
            client,
            fleet,
            may_write=may_write,
            events=self.events,
            metrics=metrics,
            grace_s=settings.leftover_grace_s,
            clock=clock,
        )
        bindings = BindingReconciler(client, fleet, may_write=may_write, metrics=metrics)
        configurations: list[Configuration] = [BundleOnly(names.WEBHOOK_CONFIGURATION)]
        if self._gates_by_webhook:
            configurations.append(
                GateConfiguration(lambda: fleet.policies.values(), settings.namespace)
            )
        certificates = CertificateReconciler(
            client,
            settings.namespace,
            # What is not listed yet would look like policies that were deleted.
            may_write=lambda: may_write() and (fleet.is_complete or not self._gates_by_webhook),
            configurations=tuple(configurations),
            metrics=metrics,
            is_foreign=settings.certificate_issuer != "operator",
            clock=clock,
        )
        reporter = DatasetReporter(fleet.datasets, fleet, may_write=may_write, events=self.events)
        writer = PlacementWriter(client, fleet.datasets, may_write=may_write, metrics=metrics)
        fleet.datasets.on_dataset = self._dataset_changed
        fleet.datasets.on_pending = self._datasets_pending

        async def reconcile_dataset(key: str) -> float | None:
            if key == PENDING_DATASETS:
                fleet.datasets.flush()
                return None
            if settings.dataset_placements == "written" and fleet.is_complete:
                await writer.reconcile(key)
            return await reporter.reconcile(key)

        self.datasets = WorkQueue("datasets", reconcile_dataset, clock=clock)
        self.nodes = WorkQueue("nodes", nodes.reconcile, workers=settings.workers, clock=clock)
        self.cleaning = WorkQueue("cleaning", cleaner.reconcile, clock=clock)
        self.bindings = WorkQueue("bindings", bindings.reconcile, clock=clock)
        self.certificates = WorkQueue("certificates", certificates.reconcile, clock=clock)
        self._fetcher = ModelFetcher(
            settings.model_origins,
            ca_file=settings.model_ca_file,
            timeout_s=settings.model_timeout_s,
        )
        self.loader = ModelLoader(
            fleet, self._fetcher, events=self.events, metrics=metrics, clock=clock
        )
        self.models = WorkQueue("disk models", self.loader.reconcile, clock=clock)
        self._meters = Fetcher(ca_file=settings.power_ca_file, unverified=settings.power_unverified)
        self.collector = Collector(
            fleet.power,
            Asker(self._meters, client),
            client,
            may_collect=lambda: may_write() and fleet.is_complete,
            metrics=metrics,
            clock=clock,
            wall_clock=time.time,
        )

    def _make_informers(self) -> None:
        client = self._client
        self._pods = Informer(
            client,
            "/api/v1/pods",
            decode=decode_pod,
            key=lambda pod: pod.uid,
            query=UNFINISHED,
            on_event=self._pod_changed,
        )
        self._cache_pods: list[Informer[CachePod]] = []
        if self.settings.dataset_placements != "stored":
            self._cache_pods.append(self._follow_caches())
        self._failures = Informer(
            client,
            "/api/v1/pods",
            decode=decode_failure,
            key=lambda failure: failure.uid,
            query=FAILED,
            on_event=self._failure_changed,
        )
        self._nodes_seen = Informer(
            client,
            "/api/v1/nodes",
            decode=decode_node,
            key=lambda node: node.name,
            on_event=self._node_changed,
        )
        self._inventories = Informer(
            client,
            INVENTORIES,
            decode=decode_inventory,
            key=lambda inventory: inventory.name,
            version=lambda inventory: inventory.version,
            on_event=self._inventory_changed,
        )
        # Not waited for: who may not read them goes without the lists.
        self._unhealthy = Informer(
            client,
            f"/api/v1/namespaces/{names.UNHEALTHY_XPUS_NAMESPACE}/configmaps",
            decode=decode_config_map,
            key=lambda it: it.name,
            version=lambda it: it.version,
            on_event=self._config_map_changed,
        )
        self._kinds_changed = asyncio.Event()
        self._kinds = Kinds(client, on_change=self._kinds_changed.set)
        self._disk_models = self._models.informer(client, self.settings.diskio_namespace)
        own = f"/api/v1/namespaces/{self.settings.namespace}"
        is_foreign = self.settings.certificate_issuer != "operator"
        issuer = names.ISSUED_SECRET if is_foreign else names.WEBHOOK_CA_SECRET
        self._guarded = [
            self._guard(f"{own}/secrets", issuer),
            self._guard(f"{own}/secrets", names.WEBHOOK_TLS_SECRET),
            self._guard(certifying.CONFIGURATIONS, names.WEBHOOK_CONFIGURATION),
        ]
        if self._gates_by_webhook:
            self._guarded.append(self._guard(certifying.CONFIGURATIONS, names.GATE_CONFIGURATION))
        self._replicas = Informer(
            client,
            f"{own}/pods",
            decode=decode_replica,
            key=lambda replica: replica.name,
            query={"labelSelector": names.WEBHOOK_LABEL},
            on_event=self._replica_changed,
        )
        # The certificate is the webhook's: both programs are called by the same name.
        self._has_pair = asyncio.Event()
        self._pair = ServedPair(
            client, self.settings.namespace, on_loaded=lambda _: self._has_pair.set()
        )
        # What each replica says that it serves.
        self._serving: dict[str, str] = {}

    def _follow_caches(self) -> Informer[CachePod]:
        """Watch the pods of caches, and correct the placements of datasets by them."""
        datasets_seen = self.fleet.datasets
        caches = CachePods(datasets_seen.look_again)
        datasets_seen.correct = caches.correct

        def changed(kind: EventKind, pod: CachePod) -> None:
            if kind is EventKind.DELETED:
                caches.lose(pod)
            else:
                caches.see(pod)

        return Informer(
            self._client,
            f"/api/v1/namespaces/{self.settings.cache_namespace}/pods",
            decode=decode_cache_pod,
            key=lambda pod: pod.uid,
            query=CACHE_PODS,
            on_event=changed,
        )

    def _guard(self, path: str, name: str) -> Informer[str]:
        """Watch one object whose every change has the certificates looked at; keep none of it."""
        return Informer(
            self._client,
            path,
            decode=decode_version,
            key=lambda _: name,
            query={"fieldSelector": f"{names.NODE_NAME_FIELD}={name}"},
            on_event=lambda _kind, _obj: self.certificates.add(certifying.KEY),
        )

    # What the watches tell.

    def _pod_changed(self, kind: EventKind, pod: PodSeen) -> None:
        if kind is EventKind.DELETED:
            self.fleet.lose_pod(pod.uid)
        else:
            self.fleet.see_pod(pod)

    def _failure_changed(self, kind: EventKind, failure: FailureSeen) -> None:
        if kind is EventKind.DELETED:
            self.fleet.lose_failure(failure)
        else:
            self.fleet.see_failure(failure)

    def _node_changed(self, kind: EventKind, node: NodeSeen) -> None:
        if kind is EventKind.DELETED:
            self.fleet.lose_node(node.name)
        else:
            self.fleet.see_node(node)

    def _inventory_changed(self, kind: EventKind, inventory: InventorySeen) -> None:
        if kind is EventKind.DELETED:
            self.fleet.lose_inventory(inventory.name, inventory.uid)
        else:
            self.fleet.see_inventory(inventory)

    def _datasets_pending(self) -> None:
        """Have what was touched located a moment later; before everything was listed nobody asks."""
        if self.fleet.is_complete:
            self.datasets.add(PENDING_DATASETS, after_s=self.settings.settle_s)

    def _dataset_changed(self, key: str) -> None:
        """Have a dataset looked at when it has been as it is for a while: a node may be about to come."""
        if self.fleet.is_complete:
            self.datasets.add(key, after_s=DATASET_SETTLE_S)

    def _config_map_changed(self, kind: EventKind, seen: ConfigMapSeen) -> None:
        if kind is EventKind.DELETED:
            self.fleet.lose_config_map(seen.name)
        else:
            self.fleet.see_config_map(seen)

    def _policy_changed(self, name: str) -> None:
        if self._gates_by_webhook:
            self.certificates.add(certifying.KEY)
        else:
            self.bindings.add(name)

    def _replica_changed(self, kind: EventKind, replica: ReplicaSeen) -> None:
        """Look at the certificates when a replica serves another; its heartbeats tell nothing."""
        before = self._serving.pop(replica.name, "")
        if kind is not EventKind.DELETED:
            self._serving[replica.name] = replica.serving
        if self._serving.get(replica.name, "") != before:
            self.certificates.add(certifying.KEY)

    def _mark(self, node: str) -> None:
        """Have a node looked at, a moment later so that a burst of changes is one look."""
        if not self.fleet.is_complete:
            return
        state = self.fleet.find(node)
        if state is not None and state.node is None and (state.devices or state.stats):
            self.cleaning.add(node)
        self.nodes.add(node, after_s=self.settings.settle_s)

    # Who leads.

    def _begin_leading(self, acquired: Acquired) -> None:
        logger.info("leading", extra={"kind": acquired.kind.value})
        self.metrics.is_leader.set(1)
        self.fleet.restart_books()
        self._mark_all()

    def _stop_leading(self) -> None:
        logger.warning("not leading any more")
        self.metrics.is_leader.set(0)
        self.metrics.certificate_expiry.clear()

    def _mark_all(self) -> None:
        self.fleet.mark_all()
        for key in self.fleet.datasets:
            self.datasets.add(key, after_s=DATASET_SETTLE_S)
        for name in self.fleet.policies:
            self._policy_changed(name)
        self.certificates.add(certifying.KEY)

    # From begin to end.

    def not_ready_because(self) -> str:
        """Return what is missing before this process can do its work, empty if nothing is."""
        if self._is_stopping:
            return "stopping"
        return "" if self.fleet.is_complete else "the cluster has not been seen as a whole yet"

    async def run(
        self, stop: asyncio.Event, *, restore_signals: Callable[[], None] = lambda: None
    ) -> None:
        """Work until `stop` is set. Raises whatever makes going on impossible."""
        queues = (
            self.nodes,
            self.datasets,
            self.cleaning,
            self.bindings,
            self.certificates,
            self.models,
        )
        probes = health.build_probes(self.not_ready_because)
        settings = self.settings
        served = await health.serve(probes, settings.bind_address, settings.health_port)
        try:
            async with asyncio.TaskGroup() as tasks:
                working = [tasks.create_task(queue.run()) for queue in queues]
                watching_tasks = [tasks.create_task(it) for it in self._background()]
                ending = tasks.create_task(self._run_kopf(stop, restore_signals))
                await stop.wait()
                self._is_stopping = True
                for task in working:
                    task.cancel()
                await asyncio.wait(working)
                await self.elector.release()
                await served.close()
                self._stop_kopf.set()
                await asyncio.wait([ending], timeout=KOPF_STOP_TIMEOUT_S)
                ending.cancel()
                for task in watching_tasks:
                    task.cancel()
            await self.events.drain()
        finally:
            await self._fetcher.close()
            await self._meters.close()
            await served.close()

    @property
    def _informers(self) -> list[Informer[Any]]:
        """Return all watches that are not Kopf's, which gives up its own when they are silent."""
        return [
            self._kinds.informer,
            self._pods,
            self._failures,
            *self._cache_pods,
            self._nodes_seen,
            self._inventories,
            self._disk_models,
            self._unhealthy,
            *self._guarded,
            self._replicas,
        ]

    def _renew_watches(self) -> None:
        for informer in self._informers:
            informer.renew()

    def _background(self) -> list[Coroutine[Any, Any, None]]:
        return [
            self.events.run(),
            self.elector.run(),
            *(informer.run() for informer in self._informers),
            self._complete(),
            self.collector.run(),
            self._pair.run(),
            self._serve_metrics(),
        ]

    async def _serve_metrics(self) -> None:
        """Serve metrics from the first certificate on, until cancelled."""
        await self._has_pair.wait()
        app = health.build_metrics(
            Doorkeeper(self._client), self.metrics, refresh=self._refresh_metrics
        )
        settings = self.settings
        served = await health.serve(
            app, settings.bind_address, settings.metrics_port, self._pair.context
        )
        try:
            await asyncio.Event().wait()
        finally:
            await served.close()

    def _refresh_metrics(self) -> None:
        self.metrics.queue_length.set(len(self.nodes))
        self.metrics.strays.set(self.fleet.strays)
        self.metrics.count_datasets(
            self.fleet.datasets.count(), self.fleet.datasets.stale_placements
        )
        topologies = self.fleet.measure_topologies()
        self.metrics.account_topologies(
            topologies.by_reason, oldest_s=topologies.oldest_s, lag_s=topologies.lag_s
        )
        self.metrics.account_inventories(self.fleet.measure_inventories())
        self.metrics.is_leader.set(1 if self.elector.is_leader() else 0)

    async def _complete(self) -> None:
        """See every kind once, open the gate for writes, then audit now and then for ever."""
        backoff = Backoff()
        have_kinds_changed = False
        while True:
            try:
                dropped = await auditing.audit(self._client, self.fleet, self.policies)
            except ClusterError as error:
                logger.warning("audit failed", extra={"error": str(error)})
                await asyncio.sleep(backoff.next_s())
                continue
            if dropped:
                logger.warning("deletions found by audit", extra={"objects": dropped})
            if not self.fleet.is_complete:
                for informer in (
                    self._pods,
                    self._failures,
                    self._nodes_seen,
                    self._inventories,
                    self._disk_models,
                ):
                    await informer.synced.wait()
                for caches in self._cache_pods:
                    await caches.synced.wait()
                # Also where there is no ConfigMap: without models nothing must be written.
                self.models.add(model_loading.KEY)
                await self.loader.loaded.wait()
                self.fleet.is_complete = True
                logger.info("cluster seen as a whole")
                self._mark_all()
            _set_lasting_aside()
            if have_kinds_changed:
                # What could not be written for want of a kind waits for up to a minute otherwise.
                self._mark_all()
            have_kinds_changed = await auditing.until_due(
                self._kinds_changed, self.settings.audit_s
            )

    def build_registry(self) -> kopf.OperatorRegistry:
        """Return the handlers of all kinds that Kopf is to watch."""
        registry = kopf.OperatorRegistry()
        watching.register_login(registry)
        node_disk_devices.register(registry, self.fleet, self.events)
        node_disk_io_stats.register(registry, self.fleet)
        node_resource_topologies.register(registry, self.fleet)
        datasets.register(registry, self.fleet.datasets)
        node_xpus.register(registry, self.fleet)
        node_configs.register(registry, self.fleet.power)
        power_models.register(registry, self.fleet.power)
        self.policies.register(registry)
        return registry

    async def _run_kopf(self, stop: asyncio.Event, restore_signals: Callable[[], None]) -> None:
        await watching.run(
            self.build_registry(),
            self._kinds,
            name=self.settings.pod_name,
            stop=self._stop_kopf,
            restore_signals=restore_signals,
        )
        # Kopf cancels what began after it, so nothing is left to go on with.
        stop.set()


def _set_lasting_aside() -> None:
    """Let the garbage collector pass over what is known by now, which mostly stays, and look through it once before.

    That look takes 0.15 s for each 1,000 nodes of which every concern knows.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
