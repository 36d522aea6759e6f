"""PodSpread: the first part of a workload's pods is spread, as WAO's plugin of this name does.

A ReplicaSet carries `wao.bitmedia.co.jp/podspread-rate`, or the key of WAO's later group, and so do its pods.
While fewer than that share of its replicas are deployed, the next pod goes only where the fewest are: to a
region, a zone or a node (`across`). Pods are counted on the nodes that they are bound or answered to, by the
ReplicaSet that controls them (`columns`). Of nodes that are offered all are equally good.

Upstream's counting is kept, but for its known defects, which `strictUpstream` brings back: finished pods
count, and domains without an eligible node hold up the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from berthmaster.api.objects import Pod
from berthmaster.api.policy import PlacementPolicySpec
from berthmaster.concerns.podspread import across, request
from berthmaster.concerns.podspread.columns import PodSpreadColumns
from berthmaster.concerns.podspread.request import PodSpreadRequest, PodSpreadUsage
from berthmaster.concerns.shape import (
    Allocated,
    Codes,
    Holder,
    Placed,
    Reason,
    Rows,
    Scores,
    Surrounding,
)


class PodSpreadConcern:
    """The shape `WideConcern` of `concerns.shape`, for PodSpread."""

    name = "podspread"

    def weight(self, policy: PlacementPolicySpec) -> int:
        """Return 0: the spread only refuses."""
        return 0

    def request(self, pod: Pod, policy: PlacementPolicySpec) -> PodSpreadRequest | None:
        """Return which ReplicaSet's spread the pod takes part in; None for all other pods."""
        return request.read_request(pod, policy)

    def usage(self, pod: Pod, allocated: Mapping[str, Any] | None) -> PodSpreadUsage | None:
        """Return for which ReplicaSet the pod counts."""
        return request.read_usage(pod)

    def new_columns(self) -> PodSpreadColumns:
        """Return empty columns."""
        return PodSpreadColumns()

    def configure(self, columns: PodSpreadColumns, policies: Sequence[PlacementPolicySpec]) -> None:
        """Take nothing over: policies say nothing here that concerns all nodes."""

    def charge(
        self, columns: PodSpreadColumns, row: int, holder: Holder, usage: PodSpreadUsage
    ) -> None:
        """Count the holder."""
        columns.charge(row, holder.key, usage.owner)

    def release(
        self, columns: PodSpreadColumns, row: int, holder: Holder, usage: PodSpreadUsage
    ) -> None:
        """Count the holder no more."""
        columns.release(row, holder.key)

    def rename(
        self,
        columns: PodSpreadColumns,
        row: int,
        before: Holder,
        after: Holder,
        usage: PodSpreadUsage,
    ) -> bool:
        """Count a pod in place of its answer."""
        columns.rename(row, before.key, after.key)
        return False

    def observe(
        self, columns: PodSpreadColumns, found: Surrounding, *, is_gone: bool = False
    ) -> None:
        """Take over what ReplicaSets want, and where finished pods were."""
        columns.observe(found, is_gone=is_gone)

    def news(self, columns: PodSpreadColumns) -> int:
        """Return a number that moves when a spread ReplicaSet or its pods do."""
        return columns.changes

    def resolve(self, columns: PodSpreadColumns, request: PodSpreadRequest) -> PodSpreadRequest:
        """Note whether the ReplicaSet is known and spreads its pods."""
        return request._replace(is_active=request.owner in columns.wanted)

    def local(self, request: PodSpreadRequest) -> PodSpreadRequest | None:
        """Return what a row says by itself, which is the same for all pods: nothing."""
        return PodSpreadRequest("") if request.is_active else None

    def across(self, columns: PodSpreadColumns, request: PodSpreadRequest) -> Codes | None:
        """Return which rows the spread does not offer."""
        return across.across_codes(columns, request)

    def filter(self, columns: PodSpreadColumns, rows: Rows, request: PodSpreadRequest) -> Codes:
        """Return 0 for all rows."""
        return np.zeros(len(rows), dtype=np.uint8)

    def score(self, columns: PodSpreadColumns, rows: Rows, request: PodSpreadRequest) -> Scores:
        """Return 100 for all rows."""
        return np.full(len(rows), 100.0)

    def allocate(
        self, columns: PodSpreadColumns, row: int, request: PodSpreadRequest, beside: Allocated
    ) -> dict[str, Any]:
        """Return nothing: the pod's owner and node say it all."""
        return {}

    def annotations(
        self,
        columns: PodSpreadColumns,
        pod: Pod,
        allocated: Mapping[str, Any],
        placed: Placed,
    ) -> Mapping[str, str]:
        """Return nothing."""
        return {}

    def explain(
        self, columns: PodSpreadColumns, row: int, code: int, request: PodSpreadRequest, node: str
    ) -> Reason:
        """Return upstream's words."""
        return across.explain(code)


CONCERN = PodSpreadConcern()
