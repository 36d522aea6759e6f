"""What containers use together at the most, when those of initialisation run one after the other.

    at a time = one init container + the sidecars started before it, or sidecars + containers

Worked: a sidecar of 0.5, an init container of 3, containers of 1 and 1 -> 3.5, of which 2.5 stay.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import TypeVar

Thing = TypeVar("Thing", bound=Hashable)


def most_at_once(
    uses: Iterable[tuple[Mapping[Thing, int], bool]],
) -> tuple[dict[Thing, int], dict[Thing, int]]:
    """Return per resource or device the most that is used at any time, and what is used in the end.

    `uses` are amounts in the order in which containers start, and whether they stay: sidecars and
    containers do.
    """
    most: dict[Thing, int] = {}
    staying: dict[Thing, int] = {}
    for amounts, stays in uses:
        step = dict(staying)
        add(step, amounts)
        raise_to(most, step)
        if stays:
            staying = step
    return most, staying


def add(total: dict[Thing, int], more: Mapping[Thing, int]) -> None:
    """Add amounts to a total."""
    for name, amount in more.items():
        total[name] = total.get(name, 0) + amount


def raise_to(total: dict[Thing, int], floor: Mapping[Thing, int]) -> None:
    """Raise each amount of a total to a floor, where it is below or absent."""
    for name, amount in floor.items():
        if amount > total.get(name, -1):
            total[name] = amount
