"""What the API server of paper does for benchmarks of the queue: gated pods, slots, and when they came free.

A slot is one of an extended resource that nodes offer and every gated pod asks. Holders take all of them, so
that nothing fits; each holder that ends frees one. A pod whose gate is taken off has been placed, and nothing
more happens to it.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

from benching import objects

Json = dict[str, Any]

SLOT = "bench.example/slot"
_HOLDERS = "team-0"


@dataclass(slots=True)
class Record:
    """Seconds of this process's monotonic clock: when slots came free, and when pods lost their gates."""

    freed_s: list[float] = field(default_factory=list)
    placed_s: list[float] = field(default_factory=list)
    # The number of each pod that was placed.
    placed: list[int] = field(default_factory=list)

    def note_change(self, before: Json, after: Json) -> None:
        """Take over a change of a pod."""
        if before["spec"].get("schedulingGates") and not after["spec"].get("schedulingGates"):
            self.placed_s.append(time.monotonic())
            self.placed.append(int(after["metadata"]["labels"]["number"]))


def gated_pod(number: int, shape: int, *, priority: int = 0) -> Json:
    """Return a stored pod that waits for a slot; pods of one shape ask for the same."""
    new = objects.NewPod(number, shape, 100 + shape)
    pod: Json = json.loads(new.review())["request"]["object"]
    meta = pod["metadata"]
    meta["name"] = f"waiting-{number:06}"
    meta["namespace"] = f"team-{shape % objects.NAMESPACES}"
    meta["uid"] = objects.stable_uid("waiting", number)
    meta["creationTimestamp"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(1.7e9 + number))
    meta.setdefault("labels", {})["number"] = str(number)
    pod["spec"]["priority"] = priority
    _ask_slot(pod["spec"])
    return pod


def holder(number: int, node: str) -> Json:
    """Return a running pod that holds a slot."""
    spec: Json = {"containers": [{"name": "main", "image": "holder"}], "nodeName": node}
    _ask_slot(spec)
    meta = {
        "name": f"holder-{number:06}",
        "namespace": _HOLDERS,
        "uid": objects.stable_uid("holder", number),
    }
    return {"metadata": meta, "spec": spec, "status": {"phase": "Running"}}


def holder_key(number: int) -> str:
    """Return the key under which a holder is stored."""
    return f"{_HOLDERS}/holder-{number:06}"


def offer_slots(node: Json, slots: int) -> Json:
    """Return the node with so many slots."""
    amounts = {**node["status"]["allocatable"], SLOT: str(slots)}
    return {**node, "status": {**node["status"], "capacity": amounts, "allocatable": amounts}}


async def pace(count: int, every_s: float) -> Any:
    """Yield numbers, one in so many seconds; a delay is made up for."""
    began_s = time.monotonic()
    for index in range(count):
        due_s = began_s + index * every_s
        if due_s > time.monotonic():
            await asyncio.sleep(due_s - time.monotonic())
        yield index


def _ask_slot(spec: Json) -> None:
    resources = spec["containers"][0].setdefault("resources", {})
    for kind in ("requests", "limits"):
        resources.setdefault(kind, {})[SLOT] = "1"
