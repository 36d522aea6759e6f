"""Bad input on the real cluster: a message that names the fault, and everybody else is placed."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from berthmaster.cluster.client import PatchKind
from berthmaster.cluster.errors import ApiError
from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.demo.stage import disk
from berthmaster_sandbox.world.diskio import DiskWorld
from support.harbour import (
    HOOK,
    POLICIES,
    apply_models,
    apply_policy,
    create,
    inventory_of,
    io,
    make_pod,
    new_namespace,
    program_pids,
    until,
    until_bound,
    until_event,
    until_reason,
    until_waiting,
)

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(240),
]

NODE = "bad-1"
NAMESPACE = "bad-input"
DEVICES = "/apis/diskio.x-k8s.io/v1alpha1/namespaces/ioi-system/nodediskdevices"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def world(harbour: Sandbox) -> AsyncIterator[DiskWorld]:
    """One node with a sound disk, and a namespace."""
    await apply_models(harbour)
    await new_namespace(harbour, NAMESPACE)
    await harbour.create_nodes(1, name="bad-{index}")
    async with DiskWorld(harbour.client) as running:
        await running.add_node(NODE, devices={"d": disk(1000, 1000, 2000)})
        await until_reason(harbour, NODE, "Reported")
        yield running


async def place_another(harbour: Sandbox, name: str) -> None:
    """Show that others are placed as ever."""
    await create(harbour, NAMESPACE, make_pod(name, request=io("1Mi"), on=NODE))
    assert await until_bound(harbour, NAMESPACE, name) == NODE


# What pods say.

FIELD = "metadata.annotations[blockio.kubernetes.io/resources]"
EXAMPLE = '{"rbps": "100Mi", "wbps": "50Mi", "blocksize": "4k"}'
SIZES = "expected one of 512, 1k, 4k, 8k, 16k, 32k"


@pytest.mark.parametrize(
    ("request_text", "words"),
    [
        ("{", [f"{FIELD}: not understood: ", f"; expected {EXAMPLE}"]),
        ("[]", [f"{FIELD}: not understood: a JSON object is expected", f"; expected {EXAMPLE}"]),
        ('{"wbps": "1", "blocksize": "4k"}', [f"{FIELD}.rbps: missing, expected bytes per second"]),
        ("{}", [f"{FIELD}.{it}" for it in ("rbps: missing", "wbps: missing", "blocksize: ")]),
        (
            '{"rbps": "-1Mi", "wbps": "1", "blocksize": "4k"}',
            [f'{FIELD}.rbps: "-1Mi" is negative, expected zero or more'],
        ),
        (
            '{"rbps": "fast", "wbps": "1", "blocksize": "4k"}',
            [f'{FIELD}.rbps: "fast" is not a quantity, expected a number such as 500Mi'],
        ),
        (
            '{"rbps": "1", "wbps": "1", "blocksize": "4Ki"}',
            [f'{FIELD}.blocksize: unsupported block size: "4Ki", {SIZES}'],
        ),
        (
            '{"rbps": 30, "wbps": "1", "blocksize": "4k"}',
            [f'{FIELD}: not understood: "rbps" must be text in quotes, found 30'],
        ),
    ],
    ids=[
        "cut",
        "list",
        "missing",
        "all-missing",
        "negative",
        "no-number",
        "block-size",
        "unquoted",
    ],
)
async def test_bad_annotation_is_refused(
    harbour: Sandbox,
    world: DiskWorld,
    request_text: str,
    words: list[str],
    request: pytest.FixtureRequest,
) -> None:
    with pytest.raises(ApiError) as caught:
        await create(harbour, NAMESPACE, make_pod("refused", request=request_text))

    assert caught.value.status == 422
    way_out = "correct it, or set the annotation berthmaster.io/placement: off"
    for part in ("bad-input/refused: ", *words, way_out):
        assert part in caught.value.message
    await place_another(harbour, f"beside-{request.node.callspec.id}")


async def test_way_out_of_a_refusal_works(harbour: Sandbox, world: DiskWorld) -> None:
    await create(harbour, NAMESPACE, make_pod("way-out", request="{", placement="off", on=NODE))

    assert await until_bound(harbour, NAMESPACE, "way-out") == NODE


async def test_unknown_mode_is_refused(harbour: Sandbox, world: DiskWorld) -> None:
    with pytest.raises(ApiError) as caught:
        await create(harbour, NAMESPACE, make_pod("odd-mode", placement="rigth-here"))

    assert caught.value.status == 422
    assert (
        "bad-input/odd-mode: metadata.annotations[berthmaster.io/placement]: unknown mode "
        '"rigth-here", expected one of required, preferred, bind, observe'
    ) in caught.value.message
    await place_another(harbour, "beside-odd-mode")


async def test_absurd_quantity_waits_with_a_reason(harbour: Sandbox, world: DiskWorld) -> None:
    await create(harbour, NAMESPACE, make_pod("absurd", request=io("999999Ei"), on=NODE))

    reason, message = await until_waiting(harbour, NAMESPACE, "absurd")
    assert reason == "NoNodeFits"
    assert "disk IO read bandwidth is not enough" in message
    await place_another(harbour, "beside-absurd")


async def test_invalid_waits_where_the_policy_says_so(harbour: Sandbox, world: DiskWorld) -> None:
    selector = {"matchLabels": {"invalid": "waits"}}
    await apply_policy(harbour, "patient", {"podSelector": selector, "onInvalid": "wait"})
    pod = make_pod("invalid", request="{}", labels={"invalid": "waits"}, on=NODE)

    # The webhook hears of the policy by its watch: until then the pod is refused.
    async def created() -> bool:
        try:
            await create(harbour, NAMESPACE, pod)
        except ApiError as error:
            if error.status != 422:
                raise
            return False
        return True

    await until(created, bool, 20)
    reason, message = await until_waiting(harbour, NAMESPACE, "invalid")
    assert reason == "Invalid"
    assert f"{FIELD}.rbps: missing, expected bytes per second" in message
    await until_event(harbour, "invalid", f"{FIELD}.rbps: missing", namespace=NAMESPACE)
    await place_another(harbour, "beside-invalid")

    # It needs no second creation: corrected, it goes.
    change = {"metadata": {"annotations": {"blockio.kubernetes.io/resources": io("1Mi")}}}
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/invalid"
    await harbour.client.patch(path, change, PatchKind.MERGE)
    assert await until_bound(harbour, NAMESPACE, "invalid") == NODE
    await harbour.client.delete(f"{POLICIES}/patient")


# What drivers publish.

SOUND = {
    "name": "d",
    "vendor": "Intel",
    "model": "P4510",
    "type": "emptyDir",
    "capacity": {"read": "10Mi", "write": "10Mi", "total": "20Mi"},
}
UNKNOWN_NODE = "without disk io aware support cannot schedule disk io aware workload"
SHORT = "disk IO read bandwidth is not enough"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A device map, what is said of it, and why a pod that asks 5Mi waits (empty: it does not)."""

    devices: dict[str, Any]
    reason: str
    condition: str
    event: str = ""
    waits: str = ""


def capacity(**numbers: str) -> dict[str, Any]:
    return {"d": {**SOUND, "capacity": numbers}}


FAULTS = {
    "odd-no-default": Fault(
        devices={"d": {**SOUND, "type": "EmptyDir"}},
        reason="NoDefaultDisk",
        condition="NodeDiskDevice ioi-system/odd-no-default-nodediskdevice: no device has type "
        "emptyDir; no pod that is subject to disk IO fits until one has",
        event="no device has type emptyDir",
        waits="emptydir disk not registered in cache",
    ),
    "odd-empty": Fault(
        devices={},
        reason="NoDefaultDisk",
        condition="no device has type emptyDir",
        event="no device has type emptyDir",
        waits="emptydir disk not registered in cache",
    ),
    "odd-model": Fault(
        devices={"d": {**SOUND, "model": "Unheard"}},
        reason="ModelNotFound",
        condition="normalizer Intel-Unheard not found: add readRatio and writeRatio, an expression or a url for vendor "
        '"Intel", model "Unheard" to ConfigMap ioi-system/normalization-func',
        event="normalizer Intel-Unheard not found",
        waits="normalizer",
    ),
    "odd-negative": Fault(
        devices=capacity(read="-5Mi", write="10Mi", total="20Mi"),
        reason="OwnBooks",
        condition='spec.devices[d].capacity.read: "-5Mi" is below 0; taken as 0',
        event='spec.devices[d].capacity.read: "-5Mi" is below 0; taken as 0',
        waits=SHORT,
    ),
    "odd-absent": Fault(
        devices=capacity(write="10Mi", total="20Mi"),
        reason="OwnBooks",
        condition="spec.devices[d].capacity.read: missing; taken as 0",
        event="spec.devices[d].capacity.read: missing; taken as 0",
        waits=SHORT,
    ),
    "odd-number": Fault(
        # The CRD's pattern lets this through.
        devices=capacity(read="1e5.5", write="10Mi", total="20Mi"),
        reason="OwnBooks",
        condition='spec.devices[d].capacity.read: "1e5.5" is not a quantity',
        event='spec.devices[d].capacity.read: "1e5.5" is not a quantity',
        waits=SHORT,
    ),
    "odd-several": Fault(
        devices={"a": {**SOUND, "name": "a"}, **capacity(read="1", write="1", total="2")},
        reason="OwnBooks",
        condition="2 devices have type emptyDir, a is used",
    ),
}


async def write_device(harbour: Sandbox, node: str, spec: dict[str, Any] | None) -> None:
    """Write a node's NodeDiskDevice with exactly this spec."""
    path = f"{DEVICES}/{node}-nodediskdevice"
    manifest: dict[str, Any] = {
        "apiVersion": "diskio.x-k8s.io/v1alpha1",
        "kind": "NodeDiskDevice",
        "metadata": {"name": f"{node}-nodediskdevice"},
    }
    if spec is not None:
        manifest["spec"] = spec
    try:
        await harbour.client.create(DEVICES, manifest)
    except ApiError as error:
        if not error.is_already_exists:
            raise
        known = await harbour.client.get(path)
        await harbour.client.replace(path, {**manifest, "metadata": known["metadata"]})


async def check_fault(harbour: Sandbox, node: str, fault: Fault) -> None:
    await write_device(harbour, node, {"nodeName": node, "devices": fault.devices})
    assert fault.condition in await until_reason(harbour, node, fault.reason)
    if fault.event:
        await until_event(harbour, f"{node}-nodediskdevice", fault.event)
    await create(harbour, NAMESPACE, make_pod(node, request=io("5Mi"), on=node))
    if fault.waits:
        reason, message = await until_waiting(harbour, NAMESPACE, node)
        assert (reason, fault.waits in message) == ("NoNodeFits", True), message
        await write_device(harbour, node, {"nodeName": node, "devices": {"d": SOUND}})
    assert await until_bound(harbour, NAMESPACE, node) == node


async def test_bad_devices_are_told_and_mended(harbour: Sandbox, world: DiskWorld) -> None:
    for node in FAULTS:
        await harbour.create_nodes(1, name=node, wait=False)
    async with asyncio.TaskGroup() as tasks:
        for node, fault in FAULTS.items():
            tasks.create_task(check_fault(harbour, node, fault), name=node)
        tasks.create_task(place_another(harbour, "beside-bad-devices"))


async def test_device_that_names_no_node_is_told(harbour: Sandbox, world: DiskWorld) -> None:
    words = "spec.nodeName: missing, expected the name of the node with these disks"
    await harbour.create_nodes(1, name="nameless")
    await write_device(harbour, "nameless", {"nodeName": "nameless", "devices": {"d": SOUND}})
    await until_reason(harbour, "nameless", "OwnBooks")

    await write_device(harbour, "unborn", None)
    await until_event(harbour, "unborn-nodediskdevice", words)
    # Its node does not keep a device that stopped naming it.
    await write_device(harbour, "nameless", {"devices": {"d": SOUND}})
    await until_event(harbour, "nameless-nodediskdevice", words)
    await until(lambda: inventory_of(harbour, "nameless"), lambda it: it.get("disks") is None, 30)
    await create(harbour, NAMESPACE, make_pod("nameless", request=io("5Mi"), on="nameless"))
    _, message = await until_waiting(harbour, NAMESPACE, "nameless")
    assert UNKNOWN_NODE in message

    await write_device(harbour, "nameless", {"nodeName": "nameless", "devices": {"d": SOUND}})
    assert await until_bound(harbour, NAMESPACE, "nameless") == "nameless"
    await harbour.client.delete(f"{DEVICES}/unborn-nodediskdevice")


async def test_bad_models_are_told_and_mended(harbour: Sandbox, world: DiskWorld) -> None:
    tables: dict[str, Any] = {"readRatio": {}, "writeRatio": {}}
    entries = [
        {"vendor": "Acme", "model": "X", "url": "http://x/y.so"},
        {"vendor": "Acme", "model": "A", **tables, "readRatio": {"4K": 2}},
        {"vendor": "Acme", "model": "B", **tables, "writeRatio": {"4k": -1}},
        {"vendor": "Acme", "model": "C", **tables, "writeRatio": [2]},
        {"vendor": "Acme", **tables},
        {"vendor": "Acme", "model": "D"},
        {"vendor": "Acme", "model": "E", "expression": "blockSize / 0"},
        {"vendor": "Acme", "model": "F", "url": "https://127.0.0.1/f.json", "sha256": "0" * 64},
    ]
    complaints = (
        "[0]: Acme-X: url: a shared object is code and cannot be loaded; give readRatio and",
        f'[1]: Acme-A: readRatio: unknown block size "4K", {SIZES}',
        "[2]: Acme-B: writeRatio[4k]: -1 is not in 0..1000000",
        "[3]: Acme-C: writeRatio: expected an object of block size to factor",
        "[4]: vendor and model must both be text that is not empty",
        "[5]: Acme-D: says no model, expected readRatio and writeRatio tables, an expression, or",
        '[6]: Acme-E: expression with blockSize 512 and direction "read": divide by zero',
        "[7]: Acme-F: url: https://127.0.0.1 is not among the origins that the operator may fetch",
    )

    await apply_models(harbour, json.dumps(entries))
    for words in complaints:
        await until_event(harbour, "normalization-func", f"data.diskVendors{words}")
    assert (await until_reason(harbour, NODE, "ModelNotFound")).startswith(
        "normalizer Intel-P4510 not found: add readRatio and writeRatio, an expression or a url"
    )
    await create(harbour, NAMESPACE, make_pod("no-model", request=io("1Mi"), on=NODE))
    _, message = await until_waiting(harbour, NAMESPACE, "no-model")
    assert re.search("normalizer .*not found", message)

    await apply_models(harbour)
    assert await until_bound(harbour, NAMESPACE, "no-model") == NODE


async def test_unreadable_models_change_nothing(harbour: Sandbox, world: DiskWorld) -> None:
    await until_reason(harbour, NODE, "Reported")
    for text in ("[{", '{"vendor": "Intel"}', "7"):
        await apply_models(harbour, text)
    await until_event(harbour, "normalization-func", "data.diskVendors: not JSON: ")
    await until_event(
        harbour,
        "normalization-func",
        "data.diskVendors: expected a JSON list, found int; 1 models stay as they were",
    )

    await place_another(harbour, "beside-unreadable-models")
    await apply_models(harbour)


async def test_node_without_disks_keeps_upstreams_words(harbour: Sandbox, world: DiskWorld) -> None:
    await harbour.create_nodes(1, name="bare")
    await create(harbour, NAMESPACE, make_pod("asks", request=io("1Mi"), on="bare"))
    await create(harbour, NAMESPACE, make_pod("asks-nothing", on="bare"))

    assert await until_bound(harbour, NAMESPACE, "asks-nothing") == "bare"
    _, message = await until_waiting(harbour, NAMESPACE, "asks")
    assert UNKNOWN_NODE in message


async def readiness(harbour: Sandbox, node: str) -> set[tuple[str, str]]:
    """Return status and reason of DiskIOReady, of the inventory and of the Node together."""
    status = (await harbour.client.get(f"/api/v1/nodes/{node}"))["status"]
    found = [
        *(await inventory_of(harbour, node)).get("conditions", ()),
        *(it for it in status["conditions"] if it["type"] == "berthmaster.io/DiskIOReady"),
    ]
    return {(it["status"], it["reason"]) for it in found}


async def test_silent_driver_leaves_our_own_books(harbour: Sandbox, world: DiskWorld) -> None:
    await harbour.create_nodes(1, name="silent")
    await world.add_node("silent", devices={"d": disk(100, 100, 200)})
    await until_reason(harbour, "silent", "Reported")
    await until(lambda: readiness(harbour, "silent"), lambda it: it == {("True", "Reported")}, 30)
    world.stop_driver("silent")
    await apply_policy(harbour, "impatient", {"concerns": {"diskio": {"staleAfter": "5s"}}})

    await until(lambda: readiness(harbour, "silent"), lambda it: it == {("Unknown", "Stale")}, 60)
    assert "no sign of life of the driver" in await until_reason(harbour, "silent", "Stale")
    assert (await inventory_of(harbour, "silent"))["disks"][0].get("allocable") is None
    await create(harbour, NAMESPACE, make_pod("own-books", request=io("60Mi"), on="silent"))
    assert await until_bound(harbour, NAMESPACE, "own-books") == "silent"
    await create(harbour, NAMESPACE, make_pod("past-own-books", request=io("60Mi"), on="silent"))
    _, message = await until_waiting(harbour, NAMESPACE, "past-own-books")
    assert SHORT in message

    # A heartbeat brings the same numbers back, and its end is a fault.
    stats = ("nodediskiostats", "silent-nodediskiostats")
    await harbour.kubectl("-n", "ioi-system", "annotate", *stats, "berthmaster.io/heartbeat=1")
    await until(lambda: readiness(harbour, "silent"), lambda it: it == {("True", "OwnBooks")}, 60)
    await until(lambda: readiness(harbour, "silent"), lambda it: it == {("False", "Stale")}, 60)

    await harbour.client.delete(f"{POLICIES}/impatient")
    world.start_driver("silent")
    await until(lambda: readiness(harbour, "silent"), lambda it: it == {("True", "Reported")}, 60)
    assert await world.judge() == []
    assert world.overflows == ()


# What comes to the webhook's door.


class Door:
    """The webhook's Service, as the API server sees it: name and authority are checked."""

    def __init__(self, session: aiohttp.ClientSession, url: str, context: ssl.SSLContext) -> None:
        self._session = session
        self.url = url
        self._context = context

    async def knock(self, body: Any, *, method: str = "POST") -> tuple[int, str]:
        """Send a body; return status and text of the answer."""
        async with self._session.request(
            method,
            self.url,
            data=body,
            ssl=self._context,
            server_hostname="berthmaster-webhook.berthmaster-system.svc",
        ) as answer:
            return answer.status, await answer.text()


@pytest_asyncio.fixture(loop_scope="session")
async def door(harbour: Sandbox) -> AsyncIterator[Door]:
    hook = (await harbour.client.get(HOOK))["webhooks"][0]["clientConfig"]
    authority = base64.b64decode(hook["caBundle"]).decode()
    service = hook["service"]
    found = await harbour.client.get(
        f"/api/v1/namespaces/{service['namespace']}/services/{service['name']}"
    )
    url = f"https://{found['spec']['clusterIP']}:{service['port']}{service['path']}"
    async with aiohttp.ClientSession(trust_env=False) as session:
        yield Door(session, url, ssl.create_default_context(cadata=authority))


REVIEW = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}
POD_KIND = {"group": "", "version": "v1", "kind": "Pod"}


def review(**request: Any) -> bytes:
    return json.dumps(
        {**REVIEW, "request": {"uid": "1", "operation": "CREATE", **request}}
    ).encode()


async def test_bodies_that_are_no_reviews_get_told(
    harbour: Sandbox, world: DiskWorld, door: Door
) -> None:
    before = await program_pids(harbour, "berthmaster-webhook")

    for body, words in (
        (b'{"apiVersion": "admission.k8s.io/v1", "kind"', "the body cannot be read"),
        (b"", "the body cannot be read"),
        (b"\xff\xfe", "the body cannot be read"),
        (b"[" * 100_000, "the body cannot be read"),
        (json.dumps({**REVIEW, "kind": "Pod"}).encode(), "found Pod of admission.k8s.io/v1"),
        (
            json.dumps({**REVIEW, "apiVersion": "admission.k8s.io/v1beta1"}).encode(),
            "found AdmissionReview of admission.k8s.io/v1beta1, expected an AdmissionReview",
        ),
        (json.dumps(REVIEW).encode(), "no request with a uid"),
        (review(kind=POD_KIND, object={"spec": 7}), "request.object is not a Pod"),
    ):
        status, text = await door.knock(body)
        assert (status, words in text) == (400, True), text
    status, text = await door.knock(BytesIO(b" " * 8 * 2**20))
    assert (status, text) == (413, "the body is longer than 7340032 bytes")
    assert (await door.knock(None, method="GET"))[0] == 405

    assert await program_pids(harbour, "berthmaster-webhook") == before
    await place_another(harbour, "after-odd-bodies")


async def test_review_of_another_kind_is_let_through(
    harbour: Sandbox, world: DiskWorld, door: Door
) -> None:
    kind = {"group": "", "version": "v1", "kind": "ConfigMap"}

    status, text = await door.knock(review(kind=kind, object={"data": 7}))

    assert status == 200
    assert json.loads(text)["response"] == {"uid": "1", "allowed": True}
