"""Tell a Dataset's owner, by Events on it, what keeps pods from being placed near its cache.

Stale placements and odd content are told when they begin or change; what Datashim itself says in the
Dataset's status (not provisioned, caching disabled) is not repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from berthmaster.api import names
from berthmaster.api.datasets import Dataset
from berthmaster.cluster.events import EventRecorder, ObjectRef
from berthmaster.concerns.dataset.inventory import DatasetState, Located
from berthmaster_operator.datasets.mapping import DatasetMap


class Whole(Protocol):
    """Says whether the cluster has been seen as a whole."""

    @property
    def is_complete(self) -> bool:
        """Return whether every kind was listed."""
        ...


class DatasetReporter:
    """Looks at one dataset after the other; keeps what was told."""

    def __init__(
        self,
        datasets: DatasetMap,
        fleet: Whole,
        *,
        may_write: Callable[[], bool],
        events: EventRecorder,
    ) -> None:
        self._datasets = datasets
        self._fleet = fleet
        self._may_write = may_write
        self._events = events
        self._told: dict[str, tuple[str, ...]] = {}

    async def reconcile(self, key: str) -> float | None:
        """Tell what is new about a dataset; never needs to look again by itself."""
        if not self._fleet.is_complete or not self._may_write():
            self._told.pop(key, None)
            return None
        dataset, internal, located = self._datasets.find(key)
        if dataset is None or located is None:
            self._told.pop(key, None)
            return None
        notes = (*_notes(located), *dataset.problems, *(internal.problems if internal else ()))
        for note in notes:
            if note not in self._told.get(key, ()):
                self._events.record(
                    _reference(dataset), "DatasetNotLocated", note, action="Locate", type_="Warning"
                )
        self._told[key] = notes
        return None


def _notes(located: Located) -> tuple[str, ...]:
    effect = "pods are placed by the other placements"
    if located.state is DatasetState.STALE:
        effect = "pods that name it are placed as if they did not"
    if located.stale:
        return (f"placements are out of date: {located.describe()}; {effect}",)
    return ()


def _reference(dataset: Dataset) -> ObjectRef:
    return ObjectRef(
        api_version=f"{dataset.group}/{names.DATASHIM_VERSION}",
        kind="Dataset",
        name=dataset.name,
        namespace=dataset.namespace,
        uid=dataset.uid,
    )
