"""A day of load on unlike servers, placed three times: as kube-scheduler does, as WAO v2 does, as we do.

    python bench/power_day.py --nodes 60 --days 3 --worlds mixed small

A world is which servers there are, what pods ask for and how much of that they use (`WORLDS`), so that no rule is
tuned to one of them. The servers, their racks' air and what they really draw are the sandbox's world (`power_machines`), minute by
minute. The same pods arrive in the same order each time, more by day than by night, and every two hours a
workload of 40 replicas at once; each uses a part of its request that nobody is told. What is known of a node is
what metrics and sensors said, as far as the operator would have published it, and a model that was fitted to noisy measurements of each kind of server: a polynomial of load and
inlet temperature, which the world's curves are not. Decisions go through inventories and the engine, as ever.

    kube-scheduler   LeastAllocated over the requests of CPU and memory: the concern `resources` alone
    WAO v2           rule WAOv2 with weight 20 beside that, as its shipped profile has it
    LeastIncrease    our rule, with its defaults; resources break ties

No server is ever switched off, so most of what is drawn is what idle servers draw anyway; the last column
is what the load itself costs beyond that.
"""

from __future__ import annotations

import argparse
import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benching import figures
from berthmaster.api.inventory import (
    NodeInventory,
    NodeInventoryStatus,
    Power,
    PowerCurve,
    PowerLink,
    Reading,
)
from berthmaster.api.objects import Node, Pod, node_from_manifest, pod_from_manifest
from berthmaster.api.policy import PlacementPolicySpec
from berthmaster.api.power import CpuUsage
from berthmaster.api.quantities import NANO
from berthmaster.concerns import power, resources
from berthmaster.concerns.power.inventory import Candidate, build_power
from berthmaster.concerns.power.questions import curve_of
from berthmaster.concerns.shape import AnyConcern
from berthmaster.placement.engine import Engine
from berthmaster_sandbox.world.power_machines import MACHINES, Machine, Rack

MINUTE_S = 60.0
MINUTES = 24 * 60
PER_RACK = 10
BEGIN_S = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
# The share of all cores that pods request at noon, and at midnight.
NOON, MIDNIGHT = 0.75, 0.25
BURST, BURST_EVERY = 40, 120
GRID = np.linspace(0, 1, 21)
# A curve is asked for anew when the air moved by so much.
CELSIUS_STEP = 0.5

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One pod of the day: when it comes and goes (minutes), what it asks for and what it uses (cores)."""

    at: int
    until: int
    cpu: float
    used: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of world: its servers, the sizes of its pods in cores, the share of these that they use, how long they run.

    `used` are the two parameters of a beta distribution, `minutes` is a mean.
    """

    name: str
    machines: Sequence[Machine] = MACHINES
    sizes: Sequence[float] = (0.5, 1, 2, 4)
    used: tuple[float, float] = (4, 3)
    minutes: float = 90


OLD = Machine(
    name="old", cores=24, idle_watts=110, full_watts=330, straight=0.7, bend=0.8, fan_watts=25
)
NEW = Machine(
    name="new", cores=96, idle_watts=180, full_watts=700, straight=0.5, bend=1.8, fan_watts=60
)
WORLDS = {
    it.name: it
    for it in (
        Kind(name="mixed"),
        Kind(name="small", sizes=(0.1, 0.2, 0.4, 0.8), minutes=240),
        Kind(name="modest", used=(2, 10)),
        Kind(name="busy", used=(12, 2)),
        Kind(name="two", machines=(OLD, NEW), sizes=(0.25, 0.5, 1, 2)),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A way to place pods."""

    name: str
    concerns: Sequence[AnyConcern]
    policy: PlacementPolicySpec


@dataclass(slots=True, kw_only=True)
class Day:
    """What came of a day."""

    kilowatt_hours: float = 0.0
    peak_watts: float = 0.0
    hottest_celsius: float = 0.0
    overloaded_minutes: int = 0
    unplaced: int = 0


def ways() -> tuple[Way, ...]:
    """Return the three ways that are compared."""

    def policy(resources_weight: int, **power_settings: Any) -> PlacementPolicySpec:
        concerns = {"resources": {"weight": resources_weight}, "power": power_settings}
        return PlacementPolicySpec.model_validate({"concerns": concerns})

    both = (resources.CONCERN, power.CONCERN)
    return (
        Way(name="kube-scheduler", concerns=(resources.CONCERN,), policy=policy(1)),
        Way(
            name="WAO v2",
            concerns=both,
            policy=policy(1, rule="WAOv2", weight=20, podUsageAssumption=0.8),
        ),
        Way(name="LeastIncrease", concerns=both, policy=policy(0)),
    )


def make_loads(kind: Kind, cores: int, seed: int) -> list[Load]:
    """Return the pods of a day, in the order in which they come."""
    random = np.random.default_rng(seed)
    loads: list[Load] = []
    ending: list[tuple[int, float]] = []
    requested = 0.0

    def come(at: int, until: int, cpu: float) -> float:
        used = cpu * float(random.beta(*kind.used))
        loads.append(Load(at=at, until=until, cpu=cpu, used=used))
        heapq.heappush(ending, (until, cpu))
        return cpu

    for minute in range(MINUTES):
        while ending and ending[0][0] <= minute:
            requested -= heapq.heappop(ending)[1]
        wave = 0.5 - 0.5 * math.cos(2 * math.pi * minute / MINUTES)
        if minute % BURST_EVERY == BURST_EVERY // 2:
            requested += sum(come(minute, minute + 100, kind.sizes[1]) for _ in range(BURST))
        wanted = cores * (MIDNIGHT + (NOON - MIDNIGHT) * wave)
        while requested < wanted:
            cpu = float(random.choice(kind.sizes, p=[0.3, 0.4, 0.2, 0.1]))
            requested += come(minute, minute + 1 + int(random.exponential(kind.minutes)), cpu)
    return loads


def fit(machine: Machine, seed: int) -> Callable[[Floats, float], Floats]:
    """Return a model of a machine: 1, u, u^2, T, uT fitted to 200 measurements that are off by 3 W."""
    random = np.random.default_rng(seed)
    load, inlet = random.uniform(0, 1, 200), random.uniform(18, 32, 200)
    measured = [machine.watts(u, t) for u, t in zip(load, inlet, strict=True)]

    def features(u: Floats, t: Floats) -> Floats:
        return np.stack([np.ones_like(u), u, u**2, t, u * t], axis=1)

    found, *_ = np.linalg.lstsq(
        features(load, inlet), np.array(measured) + random.normal(0, 3, 200), rcond=None
    )
    return lambda u, celsius: features(u, np.full_like(u, celsius)) @ found


@dataclass(slots=True)
class Cluster:
    """Servers in racks, what runs on each, and what is known of them."""

    engine: Engine
    racks: list[Rack]
    machines: list[Machine]
    nodes: list[Node]
    models: dict[str, Callable[[Floats, float], Floats]]
    used: Floats
    # What was published, for which air a curve was asked, and where pods wait to be shown.
    told: list[Power | None]
    curves: list[tuple[float, PowerCurve | None]]
    awaited: set[int]

    @classmethod
    def build(cls, kind: Kind, way: Way, nodes: int, seed: int) -> Cluster:
        """Return a cluster of racks of unlike servers."""
        kinds = kind.machines
        machines = [kinds[(index // PER_RACK + index) % len(kinds)] for index in range(nodes)]
        racks = [
            # Some stand in warmer corners.
            Rack(machines[at : at + PER_RACK], room_celsius=19 + at // PER_RACK % 4)
            for at in range(0, nodes, PER_RACK)
        ]
        return cls(
            engine=Engine(way.concerns),
            racks=racks,
            machines=machines,
            nodes=[_node(index, machine) for index, machine in enumerate(machines)],
            models={it.name: fit(it, seed) for it in kinds},
            used=np.zeros(nodes),
            told=[None] * nodes,
            curves=[(-math.inf, None)] * nodes,
            awaited=set(),
        )

    def tell(self, minute: int) -> None:
        """Publish what the operator would: what moved far enough, and usage that shows pods which came."""
        now_s = BEGIN_S + minute * MINUTE_S
        for index, node in enumerate(self.nodes):
            machine, told = self.machines[index], self.told[index]
            celsius = self.racks[index // PER_RACK].inlet_celsius
            if abs(celsius - self.curves[index][0]) >= CELSIUS_STEP:
                watts = self.models[machine.name](GRID, celsius)
                curve = curve_of(list(GRID * machine.cores), watts.tolist())
                self.curves[index] = (celsius, curve)
            nanocores = int(min(self.used[index], machine.cores) * NANO)
            built = build_power(
                usage=CpuUsage(nanocores=nanocores, sampled_s=now_s, window_s=MINUTE_S),
                readings={"inlet": Reading(value=celsius, sampled_s=now_s)},
                candidates=[
                    Candidate(
                        link=PowerLink.MODEL_SERVER, model="fitted", curve=self.curves[index][1]
                    )
                ],
                previous=told,
                capacity_nanocores=machine.cores * NANO,
                is_awaited=index in self.awaited,
            )
            if built.power is not told:
                self.awaited.discard(index)
                self.told[index] = built.power
                status = NodeInventoryStatus(power=built.power)
                self.engine.ledger.write_node(
                    node, NodeInventory(name=node.metadata.name, status=status)
                )

    def step(self, day: Day) -> None:
        """Let a minute pass."""
        total = 0.0
        for number, rack in enumerate(self.racks):
            at = number * PER_RACK
            cores = [it.cores for it in rack.machines]
            loads = [self.used[at + index] / size for index, size in enumerate(cores)]
            day.overloaded_minutes += sum(it > 1 for it in loads)
            total += sum(rack.step(loads, MINUTE_S))
            day.hottest_celsius = max(day.hottest_celsius, rack.inlet_celsius)
        day.kilowatt_hours += total / 1000 / 60
        day.peak_watts = max(day.peak_watts, total)


def replay(kind: Kind, way: Way, nodes: int, seed: int) -> Day:
    """Place a day's pods in one way."""
    cluster, day = Cluster.build(kind, way, nodes, seed), Day()
    loads = make_loads(kind, sum(it.cores for it in cluster.machines), seed)
    row_of = {node.metadata.name: index for index, node in enumerate(cluster.nodes)}
    running: list[tuple[int, int, Pod, int, float]] = []
    coming = iter(enumerate(loads))
    waiting = next(coming, None)
    for minute in range(MINUTES):
        while running and running[0][0] <= minute:
            _, _, pod, row, used = heapq.heappop(running)
            cluster.used[row] -= used
            cluster.engine.ledger.forget(pod)
        cluster.tell(minute)
        while waiting is not None and waiting[1].at <= minute:
            number, load = waiting
            pod = _pod(number, load, minute)
            request = cluster.engine.read_request(pod, way.policy)
            decision = cluster.engine.decide(request, f"{seed}-{number}")
            if decision.node is None:
                day.unplaced += 1
            else:
                placed = _pod(number, load, minute, node=decision.node)
                cluster.engine.ledger.see(placed)
                row = row_of[decision.node]
                cluster.used[row] += load.used
                cluster.awaited.add(row)
                heapq.heappush(running, (load.until, number, placed, row, load.used))
            waiting = next(coming, None)
        cluster.step(day)
    return day


def idle_kilowatt_hours(kind: Kind, nodes: int, seed: int) -> float:
    """Return what the servers draw in a day without any pod."""
    day = Day()
    cluster = Cluster.build(kind, ways()[0], nodes, seed)
    for _ in range(MINUTES):
        cluster.step(day)
    return day.kilowatt_hours


def rows(kind: Kind, nodes: int, seeds: Sequence[int]) -> Iterator[tuple[str, ...]]:
    """Yield a row per way; ranges are over the days."""
    idle = {seed: idle_kilowatt_hours(kind, nodes, seed) for seed in seeds}
    first: list[Day] = []
    for way in ways():
        days = [replay(kind, way, nodes, seed) for seed in seeds]
        first = first or days
        pairs = list(zip(days, first, strict=True))
        above = [day.kilowatt_hours - idle[seed] for day, seed in zip(days, seeds, strict=True)]
        saved = [100 * (1 - day.kilowatt_hours / base.kilowatt_hours) for day, base in pairs]
        base_above = [it.kilowatt_hours - idle[seed] for it, seed in zip(first, seeds, strict=True)]
        of_load = [100 * (1 - it / base) for it, base in zip(above, base_above, strict=True)]
        yield (
            kind.name,
            way.name,
            figures.spread([it.kilowatt_hours for it in days]),
            f"{np.mean(saved):.1f} %",
            f"{np.mean(of_load):.1f} %",
            figures.spread([it.peak_watts / 1000 for it in days], 2),
            figures.spread([it.hottest_celsius for it in days]),
            figures.spread([float(it.overloaded_minutes) for it in days], 0),
            str(sum(it.unplaced for it in days)),
        )


HEADER = (
    *("world", "way", "kWh a day", "saved", "saved of what the load costs", "peak kW"),
    *("hottest inlet", "overloaded node-minutes", "unplaced"),
)


def _node(index: int, machine: Machine) -> Node:
    name = f"{machine.name}-{index}"
    size = {"cpu": str(machine.cores), "memory": f"{machine.cores * 4}Gi", "pods": "250"}
    return node_from_manifest(
        {
            "metadata": {"name": name, "uid": name},
            "status": {"capacity": size, "allocatable": size},
        }
    )


def _pod(number: int, load: Load, minute: int, node: str = "") -> Pod:
    name = f"pod-{number}"
    requests = {"cpu": f"{int(load.cpu * 1000)}m", "memory": f"{int(load.cpu * 1024)}Mi"}
    begun = datetime.fromtimestamp(BEGIN_S + minute * MINUTE_S, UTC).isoformat()
    condition = {"type": "Initialized", "status": "True", "lastTransitionTime": begun}
    return pod_from_manifest(
        {
            "metadata": {"name": name, "namespace": "day", "uid": name},
            "spec": {
                "nodeName": node,
                "containers": [{"name": "main", "resources": {"requests": requests}}],
            },
            "status": {"phase": "Running", "conditions": [condition]} if node else {},
        }
    )


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--nodes", type=int, default=30)
    parser.add_argument("--days", type=int, default=1)
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, default=["mixed"])
    arguments = parser.parse_args()
    print(f"\nA day of load on {arguments.nodes} servers, {arguments.days} day(s)\n")
    for name in arguments.worlds:
        found = rows(WORLDS[name], arguments.nodes, range(arguments.days))
        print(figures.table(HEADER, found), flush=True)


if __name__ == "__main__":
    main()
