"""Resources: the concern that keeps us in agreement with kube-scheduler.

Whatever node we choose, kube-scheduler checks it again and binds. A choice that it refuses would
leave the pod pinned to a node that it cannot have. So this concern reckons as kube-scheduler does:
effective requests with init containers, sidecars, overhead, pod-level requests and resizes under
way; the number of pods; extended resources; taints, also those that a node's conditions are about to
bring, and tolerations; node selector and required node affinity; host ports; the claims of volumes;
required affinity and anti-affinity between pods; topology spread that is not to be scheduled past. It
reads the core objects themselves, needs no exporter and records nothing on the pod: what a pod holds
follows from its spec, whoever placed it. Its score is LeastAllocated over cpu and memory; with
weight 0, the default, it only breaks ties between equally good nodes. What kube-scheduler knows
beyond this is listed in docs/architecture.md.

    filter     what a row says by itself                 placement.py, labels.py, columns.py
    across     claims, spread, pods near and far         across.py, peers.py, storage.py, volumes.py,
                                                         attachments.py
    request    what a pod asks, what it is to others     request.py, terms.py, label_selectors.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from berthmaster.api.objects import Pod
from berthmaster.api.policy import PlacementPolicySpec
from berthmaster.concerns.resources.across import across_codes, object_to
from berthmaster.concerns.resources.columns import ResourcesColumns
from berthmaster.concerns.resources.placement import filter_rows, score_rows
from berthmaster.concerns.resources.reasons import explain_code
from berthmaster.concerns.resources.request import (
    CPU,
    MEMORY,
    PODS,
    ResourcesRequest,
    ResourcesUsage,
    read_holding,
    read_request,
)
from berthmaster.concerns.shape import (
    Allocated,
    Codes,
    Fill,
    Holder,
    InvalidRequestError,
    Placed,
    Reason,
    Rows,
    Scores,
    Surrounding,
    WideConcern,
)

# Units, and how many of what is counted make one.
_UNITS = {CPU: ("cores", 1000), MEMORY: ("bytes", 1), PODS: ("pods", 1)}


class ResourcesConcern:
    """The functions of this package in the shape of a concern."""

    name = "resources"

    def weight(self, policy: PlacementPolicySpec) -> int:
        """Return the policy's weight; 0 by default."""
        return policy.concerns.resources.weight

    def request(self, pod: Pod, policy: PlacementPolicySpec) -> ResourcesRequest | None:
        """Return what the pod asks; every pod asks at least for being one of the node's pods.

        Raises:
            InvalidRequestError: a quantity cannot be read.
        """
        request = read_request(pod)
        if request.problems:
            raise InvalidRequestError(*request.problems, request=request)
        return request

    def usage(self, pod: Pod, allocated: Mapping[str, Any] | None) -> ResourcesUsage | None:
        """Return what the pod holds; quantities that cannot be read count 0."""
        return read_holding(pod)

    def new_columns(self) -> ResourcesColumns:
        """Return empty columns."""
        return ResourcesColumns()

    def configure(self, columns: ResourcesColumns, policies: Sequence[PlacementPolicySpec]) -> None:
        """Take nothing over: policies say nothing here that concerns all nodes."""

    def charge(
        self, columns: ResourcesColumns, row: int, holder: Holder, usage: ResourcesUsage
    ) -> None:
        """Let the holder use the row."""
        columns.charge(row, holder.key, usage)

    def release(
        self, columns: ResourcesColumns, row: int, holder: Holder, usage: ResourcesUsage
    ) -> None:
        """Undo `charge`; a second release does nothing."""
        columns.release(row, holder.key)

    def rename(
        self,
        columns: ResourcesColumns,
        row: int,
        before: Holder,
        after: Holder,
        usage: ResourcesUsage,
    ) -> bool:
        """Let a pod have what its answer has."""
        columns.rename(row, before.key, after.key)
        return False

    def observe(
        self, columns: ResourcesColumns, found: Surrounding, *, is_gone: bool = False
    ) -> None:
        """Take over a namespace's labels or an object of storage."""
        columns.observe(found, is_gone=is_gone)

    def news(self, columns: ResourcesColumns) -> int:
        """Return a number that moves when storage or the count of a remembered selector does."""
        return columns.peers.changes + columns.storage.changes + columns.namespace_changes

    def resolve(self, columns: ResourcesColumns, request: ResourcesRequest) -> ResourcesRequest:
        """Name in the request the terms of other pods that keep this one away."""
        wishes = request.wishes
        if wishes is None or not (columns.peers.any_repels or wishes.objections):
            return request
        objections = object_to(columns, wishes)
        if objections == wishes.objections:
            return request
        return replace(request, wishes=replace(wishes, objections=objections))

    def local(self, request: ResourcesRequest) -> ResourcesRequest:
        """Return the request without what other pods and storage have to do with."""
        return request if request.wishes is None else replace(request, wishes=None)

    def across(self, columns: ResourcesColumns, request: ResourcesRequest) -> Codes | None:
        """Return a code per row for claims, spread and affinity between pods; None without any."""
        return across_codes(columns, request)

    def filter(self, columns: ResourcesColumns, rows: Rows, request: ResourcesRequest) -> Codes:
        """Return a code per given row, 0 where kube-scheduler would accept the pod."""
        return filter_rows(columns, rows, request)

    def needs(self, request: ResourcesRequest) -> Mapping[str, int]:
        """Return the amounts that are asked, by resource."""
        return dict(request.usage.amounts)

    def free(self, columns: ResourcesColumns, row: int) -> Mapping[str, int]:
        """Return what is left of each resource that any node has advertised."""
        return columns.free(row)

    def score(self, columns: ResourcesColumns, rows: Rows, request: ResourcesRequest) -> Scores:
        """Return 0..100 per given row, more for the emptier node."""
        return score_rows(columns, rows, request)

    def allocate(
        self, columns: ResourcesColumns, row: int, request: ResourcesRequest, beside: Allocated
    ) -> dict[str, Any]:
        """Return nothing: the pod's spec says it all."""
        return {}

    def annotations(
        self, columns: ResourcesColumns, pod: Pod, allocated: Mapping[str, Any], placed: Placed
    ) -> Mapping[str, str]:
        """Return nothing."""
        return {}

    def explain(
        self,
        columns: ResourcesColumns,
        row: int,
        code: int,
        request: ResourcesRequest,
        node: str,
    ) -> Reason:
        """Return kube-scheduler's words for a code."""
        return explain_code(columns, np.array([row], dtype=np.intp), code, request)

    def fills(self, columns: ResourcesColumns, rows: Rows) -> Sequence[Fill]:
        """Return cpu, memory and the number of pods, as kube-scheduler counts them."""
        fills = []
        for resource, (unit, scale) in _UNITS.items():
            slot = columns.slots[resource]
            capacity, used = columns.capacity[slot][rows], columns.used[slot][rows]
            fills.append(
                Fill(resource=resource, unit=unit, capacity=capacity / scale, used=used / scale)
            )
        return fills

    def amounts(
        self, columns: ResourcesColumns, row: int, holder: Holder, usage: ResourcesUsage
    ) -> Mapping[str, float]:
        """Return what the holder requests."""
        amounts = dict(usage.amounts)
        return {name: amounts.get(name, 0) / scale for name, (_, scale) in _UNITS.items()}


CONCERN: WideConcern[ResourcesColumns, ResourcesRequest, ResourcesUsage] = ResourcesConcern()
