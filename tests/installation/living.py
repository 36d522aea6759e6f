"""What the tests of an installation's life share: kinds of others, leftovers, pods and their fate."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from berthmaster.api import names
from berthmaster.cluster.errors import ApiError
from berthmaster_sandbox.cluster import Sandbox
from support.harbour import SYSTEM, make_pod, program_pods, until

NEXT_IMAGE = "berthmaster:0.1.1"
NODE = "ship"
# kubectl reads the schema of every kind, which a busy machine takes its time for.
PATIENCE_S = 400.0
NOWHERE = {"kubernetes.io/hostname": "nowhere"}

Manifest = dict[str, Any]


async def define_kind(sandbox: Sandbox, group: str, version: str, kind: str, plural: str) -> None:
    """Make a kind of somebody else's known, with any content."""
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural, "singular": kind.lower()},
            "versions": [
                {
                    "name": version,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }
    await sandbox.kubectl("apply", "-f", "-", stdin=json.dumps(definition))
    await sandbox.kubectl("wait", "--for=condition=Established", f"crd/{plural}.{group}")


async def berth(sandbox: Sandbox, *arguments: str) -> str:
    """Run `kubectl berth` as a program; return what it said."""
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("kubectl-berth")),
        *arguments,
        env={**os.environ, "KUBECONFIG": str(sandbox.kubeconfig)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    return said.decode()


async def leftovers(sandbox: Sandbox) -> list[str]:
    """Return every object of the cluster that has our name, or a key of ours in its metadata."""
    listed = await sandbox.kubectl("api-resources", "--verbs=list", "-o", "name")
    kinds = [it for it in listed.stdout.split() if not it.startswith("events")]
    found = json.loads((await sandbox.kubectl("get", ",".join(kinds), "-A", "-o", "json")).stdout)
    return sorted({_describe(it) for it in found["items"] if _is_ours(it)})


def _is_ours(obj: Manifest) -> bool:
    metadata = obj["metadata"]
    keys = (
        *metadata.get("labels", {}),
        *metadata.get("annotations", {}),
        *metadata.get("finalizers", ()),
        *(it["type"] for it in obj.get("status", {}).get("conditions", ()) if "type" in it),
        *(it["name"] for it in obj.get("spec", {}).get("schedulingGates", ())),
    )
    if obj["kind"] == "Node":
        # The sandbox's own mark.
        keys = tuple(it for it in keys if not it.startswith("berthmaster.io/sandbox"))
    return "berthmaster" in metadata["name"] or any(names.GROUP in it for it in keys)


def _describe(obj: Manifest) -> str:
    metadata = obj["metadata"]
    return f"{obj['kind']} {metadata.get('namespace', '')}/{metadata['name']}"


async def try_pod(sandbox: Sandbox, namespace: str, pod: Manifest) -> Manifest:
    """Return what would be stored."""
    return await sandbox.client.create(
        f"/api/v1/namespaces/{namespace}/pods", pod, {"dryRun": "All"}
    )


async def is_refused(sandbox: Sandbox, namespace: str, pod: Manifest) -> bool:
    try:
        await try_pod(sandbox, namespace, pod)
    except ApiError as error:
        return "failed calling webhook" in error.message
    return False


async def until_decided(sandbox: Sandbox, namespace: str) -> None:
    """Wait until a pod that asks is decided while it is created."""

    async def attempt() -> bool:
        try:
            stored = await try_pod(sandbox, namespace, make_pod("probe", on=NODE))
        except ApiError:
            return False
        return names.ALLOCATION in stored["metadata"].get("annotations", {})

    await until(attempt, bool, 90)


async def until_ready(sandbox: Sandbox, name: str, count: int) -> list[Manifest]:
    """Wait until a program has exactly so many pods, all Ready; return them."""

    def are_ready(pods: list[Manifest]) -> bool:
        ready = [
            it
            for it in pods
            if not it["metadata"].get("deletionTimestamp")
            and any(
                condition["type"] == "Ready" and condition["status"] == "True"
                for condition in it["status"].get("conditions", ())
            )
        ]
        return len(ready) == len(pods) == count

    found: list[Manifest] = await until(lambda: program_pods(sandbox, name), are_ready, 90)
    return found


async def leader(sandbox: Sandbox) -> str:
    """Return the node of the webhook that leads, empty while none does."""
    for pod in await program_pods(sandbox, "berthmaster-webhook"):
        if pod["metadata"]["labels"].get(names.ROLE_LABEL) == names.ROLE_LEADER:
            return str(pod["spec"].get("nodeName", ""))
    return ""


async def secret_names(sandbox: Sandbox) -> set[str]:
    found = await sandbox.client.get(f"/api/v1/namespaces/{SYSTEM}/secrets")
    return {it["metadata"]["name"] for it in found["items"]}


async def apply(sandbox: Sandbox, folder: Path, *options: str) -> str:
    """Apply an overlay; return what kubectl said."""
    command = ("apply", *options, "-k", str(folder))
    return (await sandbox.kubectl(*command, timeout_s=PATIENCE_S)).stdout


async def uninstall(sandbox: Sandbox, folder: Path) -> None:
    """Take everything away that an overlay has applied."""
    await sandbox.kubectl("delete", "--ignore-not-found", "-k", str(folder), timeout_s=PATIENCE_S)
