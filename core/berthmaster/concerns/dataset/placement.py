"""Datasets: which rows have the data, and how near each row is to them.

    tier(row) = node 100    the row is a gateway; or has the data, where there is no gateway
                zone 50     a row of the dataset is in the same zone and region
                region 25   in the same region
                0           else; labels that are missing are like nothing
    score     = floor(sum of the tiers / number of the pod's usable datasets), 0 without any; a pod that names none
                finds rows with the data of a file system a little worse than others, if its policy wants so

A busy gateway's row has the zone's tier. Worked: gateway on n1, another dataset's on n2 in the same zone: n1
scores (100 + 50) / 2 = 75, as does n2; a third node of the zone 50.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from berthmaster.api.datasets import UNFINISHED
from berthmaster.api.objects import Pod
from berthmaster.concerns.dataset import reasons
from berthmaster.concerns.dataset.columns import DatasetColumns
from berthmaster.concerns.dataset.inventory import DatasetState, state_of
from berthmaster.concerns.dataset.request import MOST_DATASETS, DatasetRequest, labelled_datasets
from berthmaster.concerns.shape import Codes, Reason, Rows, Scores

# What an allocation tells of, at most.
_TOLD = 8


def resolve(columns: DatasetColumns, request: DatasetRequest) -> DatasetRequest:
    """Return the request with the usable ones of its datasets, and which move each has made last."""
    found = tuple(
        (key, columns.moves[key])
        for key in (*request.labelled, *request.claimed)
        if columns.rows_of(key)
    )
    awaited = request.awaited
    if request.holds:
        awaited = tuple(key for key in request.labelled if _is_being_built(columns, key))
    if (found, awaited) == (request.found, request.awaited):
        return request
    return request._replace(found=found, awaited=awaited)


def local(request: DatasetRequest) -> DatasetRequest | None:
    """Return what filter and score go by; None where claims turned out to be no datasets."""
    if not request.labelled and not request.found and not request.avoids:
        return None
    return request._replace(labelled=(), claimed=())


def filter_rows(columns: DatasetColumns, rows: Rows, request: DatasetRequest) -> Codes:
    """Return a code per row: 0 where the data of all datasets without a gateway are."""
    codes = np.zeros(len(rows), dtype=np.uint8)
    if request.awaited:
        codes[:] = reasons.AWAITED
        return codes
    if request.is_required and request.found:
        codes[columns.sums(request).is_absent[rows]] = reasons.NOT_HERE
    return codes


def score_rows(columns: DatasetColumns, rows: Rows, request: DatasetRequest) -> Scores:
    """Return 0..100 per row, whole numbers."""
    if not request.found:
        # Nowhere near anything; or, for a pod that names no dataset, a little off file systems.
        alike = 100.0 if request.avoids else 0.0
        return np.where(columns.has_files[rows], alike - request.avoids, alike)
    sums = columns.sums(request)
    loss = request.weights.node - request.weights.zone
    total = sums.tiers[rows] - loss * sums.gateways[rows] * is_busy(columns, rows, request)
    scores: Scores = (total // len(request.found)).astype(np.float64)
    return scores


def allocate_row(columns: DatasetColumns, row: int, request: DatasetRequest) -> dict[str, Any]:
    """Return how near each dataset is, and whether the pod is beside a gateway of one."""
    keys = [key for key, _ in request.found]
    unusable = [it for it in request.labelled if it not in set(keys)]
    allocated: dict[str, Any] = {}
    if keys:
        allocated["datasets"] = {
            _name(key): _tell(columns, row, key, request) for key in keys[:_TOLD]
        }
    if unusable:
        allocated["notUsable"] = {_name(key): str(_state(columns, key)) for key in unusable[:_TOLD]}
    if any(columns.has_gateway(key) and row in columns.rows_of(key) for key in keys):
        allocated["besideGateway"] = True
    return allocated


def explain(columns: DatasetColumns, row: int, code: int, request: DatasetRequest) -> Reason:
    """Return what is waited for; or upstream's words, with what is not here and where all of it is."""
    if code == reasons.AWAITED:
        return reasons.awaited([_name(key) for key in request.awaited])
    keys = [key for key, _ in request.found if not columns.has_gateway(key)]
    absent = [_name(key) for key in keys if row not in columns.rows_of(key)]
    return reasons.not_here(absent, columns.common(request))


def advise(columns: DatasetColumns, pod: Pod) -> tuple[str, ...]:
    """Return one sentence about the datasets that a pod names by label and that are not usable."""
    labelled = labelled_datasets(pod)
    told = []
    if len(labelled) > MOST_DATASETS:
        told.append(f"datasets: {len(labelled)} are named, the first {MOST_DATASETS} count")
    unusable = [it for it in labelled[:MOST_DATASETS] if not columns.rows_of(it)]
    if unusable:
        more = f" (and {len(unusable) - 1} more)" if len(unusable) > 1 else ""
        told.append(
            f"datasets: {_name(unusable[0])} is {_state(columns, unusable[0])}{more}: the pod is placed "
            "as if it did not name it"
        )
    return tuple(told)


def _tell(columns: DatasetColumns, row: int, key: str, request: DatasetRequest) -> dict[str, Any]:
    rows = columns.rows_of(key)
    return {
        "mode": "gateway" if columns.has_gateway(key) else "filesystem",
        "nodes": len(rows),
        "at": [min(columns.places[it].name for it in rows)] if rows else [],
        "tier": columns.tier_at(key, row, request.weights),
    }


def _is_being_built(columns: DatasetColumns, key: str) -> bool:
    """Return whether a Dataset has a cache plugin that has not said yet where the cache is."""
    dataset = columns.find(key)
    return dataset is not None and dataset.caching in UNFINISHED and not columns.rows_of(key)


def _state(columns: DatasetColumns, key: str) -> DatasetState:
    """Return why a dataset is not usable.

    One of which nothing is wrong and which is nowhere is stale: where it is declared to be there is no node.
    """
    dataset = columns.find(key)
    if dataset is None:
        return DatasetState.MISSING
    is_declared = columns.is_declared(dataset)
    if is_declared is None:
        return DatasetState.NO_INTERNAL
    if (state := state_of(dataset)) is not None:
        return state
    return DatasetState.STALE if is_declared else DatasetState.NO_PLACEMENT


def is_busy(columns: DatasetColumns, rows: Rows, request: DatasetRequest) -> NDArray[np.bool_]:
    """Return which rows are busy as gateways, by a reading or by the pods that were placed beside them."""
    busy = columns.is_busy[rows]
    if request.pods_per_gateway:
        busy = busy | (columns.beside[rows] >= request.pods_per_gateway)
    return busy


def _name(key: str) -> str:
    return key.partition("/")[2]
