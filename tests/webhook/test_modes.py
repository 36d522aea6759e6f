"""What `preferred` and `bind` do to a pod, at its creation and at the gate."""

from __future__ import annotations

from typing import Any

import pytest

from berthmaster.api import names
from berthmaster.api.storage import claim_from_manifest, storage_class_from_manifest
from berthmaster.cluster.events import EventRecorder
from berthmaster.placement.ledger import State
from berthmaster_webhook.notes import PodNotes
from berthmaster_webhook.outcomes import Outcome
from support.builders import make_taint
from support.webhook_world import (
    GATES,
    Manifest,
    PodServer,
    World,
    allocation_of,
    ask,
    gated_manifest,
    node_pin,
    patched,
    response_of,
)

PREFERRED_KEY = "preferredDuringSchedulingIgnoredDuringExecution"
LATE = {
    "metadata": {
        "name": "late",
        "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
    },
    "provisioner": "example.com/disks",
    "volumeBindingMode": "WaitForFirstConsumer",
}
OURS = {"key": "berthmaster.io/exclusive", "effect": "NoSchedule"}
TOLERATIONS = [{"key": "berthmaster.io/exclusive", "operator": "Exists"}]


def asking(mode: str, name: str = "pod", **fields: Any) -> Manifest:
    annotations = {names.PLACEMENT: mode, **fields.pop("annotations", {})}
    if mode == "preferred":
        fields.setdefault("schedulingGates", [])
    return gated_manifest(name, annotations=annotations, **fields)


def preferences(pod: Manifest) -> list[tuple[str, int]]:
    terms = pod["spec"]["affinity"]["nodeAffinity"][PREFERRED_KEY]
    return [
        (it["preference"]["matchFields"][0]["values"][0], it["weight"])
        for it in terms
        if "matchFields" in it["preference"]
    ]


def exclusive(world: World, *nodes: str) -> None:
    world.add_policy("ours", exclusiveTaints=[OURS])
    for node in nodes:
        world.add_node(node, taints=[make_taint(OURS["key"])])


class TestPreferred:
    async def test_chosen_node_outweighs_runners_up_and_nothing_is_required(
        self, world: World
    ) -> None:
        for name, cpu in (("big", "64"), ("middle", "8"), ("small", "4"), ("tiny", "1")):
            world.add_node(name, cpu=cpu)
        theirs = {"weight": 7, "preference": {"matchExpressions": []}}
        pod = asking("preferred", cpu="1", affinity={"nodeAffinity": {PREFERRED_KEY: [theirs]}})

        reply = ask(world, pod)

        result = patched(pod, reply)
        chosen, *others = preferences(result)
        assert reply.outcome is Outcome.PLACED
        assert chosen == (allocation_of(result)["node"], 100)
        assert others
        assert all(1 <= weight <= 50 for _, weight in others)
        assert result["spec"]["affinity"]["nodeAffinity"][PREFERRED_KEY][0] == theirs
        assert list(result["spec"]["affinity"]["nodeAffinity"]) == [PREFERRED_KEY]
        assert allocation_of(result)["mode"] == "preferred"

    async def test_usage_counts_where_it_is_meant_to_go_then_where_it_is(
        self, world: World
    ) -> None:
        world.add_node("a", cpu="4")
        pod = asking("preferred", cpu="3")
        result = patched(pod, ask(world, pod))
        ledger = world.state.ledger
        assumed = [entry.node for entry in ledger]

        world.show(result)
        meant = ledger.entry("uid-pod")
        world.show({**result, "spec": {**result["spec"], "nodeName": "elsewhere"}})
        landed = ledger.entry("uid-pod")

        assert assumed == ["a"]
        assert meant is not None
        assert (meant.node, meant.state) == ("a", State.PENDING)
        assert landed is not None
        assert (landed.node, landed.state) == ("elsewhere", State.BOUND)
        assert not ledger.on_node("a")

    @pytest.mark.parametrize("forbids", [None, Outcome.NOT_LEADER, Outcome.STOPPING])
    async def test_nothing_ever_keeps_it_waiting(
        self, world: World, forbids: Outcome | None
    ) -> None:
        world.add_node("n1", cpu="1")
        world.term.forbids = forbids
        pod = asking("preferred", cpu="64", schedulingGates=GATES)

        result = patched(pod, ask(world, pod))

        assert "schedulingGates" not in result["spec"]
        assert "affinity" not in result["spec"]

    async def test_bad_request_is_warned_of_and_not_refused(self, world: World) -> None:
        pod = asking("preferred", annotations={names.DISKIO_REQUEST: "much"})

        response = response_of(ask(world, pod))

        assert response["allowed"]
        assert "preferred has no effect" in response["warnings"][0]

    async def test_foreign_gate_is_left_alone(self, world: World) -> None:
        world.add_node("n1")
        pod = asking("preferred", schedulingGates=[{"name": "kueue.x-k8s.io/admission"}])

        reply = ask(world, pod)

        assert reply.outcome is Outcome.FOREIGN_GATE
        assert patched(pod, reply) == pod


class TestBind:
    async def test_exclusive_node_is_set_at_once(self, world: World) -> None:
        exclusive(world, "n1")
        pod = asking("bind", tolerations=TOLERATIONS)

        reply = ask(world, pod)

        result = patched(pod, reply)
        assert reply.outcome is Outcome.PLACED
        assert result["spec"]["nodeName"] == "n1"
        assert "schedulingGates" not in result["spec"]
        assert "affinity" not in result["spec"]
        assert allocation_of(result)["mode"] == "bind"
        assert "warnings" not in response_of(reply)

    async def test_bound_pods_hold_their_room_for_those_after_them(self, world: World) -> None:
        exclusive(world, "n1")
        pods = [asking("bind", f"p{i}", cpu="3", tolerations=TOLERATIONS) for i in range(2)]

        outcomes = [ask(world, pod).outcome for pod in pods]

        assert outcomes == [Outcome.PLACED, Outcome.NOWHERE]

    @pytest.mark.parametrize(
        ("spec", "words"),
        [
            ({"resourceClaims": [{"name": "gpu"}]}, "spec.resourceClaims"),
            ({"schedulingGroup": {"podGroupName": "g"}}, "spec.schedulingGroup"),
            ({"volumes": [{"name": "scratch", "ephemeral": {}}]}, "volume scratch"),
            (
                {"volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "c"}}]},
                "volume data",
            ),
        ],
    )
    async def test_what_only_the_scheduler_checks_is_left_to_it(
        self, world: World, spec: Manifest, words: str
    ) -> None:
        exclusive(world, "n1")
        world.state.engine.observe(storage_class_from_manifest(LATE))
        claim = {
            "metadata": {"namespace": "default", "name": "c"},
            "spec": {"storageClassName": "late"},
        }
        world.state.engine.observe(claim_from_manifest(claim))
        pod = asking("bind", tolerations=TOLERATIONS, **spec)

        reply = ask(world, pod)

        result = patched(pod, reply)
        assert "nodeName" not in result["spec"]
        assert node_pin(result) == "n1"
        assert allocation_of(result)["mode"] == "required"
        assert words in allocation_of(result)["note"]
        assert words in response_of(reply)["warnings"][0]

    @pytest.mark.parametrize(
        "taint",
        [
            make_taint(OURS["key"], effect="NoExecute"),
            make_taint(OURS["key"], "other"),
            make_taint("somebody.else/exclusive"),
        ],
    )
    async def test_node_without_the_very_taint_is_not_ours_alone(
        self, world: World, taint: dict[str, str]
    ) -> None:
        exclusive(world)
        world.add_node("n1", taints=[taint])
        pod = asking("bind", tolerations=[{"operator": "Exists"}])

        reply = ask(world, pod)

        assert node_pin(patched(pod, reply)) == "n1"
        assert "node n1 has no exclusive taint" in response_of(reply)["warnings"][0]

    async def test_without_a_policy_that_names_taints_it_is_required(self, world: World) -> None:
        world.add_node("n1")
        pod = asking("bind")

        reply = ask(world, pod)

        assert node_pin(patched(pod, reply)) == "n1"
        assert "exclusiveTaints" in response_of(reply)["warnings"][0]

    async def test_repeated_create_gets_the_same_binding(self, world: World) -> None:
        exclusive(world, "n1", "n2")
        pod = asking("bind", tolerations=TOLERATIONS)

        first, again = (patched(pod, ask(world, pod)) for _ in range(2))

        assert first == again

    async def test_owner_is_told_by_event_when_the_pod_is_there(self, world: World) -> None:
        server = PodServer(world)
        events = EventRecorder(server, "berthmaster.io/placer")
        notes = PodNotes(world.tools.answers, events)
        world.state.on_pod.append(notes.take_pod)
        world.add_node("n1")
        pod = asking("bind")

        stored = patched(pod, ask(world, pod))
        world.show(stored)
        world.show({**stored, "spec": {**stored["spec"], "nodeName": "n1"}})
        await events.drain(5.0)

        ((_, event),) = server.created
        assert event["reason"] == "PlacedAsRequired"
        assert "exclusiveTaints" in event["note"]
