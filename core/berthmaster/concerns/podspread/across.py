"""Which nodes WAO's spread offers to the next pod of a ReplicaSet.

Until `redundancy` pods are deployed, only the domains with the fewest of them are offered: regions where
nodes have two or more, else zones, else nodes. Worked: redundancy 6, region a has 1 pod, b has 2 -> the
nodes of a; with 6 pods deployed -> all nodes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from berthmaster.concerns.podspread.columns import NO_DOMAIN, PodSpreadColumns
from berthmaster.concerns.podspread.request import PodSpreadRequest
from berthmaster.concerns.shape import Codes, Reason

NOT_OFFERED = 1

_FEWEST_DOMAINS = 2


def across_codes(columns: PodSpreadColumns, request: PodSpreadRequest) -> Codes | None:
    """Return a code per row, 0 where the spread offers the node; None where it offers all."""
    wanted = columns.wanted.get(request.owner)
    if wanted is None:
        return None
    deployed = columns.deployed(request.owner, with_finished=request.is_strict)
    if deployed.sum() >= wanted.redundancy:
        return None
    eligible = columns.is_node.copy()
    if not request.tolerates_control_plane:
        eligible &= ~columns.is_control_plane
    domains = _domains(columns)
    if domains is None:
        fewest = deployed[eligible].min(initial=np.iinfo(np.int64).max)
        offered = eligible & (deployed == fewest)
    else:
        offered = eligible & _in_least_domains(
            domains, deployed, eligible, is_strict=request.is_strict
        )
    return np.where(offered, 0, NOT_OFFERED).astype(np.uint8)


def explain(code: int) -> Reason:
    """Return upstream's words."""
    words = "node(s) didn't satisfy plugin PodSpread"
    return Reason(
        text=words,
        group=words,
        detail="other domains have fewer pods of this ReplicaSet, and its spread is not reached yet",
    )


def _domains(columns: PodSpreadColumns) -> NDArray[np.intp] | None:
    """Return the domain of each row at the first level that has several; None: each node is one."""
    for level in range(len(columns.domains)):
        domains: NDArray[np.intp] = columns.domains[level]
        known = domains[columns.is_node & (domains != NO_DOMAIN)]
        if len(np.unique(known)) >= _FEWEST_DOMAINS:
            return domains
    return None


def _in_least_domains(
    domains: NDArray[np.intp],
    deployed: NDArray[np.int64],
    eligible: NDArray[np.bool_],
    *,
    is_strict: bool,
) -> NDArray[np.bool_]:
    """Return the rows in the domains with the fewest pods.

    Upstream's minimum is over all domains, also over those with no eligible node, which may leave none.
    """
    labelled = domains != NO_DOMAIN
    sums = np.bincount(domains[labelled], weights=deployed[labelled])
    compared = np.zeros(len(sums), dtype=np.bool_)
    compared[domains[labelled if is_strict else labelled & eligible]] = True
    if not compared.any():
        return np.zeros(len(domains), dtype=np.bool_)
    least = compared & (sums == sums[compared].min())
    found: NDArray[np.bool_] = labelled & least[np.where(labelled, domains, 0)]
    return found
