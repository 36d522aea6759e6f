"""The custom kinds for a cluster that nobody has installed `crds/` into."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import yaml

from berthmaster.cluster.client import ApiError, Client

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
FOLDER = Path(__file__).parents[2] / "crds"
KINDS = (
    ("diskio.x-k8s.io", "NodeDiskDevice", "nodediskdevices", "Namespaced"),
    ("diskio.x-k8s.io", "NodeDiskIOStats", "nodediskiostats", "Namespaced"),
    ("berthmaster.io", "NodeInventory", "nodeinventories", "Cluster"),
    ("berthmaster.io", "PlacementPolicy", "placementpolicies", "Cluster"),
)


def _loose(group: str, kind: str, plural: str, scope: str) -> dict[str, Any]:
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {
        "name": "v1alpha1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "subresources": {"status": {}},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "scope": scope,
            "names": {"kind": kind, "plural": plural, "singular": kind.lower()},
            "versions": [version],
        },
    }


def _definitions() -> list[dict[str, Any]]:
    found = [
        document
        for path in sorted(FOLDER.glob("*.y*ml"))
        for document in yaml.safe_load_all(path.read_text())
        if document and document.get("kind") == "CustomResourceDefinition"
    ]
    there = {it["metadata"]["name"] for it in found}
    return found + [_loose(*it) for it in KINDS if f"{it[2]}.{it[0]}" not in there]


async def install_kinds(client: Client) -> None:
    for definition in _definitions():
        try:
            await client.create(CRDS, definition)
        except ApiError as error:
            if not error.is_already_exists:
                raise
    for group, _, plural, _ in KINDS:
        for _ in range(100):
            try:
                await client.get(f"/apis/{group}/v1alpha1/{plural}")
                break
            except ApiError:
                await asyncio.sleep(0.1)
