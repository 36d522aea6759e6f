from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
from aiohttp import web

from berthmaster.api import names
from berthmaster.cluster.client import Client
from berthmaster.cluster.leases import Acquired, Acquisition, boottime_s
from berthmaster.concerns import registry
from berthmaster.placement.records import Records
from berthmaster_webhook import answers, leading
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
from support.fake_api import FakeApi, Json, Request
from support.waiting import until
from support.webhook_world import gated_manifest, make_review

NAMESPACE = "berthmaster-system"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
HOOKS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
HOOK = f"{HOOKS}/{names.WEBHOOK_CONFIGURATION}"
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
        # While set, the watch of pods shows nothing.
        self.is_stalled = False
        self._stalled: list[bytes] = []
        # Called after the webhook configuration was read.
        self.after_look: Callable[[], None] = lambda: None
        for name in pods:
            self.put(PODS, {"metadata": {"name": name, "namespace": NAMESPACE, "uid": name}})
        self.install(path)

    def install(self, path: str = "") -> None:
        service = {"name": "s", "path": path} if path else {"name": "s"}
        hook = {"name": names.WEBHOOK_NAME, "clientConfig": {"service": service}}
        metadata = {"name": names.WEBHOOK_CONFIGURATION, "uid": f"hook-{self.version}"}
        self.put(HOOKS, {"metadata": metadata, "webhooks": [hook]})

    def go_on(self) -> None:
        """Show what the stalled watch has held back."""
        self.is_stalled = False
        for line in self._stalled:
            self.send_line("/api/v1/pods", line)

    def send_line(self, collection: str, line: bytes) -> None:
        if self.is_stalled and collection == "/api/v1/pods":
            self._stalled.append(line)
        else:
            super().send_line(collection, line)

    def free_lease(self, transitions: int = 3) -> None:
        """Have a Lease that an earlier leader has released, with nothing to hand over."""
        spec = {"holderIdentity": "", "leaseTransitions": transitions}
        self.put(LEASES, {"metadata": {"name": names.WEBHOOK_LEASE}, "spec": spec})

    def set_label(self, name: str, **labels: str) -> None:
        pod = self.objects[PODS][name]
        self.put(PODS, {**pod, "metadata": {**pod["metadata"], "labels": labels}})

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
        return str(hook["clientConfig"]["service"].get("path", ""))

    def _listed(self, path: str, query: dict[str, str]) -> web.Response:
        if "labelSelector" not in query:
            return super()._listed(path, query)
        key, _, value = query["labelSelector"].partition("=")
        pods = [
            it
            for it in self.objects[path].values()
            if (it["metadata"].get("labels") or {}).get(key) == value
        ]
        return web.json_response({"items": pods})

    def _answer(self, request: Request) -> web.Response:
        response = super()._answer(request)
        if (request.method, request.path) == ("GET", HOOK):
            self.after_look()
        return response

    def _store(self, collection: str, name: str, obj: Json, kind: str) -> Json:
        stored = super()._store(collection, name, obj, kind)
        if collection == PODS:
            super()._store("/api/v1/pods", name, stored, kind)
            self.objects[collection][name] = self.objects["/api/v1/pods"][name]
        return stored


QUICK: dict[str, Any] = {
    "lease_duration_s": 1.0,
    "lease_renew_deadline_s": 0.8,
    "lease_retry_s": 0.1,
}
# So that nothing happens in time that depends on looking again.
SLOW: dict[str, Any] = {
    "lease_duration_s": 600.0,
    "lease_renew_deadline_s": 500.0,
    "lease_retry_s": 300.0,
}
LEADER = {names.ROLE_LABEL: names.ROLE_LEADER}


@dataclass
class Replica:
    leadership: Leadership
    tools: Tools


@asynccontextmanager
async def replica(
    cluster: Cluster, name: str, *, is_eligible: bool = True, **fields: Any
) -> AsyncIterator[Replica]:
    settings = Settings(
        namespace=NAMESPACE, pod_name=name, **{"takeover_wait_s": 60.0, **QUICK, **fields}
    )
    async with Client.at(cluster.url) as client:
        metrics = Metrics()
        state = ClusterState(client, registry.load(), metrics, assume_ttl_s=70.0)
        tools = Tools(
            state=state,
            answers=Answers(state.ledger),
            avoided=AvoidedNodes(),
            pauses=OwnerPauses(2.0, clock=time.monotonic),
            records=Records.of(state.engine),
            metrics=metrics,
            clock=time.monotonic,
            own_namespace=NAMESPACE,
        )
        proof = WatchProof(
            client,
            state.ledger,
            namespace=NAMESPACE,
            pod_name=name,
            clock=time.monotonic,
            on_silent=state.renew,
        )
        state.on_pod.append(proof.take_pod)
        state.on_pods_current.append(proof.take_current)
        leadership = Leadership(client, settings, tools, proof)
        state.on_pod.append(leadership.take_pod)

        async def eligible() -> None:
            await (state.synced() if is_eligible else asyncio.Event().wait())

        tasks = [
            asyncio.create_task(state.run()),
            asyncio.create_task(leadership.run(eligible)),
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
        await until(lambda: cluster.path == f"/place/{acquired.transitions}")
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
    monkeypatch.setattr(leading, "MARKS_CHECK_S", 0.05)
    async with Cluster("a") as cluster, replica(cluster, "a") as it:
        await until(decides(it))
        await until(lambda: cluster.turned)
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
    """It turns the path at once, so that creates do not wait for connections of the one before."""
    async with Cluster("a", path="/place/7") as cluster, replica(cluster, "a") as it:
        await until(lambda: cluster.path != "/place/7")
        await asyncio.sleep(0.2)

        assert it.leadership.why_not() is Outcome.TAKING_OVER


async def test_wait_ends_after_its_time() -> None:
    async with Cluster("a", path="/place/7") as cluster:
        async with replica(cluster, "a", takeover_wait_s=0.5) as it:
            await until(decides(it))


async def test_new_leader_takes_the_label_from_all_others_before_its_own() -> None:
    async with Cluster("a", "b", "c") as cluster:
        for name in ("b", "c"):
            cluster.set_label(name, **LEADER)
        async with replica(cluster, "a") as it:
            await until(decides(it))

        patched = [it for it in cluster.requests if it.method == "PATCH" and PODS in it.path]
        order = [
            it.path.rpartition("/")[2] for it in patched if names.ROLE_LABEL.encode() in it.body
        ]
        # Its own first, at the start, when nobody knew yet who would lead.
        assert (order[0], set(order[1:3]), order[3]) == ("a", {"b", "c"}, "a")
        assert json.loads(patched[-1].body)["metadata"].get("labels") in (None, LEADER)


async def test_label_of_an_earlier_life_goes_before_the_lease_is_sought() -> None:
    """A container that was restarted in its pod is no leader yet, and the Service follows the label."""
    async with Cluster("a") as cluster:
        cluster.set_label("a", **LEADER)
        async with replica(cluster, "a", is_eligible=False):
            await until(lambda: cluster.label("a") is None)

            assert not cluster.objects[LEASES]


async def test_nothing_is_decided_before_the_watch_has_shown_the_own_label() -> None:
    async with Cluster("a") as cluster:
        cluster.free_lease()
        async with replica(cluster, "a", takeover_wait_s=0.0) as it:
            await it.tools.state.synced()
            cluster.is_stalled = True
            await until(lambda: cluster.label("a") == "leader")
            await asyncio.sleep(0.2)
            assert it.leadership.why_not() is Outcome.TAKING_OVER

            cluster.go_on()
            await until(decides(it))


async def test_label_that_somebody_moved_is_put_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader before us that was stopped while it took labels off may take ours off when it wakes."""
    monkeypatch.setattr(leading, "MARKS_CHECK_S", 0.05)
    async with Cluster("a", "b") as cluster, replica(cluster, "a") as it:
        await until(decides(it))

        cluster.set_label("a")
        cluster.set_label("b", **LEADER)

        await until(lambda: (cluster.label("a"), cluster.label("b")) == ("leader", None))


async def test_who_does_not_lead_takes_no_label_from_others() -> None:
    async with Cluster("a", "b") as cluster, replica(cluster, "a", is_eligible=False) as it:
        cluster.set_label("b", **LEADER)

        await it.leadership._drop_labels({"b"})

        assert cluster.label("b") == "leader"


async def test_path_that_a_later_leader_has_turned_is_not_turned_back() -> None:
    """A leader may be stopped between its look at the path and its write."""
    async with Cluster("a", path="/place/7") as cluster:
        cluster.free_lease()
        rival = iter(["/place/99"])

        def turn() -> None:
            for path in rival:
                cluster.install(path)

        cluster.after_look = turn
        async with replica(cluster, "a"):
            await until(lambda: cluster.count("PATCH", HOOK) == 2)
            await until(lambda: cluster.path == "/place/4")


async def test_wait_for_others_goes_on_when_the_lease_is_regained() -> None:
    async with Cluster("a") as cluster, replica(cluster, "a", is_eligible=False) as it:
        acquired = Acquired(
            kind=Acquisition.EXPIRED, transitions=4, previous_holder="b", annotations={}
        )
        it.leadership._plan_wait(acquired)
        end_s = it.leadership._wait_end_s

        it.leadership._plan_wait(replace(acquired, kind=Acquisition.REGAINED, transitions=5))

        assert it.leadership._wait_end_s == end_s


async def test_lease_is_counted_by_the_clock_that_goes_on_in_sleep() -> None:
    async with Cluster("a") as cluster, replica(cluster, "a", is_eligible=False) as it:
        assert it.leadership.elector._clock is boottime_s


async def test_successor_looks_as_soon_as_the_leader_has_gone() -> None:
    async with Cluster("a", "b") as cluster:
        cluster.free_lease()
        async with replica(cluster, "a", takeover_wait_s=0.0, **SLOW) as old:
            await until(decides(old))
            async with replica(cluster, "b", **SLOW) as new:
                await until(lambda: new.leadership.elector.holder != "")

                await old.leadership.hand_over()

                await until(decides(new))


async def test_hand_over_that_is_too_long_makes_the_successor_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(answers, "MAX_HANDOVER_BYTES", 10)
    async with Cluster("a", "b") as cluster:
        async with replica(cluster, "a") as old:
            await until(decides(old))
            await old.leadership.hand_over()
        async with replica(cluster, "b") as new:
            await until(lambda: cluster.label("b") == "leader")
            await asyncio.sleep(0.2)

            assert new.leadership.why_not() is Outcome.TAKING_OVER


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


async def test_who_stops_without_having_led_does_not_speak_for_the_cluster() -> None:
    async with Cluster("a", "b") as cluster, replica(cluster, "a") as first:
        await until(decides(first))
        async with replica(cluster, "b") as second:
            await until(lambda: cluster.label("a") == "leader")
            leader, standby = first.leadership, second.leadership

            leader.stop()
            standby.stop()
            assert (leader.leads, standby.leads) == (True, False)

            await leader.hand_over()
            assert not leader.leads


async def test_answers_end_that_our_code_trips_over_ends_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(leading, "TICK_S", 0.02)
    async with Cluster("a") as cluster, replica(cluster, "a") as it:
        await until(decides(it))
        calls: list[float] = []

        def trip(now_s: float) -> Any:
            calls.append(now_s)
            raise RuntimeError("poison")

        monkeypatch.setattr(it.tools.state.ledger, "lapse", trip)
        await until(lambda: len(calls) > 2)

        assert it.leadership.why_not() is None


async def test_beat_or_listener_that_trips_ends_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(leading, "TICK_S", 0.02)
    monkeypatch.setattr(leading, "HEARTBEAT_AFTER_S", 0.0)
    told: list[str] = []

    def trip() -> None:
        told.append("tripped")
        raise RuntimeError("poison")

    async def beat() -> None:
        trip()

    async with Cluster("a") as cluster, replica(cluster, "a") as it:
        it.leadership.on_ready += [trip, lambda: told.append("told")]
        await until(decides(it))
        assert told == ["tripped", "told"]
        proof = it.leadership._proof
        with monkeypatch.context() as patched:
            patched.setattr(proof, "prove", beat)
            await until(lambda: told.count("tripped") > 3)
        silent_since_s = it.tools.state.ledger.silence_s(0.0)
        await until(lambda: it.tools.state.ledger.silence_s(0.0) < silent_since_s)

        assert it.leadership.why_not() is None


async def test_hand_over_that_our_code_trips_over_makes_the_successor_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def trip(packed: str, now_s: float) -> int:
        raise RuntimeError("poison")

    async with Cluster("a", "b") as cluster:
        async with replica(cluster, "a") as leader:
            await until(decides(leader))
            await leader.leadership.hand_over()
        async with replica(cluster, "b", takeover_wait_s=0.3) as successor:
            monkeypatch.setattr(successor.tools.answers, "take_over", trip)
            await until(decides(successor))
