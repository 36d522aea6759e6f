"""Our verdict on every pod and node against that of the stock kube-scheduler, on random clusters.

Each pod is asked about pinned, node by node, and once unpinned. The scheduler decides for real and its
decision is refused (see `support.judging`), so all pods of a world are judged on the same cluster,
and our engine is filled by the lists that `kubectl berth` makes.

    python -m pytest tests/differential
    DIFFERENTIAL_SEEDS=1-10 DIFFERENTIAL_PODS=60 python -m pytest tests/differential -s      at night
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import Coroutine, Iterator, Sequence
from copy import deepcopy
from typing import Any, TypeVar

import jsonpatch
import pytest

from berthmaster.api.objects import Pod, pod_from_manifest
from berthmaster.api.policy import PlacementPolicySpec
from berthmaster.cluster.snapshot import load_engine
from berthmaster.concerns.resources import CONCERN
from berthmaster.placement import affinity
from berthmaster.placement.engine import Engine, Verdict
from berthmaster_sandbox.cluster import Sandbox
from support.judging import Judge, Outcome, judging
from support.raising import raised
from support.random_worlds import RandomWorld

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]

Manifest = dict[str, Any]
PODS = int(os.environ.get("DIFFERENTIAL_PODS", "40"))
NODES_ASKED = 6
ASKED_TOGETHER = 16

T = TypeVar("T")


def seeds() -> list[int]:
    first, _, last = os.environ.get("DIFFERENTIAL_SEEDS", "1").partition("-")
    return list(range(int(first), int(last or first) + 1))


class Report:
    """What was asked and where we differ."""

    def __init__(self) -> None:
        self.pairs = 0
        self.accepted = 0
        self.unpinned = 0
        self.refusals: Counter[str] = Counter()
        self.words: Counter[str] = Counter()
        self.differences: list[str] = []

    def note(self, seed: int, pod: Manifest, node: str, ours: str, theirs: str) -> None:
        self.differences.append(
            f"seed {seed}, node {node or 'any'}\n  ours:   {ours}\n  theirs: {theirs}\n"
            f"  pod: {json.dumps({'metadata': pod['metadata'], 'spec': pod['spec']})}"
        )

    def __str__(self) -> str:
        reasons = "\n".join(f"  {count:5} {text}" for text, count in self.refusals.most_common())
        words = "\n".join(f"  {count:5} {text}" for text, count in self.words.most_common())
        return (
            f"{self.pairs} pairs, {self.accepted} of them accepted, {self.unpinned} unpinned pods, "
            f"{len(self.differences)} differences; refused for\n{reasons}\n"
            f"other words:\n{words}"
        )


async def test_every_verdict_is_kube_schedulers() -> None:
    report = Report()
    async with Sandbox.start(process_nodes=0) as sandbox, judging(sandbox) as judge:
        for seed in seeds():
            world = RandomWorld(seed)
            async with raised(sandbox.client, world):
                snapshot = await load_engine(sandbox.client, concerns=[CONCERN])
                await compare(world, seed, judge, snapshot.engine, report)
    print(f"\n{report}")
    assert not report.differences, f"{report}\n\n" + "\n\n".join(report.differences)
    # A world without refusals of all kinds, or without acceptances, would prove little.
    assert report.accepted > report.pairs / 4
    assert len(report.refusals) >= 14


async def compare(
    world: RandomWorld, seed: int, judge: Judge, engine: Engine, report: Report
) -> None:
    """Ask about all pods: those that we refuse beside one another, the others one by one.

    A pod that the scheduler accepts is among the pods of its node until its binding is refused; one
    that it refuses never is. So as long as we agree on the refused ones they do not meet.
    """
    refused: list[Coroutine[Any, Any, None]] = []
    accepted: list[Coroutine[Any, Any, None]] = []
    for index in range(PODS):
        manifest = world.judged(f"judged-{index}")
        for node in ["", *world.random.sample(world.names, NODES_ASKED)]:
            pod = deepcopy(manifest)
            pod["metadata"]["name"] += f"-{node}" if node else ""
            if node:
                jsonpatch.apply_patch(pod, affinity.pin_at_creation(pod, node), in_place=True)
            expected = verdicts(engine, pod_from_manifest(pod)).values()
            fits = any(verdict.reason is None for verdict in expected)
            asked = compare_one(seed, judge, engine, pod, node, report)
            (accepted if fits else refused).append(asked)
    for some in batched(refused, ASKED_TOGETHER):
        await asyncio.gather(*some)
    for one in accepted:
        await one


async def compare_one(
    seed: int, judge: Judge, engine: Engine, manifest: Manifest, node: str, report: Report
) -> None:
    pod, theirs = await judge.ask(manifest)
    ours = verdicts(engine, pod)
    if node:
        compare_pinned(seed, manifest, node, theirs, ours[node], report)
    else:
        compare_unpinned(seed, manifest, theirs, ours, report)


def batched(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def verdicts(engine: Engine, pod: Pod) -> dict[str, Verdict]:
    request = engine.read_request(pod, PlacementPolicySpec(), is_strict=False)
    return {it.node: it for it in engine.verdicts(request)}


def compare_pinned(
    seed: int, pod: Manifest, node: str, theirs: Outcome, ours: Verdict, report: Report
) -> None:
    report.pairs += 1
    report.accepted += theirs.is_accepted
    if ours.reason is not None:
        report.refusals[ours.reason.group] += 1
    if ours.reason is not None and ours.reason.group.removesuffix("(s)") not in theirs.message:
        report.words[f"{ours.reason.group}  BUT  {theirs.message}"] += 1
    if theirs.is_accepted != (ours.reason is None) or theirs.node not in ("", node):
        said = ours.reason.text if ours.reason is not None else "accepted"
        report.note(seed, pod, node, said, theirs.message)


def compare_unpinned(
    seed: int, pod: Manifest, theirs: Outcome, ours: dict[str, Verdict], report: Report
) -> None:
    report.unpinned += 1
    fitting = [node for node, verdict in ours.items() if verdict.reason is None]
    agrees = theirs.is_accepted == bool(fitting)
    if not agrees or (theirs.node and theirs.node not in fitting):
        why = {node: verdict.reason.text for node, verdict in ours.items() if verdict.reason}
        report.note(seed, pod, "", f"fits {fitting}, not {why}", theirs.message)
