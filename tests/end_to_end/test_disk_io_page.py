"""Every manifest of docs/disk-io.md is what the API server, kustomize and Berthmaster accept."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from berthmaster.concerns.diskio.models import read_list
from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.demo.stage import disk
from berthmaster_sandbox.installing import PROJECT
from berthmaster_sandbox.world.diskio import DiskWorld
from support.harbour import apply_models, create, new_namespace, until_bound, until_reason

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(240),
]

NAMESPACE = "disk-io-page"
NODE = "page-1"
MIB = 2**20
ASKED = '{"rbps": "900Mi", "wbps": "400Mi", "blocksize": "4k"}'
FLAT = {
    "flat": ASKED,
    "typed": ASKED,
    "by-volume": '{"rbps": "50Mi", "wbps": "25Mi", "blocksize": "8k"}',
}
# The expression of Acme X1: 32k by the block size for reading, 4 for writing.
NORMALISED = {
    "flat": (7200 * MIB, 1600 * MIB),
    "typed": (7200 * MIB, 1600 * MIB),
    "by-volume": (200 * MIB, 100 * MIB),
}
TEXT = (PROJECT / "docs" / "disk-io.md").read_text(encoding="utf-8")
MANIFESTS: list[dict[str, Any]] = [
    yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
]


def of_kind(kind: str) -> list[dict[str, Any]]:
    found = [manifest for manifest in MANIFESTS if manifest["kind"] == kind]
    assert found, f"the page has no {kind}"
    return found


async def test_api_server_accepts_each(harbour: Sandbox) -> None:
    # The configuration of the old scheduler is a file, and so is a kustomization.
    files = ("KubeSchedulerConfiguration", "Kustomization")
    stored = [manifest for manifest in MANIFESTS if manifest["kind"] not in files]

    text = yaml.safe_dump_all(stored)
    await harbour.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", stdin=text)


async def test_models_are_understood_and_the_old_ones_say_what_to_put(harbour: Sandbox) -> None:
    old, new = (read_list(manifest["data"]) for manifest in of_kind("ConfigMap"))

    assert "a shared object is code" in old.problems[0]
    assert new.problems == ()
    assert [entry.key for entry in new.entries] == [
        "Intel-P4510", "Acme-X1", "Acme-X2", "Acme-*", "*-*",
    ]  # fmt: skip


async def test_models_and_pods_lead_to_placements(harbour: Sandbox) -> None:
    await new_namespace(harbour, NAMESPACE)
    await apply_models(harbour, of_kind("ConfigMap")[1]["data"]["diskVendors"])
    await harbour.create_nodes(1, name=NODE)
    async with DiskWorld(harbour.client) as world:
        await world.add_node(NODE, devices={"d": disk(20_000, 20_000, 40_000, key="Acme-X1")})
        await until_reason(harbour, NODE, "Reported")

        for pod in of_kind("Pod"):
            pod["spec"]["nodeSelector"] = {"kubernetes.io/hostname": NODE}
            name = pod["metadata"]["name"]
            await create(harbour, NAMESPACE, pod)
            assert await until_bound(harbour, NAMESPACE, name) == NODE
            stored = await harbour.client.get(f"/api/v1/namespaces/{NAMESPACE}/pods/{name}")
            annotations = stored["metadata"]["annotations"]
            allocated = json.loads(annotations["berthmaster.io/allocation"])["allocated"]["diskio"]
            assert annotations["blockio.kubernetes.io/resources"] == FLAT[name]
            assert (allocated["read"], allocated["write"]) == NORMALISED[name]
    await apply_models(harbour)


async def test_kustomization_gives_the_operator_its_arguments(
    harbour: Sandbox, tmp_path: Path
) -> None:
    (text,) = (yaml.safe_dump(manifest) for manifest in of_kind("Kustomization"))
    (tmp_path / "berthmaster").symlink_to(PROJECT)
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    (overlay / "kustomization.yaml").write_text(text)

    built = await harbour.kubectl("kustomize", str(overlay))

    (operator,) = (
        it
        for it in yaml.safe_load_all(built.stdout)
        if (it["kind"], it["metadata"]["name"]) == ("Deployment", "berthmaster-operator")
    )
    spec = operator["spec"]["template"]["spec"]
    assert "--model-origins=https://models.example.com" in spec["containers"][0]["args"]
    assert [it["name"] for it in spec["containers"][0]["volumeMounts"]] == ["model-ca", "tmp"]
    assert [it["name"] for it in spec["volumes"]] == ["model-ca", "tmp"]
