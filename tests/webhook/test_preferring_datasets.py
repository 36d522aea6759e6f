"""What `preferred` writes on a pod that names datasets, and what `required` makes of them."""

from __future__ import annotations

from typing import Any, cast

import pytest

from berthmaster.api import names
from berthmaster.api.objects import pod_from_manifest
from berthmaster.api.policy import Mode
from berthmaster.cluster.events import EventRecorder
from berthmaster.cluster.informers import EventKind
from berthmaster_webhook import deciding
from berthmaster_webhook.notes import PodNotes
from support.webhook_world import (
    Manifest,
    World,
    allocation_of,
    ask,
    gated_manifest,
    patched,
    response_of,
)

PREFERRED_KEY = "preferredDuringSchedulingIgnoredDuringExecution"
REQUIRED_KEY = "requiredDuringSchedulingIgnoredDuringExecution"
ZONE, REGION, HOST = names.ZONE, names.REGION, names.HOSTNAME_LABEL


@pytest.fixture
async def harbour(world: World) -> World:
    for name, zone in (("n1", "a"), ("n2", "a"), ("n3", "b")):
        world.add_node(name, labels={HOST: name, ZONE: zone, REGION: "eu"})
    world.add_datasets("n1", d="gateway")
    world.add_datasets("n3", f="data")
    return world


def training(dataset: str, mode: str = "preferred", **fields: Any) -> Manifest:
    gates = [] if mode == "preferred" else [{"name": names.GATE}]
    annotations = {names.PLACEMENT: mode}
    pod = gated_manifest("train", annotations=annotations, schedulingGates=gates, **fields)
    pod["metadata"]["labels"] = {"dataset.0.id": dataset}
    return pod


def node_affinity(pod: Manifest) -> Manifest:
    found: Manifest = pod["spec"]["affinity"]["nodeAffinity"]
    return found


def keys(pod: Manifest) -> list[tuple[int, list[str]]]:
    return [
        (it["weight"], [one["key"] for one in it["preference"]["matchExpressions"]])
        for it in node_affinity(pod)[PREFERRED_KEY]
    ]


async def test_tiers_stand_on_the_pod_as_increments_and_nothing_beside_them(
    harbour: World,
) -> None:
    pod = training("d")
    result = patched(pod, ask(harbour, pod))

    assert keys(result) == [(50, [HOST]), (25, [ZONE, REGION]), (25, [REGION])]
    assert list(node_affinity(result)) == [PREFERRED_KEY]
    assert allocation_of(result)["node"] == "n1"
    assert allocation_of(result)["scores"]["dataset"] == 100


async def test_where_another_concern_tells_nodes_apart_each_has_its_share(harbour: World) -> None:
    for name, labels in (("n1", "a"), ("n2", "a")):
        harbour.add_node(name, labels={HOST: name, ZONE: labels, REGION: "eu"}, cpu="8")
    harbour.add_policy("p", concerns={"resources": {"weight": 1}})
    pod = training("d", cpu="1")
    result = patched(pod, ask(harbour, pod))

    named: list[int] = []
    told: list[int] = []
    for it in node_affinity(result)[PREFERRED_KEY]:
        (named if "matchFields" in it["preference"] else told).append(it["weight"])
    assert named[0] == 50
    assert sum(told) == 50


async def test_keys_that_the_pod_uses_itself_are_left_to_it(harbour: World) -> None:
    own = {"matchExpressions": [{"key": ZONE, "operator": "In", "values": ["a", "b"]}]}
    affinity = {"nodeAffinity": {REQUIRED_KEY: {"nodeSelectorTerms": [own]}}}
    pod = training("d", affinity=affinity)
    result = patched(pod, ask(harbour, pod))

    assert keys(result) == [(50, [HOST]), (25, [REGION])]
    assert node_affinity(result)[REQUIRED_KEY] == {"nodeSelectorTerms": [own]}


async def test_a_file_system_is_required_beside_what_the_pod_requires(harbour: World) -> None:
    own = {"matchExpressions": [{"key": REGION, "operator": "Exists"}]}
    affinity = {"nodeAffinity": {REQUIRED_KEY: {"nodeSelectorTerms": [own]}}}
    pod = training("f", affinity=affinity)
    result = patched(pod, ask(harbour, pod))

    here = {"key": HOST, "operator": "In", "values": ["n3"]}
    assert node_affinity(result)[REQUIRED_KEY] == {
        "nodeSelectorTerms": [{"matchExpressions": [*own["matchExpressions"], here]}]
    }
    assert PREFERRED_KEY not in node_affinity(result)


async def test_a_second_look_at_our_own_output_changes_nothing(harbour: World) -> None:
    pod = training("d")
    once = patched(pod, ask(harbour, pod))

    assert patched(once, ask(harbour, once)) == once


async def test_a_stored_pod_is_pinned_where_its_terms_could_not_be_multiplied(
    harbour: World,
) -> None:
    pod = training("f")
    request = harbour.state.engine.read_request(
        harbour.show(pod), harbour.state.policies.choose({}, {}).spec
    )
    decision = deciding.decide(harbour.tools, harbour.show(pod), request)
    answer = deciding.make_answer(
        harbour.tools, harbour.show(pod), request, decision, "owner", mode=Mode.PREFERRED
    )
    placing = deciding.placing(pod, answer, is_stored=True)

    (pin,) = [it for it in placing if it["path"].startswith("/spec/affinity")]
    assert "matchFields" in str(pin["value"])
    assert "n3" in str(pin["value"])


@pytest.mark.parametrize("dataset", ["ghost", "My_Data", "a.b"])
async def test_a_dataset_that_is_not_there_changes_nothing(harbour: World, dataset: str) -> None:
    pod = training(dataset)
    result = patched(pod, ask(harbour, pod))

    assert all("matchFields" in it["preference"] for it in node_affinity(result)[PREFERRED_KEY])
    assert allocation_of(result)["allocated"]["dataset"] == {"notUsable": {dataset: "missing"}}


async def test_the_gateway_pulls_a_required_pod_and_its_loss_does_not_hold_it(
    harbour: World,
) -> None:
    pod = training("d", "required")
    assert allocation_of(patched(pod, ask(harbour, pod)))["node"] == "n1"

    harbour.add_datasets("n1")
    after = training("d", "required")
    after["metadata"]["name"] = "later"
    assert allocation_of(patched(after, ask(harbour, after)))["score"] >= 0


async def test_a_thousand_labels_are_answered(harbour: World) -> None:
    pod = training("d")
    pod["metadata"]["labels"] = {f"dataset.{it}.id": f"d{it}" for it in range(1, 1000)}
    pod["metadata"]["labels"]["dataset.0.id"] = "d"
    result = patched(pod, ask(harbour, pod))

    assert allocation_of(result)["node"] == "n1"
    assert len(result["metadata"]["annotations"][names.ALLOCATION]) <= 2048


async def test_a_pod_that_never_waits_does_not_wait_for_a_cache(harbour: World) -> None:
    harbour.add_policy("p", concerns={"dataset": {"hold": "60s"}})
    harbour.announce_dataset("new", caching="Pending")
    preferring = training("new")
    assert allocation_of(patched(preferring, ask(harbour, preferring)))["node"]

    required = training("new", "required")
    assert patched(required, ask(harbour, required)) == required


async def test_datasets_are_mounted_where_the_policy_says_so_and_decided_with(
    harbour: World,
) -> None:
    harbour.add_policy("p", concerns={"dataset": {"mounts": True}})
    harbour.announce_dataset("d", caching="Pending")
    pod = training("d", "required")
    pod["metadata"]["labels"]["dataset.0.useas"] = "mount"
    reply = ask(harbour, pod)
    # A claim that is not there yet keeps the pod at its gate, mounted.
    result = patched(pod, reply)
    assert result["spec"]["volumes"] == [{"name": "d", "persistentVolumeClaim": {"claimName": "d"}}]
    (container,) = result["spec"]["containers"]
    assert container["volumeMounts"] == [{"name": "d", "mountPath": "/mnt/datasets/d"}]

    odd = training("d", "required")
    odd["metadata"]["labels"]["dataset.0"] = "d"
    response = response_of(ask(harbour, odd))
    assert not response["allowed"]
    assert response["status"]["code"] == 400
    assert "label dataset.0 is not in the right format" in response["status"]["message"]


async def test_who_creates_a_pod_is_warned_of_datasets_that_do_not_count(harbour: World) -> None:
    harbour.announce_dataset("off", caching="Disabled")
    for dataset, words in (("off", "off is caching-disabled"), ("ghost", "ghost is missing")):
        (warning,) = response_of(ask(harbour, training(dataset)))["warnings"]
        assert words in warning
    assert "warnings" not in response_of(ask(harbour, training("d")))


async def test_the_pod_is_told_once_by_an_event_which_datasets_it_was_placed_without(
    harbour: World,
) -> None:
    harbour.announce_dataset("old", caching="OK", is_declared=True)
    harbour.announce_dataset("new", caching="Pending", is_declared=False)
    recorded: list[tuple[str, str]] = []

    class Recorder:
        def record(self, about: object, reason: str, note: str, **_: object) -> None:
            recorded.append((reason, note))

    notes = PodNotes(harbour.tools.answers, cast(EventRecorder, Recorder()))
    pod = training("d", "required")
    pod["metadata"]["labels"] |= {
        f"dataset.{at}.id": name for at, name in enumerate(("old", "ghost", "new"), start=1)
    }
    stored = pod_from_manifest(patched(pod, ask(harbour, pod)))
    for _ in range(2):
        notes.take_pod(EventKind.ADDED, stored)

    assert recorded == [
        (
            "PlacedWithoutDataset",
            "placed as if it did not name these datasets: old is stale, ghost is missing",
        )
    ]


async def test_a_pod_whose_datasets_are_all_there_is_told_nothing(harbour: World) -> None:
    pod = training("d", "required")
    stored = pod_from_manifest(patched(pod, ask(harbour, pod)))

    assert harbour.tools.answers.take_notes(stored) == ()
