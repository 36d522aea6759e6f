"""The real metrics-server in a sandbox, behind the API server's aggregation: usage that a program measured.

    kwok's server, a path per node --scraped--> metrics-server (a pod, a process) --aggregated--> metrics.k8s.io

Simulated nodes are told apart from one another by the path that an annotation names, as metrics-server has it for
kubelets behind one address. Only nodes that were handed to `meter_nodes` are asked: addresses of the others are nobody's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from berthmaster.cluster.client import ApiError, PatchKind
from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.errors import SandboxError

NODE_METRICS = "/apis/metrics.k8s.io/v1beta1/nodes"
USAGE_ANNOTATION = "kwok.x-k8s.io/usage-cpu"
METERED_LABEL = "berthmaster.io/sandbox-metered"
# A rate takes two samples, which metrics-server takes at least ten seconds apart.
READY_DEADLINE_S = 90.0
_POLL_S = 0.5
_PATH_ANNOTATION = "metrics.k8s.io/resource-metrics-path"
_FLAGS = (
    '--kubeconfig="$KUBECONFIG"',
    '--authentication-kubeconfig="$KUBECONFIG"',
    '--authorization-kubeconfig="$KUBECONFIG"',
    '--bind-address="$BERTHMASTER_BIND_ADDRESS"',
    '--cert-dir="$TMPDIR"',
    "--secure-port=10250",
    f"--node-selector={METERED_LABEL}=yes",
    "--kubelet-preferred-address-types=InternalIP",
    "--kubelet-use-node-status-port",
    "--kubelet-insecure-tls",
    "--metric-resolution=10s",
    "--kubelet-request-timeout=5s",
)


@asynccontextmanager
async def serve_metrics(sandbox: Sandbox, program: Path) -> AsyncIterator[None]:
    """Run metrics-server while the block lasts; `metrics.k8s.io` answers when it begins.

    At least one node has to be metered by then. Raises SandboxError if it does not answer in time.
    """
    source = resources.files("berthmaster_sandbox") / "metrics_server.yaml"
    command = " ".join(["exec", str(program), *_FLAGS])
    manifests = source.read_text(encoding="utf-8").replace("[COMMAND]", f"['{command}']")
    await sandbox.kubectl("apply", "--filename=-", stdin=manifests)
    try:
        await _wait_served(sandbox)
        yield
    finally:
        await sandbox.kubectl("delete", "--wait=false", "--filename=-", stdin=manifests)


async def meter_nodes(sandbox: Sandbox, names: Iterable[str]) -> None:
    """Have metrics-server ask kwok's server for the usage of these simulated nodes."""
    metadata: dict[str, Any] = {"labels": {METERED_LABEL: "yes"}}
    status = {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": sandbox.slot.kwok_port}},
    }
    for name in names:
        path = f"/metrics/nodes/{name}/metrics/resource"
        # The label last: from then on the node is asked, at the address that it has.
        await sandbox.client.patch(
            f"/api/v1/nodes/{name}/status", {"status": status}, PatchKind.MERGE
        )
        annotated = {"metadata": {**metadata, "annotations": {_PATH_ANNOTATION: path}}}
        await sandbox.client.patch(f"/api/v1/nodes/{name}", annotated, PatchKind.MERGE)


async def _wait_served(sandbox: Sandbox) -> None:
    deadline = time.monotonic() + READY_DEADLINE_S
    while not await _is_served(sandbox):
        if time.monotonic() > deadline:
            raise SandboxError(
                f"metrics-server gives no NodeMetrics after {READY_DEADLINE_S:.0f} s"
            )
        await asyncio.sleep(_POLL_S)


async def _is_served(sandbox: Sandbox) -> bool:
    try:
        return bool((await sandbox.client.get(NODE_METRICS))["items"])
    except ApiError:
        return False
