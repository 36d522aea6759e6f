"""Resources: the concern that keeps us in agreement with kube-scheduler.

Whatever node we choose, kube-scheduler checks it again and binds. A choice that it refuses would
leave the pod pinned to a node that it cannot have. So this concern reckons as kube-scheduler does:
effective requests with init containers, sidecars, overhead, pod-level requests and resizes under
way; the number of pods; extended resources; taints and tolerations; node selector and required
node affinity; host ports. It reads the Node itself, needs no exporter and records nothing on the
pod: what a pod holds follows from its spec, whoever placed it. Its score is LeastAllocated over
cpu and memory; with weight 0, the default, it only breaks ties between equally good nodes.
Not known here: volumes, inter-pod affinity, topology spread and devices behind ResourceClaims.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from berthmaster.api.objects import Pod
from berthmaster.api.policy import PlacementPolicySpec
from berthmaster.concerns.resources.columns import ResourcesColumns
from berthmaster.concerns.resources.placement import filter_rows, score_rows
from berthmaster.concerns.resources.reasons import explain_code
from berthmaster.concerns.resources.request import (
    ResourcesRequest,
    ResourcesUsage,
    read_request,
    read_usage,
)
from berthmaster.concerns.shape import (
    Codes,
    Concern,
    Holder,
    InvalidRequestError,
    Reason,
    Rows,
    Scores,
)


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
        return read_usage(pod)[0]

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

    def filter(self, columns: ResourcesColumns, rows: Rows, request: ResourcesRequest) -> Codes:
        """Return a code per given row, 0 where kube-scheduler would accept the pod."""
        return filter_rows(columns, rows, request)

    def score(self, columns: ResourcesColumns, rows: Rows, request: ResourcesRequest) -> Scores:
        """Return 0..100 per given row, more for the emptier node."""
        return score_rows(columns, rows, request)

    def allocate(
        self, columns: ResourcesColumns, row: int, request: ResourcesRequest
    ) -> dict[str, Any]:
        """Return nothing: the pod's spec says it all."""
        return {}

    def annotations(self, pod: Pod, allocated: Mapping[str, Any]) -> Mapping[str, str]:
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


CONCERN: Concern[ResourcesColumns, ResourcesRequest, ResourcesUsage] = ResourcesConcern()
