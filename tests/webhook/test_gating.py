"""The gate by webhook: a path and a pod in, the pod as it is stored out."""

from __future__ import annotations

import base64
import json
from typing import Any

import jsonpatch
import pytest
from aiohttp.test_utils import TestClient, TestServer

from berthmaster.api import names
from berthmaster_webhook import gating
from berthmaster_webhook.admission import Admission, MalformedReviewError
from berthmaster_webhook.server import Routes
from support.webhook_world import World, make_review

GATE = {"name": names.GATE}
FOREIGN = {"name": "kueue.x-k8s.io/admission"}
STAMP = {
    names.PLACEMENT: "required",
    names.POLICY: "fleet",
    names.POLICY_PRIORITY: "5",
}
SELECTED = "selected/required/p5/any/fleet"
NAMED = "selected/required/p5/named/fleet"


def make_pod(
    annotations: dict[str, str] | None = None, gates: Any = None, scheduler: str | None = None
) -> dict[str, Any]:
    spec: dict[str, Any] = {"schedulerName": scheduler or names.DEFAULT_SCHEDULER}
    if gates is not None:
        spec["schedulingGates"] = gates
    metadata: dict[str, Any] = {"generateName": "p-"}
    if annotations is not None:
        metadata["annotations"] = annotations
    return {"metadata": metadata, "spec": spec}


def gated_by(path: str, pod: dict[str, Any]) -> dict[str, Any]:
    response = json.loads(gating.answer(path, make_review(pod)))["response"]
    assert response["allowed"] is True
    if "patch" not in response:
        return pod
    operations = json.loads(base64.b64decode(response["patch"]))
    changed: dict[str, Any] = jsonpatch.apply_patch(pod, operations)
    return changed


@pytest.mark.parametrize(
    ("before", "after"),
    [(None, [GATE]), ([], [GATE]), ([FOREIGN], [FOREIGN, GATE]), ([GATE, FOREIGN],) * 2],
    ids=["none", "empty", "beside another", "ours already"],
)
def test_gate_is_put_on_once(before: Any, after: Any) -> None:
    asked = {names.PLACEMENT: "required"}

    stored = gated_by("annotated", make_pod(asked, before))

    assert stored == make_pod(asked, after)
    assert gated_by("annotated", stored) == stored


@pytest.mark.parametrize("annotations", [None, {}, {"mine": "stays"}], ids=["none", "empty", "one"])
def test_selected_pod_is_stamped_and_gated(annotations: dict[str, str] | None) -> None:
    stored = gated_by(SELECTED, make_pod(annotations))

    assert stored == make_pod({**(annotations or {}), **STAMP}, [GATE])
    assert gated_by(SELECTED, stored) == stored


@pytest.mark.parametrize(
    ("mode", "gates"),
    [("required", [GATE]), ("bind", [GATE]), ("preferred", []), ("observe", []), ("off", [])],
)
def test_gate_follows_the_mode_of_the_policy_that_outranks(mode: str, gates: Any) -> None:
    outranked = gated_by("selected/required/m7/any/other", make_pod())

    stored = gated_by(f"selected/{mode}/p5/any/fleet", outranked)

    assert stored["spec"].get("schedulingGates") == gates
    assert stored["metadata"]["annotations"] == {**STAMP, names.PLACEMENT: mode}
    assert outranked["metadata"]["annotations"][names.POLICY_PRIORITY] == "-7"


def test_old_scheduler_is_replaced_and_given_back() -> None:
    taken = gated_by(NAMED, make_pod(scheduler="diskio-aware-scheduler"))

    assert taken["spec"]["schedulerName"] == names.DEFAULT_SCHEDULER
    replaced = taken["metadata"]["annotations"][names.REPLACED_SCHEDULER]
    assert replaced == "diskio-aware-scheduler"
    assert gated_by(NAMED, taken) == taken
    back = gated_by("selected/required/p9/any/other", taken)
    assert back["spec"]["schedulerName"] == "diskio-aware-scheduler"
    assert names.REPLACED_SCHEDULER not in back["metadata"]["annotations"]


def test_made_up_devices_are_dropped_and_noted() -> None:
    forged = {"BAIDU_COM_XPU_MEM_IDX": "0", "hami.io/bind-phase": "success", names.ALLOCATION: "{}"}
    stored = gated_by("drop", make_pod({**forged, "mine": "stays"}))

    assert stored["metadata"]["annotations"] == {
        "mine": "stays",
        names.DROPPED: "BAIDU_COM_XPU_MEM_IDX,hami.io/bind-phase",
    }


@pytest.mark.parametrize(("resource", "gates"), [("kunlunxin.com/xpu", 1), ("cpu", 0)])
def test_preferred_pod_is_gated_where_it_asks_for_devices(resource: str, gates: int) -> None:
    pod = make_pod()
    pod["spec"]["containers"] = [{"name": "main", "resources": {"limits": {resource: "1"}}}]

    stored = gated_by("selected/preferred/p5/any/fleet", pod)

    assert len(stored["spec"].get("schedulingGates", ())) == gates


def test_made_up_allocation_is_dropped() -> None:
    stored = gated_by("drop", make_pod({names.ALLOCATION: "{}", "mine": "stays"}))

    assert stored == make_pod({"mine": "stays"})
    assert gated_by("drop", stored) == stored


@pytest.mark.parametrize(
    "path",
    [
        "selected/required/p5/any",
        "selected/sideways/p5/any/fleet",
        "selected/required/5/any/fleet",
        "selected/required/p5/some/fleet",
        "selected/required/p5/any/",
        "selected/required/p55555555/any/fleet",
        "else",
    ],
)
def test_unknown_path_is_refused(path: str) -> None:
    with pytest.raises(gating.UnknownGateError, match="is not known"):
        gating.answer(path, make_review(make_pod()))


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"kind": "AdmissionReview"}'])
def test_malformed_review_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedReviewError):
        gating.answer("annotated", body)


async def test_replica_gates_without_leading_or_knowing_the_cluster(world: World) -> None:
    routes = Routes(Admission(world.tools, world.term), world.tools, lambda: ["pods not listed"])
    world.term.epoch = None
    async with TestClient(TestServer(routes.admission_app())) as client:
        answer = await client.post(f"/gate/{SELECTED}", data=make_review(make_pod()))
        reply = await answer.json()
        unknown = await client.post("/gate/else", data=make_review(make_pod()))
        broken = await client.post("/gate/annotated", data=b"{")

    assert (answer.status, answer.content_type) == (200, "application/json")
    assert reply["response"]["patchType"] == "JSONPatch"
    assert (unknown.status, broken.status) == (404, 400)


def test_pod_whose_containers_are_null_is_answered() -> None:
    """So the API server sends one without containers, which it refuses only afterwards."""
    pod = make_pod()
    pod["spec"]["containers"] = None

    stored = gated_by("selected/preferred/p5/any/fleet", pod)

    assert stored["metadata"]["annotations"] == {**STAMP, names.PLACEMENT: "preferred"}
