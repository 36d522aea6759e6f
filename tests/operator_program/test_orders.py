"""Events in any order, late, doubled, with failures: the end is what a fresh start would make of it."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from berthmaster.api.inventory import Bandwidth
from berthmaster.api.quantities import parse_size
from berthmaster.cluster.errors import ClusterError, OutcomeUnknownError
from operator_program.worlds import DEVICE, INVENTORY, STATS, World, make_device, make_pod

PER_POD = 10
UIDS = ("a", "b", "c", "d")
ACTIONS = (
    "add",
    "finish",
    "delete",
    "tell pod",
    "look",
    "report",
    "show",
    "show old",
    "work",
    "work and fail",
    "restart",
    "wait",
)


class Chaos:
    """A driver that looks, answers what it saw, and an operator that hears of things late."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)  # noqa: S311
        self.world = World()
        self.world.store.put(DEVICE, make_device())
        self.world.start()
        self.seen: dict[str, object] | None = None
        self.untold: set[str] = set()
        self.history: list[dict[str, object]] = []
        # What the driver said for which list: the only pairs that an inventory may hold.
        self.said: set[tuple[int, tuple[str, ...]]] = set()

    async def act(self, action: str, uid: str) -> None:
        world = self.world
        if action == "add":
            world.pods.setdefault(uid, make_pod(uid))
            self.untold.add(uid)
        elif action == "finish" and uid in world.pods:
            world.pods[uid] = make_pod(uid, status={"phase": "Succeeded"})
            self.untold.add(uid)
        elif action == "delete":
            world.pods.pop(uid, None)
            self.untold.add(uid)
        elif action == "tell pod" and uid in self.untold:
            self.untold.discard(uid)
            world.show_pod(uid)
        elif action == "restart":
            self.untold.clear()
            world.start()
        elif action == "wait":
            world.now_s += self.rng.choice([0.1, 2, 10])
        elif action.startswith("work"):
            if action == "work and fail":
                world.store.fail_next = [OutcomeUnknownError("lost")]
            with contextlib.suppress(ClusterError):
                await world.step()
            world.store.fail_next = []
            self.check()
        else:
            self.drive(action)

    def drive(self, action: str) -> None:
        stats = self.world.store.objects.get(STATS)
        if stats is None:
            return
        self.history.append(copy.deepcopy(stats))
        if action == "look":
            self.seen = copy.deepcopy(stats)
        elif action == "report" and self.seen is not None:
            self.report()
        elif action == "show":
            self.world.show(STATS)
        elif action == "show old":
            self.world.show(STATS, self.rng.choice(self.history))

    def report(self) -> None:
        seen = self.seen
        assert seen is not None
        spec, metadata = seen["spec"], seen["metadata"]
        assert isinstance(spec, dict) and isinstance(metadata, dict)  # noqa: PT018
        pods = tuple(sorted(spec.get("reservedPods", [])))
        free = 1000 - PER_POD * len(pods) - self.rng.choice([0, 5])
        size = {"read": f"{free}Mi", "write": f"{free}Mi", "total": f"{2 * free}Mi"}
        stored = copy.deepcopy(self.world.store.objects[STATS])
        stored["status"] = {
            "observedGeneration": metadata["generation"],
            "allocableBandwidth": {"disk": size},
        }
        self.said.add((free * 1024**2, pods))
        self.world.store.put(STATS, stored)
        self.history.append(copy.deepcopy(self.world.store.objects[STATS]))

    def check(self) -> None:
        stored = self.world.store.objects.get(INVENTORY)
        for disk in (stored or {}).get("status", {}).get("disks") or ():
            if "allocable" in disk:
                read = parse_size(disk["allocable"]["read"])
                assert (read, tuple(sorted(disk["reportedPods"]))) in self.said

    async def end(self) -> None:
        world = self.world
        for uid in UIDS:
            world.show_pod(uid)
        world.show(STATS)
        await world.settle()
        self.check()
        held = sorted(uid for uid, pod in world.pods.items() if not pod["status"])
        assert sorted(world.reserved) == held
        writes = len(world.store.writes)
        world.start()
        await world.settle()
        assert world.store.writes[writes:] == []
        assert sorted(world.reserved) == held


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(ACTIONS), st.sampled_from(UIDS)), max_size=60),
    st.integers(0, 2**32),
)
def test_any_order_ends_like_a_fresh_start(actions: list[tuple[str, str]], seed: int) -> None:
    async def run() -> None:
        chaos = Chaos(seed)
        for action, uid in actions:
            await chaos.act(action, uid)
        await chaos.end()

    asyncio.run(run())


def test_bandwidth_is_what_the_check_compares() -> None:
    assert Bandwidth(read=1024**2).to_wire()["read"] == "1Mi"
