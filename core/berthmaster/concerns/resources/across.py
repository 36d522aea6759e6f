"""What depends on more than a row: a pod's claims, its spread, and who is near to whom.

Each question is about all rows at once: how many pods of a kind each row has (`peers`) is added up by
the rows' values of a topology label, and a row is refused for what its domain has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from berthmaster.concerns.resources.codes import (
    ATTRACTED,
    CLAIM,
    OBJECTED,
    REPELLED,
    SPREAD,
    SPREAD_LABEL,
)
from berthmaster.concerns.resources.columns import ResourcesColumns
from berthmaster.concerns.resources.label_selectors import matches
from berthmaster.concerns.resources.labels import Mask
from berthmaster.concerns.resources.peers import Query, Those
from berthmaster.concerns.resources.placement import accepted_rows, taint_codes
from berthmaster.concerns.resources.request import ResourcesRequest
from berthmaster.concerns.resources.storage import ClaimRefusedError
from berthmaster.concerns.resources.terms import PeerTerm, Spread, Wishes, unfold
from berthmaster.concerns.shape import Codes

Totals = NDArray[np.float64]


def depends_on_others(wishes: Wishes) -> bool:
    """Return whether anything beyond its node matters to a pod."""
    return bool(
        wishes.claims or wishes.spread or wishes.attracted or wishes.repelled or wishes.objections
    )


def across_codes(columns: ResourcesColumns, request: ResourcesRequest) -> Codes | None:
    """Return a code for every row, 0 where nothing refuses it; None if nothing is asked."""
    wishes = request.wishes
    if wishes is None or not depends_on_others(wishes):
        return None
    codes = np.zeros(columns.rows, dtype=np.uint8)
    for refused, code in _refusals(columns, request, wishes):
        codes[(codes == 0) & refused] = code
    return codes


def _refusals(
    columns: ResourcesColumns, request: ResourcesRequest, wishes: Wishes
) -> Iterator[tuple[Mask, int]]:
    if wishes.claims:
        try:
            by_claims = columns.storage.codes(wishes)
        except ClaimRefusedError:
            yield np.ones(columns.rows, dtype=np.bool_), CLAIM
            return
        for code in np.flatnonzero(np.bincount(by_claims)).tolist():
            if code:
                yield by_claims == code, code
    if wishes.spread:
        yield from _by_spread(columns, request, wishes)
    if wishes.attracted:
        yield ~_near(columns, wishes), ATTRACTED
    for term in wishes.repelled:
        counts = columns.peers.count(Query((_those(columns, term),), counts_leaving=True))
        yield _of_domain(columns, term.topology_key, counts) > 0, REPELLED
    for term in wishes.objections:
        counts = np.zeros(columns.rows, dtype=np.int32)
        counts[columns.peers.rows_repelling(term)] = 1
        yield _of_domain(columns, term.topology_key, counts) > 0, OBJECTED


def _by_spread(
    columns: ResourcesColumns, request: ResourcesRequest, wishes: Wishes
) -> Iterator[tuple[Mask, int]]:
    """Judge one constraint after the other.

        skew = matching pods of the domain + the pod itself - fewest of any eligible domain

    Eligible are rows that have all topology labels, and that the pod's node affinity and tolerations
    accept where the constraint honours those. With fewer eligible domains than `minDomains` the fewest
    are 0. Worked: zones with 3, 1, 1 matching pods and a skew of 1 -> the two zones with 1.
    """
    rows = np.arange(columns.rows, dtype=np.intp)
    labelled = np.ones(columns.rows, dtype=np.bool_)
    for constraint in wishes.spread:
        labelled &= columns.labels.column(constraint.topology_key).codes > 0
    accepted = accepted_rows(columns, rows, request)
    tolerated = taint_codes(columns, rows, request.tolerations) == 0
    for constraint in wishes.spread:
        eligible = labelled.copy()
        if constraint.honors_affinity:
            eligible &= accepted
        if constraint.honors_taints:
            eligible &= tolerated
        yield from _by_constraint(columns, wishes, constraint, eligible)


def _by_constraint(
    columns: ResourcesColumns, wishes: Wishes, constraint: Spread, eligible: Mask
) -> Iterator[tuple[Mask, int]]:
    codes = columns.labels.column(constraint.topology_key).codes
    yield codes == 0, SPREAD_LABEL
    counts = np.zeros(columns.rows, dtype=np.int32)
    # A selector that selects everything counts nobody: so it is in kube-scheduler.
    if constraint.selector:
        those = Those(frozenset((wishes.namespace,)), constraint.selector)
        counts = np.where(eligible, columns.peers.count(Query((those,), counts_leaving=False)), 0)
    by_domain = np.bincount(codes, weights=counts)
    exists = np.bincount(codes[eligible], minlength=len(by_domain)) > 0
    fewest = 0.0
    if np.count_nonzero(exists) >= constraint.min_domains:
        fewest = float(by_domain[exists].min())
    allowed = constraint.max_skew - int(constraint.counts_itself)
    yield by_domain[codes] - fewest > allowed, SPREAD
    if constraint.min_domains > 1 and constraint.honors_affinity:
        # Once the pod is pinned its node is the only eligible domain, which are too few.
        yield counts > allowed, SPREAD


def _near(columns: ResourcesColumns, wishes: Wishes) -> Mask:
    """Return for each row whether pods that all terms mean are near, in the sense of each term.

    Where there are none at all, a pod that they would mean too may be the first, on any node that has
    the topology labels.
    """
    those = tuple(_those(columns, it) for it in wishes.attracted)
    counts = columns.peers.count(Query(those, counts_leaving=True))
    labelled = np.ones(columns.rows, dtype=np.bool_)
    near = np.ones(columns.rows, dtype=np.bool_)
    for key in dict.fromkeys(it.topology_key for it in wishes.attracted):
        found = _of_domain(columns, key, counts) > 0
        labelled &= columns.labels.column(key).codes > 0
        near &= found
    is_first = wishes.follows_itself and all(
        it.namespaces is None or wishes.namespace in it.namespaces for it in those
    )
    if is_first and not _any_near(columns, wishes, counts):
        return labelled
    return near


def _any_near(columns: ResourcesColumns, wishes: Wishes, counts: NDArray[np.int32]) -> bool:
    """Return whether any pod is on a node that has a topology label of any term."""
    busy = counts > 0
    keys = {it.topology_key for it in wishes.attracted}
    return any((busy & (columns.labels.column(key).codes > 0)).any() for key in keys)


def _of_domain(columns: ResourcesColumns, key: str, counts: NDArray[np.int32]) -> Totals:
    """Return for each row the count of its domain, 0 where it has none."""
    codes = columns.labels.column(key).codes
    by_domain: Totals = np.bincount(codes, weights=counts).astype(np.float64)
    by_domain[0] = 0.0
    return by_domain[codes]


def _those(columns: ResourcesColumns, term: PeerTerm) -> Those:
    """Return the pods that a term means, its namespaces named as they are now."""
    if term.namespace_selector == ():
        return Those(None, term.selector)
    selected: Iterable[str] = ()
    if term.namespace_selector is not None:
        selected = (
            name
            for name, labels in columns.namespaces.items()
            if matches(term.namespace_selector, labels)
        )
    return Those(frozenset((*term.namespaces, *selected)), term.selector)


def claim_refusal(columns: ResourcesColumns, wishes: Wishes) -> str:
    """Return why the claims of a pod leave it no node at all, empty if they do not."""
    try:
        columns.storage.codes(wishes)
    except ClaimRefusedError as error:
        return str(error)
    return ""


def object_to(columns: ResourcesColumns, wishes: Wishes) -> tuple[PeerTerm, ...]:
    """Return the terms by which pods that are there keep this one away."""
    return columns.peers.objections(
        wishes.namespace, unfold(wishes.labels), columns.namespaces.get(wishes.namespace, {})
    )
