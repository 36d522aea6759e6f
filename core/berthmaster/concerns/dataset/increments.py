"""The scores of datasets as node affinity, which kube-scheduler reckons with itself.

Its NodeAffinity plugin adds the weights of all preferred terms that match a node, and scales the best node to
100. So the tiers 100, 50 and 25 become increments, for each dataset:

    node    100 - 50    the nodes themselves, by hostname
    zone     50 - 25    one term for each (zone, region) that a node of the dataset is in
    region   25         one term with all their regions

A gateway's node matches all three, a neighbour in its zone two, one in its region one. Where the gateway's node
is out of the question kube-scheduler scales the neighbours up, which is the fallback that is wanted. Nodes
that miss a label, or whose gateway is busy, get with their own term what the others do not add up to.

Of n datasets each counts one n-th, so weights are the differences of tiers that were divided by n, times this
concern's share in the total, and rounded, at least 1. The nodes of datasets without a gateway are
required where the pod or its policy wants it so, in all of them at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from berthmaster.api import names
from berthmaster.concerns.dataset.columns import DatasetColumns, Place
from berthmaster.concerns.dataset.placement import is_busy
from berthmaster.concerns.dataset.request import DatasetRequest, Weights
from berthmaster.concerns.shape import NodeTerms

Term = Mapping[str, Any]
# Of one dataset, so that no pod grows without bound: further nodes count as neighbours.
_MOST_HOSTNAMES = 256
_MOST_TERMS = 32


def node_terms(
    columns: DatasetColumns, row: int, request: DatasetRequest, share: Fraction
) -> NodeTerms | None:
    """Return the terms of a resolved request for a pod whose best row is `row`; None if it has none to say."""
    if not request.found:
        return _away_from_files(columns, request, share)
    required: tuple[Term, ...] = ()
    preferred: list[Term] = []
    part = share / len(request.found)
    bound: list[set[int]] = []
    for key, _ in request.found:
        if request.is_required and not columns.has_gateway(key):
            bound.append(columns.rows_of(key))
        elif part:
            preferred += _increments(columns, key, request, part)
    if bound:
        rows = set.intersection(*bound)
        # The chosen one first: it is never cut off.
        places = [columns.places[it] for it in sorted(rows, key=lambda it: (it != row, it))]
        required = tuple(_names(columns, places))
    return NodeTerms(required=required, preferred=tuple(preferred))


def _away_from_files(
    columns: DatasetColumns, request: DatasetRequest, share: Fraction
) -> NodeTerms | None:
    """Return what keeps a pod without datasets a little away from the data of file systems.

    Nodes are named by hostname alone: one that has none is no worse than others.
    """
    rows = np.flatnonzero(columns.has_files)
    values = [columns.places[row].hostname for row in rows if columns.places[row].hostname]
    if not (request.avoids and share and values):
        return None
    term = {"key": names.HOSTNAME_LABEL, "operator": "NotIn", "values": values[:_MOST_HOSTNAMES]}
    weight = max(1, round(request.avoids * share))
    return NodeTerms(preferred=({"weight": weight, "preference": {"matchExpressions": [term]}},))


def _increments(
    columns: DatasetColumns, key: str, request: DatasetRequest, part: Fraction
) -> Iterator[Term]:
    node, zone, region = _rounded(request.weights, part)
    rows = np.array(sorted(columns.rows_of(key)), dtype=np.intp)
    places = [columns.places[row] for row in rows]
    busy = is_busy(columns, rows, request) & columns.has_gateway(key)
    own: dict[int, list[Place]] = defaultdict(list)
    for place, has_busy_gateway in zip(places, busy, strict=True):
        given = zone if place.pair else region if place.region else 0
        own[(zone if has_busy_gateway else node) - given].append(place)
    for weight, of_weight in own.items():
        if weight > 0:
            for term in _names(columns, of_weight):
                yield {"weight": weight, "preference": term}
    pairs = sorted({(it.zone, it.region_name) for it in places if it.pair})
    if zone > region:
        for pair in pairs[:_MOST_TERMS]:
            both = [_in(names.ZONE, [pair[0]]), _in(names.REGION, [pair[1]])]
            yield {"weight": zone - region, "preference": {"matchExpressions": both}}
    regions = sorted({it.region_name for it in places if it.region})
    if regions and region > 0:
        yield {"weight": region, "preference": {"matchExpressions": [_in(names.REGION, regions)]}}


def _rounded(weights: Weights, part: Fraction) -> tuple[int, int, int]:
    """Return the tiers of one dataset of several, each at least 1 above the next where it is above it."""
    node, zone, region = weights
    least = 1 if region else 0
    low = max(round(region * part), least)
    middle = max(round(zone * part), low + (1 if zone > region else 0))
    high = max(round(node * part), middle + (1 if node > zone else 0))
    return high, middle, low


def _names(columns: DatasetColumns, places: Iterable[Place]) -> Iterator[Term]:
    """Yield terms that together mean these nodes: by hostname where that is theirs alone, else by name."""
    by_hostname: list[Place] = []
    by_name: list[Place] = []
    for place in places:
        is_own = place.hostname and columns.hostnames[place.hostname] == 1
        (by_hostname if is_own else by_name).append(place)
    if by_hostname:
        values = [it.hostname for it in by_hostname[:_MOST_HOSTNAMES]]
        yield {"matchExpressions": [_in(names.HOSTNAME_LABEL, values)]}
    for place in by_name[:_MOST_TERMS]:
        # The API allows one name in a field.
        yield {"matchFields": [_in(names.NODE_NAME_FIELD, [place.name])]}


def _in(key: str, values: list[str]) -> dict[str, Any]:
    return {"key": key, "operator": "In", "values": values}
