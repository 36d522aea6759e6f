"""Installing Berthmaster into a sandbox as its users do: `kubectl apply -k`.

Owns the images that config/ names, as programs of this Python, and the wait until everything that
was applied acts: policies and bindings take the API server a few seconds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from berthmaster.api import names
from berthmaster.cluster.client import Client
from berthmaster.cluster.errors import ApiError, ClusterError
from berthmaster_sandbox.cluster import IMAGES as SANDBOX_IMAGES
from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.errors import SandboxError

# The repository that this file is a part of: config/ and crds/ are not in the wheel.
PROJECT = Path(__file__).resolve().parents[2]
CONFIG = PROJECT / "config" / "overlays" / "sandbox"
IMAGE = "berthmaster:0.1.0"
IMAGES: Mapping[str, tuple[str, ...]] = {**SANDBOX_IMAGES, IMAGE: ("berthmaster-webhook",)}

READY_DEADLINE_S = 90.0
_POLL_S = 0.1
_WEBHOOKS = (
    "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/"
    f"{names.WEBHOOK_CONFIGURATION}"
)


async def install(sandbox: Sandbox, *, config: Path = CONFIG) -> float:
    """Apply the configuration and wait until pods are placed; return the seconds it took.

    Raises SandboxError when something was refused or did not become ready in `READY_DEADLINE_S`.
    """
    started = time.monotonic()
    await sandbox.kubectl("apply", "-k", str(config))
    await wait_installed(sandbox)
    return time.monotonic() - started


async def install_kinds(sandbox: Sandbox, *paths: Path) -> None:
    """Install the CustomResourceDefinitions in files; return when objects of each can be listed."""
    files = [f"--filename={it}" for it in paths]
    await sandbox.kubectl("apply", *files)
    await sandbox.kubectl("wait", "--for=condition=Established", *files)
    for path in paths:
        for definition in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            spec = definition["spec"]
            for version in (it["name"] for it in spec["versions"] if it["served"]):
                url = f"/apis/{spec['group']}/{version}/{spec['names']['plural']}"
                await _until(partial(is_listed, sandbox.client, url), f"{url} is not served")


async def is_listed(client: Client, path: str) -> bool:
    """Return whether the API server lists the objects of a kind."""
    try:
        await client.get(path, {"limit": 1})
    except ApiError:
        # An established kind has no path yet, or its storage is still being made.
        return False
    return True


async def wait_installed(sandbox: Sandbox) -> None:
    """Return when certificates, leader and admission policies are in force."""
    await _until(lambda: _is_webhook_complete(sandbox), "the webhook has no certificate or leader")
    await _until(lambda: _is_gate_open(sandbox), "annotated pods are not placed")


async def _until(check: Callable[[], Awaitable[bool]], complaint: str) -> None:
    deadline = time.monotonic() + READY_DEADLINE_S
    while True:
        try:
            if await check():
                return
            because = complaint
        except ClusterError as error:
            # Refused for the moment, or the API server is busy.
            because = f"{complaint}: {error}"
        if time.monotonic() > deadline:
            raise SandboxError(f"not installed after {READY_DEADLINE_S:.0f} s: {because}")
        await asyncio.sleep(_POLL_S)


async def _is_webhook_complete(sandbox: Sandbox) -> bool:
    configuration = await sandbox.client.get(_WEBHOOKS)
    client: dict[str, Any] = configuration["webhooks"][0]["clientConfig"]
    path = client["service"].get("path", "")
    return bool(client.get("caBundle")) and path.startswith(f"{names.WEBHOOK_PATH}/")


async def _is_gate_open(sandbox: Sandbox) -> bool:
    """Return whether a pod that opts in would be decided; a dry run, so nothing is created."""
    probe = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "probe-", "annotations": {names.PLACEMENT: "required"}},
        # There may be no other nodes yet than the tainted ones.
        "spec": {
            "containers": [{"name": "c", "image": "pause"}],
            "tolerations": [{"operator": "Exists"}],
        },
    }
    # Refused at first: the service account controller may not have been to the namespace yet.
    pod = await sandbox.client.create("/api/v1/namespaces/default/pods", probe, {"dryRun": "All"})
    return names.ALLOCATION in pod["metadata"].get("annotations", {})
