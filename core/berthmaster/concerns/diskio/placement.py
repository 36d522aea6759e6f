"""Disk IO: which disks have the bandwidth, and which is the better one.

    share = (read / free read + write / free write) / 2     of what is still free, not of capacity
    LeastAllocated: floor((1 - share) * 100)                 MostAllocated: floor(share * 100)

A direction with nothing free counts as share 1. Worked: 30Mi/20Mi on a disk with 1000Mi/1000Mi free:
share 0.025, LeastAllocated 97. Nodes without known disks score 100 under both, as upstream has it.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from berthmaster.api.settings.diskio import Strategy
from berthmaster.concerns.diskio import columns as states
from berthmaster.concerns.diskio import reasons
from berthmaster.concerns.diskio.columns import DiskIOColumns
from berthmaster.concerns.diskio.request import DiskIORequest
from berthmaster.concerns.shape import Codes, Reason, Rows, Scores

ArrayT = TypeVar("ArrayT", NDArray[np.int64], np.int64)

# Doubles come this close to a whole number only where the exact fraction may be one.
_DOUBTFUL = 1e-7


def filter_rows(columns: DiskIOColumns, rows: Rows, request: DiskIORequest) -> Codes:
    """Return a code per row, the first of upstream's checks that fails."""
    codes = np.zeros(len(rows), dtype=np.uint8)
    state = columns.state[rows]
    ready = _is_ready(state, request)
    if not ready.all():
        if request.is_io_requiring:
            codes[state == states.UNREGISTERED] = reasons.UNSUPPORTED_NODE
        codes[state == states.NO_DISK] = reasons.NO_DISK
        codes[(state == states.NO_MODEL) & ~ready] = reasons.NO_MODEL
    if request.problem:
        codes[ready] = reasons.INVALID
        return codes
    free = columns.free.take(rows, axis=1)
    if request.reserve_percent:
        free -= _reserve(columns.capacity.take(rows, axis=1), request)
    lacking = free < columns.needs(request.usage).take(columns.model[rows], axis=1)
    if lacking.any():
        lacking &= ready
        # Later checks first: the earlier one overwrites them.
        for dimension, code in (
            (2, reasons.SHORT_OF_TOTAL),
            (1, reasons.SHORT_OF_WRITE),
            (0, reasons.SHORT_OF_READ),
        ):
            codes[lacking[dimension]] = code
    return codes


def score_rows(columns: DiskIOColumns, rows: Rows, request: DiskIORequest) -> Scores:
    """Return 0..100 per row, exact: doubles near a whole number are worked out as fractions."""
    free = columns.free[:2].take(rows, axis=1)
    need = columns.needs(request.usage)[:2].take(columns.model[rows], axis=1)
    ready = _is_ready(columns.state[rows], request)
    shares = need / np.maximum(free, 1)
    shares[free <= 0] = 1.0
    percent = (shares[0] + shares[1]) * 50
    least = request.strategy is Strategy.LEAST_ALLOCATED
    value = 100 - percent if least else percent
    scores: Scores = np.floor(value)
    doubtful = ready & (np.abs(value - np.rint(value)) < _DOUBTFUL)
    if doubtful.any():
        scores[doubtful] = [
            _exact_score(*numbers, least=least)
            for numbers in zip(
                *(it[doubtful].tolist() for it in (need[0], free[0], need[1], free[1])), strict=True
            )
        ]
    scores[~ready] = 100.0
    return scores


def explain(
    columns: DiskIOColumns, row: int, code: int, request: DiskIORequest, node: str
) -> Reason:
    """Return upstream's words for a code, with what is missing."""
    disk = columns.disk(row)
    if code == reasons.UNSUPPORTED_NODE:
        return reasons.unsupported_node(node)
    if code == reasons.NO_DISK or disk is None:
        return reasons.no_disk()
    if code == reasons.NO_MODEL:
        return reasons.no_model(disk.model_key)
    if code == reasons.INVALID:
        return reasons.invalid(request.problem)
    dimension = code - reasons.SHORT_OF_READ
    read, write = columns.needed(row, request.usage)
    capacity = columns.capacity[dimension, row]
    return reasons.short(
        node,
        dimension,
        asked=(read, write, read + write)[dimension],
        free=int(columns.free[dimension, row]),
        capacity=int(capacity),
        reserve=int(_reserve(capacity, request)),
    )


def _is_ready(state: NDArray[np.uint8], request: DiskIORequest) -> NDArray[np.bool_]:
    """Return which disks may be used: without a model they count un-scaled, if the policy agrees."""
    ready: NDArray[np.bool_] = state == states.READY
    return ready if request.needs_model else ready | (state == states.NO_MODEL)


def _reserve(capacity: ArrayT, request: DiskIORequest) -> ArrayT:
    """Return what of a capacity has to stay free after this request, rounded up."""
    return -(-capacity * request.reserve_percent // 100)


@lru_cache(maxsize=4096)
def _exact_score(read: int, free_read: int, write: int, free_write: int, *, least: bool) -> float:
    share = (_share(read, free_read) + _share(write, free_write)) / 2
    percent = (1 - share) * 100 if least else share * 100
    return float(percent.numerator // percent.denominator)


def _share(need: int, free: int) -> Fraction:
    return Fraction(need, free) if free > 0 else Fraction(1)
