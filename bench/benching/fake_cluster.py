"""An API server of paper, as a process of its own over TLS, for a cluster too big for this machine.

It speaks the part of the API that the webhook and the operator use: lists by pages, watches, create,
replace, patch, delete, and discovery. Running pods are made from their numbers whenever they are
listed; everything else is kept as it was written. It checks no rights and validates nothing, and costs
far less than a real one: what is measured beside it is what *we* cost.

`/bench/...` are the benchmarks' own: pods that an admission has let pass begin their life
(`created`), drivers begin to report (`reports`), writes are counted (`counters`).
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import itertools
import random
import re
import ssl
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import jsonpatch
import msgspec
from aiohttp import web

from benching import objects, queues

Json = dict[str, Any]

_HISTORY = 200_000
_PATH = re.compile(
    r"(?P<group>/api/v1|/apis/[^/]+/[^/]+)"
    r"(?:/namespaces/(?P<namespace>[^/]+)(?=/))?"
    r"/(?P<plural>[a-z]+)(?:/(?P<name>[^/]+))?(?:/(?P<sub>[a-z]+))?"
)
# Seconds from a pod's creation to each of its changes.
_BOUND_AFTER_S, _STARTED_AFTER_S, _RUNNING_AFTER_S = 0.02, 0.4, 1.5
_DRIVER_LAG_S = 0.05
_STATS = "/apis/diskio.x-k8s.io/v1alpha1/nodediskiostats"
_DEVICES = "/apis/diskio.x-k8s.io/v1alpha1/nodediskdevices"
_INVENTORIES = "/apis/berthmaster.io/v1alpha1/nodeinventories"
_PODS = "/api/v1/pods"
_DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_KINDS = {
    "/api/v1": {"namespaces": "Namespace", "nodes": "Node", "pods": "Pod", "secrets": "Secret"},
    "/apis/apiextensions.k8s.io/v1": {"customresourcedefinitions": "CustomResourceDefinition"},
    "/apis/berthmaster.io/v1alpha1": {
        "nodeinventories": "NodeInventory",
        "placementpolicies": "PlacementPolicy",
    },
    "/apis/diskio.x-k8s.io/v1alpha1": {
        "nodediskdevices": "NodeDiskDevice",
        "nodediskiostats": "NodeDiskIOStats",
    },
}
# Everybody is known and may do everything.
_REVIEWS: dict[str, Json] = {
    "tokenreviews": {"status": {"authenticated": True, "user": {"username": "anybody"}}},
    "subjectaccessreviews": {"status": {"allowed": True}},
}
_NAMESPACED = {"pods", "secrets", "nodediskdevices", "nodediskiostats"}

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class Collection:
    """The objects of one kind: `count` made by `make`, and those that were stored."""

    def __init__(self, count: int = 0, make: Callable[[int], bytes] | None = None) -> None:
        self.count = count
        self.make = make
        self.stored: dict[str, bytes] = {}
        self.history: deque[tuple[int, str, bytes]] = deque(maxlen=_HISTORY)
        self.watches: list[tuple[str, asyncio.Queue[bytes]]] = []

    def __len__(self) -> int:
        return self.count + len(self.stored)

    def all(self) -> Iterator[bytes]:
        """Yield every object's JSON."""
        return self.slice(0, len(self))

    def slice(self, first: int, end: int) -> Iterator[bytes]:
        """Yield the objects from number `first` to before `end`."""
        if self.make is not None:
            for index in range(first, min(end, self.count)):
                yield self.make(index)
        if end > self.count:
            yield from itertools.islice(
                self.stored.values(), max(0, first - self.count), end - self.count
            )

    def tell(self, version: int, kind: str, name: str, raw: bytes) -> None:
        """Tell the watches of a change."""
        line = b'{"type":"%s","object":%s}\n' % (kind.encode(), raw)
        self.history.append((version, name, line))
        for wanted, queue in self.watches:
            if wanted in ("", name):
                queue.put_nowait(line)


class FakeCluster:
    """The whole server."""

    def __init__(self, nodes: int, pods: int, *, with_drivers: bool, life_s: float) -> None:
        self.nodes = nodes
        self.life_s = life_s
        self.version = 10_000_000
        self.writes: Counter[str] = Counter()
        self.reports_sent = 0
        self.queue = queues.Record()
        self._freeing: asyncio.Task[None] | None = None
        self._free_mib: dict[int, int] = {}
        self._rng = random.Random(1)  # noqa: S311 - no secret
        self.collections: dict[str, Collection] = {
            f"{group}/{plural}": Collection() for group, kinds in _KINDS.items() for plural in kinds
        }
        self.collections[_PODS] = Collection(pods, lambda it: objects.running_pod(it, nodes))
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._changed = asyncio.Event()
        self._reporting: asyncio.Task[None] | None = None
        self._index_of = {objects.node_name(it): it for it in range(nodes)}
        self._fill(pods, with_drivers=with_drivers)

    def _fill(self, pods: int, *, with_drivers: bool) -> None:
        for definition in _definitions():
            self._put(_DEFINITIONS, definition)
        for index in range(objects.NAMESPACES):
            self._put("/api/v1/namespaces", objects.namespace(index))
        for name in ("default", "kube-system", "berthmaster-system", objects.DRIVERS):
            labels = {"kubernetes.io/metadata.name": name}
            self._put("/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})
        for index in range(self.nodes):
            self._put("/api/v1/nodes", objects.node(index))
            held = [objects.stable_uid("pod", it) for it in range(index, pods, self.nodes)]
            if with_drivers:
                self._put(_DEVICES, objects.disk_device(index))
            else:
                self._put(_INVENTORIES, objects.inventory(index, held))
        if with_drivers:
            models = {"diskVendors": objects.disk_models()}
            meta = {"name": "normalization-func", "namespace": objects.DRIVERS}
            self._put("/api/v1/configmaps", {"metadata": meta, "data": models})
        hook = {
            "name": "placement.berthmaster.io",
            "clientConfig": {"service": {"namespace": "berthmaster-system", "name": "webhook"}},
        }
        path = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
        self._put(path, {"metadata": {"name": "zz-berthmaster"}, "webhooks": [hook]})

    # Storing.

    def _collection(self, path: str) -> Collection:
        return self.collections.setdefault(path, Collection())

    def _put(self, path: str, obj: Json, *, kind: str = "") -> Json:
        collection = self._collection(path)
        self.version += 1
        meta = obj["metadata"]
        key = f"{meta.get('namespace', '')}/{meta['name']}"
        meta.setdefault("uid", str(uuid.uuid4()))
        meta.setdefault("creationTimestamp", objects.SINCE)
        meta.setdefault("generation", 1)
        meta["resourceVersion"] = str(self.version)
        raw = _encode(obj)
        kind = kind or ("MODIFIED" if key in collection.stored else "ADDED")
        collection.stored[key] = raw
        collection.tell(self.version, kind, meta["name"], raw)
        return obj

    def _remove(self, path: str, key: str) -> None:
        collection = self._collection(path)
        obj = _decode(collection.stored.pop(key))
        self.version += 1
        obj["metadata"]["resourceVersion"] = str(self.version)
        collection.tell(self.version, "DELETED", obj["metadata"]["name"], _encode(obj))

    # HTTP.

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        path = request.path
        if path == "/version":
            return _json({"major": "1", "minor": "36", "gitVersion": "v1.36.3"})
        discovered = _discover(path)
        if discovered is not None:
            return _json(discovered)
        match = _PATH.fullmatch(path)
        if match is None:
            return _refusal(404, "NotFound", path)
        collection = f"{match['group']}/{match['plural']}"
        key = f"{match['namespace'] or ''}/{match['name']}"
        if request.method == "GET":
            if match["name"]:
                return self._get(collection, key)
            if request.query.get("watch") == "true":
                return await self._watch(request, collection)
            return await self._list(request, collection, match["namespace"] or "")
        body = await request.read()
        if match["plural"] != "leases":
            sub = f"/{match['sub']}" if match["sub"] else ""
            self.writes[f"{request.method} {match['plural']}{sub}"] += 1
        if match["plural"] in _REVIEWS:
            return _json(_REVIEWS[match["plural"]], status=201)
        if request.method == "POST":
            return self._create(collection, match["namespace"], _decode(body))
        held = self._collection(collection).stored.get(key)
        if held is None:
            return _refusal(404, "NotFound", key)
        if request.method == "DELETE":
            self._remove(collection, key)
            return _json({"kind": "Status", "status": "Success"})
        return self._change(request, collection, _decode(held), body)

    def _get(self, collection: str, key: str) -> web.Response:
        held = self._collection(collection).stored.get(key)
        if held is None:
            return _refusal(404, "NotFound", f"{collection} {key}")
        return web.Response(body=held, content_type="application/json")

    def _create(self, collection: str, namespace: str | None, obj: Json) -> web.Response:
        meta = obj["metadata"]
        if namespace:
            meta["namespace"] = namespace
        if not meta.get("name"):
            meta["name"] = f"{meta.get('generateName', '')}{next(self._numbers)}"
        key = f"{meta.get('namespace', '')}/{meta['name']}"
        if key in self._collection(collection).stored:
            return _refusal(409, "AlreadyExists", key)
        if collection.endswith("/events"):
            return _json(obj, status=201)
        stored = self._put(collection, obj)
        if collection == _STATS:
            self._answer_list(stored)
        return _json(stored, status=201)

    def _change(
        self, request: web.Request, collection: str, held: Json, body: bytes
    ) -> web.Response:
        kind = request.content_type
        if kind == "application/json-patch+json":
            try:
                changed = jsonpatch.apply_patch(held, body.decode())
            except jsonpatch.JsonPatchException as error:
                return _refusal(422, "Invalid", str(error))
        elif request.method == "PUT":
            changed = _decode(body)
        else:
            changed = _merged(held, _decode(body))
        if collection == _PODS:
            self.queue.note_change(held, changed)
        if changed.get("spec") != held.get("spec"):
            changed["metadata"]["generation"] = held["metadata"].get("generation", 1) + 1
            if collection == _STATS:
                self._answer_list(changed)
        return _json(self._put(collection, changed))

    async def _list(self, request: web.Request, path: str, namespace: str) -> web.StreamResponse:
        collection = self._collection(path)
        name = _wanted_name(request)
        label = request.query.get("labelSelector", "")
        version = str(self.version)
        if name or namespace or label:
            items = [
                raw
                for key, raw in collection.stored.items()
                if (not namespace or key.startswith(f"{namespace}/"))
                and (not name or key.endswith(f"/{name}"))
                and (not label or _has_label(raw, label))
            ]
            return _page(items, version, "")
        first = int(request.query.get("continue", "0"))
        end = first + (int(request.query.get("limit", "0")) or len(collection))
        items = list(collection.slice(first, end))
        return _page(items, version, str(end) if end < len(collection) else "")

    async def _watch(self, request: web.Request, path: str) -> web.StreamResponse:
        collection = self._collection(path)
        name = _wanted_name(request)
        since = int(request.query.get("resourceVersion") or self.version)
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        for version, its_name, line in collection.history:
            if version > since and name in ("", its_name):
                queue.put_nowait(line)
        entry = (name, queue)
        collection.watches.append(entry)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        try:
            await response.prepare(request)
            while True:
                lines = [await queue.get()]
                with suppress(asyncio.QueueEmpty):
                    while True:
                        lines.append(queue.get_nowait())
                await response.write(b"".join(lines))
        except (ConnectionError, asyncio.CancelledError):
            return response
        finally:
            collection.watches.remove(entry)

    # The benchmarks' own.

    async def created(self, request: web.Request) -> web.Response:
        """Take over pods: a list of [number, workload, cpu, node, allocation].

        Those with a node begin their life; of the others nobody hears, as their namesakes will come.
        """
        for number, workload, cpu, node, allocation in msgspec.json.decode(await request.read()):
            self._live(objects.NewPod(number, workload, cpu), node, allocation)
        return _json({})

    async def counters(self, request: web.Request) -> web.Response:
        """Return the writes by method and resource, and the reports of the drivers."""
        return _json({"writes": dict(self.writes), "reports": self.reports_sent})

    async def slots(self, request: web.Request) -> web.Response:
        """Let each of the first `nodes` nodes offer `each` slots, of which holders take `held` in all."""
        wish = _decode(await request.read())
        for index in range(wish["nodes"]):
            node = _decode(self._collection("/api/v1/nodes").stored[f"/{objects.node_name(index)}"])
            self._put("/api/v1/nodes", queues.offer_slots(node, wish["each"]))
        for number in range(wish["held"]):
            self._put(_PODS, queues.holder(number, objects.node_name(number % wish["nodes"])))
        return _json({})

    async def gated(self, request: web.Request) -> web.Response:
        """Store `count` gated pods from number `first` on, of so many `shapes`, with or without condition.

        Priorities, where `priorities` is above 1, are from 0 to below that, by number.
        """
        wish = _decode(await request.read())
        for number in range(wish["first"], wish["first"] + wish["count"]):
            pod = queues.gated_pod(
                number, number % wish["shapes"], priority=number % wish.get("priorities", 1)
            )
            if wish.get("condition"):
                pod["status"] = {"phase": "Pending", "conditions": [wish["condition"]]}
            self._put(_PODS, pod)
        return _json({})

    async def free(self, request: web.Request) -> web.Response:
        """Begin to end holders, `count` from number `first` on, one in `everyS` seconds."""
        wish = _decode(await request.read())
        self.queue = queues.Record()
        self._freeing = asyncio.create_task(
            self._free(wish["first"], wish["count"], wish["everyS"])
        )
        return _json({})

    async def _free(self, first: int, count: int, every_s: float) -> None:
        async for index in queues.pace(count, every_s):
            self.queue.freed_s.append(time.monotonic())
            self._remove(_PODS, queues.holder_key(first + index))

    async def record(self, request: web.Request) -> web.Response:
        """Return what is known of slots and placed pods."""
        it = self.queue
        return _json({"freed": it.freed_s, "placed": it.placed_s, "numbers": it.placed})

    async def reports(self, request: web.Request) -> web.Response:
        """Let every node's driver report each `periodS`; a share `news` of reports is news."""
        wish = _decode(await request.read())
        if self._reporting is not None:
            self._reporting.cancel()
        if wish.get("periodS"):
            self._reporting = asyncio.create_task(self._report(wish["periodS"], wish["news"]))
        return _json({})

    async def _report(self, period_s: float, news: float) -> None:
        pause_s = period_s / self.nodes
        next_s = time.monotonic()
        while True:
            for index in range(self.nodes):
                next_s += pause_s
                if next_s > time.monotonic():
                    await asyncio.sleep(next_s - time.monotonic())
                self._report_one(index, news)

    def _report_one(self, index: int, news: float) -> None:
        name = objects.node_name(index)
        raw = self._collection(_STATS).stored.get(f"{objects.DRIVERS}/{name}-nodediskiostats")
        if raw is None:
            return
        stats = _decode(raw)
        capacity = objects.disk_speed_mib(index)
        if index not in self._free_mib or self._rng.random() < news:
            free = self._free_mib[index] = int(capacity * self._rng.uniform(0.4, 0.95))
        else:
            # It trembles upwards by less than the operator's threshold of 1 %.
            free = self._free_mib[index] + int(capacity * self._rng.uniform(0, 0.008))
        stats["status"] = {
            "observedGeneration": stats["metadata"]["generation"],
            "allocableBandwidth": {
                "nvme0n1": {"read": f"{free}Mi", "write": f"{free}Mi", "total": f"{2 * free}Mi"}
            },
        }
        self._put(_STATS, stats)
        self.reports_sent += 1

    def _answer_list(self, obj: Json) -> None:
        """Let a driver answer a new list of pods, a moment later."""
        index = self._index_of.get(obj["spec"].get("nodeName", ""))
        if index is not None:
            self._later(_DRIVER_LAG_S, lambda: self._report_one(index, 0.0))

    # The life of a pod that was let pass.

    def _live(self, pod: objects.NewPod, node: str, allocation: str) -> None:
        def tell(stage: int, kind: str) -> None:
            self.version += 1
            raw = pod.stage(stage, version=self.version, node=node, allocation=allocation)
            self._collection(_PODS).tell(self.version, kind, "", raw)

        tell(0, "ADDED")
        for stage, after_s in enumerate((_BOUND_AFTER_S, _STARTED_AFTER_S, _RUNNING_AFTER_S), 1):
            self._later(after_s, partial(tell, stage, "MODIFIED"))
        self._later(self.life_s, partial(tell, 3, "DELETED"))

    def _later(self, after_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._due, (time.monotonic() + after_s, next(self._numbers), act))
        self._changed.set()

    async def live(self, _: web.Application) -> None:
        """Start doing what is due."""
        self._clockwork = asyncio.create_task(self._tick())

    async def _tick(self) -> None:
        while True:
            self._changed.clear()
            now_s = time.monotonic()
            while self._due and self._due[0][0] <= now_s:
                heapq.heappop(self._due)[2]()
            pause_s = self._due[0][0] - now_s if self._due else None
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._changed.wait()


def _wanted_name(request: web.Request) -> str:
    """Return the name that is asked for, empty for all, and one that nobody has for failed pods."""
    selector = request.query.get("fieldSelector", "")
    if selector == "status.phase=Failed":
        return "nobody's"
    return selector.removeprefix("metadata.name=") if selector.startswith("metadata.name=") else ""


def _has_label(raw: bytes, selector: str) -> bool:
    key, _, value = selector.partition("=")
    labels = _decode(raw)["metadata"].get("labels") or {}
    return bool(labels.get(key) == value)


def _merged(old: Json, patch: Json) -> Json:
    merged = dict(old)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict):
            below = merged.get(key)
            merged[key] = _merged(below if isinstance(below, dict) else {}, value)
        elif key in ("conditions", "webhooks") and isinstance(merged.get(key), list):
            # As a strategic merge patch and server-side apply have it: by key.
            by = "type" if key == "conditions" else "name"
            known = {it[by]: it for it in merged[key]}
            known |= {it[by]: _merged(known.get(it[by], {}), it) for it in value}
            merged[key] = list(known.values())
        else:
            merged[key] = value
    return merged


def _definitions() -> Iterator[Json]:
    """Yield the CustomResourceDefinitions of all that is not Kubernetes' own."""
    for path, kinds in _KINDS.items():
        if path in ("/api/v1", "/apis/apiextensions.k8s.io/v1"):
            continue
        _, _, group, version = path.split("/")
        for plural, kind in kinds.items():
            yield {
                "metadata": {"name": f"{plural}.{group}"},
                "spec": {
                    "group": group,
                    "scope": "Namespaced" if plural in _NAMESPACED else "Cluster",
                    "names": {"plural": plural, "kind": kind},
                    "versions": [{"name": version, "served": True}],
                },
                "status": {"conditions": [{"type": "Established", "status": "True"}]},
            }


def _discover(path: str) -> Json | None:
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        groups = [tuple(group.split("/")[2:]) for group in _KINDS if group != "/api/v1"]
        entries = [
            {
                "name": group,
                "versions": [{"groupVersion": f"{group}/{version}", "version": version}],
                "preferredVersion": {"groupVersion": f"{group}/{version}", "version": version},
            }
            for group, version in groups
        ]
        return {"kind": "APIGroupList", "groups": entries}
    if path not in _KINDS:
        return None
    verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
    return {
        "kind": "APIResourceList",
        "groupVersion": path.partition("/")[2],
        "resources": [
            {
                "name": plural,
                "singularName": kind.lower(),
                "kind": kind,
                "namespaced": plural in _NAMESPACED,
                "verbs": verbs,
            }
            for plural, kind in _KINDS[path].items()
        ],
    }


def _page(items: list[bytes], version: str, token: str) -> web.Response:
    meta = _encode(
        {"resourceVersion": version, "continue": token} if token else {"resourceVersion": version}
    )
    body = b'{"kind":"List","apiVersion":"v1","metadata":%s,"items":[%s]}' % (
        meta,
        b",".join(items),
    )
    return web.Response(body=body, content_type="application/json")


def _json(obj: Json, *, status: int = 200) -> web.Response:
    return web.Response(body=_encode(obj), status=status, content_type="application/json")


def _refusal(code: int, reason: str, message: str) -> web.Response:
    status = {"kind": "Status", "code": code, "reason": reason, "message": message}
    return _json(status, status=code)


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=5000)
    parser.add_argument("--pods", type=int, default=150_000)
    parser.add_argument("--drivers", action="store_true", help="disks from drivers, no inventories")
    parser.add_argument("--life", type=float, default=30.0, help="seconds a created pod lives")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--certificate", type=Path, required=True)
    parser.add_argument("--key", type=Path, required=True)
    parser.add_argument("--secret", type=Path, help="a Secret to begin with, JSON")
    given = parser.parse_args()
    cluster = FakeCluster(given.nodes, given.pods, with_drivers=given.drivers, life_s=given.life)
    if given.secret is not None:
        cluster._put("/api/v1/secrets", _decode(given.secret.read_bytes()))
    for name in ("webhook-0", "operator-0"):
        meta: Json = {"name": name, "namespace": "berthmaster-system", "labels": {}}
        cluster._put(
            _PODS,
            {
                "metadata": meta,
                "spec": {"nodeName": objects.node_name(0)},
                "status": {"phase": "Running"},
            },
        )
    app = web.Application(client_max_size=1 << 28)
    app.on_startup.append(cluster.live)
    app.router.add_post("/bench/created", cluster.created)
    app.router.add_post("/bench/reports", cluster.reports)
    app.router.add_post("/bench/slots", cluster.slots)
    app.router.add_post("/bench/gated", cluster.gated)
    app.router.add_post("/bench/free", cluster.free)
    app.router.add_get("/bench/record", cluster.record)
    app.router.add_get("/bench/counters", cluster.counters)
    app.router.add_route("*", "/{path:.*}", cluster.handle)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(given.certificate, given.key)
    web.run_app(
        app, host="127.0.0.1", port=given.port, ssl_context=context, access_log=None, print=None
    )


if __name__ == "__main__":
    main()
