"""Pods created at a steady rate while something changes, and what the API server says of its calls."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from berthmaster.api import names
from berthmaster.cluster.errors import ClusterError
from berthmaster_sandbox.cluster import Sandbox
from support.harbour import HOOK, create, make_pod

# More would only pile up where the API server is slower than they come.
AT_ONCE = 10


@dataclass
class Traffic:
    """What became of the pods; filled when the block is left.

    `gated` were created behind the gate, `refused` not at all. `failures` are the API server's lines
    about calls that failed and were passed over, `fail_open` is its count of them.
    """

    created: int = 0
    gated: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    fail_open: int = 0

    @property
    def slow(self) -> int:
        """Calls that took longer than the second they have: a busy machine, not a fault."""
        return sum("context deadline exceeded" in it for it in self.failures)

    @property
    def about_certificates(self) -> list[str]:
        """Return what failed because of TLS."""
        return [
            it for it in (*self.failures, *self.refused) if re.search(r"x509|tls:|certificate", it)
        ]


async def count_fail_open(sandbox: Sandbox) -> int:
    """Return how often the API server has passed over our webhook."""
    done = await sandbox.kubectl("get", "--raw", "/metrics")
    series = (
        rf'^apiserver_admission_webhook_fail_open_count{{.*name="{names.WEBHOOK_NAME}".*}} (.+)$'
    )
    return sum(int(float(it)) for it in re.findall(series, done.stdout, re.M))


async def webhook_path(sandbox: Sandbox) -> str:
    """Return the webhook's path, which changes with its leader."""
    client = (await sandbox.client.get(HOOK))["webhooks"][0]["clientConfig"]
    return str(client["service"].get("path", ""))


@asynccontextmanager
async def traffic(
    sandbox: Sandbox, namespace: str, *, node: str, per_second: float
) -> AsyncIterator[Traffic]:
    """Create pods for a node that holds many, fewer where the machine cannot follow."""
    seen, stop = Traffic(), asyncio.Event()
    slots = asyncio.Semaphore(AT_ONCE)
    log_path = sandbox.list_processes()["kube-apiserver"].log_path
    old_log, fail_open = _read(log_path), await count_fail_open(sandbox)

    async def create_one(index: int) -> None:
        try:
            pod = await create(sandbox, namespace, make_pod(f"p-{index}", on=node))
        except ClusterError as error:
            seen.refused.append(str(error))
            return
        finally:
            slots.release()
        seen.created += 1
        if pod["spec"].get("schedulingGates"):
            seen.gated.append(pod["metadata"]["name"])

    async def create_steadily() -> None:
        async with asyncio.TaskGroup() as tasks:
            index = 0
            while not stop.is_set():
                await slots.acquire()
                tasks.create_task(create_one(index))
                index += 1
                await asyncio.sleep(1 / per_second)

    creating = asyncio.create_task(create_steadily())
    try:
        yield seen
    finally:
        stop.set()
        await creating
    log = _read(log_path)[len(old_log) :]
    seen.failures = [it for it in log.splitlines() if "ailed calling webhook, failing open" in it]
    seen.fail_open = await count_fail_open(sandbox) - fail_open


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
