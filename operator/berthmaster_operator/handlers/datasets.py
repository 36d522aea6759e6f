"""Datashim's Dataset and DatasetInternal of both groups: how far the datasets are, and where.

Read only, and of their specs nothing: a Dataset may hold credentials. Neither group need be installed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import kopf

from berthmaster.api import names
from berthmaster.api.datasets import (
    Dataset,
    DatasetInternal,
    dataset_from_manifest,
    internal_from_manifest,
)
from berthmaster_operator.datasets.mapping import DatasetMap, Keyed

PLURALS: Mapping[str, tuple[type[Keyed], Callable[[Mapping[str, Any]], Keyed]]] = {
    names.DATASETS: (Dataset, dataset_from_manifest),
    names.DATASETS_INTERNAL: (DatasetInternal, internal_from_manifest),
}
# Each kind in each group, as (group, plural).
KINDS = tuple((group, plural) for group in names.DATASHIM_GROUPS for plural in PLURALS)


def path_of(group: str, plural: str) -> str:
    """Return where the API server keeps a kind."""
    return f"/apis/{group}/{names.DATASHIM_VERSION}/{plural}"


def take(
    datasets: DatasetMap,
    group: str,
    plural: str,
    manifest: Mapping[str, Any],
    *,
    is_gone: bool = False,
) -> None:
    """Hand one object on; never raises on odd content."""
    kind, read = PLURALS[plural]
    # Items of a list do not say of which group they are.
    found = read({**manifest, "apiVersion": f"{group}/{names.DATASHIM_VERSION}"})
    if is_gone:
        datasets.lose(kind, group, found.key, found.uid)
    elif found.name:
        datasets.see(found, manifest.get("metadata", {}).get("resourceVersion", ""))


def register(registry: kopf.OperatorRegistry, datasets: DatasetMap) -> None:
    """Have Kopf tell of every change."""
    for group, plural in KINDS:
        kopf.on.event(group, names.DATASHIM_VERSION, plural, registry=registry)(
            _handler(datasets, group, plural)
        )


def _handler(datasets: DatasetMap, group: str, plural: str) -> Callable[..., Any]:
    async def dataset_changed(event: kopf.RawEvent, **_: object) -> None:
        take(datasets, group, plural, event["object"], is_gone=event["type"] == "DELETED")

    return dataset_changed
