"""The world's arithmetic, its drivers, and its judge, against a fake API server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from fractions import Fraction
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from berthmaster.cluster.client import Client
from berthmaster_sandbox.world.disk_books import (
    BEST_EFFORT,
    MI,
    Amount,
    Books,
    DiskFunction,
    MalformedError,
    PodView,
    SimulatedDisk,
    measure,
    measure_leniently,
)
from berthmaster_sandbox.world.diskio import DiskWorld, DriverHabits
from support.fake_api import FakeApi, Json, Request

STATS = "/apis/diskio.x-k8s.io/v1alpha1/namespaces/ioi-system/nodediskiostats"
DEVICES = "/apis/diskio.x-k8s.io/v1alpha1/namespaces/ioi-system/nodediskdevices"
PODS = "/api/v1/pods"
ACME = DiskFunction(read={"4k": Fraction(2)}, write={"4k": Fraction(4)})
SMALL = {"d": SimulatedDisk(capacity=Amount(100 * MI, 100 * MI, 150 * MI))}


def rates(read: str, write: str, size: str = "4k") -> str:
    return f'{{"rbps": "{read}", "wbps": "{write}", "blocksize": "{size}"}}'


def view(uid: str, *, node: str = "n1", request: str | None = None, **changes: Any) -> PodView:
    known: dict[str, Any] = {"namespace": "default", "version": "1", "is_finished": False}
    return PodView(uid=uid, name=uid, node=node, request=request, **{**known, **changes})


# Arithmetic.


@pytest.mark.parametrize(
    ("request_text", "expected"),
    [
        (None, BEST_EFFORT),
        ("", BEST_EFFORT),
        (rates("50Mi", "25Mi"), Amount(100 * MI, 100 * MI, 200 * MI)),
        (rates("50Mi", "25Mi", "32k"), Amount(50 * MI, 25 * MI, 75 * MI)),
        (rates("1.5Gi", "500m"), Amount(3072 * MI, 2, 3072 * MI + 2)),
        ('{"RBPS":"1","wbps":"1","blockSize":"9","blocksize":"4k"}', Amount(2, 4, 6)),
    ],
    ids=["absent", "empty", "ratios", "ratio-absent", "fractions", "later-spelling-wins"],
)
def test_measure_scales_each_way(request_text: str | None, expected: Amount) -> None:
    assert measure(request_text, ACME) == expected


@pytest.mark.parametrize(
    "request_text",
    ["null", "{}", "[" * 5000, "x", rates("-1", "1"), rates("1", "1", "4K"), '{"rbps": 3}'],
)
def test_malformed_request_counts_as_default(request_text: str) -> None:
    with pytest.raises(MalformedError):
        measure(request_text)

    assert measure_leniently(request_text) == BEST_EFFORT


def test_books_keep_a_transient_overflow() -> None:
    books = Books({})
    books.add_node("n1", SMALL)

    books.see(view("a", request=rates("60Mi", "10Mi")))
    books.see(view("b", request=rates("60Mi", "10Mi")))
    books.forget("a")

    assert books.over_now() == []
    assert books.used("n1") == Amount(60 * MI, 10 * MI, 70 * MI)
    assert books.highest("n1") == Amount(120 * MI, 20 * MI, 140 * MI)
    (overflow,) = books.overflows.values()
    assert (overflow.dimension, overflow.used, overflow.capacity) == ("read", 120 * MI, 100 * MI)
    assert overflow.pods == ("default/a", "default/b")
    assert str(overflow) == "n1: read over by 20Mi (2 pods: default/a, default/b)"


def test_books_count_bound_unfinished_pods_only() -> None:
    books = Books({}, uncounted=["kube-system"])
    books.add_node("n1", SMALL)

    books.see(view("unbound", node=""))
    books.see(view("system", namespace="kube-system"))
    books.see(view("elsewhere", node="n2"))
    books.see(view("done"))
    books.see(view("done", is_finished=True))

    assert books.used("n1") == Amount()


# Drivers.


class DiskApi(FakeApi):
    """Knows the status subresource, counts generations, and shows pods."""

    def __init__(self) -> None:
        super().__init__()
        self.objects = {STATS: {}, DEVICES: {}, PODS: {}}

    def _answer(self, request: Request) -> web.Response:
        path = request.path.removesuffix("/status")
        return super()._answer(
            Request(request.method, path, request.query, request.headers, request.body)
        )

    def reserve(self, node: str, *uids: str, uid: str = "s1") -> int:
        name = f"{node}-nodediskiostats"
        known = self.objects[STATS].get(name, {"metadata": {}})
        generation: int = known["metadata"].get("generation", 0) + 1
        metadata = {"name": name, "uid": uid, "generation": generation}
        spec = {"nodeName": node, "reservedPods": list(uids)}
        self.put(STATS, {**known, "metadata": metadata, "spec": spec})
        return generation

    def pod(self, name: str, *, node: str = "", request: str | None = None, **status: str) -> None:
        annotations = {} if request is None else {"blockio.kubernetes.io/resources": request}
        metadata = {
            "name": name,
            "namespace": "default",
            "uid": f"uid-{name}",
            "annotations": annotations,
        }
        self.put(PODS, {"metadata": metadata, "spec": {"nodeName": node}, "status": status})

    def status(self, node: str) -> Json:
        found: Json = self.objects[STATS][f"{node}-nodediskiostats"].get("status", {})
        return found

    async def answered(self, node: str, generation: int) -> Json:
        await self.until(lambda: self.status(node).get("observedGeneration") == generation)
        found: Json = self.status(node)["allocableBandwidth"]
        return found


@pytest_asyncio.fixture
async def api() -> AsyncIterator[DiskApi]:
    async with DiskApi() as running:
        yield running


@pytest_asyncio.fixture
async def world(api: DiskApi) -> AsyncIterator[DiskWorld]:
    async with Client.at(api.url) as client:
        async with DiskWorld(client, pod_patience_s=0.1) as running:
            yield running


async def test_fake_device_is_published(api: DiskApi, world: DiskWorld) -> None:
    await world.add_node("n1")
    await world.add_node("n1", devices=SMALL)

    device = api.objects[DEVICES]["n1-nodediskdevice"]["spec"]
    assert device["nodeName"] == "n1"
    assert device["devices"]["d"]["capacity"]["total"] == str(150 * MI)


async def test_driver_subtracts_reserved_pods(api: DiskApi, world: DiskWorld) -> None:
    api.pod("waiting", request=rates("900Mi", "100Mi"))
    await world.add_node("n1")

    generation = api.reserve("n1", "uid-waiting", "uid-nobody")

    found = (await api.answered("n1", generation))["fakeDevice"]
    assert found == {"read": str(95 * MI), "write": str(895 * MI), "total": str(990 * MI)}


async def test_driver_has_no_floor(api: DiskApi, world: DiskWorld) -> None:
    api.pod("big", node="n1", request=rates("300Mi", "0"))
    await world.add_node("n1", devices=SMALL)

    generation = api.reserve("n1", "uid-big")

    assert (await api.answered("n1", generation))["d"]["read"] == str(-200 * MI)


async def test_pod_of_another_node_takes_the_default(api: DiskApi, world: DiskWorld) -> None:
    api.pod("far", node="n2", request=rates("300Mi", "0"))
    await world.add_node("n1")

    generation = api.reserve("n1", "uid-far")

    assert (await api.answered("n1", generation))["fakeDevice"]["read"] == str(995 * MI)


async def test_dead_driver_is_silent_until_revived(api: DiskApi, world: DiskWorld) -> None:
    await world.add_node("n1")
    await api.answered("n1", api.reserve("n1"))

    world.stop_driver("n1")
    generation = api.reserve("n1", "uid-x")
    await asyncio.sleep(0.3)
    assert api.status("n1")["observedGeneration"] == generation - 1

    world.start_driver("n1")
    assert (await api.answered("n1", generation))["fakeDevice"]["read"] == str(995 * MI)


async def test_late_answer_may_be_old(api: DiskApi, world: DiskWorld) -> None:
    await world.add_node("n1", habits=DriverHabits(lag_s=0.3))
    first = api.reserve("n1")
    await asyncio.sleep(0.1)

    second = api.reserve("n1", "uid-x")

    assert (await api.answered("n1", first))["fakeDevice"]["read"] == str(1000 * MI)
    await world.settled(deadline_s=5)
    assert api.status("n1")["observedGeneration"] == second


async def test_equal_numbers_may_hide_the_generation(api: DiskApi, world: DiskWorld) -> None:
    await world.add_node("n1", habits=DriverHabits(keeps_silent_when_equal=True))
    first = api.reserve("n1", "uid-x")
    await api.answered("n1", first)

    api.reserve("n1", "uid-y")
    await world.settled(deadline_s=5)

    assert api.status("n1")["observedGeneration"] == first
    world.set_habits("n1", DriverHabits())
    await api.answered("n1", first + 1)


async def test_bursts_come_and_go(api: DiskApi, world: DiskWorld) -> None:
    await world.add_node("n1", habits=DriverHabits(has_bursts=True, period_s=0.05))
    api.reserve("n1")

    seen: set[str] = set()

    def saw_both() -> bool:
        bandwidth = api.status("n1").get("allocableBandwidth", {})
        seen.update(it["read"] for it in bandwidth.values())
        return len(seen) == 2

    await api.until(saw_both)
    assert seen == {str(1000 * MI), str(995 * MI)}


async def test_distorted_reports_are_written_as_told(api: DiskApi, world: DiskWorld) -> None:
    def without_generation(status: Json) -> Json:
        return {**status, "observedGeneration": None, "allocableBandwidth": {"ghost": {}}}

    await world.add_node("n1", habits=DriverHabits(distort=without_generation))
    api.reserve("n1")
    await world.settled(deadline_s=5)

    assert api.status("n1")["allocableBandwidth"] == {"ghost": {}}


async def test_report_made_anew_is_answered(api: DiskApi, world: DiskWorld) -> None:
    await world.add_node("n1")
    api.reserve("n1")
    await api.answered("n1", api.reserve("n1"))

    api.remove(STATS, "n1-nodediskiostats")
    await api.answered("n1", api.reserve("n1", "uid-x", uid="s2"))


async def test_judge_and_watch_see_an_overflow(api: DiskApi, world: DiskWorld) -> None:
    await world.add_node("n1", devices=SMALL)
    api.pod("a", node="n1", request=rates("60Mi", "1Mi"))
    api.pod("b", node="n1", request=rates("60Mi", "1Mi"))
    assert [str(it) for it in await world.judge()] == [
        "n1: read over by 20Mi (2 pods: default/a, default/b)"
    ]

    api.pod("b", node="n1", request=rates("60Mi", "1Mi"), phase="Succeeded")
    assert await world.judge() == []
    async with asyncio.timeout(5):
        while world.used("n1").read != 60 * MI:
            await asyncio.sleep(0.01)
    assert [it.dimension for it in world.overflows] == ["read"]
    assert world.highest("n1").read == 120 * MI
