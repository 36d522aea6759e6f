"""Write the placements of datasets anew where the pods of their caches have moved.

Only where the operator was told to, and only what differs as a set. The patch carries the object's uid, so
that it never lands on another of the same name.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from berthmaster.api import names
from berthmaster.api.datasets import DatasetInternal, Placement
from berthmaster.cluster.client import PatchKind, Query
from berthmaster.cluster.errors import ApiError
from berthmaster.cluster.stores import Patches
from berthmaster_operator.datasets.mapping import DatasetMap
from berthmaster_operator.metrics import Metrics

logger = logging.getLogger(__name__)

WRITE_TIMEOUT_S = 10.0
_MANAGED: Query = {"fieldManager": names.OPERATOR_MANAGER}


class Store(Patches, Protocol):
    """Name the part of `Client` that is needed here."""


class PlacementWriter:
    """Brings stored placements in line with what is known of the caches; keys are `namespace/name`."""

    def __init__(
        self,
        store: Store,
        datasets: DatasetMap,
        *,
        may_write: Callable[[], bool],
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._datasets = datasets
        self._may_write = may_write
        self._metrics = metrics

    async def reconcile(self, key: str) -> None:
        """Write one dataset's placements if they are not true. Raises ClusterError."""
        stored, known = self._datasets.placements(key)
        if stored is None or known is None or not self._may_write():
            return
        if _as_sets(stored) == _as_sets(known):
            return
        path = (
            f"/apis/{stored.group}/{names.DATASHIM_VERSION}/namespaces/{stored.namespace}/"
            f"{names.DATASETS_INTERNAL}/{stored.name}/status"
        )
        placements = {
            "gateways": [it._asdict() for it in known.gateways],
            "datalocations": [it._asdict() for it in known.data_locations],
        }
        patch = {
            "metadata": {"uid": stored.uid},
            "status": {"caching": {"placements": placements}},
        }
        try:
            await self._store.patch(
                path, patch, PatchKind.MERGE, _MANAGED, timeout_s=WRITE_TIMEOUT_S
            )
        except ApiError as error:
            if error.is_not_found:
                # It is gone, which the watch says soon.
                return
            raise
        self._metrics.count_write("DatasetInternal", "patch")
        logger.info("placements written", extra={"dataset": key})


def _as_sets(internal: DatasetInternal) -> tuple[frozenset[Placement], frozenset[Placement]]:
    return frozenset(internal.gateways), frozenset(internal.data_locations)
