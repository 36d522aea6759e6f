"""XPU: several pods on one accelerator, by memory, never past it; and whole cards that belong together.

Agents, device plugins and administrators tell of a node's devices (NodeXPU, annotations and capacity of
the Node). The operator makes one list of them, `xpus[]` of the NodeInventory (`inventory`). A pod asks in
one of three dialects (`request`), all of which take from the same devices: a share of memory goes to the
fullest devices that have it (`shares`), whole cards and slices to cards that are linked (`cards`). What
pods have is told by the pods alone, by our allocation or by the dialects' annotations (`holdings`), and
taken off (`columns`). The answer is written in the dialect's words (`annotating`), so that its device
plugin, unmodified, hands out what was decided; a plugin that is not told which pod it serves gets pods
that it could mistake for each other one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from berthmaster.api.names import PLACEMENT
from berthmaster.api.objects import Pod
from berthmaster.api.policy import Mode, PlacementPolicySpec
from berthmaster.concerns.shape import (
    Allocated,
    Codes,
    Fill,
    Holder,
    Placed,
    Preparation,
    Reason,
    Rows,
    Scores,
)
from berthmaster.concerns.xpu import advising, annotating, holdings, placement, request, rounding
from berthmaster.concerns.xpu.columns import XPUColumns
from berthmaster.concerns.xpu.holdings import XPUHolding
from berthmaster.concerns.xpu.request import XPURequest

_MIB = 2**20


class XPUConcern:
    """The shape of `concerns.shape.Concern`, for accelerators."""

    name = "xpu"

    def weight(self, policy: PlacementPolicySpec) -> int:
        """Return the policy's weight for accelerators."""
        return policy.concerns.xpu.weight

    def request(self, pod: Pod, policy: PlacementPolicySpec) -> XPURequest | None:
        """Return what the pod asks; raises `InvalidRequestError` as `request.read_request`."""
        return request.read_request(pod, policy)

    def usage(self, pod: Pod, allocated: Mapping[str, Any] | None) -> XPUHolding | None:
        """Return what the pod says of its devices; None if nothing."""
        return holdings.read_holding(pod, allocated)

    def must_pin(self, pod: Pod, policy: PlacementPolicySpec) -> bool:
        """Return whether the pod names any device: the annotations are for one node's plugin."""
        return not policy.concerns.xpu.names_in_force.resources.isdisjoint(pod.asked_resources)

    def prepare(
        self,
        columns: XPUColumns,
        read: Callable[[], Mapping[str, Any]],
        pod: Pod,
        policy: PlacementPolicySpec,
    ) -> Preparation | None:
        """Write the sizes of slices back onto the pod; one that is only observed stays as it is."""
        names = policy.concerns.xpu.names_in_force
        if (
            names.slices not in pod.asked_resources
            or pod.annotations.get(PLACEMENT) == Mode.OBSERVE
        ):
            return None
        operations = rounding.round_slices(read(), names)
        return Preparation(operations=operations) if operations else None

    def lacks(self, columns: XPUColumns, pod: Pod, policy: PlacementPolicySpec) -> str:
        """Return nothing: it gets whole slices whatever its limits say."""
        return ""

    def advise(self, columns: XPUColumns, pod: Pod, policy: PlacementPolicySpec) -> Sequence[str]:
        """Return what the owner of a pod with devices should know."""
        return advising.advise(columns, pod, policy)

    def new_columns(self) -> XPUColumns:
        """Return empty columns."""
        return XPUColumns()

    def configure(self, columns: XPUColumns, policies: Sequence[PlacementPolicySpec]) -> None:
        """Take over what the cluster's dialects call things."""
        columns.configure(policies)

    def charge(self, columns: XPUColumns, row: int, holder: Holder, usage: XPUHolding) -> None:
        """Let the holder have its devices of the row."""
        columns.charge(row, holder, usage)

    def release(self, columns: XPUColumns, row: int, holder: Holder, usage: XPUHolding) -> None:
        """Give back what the holder had."""
        columns.release(row, holder)

    def rename(
        self, columns: XPUColumns, row: int, before: Holder, after: Holder, usage: XPUHolding
    ) -> bool:
        """Let a pod have the devices of its answer."""
        columns.rename(row, before, after)
        return False

    def filter(self, columns: XPUColumns, rows: Rows, request: XPURequest) -> Codes:
        """Return why each row's devices will not do, 0 if they will."""
        return placement.filter_rows(columns, rows, request)

    def score(self, columns: XPUColumns, rows: Rows, request: XPURequest) -> Scores:
        """Return 0..100 per row by the request's strategy."""
        return placement.score_rows(columns, rows, request)

    def allocate(
        self, columns: XPUColumns, row: int, request: XPURequest, beside: Allocated
    ) -> dict[str, Any]:
        """Return which devices give what, near the pod's CPUs if they can."""
        return placement.allocate_row(columns, row, request, beside)

    def annotations(
        self, columns: XPUColumns, pod: Pod, allocated: Mapping[str, Any], placed: Placed
    ) -> Mapping[str, str]:
        """Return what the dialect's device plugin reads."""
        return annotating.write_annotations(pod, allocated, placed, columns.names)

    def explain(
        self, columns: XPUColumns, row: int, code: int, request: XPURequest, node: str
    ) -> Reason:
        """Return the dialect's words for a refusal, with what would help."""
        return placement.explain(columns, row, code, request, node)

    def fills(self, columns: XPUColumns, rows: Rows) -> Sequence[Fill]:
        """Return the memory of the rows' devices, what pods take of no known device included."""
        used = columns.used[rows].sum(axis=1) + columns.pending[rows]
        return [
            Fill(
                resource="memory",
                unit="bytes",
                capacity=columns.sizes[rows].sum(axis=1) * float(_MIB),
                used=used * float(_MIB),
            )
        ]

    def amounts(
        self, columns: XPUColumns, row: int, holder: Holder, usage: XPUHolding
    ) -> Mapping[str, float]:
        """Return the memory that the holder has of the row's devices."""
        held = columns.held_by(row, holder)
        if held is None:
            return {}
        return {"memory": float((sum(mib for _, mib in held.mib) + held.pending_mib) * _MIB)}


CONCERN = XPUConcern()
