from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from berthmaster.api import names
from berthmaster_webhook.admission import Admission
from berthmaster_webhook.outcomes import Outcome
from support.webhook_world import (
    EPOCH,
    GATES,
    Manifest,
    World,
    allocation_of,
    ask,
    gated_manifest,
    make_review,
    node_pin,
    patched,
    response_of,
)

BAD_IO = {names.PLACEMENT: "required", names.DISKIO_REQUEST: '{"rbps": "much"}'}


async def test_half_a_character_in_a_request_is_refused_in_words(world: World) -> None:
    request = r'{"rbps": "\ud800", "wbps": "1", "blocksize": "4k"}'
    pod = gated_manifest(annotations={names.PLACEMENT: "required", names.DISKIO_REQUEST: request})

    assert "not a quantity" in response_of(ask(world, pod))["status"]["message"]


async def test_feasible_pod_is_pinned_and_ungated(world: World) -> None:
    world.add_node("n1")
    pod = gated_manifest(cpu="1")

    reply = ask(world, pod)

    result = patched(pod, reply)
    assert reply.outcome is Outcome.PLACED
    assert node_pin(result) == "n1"
    assert "schedulingGates" not in result["spec"]
    assert allocation_of(result)["node"] == "n1"
    assert set(world.state.ledger.assumed) == {reply.decision_id} == {allocation_of(result)["id"]}


async def test_request_in_any_shape_is_placed_and_written_for_the_driver(world: World) -> None:
    world.add_node("n1")
    world.add_disk("n1")
    typed = {names.DISK_READ: "1.5Mi", names.DISK_WRITE: "2Mi", names.DISK_BLOCK_SIZE: "4k"}
    pod = gated_manifest(annotations={names.PLACEMENT: "required", **typed})

    result = patched(pod, ask(world, pod))

    assert json.loads(result["metadata"]["annotations"][names.DISKIO_REQUEST]) == {
        "rbps": "1536Ki",
        "wbps": "2Mi",
        "blocksize": "4k",
    }
    assert allocation_of(result)["allocated"]["diskio"]["rbps"] == 1536 * 1024
    assert not (typed.items() - result["metadata"]["annotations"].items())
    # What is written so is understood by us as well, and left as it is.
    del result["metadata"]["annotations"][names.ALLOCATION]
    result["metadata"]["name"] = "again"
    again = patched({**result, "spec": pod["spec"]}, ask(world, {**result, "spec": pod["spec"]}))
    assert (
        again["metadata"]["annotations"][names.DISKIO_REQUEST]
        == (result["metadata"]["annotations"][names.DISKIO_REQUEST])
    )


async def test_pod_that_asks_nothing_takes_what_its_policy_says(world: World) -> None:
    world.add_node("n1")
    world.add_disk("n1", "150Mi")
    asked = {"read": "100Mi", "write": "1.5Mi", "blockSize": "16k"}
    world.add_policy("p", concerns={"diskio": {"defaultRequest": asked}})
    pod = gated_manifest("a")

    annotations = patched(pod, ask(world, pod))["metadata"]["annotations"]

    assert json.loads(annotations[names.DISKIO_REQUEST]) == {
        "rbps": "100Mi",
        "wbps": "1536Ki",
        "blocksize": "16k",
    }
    assert ask(world, gated_manifest("b")).outcome is Outcome.NOWHERE
    # A node whose disks nobody knows still takes what asked nothing, and nothing is written on it.
    world.add_node("n2")
    other = gated_manifest("c")
    result = patched(other, ask(world, other))
    assert allocation_of(result)["node"] == "n2"
    assert names.DISKIO_REQUEST not in result["metadata"]["annotations"]


async def test_plain_request_stays_as_it_was_written(world: World) -> None:
    world.add_node("n1")
    world.add_disk("n1")
    text = '{"RBPS": "1048576", "wbps": "1Mi", "blockSize": "4k", "note": 1}'
    pod = gated_manifest(annotations={names.PLACEMENT: "required", names.DISKIO_REQUEST: text})

    result = patched(pod, ask(world, pod))

    assert allocation_of(result)["node"] == "n1"
    assert result["metadata"]["annotations"][names.DISKIO_REQUEST] == text


async def test_answers_hold_their_room(world: World) -> None:
    world.add_node("n1", cpu="3")

    outcomes = [ask(world, gated_manifest(f"p{i}", cpu="2")).outcome for i in range(2)]

    assert outcomes == [Outcome.PLACED, Outcome.NOWHERE]


async def test_dropped_answer_gives_its_room_back(world: World) -> None:
    world.add_node("n1", cpu="3")
    first = ask(world, gated_manifest("a", cpu="2"))
    assert first.decision_id is not None

    world.tools.answers.drop(first.decision_id)

    assert ask(world, gated_manifest("b", cpu="2")).outcome is Outcome.PLACED


@pytest.mark.parametrize(
    "forbids",
    [Outcome.NOT_LEADER, Outcome.TAKING_OVER, Outcome.WATCH_SILENT, Outcome.STOPPING],
)
async def test_gate_stays_while_deciding_is_forbidden(world: World, forbids: Outcome) -> None:
    world.add_node("n1")
    world.term.forbids = forbids

    reply = ask(world, gated_manifest())

    assert reply.outcome is forbids
    assert response_of(reply) == {"uid": "review-1", "allowed": True}


@pytest.mark.parametrize("epoch", [None, EPOCH - 1, EPOCH + 1])
async def test_wrong_epoch_leaves_gate_and_closes(world: World, epoch: int | None) -> None:
    world.add_node("n1")

    reply = ask(world, gated_manifest(), epoch=epoch)

    assert reply.outcome is Outcome.WRONG_EPOCH
    assert reply.closes_connection
    assert "patch" not in response_of(reply)


@pytest.mark.parametrize("forbids", [None, Outcome.TAKING_OVER, Outcome.NOT_SYNCED])
@pytest.mark.parametrize("mode", ["required", "observe", "off", "sideways"])
async def test_whatever_comes_by_a_foreign_epoch_closes(
    world: World, forbids: Outcome | None, mode: str
) -> None:
    """Else a pool of connections to one who does not lead lives on."""
    world.add_node("n1")
    world.term.forbids = forbids
    pod = gated_manifest(annotations={names.PLACEMENT: mode})

    astray, ours = ask(world, pod, epoch=EPOCH - 1), ask(world, pod)

    assert (astray.closes_connection, ours.closes_connection) == (True, False)
    assert not astray.decision_id


async def test_who_stops_closes_also_what_is_his_own(world: World) -> None:
    world.term.forbids = Outcome.STOPPING

    assert ask(world, gated_manifest()).closes_connection


async def test_gate_stays_before_everything_is_listed(world: World) -> None:
    world.add_node("n1")
    world.state.policy_objects.synced.clear()

    assert ask(world, gated_manifest()).outcome is Outcome.NOT_SYNCED


async def test_gate_stays_while_pods_are_listed_anew(world: World) -> None:
    world.add_node("n1")
    world.state.pods.resource_version = ""

    assert ask(world, gated_manifest()).outcome is Outcome.NOT_SYNCED


async def test_foreign_gate_is_left_alone(world: World) -> None:
    world.add_node("n1")
    pod = gated_manifest(schedulingGates=[{"name": "kueue.x-k8s.io/admission"}, *GATES])

    reply = ask(world, pod)

    assert reply.outcome is Outcome.FOREIGN_GATE
    assert patched(pod, reply) == pod


async def test_owner_window_bounds_unconfirmed_answers(world: World) -> None:
    world.add_node("n1", cpu="64")

    outcomes = [ask(world, gated_manifest(f"p{i}")).outcome for i in range(3)]
    other = ask(world, gated_manifest("q"), userInfo={"username": "bob"}).outcome

    assert outcomes == [Outcome.PLACED, Outcome.PLACED, Outcome.WINDOW_FULL]
    assert other is Outcome.PLACED


OWNED = [
    {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r", "controller": True}
]


async def test_controller_against_a_full_quota_holds_two_pods_at_most(world: World) -> None:
    """It creates one, two, four at a time; three are stored, then all are refused."""
    world.add_node("n1", cpu="64")

    def create(index: int, *, is_stored: bool) -> None:
        pod = gated_manifest(f"p{index}")
        pod["metadata"]["ownerReferences"] = OWNED
        reply = ask(world, pod)
        if is_stored:
            world.show(patched(pod, reply))

    for index in range(20):
        create(index, is_stored=index < 3)

    assert len(world.state.ledger.assumed) == 2


async def test_dry_run_reserves_nothing(world: World) -> None:
    world.add_node("n1", cpu="3")
    pod = gated_manifest(cpu="2")

    replies = [ask(world, pod, dryRun=True) for _ in range(3)]

    assert {reply.outcome for reply in replies} == {Outcome.DRY_RUN}
    assert node_pin(patched(pod, replies[0])) == "n1"
    assert not world.state.ledger.assumed


async def test_known_name_is_left_at_the_gate(world: World) -> None:
    world.add_node("n1")
    world.show(gated_manifest("web-0"))

    assert ask(world, gated_manifest("web-0")).outcome is Outcome.NAME_KNOWN


async def test_name_in_flight_gets_the_same_decision(world: World) -> None:
    for name in ("n1", "n2", "n3"):
        world.add_node(name)
    pod = gated_manifest("web-0", cpu="1")

    first, second = ask(world, pod), ask(world, pod)

    assert second.outcome is Outcome.REPEATED
    assert patched(pod, second) == patched(pod, first)
    assert len(world.state.ledger.assumed) == 1


async def test_repeated_answer_keeps_room_of_unsent_first(world: World) -> None:
    world.add_node("n1")
    pod = gated_manifest("web-0", cpu="1")
    first, _ = ask(world, pod), ask(world, pod)
    assert first.decision_id is not None

    world.tools.answers.drop(first.decision_id)

    assert first.decision_id in world.state.ledger.assumed


async def test_other_request_under_name_in_flight_waits(world: World) -> None:
    world.add_node("n1")
    ask(world, gated_manifest("web-0", cpu="1"))

    assert ask(world, gated_manifest("web-0", cpu="2")).outcome is Outcome.NAME_KNOWN


async def test_own_output_is_left_as_it_is(world: World) -> None:
    world.add_node("n1")
    pod = gated_manifest()
    result = patched(pod, ask(world, pod))

    again = ask(world, result)

    assert again.outcome is Outcome.UNTOUCHED
    assert patched(result, again) == result


async def test_observed_pod_is_annotated_only(world: World) -> None:
    world.add_node("n1")
    pod = gated_manifest(annotations={names.PLACEMENT: "observe"}, schedulingGates=[])

    reply = ask(world, pod)

    result = patched(pod, reply)
    assert allocation_of(result)["mode"] == "observe"
    assert "affinity" not in result["spec"]
    assert not world.state.ledger.assumed


async def test_off_takes_the_gate_off(world: World) -> None:
    pod = gated_manifest(annotations={names.PLACEMENT: "off"})

    reply = ask(world, pod)

    assert "schedulingGates" not in patched(pod, reply)["spec"]


async def test_unknown_mode_is_refused_with_the_words(world: World) -> None:
    reply = ask(world, gated_manifest("web", annotations={names.PLACEMENT: "requird"}))

    status = response_of(reply)["status"]
    assert status["code"] == 422
    for part in ("default/web", '"requird"', "required, preferred, bind, observe, off"):
        assert part in status["message"]


async def test_invalid_request_is_refused_with_a_way_out(world: World) -> None:
    world.term.forbids = Outcome.NOT_LEADER

    reply = ask(world, gated_manifest("web", annotations=BAD_IO))

    response = response_of(reply)
    assert not response["allowed"]
    assert response["status"]["code"] == 422
    for part in ("default/web", names.DISKIO_REQUEST, "expected", f"{names.PLACEMENT}: off"):
        assert part in response["status"]["message"]


async def test_invalid_request_waits_where_policy_says_so(world: World) -> None:
    world.add_policy("lenient", onInvalid="wait")

    reply = ask(world, gated_manifest(annotations=BAD_IO))

    assert reply.outcome is Outcome.WAITS_INVALID
    assert response_of(reply)["allowed"]


async def test_stamped_pod_takes_the_mode_of_its_policy(world: World) -> None:
    world.add_node("n1")
    world.add_policy("mine", mode="off", schedulerNames=["old"])
    stamped = {
        names.PLACEMENT: "required",
        names.POLICY: "mine",
        names.REPLACED_SCHEDULER: "old",
    }

    assert ask(world, gated_manifest(annotations=stamped)).outcome is Outcome.UNTOUCHED


async def test_priority_counts_whichever_policy_stamped(world: World) -> None:
    world.add_node("n1")
    world.add_policy("first", mode="required", schedulerNames=["old"])
    world.add_policy("urgent", mode="off", schedulerNames=["old"], priority=10)
    stamped = {
        names.PLACEMENT: "required",
        names.POLICY: "first",
        names.REPLACED_SCHEDULER: "old",
    }

    assert ask(world, gated_manifest(annotations=stamped)).outcome is Outcome.UNTOUCHED


async def test_unseen_policy_leaves_the_gate(world: World) -> None:
    world.add_node("n1")
    stamped = {names.PLACEMENT: "required", names.POLICY: "new"}

    assert ask(world, gated_manifest(annotations=stamped)).outcome is Outcome.NOT_SYNCED


async def test_unseen_namespace_matters_with_policies_only(world: World) -> None:
    world.add_node("n1")
    pod = gated_manifest(namespace="fresh")

    without = ask(world, pod).outcome
    world.add_policy("any", namespaceSelector={"matchLabels": {"a": "b"}})

    assert (without, ask(world, gated_manifest("q", namespace="fresh")).outcome) == (
        Outcome.PLACED,
        Outcome.NOT_SYNCED,
    )


@pytest.mark.parametrize(
    "pod",
    [
        gated_manifest(namespace="kube-system"),
        gated_manifest(namespace="berthmaster-system"),
        gated_manifest(nodeName="n1"),
        gated_manifest(annotations={names.PLACEMENT: "required", names.MIRROR_POD: "x"}),
        {
            **gated_manifest(),
            "metadata": {
                "namespace": "default",
                "name": "ds-1",
                "annotations": {names.PLACEMENT: "required"},
                "ownerReferences": [{"kind": "DaemonSet", "uid": "d", "controller": True}],
            },
        },
    ],
    ids=["kube-system", "own-namespace", "bound", "mirror", "daemon-set"],
)
async def test_exempt_pod_is_untouched(world: World, pod: Manifest) -> None:
    world.add_node("n1")

    reply = ask(world, pod)

    assert reply.outcome is Outcome.UNTOUCHED
    assert "patch" not in response_of(reply)


async def test_ungated_required_pod_is_gated_if_it_must_wait(world: World) -> None:
    pod = gated_manifest()
    del pod["spec"]["schedulingGates"]

    reply = ask(world, pod)

    assert reply.outcome is Outcome.NOWHERE
    assert patched(pod, reply)["spec"]["schedulingGates"] == GATES


async def test_avoided_node_is_not_chosen(world: World) -> None:
    world.add_node("n1", cpu="64")
    world.add_node("n2", cpu="2")
    world.tools.avoided.add("rs", "n1", world.now_s)
    pod = gated_manifest()
    pod["metadata"]["ownerReferences"] = [{"kind": "ReplicaSet", "uid": "rs", "controller": True}]

    assert node_pin(patched(pod, ask(world, pod))) == "n2"


@pytest.mark.parametrize(
    "request_fields",
    [
        {"operation": "UPDATE"},
        {"operation": "DELETE"},
        {"kind": {"group": "apps", "version": "v1", "kind": "Deployment"}},
        {"subResource": "binding"},
    ],
    ids=["update", "delete", "deployment", "subresource"],
)
async def test_other_requests_pass(world: World, request_fields: Manifest) -> None:
    reply = ask(world, gated_manifest(), **request_fields)

    assert response_of(reply) == {"uid": "review-1", "allowed": True}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "cannot be read"),
        (b'{"kind": "Adm', "cannot be read"),
        (b"[]", "cannot be read"),
        (b'{"kind":"Pod","apiVersion":"v1"}', "found Pod of v1, expected an AdmissionReview"),
        (
            b'{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1beta1"}',
            "expected an AdmissionReview of admission.k8s.io/v1",
        ),
        (b'{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1"}', "no request"),
        (b"[" * 100_000, "cannot be read"),
    ],
)
async def test_malformed_body_is_told_apart(world: World, body: bytes, words: str) -> None:
    reply = Admission(world.tools, world.term).reply(body, epoch=EPOCH)

    assert reply.status == 400
    assert words in reply.body.decode()


async def test_body_above_the_limit_is_413(world: World) -> None:
    body = b" " * (7 * 1024 * 1024 + 1)

    assert Admission(world.tools, world.term).reply(body, epoch=EPOCH).status == 413


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    if isinstance(value, dict):
        for key, inner in value.items():
            found += _paths(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            found += _paths(inner, (*path, index))
    return found


RICH = json.loads(
    make_review(
        gated_manifest(
            annotations={**BAD_IO, names.POLICY: "x", names.ALLOCATION: "{}"},
            affinity={
                "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {
                        "nodeSelectorTerms": [
                            {"matchExpressions": [{"key": "a", "operator": "Exists"}]},
                            {"matchFields": []},
                        ]
                    }
                }
            },
            tolerations=[{"operator": "Exists"}],
        )
    )
)


async def test_mutilated_reviews_never_crash(world: World) -> None:
    world.add_node("n1", cpu="64", labels={"a": "b"})
    admission = Admission(world.tools, world.term)

    @settings(max_examples=400, deadline=None)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        review = json.loads(json.dumps(RICH))
        for _ in range(data.draw(st.integers(1, 3))):
            *above, last = data.draw(st.sampled_from(_paths(review)))
            place = review
            for key in above:
                place = place[key]
            if data.draw(st.booleans()):
                place[last] = data.draw(_json)
            else:
                del place[last]
        body = json.dumps(review).encode()
        body = body[: data.draw(st.sampled_from([len(body), len(body) // 2]))]

        reply = admission.reply(body, epoch=EPOCH)

        assert reply.status in (200, 400)
        if reply.status == 200:
            assert response_of(reply)["uid"] == review["request"]["uid"]
            patched(review["request"].get("object"), reply)

    check()
