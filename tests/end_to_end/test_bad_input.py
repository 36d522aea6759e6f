"""Bad input on the real cluster: a message that names the fault, and everybody else is placed."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator
from io import BytesIO
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from berthmaster.cluster.errors import ApiError
from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.demo.stage import disk
from berthmaster_sandbox.world.diskio import DiskWorld
from support.harbour import (
    POLICIES,
    apply_models,
    create,
    inventory_of,
    io,
    make_pod,
    new_namespace,
    until,
    until_bound,
    until_reason,
    why_waiting,
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


@pytest.mark.parametrize(
    ("request_text", "words"),
    [
        ("{", ["not understood", '{"rbps": "100Mi", "wbps": "50Mi", "blocksize": "4k"}']),
        ('{"wbps": "1", "blocksize": "4k"}', ["rbps: missing", "expected bytes per second"]),
        ('{"rbps": "-1Mi", "wbps": "1", "blocksize": "4k"}', ["rbps", "negative"]),
        ('{"rbps": "1", "wbps": "1", "blocksize": "4Ki"}', ["unsupported block size", "512, 1k"]),
        ('{"rbps": 30, "wbps": "1", "blocksize": "4k"}', ["must be text in quotes"]),
    ],
    ids=["no-json", "missing", "negative", "block-size", "number"],
)
async def test_bad_annotation_is_refused(
    harbour: Sandbox, world: DiskWorld, request_text: str, words: list[str]
) -> None:
    with pytest.raises(ApiError) as caught:
        await create(harbour, NAMESPACE, make_pod("refused", request=request_text))

    assert caught.value.status == 422
    for part in ("bad-input/refused", "blockio.kubernetes.io/resources", "placement: off", *words):
        assert part in caught.value.message


async def test_unknown_mode_is_refused(harbour: Sandbox, world: DiskWorld) -> None:
    with pytest.raises(ApiError, match="required, preferred, bind, observe"):
        await create(harbour, NAMESPACE, make_pod("odd-mode", placement="rigth-here"))


async def test_absurd_quantity_waits_with_a_reason(harbour: Sandbox, world: DiskWorld) -> None:
    await create(harbour, NAMESPACE, make_pod("absurd", request=io("999999Ei"), on=NODE))

    reason, message = await until(
        lambda: why_waiting(harbour, NAMESPACE, "absurd"), lambda it: bool(it[0]), 30
    )
    assert reason == "NoNodeFits"
    assert "disk IO read bandwidth is not enough" in message
    await place_another(harbour, "beside-absurd")


async def test_invalid_waits_where_the_policy_says_so(harbour: Sandbox, world: DiskWorld) -> None:
    policy = {
        "apiVersion": "berthmaster.io/v1alpha1",
        "kind": "PlacementPolicy",
        "metadata": {"name": "patient"},
        "spec": {"podSelector": {"matchLabels": {"invalid": "waits"}}, "onInvalid": "wait"},
    }
    await harbour.client.create(POLICIES, policy)
    # The webhook hears of the policy by its watch: until then the pod is refused.
    pod = make_pod("invalid", request="{}", labels={"invalid": "waits"})

    async def created() -> bool:
        try:
            await create(harbour, NAMESPACE, pod)
        except ApiError as error:
            if error.status != 422:
                raise
            return False
        return True

    await until(created, bool, 20)
    reason, message = await until(
        lambda: why_waiting(harbour, NAMESPACE, "invalid"), lambda it: bool(it[0]), 30
    )
    assert reason == "Invalid"
    assert "rbps: missing" in message
    await harbour.client.delete(f"{POLICIES}/patient")


async def test_bad_devices_are_told_and_mended(harbour: Sandbox, world: DiskWorld) -> None:
    async def write(devices: dict[str, Any]) -> None:
        device = {
            "apiVersion": "diskio.x-k8s.io/v1alpha1",
            "kind": "NodeDiskDevice",
            "metadata": {"name": "bad-2-nodediskdevice", "namespace": "ioi-system"},
            "spec": {"nodeName": "bad-2", "devices": devices},
        }
        await harbour.kubectl("apply", "-f", "-", stdin=json.dumps(device))

    sound = {"name": "d", "vendor": "Intel", "model": "P4510", "type": "emptyDir",
             "capacity": {"read": "10Mi", "write": "10Mi", "total": "20Mi"}}  # fmt: skip
    await harbour.create_nodes(1, name="bad-{index}", first=2)

    await write({"d": {**sound, "type": "EmptyDir"}})
    assert "no device has type emptyDir" in await until_reason(harbour, "bad-2", "NoDefaultDisk")
    await write({"d": {**sound, "model": "Unheard"}})
    message = await until_reason(harbour, "bad-2", "ModelNotFound")
    assert "normalizer Intel-Unheard not found" in message
    assert "ioi-system/normalization-func" in message
    await write({"d": {**sound, "capacity": {"read": "-5Mi", "write": "10Mi"}}})
    message = await until_reason(harbour, "bad-2", "OwnBooks")
    assert "spec.devices[d].capacity.read" in message
    await create(harbour, NAMESPACE, make_pod("too-much", request=io("5Mi"), on="bad-2"))
    await until(lambda: why_waiting(harbour, NAMESPACE, "too-much"), lambda it: bool(it[0]), 30)

    await write({"d": sound})
    assert await until_bound(harbour, NAMESPACE, "too-much") == "bad-2"
    await place_another(harbour, "beside-bad-2")


async def test_bad_models_are_told_and_mended(harbour: Sandbox, world: DiskWorld) -> None:
    only_so = json.dumps([{"vendor": "Intel", "model": "P4510", "url": "http://x/y.so"}])

    await apply_models(harbour, only_so)
    assert "not found" in await until_reason(harbour, NODE, "ModelNotFound")
    await create(harbour, NAMESPACE, make_pod("no-model", request=io("1Mi"), on=NODE))
    await until(lambda: why_waiting(harbour, NAMESPACE, "no-model"), lambda it: bool(it[0]), 30)

    await apply_models(harbour)
    assert await until_bound(harbour, NAMESPACE, "no-model") == NODE

    # Text that is no JSON leaves the models as they were.
    await apply_models(harbour, "[{")

    async def complaints() -> str:
        events = await harbour.kubectl("get", "events", "-n", "ioi-system")
        return events.stdout

    await until(complaints, lambda it: "models stay as they were" in it, 30)
    await place_another(harbour, "beside-bad-models")
    await apply_models(harbour)


async def test_node_without_disks_keeps_upstreams_words(harbour: Sandbox, world: DiskWorld) -> None:
    await harbour.create_nodes(1, name="bad-{index}", first=3)
    await create(harbour, NAMESPACE, make_pod("asks", request=io("1Mi"), on="bad-3"))
    await create(harbour, NAMESPACE, make_pod("asks-nothing", on="bad-3"))

    assert await until_bound(harbour, NAMESPACE, "asks-nothing") == "bad-3"
    _, message = await until(
        lambda: why_waiting(harbour, NAMESPACE, "asks"), lambda it: bool(it[0]), 30
    )
    words = "without disk io aware support cannot schedule disk io aware workload"
    assert words in message


async def test_silent_driver_leaves_our_own_books(harbour: Sandbox, world: DiskWorld) -> None:
    await harbour.create_nodes(1, name="bad-{index}", first=4)
    await world.add_node("bad-4", devices={"d": disk(100, 100, 200)})
    await until_reason(harbour, "bad-4", "Reported")
    policy = {
        "apiVersion": "berthmaster.io/v1alpha1",
        "kind": "PlacementPolicy",
        "metadata": {"name": "impatient"},
        "spec": {"concerns": {"diskio": {"staleAfter": "3s"}}},
    }
    world.stop_driver("bad-4")
    await harbour.client.create(POLICIES, policy)

    await until_reason(harbour, "bad-4", "Stale", 60)
    assert (await inventory_of(harbour, "bad-4"))["disks"][0].get("allocable") is None

    async def on_node() -> str:
        node = await harbour.client.get("/api/v1/nodes/bad-4")
        return next(
            (it["reason"] for it in node["status"]["conditions"]
             if it["type"] == "berthmaster.io/DiskIOReady"), "",
        )  # fmt: skip

    await until(on_node, lambda it: it == "Stale", 30)
    await create(harbour, NAMESPACE, make_pod("by-own-books", request=io("60Mi"), on="bad-4"))
    assert await until_bound(harbour, NAMESPACE, "by-own-books") == "bad-4"
    await create(harbour, NAMESPACE, make_pod("past-own-books", request=io("60Mi"), on="bad-4"))
    _, message = await until(
        lambda: why_waiting(harbour, NAMESPACE, "past-own-books"), lambda it: bool(it[0]), 30
    )
    assert "disk IO read bandwidth is not enough" in message

    await harbour.client.delete(f"{POLICIES}/impatient")
    world.start_driver("bad-4")
    await until_reason(harbour, "bad-4", "Reported", 60)
    assert await world.judge() == []


async def test_bodies_that_are_no_reviews_get_told(harbour: Sandbox, world: DiskWorld) -> None:
    service = await harbour.client.get(
        "/api/v1/namespaces/berthmaster-system/services/berthmaster-webhook"
    )
    url = f"https://{service['spec']['clusterIP']}:10250/place/1"
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    review = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}

    async with aiohttp.ClientSession(trust_env=False) as session:
        for body, words in (
            (b'{"apiVersion": "admission.k8s.io/v1", "kind"', "cannot be read"),
            (b"", "cannot be read"),
            (b"[" * 100_000, "cannot be read"),
            (json.dumps({**review, "kind": "Pod"}).encode(), "found Pod"),
            (json.dumps(review).encode(), "no request with a uid"),
        ):
            async with session.post(url, data=body, ssl=context) as answer:
                assert answer.status == 400
                assert words in await answer.text()
        async with session.post(url, data=BytesIO(b" " * (7 * 2**20 + 1)), ssl=context) as answer:
            assert answer.status == 413
        async with session.get(url, ssl=context) as answer:
            assert answer.status == 405
    await place_another(harbour, "after-odd-bodies")
