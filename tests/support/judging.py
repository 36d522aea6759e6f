"""kube-scheduler as a judge that changes nothing: it decides, and what it decides is refused.

Policies refuse its writes for the test's namespaces and volumes: the binding of a pod, and the binding
of volumes before it. A pod that it accepts therefore comes back with the refusal, which names the
node, and a pod that fits nowhere with the reasons. Between two pods the cluster is as it was.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from berthmaster.api.objects import Pod, decode_pod
from berthmaster.cluster.client import Client, PatchKind
from berthmaster.cluster.errors import ApiError
from berthmaster.cluster.informers import EventKind, Informer
from berthmaster_sandbox.cluster import Sandbox

Manifest = dict[str, Any]

JUDGED = "judged"
MARK = "accepted-on:"
DEADLINE_S = 240.0
_POLICIES = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
_BINDINGS = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings"
_VOLUMES = "/api/v1/persistentvolumes"
_CLAIMS = "/api/v1/namespaces/default/persistentvolumeclaims"
_USER = "system:kube-scheduler"
_SELECTED = "object.metadata.?annotations[?'volume.kubernetes.io/selected-node'].orValue('?')"
_REFUSALS = {
    "judge-pods": ("pods/binding", "CREATE", f"'{MARK}' + object.target.name"),
    "judge-volumes": ("persistentvolumes", "UPDATE", f"'{MARK}?'"),
    "judge-claims": ("persistentvolumeclaims", "UPDATE", f"'{MARK}' + {_SELECTED}"),
}
_SPEC = {"accessModes": ["ReadWriteOnce"], "storageClassName": "probe"}
_VOLUME = {
    "apiVersion": "v1",
    "kind": "PersistentVolume",
    "metadata": {"name": "probe"},
    "spec": {**_SPEC, "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/probe"}},
}
_CLAIM = {
    "apiVersion": "v1",
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "probe", "namespace": "default"},
    "spec": {**_SPEC, "resources": {"requests": {"storage": "9Gi"}}},
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What kube-scheduler made of a pod; `node` is empty where it refused, or did not say which."""

    is_accepted: bool
    node: str
    message: str


class Judge:
    """Asks one pod at a time; see `judging`."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._pods: dict[str, Pod] = {}
        self._changed = asyncio.Event()
        self.informer = Informer(
            client,
            "/api/v1/pods",
            decode=decode_pod,
            key=lambda pod: pod.metadata.uid,
            query={"labelSelector": JUDGED},
            on_event=self._take,
        )

    async def ask(self, manifest: Manifest) -> tuple[Pod, Outcome]:
        """Create a pod, return it as it was stored and what became of it; it is gone afterwards."""
        namespace = manifest["metadata"]["namespace"]
        path = f"/api/v1/namespaces/{namespace}/pods"
        stored = await self._client.create(path, manifest, timeout_s=DEADLINE_S)
        uid, name = stored["metadata"]["uid"], stored["metadata"]["name"]
        try:
            async with asyncio.timeout(DEADLINE_S):
                pod, outcome = await self._outcome_of(uid)
        except TimeoutError as error:
            raise AssertionError(f"kube-scheduler said nothing about {manifest}") from error
        await self._client.delete(
            f"{path}/{name}", body={"gracePeriodSeconds": 0}, timeout_s=DEADLINE_S
        )
        async with asyncio.timeout(DEADLINE_S):
            while uid in self._pods:
                await self._until_changed()
        return pod, outcome

    async def _outcome_of(self, uid: str) -> tuple[Pod, Outcome]:
        while True:
            pod = self._pods.get(uid)
            for condition in (pod and pod.status.conditions) or ():
                if pod is not None and condition.type == "PodScheduled":
                    message = condition.message
                    if MARK in message:
                        node = message.partition(MARK)[2].split()[0].rstrip(".,")
                        return pod, Outcome(True, node if node != "?" else "", message)
                    if condition.status == "False":
                        return pod, Outcome(False, "", f"{condition.reason}: {message}")
            assert pod is None or not pod.spec.node_name, f"{pod} was bound: the policies fail"
            await self._until_changed()

    async def _until_changed(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _take(self, kind: EventKind, pod: Pod) -> None:
        if kind is EventKind.DELETED:
            self._pods.pop(pod.metadata.uid, None)
        else:
            self._pods[pod.metadata.uid] = pod
        self._changed.set()


@asynccontextmanager
async def judging(sandbox: Sandbox) -> AsyncIterator[Judge]:
    """Yield a judge once the policies act; the whole cluster is its own."""
    for name, (resource, operation, message) in _REFUSALS.items():
        await _create(sandbox.client, _POLICIES, _policy(name, resource, operation, message))
        binding = {"policyName": name, "validationActions": ["Deny"]}
        kind = "ValidatingAdmissionPolicyBinding"
        await _create(sandbox.client, _BINDINGS, _object(kind, name, binding))
    judge = Judge(sandbox.client)
    task = asyncio.create_task(judge.informer.run())
    try:
        await judge.informer.synced.wait()
        async with await sandbox.connect_as("judge", _USER) as scheduler:
            await _until_refused(sandbox.client, scheduler)
        yield judge
    finally:
        task.cancel()
        for name in _REFUSALS:
            await sandbox.client.delete(f"{_BINDINGS}/{name}", timeout_s=DEADLINE_S)
            await sandbox.client.delete(f"{_POLICIES}/{name}", timeout_s=DEADLINE_S)


async def _until_refused(client: Client, scheduler: Client) -> None:
    """Return when each of the scheduler's writes is refused."""
    await _create(client, _VOLUMES, _VOLUME)
    await _create(client, _CLAIMS, _CLAIM)
    binding = {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": "probe"},
        "target": {"kind": "Node", "name": "nowhere"},
    }
    labelled = {"metadata": {"labels": {"probed": "yes"}}}
    dry = {"dryRun": "All"}
    probes: list[Callable[[], Awaitable[object]]] = [
        lambda: scheduler.create("/api/v1/namespaces/default/pods/probe/binding", binding, dry),
        lambda: scheduler.patch(f"{_VOLUMES}/probe", labelled, PatchKind.MERGE, dry),
        lambda: scheduler.patch(f"{_CLAIMS}/probe", labelled, PatchKind.MERGE, dry),
    ]
    async with asyncio.timeout(DEADLINE_S):
        for probe in probes:
            while not await _is_refused(probe):
                await asyncio.sleep(0.1)
    await client.delete(f"{_CLAIMS}/probe", timeout_s=DEADLINE_S)
    await client.delete(f"{_VOLUMES}/probe", timeout_s=DEADLINE_S)


async def _is_refused(probe: Callable[[], Awaitable[object]]) -> bool:
    try:
        await probe()
    except ApiError as error:
        return MARK in error.message
    return False


def _policy(name: str, resource: str, operation: str, message: str) -> Manifest:
    rule = {
        "apiGroups": [""],
        "apiVersions": ["v1"],
        "operations": [operation],
        "resources": [resource],
    }
    spec = {
        "failurePolicy": "Fail",
        "matchConstraints": {"resourceRules": [rule]},
        "matchConditions": [
            {"name": "by-scheduler", "expression": f"request.userInfo.username == '{_USER}'"}
        ],
        "validations": [{"expression": "false", "messageExpression": message}],
    }
    return _object("ValidatingAdmissionPolicy", name, spec)


def _object(kind: str, name: str, spec: Mapping[str, Any]) -> Manifest:
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": dict(spec),
    }


async def _create(client: Client, path: str, manifest: Manifest) -> None:
    try:
        await client.create(path, manifest, timeout_s=DEADLINE_S)
    except ApiError as error:
        if not error.is_already_exists:
            raise
