"""The storm: fault after fault under load, and the independent count after each."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from berthmaster.cluster.errors import ClusterError
from berthmaster_sandbox.chaos.faults import FAULTS, Fault
from berthmaster_sandbox.chaos.load import Canaries, Load, Tally
from berthmaster_sandbox.chaos.plan import Plan
from berthmaster_sandbox.chaos.recount import (
    Kind,
    Obj,
    Violation,
    failed_creations,
    is_failure,
    key_of,
    new_ends,
    recount,
)
from berthmaster_sandbox.chaos.scene import NAMESPACES, Scene
from berthmaster_sandbox.errors import SandboxError

T = TypeVar("T")

PLACEMENT_DEADLINE_S = 180.0
SETTLE_DEADLINE_S = 150.0
LOOK_EVERY_S = 5.0
# What may pass and has not after this is wrong.
STAYS_S = 60.0


@dataclass(slots=True, kw_only=True)
class Outcome:
    """One fault and what came of it; times in seconds.

    `first_s` counts from the fault's beginning until a pod was placed that was created when the fault
    could be felt (`Fault.bites_after_s`, `bites_s`), None if none was. `slowest_s` is the slowest of the
    `creates` from the beginning until then, `settled_s` how long after the load was paused everything that
    waits said why. `excused` are creates that failed because the control plane itself was hit.
    """

    fault: str
    began_s: float
    lasted_s: float = 0.0
    first_s: float | None = None
    settled_s: float | None = None
    creates: int = 0
    slowest_s: float = 0.0
    excused: int = 0
    pods: int = 0
    waiting: int = 0
    violations: list[Violation] = field(default_factory=list)


class Storm:
    """One run. `report` is told each outcome as it comes, `say` what a count waits for."""

    def __init__(
        self,
        scene: Scene,
        report: Callable[[Outcome], None] = lambda _outcome: None,
        say: Callable[[str], None] = lambda _words: None,
    ) -> None:
        self._scene = scene
        # One source of chance for the order and the gaps, others for load and faults: none of them
        # depends on how fast another was.
        seed = scene.plan.seed
        self._rng = random.Random(f"order {seed}")  # noqa: S311 - no secret
        self._fault_rng = random.Random(f"faults {seed}")  # noqa: S311
        self.load = Load(scene, random.Random(f"load {seed}"))  # noqa: S311
        self.canaries = Canaries(scene)
        self.tally = Tally(scene)
        self.outcomes: list[Outcome] = []
        self._report = report
        self._say = say
        self._told: set[str] = set()
        self._turned_away: set[Violation] = set()
        self._complaints: set[str] = set()

    async def run(self) -> None:
        """Make all faults of the plan, in rounds, and count after each."""
        async with asyncio.TaskGroup() as group:
            await self.load.start()
            tasks = [
                group.create_task(work)
                for work in (self.load.run(), self.canaries.run(), self.tally.run())
            ]
            plan = self._scene.plan
            end_s = time.monotonic() + plan.duration_s
            for number in itertools.count():
                for kind in draw_order(plan, self._rng):
                    # Each is made once, however long that takes.
                    if number and time.monotonic() > end_s:
                        break
                    await self._make(kind)
                if time.monotonic() > end_s or self.tally.counts["created"] >= plan.pods:
                    break
            for task in tasks:
                task.cancel()

    async def _make(self, kind: type[Fault]) -> None:
        fault = kind(self._scene, self._fault_rng)
        await self._insist(fault.prepare)
        ends_before = await self._insist(self._scene.own_ends)
        self.canaries.resume()
        self.load.resume()
        await asyncio.sleep(self._rng.uniform(*self._scene.plan.gap_s))
        began_s = time.monotonic()
        outcome = Outcome(fault=kind.name, began_s=began_s)
        try:
            await fault.strike()
        except (ClusterError, SandboxError) as error:
            what = f"the fault was not made or not undone: {error}"
            outcome.violations.append(Violation(Kind.LOST, kind.name, what))
        outcome.lasted_s = time.monotonic() - began_s
        bites_s = began_s + fault.bites_after_s if fault.bites_s is None else fault.bites_s
        try:
            first = await self.canaries.first_placed(bites_s, deadline_s=PLACEMENT_DEADLINE_S)
        except TimeoutError:
            what = f"no pod was placed within {PLACEMENT_DEADLINE_S:.0f} s"
            outcome.violations.append(Violation(Kind.LOST, kind.name, what))
        else:
            outcome.first_s = (first.placed_s or began_s) - began_s
        self.canaries.pause()
        self.load.pause()
        await self._settle(outcome)
        await self._judge_creations(outcome, fault)
        if not fault.kills:
            outcome.violations += new_ends(ends_before, await self._insist(self._scene.own_ends))
        self.outcomes.append(outcome)
        self._report(outcome)

    async def _settle(self, outcome: Outcome) -> None:
        """Count until nothing is wrong, or only what was not a look ago; what stays is wrong."""
        began_s = time.monotonic()
        since: dict[Violation, float] = {}
        # What was past the line at one look is so for good.
        lasting: dict[Violation, None] = {}
        while True:
            found, outcome.pods, outcome.waiting = await self._count()
            now_s = time.monotonic()
            passing = {it for it in found if it.kind.may_pass}
            is_moving = not any(it in since for it in passing) and (since or not passing)
            since = {it: since.get(it, now_s) for it in passing}
            lasting |= {it: None for it in found if it not in passing}
            if is_moving or now_s - began_s > SETTLE_DEADLINE_S:
                break
            self._say(f"  {len(found)} are not settled, such as {found[0]}")
            await asyncio.sleep(LOOK_EVERY_S)
        outcome.settled_s = now_s - began_s
        # A pod that was turned away stays to be seen; it is told once.
        outcome.violations += [
            it for it in lasting if it.kind is not Kind.TURNED_AWAY or it not in self._turned_away
        ]
        self._turned_away.update(lasting)
        outcome.violations += [it for it, first_s in since.items() if now_s - first_s > STAYS_S]
        fresh = [it for it in self._scene.worlds.complaints() if it not in self._complaints]
        self._complaints.update(fresh)
        outcome.violations += [Violation(Kind.PAST_THE_LINE, "the world", it) for it in fresh]

    async def _count(self) -> tuple[list[Violation], int, int]:
        seen = await self._insist(self._scene.look)
        bound = sum(bool(it["spec"].get("nodeName")) for it in seen.pods)
        return recount(seen, self._scene.lines), len(seen.pods), len(seen.pods) - bound

    async def _insist(self, act: Callable[[], Awaitable[T]]) -> T:
        """Do it; an API server that is away is waited for."""
        while True:
            try:
                return await act()
            except ClusterError as error:
                self._say(f"  trying again: {error}")
                await asyncio.sleep(LOOK_EVERY_S)

    async def _judge_creations(self, outcome: Outcome, fault: Fault) -> None:
        """Hold every create since the fault began against us that nothing else explains."""
        created = self.canaries.between(outcome.began_s, time.monotonic())
        outcome.creates = len(created)
        outcome.slowest_s = max((it.took_s or 0.0 for it in created), default=0.0)
        for canary in created:
            if not canary.error:
                continue
            if is_failure(canary.error, fault.excuses):
                violation = Violation(Kind.FAILED_CREATION, canary.name, canary.error)
                outcome.violations.append(violation)
            else:
                outcome.excused += 1
        for namespace in NAMESPACES:
            events = await self._insist(partial(self._scene.failures, namespace))
            fresh = [it for it in events if self._is_new(it)]
            outcome.violations += failed_creations(fresh, fault.excuses)

    def _is_new(self, event: Obj) -> bool:
        """Return whether this telling of an Event has not been judged yet."""
        key = f"{key_of(event)} {event['metadata'].get('resourceVersion')}"
        is_new = key not in self._told
        self._told.add(key)
        return is_new


def draw_order(plan: Plan, rng: random.Random) -> Sequence[type[Fault]]:
    """Return the faults of the next round: those of the plan in its order, or all in a random one."""
    if plan.faults:
        return [FAULTS[name] for name in plan.faults]
    kinds = [FAULTS[name] for name in sorted(FAULTS)]
    rng.shuffle(kinds)
    return kinds
