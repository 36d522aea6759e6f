"""What pods that wait at the gate cost: while nothing changes, per slot that comes free, and after an outage.

    python bench/waiting.py --nodes 5000 --waiting 10000        at full size
    python bench/waiting.py --nodes 200 --waiting 500           in two minutes

The real webhook process follows an API server of paper (benching/fake_cluster.py) over TLS. Every waiting pod
asks for a slot (an extended resource) that others hold. *Nothing changes*: CPU time over `--seconds` with an
empty queue, then with the waiting pods, in one process. *Slots*: one comes free each 10 ms; with n
shapes there are n lines, all of which any slot would serve, so this is the worst that a slot can mean. *Outage*:
the pods were stored while nobody led, in four priorities, and there is a slot for each.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiohttp

from benching import figures, objects
from benching.readings import Usage, resident_mib
from benching.worlds import PaperWorld, free_port, paper_world, stopped_at_end, wait_answer

_EVERY_S = 0.01
_DEADLINE_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much of everything."""

    nodes: int
    waiting: int
    slots: int
    seconds: float

    @property
    def each(self) -> int:
        """Return how many slots a node offers so that there is one for each waiting pod."""
        return -(-self.waiting // self.nodes)


class Harness:
    """A world with the webhook in it, leading."""

    def __init__(self, world: PaperWorld, pid: int) -> None:
        self.world = world
        self.pid = pid

    async def post(self, path: str, **wish: object) -> None:
        """Ask the API server of paper for something."""
        await self.world.post(path, json.dumps(wish).encode())

    async def until(self, is_so: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait until the record of slots and pods is so."""
        async with asyncio.timeout(_DEADLINE_S):
            while True:
                record = await self.world.get("bench/record")
                if is_so(record):
                    return record
                await asyncio.sleep(0.2)

    async def condition_of(self, number: int, shape: int) -> dict[str, Any]:
        """Wait until a waiting pod says why, and return its condition."""
        path = f"api/v1/namespaces/team-{shape % objects.NAMESPACES}/pods/waiting-{number:06}"
        async with asyncio.timeout(_DEADLINE_S):
            while True:
                pod = await self.world.get(path)
                for it in pod["status"].get("conditions", ()):
                    if it["type"] == "berthmaster.io/Placed":
                        return dict(it)
                await asyncio.sleep(0.2)

    async def quiet(self) -> None:
        """Wait until the webhook has nothing to do: less than 5 % of a CPU for three seconds."""
        async with asyncio.timeout(_DEADLINE_S):
            calm = 0
            while calm < 3:
                before = Usage.of(self.pid)
                await asyncio.sleep(1)
                calm = calm + 1 if Usage.of(self.pid).since(before).cpu_s < 0.05 else 0

    async def wait_in_queue(self, plan: Plan, shapes: int) -> None:
        """Let pods wait that say why already, as after a change of leaders."""
        await self.post("slots", nodes=plan.nodes, each=plan.each, held=plan.nodes * plan.each)
        await self.quiet()
        await self.post("gated", first=0, count=1, shapes=1)
        condition = await self.condition_of(0, 0)
        await self.post(
            "gated", first=1, count=plan.waiting - 1, shapes=shapes, condition=condition
        )
        await self.quiet()


async def run(
    plan: Plan, act: Callable[[Harness], Any], *, prepare: Callable[[Harness], Any] | None = None
) -> Any:
    """Return what `act` does in a new world; `prepare` acts before the webhook is there."""
    async with paper_world(plan.nodes, 0) as world, aiohttp.ClientSession() as session:
        if prepare is not None:
            await prepare(Harness(world, 0))
        probe_port = free_port()
        process = world.start_webhook(free_port(), probe_port, free_port())
        async with stopped_at_end(process):
            url = f"http://127.0.0.1:{probe_port}/readyz"
            await wait_answer(process, session, url, deadline_s=300)
            return await act(Harness(world, process.pid))


async def measure_rest(plan: Plan) -> list[tuple[object, ...]]:
    """Return CPU and memory with nobody in the queue, and then with all."""

    async def act(harness: Harness) -> list[tuple[object, ...]]:
        rows: list[tuple[object, ...]] = []

        async def watch(waiting: int) -> None:
            await harness.quiet()
            before = Usage.of(harness.pid)
            await asyncio.sleep(plan.seconds)
            used_s = Usage.of(harness.pid).since(before).cpu_s
            share = f"{used_s / plan.seconds * 100:.2f}"
            rows.append((f"{waiting:,}", share, f"{resident_mib(harness.pid):.0f}"))

        await watch(0)
        await harness.wait_in_queue(plan, 1)
        await watch(plan.waiting)
        return rows

    found: list[tuple[object, ...]] = await run(plan, act)
    return found


async def measure_slots(plan: Plan, shapes: int) -> tuple[object, ...]:
    """Return what each of some slots costs."""

    async def act(harness: Harness) -> tuple[object, ...]:
        await harness.wait_in_queue(plan, shapes)
        before, writes = Usage.of(harness.pid), await harness.world.counters()
        await harness.post("free", first=0, count=plan.slots, everyS=_EVERY_S)
        record = await harness.until(lambda it: len(it["placed"]) == plan.slots)
        used_s = Usage.of(harness.pid).since(before).cpu_s
        after = await harness.world.counters()
        sent = sum(after["writes"].values()) - sum(writes["writes"].values())
        late = [
            (placed - freed) * 1000
            for freed, placed in zip(record["freed"], sorted(record["placed"]), strict=True)
        ]
        took_s = record["placed"][-1] - record["freed"][0]
        return (
            f"{plan.waiting:,}",
            f"{shapes:,}",
            f"{used_s / plan.slots * 1000:.2f}",
            f"{plan.slots / took_s:.0f}",
            f"{figures.percentile(late, 50):.0f}",
            f"{figures.percentile(late, 99):.0f}",
            f"{sent / plan.slots:.2f}",
        )

    row: tuple[object, ...] = await run(plan, act)
    return row


async def measure_outage(plan: Plan, shapes: int) -> tuple[object, ...]:
    """Return what releasing pods costs that were stored while nobody led."""

    async def prepare(harness: Harness) -> None:
        await harness.post("slots", nodes=plan.nodes, each=plan.each, held=0)
        await harness.post("gated", first=0, count=plan.waiting, shapes=shapes, priorities=4)

    async def act(harness: Harness) -> tuple[object, ...]:
        before, writes = Usage.of(harness.pid), await harness.world.counters()
        record = await harness.until(lambda it: len(it["placed"]) == plan.waiting)
        used_s = Usage.of(harness.pid).since(before).cpu_s
        after = await harness.world.counters()
        sent = sum(after["writes"].values()) - sum(writes["writes"].values())
        wanted = sorted(range(plan.waiting), key=lambda it: (-(it % 4), it))
        place = {number: at for at, number in enumerate(wanted)}
        off = max(abs(place[number] - at) for at, number in enumerate(record["numbers"]))
        took_s = record["placed"][-1] - record["placed"][0]
        return (
            f"{plan.waiting:,}",
            f"{shapes:,}",
            f"{used_s / plan.waiting * 1000:.2f}",
            f"{plan.waiting / took_s:.0f}",
            off,
            f"{sent / plan.waiting:.2f}",
        )

    row: tuple[object, ...] = await run(plan, act, prepare=prepare)
    return row


def main() -> None:
    """Print the three tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=5000)
    parser.add_argument("--waiting", type=int, default=10_000)
    parser.add_argument("--slots", type=int, default=1000)
    parser.add_argument("--shapes", type=int, nargs="+", default=[1, 10, 1000])
    parser.add_argument("--seconds", type=float, default=30.0, help="for which nothing changes")
    parser.add_argument("--only", choices=("rest", "slots", "outage"))
    given = parser.parse_args()
    plan = Plan(nodes=given.nodes, waiting=given.waiting, slots=given.slots, seconds=given.seconds)
    if given.only in (None, "rest"):
        found = asyncio.run(measure_rest(plan))
        table = figures.table(("waiting", "% of a CPU", "MiB"), found)
        figures.report("Waiting while nothing changes", table)
    if given.only in (None, "slots"):
        rows = [asyncio.run(measure_slots(plan, it)) for it in given.shapes]
        times = ("ms of CPU a slot", "slots/s", "p50 ms", "p99 ms", "writes a slot")
        figures.report("A slot each 10 ms", figures.table(("waiting", "shapes", *times), rows))
    if given.only in (None, "outage"):
        rows = [asyncio.run(measure_outage(plan, it)) for it in given.shapes]
        order = "places off the order at most"
        header = ("waiting", "shapes", "ms of CPU a pod", "pods/s", order, "writes a pod")
        figures.report("After an outage", figures.table(header, rows))


if __name__ == "__main__":
    main()
