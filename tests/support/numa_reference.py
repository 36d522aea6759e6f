"""Upstream's NUMA rules for one node at a time, spelled out slowly with exact fractions.

The judge of the arrays: written from the rules, shares no code with the concern. A zone is a tuple of
its id, what is available of each resource, and its distances by id; a container is its kind and what
it asks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations

Amounts = Mapping[str, Fraction]
MUTABLE = dict[str, Fraction]


@dataclass(frozen=True)
class RefZone:
    id: int
    free: Amounts
    costs: Mapping[int, int]


@dataclass(frozen=True)
class RefNode:
    zones: tuple[RefZone, ...]
    policy: str
    scope: str
    most: int
    names: frozenset[str]


@dataclass(frozen=True)
class RefPod:
    inits: tuple[tuple[str, Amounts], ...]
    apps: tuple[Amounts, ...]
    is_guaranteed: bool

    @property
    def total(self) -> MUTABLE:
        total: MUTABLE = {}
        for app in self.apps:
            for name, amount in app.items():
                total[name] = total.get(name, Fraction(0)) + amount
        for _, init in self.inits:
            for name, amount in init.items():
                total[name] = max(total.get(name, Fraction(0)), amount)
        return total


def affine(name: str) -> bool:
    return name in ("cpu", "memory") or name.startswith("hugepages-")


def extended(name: str) -> bool:
    return "/" in name and "kubernetes.io/" not in name


def lowest(
    ask: Amounts, free: Mapping[int, Amounts], node: RefNode, is_guaranteed: bool
) -> int | None:
    mask = set(range(64))
    for name, amount in ask.items():
        if amount == 0:
            continue
        if name not in (*node.names, "cpu", "memory", "pods", "ephemeral-storage"):
            return None
        listing = {id_ for id_, zone in free.items() if name in zone}
        if not listing and (extended(name) or name == "ephemeral-storage"):
            continue
        good = set()
        for id_ in listing:
            if (affine(name) and not is_guaranteed) or free[id_][name] >= amount:
                good.add(id_)
        mask &= good
        if not mask:
            return None
    return min(mask)


def verdict(pod: RefPod, node: RefNode) -> str:
    if node.policy != "single-numa-node":
        return ""
    free = {zone.id: dict(zone.free) for zone in node.zones}
    if node.scope == "pod":
        fits = lowest(pod.total, free, node, pod.is_guaranteed) is not None
        return "" if fits else "cannot align pod"
    for kind, init in pod.inits:
        if lowest(init, free, node, pod.is_guaranteed) is None:
            return f"cannot align {kind} container"
    for app in pod.apps:
        zone = lowest(app, free, node, pod.is_guaranteed)
        if zone is None:
            return "cannot align container"
        for name, amount in app.items():
            if affine(name) and not pod.is_guaranteed:
                continue
            if name in free.get(zone, {}):
                free[zone][name] -= amount
    return ""


def score(pod: RefPod, node: RefNode, strategy: str, weights: Mapping[str, int]) -> int:
    if not pod.is_guaranteed:
        return 100
    if strategy == "LeastNUMANodes":
        return least_numa_nodes(pod, node)
    if node.policy != "single-numa-node":
        return 0
    if node.scope == "pod":
        return over_zones(pod.total, node, strategy, weights)
    parts = [
        over_zones(ask, node, strategy, weights)
        for ask in (*(init for _, init in pod.inits), *pod.apps)
    ]
    return sum(parts) // len(parts)


def over_zones(ask: Amounts, node: RefNode, strategy: str, weights: Mapping[str, int]) -> int:
    scores = [zone_score(ask, zone.free, strategy, weights) for zone in node.zones]
    return min((it for it in scores if it), default=0)


def zone_score(ask: Amounts, free: Amounts, strategy: str, weights: Mapping[str, int]) -> int:
    if strategy == "BalancedAllocation":
        shares = []
        for name in sorted(ask):
            whole = math.ceil(free.get(name, Fraction(0)))
            shares.append(math.ceil(ask[name]) / whole if whole else 1.0)
        if any(share > 1 for share in shares):
            return 0
        if len(shares) == 1:
            return 100
        mean = sum(shares) / len(shares)
        squares = deviations = 0.0
        for share in shares:
            squares += (share - mean) * (share - mean)
            deviations += share - mean
        variance = (squares - deviations * deviations / len(shares)) / (len(shares) - 1)
        return int((1 - variance) * 100)
    total = heaviness = 0
    for name, amount in ask.items():
        weight = weights.get(name, 1)
        has = free.get(name, Fraction(0))
        units, wanted = math.ceil(has), math.ceil(amount)
        part = 0
        if units and amount <= has:
            part = (units - wanted if strategy == "LeastAllocated" else wanted) * 100 // units
        total += weight * part
        heaviness += weight
    return total // heaviness


def least_numa_nodes(pod: RefPod, node: RefNode) -> int:
    zones = [(zone.id, dict(zone.free), zone.costs) for zone in node.zones]
    asks: Sequence[Amounts] = (
        (pod.total,) if node.scope == "pod" else (*(init for _, init in pod.inits), *pod.apps)
    )
    most, all_nearest = 0, True
    for ask in asks:
        if not any(name in free for name in ask for _, free, _ in zones):
            continue
        found = search(ask, zones)
        if found is None:
            return 0
        chosen, nearest = found
        most = max(most, len(chosen))
        all_nearest &= nearest
        for name, amount in ask.items():
            rest: Fraction = amount
            for _, free, _ in sorted((zones[it] for it in chosen), key=lambda it: it[0]):
                given = min(rest, free[name])
                free[name] -= given
                rest -= given
    if not most:
        return 100
    unit = 100 // node.most
    return max(0, 100 - most * unit + (unit // 2 if all_nearest else 0))


def search(
    ask: Amounts, zones: Sequence[tuple[int, MUTABLE, Mapping[int, int]]]
) -> tuple[tuple[int, ...], bool] | None:
    for k in range(1, len(zones) + 1):
        sets = list(combinations(range(len(zones)), k))
        mean = {
            it: Fraction(sum(zones[i][2].get(zones[j][0], 255) for i in it for j in it), k * k)
            for it in sets
        }
        smallest = min([Fraction(255), *mean.values()])
        best: tuple[int, ...] | None = None
        for it in sets:
            if not all(name in zones[i][1] for name in ask for i in it):
                continue
            if any(sum(zones[i][1][name] for i in it) < amount for name, amount in ask.items()):
                continue
            if mean[it] == smallest:
                return it, True
            if mean[it] < 256 and (best is None or mean[it] < mean[best]):
                best = it
        if best is not None:
            return best, False
    return None
