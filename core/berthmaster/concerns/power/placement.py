"""What a pod would cost on each node, in watts, and how nodes compare by that.

`cost_rows` is a row's own value, remembered until the row changes; `compare` makes 0..100 of the values
of all nodes that fit. A value below 0 stands for a node that has none: `UNKNOWN`, or `OVERLOADED` where
usage would exceed the capacity. Each rule's arithmetic is in its two functions.

Worked, LeastIncrease with a band of 1 W: increases 4, 4.5 and 14 W -> the first two tie at 100, the third
gets 100 * (4 + 1 + 1) / (14 + 1) = 40.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from berthmaster.api.quantities import NANO
from berthmaster.api.settings.power import PowerRule, UnknownNodes
from berthmaster.concerns.power import reasons
from berthmaster.concerns.power.columns import (
    UNKNOWN_USAGE,
    Floats,
    Integers,
    PowerColumns,
)
from berthmaster.concerns.power.questions import MOST_WATTS, tenths_of
from berthmaster.concerns.power.request import SHARE_PARTS, PowerRequest, allocation_of
from berthmaster.concerns.shape import Codes, Reason, Rows, Scores

UNKNOWN, OVERLOADED = -1.0, -2.0

_NEUTRAL = 50.0
_V1_TIE = 10.0
_V2_OVERLOADED = 1.0
# Upstream holds Peaks' cost as an integer of watts times this.
_PEAKS_SCALE = 1e15


def filter_rows(columns: PowerColumns, rows: Rows, request: PowerRequest) -> Codes:
    """Return a code per row; power refuses none, but for pods that WAO v2 refuses everywhere."""
    codes = np.zeros(len(rows), dtype=np.uint8)
    if request.rule is PowerRule.WAO_V2 and request.need == 0:
        codes[:] = reasons.NO_CPU
    return codes


def across_codes(columns: PowerColumns, request: PowerRequest) -> Codes | None:
    """Return v1's refusal of every node while one has no metrics, where its defects are wanted."""
    if not (request.is_strict and request.rule is PowerRule.WAO_V1 and columns.unmetered()):
        return None
    return np.full(len(columns.usage), reasons.NO_METRICS, dtype=np.uint8)


def cost_rows(columns: PowerColumns, rows: Rows, request: PowerRequest) -> Scores:
    """Return what the pod costs on each row: watts, or `UNKNOWN` or `OVERLOADED`."""
    return _COSTS[request.rule](columns, rows, request)


def compare(values: Scores, request: PowerRequest) -> Scores:
    """Return 0..100 per value, more for the cheaper node."""
    return _COMPARISONS[request.rule](values, request)


def increase(columns: PowerColumns, rows: Rows, before: Integers, after: Integers) -> Floats:
    """Return the watts that a rise in usage costs on each row; NaN where they are not known."""
    low, high = (columns.watts_at(rows, cores / NANO) for cores in (before, after))
    watts: Floats = high - low
    return watts


def allocate_row(columns: PowerColumns, row: int, request: PowerRequest) -> dict[str, Any]:
    """Return the watts that the pod costs there, to a tenth, by which model, and what v1 assumes."""
    allocated = allocation_of(request)
    power = columns.power(row)
    if power is None or request.rule is PowerRule.PEAKS:
        return allocated
    cost = float(cost_rows(columns, np.array([row], dtype=np.intp), request)[0])
    if cost >= 0:
        allocated |= {"watts": round(cost, 1), "by": str(power.link)}
    return allocated


def explain(columns: PowerColumns, code: int) -> Reason:
    """Return upstream's words for a code."""
    if code == reasons.NO_CPU:
        return reasons.no_cpu()
    return reasons.no_metrics(columns.unmetered())


# LeastIncrease.


def _least_increase(columns: PowerColumns, rows: Rows, request: PowerRequest) -> Scores:
    parts = request.used_parts
    before = columns.usage_before(rows, parts)
    after = before + request.need * parts // SHARE_PARTS
    low, high = columns.watts_before(rows, parts), columns.watts_at(rows, after / NANO)
    # More usage never costs less; a model that says so is noise. One that says less than nothing is none.
    is_power = (low >= 0) & (high >= 0)
    costs = np.where(is_power, np.maximum(high - low, 0.0), UNKNOWN)
    # What must fit is the whole pod: it may come to use all that it asked for.
    return _marked(costs, columns, rows, before + request.need)


def _compare_increases(values: Scores, request: PowerRequest) -> Scores:
    known = values >= 0
    scores = np.zeros(len(values))
    neutral = _NEUTRAL if request.unknown is UnknownNodes.NEUTRAL else 0.0
    scores[values == UNKNOWN] = neutral
    if not known.any():
        return scores
    watts = values[known]
    least = watts.min()
    tie = least + min(request.band_watts, request.band_share * least)
    if request.zero_watts:
        scores[known] = 100 - (watts - tie) * (100 / request.zero_watts)
    else:
        scores[known] = (tie + 1) / (watts + 1) * 100
    clipped: Scores = np.clip(scores, 0.0, 100.0)
    return clipped


# WAO v1: ratios rounded to tenths, 32-bit numbers, whole watts.


def _v1_cost(columns: PowerColumns, rows: Rows, request: PowerRequest) -> Scores:
    if request.need == 0 and request.limit == 0:
        return np.full(len(rows), UNKNOWN)
    capacity = columns.capacity[rows]
    usage = columns.usage[rows] + columns.recent[rows]
    low, high = (
        columns.watts_at(rows, round_tenths(cores, capacity) * capacity / NANO).astype(np.float32)
        for cores in (usage, usage + request.need)
    )
    costs = np.trunc(np.nan_to_num(high - low, nan=UNKNOWN)).astype(np.float64)
    unusable = (
        (costs < 0) | (columns.usage[rows] == UNKNOWN_USAGE) | (usage + request.limit > capacity)
    )
    usable: Scores = np.where(unusable, UNKNOWN, costs)
    return usable


def round_tenths(cores: Integers, capacity: Integers) -> Floats:
    """Return usage as a ratio of capacity, to one decimal, half away from zero, as v1 reckons it.

    Worked: 15.9 of 30 cores is 0.53 -> 0.5, and 25.5 of 30 is 0.85 -> 0.9.
    """
    return tenths_of((cores / np.maximum(capacity, 1)).astype(np.float32)) / 10


def _compare_v1(values: Scores, request: PowerRequest) -> Scores:
    known = values >= 0
    scores = np.zeros(len(values))
    if known.any():
        watts = values[known]
        span = watts.max() - watts.min()
        scores[known] = 100 - (100 * (watts - watts.min())) // span if span else _V1_TIE
    return scores


# WAO v2: whole watts, and a base for the worst.


def _v2_cost(columns: PowerColumns, rows: Rows, request: PowerRequest) -> Scores:
    share = request.assumption
    # Rounded up, which changes no comparison with a whole number.
    assumed = -(-columns.pending[rows] * share.numerator // share.denominator)
    before = columns.usage[rows] + assumed
    after = before + request.need
    watts = increase(columns, rows, before, after)
    costs = np.where(np.isnan(watts), UNKNOWN, np.maximum(np.trunc(watts), 0.0))
    return _marked(costs, columns, rows, after)


def _compare_v2(values: Scores, request: PowerRequest) -> Scores:
    known = values >= 0
    scores = np.zeros(len(values))
    scores[values == OVERLOADED] = _V2_OVERLOADED
    if known.any():
        watts, base = values[known], request.score_base
        span = watts.max() - watts.min()
        scores[known] = 100 - ((100 - base) * (watts - watts.min())) // span if span else base
    return scores


# Peaks: the model itself, not its curve.


def _peaks_cost(columns: PowerColumns, rows: Rows, request: PowerRequest) -> Scores:
    usage, capacity = columns.usage[rows], columns.capacity[rows]
    after = usage + request.need
    percent = [100 * it / np.maximum(capacity, 1) for it in (usage, after)]
    _, k1, k2 = columns.exponential[:, rows]
    with np.errstate(over="ignore", invalid="ignore"):
        watts = k1 * (np.exp(k2 * percent[1]) - np.exp(k2 * percent[0]))
    # Numbers of a model may be so steep that it says more than can be reckoned with.
    watts[np.isnan(watts) & np.isfinite(k1 + k2)] = MOST_WATTS
    costs: Scores = np.trunc(np.clip(np.nan_to_num(watts), -MOST_WATTS, MOST_WATTS) * _PEAKS_SCALE)
    costs[(usage == UNKNOWN_USAGE) | (after > capacity)] = 0.0
    return costs


def _compare_peaks(values: Scores, request: PowerRequest) -> Scores:
    if not values.any():
        return np.zeros(len(values))
    # The dearest is exactly the whole span above the cheapest, whatever its size.
    span = np.ptp(values)
    scores: Scores = 100 - np.trunc(100 * ((values - values.min()) / (span or 1.0)))
    return scores


def _marked(costs: Scores, columns: PowerColumns, rows: Rows, after: Integers) -> Scores:
    """Return the costs, with rows that would be overloaded or whose usage is not known marked."""
    marked: Scores = np.where(after > columns.capacity[rows], OVERLOADED, costs)
    marked[columns.usage[rows] == UNKNOWN_USAGE] = UNKNOWN
    return marked


_COSTS: dict[PowerRule, Callable[[PowerColumns, Rows, PowerRequest], Scores]] = {
    PowerRule.LEAST_INCREASE: _least_increase,
    PowerRule.WAO_V1: _v1_cost,
    PowerRule.WAO_V2: _v2_cost,
    PowerRule.PEAKS: _peaks_cost,
}
_COMPARISONS: dict[PowerRule, Callable[[Scores, PowerRequest], Scores]] = {
    PowerRule.LEAST_INCREASE: _compare_increases,
    PowerRule.WAO_V1: _compare_v1,
    PowerRule.WAO_V2: _compare_v2,
    PowerRule.PEAKS: _compare_peaks,
}
