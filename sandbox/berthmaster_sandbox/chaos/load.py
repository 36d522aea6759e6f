"""The load: Deployments that grow, shrink and roll over, Jobs that come and end, and canaries.

Controllers create the pods, so refusals are retried as Kubernetes retries them. In the tight namespace a quota
is smaller than what the controllers want. `Load` acts a few times a second as the seed decides, until it is
paused. `Canaries` are single pods, one every half a second: what becomes of each create, and when the watch
shows it placed, is what faults are measured by.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from berthmaster.api import names
from berthmaster.api.objects import Pod, decode_pod
from berthmaster.cluster.client import ApiError, ClusterError, PatchKind
from berthmaster.cluster.informers import EventKind, Informer
from berthmaster_sandbox.chaos.scene import CANARIES, DATASETS, NAMESPACES, PART, Scene
from berthmaster_sandbox.world.numa_machines import CPU, MEMORY
from berthmaster_sandbox.world.xpu_hosts import XPUSHARE_MEMORY

IMAGE = "registry.k8s.io/pause:3.10"
CANARY_EVERY_S = 0.5
CANARY_TIMEOUT_S = 30.0
DELETERS = 4
ACT_EVERY_S = 0.7
# A finished Job and its pods are deleted after this.
JOB_TTL_S = 5
# More Jobs than these in a namespace are not started.
JOBS_AT_ONCE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What pods of one workload ask for."""

    name: str
    part: str
    annotations: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, str] = field(default_factory=dict)
    requests: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    asks_itself: bool = True


def _io(rate: str, size: str = "4k") -> dict[str, str]:
    text = json.dumps({"rbps": rate, "wbps": rate, "blocksize": size})
    return {names.DISKIO_REQUEST: text}


def _dataset(name: str) -> dict[str, str]:
    return {"dataset.0.id": name, "dataset.0.useas": "mount"}


# Where no topology is known, such a pod waits: by default it would pass there, as upstream's do, and
# could be turned away while the kinds are deleted.
_STRICT = {names.NUMA: "strict"}

# Disk, NUMA and XPU nodes hold less than all of theirs want: some pods wait.
SHAPES = (
    Shape(name="plain", part="plain", requests={CPU: "500m", MEMORY: "256Mi"}),
    Shape(name="disk", part="disk", annotations=_io("40Mi"), requests={CPU: "100m"}),
    Shape(name="disk-big", part="disk", annotations=_io("60Mi", "32k"), requests={CPU: "100m"}),
    Shape(name="numa", part="numa", annotations=_STRICT, limits={CPU: "2", MEMORY: "1Gi"}),
    Shape(
        name="numa-disk",
        part="numa",
        annotations={**_STRICT, **_io("50Mi")},
        limits={CPU: "3", MEMORY: "2Gi"},
    ),
    Shape(name="xpu", part="xpu", limits={XPUSHARE_MEMORY: "2500"}),
    Shape(name="power", part="power", limits={CPU: "1", MEMORY: "256Mi"}),
    Shape(name="data", part="disk", labels=_dataset(DATASETS[0]), requests={CPU: "100m"}),
    Shape(
        name="selected",
        part="plain",
        labels={"placed-by": "policy"},
        requests={CPU: "200m"},
        asks_itself=False,
    ),
)
_BY_NAME = {it.name: it for it in SHAPES}


def make_template(shape: Shape, app: str) -> dict[str, Any]:
    """Return a pod template of a shape."""
    asked = {names.PLACEMENT: "required"} if shape.asks_itself else {}
    resources = {
        key: dict(it) for key, it in (("limits", shape.limits), ("requests", shape.requests)) if it
    }
    return {
        "metadata": {
            "annotations": {**asked, **shape.annotations},
            "labels": {"app": app, **shape.labels},
        },
        "spec": {
            "nodeSelector": {PART: shape.part},
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "main", "image": IMAGE, "resources": resources}],
        },
    }


class Load:
    """What controllers are told; run `run` as a task. Trouble with the API server is shrugged at."""

    def __init__(self, scene: Scene, rng: random.Random) -> None:
        self._client = scene.client
        self._rng = rng
        self._share = scene.plan.alive // (len(NAMESPACES) * len(SHAPES))
        self._goes = asyncio.Event()
        self._jobs = 0
        self._rolls = 0

    async def start(self) -> None:
        """Create the Deployments, one of each shape in each namespace, and let the load go."""
        for namespace in NAMESPACES:
            for shape in SHAPES:
                await self._client.create(
                    f"/apis/apps/v1/namespaces/{namespace}/deployments", self._deployment(shape)
                )
        self.resume()

    def resume(self) -> None:
        """Go on."""
        self._goes.set()

    def pause(self) -> None:
        """Change nothing more; Jobs that were started come to their end."""
        self._goes.clear()

    async def run(self) -> None:
        """Act until cancelled."""
        while True:
            await self._goes.wait()
            namespace = self._rng.choice(NAMESPACES)
            shape = self._rng.choice(SHAPES)
            act = self._rng.choices((self._job, self._resize, self._roll), (5, 4, 1))[0]
            with contextlib.suppress(ClusterError):
                await act(namespace, shape)
            await asyncio.sleep(self._rng.uniform(0.5, 1.5) * ACT_EVERY_S)

    async def _resize(self, namespace: str, shape: Shape) -> None:
        wanted = self._rng.randint(0, self._share)
        await self._patch(namespace, shape, {"replicas": wanted})

    async def _roll(self, namespace: str, shape: Shape) -> None:
        self._rolls += 1
        mark = {"metadata": {"annotations": {"chaos.berthmaster.io/roll": str(self._rolls)}}}
        await self._patch(namespace, shape, {"template": mark})

    async def _patch(self, namespace: str, shape: Shape, spec: dict[str, Any]) -> None:
        path = f"/apis/apps/v1/namespaces/{namespace}/deployments/{shape.name}"
        await self._client.patch(path, {"spec": spec}, PatchKind.MERGE)

    async def _job(self, namespace: str, shape: Shape) -> None:
        path = f"/apis/batch/v1/namespaces/{namespace}/jobs"
        # Drawn whether it is needed or not, so that what comes later does not depend on what runs.
        completions, parallelism = self._rng.randint(10, 40), self._rng.randint(5, 20)
        running = (await self._client.get(path))["items"]
        # One that waits for room holds a place, and the others go on.
        if len(running) >= JOBS_AT_ONCE:
            return
        self._jobs += 1
        name = f"{shape.name}-job-{self._jobs}"
        template = make_template(shape, name)
        template["spec"]["restartPolicy"] = "Never"
        job = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": name},
            "spec": {
                "completions": completions,
                "parallelism": parallelism,
                "backoffLimit": 1000,
                "ttlSecondsAfterFinished": JOB_TTL_S,
                "template": template,
            },
        }
        await self._client.create(path, job)

    def _deployment(self, shape: Shape) -> dict[str, Any]:
        return {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": shape.name},
            "spec": {
                "replicas": self._share // 2,
                "revisionHistoryLimit": 0,
                "selector": {"matchLabels": {"app": shape.name}},
                "template": make_template(shape, shape.name),
            },
        }


@dataclass(slots=True)
class Canary:
    """One canary: when its create was sent, how long that took, what was said if it failed."""

    name: str
    sent_s: float
    took_s: float | None = None
    placed_s: float | None = None
    error: str = ""


class Canaries:
    """A pod every half a second, deleted when it is bound; run `run` as a task. Clock: monotonic."""

    def __init__(self, scene: Scene) -> None:
        self._client = scene.client
        self._path = f"/api/v1/namespaces/{CANARIES}/pods"
        self.sent: dict[str, Canary] = {}
        self._bound: asyncio.Queue[str] = asyncio.Queue()
        self._goes = asyncio.Event()
        self._changed = asyncio.Event()
        self._informer: Informer[Pod] = Informer(
            scene.client,
            self._path,
            decode=decode_pod,
            key=lambda pod: pod.metadata.uid,
            on_event=self._see,
        )

    async def run(self) -> None:
        """Create and delete until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._informer.run())
            for _ in range(DELETERS):
                group.create_task(self._delete_all())
            count = 0
            while True:
                await self._goes.wait()
                count += 1
                group.create_task(self._create(f"canary-{count:05d}"))
                await asyncio.sleep(CANARY_EVERY_S)

    def resume(self) -> None:
        """Go on."""
        self._goes.set()

    def pause(self) -> None:
        """Create no more."""
        self._goes.clear()

    async def first_placed(self, since_s: float, *, deadline_s: float) -> Canary:
        """Wait for a canary that was sent after `since_s` to be placed. Raises TimeoutError."""
        async with asyncio.timeout(deadline_s):
            while True:
                placed = [it for it in self.sent.values() if it.sent_s > since_s and it.placed_s]
                if placed:
                    return min(placed, key=lambda it: it.placed_s or 0.0)
                self._changed.clear()
                await self._changed.wait()

    def between(self, begin_s: float, end_s: float) -> list[Canary]:
        """Return those whose create was sent in this time."""
        return [it for it in self.sent.values() if begin_s <= it.sent_s <= end_s]

    def _see(self, kind: EventKind, pod: Pod) -> None:
        canary = self.sent.get(pod.metadata.name)
        if canary is None or kind is EventKind.DELETED:
            return
        if canary.placed_s is None and names.ALLOCATION in pod.annotations:
            canary.placed_s = time.monotonic()
            self._changed.set()
        if pod.spec.node_name:
            self._bound.put_nowait(pod.metadata.name)

    async def _create(self, name: str) -> None:
        canary = self.sent[name] = Canary(name, time.monotonic())
        template = make_template(_BY_NAME["plain"], "canary")
        pod = {"apiVersion": "v1", "kind": "Pod", **template}
        pod["metadata"]["name"] = name
        try:
            await self._client.create(self._path, pod, timeout_s=CANARY_TIMEOUT_S)
        except ClusterError as error:
            canary.error = str(error)
        canary.took_s = time.monotonic() - canary.sent_s

    async def _delete_all(self) -> None:
        while True:
            name = await self._bound.get()
            try:
                await self._client.delete(f"{self._path}/{name}", query={"gracePeriodSeconds": 0})
            except ApiError as error:
                if not error.is_not_found:
                    self._bound.put_nowait(name)
            except ClusterError:
                self._bound.put_nowait(name)
                await asyncio.sleep(1)


class _Meta(msgspec.Struct):
    uid: str = ""
    namespace: str = ""


class _Spec(msgspec.Struct, rename="camel"):
    node_name: str = ""


class _Status(msgspec.Struct):
    phase: str = ""


class _Life(msgspec.Struct):
    """A pod as far as it is counted."""

    metadata: _Meta
    spec: _Spec = msgspec.field(default_factory=_Spec)
    status: _Status = msgspec.field(default_factory=_Status)


class Tally:
    """How many pods of the load were created, bound, finished and deleted; run `run` as a task."""

    def __init__(self, scene: Scene) -> None:
        self._bound: set[str] = set()
        self._finished: set[str] = set()
        self.counts: Counter[str] = Counter()
        self._namespaces = frozenset((*NAMESPACES, CANARIES))
        decoder = msgspec.json.Decoder(_Life)
        self._informer: Informer[_Life] = Informer(
            scene.client,
            "/api/v1/pods",
            decode=decoder.decode,
            key=lambda pod: pod.metadata.uid,
            on_event=self._see,
        )

    async def run(self) -> None:
        """Count until cancelled."""
        await self._informer.run()

    def _see(self, kind: EventKind, pod: _Life) -> None:
        uid = pod.metadata.uid
        if pod.metadata.namespace not in self._namespaces:
            return
        if kind is EventKind.ADDED:
            self.counts["created"] += 1
        if pod.spec.node_name and uid not in self._bound:
            self._bound.add(uid)
            self.counts["bound"] += 1
        if pod.status.phase in ("Succeeded", "Failed") and uid not in self._finished:
            self._finished.add(uid)
            self.counts[pod.status.phase.lower()] += 1
        if kind is EventKind.DELETED:
            self.counts["deleted"] += 1
