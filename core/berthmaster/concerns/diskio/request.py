"""What a pod asks of a disk, by its annotations (`shapes`) and its policy.

A pod that asks nothing is best effort and counts 5Mi read and 5Mi write, un-scaled; one with an
empty annotation counts the same, but fits only nodes whose disks are known.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeGuard

from berthmaster.api.objects import Pod
from berthmaster.api.policy import BlockSizePolicy, PlacementPolicySpec, Strategy, UnknownModel
from berthmaster.api.quantities import LIMIT
from berthmaster.concerns.diskio.block_sizes import BLOCK_SIZES
from berthmaster.concerns.diskio.shapes import BEST_EFFORT, Rules, Usage, read_annotations
from berthmaster.concerns.shape import InvalidRequestError

# What a pod holds must not depend on which policy selects it, so every spelling counts.
_LENIENT = Rules(BlockSizePolicy.NEAREST)


class DiskIORequest(NamedTuple):
    """What a pod asks; with a `problem` it is refused by every node that knows its disks."""

    usage: Usage
    is_io_requiring: bool
    strategy: Strategy
    problem: str = ""
    needs_model: bool = True
    reserve_percent: int = 0


def read_request(pod: Pod, policy: PlacementPolicySpec) -> DiskIORequest | None:
    """Return what the pod asks; None for a white-listed namespace.

    Raises:
        InvalidRequestError: the annotations cannot be understood, or contradict each other.
    """
    settings = policy.concerns.diskio
    if pod.metadata.namespace in settings.ns_white_list:
        return None
    rules = Rules(settings.block_size_policy, settings.default_block_size)
    usage, problems = read_annotations(pod.annotations, rules)
    request = DiskIORequest(
        usage=usage if usage is not None else BEST_EFFORT,
        is_io_requiring=usage is not None,
        strategy=settings.strategy,
        problem="; ".join(problem.message for problem in problems),
        needs_model=settings.unknown_model is UnknownModel.REFUSE,
        reserve_percent=settings.reserve_percent,
    )
    if problems:
        raise InvalidRequestError(*problems, request=request)
    return request


def read_usage(pod: Pod, allocated: Mapping[str, Any] | None) -> Usage:
    """Return what a pod holds: as allocated, else as annotated, else the default; never raises."""
    if not allocated:
        return read_annotations(pod.annotations, _LENIENT)[0] or BEST_EFFORT
    read, write = allocated.get("rbps"), allocated.get("wbps")
    block_size = allocated.get("blockSize")
    # An allocation that was forged before our policies were there may hold anything.
    if not isinstance(block_size, str) or block_size not in BLOCK_SIZES:
        return BEST_EFFORT
    if _is_rate(read) and _is_rate(write):
        return Usage(read, write, block_size)
    return BEST_EFFORT


def _is_rate(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LIMIT
