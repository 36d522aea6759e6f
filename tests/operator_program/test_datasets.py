"""Datasets in the operator: joined with nodes as they come, written down, told of, never fatal."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from berthmaster.api import names
from berthmaster.api.datasets import Dataset
from berthmaster.api.power import CpuUsage
from berthmaster.api.settings.dataset import GatewayOverload
from berthmaster.cli.cases.dataset import build_inventories
from berthmaster_operator.datasets.cache_pods import CachePod, CachePods, decode_cache_pod
from berthmaster_operator.datasets.mapping import DatasetMap
from berthmaster_operator.datasets.overload import Load, look
from berthmaster_operator.datasets.placements import PlacementWriter
from berthmaster_operator.datasets.reporting import DatasetReporter
from berthmaster_operator.handlers import datasets
from berthmaster_operator.metrics import Metrics
from operator_program.stores import FakeStore, Notes
from operator_program.worlds import (
    BEGIN,
    DEVICE,
    INVENTORY,
    NODE,
    NODE_PATH,
    World,
    make_device,
)
from support.dataset_reference import NEW
from support.dataset_world import World as Manifests
from support.dataset_world import changes

NEW_GROUP, OLD_GROUP = names.DATASHIM_GROUPS


def dataset(name: str = "d", version: str = "1", **status: str) -> dict[str, Any]:
    caching = {"status": status.get("caching", "Pending")}
    return {
        "metadata": {
            "namespace": "ml",
            "name": name,
            "uid": f"uid-{name}",
            "resourceVersion": version,
        },
        "spec": {"local": {"accessKeyID": "hush", "secretAccessKey": "hush"}},
        "status": {"provision": {"status": status.get("provision", "OK")}, "caching": caching},
    }


def internal(*gateways: str, name: str = "d", version: str = "1") -> dict[str, Any]:
    entries = [{"key": "kubernetes.io/hostname", "value": it} for it in gateways]
    return {
        "metadata": {
            "namespace": "ml",
            "name": name,
            "uid": f"int-{name}",
            "resourceVersion": version,
        },
        "status": {"caching": {"placements": {"gateways": entries}}},
    }


def show(found: DatasetMap, manifest: dict[str, Any], *, group: str = NEW_GROUP) -> None:
    is_internal = manifest["metadata"]["uid"].startswith("int")
    plural = names.DATASETS_INTERNAL if is_internal else names.DATASETS
    datasets.take(found, group, plural, manifest)


class TestMap:
    def test_what_a_dataset_touches_is_looked_at_and_nothing_else(self) -> None:
        dirty: list[str] = []
        found = DatasetMap(dirty.append)
        for node in ("n1", "n2", "n3"):
            found.see_node(node, {"kubernetes.io/hostname": node})
        assert dirty == []
        show(found, dataset())
        show(found, internal("n1"))
        assert dirty == ["n1"]
        show(found, internal("n2", version="2"))
        assert dirty == ["n1", "n1", "n2"]
        show(found, internal("n1", version="1"))
        assert dirty == ["n1", "n1", "n2"]
        assert found.here("n1") is None
        (entry,) = found.here("n2") or ()
        assert (entry.key, entry.role) == ("ml/d", "gateway")
        found.see_node("n3", {"kubernetes.io/hostname": "n3", "new": "label"})
        assert dirty == ["n1", "n1", "n2"]

    def test_a_node_that_comes_later_is_found_and_one_that_goes_is_stale(self) -> None:
        found = DatasetMap(lambda _: None)
        show(found, dataset())
        show(found, internal("late"))
        assert found.count() == {"stale": 1}
        found.see_node("late", {})
        assert found.count() == {"usable": 1}
        assert found.stale_placements == 0
        found.lose_node("late")
        assert found.count() == {"stale": 1}
        assert found.stale_placements == 1

    def test_while_nodes_are_listed_a_dataset_on_all_of_them_is_located_once(self) -> None:
        told: list[str] = []
        asked: list[str] = []
        dirty: list[str] = []
        found = DatasetMap(dirty.append, told.append)
        found.on_pending = lambda: asked.append("flush")
        show(found, dataset())
        show(found, internal(*(f"n{index}" for index in range(50))))
        for index in range(50):
            found.see_node(f"n{index}", {})
        assert (asked, told, dirty) == (["flush"], [], [])
        found.flush()
        assert told == ["ml/d"]
        assert sorted(dirty) == sorted(f"n{index}" for index in range(50))
        dirty.clear()
        found.lose_node("n7")
        assert found.here("n7") is None
        # The others' inventories say what they said.
        assert dirty == ["n7"]

    def test_the_condition_of_a_node_names_what_is_not_usable(self) -> None:
        found = DatasetMap(lambda _: None)
        found.see_node("n1", {})
        assert found.judge("n1") is None
        show(found, dataset())
        show(found, internal("n1"))
        condition = found.judge("n1")
        assert condition is not None
        assert (condition.status, condition.reason) == ("True", "Usable")
        show(found, dataset(version="2", provision="Pending"))
        condition = found.judge("n1")
        assert condition is not None
        assert (condition.status, condition.reason) == ("False", "NotUsable")
        assert condition.message == "ml/d is not-provisioned"

    def test_the_old_group_counts_until_the_new_one_has_the_dataset(self) -> None:
        found = DatasetMap(lambda _: None)
        found.see_node("n1", {})
        found.see_node("n2", {})
        show(found, dataset(), group=OLD_GROUP)
        show(found, internal("n1"), group=OLD_GROUP)
        assert found.here("n1")
        show(found, dataset(), group=NEW_GROUP)
        assert found.count() == {"no-internal": 1}
        show(found, internal("n2"), group=NEW_GROUP)
        assert (found.here("n1"), bool(found.here("n2"))) == (None, True)
        datasets.take(found, NEW_GROUP, names.DATASETS, dataset(), is_gone=True)
        assert found.here("n1")
        assert found.known(Dataset, OLD_GROUP) == {("ml", "d"): "uid-d"}
        for plural, it in ((names.DATASETS, dataset()), (names.DATASETS_INTERNAL, internal())):
            for group in names.DATASHIM_GROUPS:
                datasets.take(found, group, plural, it, is_gone=True)
        assert len(found) == 0

    @settings(max_examples=200, deadline=None)
    @given(st.lists(changes, max_size=20))
    def test_any_order_of_events_ends_where_all_at_once_begins(
        self, history: list[tuple[str, Any, Any]]
    ) -> None:
        manifests = Manifests()
        found = DatasetMap(lambda _: None)
        for version, (kind, name, what) in enumerate(history):
            manifests.change(kind, name, what)
            if kind == "node":
                found.see_node(name, manifests.nodes[name]["metadata"]["labels"])
            elif kind == "no node":
                found.lose_node(name)
            else:
                group = name[0].partition("/")[0]
                shown = [it for it in manifests.resources if it["apiVersion"] == name[0]]
                shown = [it for it in shown if it["metadata"]["name"] == name[1]]
                for plural, number in ((names.DATASETS, 0), (names.DATASETS_INTERNAL, 1)):
                    gone = {"metadata": {"namespace": "ml", "name": name[1]}}
                    it = shown[number] if shown else gone
                    versioned = {"resourceVersion": str(version + 1)}
                    it = {**it, "metadata": {**it["metadata"], **versioned}}
                    datasets.take(found, group, plural, it, is_gone=not shown)

        wanted = build_inventories(manifests.resources, manifests.nodes.values())
        assert {name: found.here(name) for name in manifests.nodes} == {
            name: wanted[name].status.datasets for name in manifests.nodes
        }
        assert sum(found.count().values()) == len({name for _, name in manifests.datasets})
        assert NEW.startswith(NEW_GROUP)


class TestEvents:
    def reporter(self, found: DatasetMap, notes: Notes) -> DatasetReporter:
        class Whole:
            is_complete = True

        return DatasetReporter(found, Whole(), may_write=lambda: True, events=notes)

    async def test_stale_placements_are_told_once_and_again_when_they_change(self) -> None:
        found, notes = DatasetMap(lambda _: None), Notes()
        reporter = self.reporter(found, notes)
        found.see_node("n1", {})
        show(found, dataset())
        show(found, internal("gone"))
        await reporter.reconcile("ml/d")
        await reporter.reconcile("ml/d")
        assert [note for _, _, note in notes.lines] == [
            "placements are out of date: stale (kubernetes.io/hostname=gone: no such node); pods "
            "that name it are placed as if they did not"
        ]
        show(found, internal("gone", "n1", version="2"))
        await reporter.reconcile("ml/d")
        assert "pods are placed by the other placements" in notes.lines[-1][2]
        assert all("hush" not in str(it) for it in notes.lines)
        found.see_node("gone", {})
        await reporter.reconcile("ml/d")
        assert len(notes.lines) == 2
        await reporter.reconcile("ml/unknown")
        assert len(notes.lines) == 2


class TestInventory:
    async def test_datasets_and_their_condition_are_written_and_taken_back(self) -> None:
        world = World()
        world.start()
        show(world.fleet.datasets, dataset())
        show(world.fleet.datasets, internal(NODE))
        await world.reconciler.reconcile(NODE)
        status = world.store.objects[INVENTORY]["status"]
        assert status["datasets"] == [{"namespace": "ml", "name": "d", "role": "gateway"}]
        assert [it["type"] for it in status["conditions"]] == ["DatasetReady"]
        conditions = world.store.objects[NODE_PATH]["status"]["conditions"]
        assert [(it["type"], it["status"]) for it in conditions] == [
            ("berthmaster.io/DatasetReady", "True")
        ]
        assert "gatewayBusy" not in status
        world.now_s += 10
        show(world.fleet.datasets, internal(version="2"))
        await world.reconciler.reconcile(NODE)
        assert not world.store.objects[INVENTORY]["status"].get("datasets")


class TestOverload:
    SETTINGS = GatewayOverload()

    @pytest.mark.parametrize(
        ("readings", "busy"),
        [
            ([(0, 90), (59, 90)], [False, False]),
            ([(0, 90), (60, 90)], [False, True]),
            ([(0, 90), (30, 70), (60, 90), (119, 90), (120, 90)], [False] * 4 + [True]),
            ([(0, 90), (60, 90), (61, 70), (62, 65), (63, 64)], [False, True, True, True, False]),
            ([(0, 90), (60, 90), (61, None)], [False, True, False]),
            ([(0, 80), (100, 80)], [False, False]),
        ],
    )
    def test_it_begins_late_and_ends_low(
        self, readings: list[tuple[float, float | None]], busy: list[bool]
    ) -> None:
        load, found = Load(), []
        for now_s, percent in readings:
            load, _ = look(percent, load, self.SETTINGS, now_s=now_s)
            found.append(load.is_busy)
        assert found == busy

    def test_it_says_when_to_look_again(self) -> None:
        load, again_s = look(90, Load(), self.SETTINGS, now_s=0)
        assert again_s == 60
        load, again_s = look(90, load, self.SETTINGS, now_s=45)
        assert again_s == 15
        load, again_s = look(90, load, self.SETTINGS, now_s=60)
        assert (load.is_busy, again_s) == (True, None)

    async def test_a_disk_that_stays_full_makes_its_gateway_busy_and_an_empty_one_ends_it(
        self,
    ) -> None:
        world = World()
        world.store.put(DEVICE, make_device())
        world.start()
        show(world.fleet.datasets, dataset())
        show(world.fleet.datasets, internal(NODE))
        await world.settle()
        assert "gatewayBusy" not in world.store.objects[INVENTORY]["status"]
        # 90 % is used.
        for waited_s, read, is_busy in ((0, 100, False), (30, 99, False), (31, 98, True)):
            world.now_s += waited_s
            world.report(read=read)
            await world.settle()
            assert world.store.objects[INVENTORY]["status"]["gatewayBusy"] is is_busy
        for read, is_busy in ((300, True), (400, False)):
            world.now_s += 10
            world.report(read=read)
            await world.settle()
            assert world.store.objects[INVENTORY]["status"]["gatewayBusy"] is is_busy

    async def test_cpu_usage_makes_a_gateway_busy_where_the_policy_says_so_until_it_is_stale(
        self,
    ) -> None:
        """Nothing is configured for the node's power; its usage is read all the same."""
        world = World()
        overload = {"reading": "CPU", "after": "60s"}
        world.policies["p"] = {
            "metadata": {"name": "p", "uid": "p"},
            "spec": {"concerns": {"dataset": {"overload": overload}}},
        }
        node = {"metadata": {"name": NODE}, "status": {"capacity": {"cpu": "10"}}}
        world.store.put(NODE_PATH, node)
        world.start()
        show(world.fleet.datasets, dataset())
        show(world.fleet.datasets, internal(NODE))
        await world.settle()
        assert "gatewayBusy" not in world.store.objects[INVENTORY]["status"]

        for waited_s, cores, is_busy in (
            (0, 9.5, False),
            (61, 8.5, True),
            (10, 7, True),
            (10, 6, False),
        ):
            world.now_s += waited_s
            wall_s = BEGIN.timestamp() + world.now_s
            usage = CpuUsage(nanocores=round(cores * 1e9), sampled_s=wall_s, window_s=10)
            world.fleet.power.take_usages([(NODE, usage)], now_s=wall_s)
            again_s = await world.settle()
            assert world.store.objects[INVENTORY]["status"]["gatewayBusy"] is is_busy
            assert again_s is not None
            assert again_s <= 90
        world.now_s += 91
        world.dirty.add(NODE)
        await world.settle()
        assert "gatewayBusy" not in world.store.objects[INVENTORY]["status"]

    async def test_usage_of_nodes_without_gateways_wakes_nobody(self) -> None:
        world = World()
        world.start()
        await world.settle()
        world.dirty.clear()
        wall_s = BEGIN.timestamp() + world.now_s
        usage = CpuUsage(nanocores=9, sampled_s=wall_s, window_s=10)
        world.fleet.power.take_usages([(NODE, usage)], now_s=wall_s)

        assert not world.dirty


def cache_pod(
    uid: str, node: str, *, rgw: str = "", app: str = "rook-ceph-rgw", phase: str = "Running"
) -> CachePod:
    labels = {"app": app, **({"rgw": rgw} if rgw else {})}
    pod = {
        "metadata": {"uid": uid, "labels": labels},
        "spec": {"nodeName": node},
        "status": {"phase": phase},
    }
    return decode_cache_pod(msgspec.json.encode(pod))


def by_ceph(name: str = "d", version: str = "1", namespace: str = "ml") -> dict[str, Any]:
    found = dataset(name, version)
    found["metadata"]["annotations"] = {"dlf-plugin-name": "ceph-cache-plugin"}
    found["metadata"]["namespace"] = namespace
    return found


class TestCaches:
    def world(self) -> tuple[DatasetMap, CachePods]:
        found = DatasetMap(lambda _: None)
        caches = CachePods(found.look_again)
        found.correct = caches.correct
        for node in ("n1", "n2", "n3"):
            found.see_node(node, {})
        return found, caches

    def nodes(self, found: DatasetMap) -> dict[str, str]:
        return {
            node: str(entry.role) for node in ("n1", "n2", "n3") for entry in found.here(node) or ()
        }

    def test_a_gateway_that_moved_is_where_its_pod_runs(self) -> None:
        found, caches = self.world()
        show(found, by_ceph())
        show(found, internal("n1"))
        assert self.nodes(found) == {"n1": "gateway"}
        caches.see(cache_pod("g", "n2", rgw="d"))
        assert self.nodes(found) == {"n2": "gateway"}
        caches.see(cache_pod("o", "n3", app="rook-ceph-osd"))
        assert self.nodes(found) == {"n2": "gateway", "n3": "backing"}
        caches.see(cache_pod("other", "n1", rgw="other"))
        assert self.nodes(found) == {"n2": "gateway", "n3": "backing"}
        caches.see(cache_pod("g", "n2", rgw="d", phase="Pending"))
        assert self.nodes(found) == {"n1": "gateway", "n3": "backing"}
        caches.lose(cache_pod("g", "n2", rgw="d"))
        caches.lose(cache_pod("o", "n3", app="rook-ceph-osd"))
        assert self.nodes(found) == {"n1": "gateway"}

    def test_another_plugin_and_namesakes_are_left_as_they_are(self) -> None:
        found, caches = self.world()
        caches.see(cache_pod("g", "n2", rgw="d"))
        show(found, dataset())
        show(found, internal("n1"))
        assert self.nodes(found) == {"n1": "gateway"}
        show(found, by_ceph(version="2"))
        assert self.nodes(found) == {"n2": "gateway"}
        show(found, by_ceph(namespace="other"))
        assert self.nodes(found) == {"n1": "gateway"}
        gone = by_ceph(namespace="other")
        datasets.take(found, NEW_GROUP, names.DATASETS, gone, is_gone=True)
        assert self.nodes(found) == {"n2": "gateway"}

    async def test_placements_are_written_when_they_differ_as_sets_and_by_a_leader_only(
        self,
    ) -> None:
        found, caches = self.world()
        store, metrics, may = FakeStore(), Metrics(), True
        writer = PlacementWriter(store, found, may_write=lambda: may, metrics=metrics)
        path = f"/apis/{NEW_GROUP}/v1alpha1/namespaces/ml/datasetsinternal/d"
        store.put(path, {"metadata": {"name": "d", "namespace": "ml"}, "status": {}})
        uid = store.objects[path]["metadata"]["uid"]
        stored = internal("n1")
        stored["metadata"]["uid"] = uid
        show(found, by_ceph())
        datasets.take(found, NEW_GROUP, names.DATASETS_INTERNAL, stored)
        await writer.reconcile("ml/d")
        assert store.objects[path]["status"] == {}
        caches.see(cache_pod("g", "n2", rgw="d"))
        may = False
        await writer.reconcile("ml/d")
        assert store.objects[path]["status"] == {}
        may = True
        await writer.reconcile("ml/d")
        assert store.objects[path]["status"]["caching"]["placements"] == {
            "gateways": [{"key": "kubernetes.io/hostname", "value": "n2"}],
            "datalocations": [],
        }
        await writer.reconcile("ml/unknown")
