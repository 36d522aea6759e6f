"""What a pod would have had elsewhere, in figures of its concern: data nearer, watts less, zones fewer.

Both sides are parts of allocations: what the chosen node promised, and what the pod's own node gives. Allocations of
before our policies were there may hold anything; what cannot be read counts for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

Allocated = Mapping[str, Any]
Figures = Iterator[tuple[str, float]]

NEARER, LOCAL = "datasetsNearer", "datasetsOnTheNodeItself"
WATTS, ONE_ZONE = "watts", "podsInOneZone"
# Of one, and of more.
_WORDS = {
    NEARER: ("dataset nearer", "datasets nearer"),
    LOCAL: ("of them on the node itself", "of them on the node itself"),
    WATTS: ("W", "W"),
    ONE_ZONE: (
        "pod in one NUMA zone instead of several or none",
        "pods in one NUMA zone instead of several or none",
    ),
}


def compare(concern: str, promised: Allocated, given: Allocated | None) -> dict[str, float]:
    """Return figures by name, positive where the chosen node is better; `given` is None where it refuses."""
    count = _BY_CONCERN.get(concern)
    return {} if count is None else dict(count(promised, given))


def describe(name: str, figure: float) -> str:
    """Return a figure in words: `3 datasets nearer`, `-2.5 W`."""
    one, more = _WORDS[name]
    return f"{figure:.1f}".removesuffix(".0") + f" {one if figure == 1 else more}"


def _datasets(promised: Allocated, given: Allocated | None) -> Figures:
    there = _tiers(given or {})
    best = _tiers(promised)
    nearer = [name for name, tier in best.items() if tier > there.get(name, 0)]
    if nearer:
        yield NEARER, float(len(nearer))
        local = sum(_is_here(promised, name, best[name]) for name in nearer)
        if local:
            yield LOCAL, float(local)


def _tiers(allocated: Allocated) -> dict[str, float]:
    datasets = allocated.get("datasets")
    return {
        str(name): float(it["tier"])
        for name, it in (datasets.items() if isinstance(datasets, Mapping) else ())
        if isinstance(it, Mapping) and isinstance(it.get("tier"), int | float)
    }


def _is_here(allocated: Allocated, name: str, tier: float) -> bool:
    """Return whether a dataset is on the node: its tier is then the highest, which is 100 unless set otherwise."""
    return tier == max(_tiers(allocated).values(), default=0) and bool(
        allocated.get("besideGateway") or allocated["datasets"][name].get("mode") == "filesystem"
    )


def _watts(promised: Allocated, given: Allocated | None) -> Figures:
    before, now = promised.get("watts"), (given or {}).get("watts")
    if isinstance(before, int | float) and isinstance(now, int | float) and before != now:
        yield WATTS, round(now - before, 3)


def _zones(promised: Allocated, given: Allocated | None) -> Figures:
    was, now = _count(promised), _count(given) if given is not None else 0
    if was == 1 and now != 1:
        yield ONE_ZONE, 1.0


def _count(allocated: Allocated | None) -> int:
    zones = (allocated or {}).get("zones")
    return len(zones) if isinstance(zones, Mapping) else 0


_BY_CONCERN: Mapping[str, Callable[[Allocated, Allocated | None], Figures]] = {
    "dataset": _datasets,
    "power": _watts,
    "numa": _zones,
}
