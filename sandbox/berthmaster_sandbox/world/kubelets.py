"""What every simulated kubelet writes: its Node with its resources, and what it says of pods.

A pod that was admitted gets the condition with which kwok lets it run (kwok_stages.yaml), one that was
turned away becomes Failed and never runs. What cannot be written is tried again, without end.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from berthmaster.cluster.backoffs import Backoff
from berthmaster.cluster.client import ApiError, Client, ClusterError, PatchKind
from berthmaster_sandbox.world.living import Work
from berthmaster_sandbox.world.numa_pods import PodView
from berthmaster_sandbox.world.numa_verdicts import Admitted, Verdict

logger = logging.getLogger(__name__)

NODES = "/api/v1/nodes"
WRITERS = 8
# Of nodes whose pods kwok leaves to kubelets of ours until these have admitted them.
PREFIXES = ("numa-", "xpu-")


def check_name(node: str) -> None:
    """Raise ValueError for a name of a node whose pods kwok would start by itself."""
    if not node.startswith(PREFIXES):
        expected = " or ".join(f"{it}..." for it in PREFIXES)
        raise ValueError(f"node {node} must be called {expected}: see kwok_stages.yaml")


async def make_node(
    client: Client,
    manifest: dict[str, Any],
    capacity: Mapping[str, int | str],
    allocatable: Mapping[str, int | str],
) -> dict[str, Any]:
    """Create a Node, or set an existing one's resources, and return an owner reference to it.

    Raises ClusterError.
    """
    name = manifest["metadata"]["name"]
    status = {
        "capacity": {key: str(amount) for key, amount in capacity.items()},
        "allocatable": {key: str(amount) for key, amount in allocatable.items()},
    }
    try:
        node = await client.create(NODES, {**manifest, "status": status})
    except ApiError as error:
        if not error.is_already_exists:
            raise
        path = f"{NODES}/{name}/status"
        node = await client.patch(path, {"status": status}, PatchKind.MERGE)
    return {"apiVersion": "v1", "kind": "Node", "name": name, "uid": node["metadata"]["uid"]}


class VerdictWriter:
    """Verdicts on their way to the API server."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._outbox: asyncio.Queue[_Letter] = asyncio.Queue()

    def post(self, pod: PodView, verdict: Verdict) -> None:
        """Have a verdict written soon."""
        self._outbox.put_nowait(_Letter(pod, verdict))

    async def written(self) -> None:
        """Wait until everything that was posted is written."""
        await self._outbox.join()

    def work(self) -> Iterable[Work]:
        """Return what writes, to be run by the world."""
        return (self._write_all() for _ in range(WRITERS))

    async def _write_all(self) -> None:
        while True:
            letter = await self._outbox.get()
            try:
                await insist(partial(self._write, letter), letter.pod.key)
            finally:
                self._outbox.task_done()

    async def _write(self, letter: _Letter) -> None:
        pod = letter.pod
        path = f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}/status"
        # The uid makes the API server refuse a pod that was made anew under the name.
        body = {"metadata": {"uid": pod.uid}, "status": _status_of(letter.verdict)}
        try:
            await self._client.patch(path, body, PatchKind.STRATEGIC)
        except ApiError as error:
            if not error.is_not_found and not error.is_conflict:
                raise


@dataclass(frozen=True, slots=True)
class _Letter:
    """A verdict on its way to the API server."""

    pod: PodView
    verdict: Verdict


def _status_of(verdict: Verdict) -> dict[str, Any]:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if isinstance(verdict, Admitted):
        condition = {
            "type": "PodReadyToStartContainers",
            "status": "True",
            "lastTransitionTime": now,
        }
        return {"conditions": [condition]}
    return {
        "phase": "Failed",
        "reason": verdict.reason,
        "message": f"Pod was rejected: {verdict.message}",
        "startTime": now,
    }


async def insist(work: Callable[[], Awaitable[None]], what: str) -> None:
    """Do it, again and again if need be."""
    backoff = Backoff(first_s=0.1, cap_s=5.0)
    while True:
        try:
            await work()
        except ClusterError as error:
            logger.warning("cannot write", extra={"object": what, "error": str(error)})
            await asyncio.sleep(backoff.next_s())
        else:
            return
