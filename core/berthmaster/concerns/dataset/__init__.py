"""Datasets: pods go on or near the node where the cache of their data is.

Datashim's Dataset and DatasetInternal say how far a dataset is and where its cache runs. The operator
turns that, with the labels of nodes, into `datasets[]` of the NodeInventory (`inventory`). A pod names
its datasets by labels, or mounts their claims (`request`). Behind a gateway the data are reached from
everywhere, so nearness only scores; without one they are a file system of certain nodes, and the pod
goes there (`placement`). Datasets that are missing, stale or not ready change nothing, unless the policy
wants a cache that is being built to be waited for.

A row's score depends on where other rows are. What it takes from them is named in the resolved request
(`DatasetRequest.found`), so that results are remembered until one of the pod's datasets moves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from berthmaster.api.datasets import CacheSighting, Dataset
from berthmaster.api.objects import Pod
from berthmaster.api.policy import PlacementPolicySpec
from berthmaster.concerns.dataset import increments, mounting, placement, request
from berthmaster.concerns.dataset.columns import DatasetColumns
from berthmaster.concerns.dataset.request import DatasetRequest, DatasetUsage
from berthmaster.concerns.shape import (
    Allocated,
    Codes,
    Holder,
    NodeTerms,
    Placed,
    Preparation,
    Reason,
    Rows,
    Scores,
    Surrounding,
    WideConcern,
)


class DatasetConcern:
    """The shape of `concerns.shape.WideConcern`, for datasets."""

    name = "dataset"

    def weight(self, policy: PlacementPolicySpec) -> int:
        """Return the policy's weight for datasets."""
        return policy.concerns.dataset.weight

    def request(self, pod: Pod, policy: PlacementPolicySpec) -> DatasetRequest | None:
        """Return the datasets of the pod; raises `InvalidRequestError` as `request.read_request`."""
        return request.read_request(pod, policy)

    def usage(self, pod: Pod, allocated: Mapping[str, Any] | None) -> DatasetUsage | None:
        """Return what the pod holds of a gateway; None if it is beside none."""
        return request.read_usage(allocated)

    def new_columns(self) -> DatasetColumns:
        """Return empty columns."""
        return DatasetColumns()

    def configure(self, columns: DatasetColumns, policies: Sequence[PlacementPolicySpec]) -> None:
        """Take nothing over: each request carries its policy's rules."""

    def charge(
        self, columns: DatasetColumns, row: int, holder: Holder, usage: DatasetUsage
    ) -> None:
        """Count the holder beside the row's gateways."""
        columns.charge(row, holder.key)

    def release(
        self, columns: DatasetColumns, row: int, holder: Holder, usage: DatasetUsage
    ) -> None:
        """Count it no more."""
        columns.release(row, holder.key)

    def rename(
        self,
        columns: DatasetColumns,
        row: int,
        before: Holder,
        after: Holder,
        usage: DatasetUsage,
    ) -> bool:
        """Count a pod in place of its answer."""
        columns.release(row, before.key)
        columns.charge(row, after.key)
        return False

    def observe(
        self, columns: DatasetColumns, found: Surrounding, *, is_gone: bool = False
    ) -> None:
        """Take over how far a Dataset is; where it is comes with the inventories."""
        if isinstance(found, Dataset):
            columns.observe(found, is_gone=is_gone)
        elif isinstance(found, CacheSighting):
            columns.sight(found, is_gone=is_gone)

    def news(self, columns: DatasetColumns) -> int:
        """Return a number that moves when a dataset does."""
        return columns.changes

    def resolve(self, columns: DatasetColumns, request: DatasetRequest) -> DatasetRequest:
        """Name in the request the datasets that are usable, and what move each has made last."""
        return placement.resolve(columns, request)

    def local(self, request: DatasetRequest) -> DatasetRequest | None:
        """Return the usable datasets and the rules; None if only claims were named, all foreign."""
        return placement.local(request)

    def across(self, columns: DatasetColumns, request: DatasetRequest) -> Codes | None:
        """Return nothing: what other rows matter is in the resolved request."""
        return None

    def filter(self, columns: DatasetColumns, rows: Rows, request: DatasetRequest) -> Codes:
        """Return a code per row, 0 where the data are or are reached through a gateway."""
        return placement.filter_rows(columns, rows, request)

    def score(self, columns: DatasetColumns, rows: Rows, request: DatasetRequest) -> Scores:
        """Return 0..100 per row, more for the nearer."""
        return placement.score_rows(columns, rows, request)

    def allocate(
        self, columns: DatasetColumns, row: int, request: DatasetRequest, beside: Allocated
    ) -> dict[str, Any]:
        """Return how near each dataset is."""
        return placement.allocate_row(columns, row, request)

    def annotations(
        self, columns: DatasetColumns, pod: Pod, allocated: Mapping[str, Any], placed: Placed
    ) -> Mapping[str, str]:
        """Return nothing: Datashim reads the labels."""
        return {}

    def prepare(
        self,
        columns: DatasetColumns,
        read: Callable[[], Mapping[str, Any]],
        pod: Pod,
        policy: PlacementPolicySpec,
    ) -> Preparation | None:
        """Mount the datasets that the labels name, where the policy wants us to and not Datashim."""
        if not policy.concerns.dataset.mounts:
            return None
        namespace = pod.metadata.namespace
        return mounting.mount(read(), namespace, lambda name: columns.find(f"{namespace}/{name}"))

    def lacks(self, columns: DatasetColumns, pod: Pod, policy: PlacementPolicySpec) -> str:
        """Return which datasets a pod would run without that was created while we were away."""
        lacking = mounting.unmounted(pod) if policy.concerns.dataset.mounts else ()
        return f"its datasets {', '.join(lacking)} are not mounted" if lacking else ""

    def advise(
        self, columns: DatasetColumns, pod: Pod, policy: PlacementPolicySpec
    ) -> tuple[str, ...]:
        """Return which datasets that the pod names by label it cannot be placed by, and why."""
        return placement.advise(columns, pod)

    def affinity(
        self, columns: DatasetColumns, row: int, request: DatasetRequest, share: Fraction
    ) -> NodeTerms | None:
        """Return the tiers as increments for kube-scheduler; None without usable datasets."""
        return increments.node_terms(columns, row, request, share)

    def explain(
        self, columns: DatasetColumns, row: int, code: int, request: DatasetRequest, node: str
    ) -> Reason:
        """Return upstream's words for a refusal, with what would help."""
        return placement.explain(columns, row, code, request)


CONCERN: WideConcern[DatasetColumns, DatasetRequest, DatasetUsage] = DatasetConcern()
