"""Disk IO: pods go where the disk behind emptyDir still has their bandwidth.

A driver describes each node's disks (NodeDiskDevice) and reports what is free (NodeDiskIOStats). The
operator turns both, with the disk models, into `disks[]` of the NodeInventory (`inventory`). A pod
asks by annotation (`request`); the disk's model turns that into the disk's units (`models`). A node
fits if its default disk has the read, the write and the total (`placement`), and of fitting nodes
the one with the larger free share wins, or the smaller one where the policy packs.

A report counts the pods whose uids stand beside it; every other pod held here is subtracted from it
(`columns`), so that neither a late nor an early report ever lets a disk be given twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from berthmaster.api.objects import Pod
from berthmaster.api.policy import PlacementPolicySpec
from berthmaster.api.settings.diskio import BlockSizePolicy
from berthmaster.concerns.diskio import placement, request
from berthmaster.concerns.diskio.columns import NO_MODEL, READY, DiskIOColumns
from berthmaster.concerns.diskio.request import DiskIORequest
from berthmaster.concerns.diskio.shapes import Usage
from berthmaster.concerns.shape import (
    Allocated,
    Codes,
    Fill,
    Holder,
    Placed,
    Reason,
    Rows,
    Scores,
)

_RESOURCES = ("read", "write")


class DiskIOConcern:
    """The shape of `concerns.shape.Concern`, for disk IO."""

    name = "diskio"

    def weight(self, policy: PlacementPolicySpec) -> int:
        """Return the policy's weight for disk IO."""
        return policy.concerns.diskio.weight

    def request(self, pod: Pod, policy: PlacementPolicySpec) -> DiskIORequest | None:
        """Return what the pod asks; raises `InvalidRequestError` as `request.read_request`."""
        return request.read_request(pod, policy)

    def usage(self, pod: Pod, allocated: Mapping[str, Any] | None) -> Usage | None:
        """Return what the pod uses; every pod uses at least the default."""
        return request.read_usage(pod, allocated)

    def new_columns(self) -> DiskIOColumns:
        """Return empty columns."""
        return DiskIOColumns()

    def configure(self, columns: DiskIOColumns, policies: Sequence[PlacementPolicySpec]) -> None:
        """Take the white lists of all policies together out of the books, and how block sizes are read."""
        settings = [policy.concerns.diskio for policy in policies]
        columns.configure(
            frozenset(name for it in settings for name in it.ns_white_list),
            takes_nearest=any(it.block_size_policy is BlockSizePolicy.NEAREST for it in settings),
        )

    def charge(self, columns: DiskIOColumns, row: int, holder: Holder, usage: Usage) -> None:
        """Let the holder use the row's disk."""
        columns.charge(row, holder, usage)

    def release(self, columns: DiskIOColumns, row: int, holder: Holder, usage: Usage) -> None:
        """Give back what the holder used."""
        columns.release(row, holder, usage)

    def rename(
        self, columns: DiskIOColumns, row: int, before: Holder, after: Holder, usage: Usage
    ) -> bool:
        """Let a pod have what its answer has; the drivers may have reported the pod."""
        return columns.rename(row, before, after, usage)

    def filter(self, columns: DiskIOColumns, rows: Rows, request: DiskIORequest) -> Codes:
        """Return why each row's disk will not do, 0 if it will."""
        return placement.filter_rows(columns, rows, request)

    def score(self, columns: DiskIOColumns, rows: Rows, request: DiskIORequest) -> Scores:
        """Return 0..100 per row by the request's strategy."""
        return placement.score_rows(columns, rows, request)

    def allocate(
        self, columns: DiskIOColumns, row: int, request: DiskIORequest, beside: Allocated
    ) -> dict[str, Any]:
        """Return the disk, what was asked, and what that is in the disk's units (bytes/s)."""
        disk = columns.disk(row)
        if columns.state[row] not in (READY, NO_MODEL) or disk is None:
            return {}
        read, write = columns.needed(row, request.usage)
        allocation: dict[str, Any] = {"device": disk.id, "read": read, "write": write}
        if request.usage.block_size:
            allocation["rbps"] = request.usage.read_bytes_per_s
            allocation["wbps"] = request.usage.write_bytes_per_s
            allocation["blockSize"] = request.usage.block_size
        return allocation

    def annotations(
        self, columns: DiskIOColumns, pod: Pod, allocated: Mapping[str, Any], placed: Placed
    ) -> Mapping[str, str]:
        """Return the request in the form that every IO driver reads, where it is in another."""
        return request.write_for_drivers(pod, allocated)

    def explain(
        self, columns: DiskIOColumns, row: int, code: int, request: DiskIORequest, node: str
    ) -> Reason:
        """Return upstream's words for a refusal."""
        return placement.explain(columns, row, code, request, node)

    def fills(self, columns: DiskIOColumns, rows: Rows) -> Sequence[Fill]:
        """Return reading and writing of the rows' disks, in normalised bytes per second."""
        used = columns.capacity - columns.free + columns.excess
        return [
            Fill(
                resource=resource,
                unit="bytes_per_second",
                capacity=columns.capacity[dimension, rows].astype(float),
                used=used[dimension, rows].astype(float),
            )
            for dimension, resource in enumerate(_RESOURCES)
        ]

    def amounts(
        self, columns: DiskIOColumns, row: int, holder: Holder, usage: Usage
    ) -> Mapping[str, float]:
        """Return what the holder reads and writes, in the units of the row's disk."""
        if holder.namespace in columns.white_list or columns.disk(row) is None:
            return {}
        return dict(zip(_RESOURCES, map(float, columns.needed(row, usage)), strict=True))


CONCERN = DiskIOConcern()
