"""Curves from numbers: a PowerModel's three forms, and a straight line through what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from berthmaster.api.inventory import PowerCurve
from berthmaster.api.power_models import PowerModelSpec, Table
from berthmaster.api.quantities import NANO
from berthmaster.concerns.power.questions import curve_of

# Percent of capacity at which a formula is read off; it is straight between them.
_PERCENTS = (*range(0, 21), *range(22, 41, 2), *range(45, 101, 5))
# Fewer pairs, or pairs in a narrower range of usage, say nothing of the slope.
_FEWEST_PAIRS = 12
_NARROWEST_RANGE = 0.1
_LEAST_SPREAD = 1e-6


def curve_of_model(spec: PowerModelSpec, capacity_nanocores: int) -> PowerCurve | None:
    """Return the curve of a model for a node of this size; None if its numbers give none."""
    capacity = capacity_nanocores / NANO
    if spec.table is not None:
        return _curve_of_table(spec.table, capacity)
    watts = _formula_of(spec)
    if watts is None or not capacity:
        return None
    return curve_of(
        [percent / 100 * capacity for percent in _PERCENTS],
        [watts(float(percent)) for percent in _PERCENTS],
    )


@dataclass(slots=True)
class MeasuredLine:
    """A line through pairs of CPU usage (ratio of capacity) and watts, as they come.

    Only sums are kept. `curve` is None until the pairs say something of the slope.
    """

    count: int = 0
    usages: float = 0.0
    watts: float = 0.0
    squares: float = 0.0
    products: float = 0.0
    lowest: float = math.inf
    highest: float = -math.inf

    def add(self, usage_ratio: float, watts: float) -> None:
        """Take over one pair."""
        self.count += 1
        self.usages += usage_ratio
        self.watts += watts
        self.squares += usage_ratio**2
        self.products += usage_ratio * watts
        self.lowest = min(self.lowest, usage_ratio)
        self.highest = max(self.highest, usage_ratio)

    def curve(self, capacity_nanocores: int) -> PowerCurve | None:
        """Return the line over the node's capacity; a slope below 0 is noise and counts 0."""
        if self.count < _FEWEST_PAIRS or self.highest - self.lowest < _NARROWEST_RANGE:
            return None
        spread = self.count * self.squares - self.usages**2
        if spread < _LEAST_SPREAD:
            return None
        slope = max((self.count * self.products - self.usages * self.watts) / spread, 0.0)
        idle = (self.watts - slope * self.usages) / self.count
        capacity = capacity_nanocores / NANO
        return curve_of([0.0, capacity], [max(idle, 0.0), idle + slope])


def _curve_of_table(table: Table, capacity: float) -> PowerCurve | None:
    points = sorted((it.cpu_percent, it.watts) for it in table.points)
    # Flat beyond its ends, so that it answers for an idle and for a full node.
    first, last = (0.0, points[0][1]), (100.0, points[-1][1])
    every = [first, *points, last]
    return curve_of(
        [percent / 100 * capacity for percent, _ in every], [watts for _, watts in every]
    )


def _formula_of(spec: PowerModelSpec) -> Callable[[float], float] | None:
    form = spec.exponential
    if form is not None:
        return lambda percent: form.k0 + form.k1 * _exp(form.k2 * percent)
    if spec.polynomial is not None:
        coefficients = spec.polynomial.coefficients
        return lambda percent: sum(
            it * (percent / 100) ** power for power, it in enumerate(coefficients)
        )
    return None


def _exp(exponent: float) -> float:
    return math.exp(exponent) if exponent < 700 else math.inf
