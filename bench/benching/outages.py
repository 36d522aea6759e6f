"""Faults of the webhook's leader under a steady stream of pods, and what came of them.

A `Stream` creates pods that opted in, at a steady rate, and watches them. A pod is placed when the watch
first shows our allocation on it: with its creation, or later from the gate. Which replica decided it, that
replica's log tells. Each create is timed as its client sees it. With every pod comes a *plain* one that does
not opt in: what its create takes is the machine's doing and not ours.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import yaml

from berthmaster.api import names
from berthmaster.cluster.client import Client
from berthmaster.cluster.errors import ClusterError
from berthmaster.cluster.informers import EventKind, Informer
from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.installing import CONFIG

SYSTEM_PODS = f"/api/v1/namespaces/{names.SYSTEM_NAMESPACE}/pods"
LEASE = (
    f"/apis/coordination.k8s.io/v1/namespaces/{names.SYSTEM_NAMESPACE}/leases/{names.WEBHOOK_LEASE}"
)
PLAIN = "plain-"
LEADER = {"labelSelector": f"{names.ROLE_LABEL}={names.ROLE_LEADER}"}
# More would only pile up where the machine cannot follow.
_AT_ONCE = 20
# Those that waited for a leader are placed one after the other, also on a busy machine.
_DEADLINE_S = 300.0


class _Meta(msgspec.Struct, rename="camel"):
    name: str = ""
    resource_version: str = ""
    annotations: dict[str, str] | None = None


class _Spec(msgspec.Struct, rename="camel"):
    node_name: str = ""


class SeenPod(msgspec.Struct):
    """What the stream reads of a pod."""

    metadata: _Meta
    spec: _Spec


@dataclass
class Stream:
    """What became of the pods by their names; all times are monotonic seconds."""

    began_s: dict[str, float] = field(default_factory=dict)
    took_s: dict[str, float] = field(default_factory=dict)
    placed_s: dict[str, float] = field(default_factory=dict)
    bound_s: dict[str, float] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    failed: list[str] = field(default_factory=list)

    def take(self, kind: EventKind, pod: SeenPod) -> None:
        """Note when a pod is seen placed, and bound, for the first time."""
        name, now_s = pod.metadata.name, time.monotonic()
        if kind is EventKind.DELETED or name not in self.began_s:
            return
        if names.ALLOCATION in (pod.metadata.annotations or {}):
            self.placed_s.setdefault(name, now_s)
        if pod.spec.node_name:
            self.bound_s.setdefault(name, now_s)

    def first_s(self, pods: Iterable[str]) -> float:
        """Return when the first of these pods was placed, infinite if none was."""
        return min((self.placed_s[it] for it in pods if it in self.placed_s), default=math.inf)

    def slowest_s(self, since_s: float, until_s: float, *, plain: bool = False) -> float:
        """Return the longest time that a create took of those that began within two moments."""
        return max(
            (
                took_s
                for name, took_s in self.took_s.items()
                if since_s <= self.began_s[name] < until_s and name.startswith(PLAIN) is plain
            ),
            default=0.0,
        )

    @property
    def unplaced(self) -> int:
        """How many pods that opted in are stored and were not seen placed yet."""
        return sum(it not in self.placed_s and not it.startswith(PLAIN) for it in self.took_s)


@asynccontextmanager
async def stream(
    sandbox: Sandbox, namespace: str, pod: dict[str, Any], *, per_second: float, prefix: str = "s"
) -> AsyncIterator[Stream]:
    """Create pods like this one, and plain ones, until the block is left; then wait until all are placed.

    Raises TimeoutError when some are not placed within `_DEADLINE_S` then.
    """
    seen, path = Stream(), f"/api/v1/namespaces/{namespace}/pods"
    async with (
        await Client.connect(str(sandbox.kubeconfig)) as client,
        asyncio.TaskGroup() as tasks,
    ):
        informer = Informer(
            client,
            path,
            decode=msgspec.json.Decoder(SeenPod).decode,
            key=lambda it: it.metadata.name,
            version=lambda it: it.metadata.resource_version,
            on_event=seen.take,
        )
        watching = tasks.create_task(informer.run())
        await informer.synced.wait()

        plain = {**pod, "metadata": {**pod["metadata"], "annotations": {}}}

        async def create(name: str, like: dict[str, Any]) -> None:
            seen.began_s[name] = time.monotonic()
            body = {**like, "metadata": {**like["metadata"], "name": name}}
            try:
                stored = await client.create(path, body, timeout_s=30)
            except ClusterError as error:
                seen.failed.append(f"{name}: {error}")
                return
            finally:
                slots.release()
            seen.took_s[name] = time.monotonic() - seen.began_s[name]
            if stored["spec"].get("schedulingGates"):
                seen.gated.add(name)

        async def create_steadily() -> None:
            async with asyncio.TaskGroup() as creating:
                began_s = time.monotonic()
                for number in range(1_000_000):
                    for name, like in (
                        (f"{prefix}{number:05d}", pod),
                        (f"{PLAIN}{prefix}{number:05d}", plain),
                    ):
                        await slots.acquire()
                        creating.create_task(create(name, like))
                    due_s = began_s + (number + 1) / per_second
                    if is_over.is_set():
                        return
                    await asyncio.sleep(max(0.0, due_s - time.monotonic()))

        is_over, slots = asyncio.Event(), asyncio.Semaphore(_AT_ONCE)
        creating = tasks.create_task(create_steadily())
        yield seen
        is_over.set()
        await creating
        await until(lambda: not seen.unplaced, _DEADLINE_S)
        watching.cancel()


async def until(is_true: Callable[[], bool], deadline_s: float) -> None:
    """Wait until something is so. Raises TimeoutError."""
    async with asyncio.timeout(deadline_s):
        while not is_true():
            await asyncio.sleep(0.02)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leader:
    """The replica that leads: its name in the Lease, its pod, and its process on this machine."""

    identity: str
    pod: str
    node: str
    pid: int


async def find_leader(sandbox: Sandbox) -> Leader | None:
    """Return the replica that holds the Lease and alone has the label, None while there is none."""
    labelled = (await sandbox.client.get(SYSTEM_PODS, LEADER))["items"]
    identity = str((await sandbox.client.get(LEASE))["spec"].get("holderIdentity", ""))
    if len(labelled) != 1:
        return None
    pod, node = labelled[0]["metadata"]["name"], labelled[0]["spec"].get("nodeName", "")
    pid = None
    # Its kubelet may not have seen it yet, or no more.
    with suppress(KeyError):
        pid = sandbox.kubelets[node].find_process(names.SYSTEM_NAMESPACE, pod)
    if not pid or not identity.startswith(f"{pod}_"):
        return None
    return Leader(identity=identity, pod=pod, node=node, pid=pid)


async def until_replicas(sandbox: Sandbox, count: int) -> None:
    """Wait until so many webhooks are Ready. Raises TimeoutError."""
    path = f"/apis/apps/v1/namespaces/{names.SYSTEM_NAMESPACE}/deployments/{names.WEBHOOK_SERVICE}"
    async with asyncio.timeout(_DEADLINE_S):
        while (await sandbox.client.get(path))["status"].get("readyReplicas") != count:
            await asyncio.sleep(0.2)


async def take_away(sandbox: Sandbox, leader: Leader, fault: str) -> float:
    """Do to the leader what `fault` says, and return when.

    `delete`: its pod is deleted in good order. `kill`: SIGKILL. `stop`: SIGSTOP.
    """
    at_s = time.monotonic()
    if fault == "delete":
        await sandbox.client.delete(f"{SYSTEM_PODS}/{leader.pod}")
    else:
        os.kill(leader.pid, signal.SIGKILL if fault == "kill" else signal.SIGSTOP)
    return at_s


def decided_by(sandbox: Sandbox, leader: Leader) -> list[str]:
    """Return the names of the pods that a replica has decided, by its log."""
    kubelet = sandbox.kubelets[leader.node]
    path = kubelet.log_path(names.SYSTEM_NAMESPACE, leader.pod, None, previous=False)
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [
        it["pod"].partition("/")[2]
        for it in lines
        if it["message"] == "decided" and it["outcome"] == "placed"
    ]


def write_overlay(folder: Path, *, replicas: int, **seconds: float) -> Path:
    """Write an overlay with the component `ha` and so many webhooks, and return its folder.

    `seconds` are settings of the webhook, such as `takeover_wait_s`.
    """
    webhook = "berthmaster-webhook"
    variables = [
        {"name": f"BERTHMASTER_{name.upper()}", "value": f"{value:g}"}
        for name, value in seconds.items()
    ]
    patch = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": webhook, "namespace": names.SYSTEM_NAMESPACE},
        "spec": {"template": {"spec": {"containers": [{"name": "webhook", "env": variables}]}}},
    }
    folder.mkdir(parents=True, exist_ok=True)
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        # kustomize takes no absolute paths.
        "resources": [os.path.relpath(CONFIG, folder)],
        "components": [os.path.relpath(CONFIG.parents[1] / "components" / "ha", folder)],
        "replicas": [{"name": webhook, "count": replicas}],
        "patches": [{"patch": yaml.safe_dump(patch)}] if seconds else [],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization), encoding="utf-8")
    return folder
