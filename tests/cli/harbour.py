"""A small harbour for the command line's tests: two nodes with disks, one without."""

from __future__ import annotations

import json
from typing import Any

from berthmaster.api import names
from berthmaster.api.objects import Pod, pod_from_manifest
from support.builders import make_node_manifest, make_pod_manifest
from support.fake_api import FakeApi, Json

NODES = "/api/v1/nodes"
PODS = "/api/v1/pods"
NAMESPACES = "/api/v1/namespaces"
INVENTORIES = "/apis/berthmaster.io/v1alpha1/nodeinventories"
POLICIES = "/apis/berthmaster.io/v1alpha1/placementpolicies"
SURROUNDINGS = (
    "/api/v1/persistentvolumes",
    "/api/v1/persistentvolumeclaims",
    "/apis/storage.k8s.io/v1/storageclasses",
    "/apis/storage.k8s.io/v1/csinodes",
    "/apis/apps/v1/replicasets",
)
ALLOCATED = {"device": "fakeDevice", "read": 30 * 2**20, "write": 20 * 2**20}


def rates(read: str, write: str) -> str:
    return json.dumps({"rbps": read, "wbps": write, "blocksize": "4k"})


def allocation(**changes: Any) -> str:
    """The annotation of a pod that went to node-a."""
    written: Json = {
        "v": 1,
        "id": "d-1",
        "node": "node-a",
        "mode": "required",
        "allocated": {"diskio": ALLOCATED},
        "scores": {"resources": 40.0, "diskio": 97.0},
        "score": 97.0,
        "feasible": 2,
        "refused": [{"reason": "disk IO read bandwidth is not enough", "count": 1}],
        "runnersUp": [{"node": "node-b", "score": 75.0}],
    }
    return json.dumps(written | changes)


def manifest(
    name: str = "pod1",
    *,
    mode: str | None = "required",
    gates: tuple[str, ...] = (),
    decision: str | None = None,
    request: str | None = None,
    conditions: tuple[Json, ...] = (),
    **fields: Any,
) -> Json:
    annotations = {
        names.PLACEMENT: mode,
        names.ALLOCATION: decision,
        names.DISKIO_REQUEST: request,
    }
    found = make_pod_manifest(
        name,
        annotations={key: text for key, text in annotations.items() if text is not None},
        schedulingGates=[{"name": gate} for gate in gates],
        **{"phase": "Pending", **fields},
    )
    found["status"]["conditions"] = list(conditions)
    return found


def pod(name: str = "pod1", **fields: Any) -> Pod:
    return pod_from_manifest(manifest(name, **fields))


def inventory(node: str, megabytes: int) -> Json:
    capacity = {
        "read": f"{megabytes}Mi",
        "write": f"{megabytes}Mi",
        "total": f"{2 * megabytes}Mi",
    }
    ratios = dict.fromkeys(("512", "1k", "4k", "8k", "16k", "32k"), "1")
    disk = {
        "id": "fakeDevice",
        "type": "emptyDir",
        "vendor": "Intel",
        "model": "P4510",
        "capacity": capacity,
        "function": {"readRatio": ratios, "writeRatio": ratios},
    }
    owner = {"kind": "Node", "name": node, "uid": f"uid-{node}"}
    return {
        "metadata": {"name": node, "ownerReferences": [owner]},
        "status": {"disks": [disk]},
    }


def furnish(api: FakeApi, *pods: Json) -> None:
    """Fill the API server: node-a has 1000Mi, node-b 100Mi, node-c no known disk."""
    for collection in (NODES, PODS, NAMESPACES, INVENTORIES, POLICIES, *SURROUNDINGS):
        api.objects.setdefault(collection, {})
    for name in ("node-a", "node-b", "node-c"):
        api.put(NODES, make_node_manifest(name))
    api.put(INVENTORIES, inventory("node-a", 1000))
    api.put(INVENTORIES, inventory("node-b", 100))
    api.put(NAMESPACES, {"metadata": {"name": "default", "labels": {"team": "a"}}})
    for each in pods:
        api.put(PODS, each)
        api.put(f"/api/v1/namespaces/{each['metadata']['namespace']}/pods", each)
