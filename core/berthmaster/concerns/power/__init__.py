"""Power: pods go where running them costs the fewest additional watts.

Meters and metrics say how warm a node is and how busy; a model says what that costs (WAO's model servers,
or a PowerModel with numbers). The operator asks for the whole curve, watts over CPU usage at the present
temperature, and puts it into `power` of the NodeInventory with its age and where it comes from
(`questions`, `inventory`). A pod asks by its CPU requests (`request`). What it adds to a node's usage is
read off the curve in memory (`columns`), and nodes are compared by the increase (`placement`).

Metrics are late by up to a minute, so a pod counts on its node from the answer until they show it. Power
only prefers: it refuses no node, and where nothing is known of any node it asks nothing. The rules of both
generations of WAO, and of Peaks, are settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from berthmaster.api.objects import Pod
from berthmaster.api.policy import PlacementPolicySpec
from berthmaster.api.settings.power import PowerRule
from berthmaster.concerns.power import placement, request
from berthmaster.concerns.power.columns import PowerColumns
from berthmaster.concerns.power.request import SHARE_PARTS, PowerRequest, PowerUsage
from berthmaster.concerns.shape import (
    Allocated,
    Codes,
    Fill,
    Holder,
    Placed,
    Reason,
    Rows,
    Scores,
    Surrounding,
)


class PowerConcern:
    """The shapes `WideConcern` and `RelativeConcern` of `concerns.shape`, for power."""

    name = "power"
    only_scores = True

    def weight(self, policy: PlacementPolicySpec) -> int:
        """Return the policy's weight for power."""
        return policy.concerns.power.weight

    def request(self, pod: Pod, policy: PlacementPolicySpec) -> PowerRequest | None:
        """Return what the pod asks; every pod uses some power."""
        return request.read_request(pod, policy)

    def usage(self, pod: Pod, allocated: Mapping[str, Any] | None) -> PowerUsage | None:
        """Return what the pod counts until metrics show it."""
        return request.read_usage(pod, allocated)

    def new_columns(self) -> PowerColumns:
        """Return empty columns."""
        return PowerColumns()

    def configure(self, columns: PowerColumns, policies: Sequence[PlacementPolicySpec]) -> None:
        """Take nothing over: what policies say together is for the operator."""

    def charge(self, columns: PowerColumns, row: int, holder: Holder, usage: PowerUsage) -> None:
        """Let the holder count on the row."""
        columns.charge(row, holder, usage)

    def release(self, columns: PowerColumns, row: int, holder: Holder, usage: PowerUsage) -> None:
        """Let the holder count no more."""
        columns.release(row, holder)

    def rename(
        self,
        columns: PowerColumns,
        row: int,
        before: Holder,
        after: Holder,
        usage: PowerUsage,
    ) -> bool:
        """Let a pod count as its answer does."""
        columns.rename(row, before.key, after.key)
        return False

    def observe(self, columns: PowerColumns, found: Surrounding, *, is_gone: bool = False) -> None:
        """Take nothing over: only nodes matter here."""

    def news(self, columns: PowerColumns) -> int:
        """Return a constant: nothing here keeps a pod waiting but what rows say."""
        return 0

    def resolve(self, columns: PowerColumns, request: PowerRequest) -> PowerRequest:
        """Note whether anything is known, and what share pods use; upstream's rules need neither."""
        if request.rule is not PowerRule.LEAST_INCREASE:
            return request
        parts = columns.used_parts() if request.learns else SHARE_PARTS
        return request._replace(is_answerable=columns.known > 0, used_parts=parts)

    def local(self, request: PowerRequest) -> PowerRequest | None:
        """Return the request, None where nothing is known of any node."""
        return request if request.is_answerable else None

    def across(self, columns: PowerColumns, request: PowerRequest) -> Codes | None:
        """Return what one node means for all others, which only strict WAO v1 wants."""
        return placement.across_codes(columns, request)

    def filter(self, columns: PowerColumns, rows: Rows, request: PowerRequest) -> Codes:
        """Return 0 for all rows, but for pods that the rule refuses everywhere."""
        return placement.filter_rows(columns, rows, request)

    def score(self, columns: PowerColumns, rows: Rows, request: PowerRequest) -> Scores:
        """Return what the pod costs on each row, in watts."""
        return placement.cost_rows(columns, rows, request)

    def normalize(self, columns: PowerColumns, values: Scores, request: PowerRequest) -> Scores:
        """Return 0..100 by the request's rule."""
        return placement.compare(values, request)

    def allocate(
        self, columns: PowerColumns, row: int, request: PowerRequest, beside: Allocated
    ) -> dict[str, Any]:
        """Return the additional watts, and where the figure comes from."""
        return placement.allocate_row(columns, row, request)

    def annotations(
        self, columns: PowerColumns, pod: Pod, allocated: Mapping[str, Any], placed: Placed
    ) -> Mapping[str, str]:
        """Return nothing."""
        return {}

    def explain(
        self, columns: PowerColumns, row: int, code: int, request: PowerRequest, node: str
    ) -> Reason:
        """Return upstream's words for a refusal."""
        return placement.explain(columns, code)

    def fills(self, columns: PowerColumns, rows: Rows) -> Sequence[Fill]:
        """Return what the rows draw, of what they would draw at the end of their curves."""
        # Of numbers where there are gaps.
        capacity = np.fmax.reduce(columns.watts[rows], axis=1, initial=0.0)
        used = np.maximum(np.nan_to_num(columns.before[rows]), 0.0)
        return [Fill(resource="power", unit="watts", capacity=capacity, used=used)]

    def amounts(
        self, columns: PowerColumns, row: int, holder: Holder, usage: PowerUsage
    ) -> Mapping[str, float]:
        """Return nothing: what a pod draws cannot be told from what others on its node draw."""
        return {}


CONCERN = PowerConcern()
