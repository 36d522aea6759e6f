"""What a pod asks of a disk, by its annotations (`shapes`) and its policy.

A pod that asks nothing is best effort and counts 5Mi read and 5Mi write, un-scaled, or what its policy
says; one with an empty annotation always counts the former, and fits only nodes whose disks are known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeGuard

from berthmaster.api import names
from berthmaster.api.objects import Pod
from berthmaster.api.policy import PlacementPolicySpec
from berthmaster.api.quantities import LIMIT, format_size
from berthmaster.api.settings.diskio import BlockSizePolicy, DiskIOSettings, Strategy, UnknownModel
from berthmaster.concerns.diskio.block_sizes import BLOCK_SIZES
from berthmaster.concerns.diskio.shapes import (
    BEST_EFFORT,
    Rules,
    Usage,
    is_for_every_driver,
    read_annotations,
)
from berthmaster.concerns.shape import InvalidRequestError

_STRICT, _NEAREST = Rules(BlockSizePolicy.STRICT), Rules(BlockSizePolicy.NEAREST)


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
        usage=usage if usage is not None else _default_of(settings),
        is_io_requiring=usage is not None,
        strategy=settings.strategy,
        problem="; ".join(problem.message for problem in problems),
        needs_model=settings.unknown_model is UnknownModel.REFUSE,
        reserve_percent=settings.reserve_percent,
    )
    if problems:
        raise InvalidRequestError(*problems, request=request)
    return request


def _default_of(settings: DiskIOSettings) -> Usage:
    default = settings.default_request
    if default is None:
        return BEST_EFFORT
    return Usage(default.read, default.write, default.block_size)


def read_usage(pod: Pod, allocated: Mapping[str, Any] | None) -> Usage:
    """Return what a pod holds: as allocated, else as annotated, else the default; never raises."""
    if not allocated:
        return _annotated(pod)
    read, write = allocated.get("rbps"), allocated.get("wbps")
    block_size = allocated.get("blockSize")
    # An allocation that was forged before our policies were there may hold anything.
    if not isinstance(block_size, str) or block_size not in BLOCK_SIZES:
        return BEST_EFFORT
    if _is_rate(read) and _is_rate(write):
        return Usage(read, write, block_size)
    return BEST_EFFORT


def _annotated(pod: Pod) -> Usage:
    """Return what a pod asks, by whichever policy; with any fault the default."""
    usage, problems = read_annotations(pod.annotations, _STRICT)
    if problems:
        usage, problems = read_annotations(pod.annotations, _NEAREST)
        if usage is not None and not problems:
            return usage._replace(needs_nearest=True)
    return usage or BEST_EFFORT


def write_for_drivers(pod: Pod, allocated: Mapping[str, Any]) -> dict[str, str]:
    """Return the annotation that says to an IO driver what was allocated, none if it stands there.

    Drivers charge what they find in the pod's annotation. The reference driver knows only the flat
    shape, takes quantities with a fraction for 0, and hangs on a block size that it does not know.
    """
    usage = read_usage(pod, allocated) if allocated else BEST_EFFORT
    if not usage.block_size:
        return {}
    if is_for_every_driver(pod.annotations.get(names.DISKIO_REQUEST), usage):
        return {}
    request = {
        "rbps": format_size(usage.read_bytes_per_s),
        "wbps": format_size(usage.write_bytes_per_s),
        "blocksize": usage.block_size,
    }
    return {names.DISKIO_REQUEST: json.dumps(request)}


def _is_rate(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LIMIT
