"""A node, its driver and its pods in a `FakeStore`, watched by a fleet; builders for all of them."""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from berthmaster.api import names
from berthmaster.api.policy import policy_from_manifest
from berthmaster.concerns.diskio.models import read_models
from berthmaster_operator.fleet import Fleet
from berthmaster_operator.handlers import node_disk_devices, node_disk_io_stats
from berthmaster_operator.metrics import Metrics
from berthmaster_operator.reconciling import NodeReconciler
from berthmaster_operator.sightings import (
    decode_failure,
    decode_inventory,
    decode_node,
    decode_pod,
)
from operator_program.stores import FakeStore, Notes

NODE = "n1"
DISKIO = f"/apis/{names.DISKIO_API_VERSION}/namespaces/ioi-system"
DEVICE = f"{DISKIO}/nodediskdevices/{NODE}-nodediskdevice"
STATS = f"{DISKIO}/nodediskiostats/{NODE}-nodediskiostats"
INVENTORY = f"/apis/{names.API_VERSION}/nodeinventories/{NODE}"
NODE_PATH = f"/api/v1/nodes/{NODE}"
MODELS = (
    '[{"vendor": "Intel", "model": "P4510", "readRatio": {"32k": 1}, "writeRatio": {"32k": 1}}]'
)
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def mebi(number: int) -> str:
    return f"{number}Mi"


def make_device(**fields: Any) -> dict[str, Any]:
    size = {"read": "1000Mi", "write": "1000Mi", "total": "2000Mi"}
    disk = {
        "name": "d",
        "vendor": "Intel",
        "model": "P4510",
        "type": "emptyDir",
        "capacity": size,
        **fields,
    }
    return {
        "metadata": {"namespace": "ioi-system"},
        "spec": {"nodeName": NODE, "devices": {"disk": disk}},
    }


def make_pod(uid: str, *, node: str = NODE, namespace: str = "team", **fields: Any) -> Any:
    metadata = {"name": uid, "uid": uid, "namespace": namespace}
    return {"metadata": metadata, "spec": {"nodeName": node}, "status": {}, **fields}


def make_policy(name: str = "p", **diskio: Any) -> Any:
    return {"metadata": {"name": name, "uid": name}, "spec": {"concerns": {"diskio": diskio}}}


class World:
    """One node of a cluster; `start` begins a new operator process on what is stored."""

    def __init__(self) -> None:
        self.store = FakeStore()
        self.now_s = 1000.0
        # How wrong the wall clock is.
        self.wall_step_s = 0.0
        self.is_leader = True
        self.models: str | None = MODELS
        self.policies: dict[str, Any] = {}
        self.pods: dict[str, Any] = {}
        self.store.put(NODE_PATH, {"metadata": {"name": NODE}, "status": {}})

    def clock(self) -> float:
        return self.now_s

    def start(self, *, is_complete: bool = True) -> None:
        self.dirty: set[str] = set()
        self.notes = Notes()
        self.metrics = Metrics()
        self.fleet = Fleet(
            diskio_namespace="ioi-system",
            clock=self.clock,
            on_dirty=self.dirty.add,
            wall_clock=lambda: BEGIN + timedelta(seconds=self.now_s + self.wall_step_s),
        )
        self.reconciler = NodeReconciler(
            self.store,
            self.fleet,
            may_write=lambda: self.is_leader,
            events=self.notes,
            metrics=self.metrics,
            clock=self.clock,
            wall_clock=lambda: BEGIN + timedelta(seconds=self.now_s),
        )
        for policy in self.policies.values():
            self.fleet.see_policy(policy_from_manifest(policy))
        self.show_models()
        for path in (NODE_PATH, DEVICE, STATS, INVENTORY):
            self.show(path)
        for uid in self.pods:
            self.show_pod(uid)
        self.fleet.is_complete = is_complete

    def show_models(self) -> None:
        data = None if self.models is None else {"diskVendors": self.models}
        self.fleet.see_models(read_models(data, self.fleet.models))

    def show(self, path: str, obj: dict[str, Any] | None = None) -> None:
        """Show the fleet an object as it is, or as it was (`obj`)."""
        found = copy.deepcopy(obj if obj is not None else self.store.objects.get(path))
        raw = msgspec.json.encode(found)
        name = path.rsplit("/", 1)[1]
        if path == NODE_PATH:
            self.fleet.see_node(decode_node(raw)) if found else self.fleet.lose_node(name)
        elif path == INVENTORY:
            if found:
                self.fleet.see_inventory(decode_inventory(raw))
        else:
            handler = node_disk_devices if path == DEVICE else node_disk_io_stats
            gone = {"metadata": {"namespace": "ioi-system", "name": name}}
            handler.take(self.fleet, found or gone, is_gone=not found)

    def add_pod(self, pod: Any) -> None:
        self.pods[pod["metadata"]["uid"]] = pod
        self.show_pod(pod["metadata"]["uid"])

    def show_pod(self, uid: str) -> None:
        """Show a pod as the two watches would, of pods that run and of those that failed."""
        pod = self.pods.get(uid)
        if pod is None or pod["status"].get("phase") == "Failed":
            self.fleet.lose_pod(uid)
        if pod is None:
            return
        raw = msgspec.json.encode(pod)
        if pod["status"].get("phase") == "Failed":
            self.fleet.see_failure(decode_failure(raw))
        else:
            self.fleet.see_pod(decode_pod(raw))

    async def settle(self) -> float | None:
        """Reconcile until nothing is dirty, letting pauses between writes pass."""
        again_s: float | None = None
        for _ in range(20):
            self.dirty.clear()
            again_s = await self.reconciler.reconcile(NODE)
            if not self.dirty and (again_s is None or again_s > 5):
                return again_s
            if not self.dirty:
                self.now_s += again_s or 0.0
        raise AssertionError("it does not settle")

    async def step(self) -> float | None:
        return await self.reconciler.reconcile(NODE)

    def report(self, *, read: int, generation: int | None = None, device: str = "disk") -> None:
        """Answer as a driver, for the present list unless told otherwise."""
        stats = copy.deepcopy(self.store.objects[STATS])
        stats["status"] = {
            "observedGeneration": generation or stats["metadata"]["generation"],
            "allocableBandwidth": {
                device: {"read": mebi(read), "write": mebi(900), "total": mebi(1900)}
            },
        }
        self.store.put(STATS, stats)
        self.show(STATS)

    def write_as(self, manager: str, path: str = STATS, **annotations: str) -> None:
        """Write an object as somebody, annotations or nothing but the time of writing."""
        obj = copy.deepcopy(self.store.objects[path])
        obj["metadata"].setdefault("annotations", {}).update(annotations)
        others = [it for it in obj["metadata"].get("managedFields", ()) if it["manager"] != manager]
        time = (BEGIN + timedelta(seconds=self.now_s)).isoformat()
        obj["metadata"]["managedFields"] = [*others, {"manager": manager, "time": time}]
        self.store.put(path, obj)
        self.show(path)

    @property
    def reserved(self) -> list[str]:
        found: list[str] = self.store.objects[STATS]["spec"]["reservedPods"]
        return found

    @property
    def disk(self) -> dict[str, Any]:
        found: dict[str, Any] = self.store.objects[INVENTORY]["status"]["disks"][0]
        return found

    @property
    def condition(self) -> dict[str, Any]:
        found: dict[str, Any] = self.store.objects[INVENTORY]["status"]["conditions"][0]
        return found

    @property
    def node_conditions(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.store.objects[NODE_PATH]["status"].get("conditions", [])
        return found
