"""A cluster in memory without an API server: for tests of the webhook's decisions and queue."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
from collections.abc import Callable, Mapping
from typing import Any

import jsonpatch
import msgspec

from berthmaster.api import names
from berthmaster.api.datasets import CacheSighting, dataset_from_manifest
from berthmaster.api.inventory import (
    NodeInventory,
    NodeInventoryStatus,
    inventory_from_manifest,
)
from berthmaster.api.objects import (
    Namespace,
    ObjectMeta,
    Pod,
    node_from_manifest,
    pod_from_manifest,
)
from berthmaster.api.policy import policy_from_manifest
from berthmaster.cluster import kinds
from berthmaster.cluster.client import Client, JsonObject, PatchKind, Query
from berthmaster.cluster.errors import ApiError
from berthmaster.cluster.informers import EventKind
from berthmaster.concerns import registry
from berthmaster.placement.records import Records
from berthmaster_webhook.admission import Admission, Reply
from berthmaster_webhook.answers import Answers
from berthmaster_webhook.avoiding import AvoidedNodes, OwnerPauses
from berthmaster_webhook.deciding import Tools
from berthmaster_webhook.metrics import Metrics
from berthmaster_webhook.outcomes import Outcome
from berthmaster_webhook.state import ClusterState
from support.builders import make_node, make_pod_manifest, make_zoned_inventory
from support.xpu_worlds import inventory_of, make_xpu_node

Manifest = dict[str, Any]
GATES = [{"name": names.GATE}]
EPOCH = 3


class FakeTerm:
    """A term of office that the test gives and takes."""

    def __init__(self) -> None:
        self.forbids: Outcome | None = None
        self.epoch: int | None = EPOCH

    def why_not(self) -> Outcome | None:
        return self.forbids

    def answers_for(self, epoch: int | None) -> bool:
        return epoch == self.epoch


class World:
    """State, tools and a clock that the test moves. Use it inside a running loop."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.client = Client.at("http://127.0.0.1:1")
        self.state = ClusterState(self.client, registry.load(), Metrics(), assume_ttl_s=70.0)
        ids = itertools.count(1)
        self.tools = Tools(
            state=self.state,
            answers=Answers(self.state.ledger),
            avoided=AvoidedNodes(),
            pauses=OwnerPauses(2.0, clock=lambda: self.now_s),
            records=Records.of(self.state.engine),
            metrics=Metrics(),
            clock=lambda: self.now_s,
            own_namespace="berthmaster-system",
            make_id=lambda: f"{next(ids):012x}",
        )
        self.term = FakeTerm()
        for informer in self.state._informers.values():
            informer.synced.set()
            informer.resource_version = "1"
        self.add_namespace("default")
        self.state.ledger.watch_passed(self.now_s)

    async def close(self) -> None:
        await self.client.close()

    def add_namespace(self, name: str, **labels: str) -> None:
        namespace = Namespace(metadata=ObjectMeta(name=name, labels=labels))
        self.state.namespaces._put(EventKind.ADDED, name, namespace)

    def add_node(self, name: str, **fields: Any) -> None:
        self.state.nodes._put(EventKind.ADDED, name, make_node(name, **fields))

    def add_disk(self, node: str, size: str = "1000Mi") -> None:
        """Give a node a disk of so much read and write, on which every access counts its bytes."""
        capacity = {"read": size, "write": size, "total": "1Ti"}
        disk = {"id": "d", "type": "emptyDir", "capacity": capacity, "function": {}}
        inventory = inventory_from_manifest(
            {"metadata": {"name": node}, "status": {"disks": [disk]}}
        )
        self.state.inventories._put(EventKind.ADDED, node, inventory)

    def add_xpus(self, name: str = "n1", **node: Any) -> None:
        """Have a node with accelerators; the fields are those of `make_xpu_node`."""
        seen = node_from_manifest(make_xpu_node(name, **node))
        built = inventory_of(seen)
        status = NodeInventoryStatus(xpu=built.xpu, xpus=built.xpus)
        self.state.inventories._put(EventKind.ADDED, name, NodeInventory(name=name, status=status))
        self.state.nodes._put(EventKind.ADDED, name, seen)

    def add_datasets(self, node: str, **roles: str) -> None:
        """Give a node a role for each of some datasets of the namespace `default`."""
        datasets = [{"namespace": "default", "name": it, "role": roles[it]} for it in roles]
        inventory = inventory_from_manifest(
            {"metadata": {"name": node}, "status": {"datasets": datasets}}
        )
        self.state.inventories._put(EventKind.ADDED, node, inventory)

    def announce_dataset(
        self, name: str, *, caching: str, is_declared: bool | None = False
    ) -> None:
        """Show a Dataset of the namespace `default` that is provisioned.

        `is_declared` is whether its DatasetInternal says where the cache is; None: there is none.
        """
        status = {"provision": {"status": "OK"}, "caching": {"status": caching}}
        manifest = {
            "apiVersion": f"{names.DATASHIM_GROUPS[0]}/{names.DATASHIM_VERSION}",
            "metadata": {"namespace": "default", "name": name},
            "status": status,
        }
        found = dataset_from_manifest(manifest)
        self.state._informers[kinds.DATASETS[0].path]._put(EventKind.ADDED, found.key, found)
        if is_declared is not None:
            sighting = CacheSighting(
                group=found.group, namespace="default", name=name, is_declared=is_declared
            )
            informer = self.state._informers[kinds.CACHE_SIGHTINGS[0].path]
            informer._put(EventKind.ADDED, sighting.key, sighting)

    def add_zones(self, node: str, *free: str, **topology: Any) -> None:
        """Give a node NUMA zones with these CPUs free."""
        inventory = inventory_from_manifest(make_zoned_inventory(node, *free, **topology))
        self.state.inventories._put(EventKind.ADDED, node, inventory)

    def add_policy(self, name: str, **spec: Any) -> None:
        policy = policy_from_manifest({"metadata": {"name": name}, "spec": spec})
        self.state.policy_objects._put(EventKind.ADDED, name, policy)

    def remove_policy(self, name: str) -> None:
        self.state.policy_objects._drop(name, self.state.policy_objects.store[name])

    def show(self, pod: Pod | Manifest) -> Pod:
        """Let the pod watch show a pod."""
        shown = pod if isinstance(pod, Pod) else pod_from_manifest(pod)
        uid = shown.metadata.uid
        kind = EventKind.MODIFIED if uid in self.state.pods.store else EventKind.ADDED
        self.state.pods._put(kind, uid, shown)
        return shown

    def show_gone(self, uid: str) -> None:
        self.state.pods._drop(uid, self.state.pods.store[uid])


def gated_manifest(name: str = "pod", **fields: Any) -> Manifest:
    """Return a pod as it comes to us: it asks by annotation and carries the gate."""
    annotations = fields.pop("annotations", {names.PLACEMENT: "required"})
    fields.setdefault("schedulingGates", GATES)
    return make_pod_manifest(name, annotations=annotations, **fields)


def make_review(pod: Manifest, **request: Any) -> bytes:
    """Return the body of a review of a pod that is being created."""
    body: Manifest = {
        "uid": "review-1",
        "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "operation": "CREATE",
        "namespace": pod["metadata"].get("namespace", "default"),
        "name": pod["metadata"].get("name", ""),
        "userInfo": {"username": "alice"},
        "object": pod,
        **request,
    }
    review = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": body}
    return json.dumps(review).encode()


def ask(world: World, pod: Manifest, *, epoch: int | None = EPOCH, **request: Any) -> Reply:
    """Return the answer to the creation of a pod."""
    return Admission(world.tools, world.term).reply(make_review(pod, **request), epoch=epoch)


def response_of(reply: Reply) -> Manifest:
    """Return the response in an answer."""
    response: Manifest = json.loads(reply.body)["response"]
    return response


def patched(pod: Manifest, reply: Reply) -> Manifest:
    """Return the pod as an answer changes it."""
    patch = response_of(reply).get("patch")
    operations = json.loads(base64.b64decode(patch)) if patch else []
    result: Manifest = jsonpatch.apply_patch(pod, operations)
    return result


def allocation_of(pod: Manifest) -> Manifest:
    """Return the allocation that stands on a pod."""
    allocation: Manifest = json.loads(pod["metadata"]["annotations"][names.ALLOCATION])
    return allocation


class PodServer:
    """The API server's pods, as far as the queue goes: JSON Patch with its tests, and GET.

    `faults` are raised by the next patches, in order; None lets one through. `CutAfter` happens
    after the patch had its effect. `fails` says for a path what befalls each of its patches.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.pods: dict[str, Manifest] = {}
        self.patches: list[tuple[str, Any]] = []
        self.created: list[tuple[str, Any]] = []
        self.faults: list[Exception | None] = []
        self.create_faults: list[Exception | None] = []
        self.status_faults: list[Exception] = []
        self.fails: Callable[[str], Exception | None] | None = None
        self.shows = True
        # Lets JSON patches through one by one.
        self.gate: asyncio.Semaphore | None = None
        self._version = 10

    def add(self, pod: Manifest) -> None:
        """Store a pod and let the watch show it."""
        self._store(pod)

    def get_pod(self, name: str) -> Manifest:
        return self.pods[f"/api/v1/namespaces/default/pods/{name}"]

    async def get(self, path: str, query: Query | None = None, *, timeout_s: float) -> JsonObject:
        if path not in self.pods:
            raise ApiError(404, "NotFound", path)
        return self.pods[path]

    async def create(
        self, path: str, obj: object, query: Query | None = None, *, timeout_s: float
    ) -> JsonObject:
        self.created.append((path, obj))
        fault = self.create_faults.pop(0) if self.create_faults else None
        if fault is not None:
            raise fault
        return {}

    async def patch(
        self,
        path: str,
        body: object,
        kind: PatchKind,
        query: Query | None = None,
        *,
        timeout_s: float,
    ) -> JsonObject:
        self.patches.append((path, body))
        if kind is PatchKind.STRATEGIC:
            if self.status_faults:
                raise self.status_faults.pop(0)
            return {}
        if self.gate is not None:
            await self.gate.acquire()
        fault = self.faults.pop(0) if self.faults else None
        if self.fails is not None:
            fault = self.fails(path)
        if fault is not None and not isinstance(fault, CutAfter):
            raise fault
        if path not in self.pods:
            raise ApiError(404, "NotFound", path)
        try:
            changed = jsonpatch.apply_patch(self.pods[path], json.dumps(body))
        except (jsonpatch.JsonPatchConflict, jsonpatch.JsonPatchTestFailed) as error:
            raise ApiError(422, "Invalid", str(error)) from error
        self._store(changed)
        if fault is not None:
            raise fault.error
        return self.pods[path]

    @property
    def placements(self) -> list[str]:
        """Return the names of the pods that JSON patches were sent for, in order."""
        return [path.rpartition("/")[2] for path, body in self.patches if isinstance(body, list)]

    def _store(self, pod: Manifest) -> None:
        self._version += 1
        metadata = {**pod["metadata"], "resourceVersion": str(self._version)}
        stored = {**pod, "metadata": metadata}
        self.pods[f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"] = stored
        if self.shows:
            self.world.show(msgspec.convert(stored, Pod))


class CutAfter(Exception):  # noqa: N818 - it says when the connection is cut
    """Let a patch have its effect and raise another error."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


def node_pin(pod: Mapping[str, Any]) -> str:
    """Return the node that the first required term names."""
    affinity = pod["spec"]["affinity"]["nodeAffinity"]
    terms = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    value = terms[0]["matchFields"][-1]["values"][0]
    assert isinstance(value, str)
    return value
