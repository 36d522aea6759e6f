"""The rules of power for one cluster at a time, spelled out slowly with exact fractions.

The judge of the arrays: written from the rules, shares no code with the concern. CPU is in cores. A curve is
a list of points, whose watts are None where the model gave no answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise

Points = Sequence[tuple[Fraction, Fraction | None]]
ERROR, OVERLOADED = "error", "overloaded"
Value = Fraction | str


@dataclass(frozen=True)
class RefPod:
    """A pod that is there: its requests, whether it runs, and whether the usage shows it."""

    cpu: Fraction
    is_pending: bool
    is_shown: bool
    assumed: Fraction = Fraction(0)
    own_usage: Fraction = Fraction(0)


@dataclass(frozen=True)
class RefNode:
    capacity: Fraction
    usage: Fraction | None
    points: Points
    pods: Sequence[RefPod] = field(default_factory=tuple)


def watts_at(points: Points, cores: Fraction) -> Fraction | None:
    for (left, low), (right, high) in pairwise(points):
        if cores == left:
            return low
        if left < cores < right:
            if low is None or high is None:
                return None
            return low + (high - low) * (cores - left) / (right - left)
    return points[-1][1] if points and cores == points[-1][0] else None


def tenths(ratio: Fraction) -> Fraction:
    return Fraction(math.floor(ratio * 10 + Fraction(1, 2)), 10)


def used_share(nodes: Sequence[RefNode]) -> Fraction:
    """What of their requests pods use, in twentieths rounded up, a tenth at least; 1 if too few are shown."""
    used = asked = Fraction(0)
    for node in nodes:
        shown = sum((it.cpu for it in node.pods if it.is_shown), Fraction(0))
        if node.usage is not None and shown:
            used, asked = used + node.usage, asked + shown
    if asked < 10:
        return Fraction(1)
    return min(max(Fraction(math.ceil(20 * used / asked), 20), Fraction(1, 10)), Fraction(1))


def least_increase(node: RefNode, need: Fraction, share: Fraction = Fraction(1)) -> Value:
    if node.usage is None:
        return ERROR
    before = node.usage + share * sum((it.cpu for it in node.pods if not it.is_shown), Fraction(0))
    if before + need > node.capacity:
        return OVERLOADED
    return _increase(node, before, before + share * need)


def v2_cost(node: RefNode, need: Fraction, assumption: Fraction) -> Value:
    if node.usage is None:
        return ERROR
    waiting = sum((it.cpu for it in node.pods if it.is_pending), Fraction(0))
    before = node.usage + waiting * assumption
    found = _increase(node, before, before + need)
    return found if isinstance(found, str) else Fraction(math.floor(found))


def v1_cost(node: RefNode, request: Fraction, limit: Fraction) -> Value:
    if node.usage is None or not (request or limit):
        return ERROR
    usage = node.usage
    for pod in node.pods:
        if pod.own_usage < pod.assumed / 2:
            usage += pod.assumed - pod.own_usage
    if usage + limit > node.capacity:
        return ERROR
    added = request or limit * Fraction(85, 100)
    watts = [
        watts_at(node.points, tenths(it / node.capacity) * node.capacity)
        for it in (usage, usage + added)
    ]
    if watts[0] is None or watts[1] is None:
        return ERROR
    cost = Fraction(math.trunc(watts[1] - watts[0]))
    return ERROR if cost < 0 else cost


def _increase(node: RefNode, before: Fraction, after: Fraction) -> Value:
    if after > node.capacity:
        return OVERLOADED
    low, high = watts_at(node.points, before), watts_at(node.points, after)
    if low is None or high is None:
        return ERROR
    return max(high - low, Fraction(0))


def compare_increases(
    values: Sequence[Value],
    *,
    band: Fraction,
    band_share: Fraction,
    neutral: Fraction,
    zero: Fraction | None = None,
) -> list[Fraction]:
    known = [it for it in values if not isinstance(it, str)]
    band = min(band, band_share * min(known, default=Fraction(0)))
    scores = []
    for value in values:
        if value == ERROR:
            scores.append(neutral)
        elif isinstance(value, str):
            scores.append(Fraction(0))
        elif value <= min(known) + band:
            scores.append(Fraction(100))
        elif zero is not None:
            scores.append(max(Fraction(0), 100 - (value - min(known) - band) / zero * 100))
        else:
            scores.append((min(known) + band + 1) / (value + 1) * 100)
    return scores


def compare_v1(values: Sequence[Value]) -> list[Fraction]:
    known = [it for it in values if not isinstance(it, str)]
    highest = max(known, default=Fraction(0))
    return [
        Fraction(0)
        if isinstance(it, str)
        else Fraction(10)
        if highest == min(known)
        else 100 - math.floor(100 * (it - min(known)) / (highest - min(known))) * Fraction(1)
        for it in values
    ]


def compare_v2(values: Sequence[Value], base: int) -> list[Fraction]:
    known = [it for it in values if not isinstance(it, str)]
    scores = []
    for value in values:
        if isinstance(value, str):
            scores.append(Fraction(1 if value == OVERLOADED else 0))
        elif max(known) == min(known):
            scores.append(Fraction(base))
        else:
            part = (100 - base) * (value - min(known)) / (max(known) - min(known))
            scores.append(Fraction(100 - math.floor(part)))
    return scores
