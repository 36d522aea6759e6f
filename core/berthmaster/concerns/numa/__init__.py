"""NUMA: pods go where their kubelet will find zones for them, so that it never has to refuse one.

An updater on each node publishes its zones (NodeResourceTopology). The operator turns that into
`topology` and `zones` of the NodeInventory, and says which pods the numbers count (`inventory`). A
pod asks by its limits (`request`): cpu, memory and hugepages if it is Guaranteed, devices always. What
each zone has left is kept per node (`columns`, `zones`); a node fits if its zones serve the pod as
its kubelet would (`aligning`, `restricted`), and of fitting nodes the strategy decides (`scoring`,
`fewest`). The answer records which zone gives what, so that the next pod finds it taken.

Decisions are upstream's, word for word; its known defects only with `strictUpstream`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from berthmaster.api.objects import Pod
from berthmaster.api.policy import PlacementPolicySpec
from berthmaster.concerns.numa import advising, explaining, placement, request
from berthmaster.concerns.numa.amounts import CPU, MEMORY, scale_of
from berthmaster.concerns.numa.columns import NumaColumns
from berthmaster.concerns.numa.request import NumaRequest, NumaUsage
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

_UNITS = {CPU: "cores", MEMORY: "bytes"}


class NumaConcern:
    """The shape of `concerns.shape.Concern`, for NUMA."""

    name = "numa"

    def weight(self, policy: PlacementPolicySpec) -> int:
        """Return the policy's weight for NUMA."""
        return policy.concerns.numa.weight

    def request(self, pod: Pod, policy: PlacementPolicySpec) -> NumaRequest | None:
        """Return what the pod asks; raises `InvalidRequestError` as `request.read_pod`."""
        return request.read_pod(pod, policy)

    def usage(self, pod: Pod, allocated: Mapping[str, Any] | None) -> NumaUsage | None:
        """Return what the pod holds exclusively; None if nothing."""
        return request.read_usage(pod, allocated)

    def new_columns(self) -> NumaColumns:
        """Return empty columns."""
        return NumaColumns()

    def configure(self, columns: NumaColumns, policies: Sequence[PlacementPolicySpec]) -> None:
        """Take over how the cluster's books are kept."""
        columns.configure(policies)

    def charge(self, columns: NumaColumns, row: int, holder: Holder, usage: NumaUsage) -> None:
        """Let the holder use the row's zones."""
        columns.charge(row, holder, usage)

    def release(self, columns: NumaColumns, row: int, holder: Holder, usage: NumaUsage) -> None:
        """Give back what the holder used."""
        columns.release(row, holder)

    def rename(
        self, columns: NumaColumns, row: int, before: Holder, after: Holder, usage: NumaUsage
    ) -> bool:
        """Let a pod use what its answer does; the topology may count the pod."""
        return columns.rename(row, before, after, usage)

    def filter(self, columns: NumaColumns, rows: Rows, request: NumaRequest) -> Codes:
        """Return why each row's zones will not do, 0 if they will."""
        return placement.filter_rows(columns, rows, request)

    def score(self, columns: NumaColumns, rows: Rows, request: NumaRequest) -> Scores:
        """Return 0..100 per row by the request's strategy."""
        return placement.score_rows(columns, rows, request)

    def allocate(
        self, columns: NumaColumns, row: int, request: NumaRequest, beside: Allocated
    ) -> dict[str, Any]:
        """Return what each zone gives, by id and resource."""
        return placement.allocate_row(columns, row, request)

    def advise(
        self, columns: NumaColumns, pod: Pod, policy: PlacementPolicySpec
    ) -> tuple[str, ...]:
        """Return what kubelets will not align of the pod, where any node's zones are known."""
        return advising.advise(pod) if columns.has_topologies else ()

    def annotations(
        self, columns: NumaColumns, pod: Pod, allocated: Mapping[str, Any], placed: Placed
    ) -> Mapping[str, str]:
        """Return nothing: kubelets choose by themselves."""
        return {}

    def explain(
        self, columns: NumaColumns, row: int, code: int, request: NumaRequest, node: str
    ) -> Reason:
        """Return upstream's words for a refusal, with what would help."""
        return explaining.explain(columns, row, code, request)

    def fills(self, columns: NumaColumns, rows: Rows) -> Sequence[Fill]:
        """Return what pods hold alone of the rows' zones, all zones of a node together."""
        fills = []
        for resource, unit in _UNITS.items():
            amounts = np.array([columns.amounts(int(row), resource) for row in rows])
            capacity, used = amounts.reshape(-1, 2).T / scale_of(resource)
            fills.append(Fill(resource=resource, unit=unit, capacity=capacity, used=used))
        return fills

    def amounts(
        self, columns: NumaColumns, row: int, holder: Holder, usage: NumaUsage
    ) -> Mapping[str, float]:
        """Return what the holder's containers hold alone, of what the row's zones list."""
        zones = columns.zones(row)
        totals = {
            resource: sum(dict(amounts).get(resource, 0) for amounts in usage.containers)
            for resource in _UNITS
            if zones is not None and zones.lists(resource)
        }
        return {resource: total / scale_of(resource) for resource, total in totals.items()}


CONCERN = NumaConcern()
