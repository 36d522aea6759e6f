"""Pods as tests of admission make them, and what the API server made of them."""

from __future__ import annotations

from typing import Any

from berthmaster.api import names
from berthmaster.cluster.client import Client

Pod = dict[str, Any]

FORGED = '{"version":1,"node":"forged"}'
DRY_RUN = {"dryRun": "All"}


def make_pod(
    name: str = "",
    *,
    mode: str = "",
    annotations: dict[str, str] | None = None,
    labels: dict[str, str] | None = None,
    gates: tuple[str, ...] = (),
    owner: str = "",
    **spec: Any,
) -> Pod:
    """Return a pod that every namespace takes, also one that enforces `restricted`."""
    metadata: dict[str, Any] = {"name": name} if name else {"generateName": "ship-"}
    chosen = {**({names.PLACEMENT: mode} if mode else {}), **(annotations or {})}
    if chosen:
        metadata["annotations"] = chosen
    if labels:
        metadata["labels"] = labels
    if owner:
        owned = {"apiVersion": "apps/v1", "kind": owner, "name": "owner", "uid": "0-0"}
        metadata["ownerReferences"] = [{**owned, "controller": True}]
    if gates:
        spec["schedulingGates"] = [{"name": gate} for gate in gates]
    strict = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "main", "image": "pause", "securityContext": strict}],
            **spec,
        },
    }


def gates_of(pod: Pod) -> list[str]:
    return [gate["name"] for gate in pod["spec"].get("schedulingGates", ())]


def annotations_of(pod: Pod) -> dict[str, str]:
    found: dict[str, str] = pod["metadata"].get("annotations", {})
    return found


async def try_pod(client: Client, namespace: str, pod: Pod) -> Pod:
    """Return what would be stored."""
    return await client.create(f"/api/v1/namespaces/{namespace}/pods", pod, DRY_RUN)
