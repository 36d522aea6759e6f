"""Builders of pods and nodes: a test states only what matters to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from berthmaster.api.objects import Node, Pod, node_from_manifest, pod_from_manifest

Manifest = dict[str, Any]


def make_container(
    name: str = "main",
    *,
    requests: Mapping[str, Any] | None = None,
    limits: Mapping[str, Any] | None = None,
    ports: Sequence[Mapping[str, Any]] = (),
    is_sidecar: bool = False,
) -> Manifest:
    """Return a container; `is_sidecar` is for init containers that stay."""
    container: Manifest = {"name": name, "image": "pause"}
    resources = {"requests": requests, "limits": limits}
    container["resources"] = {key: dict(it) for key, it in resources.items() if it is not None}
    if ports:
        container["ports"] = [dict(port) for port in ports]
    if is_sidecar:
        container["restartPolicy"] = "Always"
    return container


def make_pod_manifest(
    name: str = "pod",
    *,
    cpu: str = "",
    memory: str = "",
    namespace: str = "default",
    uid: str = "",
    node: str = "",
    phase: str = "",
    annotations: Mapping[str, str] | None = None,
    **spec: Any,
) -> Manifest:
    """Return a pod as JSON data: one container with the given requests, unless `containers` is given."""
    requests = {key: value for key, value in {"cpu": cpu, "memory": memory}.items() if value}
    metadata: Manifest = {"name": name, "namespace": namespace, "uid": uid or f"uid-{name}"}
    if annotations is not None:
        metadata["annotations"] = dict(annotations)
    whole = {"containers": [make_container(requests=requests)], **spec}
    if node:
        whole["nodeName"] = node
    status = {"phase": phase} if phase else {}
    return {"metadata": metadata, "spec": whole, "status": status}


def make_pod(name: str = "pod", **fields: Any) -> Pod:
    """Return a pod; the fields are those of `make_pod_manifest`."""
    return pod_from_manifest(make_pod_manifest(name, **fields))


def make_node_manifest(
    name: str = "node",
    *,
    cpu: str = "4",
    memory: str = "8Gi",
    pods: int = 110,
    uid: str = "",
    labels: Mapping[str, str] | None = None,
    taints: Sequence[Mapping[str, str]] = (),
    unschedulable: bool = False,
    others: Mapping[str, str] | None = None,
    conditions: Mapping[str, str] | None = None,
) -> Manifest:
    """Return a node as JSON data; `others` are further allocatable resources."""
    allocatable = {"cpu": cpu, "memory": memory, "pods": str(pods), **(others or {})}
    status: Manifest = {"capacity": dict(allocatable), "allocatable": allocatable}
    if conditions is not None:
        status["conditions"] = [{"type": it, "status": conditions[it]} for it in conditions]
    return {
        "metadata": {"name": name, "uid": uid or f"uid-{name}", "labels": dict(labels or {})},
        "spec": {"unschedulable": unschedulable, "taints": [dict(taint) for taint in taints]},
        "status": status,
    }


def make_node(name: str = "node", **fields: Any) -> Node:
    """Return a node; the fields are those of `make_node_manifest`."""
    return node_from_manifest(make_node_manifest(name, **fields))


def make_taint(key: str, value: str = "", effect: str = "NoSchedule") -> dict[str, str]:
    """Return a taint."""
    return {"key": key, "value": value, "effect": effect}


def make_zoned_inventory(node: str, *free: str, total: str = "16", **topology: Any) -> Manifest:
    """Return the inventory of a node whose zones have these CPUs free; fields are its topology's."""
    zones = [
        {
            "id": id_,
            "capacity": {"cpu": total},
            "allocatable": {"cpu": total},
            "available": {"cpu": cpus},
        }
        for id_, cpus in enumerate(free)
    ]
    settings = {"policy": "single-numa-node", **topology}
    return {"metadata": {"name": node}, "status": {"topology": settings, "zones": zones}}
