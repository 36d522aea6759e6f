"""Datashim's kinds in a cluster: installed by whoever asks, written as its operator and cache plugin would."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from berthmaster.cluster.client import PatchKind
from berthmaster_sandbox.cluster import Sandbox

GROUP = "datashim.io"
CRDS = Path(__file__).parents[2] / "crds" / "datashim"


async def install_datashim(sandbox: Sandbox, group: str = GROUP) -> None:
    """Install the kinds of one group."""
    files = [f"--filename={CRDS / f'{group}_{it}.yaml'}" for it in ("datasets", "datasetsinternal")]
    await sandbox.kubectl("apply", *files)
    await sandbox.kubectl("wait", "--for=condition=Established", *files)


async def write_dataset(
    sandbox: Sandbox,
    namespace: str,
    name: str,
    *,
    gateways: Sequence[str] = (),
    data: Sequence[str] = (),
    caching: str = "Pending",
    provision: str = "OK",
    group: str = GROUP,
) -> None:
    """Write a Dataset and its DatasetInternal with placements by hostname."""
    placements = {
        "gateways": [_entry(it) for it in gateways],
        "datalocations": [_entry(it) for it in data],
    }
    statuses: dict[str, tuple[str, dict[str, Any]]] = {
        "Dataset": (
            "datasets",
            {"caching": {"status": caching}, "provision": {"status": provision}},
        ),
        "DatasetInternal": ("datasetsinternal", {"caching": {"placements": placements}}),
    }
    for kind, (plural, status) in statuses.items():
        manifest = {
            "apiVersion": f"{group}/v1alpha1",
            "kind": kind,
            "metadata": {"namespace": namespace, "name": name},
            "spec": {"local": {"type": "COS", "bucket": name}},
        }
        await sandbox.kubectl("apply", "--filename=-", stdin=json.dumps(manifest))
        path = f"/apis/{group}/v1alpha1/namespaces/{namespace}/{plural}/{name}/status"
        await sandbox.client.patch(path, {"status": status}, PatchKind.MERGE)


def _entry(node: str) -> dict[str, str]:
    return {"key": "kubernetes.io/hostname", "value": node}
