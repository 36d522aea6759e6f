"""The webhook's leader goes: how long until pods are placed again, and what creates feel of it.

    python bench/failover.py                         three replicas, waits as delivered, for some minutes
    python bench/failover.py --takeover-wait 5       what `kubectl berth doctor` may say is enough

A sandbox with Berthmaster and the component `ha` runs throughout, under a steady stream of pods that opted in,
beside as many plain ones. Per round and fault the leader is taken away:

    delete   its pod is deleted: it hands over what it has promised
    kill     SIGKILL: its successor waits for the Lease and for answers that may still be stored
    stop     SIGSTOP beyond the Lease, and SIGCONT once another one places: what it finds then it must leave alone

*Until placed* is the time from the fault to the first pod that the successor has placed, as a watch shows it.
*Slowest create* is over that time; plain pods never reach us, so what theirs take is the machine's doing. *Twice
over* counts pods whose decision both replicas have logged after the fault; of the two that end nobody is left to log.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benching import figures, outages
from benching.outages import Leader, decided_by, find_leader, stream, take_away
from berthmaster.api import names
from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.installing import IMAGES, install

FAULTS = ("delete", "kill", "stop")
NODE = "ship"
NAMESPACE = "failover"
DEADLINE_S = 200.0
POD: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"annotations": {names.PLACEMENT: "required"}},
    "spec": {
        "containers": [{"name": "c", "image": "registry.k8s.io/pause:3.10"}],
        "nodeSelector": {"kubernetes.io/hostname": NODE},
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """The figures of one fault; seconds."""

    until_placed_s: float
    slowest_s: float
    slowest_plain_s: float
    gated: int
    failed: int
    twice: int


async def leads(sandbox: Sandbox, *, instead_of: str = "") -> Leader:
    """Wait until somebody else than this one leads."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            leader = await find_leader(sandbox)
            if leader is not None and leader.identity != instead_of:
                return leader
            await asyncio.sleep(0.1)


async def play(sandbox: Sandbox, fault: str, prefix: str, per_second: float) -> Round:
    """Take the leader away under the stream, until another one places and all pods are placed."""
    before = await leads(sandbox)
    async with stream(sandbox, NAMESPACE, POD, per_second=per_second, prefix=prefix) as seen:
        await outages.until(lambda: len(seen.placed_s) > 20, DEADLINE_S)
        old = set(decided_by(sandbox, before))
        at_s = await take_away(sandbox, before, fault)
        after = await leads(sandbox, instead_of=before.identity)
        await outages.until(lambda: _has_placed(sandbox, after, seen, at_s), DEADLINE_S)
        if fault == "stop":
            os.kill(before.pid, signal.SIGCONT)
        # A moment for what an old leader would still do.
        woken_s = time.monotonic()
        await outages.until(
            lambda: sum(it > woken_s for it in seen.placed_s.values()) > 20, DEADLINE_S
        )
    now_decided = decided_by(sandbox, after)
    again_s = seen.first_s(now_decided)
    late = set(decided_by(sandbox, before)) - old if fault == "stop" else set()
    return Round(
        until_placed_s=again_s - at_s,
        slowest_s=seen.slowest_s(at_s, again_s),
        slowest_plain_s=seen.slowest_s(at_s, again_s, plain=True),
        gated=len(seen.gated),
        failed=len(seen.failed),
        twice=len(late & set(now_decided)),
    )


def _has_placed(sandbox: Sandbox, leader: Leader, seen: outages.Stream, at_s: float) -> bool:
    return at_s < seen.first_s(decided_by(sandbox, leader)) < float("inf")


async def run(given: argparse.Namespace) -> dict[str, list[Round]]:
    """Play all rounds; return them by fault."""
    rounds: dict[str, list[Round]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        overlay = outages.write_overlay(
            Path(folder) / "overlay",
            replicas=given.replicas,
            takeover_wait_s=given.takeover_wait,
        )
        async with Sandbox.start(process_nodes=3, images=IMAGES) as sandbox:
            await sandbox.create_nodes(1, name=NODE, cpu="1000", pods=100_000)
            await install(sandbox, config=overlay)
            await sandbox.kubectl("create", "namespace", NAMESPACE)
            for number in range(given.rounds):
                for fault in given.faults:
                    await outages.until_replicas(sandbox, given.replicas)
                    played = await play(sandbox, fault, f"{fault}-{number}-", given.rate)
                    rounds[fault].append(played)
    return rounds


def main() -> None:
    """Print a row per fault."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--takeover-wait", type=float, default=65.0, help="seconds")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=5.0, help="pods per second, of each kind")
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=FAULTS)
    given = parser.parse_args()
    rows = [
        (
            fault,
            len(rounds),
            figures.spread([it.until_placed_s for it in rounds], 2),
            figures.spread([it.slowest_s for it in rounds], 2),
            figures.spread([it.slowest_plain_s for it in rounds], 2),
            sum(it.gated for it in rounds),
            sum(it.failed for it in rounds),
            sum(it.twice for it in rounds) if fault == "stop" else "-",
        )
        for fault, rounds in asyncio.run(run(given)).items()
    ]
    header = (
        *("fault", "rounds", "until placed s", "slowest create s", "slowest plain create s"),
        *("gated", "failed", "twice over"),
    )
    title = f"Leader gone, {given.replicas} replicas, takeoverWait {given.takeover_wait:g} s"
    figures.report(title, figures.table(header, rows))


if __name__ == "__main__":
    main()
