"""The scheduler-extender protocol: what it answers, what it binds, and what it does in bad hours."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from berthmaster.api import names
from berthmaster.cluster.errors import ApiError, OutcomeUnknownError
from berthmaster.cluster.serving import load_pair
from berthmaster_sandbox.pki import Authority
from berthmaster_sandbox.world.xpu_hosts import Dialect, make_host
from berthmaster_webhook.callers import make_context
from berthmaster_webhook.extender import routes
from berthmaster_webhook.extender.binding import Binding
from berthmaster_webhook.extender.filtering import Filtering
from berthmaster_webhook.extender.guarding import Guard, read_guard
from berthmaster_webhook.extender.protocol import (
    BindArgs,
    MalformedError,
    read_bind,
    read_filter,
    write_scores,
)
from berthmaster_webhook.extender.routes import ExtenderRoutes
from berthmaster_webhook.outcomes import Outcome
from berthmaster_webhook.settings import SettingsError, read_settings
from support.webhook_world import CutAfter, World, allocation_of
from support.xpu_nodes import BindServer, add_host, make_host_manifest
from support.xpu_pods import make_card_pod, make_share_pod, make_slice_pod

PREFIX = "/xpushare-scheduler"
TOKEN = "a-token-of-enough-letters"  # noqa: S105 - of a test
POD = {"POD_NAMESPACE": "ns", "POD_NAME": "pod-1"}
Client = TestClient[web.Request, web.Application]


class Port:
    """The extender's port over a world, with the pods that can be bound."""

    def __init__(self, world: World, client: Client, server: BindServer) -> None:
        self.world = world
        self.client = client
        self.server = server

    async def post(self, verb: str, body: Any) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        response = await self.client.post(f"{PREFIX}/{verb}", data=data)
        text = await response.text()
        return response.status, json.loads(text) if text.startswith(("{", "[")) else text

    async def filter(self, pod: Any, *nodes: str) -> Any:
        status, answer = await self.post("filter", {"Pod": pod, "NodeNames": list(nodes)})
        assert status == 200
        return answer

    async def bind(self, pod: Any, node: str) -> tuple[int, str]:
        meta = pod["metadata"]
        body = {
            "PodName": meta["name"],
            "PodNamespace": meta["namespace"],
            "PodUID": meta["uid"],
            "Node": node,
        }
        status, answer = await self.post("bind", body)
        return status, answer["Error"]

    def stored(self, name: str) -> Any:
        return self.server.get_pod(name)

    def served(self, name: str) -> None:
        """Let the device plugin serve a pod."""
        pod = self.stored(name)
        annotations = {**pod["metadata"]["annotations"], "BAIDU_COM_XPU_MEM_ASSIGNED": "true"}
        self.server.add({**pod, "metadata": {**pod["metadata"], "annotations": annotations}})


@asynccontextmanager
async def port(world: World, *, token: str = "", patience_s: float = 0.05) -> AsyncIterator[Port]:
    server = BindServer(world)
    binding = Binding(world.tools, world.term, server, patience_s=patience_s)
    world.state.on_pod.append(binding.take_pod)
    filtering = Filtering(world.tools, world.term)
    routes = ExtenderRoutes(world.tools, filtering, binding, Guard(token))
    async with TestClient(TestServer(routes.app())) as client:
        yield Port(world, client, server)


def add_pod(on: Port, pod: Any) -> Any:
    on.server.add(pod)
    return on.stored(pod["metadata"]["name"])


# filter


async def test_nodes_with_room_in_one_device_fit(world: World) -> None:
    add_host(world, make_host("xpu-a"))
    add_host(world, make_host("xpu-b", memory_mib=4000))
    world.add_node("plain")

    async with port(world) as it:
        answer = await it.filter(make_share_pod("p", 4500), "xpu-a", "xpu-b", "plain", "ghost")

    assert answer == {
        "Nodes": None,
        "NodeNames": ["xpu-a"],
        "FailedNodes": {
            "xpu-b": "Insufficient XPU Memory in one device: need 4500 MiB, "
            "free per device 4000,4000,4000,4000",
            "ghost": "the node is not known to Berthmaster",
        },
        "FailedAndUnresolvableNodes": {"plain": "The node plain is not for XPU share, need skip"},
        "Error": "",
    }
    assert world.state.ledger.assumed == {}


async def test_more_devices_than_exist_is_not_cured_by_preemption(world: World) -> None:
    add_host(world, make_host("xpu-a"))

    async with port(world) as it:
        answer = await it.filter(make_share_pod("p", 500, count=5), "xpu-a")

    assert list(answer["FailedAndUnresolvableNodes"]) == ["xpu-a"]
    assert answer["FailedNodes"] == {}


async def test_pod_that_asks_for_no_accelerator_fits_everywhere(world: World) -> None:
    async with port(world) as it:
        answer = await it.filter({"metadata": {"name": "p"}, "spec": {"containers": []}}, "a", "b")

    assert answer["NodeNames"] == ["a", "b"]


async def test_words_follow_what_changes(world: World) -> None:
    add_host(world, make_host("xpu-a", devices=1))
    pod = make_share_pod("p", 8000)

    async with port(world) as it:
        first = add_pod(it, make_share_pod("first", 100))
        assert (await it.filter(pod, "xpu-a"))["NodeNames"] == ["xpu-a"]
        assert await it.bind(first, "xpu-a") == (200, "")
        full = await it.filter(pod, "xpu-a")
        it.served("first")
        second = add_pod(it, make_share_pod("second", 200))
        assert await it.bind(second, "xpu-a") == (200, "")
        fuller = await it.filter(pod, "xpu-a")

    assert full["FailedNodes"]["xpu-a"].endswith("free per device 7964")
    assert fuller["FailedNodes"]["xpu-a"].endswith("free per device 7764")


async def test_keys_are_read_whatever_their_case(world: World) -> None:
    add_host(world, make_host("xpu-a"))
    body = {"pod": make_share_pod("p", 1), "nodenames": ["xpu-a"], "nodes": None, "more": 1}

    async with port(world) as it:
        status, answer = await it.post("filter", body)

    assert (status, answer["NodeNames"]) == (200, ["xpu-a"])


async def test_nodes_are_returned_as_they_came(world: World) -> None:
    add_host(world, make_host("xpu-a"))
    known = {"metadata": {"name": "xpu-a"}, "surprise": 1}
    # As Cluster Autoscaler describes nodes that it might add.
    template = make_host_manifest(make_host("template", devices=1))
    small = make_host_manifest(make_host("small", devices=2, memory_mib=1000))
    slices = make_host_manifest(make_host("slices", dialects=[Dialect.VXPU]))
    nodes = {"items": [known, template, small, slices]}

    async with port(world) as it:
        body = {"Pod": make_share_pod("p", 4500), "Nodes": nodes, "NodeNames": None}
        _, answer = await it.post("filter", body)
        _, scores = await it.post("prioritize", body)

    assert answer["Nodes"]["items"] == [known, template]
    assert answer["NodeNames"] is None
    assert list(answer["FailedNodes"]) == ["small"]
    assert list(answer["FailedAndUnresolvableNodes"]) == ["slices"]
    assert [it["Score"] for it in scores] == [10, 0, 0, 0]
    assert "template" not in world.state.engine.table


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "body cannot be read"),
        (b"[]", "body cannot be read"),
        (b'{"Pod": {"metadata"', "body cannot be read"),
        (b"{}", "arg or pod is nil"),
        (b'{"Pod": null, "NodeNames": []}', "arg or pod is nil"),
        (b'{"Pod": 3, "NodeNames": []}', "Pod cannot be read"),
        (b'{"Pod": {}}', "cannot get node names"),
        (b'{"Pod": {}, "Nodes": null, "NodeNames": null}', "cannot get node names"),
        (b'{"Pod": {}, "NodeNames": [1]}', "NodeNames cannot be read"),
        (b'{"Pod": {}, "Nodes": {"items": [3]}}', "Nodes cannot be read"),
        (b'{"Pod": ' + b'{"a":' * 5000, "cannot be read"),
    ],
    ids=lambda it: it[:30].decode() if isinstance(it, bytes) else "",
)
async def test_bad_bodies_are_errors_of_the_protocol(world: World, body: bytes, words: str) -> None:
    async with port(world) as it:
        status, answer = await it.post("filter", body)
        refused, text = await it.post("prioritize", body)

    assert status == 200
    assert words in answer["Error"]
    assert (answer["Nodes"], answer["NodeNames"], answer["FailedNodes"]) == (None, None, {})
    assert refused == 400
    assert words in text


async def test_no_leader_does_not_decide(world: World) -> None:
    add_host(world, make_host("xpu-a"))
    world.term.forbids = Outcome.NOT_LEADER

    async with port(world) as it:
        pod = add_pod(it, make_share_pod("p", 100))
        answer = await it.filter(pod, "xpu-a")
        bound = await it.bind(pod, "xpu-a")
        _, scores = await it.post("prioritize", {"Pod": pod, "NodeNames": ["xpu-a"]})

    assert answer["Error"] == "Berthmaster does not decide now: not_leader"
    assert bound == (500, "Berthmaster does not decide now: not_leader")
    assert scores == [{"Host": "xpu-a", "Score": 0}]


# prioritize


async def test_fuller_hole_scores_higher(world: World) -> None:
    add_host(world, make_host("xpu-a", sizes=(8064, 4032)))
    add_host(world, make_host("xpu-b", sizes=(8064,)))

    async with port(world) as it:
        body = {"Pod": make_share_pod("p", 4000), "NodeNames": ["xpu-a", "xpu-b", "ghost"]}
        status, answer = await it.post("prioritize", body)

    assert status == 200
    # The capacity says 6048 MiB for each of two devices: 6048 of 6048 stay, against 4064 of 8064.
    assert answer == [
        {"Host": "xpu-a", "Score": 10},
        {"Host": "xpu-b", "Score": 5},
        {"Host": "ghost", "Score": 0},
    ]


def test_scores_are_within_the_protocols_bounds() -> None:
    found = json.loads(write_scores({"a": -1.0, "b": 44.9, "c": 300.0}))

    assert [it["Score"] for it in found] == [0, 4, 10]


# bind


async def test_bind_writes_devices_and_binds(world: World) -> None:
    add_host(world, make_host("xpu-a"))

    async with port(world) as it:
        pod = add_pod(it, make_share_pod("p", 4500))
        assert await it.bind(pod, "xpu-a") == (200, "")
        stored = it.stored("p")

    annotations = stored["metadata"]["annotations"]
    assert annotations["BAIDU_COM_XPU_MEM_IDX"] == "0"
    assert annotations["BAIDU_COM_XPU_MEM_ASSIGNED"] == "false"
    assert allocation_of(stored)["allocated"]["xpu"]["devices"][0]["mem"] == 4500
    assert it.server.bindings == [("p", "xpu-a")]
    assert world.state.ledger.assumed == {}
    assert [entry.node for entry in world.state.ledger] == ["xpu-a"]


@pytest.mark.parametrize(
    ("pod", "dialect", "key"),
    [
        (make_card_pod("p", 2), Dialect.KUNLUN, "BAIDU_COM_DEVICE_IDX"),
        (make_slice_pod("p", 1, 24576), Dialect.VXPU, "hami.io/xpu-devices-to-allocate"),
    ],
)
async def test_other_dialects_are_bound_too(
    world: World, pod: Any, dialect: Dialect, key: str
) -> None:
    add_host(world, make_host("xpu-a", dialects=[dialect], devices=8))

    async with port(world) as it:
        assert await it.bind(add_pod(it, pod), "xpu-a") == (200, "")

    assert it.stored("p")["metadata"]["annotations"][key]


async def test_pods_of_one_size_are_bound_one_after_the_other(world: World) -> None:
    add_host(world, make_host("xpu-a"))

    async with port(world, patience_s=5) as it:
        first, second = (add_pod(it, make_share_pod(name, 4500)) for name in ("a", "b"))
        assert await it.bind(first, "xpu-a") == (200, "")
        # The node fits though: kube-scheduler is to try again soon.
        assert (await it.filter(second, "xpu-a"))["NodeNames"] == ["xpu-a"]
        waiting = asyncio.create_task(it.bind(second, "xpu-a"))
        other = add_pod(it, make_share_pod("c", 4501))
        assert await it.bind(other, "xpu-a") == (200, "")
        assert not waiting.done()
        it.served("a")
        assert await waiting == (200, "")

    assert [name for name, _ in it.server.bindings] == ["a", "c", "b"]


async def test_bind_does_not_wait_for_ever_for_the_one_before(world: World) -> None:
    add_host(world, make_host("xpu-a"))

    async with port(world, patience_s=0) as it:
        first, second = (add_pod(it, make_share_pod(name, 4500)) for name in ("a", "b"))
        await it.bind(first, "xpu-a")
        status, error = await it.bind(second, "xpu-a")

    assert status == 500
    assert "device plugin has not served another pod" in error


async def test_cards_and_slices_stand_in_one_line(world: World) -> None:
    """HAMi's plugin takes the first pod in the phase that both write."""
    add_host(world, make_host("xpu-a", dialects=[Dialect.KUNLUN, Dialect.VXPU], devices=8))

    async with port(world, patience_s=0) as it:
        assert await it.bind(add_pod(it, make_card_pod("a", 1)), "xpu-a") == (200, "")
        status, error = await it.bind(add_pod(it, make_slice_pod("b", 1, 24576)), "xpu-a")

    assert (status, "has not served another pod with cards yet" in error) == (500, True)


async def test_what_is_full_is_not_bound(world: World) -> None:
    add_host(world, make_host("xpu-a", devices=1))

    async with port(world) as it:
        assert await it.bind(add_pod(it, make_share_pod("a", 8000)), "xpu-a") == (200, "")
        status, error = await it.bind(add_pod(it, make_share_pod("b", 100)), "xpu-a")

    assert status == 500
    assert error == ("Insufficient XPU Memory in one device: need 100 MiB, free per device 64")
    assert it.server.bindings == [("a", "xpu-a")]


async def test_placed_pod_goes_where_its_devices_are(world: World) -> None:
    """From admission, or from a binding that was cut short."""
    for name in ("xpu-a", "xpu-b"):
        add_host(world, make_host(name))

    async with port(world) as it:
        pod = add_pod(it, make_share_pod("p", 4500))
        it.server.bind_faults = [OutcomeUnknownError("connection lost")]
        status, error = await it.bind(pod, "xpu-a")
        assert (status, "connection lost" in error) == (500, True)

        answer = await it.filter(it.stored("p"), "xpu-a", "xpu-b")
        assert answer["NodeNames"] == ["xpu-a"]
        assert answer["FailedNodes"] == {"xpu-b": "the pod has its devices on node xpu-a"}
        _, scores = await it.post(
            "prioritize", {"Pod": it.stored("p"), "NodeNames": ["xpu-a", "xpu-b"]}
        )
        assert [it["Score"] for it in scores] == [10, 0]
        assert await it.bind(it.stored("p"), "xpu-b") == (
            500,
            "pod default/p has its devices on node xpu-a",
        )
        written = len(it.server.patches)
        assert await it.bind(it.stored("p"), "xpu-a") == (200, "")

    assert len(it.server.patches) == written


async def test_refused_binding_takes_its_annotations_off(world: World) -> None:
    add_host(world, make_host("xpu-a"))

    async with port(world) as it:
        pod = add_pod(it, make_share_pod("p", 4500, annotations={"mine": "stays"}))
        it.server.bind_faults = [ApiError(403, "Forbidden", "quota")]
        status, error = await it.bind(pod, "xpu-a")
        stored = it.stored("p")

    assert (status, error) == (500, "pod default/p is not bound to xpu-a: 403 Forbidden: quota")
    assert stored["metadata"]["annotations"] == {"mine": "stays"}
    assert list(world.state.ledger) == []


async def test_binding_that_had_its_effect_is_one(world: World) -> None:
    add_host(world, make_host("xpu-a"))

    async with port(world) as it:
        pod = add_pod(it, make_share_pod("p", 4500))
        it.server.faults_after = [OutcomeUnknownError("connection lost")]
        assert await it.bind(pod, "xpu-a") == (200, "")

    assert "BAIDU_COM_XPU_MEM_IDX" in it.stored("p")["metadata"]["annotations"]


async def test_pod_that_changed_meanwhile_is_read_anew(world: World) -> None:
    """kube-scheduler writes the pod's status as well."""
    add_host(world, make_host("xpu-a"))

    async with port(world) as it:
        pod = add_pod(it, make_share_pod("p", 4500))
        it.server.faults = [ApiError(422, "Invalid", "test failed")]
        assert await it.bind(pod, "xpu-a") == (200, "")

    assert len(it.server.patches) == 2
    assert [entry.node for entry in world.state.ledger] == ["xpu-a"]


async def test_pod_that_changes_all_the_time_is_left(world: World) -> None:
    add_host(world, make_host("xpu-a"))

    async with port(world) as it:
        pod = add_pod(it, make_share_pod("p", 4500))
        it.server.faults = [ApiError(422, "Invalid", "test failed")] * 4
        status, error = await it.bind(pod, "xpu-a")

    assert (status, error) == (500, "pod default/p changes all the time")
    assert list(world.state.ledger) == []


async def test_patch_that_was_cut_is_repeated_and_bound(world: World) -> None:
    add_host(world, make_host("xpu-a"))

    async with port(world) as it:
        pod = add_pod(it, make_share_pod("p", 4500))
        it.server.faults = [CutAfter(OutcomeUnknownError("connection lost"))]
        assert await it.bind(pod, "xpu-a") == (200, "")

    assert it.server.bindings == [("p", "xpu-a")]


async def test_pod_that_is_another_one_is_refused(world: World) -> None:
    add_host(world, make_host("xpu-a"))

    async with port(world) as it:
        pod = add_pod(it, make_share_pod("p", 4500))
        stranger = {"metadata": {**pod["metadata"], "uid": "old"}}
        answer = await it.bind(stranger, "xpu-a")
        gone = {"metadata": {**pod["metadata"], "name": "gone", "uid": "gone"}}
        status, _ = await it.bind(gone, "xpu-a")

    assert answer == (
        500,
        "The pod p in ns default's uid is uid-p, and it's not equal with expected old",
    )
    assert status == 500
    assert it.server.bindings == []


async def test_pod_without_devices_is_bound_as_it_is(world: World) -> None:
    async with port(world) as it:
        pod = add_pod(it, {"metadata": {"name": "p", "namespace": "default", "uid": "u"},
                           "spec": {"containers": []}})  # fmt: skip
        assert await it.bind(pod, "anywhere") == (200, "")

    assert it.server.patches == []


async def test_unknown_node_is_refused(world: World) -> None:
    async with port(world) as it:
        status, error = await it.bind(add_pod(it, make_share_pod("p", 1)), "ghost")

    assert (status, error) == (500, "ghost: the node is not known to Berthmaster")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "body cannot be read"),
        (b"{}", "expected PodName, PodNamespace, PodUID, Node"),
        (b'{"PodName":"p","PodNamespace":"d","PodUID":"u"}', "expected Node"),
        (b'{"PodName":"../x","PodNamespace":"d","PodUID":"u","Node":"n"}', "name of an object"),
        (b'{"PodName":3,"PodNamespace":"d","PodUID":"u","Node":"n"}', "PodName cannot be read"),
    ],
)
async def test_bad_bindings_are_errors_with_500(world: World, body: bytes, words: str) -> None:
    async with port(world) as it:
        status, answer = await it.post("bind", body)

    assert status == 500
    assert words in answer["Error"]


async def test_same_pod_is_not_bound_twice_at_once(world: World) -> None:
    add_host(world, make_host("xpu-a"))

    async with port(world, patience_s=5) as it:
        first, second = (add_pod(it, make_share_pod(name, 4500)) for name in ("a", "b"))
        await it.bind(first, "xpu-a")
        waiting = asyncio.create_task(it.bind(second, "xpu-a"))
        other = add_pod(it, make_share_pod("c", 1))
        await it.bind(other, "xpu-a")
        assert await it.bind(second, "xpu-a") == (500, "pod default/b is being bound already")
        it.served("a")
        assert await waiting == (200, "")


def test_arguments_are_read() -> None:
    body = json.dumps({"podname": "p", "PODNAMESPACE": "d", "PodUID": "u", "node": "n"}).encode()

    assert read_bind(body) == BindArgs(name="p", namespace="d", uid="u", node="n")
    with pytest.raises(MalformedError):
        read_filter(b"nonsense")


# inspect and version


async def test_inspect_tells_who_has_what(world: World) -> None:
    add_host(world, make_host("xpu-a", devices=2))
    world.add_node("plain")

    async with port(world) as it:
        await it.bind(add_pod(it, make_share_pod("p", 4500)), "xpu-a")
        response = await it.client.get(f"{PREFIX}/inspect")
        whole = await response.json()
        one = await (await it.client.get(f"{PREFIX}/inspect/xpu-a")).json()
        missing = await it.client.get(f"{PREFIX}/inspect/ghost")
        missing_text = await missing.json()
        version = await (await it.client.get("/version")).text()

    assert whole == one
    assert whole == {
        "nodes": [
            {
                "name": "xpu-a",
                "totalXPU": 16128,
                "usedXPU": 4500,
                "devs": [
                    {
                        "id": 0,
                        "totalXPU": 8064,
                        "usedXPU": 4500,
                        "pods": [{"name": "p", "namespace": "default", "usedXPU": 4500}],
                    },
                    {"id": 1, "totalXPU": 8064, "usedXPU": 0, "pods": []},
                ],
            }
        ]
    }
    assert missing.status == 404
    assert missing_text == {"nodes": [], "error": "node ghost is not known"}
    assert version.startswith("berthmaster")


# Who may ask


async def test_token_in_header_or_path(world: World) -> None:
    body = b'{"Pod": {}, "NodeNames": []}'

    async with port(world, token=TOKEN) as it:
        client = it.client
        plain = await client.post(f"{PREFIX}/filter", data=body)
        wrong = await client.post(f"/wrong{PREFIX}/filter", data=body)
        path = await client.post(f"/{TOKEN}{PREFIX}/filter", data=body)
        header = {"Authorization": f"Bearer {TOKEN}"}
        shown = await client.post(f"{PREFIX}/filter", data=body, headers=header)
        gpushare = await client.post(f"/{TOKEN}/gpushare-scheduler/filter", data=body)
        inspected = await client.get(f"{PREFIX}/inspect")

    assert [it.status for it in (plain, wrong, inspected)] == [401, 401, 401]
    assert [it.status for it in (path, shown, gpushare)] == [200, 200, 200]


async def test_path_with_a_token_is_nobodys_without_one(world: World) -> None:
    async with port(world) as it:
        response = await it.client.post(f"/any{PREFIX}/filter", data=b"{}")

    assert response.status == 401


async def test_bodies_that_are_too_long_or_do_not_come_are_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "MAX_BODY_BYTES", 1000)
    monkeypatch.setattr(routes, "BODY_TIMEOUT_S", 0.1)
    never = asyncio.Event()

    async def hesitating() -> AsyncIterator[bytes]:
        yield b"{"
        await never.wait()

    async with port(world) as it:
        _, too_long = await it.post("filter", b"{" + b" " * 1000)
        late = await it.client.post(f"{PREFIX}/filter", data=hesitating())
        answer = await late.json()
        never.set()

    assert "longer than" in too_long["Error"]
    assert answer["Error"] == "the body did not come in time"


async def test_client_certificate_is_demanded(world: World, tmp_path: Path) -> None:
    add_host(world, make_host("xpu-a"))
    ours, others = (Authority(tmp_path / name) for name in ("ours", "others"))
    pair = ours.issue_server("serving", "extender", dns_names=["localhost"], addresses=[])
    context = make_context(str(ours.certificate_path), "--extender-client-ca-file")
    load_pair(context, pair.certificate_path.read_bytes(), pair.key_path.read_bytes())
    binding = Binding(world.tools, world.term, BindServer(world))
    filtering = Filtering(world.tools, world.term)
    app = ExtenderRoutes(world.tools, filtering, binding, Guard("")).app()
    body = json.dumps({"Pod": make_share_pod("p", 1), "NodeNames": ["xpu-a"]}).encode()

    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    address = runner.addresses[0][1]

    async def ask(authority: Authority | None) -> int:
        trust = ssl.create_default_context(cafile=str(ours.certificate_path))
        if authority is not None:
            shown = authority.issue_client("scheduler", "kube-scheduler")
            trust.load_cert_chain(shown.certificate_path, shown.key_path)
        async with aiohttp.ClientSession() as session:
            url = f"https://localhost:{address}{PREFIX}/filter"
            async with session.post(url, data=body, ssl=trust) as response:
                return response.status

    try:
        assert await ask(ours) == 200
        for wrong in (None, others):
            with pytest.raises(aiohttp.ClientError):
                await ask(wrong)
    finally:
        await runner.cleanup()


def test_extender_is_off_and_cannot_be_open() -> None:
    assert read_settings([], POD).extender_port == 0

    with pytest.raises(SettingsError, match="whoever gets an answer can bind pods"):
        read_settings(["--extender-port", "12345"], POD)
    with pytest.raises(SettingsError, match="another one's port"):
        read_settings(["--extender-port", "8080", "--extender-token-file", "t"], POD)
    with pytest.raises(SettingsError, match=r"0\.\.65535"):
        read_settings(["--extender-port", "70000", "--extender-token-file", "t"], POD)


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    good, short, not_pem = (tmp_path / name for name in ("good", "short", "pem"))
    good.write_text(f"{TOKEN}\n")
    short.write_text("abc")
    not_pem.write_text("nonsense")

    assert read_guard(str(good)) == Guard(TOKEN)
    assert read_guard("") == Guard("")
    for path in (str(short), str(tmp_path / "absent")):
        with pytest.raises(SettingsError, match="--extender-token-file"):
            read_guard(path)
    for path in (str(not_pem), str(tmp_path / "absent")):
        with pytest.raises(SettingsError, match="--extender-client-ca-file"):
            make_context(path, "--extender-client-ca-file")


async def test_answers_are_counted(world: World) -> None:
    async with port(world) as it:
        await it.post("filter", b"{}")
        await it.filter({"metadata": {"name": "p"}, "spec": {"containers": []}})

    rendered = world.tools.metrics.render()
    assert b'berthmaster_extender_answers_total{result="error",verb="filter"} 1.0' in rendered
    assert b'berthmaster_extender_duration_seconds_count{verb="filter"} 2.0' in rendered
    assert names.ALLOCATION not in str(it.server.pods)


async def test_words_of_nodes_that_are_gone_are_forgotten(world: World) -> None:
    filtering = Filtering(world.tools, world.term)
    pod = make_share_pod("p", 1)

    for number in range(20):
        name = f"node-{number}"
        world.add_node(name)
        body = json.dumps({"Pod": pod, "NodeNames": [name]}).encode()
        assert filtering.filter(read_filter(body)).names == ()
        world.state.nodes._drop(name, world.state.nodes.store[name])

    (words,) = filtering._words.values()
    assert len(words) < 5
