"""Create pods as quickly as so many hands can, and note when each is bound; a process of its own.

It prints one line of JSON: the seconds from the first create to the last pod bound, and each pod's
milliseconds from its create to the sight of its node.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from berthmaster.cluster.client import Client
from berthmaster.cluster.informers import EventKind, Informer

DEADLINE_S = 600.0


class _Meta(msgspec.Struct, rename="camel"):
    name: str = ""
    resource_version: str = ""


class _Spec(msgspec.Struct, rename="camel"):
    node_name: str = ""


class _Pod(msgspec.Struct):
    metadata: _Meta
    spec: _Spec


async def create(
    kubeconfig: str, namespace: str, pods: Sequence[dict[str, Any]], count: int, hands: int
) -> Any:
    """Create so many, copies of the pods in turn, and return what is printed."""
    path = f"/api/v1/namespaces/{namespace}/pods"
    created_s: dict[str, float] = {}
    bound_s: dict[str, float] = {}
    finished = asyncio.Event()

    def see(kind: EventKind, seen: _Pod) -> None:
        name = seen.metadata.name
        if seen.spec.node_name and name in created_s and name not in bound_s:
            bound_s[name] = time.monotonic()
            if len(bound_s) == count:
                finished.set()

    numbers = iter(range(count))

    async def hand(client: Client) -> None:
        for number in numbers:
            name = f"p{number:05d}"
            created_s[name] = time.monotonic()
            pod = pods[number % len(pods)]
            body = {**pod, "metadata": {**pod["metadata"], "name": name}}
            await client.create(path, body, timeout_s=60)

    async with await Client.connect(kubeconfig) as client:
        informer = Informer(
            client,
            path,
            decode=msgspec.json.Decoder(_Pod).decode,
            key=lambda it: it.metadata.name,
            version=lambda it: it.metadata.resource_version,
            on_event=see,
        )
        watching = asyncio.create_task(informer.run())
        await informer.synced.wait()
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.gather(*(hand(client) for _ in range(hands)))
            stored_s = time.monotonic()
            await finished.wait()
        watching.cancel()
        await asyncio.wait([watching])
    began_s = min(created_s.values())
    return {
        "seconds": max(bound_s.values()) - began_s,
        "createSeconds": stored_s - began_s,
        "latencies": [(bound_s[name] - at_s) * 1000 for name, at_s in created_s.items()],
    }


def main() -> None:
    """Create the pods of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kubeconfig", required=True)
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--pods", type=json.loads, required=True, help="a list, as JSON")
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--hands", type=int, default=32)
    given = parser.parse_args()
    done = create(given.kubeconfig, given.namespace, given.pods, given.count, given.hands)
    print(json.dumps(asyncio.run(done)))


if __name__ == "__main__":
    main()
