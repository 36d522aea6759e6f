"""Which nodes kube-scheduler would accept, and how empty they are.

The filters run in kube-scheduler's order, and the first that refuses gives a node's reason:
cordon, taints, node affinity and selector, host ports, pods, resources.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from berthmaster.api.objects import Taint, Toleration
from berthmaster.concerns.resources.columns import (
    Ints,
    LabelColumn,
    ResourcesColumns,
    TaintSet,
)
from berthmaster.concerns.resources.request import (
    CPU,
    MEMORY,
    Requirement,
    ResourcesRequest,
    Term,
    to_integer,
)
from berthmaster.concerns.shape import Codes, Rows, Scores

CORDONED, TAINTED, AFFINITY, PORTS, INVALID = 1, 2, 3, 4, 5
# A resource's code is this and its slot; slots beyond the last code of its own, and resources that
# no node advertises, share OTHER_RESOURCE.
FIRST_RESOURCE = 16
OTHER_RESOURCE = 255

UNSCHEDULABLE_TAINT = Taint(key="node.kubernetes.io/unschedulable", effect="NoSchedule")

_Mask = NDArray[np.bool_]


def resource_code(slot: int | None) -> int:
    """Return the code for a resource's slot, None standing for one that nobody advertises."""
    if slot is None:
        return OTHER_RESOURCE
    return min(FIRST_RESOURCE + slot, OTHER_RESOURCE)


def filter_rows(columns: ResourcesColumns, rows: Rows, request: ResourcesRequest) -> Codes:
    """Return 0 for each row that kube-scheduler would accept, else the code of its first refusal."""
    if request.problems:
        return np.full(len(rows), INVALID, dtype=np.uint8)
    codes = _taint_codes(columns, rows, request.tolerations)
    if request.selector or request.terms is not None:
        codes[(codes == 0) & ~_accepted(columns, rows, request)] = AFFINITY
    for port in request.usage.ports:
        codes[(codes == 0) & columns.ports.taken(port, rows)] = PORTS
    for resource, amount in request.usage.amounts:
        slot = columns.slots.get(resource)
        if slot is None:
            codes[codes == 0] = OTHER_RESOURCE
            break
        lacking = amount > columns.capacity[slot][rows] - columns.used[slot][rows]
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
    cpu, some_cpu = _free_share(
        columns.capacity[columns.slots[CPU]][rows], columns.scored_cpu[rows] + usage.scored_cpu
    )
    memory, some_memory = _free_share(
        columns.capacity[columns.slots[MEMORY]][rows],
        columns.scored_memory[rows] + usage.scored_memory,
    )
    return (cpu + memory) / np.maximum(some_cpu + some_memory, 1.0)


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


def _taint_codes(
    columns: ResourcesColumns, rows: Rows, tolerations: tuple[Toleration, ...]
) -> Codes:
    """Judge each distinct set of taints among the rows once."""
    ids = columns.taints.ids[rows]
    codes = np.zeros(len(columns.taints.sets), dtype=np.uint8)
    for index in np.flatnonzero(np.bincount(ids, minlength=1)):
        taints = columns.taints.sets[index]
        refusing = first_untolerated(taints, tolerations)
        if refusing is UNSCHEDULABLE_TAINT:
            codes[index] = CORDONED
        elif refusing is not None:
            codes[index] = TAINTED
    return codes[ids]


def _accepted(columns: ResourcesColumns, rows: Rows, request: ResourcesRequest) -> _Mask:
    accepted = _all_match(columns, rows, request.selector)
    if request.terms is None:
        return accepted
    any_term = np.zeros(len(rows), dtype=np.bool_)
    for term in request.terms:
        any_term |= _matches_term(columns, rows, term)
    return accepted & any_term


def _matches_term(columns: ResourcesColumns, rows: Rows, term: Term) -> _Mask:
    matches = _all_match(columns, rows, term.labels)
    for requirement in term.fields:
        named = rows == columns.row_by_name.get(requirement.values[0], -1)
        matches &= named if requirement.operator == "In" else ~named
    return matches


def _all_match(columns: ResourcesColumns, rows: Rows, requirements: Iterable[Requirement]) -> _Mask:
    matches = np.ones(len(rows), dtype=np.bool_)
    for requirement in requirements:
        column = columns.labels.column(requirement.key)
        matches &= _matching_codes(column, requirement)[column.codes[rows]]
    return matches


def _matching_codes(column: LabelColumn, requirement: Requirement) -> _Mask:
    """Return for each code of the column, 0 being a missing label, whether it matches."""
    codes = column.code_by_value
    matching = np.zeros(len(codes) + 1, dtype=np.bool_)
    if requirement.operator in ("In", "NotIn"):
        matching[[codes[value] for value in requirement.values if value in codes]] = True
        return matching if requirement.operator == "In" else ~matching
    if requirement.operator in ("Exists", "DoesNotExist"):
        matching[0] = True
        return matching if requirement.operator == "DoesNotExist" else ~matching
    bound = to_integer(requirement.values[0])
    is_greater = requirement.operator == "Gt"
    for value, code in codes.items():
        number = to_integer(value)
        if number is not None and bound is not None:
            matching[code] = number > bound if is_greater else number < bound
    return matching


def _free_share(capacity: Ints, used: Ints) -> tuple[Scores, Scores]:
    """Return the free share in percent, and 1 where there is any capacity, else 0."""
    some = (capacity > 0).astype(np.float64)
    free = np.maximum(capacity - used, 0)
    return some * 100.0 * free / np.maximum(capacity, 1), some
