"""What end-to-end tests share: waiting, disks and their models, pods, killing programs.

`harbour` is a `Sandbox` in which Berthmaster is installed and runs as pods.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from berthmaster.cluster.errors import ApiError, ClusterError
from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.installing import IMAGES, install

SYSTEM = "berthmaster-system"
PROGRAMS = ("berthmaster-operator", "berthmaster-webhook")
HOOK = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/zz-berthmaster"
INVENTORIES = "/apis/berthmaster.io/v1alpha1/nodeinventories"
POLICIES = "/apis/berthmaster.io/v1alpha1/placementpolicies"
_PATIENCE = 4
MODELS = json.dumps([{"vendor": "Intel", "model": "P4510", "readRatio": {}, "writeRatio": {}}])


@asynccontextmanager
async def own_installation() -> AsyncIterator[Sandbox]:
    """A cluster of a module's own with Berthmaster installed, in which nothing is that others left."""
    async with Sandbox.start(process_nodes=2, images=IMAGES) as running:
        await install(running)
        yield running


async def until(
    look: Callable[[], Any], is_enough: Callable[[Any], bool], deadline_s: float
) -> Any:
    """Return what `look` found once it is enough; fails with the last finding at the deadline.

    `deadline_s` is for a machine that has nothing else to do; others are given more.
    """
    found: Any = None
    deadline_s *= _PATIENCE
    try:
        async with asyncio.timeout(deadline_s):
            while not is_enough(found := await look()):
                await asyncio.sleep(0.25)
    except TimeoutError:
        pytest.fail(f"not reached within {deadline_s} s, last found: {found}")
    return found


async def unless_missing(deletion: Awaitable[Any]) -> None:
    """Delete what may be gone already."""
    try:
        await deletion
    except ApiError as error:
        if not error.is_not_found:
            raise


async def new_namespace(harbour: Sandbox, name: str) -> str:
    await harbour.client.create(
        "/api/v1/namespaces",
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}},
    )
    return name


async def program_pods(harbour: Sandbox, name: str) -> list[dict[str, Any]]:
    """Return the pods of a program, such as `berthmaster-webhook`."""
    found = await harbour.client.get(
        f"/api/v1/namespaces/{SYSTEM}/pods", {"labelSelector": f"app.kubernetes.io/name={name}"}
    )
    pods: list[dict[str, Any]] = found["items"]
    return pods


async def program_pids(harbour: Sandbox, name: str) -> set[int]:
    """Return the process ids of a program's pods."""
    pids = set()
    for pod in await program_pods(harbour, name):
        kubelet = harbour.kubelets.get(pod["spec"].get("nodeName", ""))
        pid = kubelet and kubelet.find_process(SYSTEM, pod["metadata"]["name"])
        if pid:
            pids.add(pid)
    return pids


async def kill_program(harbour: Sandbox, name: str) -> None:
    """Kill a program's processes with SIGKILL, as a crash would."""
    pids = await program_pids(harbour, name)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert pids, f"no process of {name} was found"


async def scale_program(harbour: Sandbox, name: str, replicas: int) -> None:
    """Set how many pods a program has."""
    await harbour.kubectl("-n", SYSTEM, "scale", f"deployment/{name}", f"--replicas={replicas}")


async def apply_models(harbour: Sandbox, text: str = MODELS) -> None:
    """Write the disk models' ConfigMap."""
    models = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "normalization-func", "namespace": "ioi-system"},
        "data": {"diskVendors": text},
    }
    await harbour.kubectl("apply", "-f", "-", stdin=json.dumps(models))


async def inventory_of(harbour: Sandbox, node: str) -> dict[str, Any]:
    """Return the status of a node's inventory, empty while there is none."""
    found = await harbour.client.get(INVENTORIES, {"fieldSelector": f"metadata.name={node}"})
    status: dict[str, Any] = found["items"][0].get("status", {}) if found["items"] else {}
    return status


async def events_about(harbour: Sandbox, name: str, namespace: str = "ioi-system") -> list[str]:
    """Return the notes of the Events about an object, those of cluster-scoped ones in `default`."""
    found = await harbour.client.get(
        f"/api/v1/namespaces/{namespace}/events",
        {"fieldSelector": f"involvedObject.name={name}"},
    )
    return [str(it.get("message", "")) for it in found["items"]]


async def until_event(
    harbour: Sandbox, name: str, words: str, *, namespace: str = "ioi-system"
) -> None:
    """Wait until an Event about an object has these words."""
    await until(
        lambda: events_about(harbour, name, namespace),
        lambda notes: any(words in note for note in notes),
        30,
    )


async def apply_policy(harbour: Sandbox, name: str, spec: dict[str, Any]) -> None:
    """Write a PlacementPolicy."""
    policy = {
        "apiVersion": "berthmaster.io/v1alpha1",
        "kind": "PlacementPolicy",
        "metadata": {"name": name},
        "spec": spec,
    }
    await harbour.kubectl("apply", "-f", "-", stdin=json.dumps(policy))


async def condition_of(harbour: Sandbox, node: str, condition: str) -> tuple[str, str]:
    """Return reason and message of a condition of a node's inventory."""
    for it in (await inventory_of(harbour, node)).get("conditions", ()):
        if it["type"] == condition:
            return it["reason"], it["message"]
    return "", ""


async def until_reason(
    harbour: Sandbox,
    node: str,
    reason: str,
    deadline_s: float = 40,
    *,
    condition: str = "DiskIOReady",
) -> str:
    """Wait until a condition of a node's inventory has a reason; return its message."""
    found = await until(
        lambda: condition_of(harbour, node, condition), lambda it: it[0] == reason, deadline_s
    )
    return str(found[1])


def make_pod(
    name: str,
    *,
    request: str | None = None,
    on: str | None = None,
    select: dict[str, str] | None = None,
    placement: str | None = "required",
    labels: dict[str, str] | None = None,
    limits: dict[str, str] | None = None,
    **further: Any,
) -> dict[str, Any]:
    """Return a pod; `select` is its node selector, `on` the same by hostname.

    `limits` are its container's, `further` are fields of its spec.
    """
    annotations = {} if placement is None else {"berthmaster.io/placement": placement}
    if request is not None:
        annotations["blockio.kubernetes.io/resources"] = request
    container: dict[str, Any] = {"name": "c", "image": "registry.k8s.io/pause:3.10"}
    if limits is not None:
        container["resources"] = {"limits": limits}
    spec: dict[str, Any] = {"containers": [container], **further}
    selector = {**(select or {}), **({} if on is None else {"kubernetes.io/hostname": on})}
    if selector:
        spec["nodeSelector"] = selector
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "annotations": annotations, "labels": labels or {}},
        "spec": spec,
    }


def io(rate: str = "50Mi", block_size: str = "4k") -> str:
    """Return the annotation for equal reading and writing."""
    return json.dumps({"rbps": rate, "wbps": rate, "blocksize": block_size})


async def node_of(harbour: Sandbox, namespace: str, name: str) -> str:
    """Return the node that a pod is bound to, empty while it is not (or the API is away)."""
    try:
        pod = await harbour.client.get(f"/api/v1/namespaces/{namespace}/pods/{name}")
    except ClusterError:
        return ""
    return str(pod["spec"].get("nodeName", ""))


async def until_bound(harbour: Sandbox, namespace: str, name: str, deadline_s: float = 40) -> str:
    """Wait until a pod is bound; return its node."""
    return str(await until(lambda: node_of(harbour, namespace, name), bool, deadline_s))


async def why_waiting(harbour: Sandbox, namespace: str, name: str) -> tuple[str, str]:
    """Return reason and message of a pod's condition Placed while it is False, else "" and the pod's state."""
    pod = await harbour.client.get(f"/api/v1/namespaces/{namespace}/pods/{name}")
    for it in pod["status"].get("conditions", ()):
        if it["type"] == "berthmaster.io/Placed" and it["status"] == "False":
            return it["reason"], it["message"]
    spec = pod["spec"]
    told = {key: spec.get(key) for key in ("nodeName", "schedulingGates", "affinity")}
    return "", json.dumps([told, pod["status"], pod["metadata"].get("annotations")])


async def until_waiting(
    harbour: Sandbox, namespace: str, name: str, deadline_s: float = 40
) -> tuple[str, str]:
    """Wait until a pod says why it waits; return reason and message."""
    reason, message = await until(
        lambda: why_waiting(harbour, namespace, name), lambda it: bool(it[0]), deadline_s
    )
    return str(reason), str(message)


async def recount(harbour: Sandbox, namespace: str) -> tuple[int, int, int]:
    """Return pods bound, waiting with a reason, and neither; from the API server alone."""
    pods = (await harbour.client.get(f"/api/v1/namespaces/{namespace}/pods"))["items"]
    bound = sum(bool(pod["spec"].get("nodeName")) for pod in pods)
    explained = sum(
        not pod["spec"].get("nodeName")
        and any(
            it["type"] == "berthmaster.io/Placed"
            and it["status"] == "False"
            and "disk IO" in it["message"]
            for it in pod["status"].get("conditions", [])
        )
        for pod in pods
    )
    return bound, explained, len(pods) - bound - explained


async def clear(harbour: Sandbox, namespace: str) -> None:
    """Delete all pods of a namespace at once."""
    await harbour.client.delete(
        f"/api/v1/namespaces/{namespace}/pods", query={"gracePeriodSeconds": 0}, timeout_s=60
    )


async def is_taken_over(harbour: Sandbox, namespace: str, pod: dict[str, Any]) -> bool:
    """Return whether the API server gives the pod to its own scheduler; creates nothing."""
    path = f"/api/v1/namespaces/{namespace}/pods"
    stored = await harbour.client.create(path, pod, {"dryRun": "All"})
    return bool(stored["spec"]["schedulerName"] == "default-scheduler")


async def create(harbour: Sandbox, namespace: str, pod: dict[str, Any]) -> dict[str, Any]:
    """Create a pod."""
    return await harbour.client.create(f"/api/v1/namespaces/{namespace}/pods", pod, timeout_s=30)
