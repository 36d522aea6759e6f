from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from berthmaster.api import names
from berthmaster.cluster.client import Client
from berthmaster.concerns import registry
from berthmaster_webhook import leading
from berthmaster_webhook.admission import Admission
from berthmaster_webhook.answers import Answers
from berthmaster_webhook.avoiding import AvoidedNodes, OwnerPauses
from berthmaster_webhook.deciding import Tools
from berthmaster_webhook.leading import Leadership
from berthmaster_webhook.metrics import Metrics
from berthmaster_webhook.outcomes import Outcome
from berthmaster_webhook.proving import WatchProof
from berthmaster_webhook.settings import Settings
from berthmaster_webhook.state import ClusterState
from support.builders import make_node_manifest, make_pod_manifest
from support.fake_api import FakeApi, Json
from support.webhook_world import gated_manifest, make_review, until

NAMESPACE = "berthmaster-system"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
HOOKS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
LEASES = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"
LISTED = (
    "/api/v1/pods",
    "/api/v1/nodes",
    "/api/v1/namespaces",
    f"/apis/{names.API_VERSION}/nodeinventories",
    "/api/v1/persistentvolumeclaims",
    "/api/v1/persistentvolumes",
    "/apis/storage.k8s.io/v1/storageclasses",
    "/apis/storage.k8s.io/v1/csinodes",
    "/apis/apps/v1/replicasets",
    f"/apis/{names.API_VERSION}/placementpolicies",
)


class Cluster(FakeApi):
    """An API server whose namespaced pods show in the list of all pods."""

    def __init__(self, *pods: str, path: str = "") -> None:
        super().__init__()
        for collection in LISTED:
            self.objects.setdefault(collection, {})
        self.objects[LEASES] = {}
        for name in pods:
            self.put(PODS, {"metadata": {"name": name, "namespace": NAMESPACE, "uid": name}})
        self.install(path)

    def install(self, path: str = "") -> None:
        service = {"name": "s", "path": path} if path else {"name": "s"}
        hook = {"name": names.WEBHOOK_NAME, "clientConfig": {"service": service}}
        metadata = {"name": names.WEBHOOK_CONFIGURATION, "uid": f"hook-{self.version}"}
        self.put(HOOKS, {"metadata": metadata, "webhooks": [hook]})

    def label(self, name: str) -> str | None:
        labels: Json = self.objects[PODS][name]["metadata"].get("labels") or {}
        return labels.get(names.ROLE_LABEL)

    @property
    def turned(self) -> bool:
        hook = self.objects[HOOKS][names.WEBHOOK_CONFIGURATION]["webhooks"][0]
        return "path" in hook["clientConfig"]["service"]

    @property
    def path(self) -> str:
        hook = self.objects[HOOKS][names.WEBHOOK_CONFIGURATION]["webhooks"][0]
        return str(hook["clientConfig"]["service"]["path"])

    def _store(self, collection: str, name: str, obj: Json, kind: str) -> Json:
        stored = super()._store(collection, name, obj, kind)
        if collection == PODS:
            super()._store("/api/v1/pods", name, stored, kind)
            self.objects[collection][name] = self.objects["/api/v1/pods"][name]
        return stored


@dataclass
class Replica:
    leadership: Leadership
    tools: Tools


@asynccontextmanager
async def replica(cluster: Cluster, name: str, **fields: Any) -> AsyncIterator[Replica]:
    settings = Settings(
        namespace=NAMESPACE,
        pod_name=name,
        lease_duration_s=1.0,
        lease_renew_deadline_s=0.8,
        lease_retry_s=0.1,
        **{"takeover_wait_s": 60.0, **fields},
    )
    async with Client.at(cluster.url) as client:
        metrics = Metrics()
        state = ClusterState(client, registry.load(), metrics, assume_ttl_s=70.0)
        tools = Tools(
            state=state,
            answers=Answers(state.ledger),
            avoided=AvoidedNodes(),
            pauses=OwnerPauses(2.0, clock=time.monotonic),
            metrics=metrics,
            clock=time.monotonic,
            own_namespace=NAMESPACE,
        )
        proof = WatchProof(
            client, state.ledger, namespace=NAMESPACE, pod_name=name, clock=time.monotonic
        )
        state.on_pod.append(proof.take_pod)
        state.on_pods_current.append(proof.take_current)
        leadership = Leadership(client, settings, tools, proof)
        tasks = [
            asyncio.create_task(state.run()),
            asyncio.create_task(leadership.run(state.synced)),
        ]
        try:
            yield Replica(leadership, tools)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def decides(it: Replica) -> Callable[[], bool]:
    return lambda: it.leadership.why_not() is None


async def test_first_leader_ever_decides_at_once() -> None:
    async with Cluster("a") as cluster, replica(cluster, "a") as it:
        await until(decides(it))

        acquired = it.leadership.elector.acquired
        assert acquired is not None
        assert cluster.path == f"/place/{acquired.transitions}"
        assert cluster.label("a") == "leader"
        assert it.leadership.answers_for(acquired.transitions)
        assert not it.leadership.answers_for(acquired.transitions + 1)


async def test_first_lease_over_pods_that_were_placed_makes_it_wait() -> None:
    """Everything was deleted and installed again; an answer from before may still come."""
    allocation = json.dumps({"v": 1, "id": "d1", "node": "n1"})
    placed = make_pod_manifest("p", namespace="x", annotations={names.ALLOCATION: allocation})
    async with Cluster("a") as cluster:
        cluster.put("/api/v1/pods", placed)
        async with replica(cluster, "a") as it:
            await until(lambda: cluster.turned)
            await asyncio.sleep(0.2)

            assert it.leadership.why_not() is Outcome.TAKING_OVER


async def test_webhook_configuration_made_anew_gets_the_path_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(leading, "PATH_CHECK_S", 0.05)
    async with Cluster("a") as cluster, replica(cluster, "a") as it:
        await until(decides(it))
        path = cluster.path

        cluster.remove(HOOKS, names.WEBHOOK_CONFIGURATION)
        await asyncio.sleep(0.2)
        assert not cluster.objects[HOOKS]
        cluster.install()
        await until(lambda: cluster.turned)

        assert cluster.path == path


async def test_missing_webhook_configuration_keeps_nobody_from_leading() -> None:
    """Whoever deletes it wants pods to be created; those at the gate still need the queue."""
    async with Cluster("a") as cluster:
        cluster.remove(HOOKS, names.WEBHOOK_CONFIGURATION)
        async with replica(cluster, "a", takeover_wait_s=0.3) as it:
            await until(decides(it))

            assert not cluster.objects[HOOKS]


async def test_path_of_an_earlier_leader_makes_it_wait() -> None:
    async with Cluster("a", path="/place/7") as cluster, replica(cluster, "a") as it:
        await until(lambda: cluster.path != "/place/7")
        await asyncio.sleep(0.2)

        assert it.leadership.why_not() is Outcome.TAKING_OVER


async def test_wait_ends_after_its_time() -> None:
    async with Cluster("a", path="/place/7") as cluster:
        async with replica(cluster, "a", takeover_wait_s=0.5) as it:
            await until(decides(it))


async def test_new_leader_takes_the_label_from_all_others() -> None:
    async with Cluster("a", "b") as cluster:
        other = cluster.objects[PODS]["b"]
        labels = {names.ROLE_LABEL: "leader"}
        cluster.put(PODS, {**other, "metadata": {**other["metadata"], "labels": labels}})
        async with replica(cluster, "a") as it:
            await until(decides(it))

            assert (cluster.label("a"), cluster.label("b")) == ("leader", None)


async def test_graceful_hand_over_needs_no_wait() -> None:
    async with Cluster("a", "b") as cluster:
        cluster.put("/api/v1/nodes", make_node_manifest("n1", cpu="3"))
        async with replica(cluster, "a") as first, replica(cluster, "b") as second:
            await until(lambda: decides(first)() or decides(second)())
            old, new = (first, second) if decides(first)() else (second, first)
            acquired = old.leadership.elector.acquired
            assert acquired is not None
            reply = Admission(old.tools, old.leadership).reply(
                make_review(gated_manifest(cpu="2", namespace="x")), epoch=acquired.transitions
            )
            assert reply.outcome is Outcome.PLACED

            await old.leadership.hand_over()
            await until(decides(new))

            assert old.leadership.why_not() is Outcome.STOPPING
            assert set(new.tools.state.ledger.assumed) == {reply.decision_id}


async def test_crash_of_the_leader_makes_the_successor_wait() -> None:
    async with Cluster("a", "b") as cluster:
        async with replica(cluster, "a") as first:
            await until(decides(first))
        async with replica(cluster, "b") as second:
            await until(lambda: second.leadership.elector.is_leader())
            await until(lambda: cluster.label("b") == "leader")
            await asyncio.sleep(0.2)

            assert second.leadership.why_not() is Outcome.TAKING_OVER
            assert cluster.label("a") is None


async def test_leader_that_never_decided_hands_nothing_over() -> None:
    async with Cluster("a", path="/place/7") as cluster, replica(cluster, "a") as it:
        await until(lambda: cluster.path != "/place/7")

        await it.leadership.hand_over()

        (lease,) = cluster.objects[LEASES].values()
        assert names.HANDOVER not in (lease["metadata"].get("annotations") or {})
        assert lease["spec"]["holderIdentity"] == ""


async def test_lost_lease_stops_deciding_and_drops_the_label() -> None:
    async with Cluster("a") as cluster, replica(cluster, "a") as it:
        await until(decides(it))
        (lease,) = cluster.objects[LEASES].values()
        spec = {**lease["spec"], "holderIdentity": "somebody"}
        cluster.put(LEASES, {**lease, "spec": spec})

        await until(lambda: it.leadership.why_not() is Outcome.NOT_LEADER)
        await until(lambda: cluster.label("a") is None)


async def test_silent_watch_stops_deciding() -> None:
    async with Cluster("a") as cluster, replica(cluster, "a") as it:
        await until(decides(it))
        ledger = it.tools.state.ledger

        assert not ledger.may_decide(time.monotonic() + 11)
