"""Which nodes kube-scheduler would accept, and how empty they are.

The filters run in kube-scheduler's order, and the first that refuses gives a node's reason:
cordon, taints, node affinity and selector, host ports, pods, resources.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from berthmaster.api.objects import Taint, Toleration
from berthmaster.concerns.resources.codes import (
    AFFINITY,
    CORDONED,
    INVALID,
    OTHER_RESOURCE,
    PORTS,
    TAINTED,
    resource_code,
)
from berthmaster.concerns.resources.columns import Ints, ResourcesColumns, TaintSet
from berthmaster.concerns.resources.labels import Mask, all_match
from berthmaster.concerns.resources.request import CPU, MEMORY, ResourcesRequest, Term
from berthmaster.concerns.shape import Codes, Rows, Scores

UNSCHEDULABLE_TAINT = Taint(key="node.kubernetes.io/unschedulable", effect="NoSchedule")


def filter_rows(columns: ResourcesColumns, rows: Rows, request: ResourcesRequest) -> Codes:
    """Return 0 for each row that kube-scheduler would accept, else the code of its first refusal."""
    if request.problems:
        return np.full(len(rows), INVALID, dtype=np.uint8)
    codes = taint_codes(columns, rows, request.tolerations)
    if request.selector or request.terms is not None:
        codes[(codes == 0) & ~accepted_rows(columns, rows, request)] = AFFINITY
    for port in request.usage.ports:
        codes[(codes == 0) & columns.ports.taken(port, rows)] = PORTS
    for resource, amount in request.usage.amounts:
        slot = columns.slots.get(resource)
        if slot is None:
            codes[codes == 0] = OTHER_RESOURCE
            break
        lacking = amount > columns.capacity[slot][rows] - columns.used[slot][rows]
        if lacking.any():
            codes[(codes == 0) & lacking] = resource_code(slot)
    return codes


def score_rows(columns: ResourcesColumns, rows: Rows, request: ResourcesRequest) -> Scores:
    """Return how empty each row would be, 0..100, as kube-scheduler's LeastAllocated.

        score = mean over cpu and memory of 100 * (capacity - used - asked) / capacity

    A resource of which the node has none does not count; one that is overdrawn counts 0. Containers
    without a request count as 100m and 200Mi, asking and holding. Worked: 4 cpu with 1 used, 8Gi
    with 2Gi used, asking 1 cpu and 2Gi -> (50 + 50) / 2 = 50.
    """
    usage = request.usage
    cpu, memory = (columns.capacity[columns.slots[it]][rows] for it in (CPU, MEMORY))
    shares = _free_percent(cpu, columns.scored_cpu[rows] + usage.scored_cpu)
    shares += _free_percent(memory, columns.scored_memory[rows] + usage.scored_memory)
    counted = np.add(cpu > 0, memory > 0, dtype=np.int64)
    return shares / np.maximum(counted, 1)


def first_untolerated(taints: TaintSet, tolerations: Iterable[Toleration]) -> Taint | None:
    """Return the taint that keeps the pod away; `spec.unschedulable` counts as a taint, first."""
    kept = tuple(tolerations)
    if taints.cordoned and not _tolerated(UNSCHEDULABLE_TAINT, kept):
        return UNSCHEDULABLE_TAINT
    return next((taint for taint in taints.taints if not _tolerated(taint, kept)), None)


def _tolerated(taint: Taint, tolerations: Iterable[Toleration]) -> bool:
    return any(_tolerates(it, taint) for it in tolerations)


def _tolerates(toleration: Toleration, taint: Taint) -> bool:
    if toleration.effect not in ("", taint.effect):
        return False
    if toleration.operator == "Exists":
        return toleration.key in ("", taint.key)
    # Any other operator (a release newer than this code) counts as not tolerating.
    is_equal = toleration.operator in ("", "Equal")
    return is_equal and (toleration.key, toleration.value) == (taint.key, taint.value)


def taint_codes(
    columns: ResourcesColumns, rows: Rows, tolerations: tuple[Toleration, ...]
) -> Codes:
    """Return a code for each row whose taints the tolerations leave standing, 0 for the others.

    Each distinct set of taints among the rows is judged once.
    """
    ids = columns.taints.ids[rows]
    if not ids.any():
        return np.zeros(len(rows), dtype=np.uint8)
    codes = np.zeros(len(columns.taints.sets), dtype=np.uint8)
    for index in np.flatnonzero(np.bincount(ids)).tolist():
        taints = columns.taints.sets[index]
        refusing = first_untolerated(taints, tolerations)
        if refusing is UNSCHEDULABLE_TAINT:
            codes[index] = CORDONED
        elif refusing is not None:
            codes[index] = TAINTED
    return codes[ids]


def accepted_rows(columns: ResourcesColumns, rows: Rows, request: ResourcesRequest) -> Mask:
    """Return for each row whether the node selector and the required node affinity accept it."""
    accepted = all_match(columns.labels, rows, request.selector)
    if request.terms is None:
        return accepted
    any_term = np.zeros(len(rows), dtype=np.bool_)
    for term in request.terms:
        any_term |= _matches_term(columns, rows, term)
    return accepted & any_term


def _matches_term(columns: ResourcesColumns, rows: Rows, term: Term) -> Mask:
    matches = all_match(columns.labels, rows, term.labels)
    for requirement in term.fields:
        named = rows == columns.row_by_name.get(requirement.values[0], -1)
        matches &= named if requirement.operator == "In" else ~named
    return matches


def _free_percent(capacity: Ints, used: Ints) -> Scores:
    percent: Scores = 100.0 * np.maximum(capacity - used, 0) / np.maximum(capacity, 1)
    return percent
