"""Can one zone serve this? Upstream's filter, for all nodes of a block at once.

A container is served by the lowest zone that has everything it asks; the choice is greedy and never
taken back, as the kubelet's. Amounts are taken off container by container in the scope container;
the scope pod asks once for the whole pod.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from berthmaster.concerns.numa.amounts import CPU, is_affine, is_host_level
from berthmaster.concerns.numa.columns import Flags, Floats, Ints, NumaColumns, View
from berthmaster.concerns.numa.request import (
    APP,
    SIDECAR,
    Amounts,
    ContainerAsk,
    NumaRequest,
    is_aligned,
)

Slots = NDArray[np.intp]
NOBODY = -1


@dataclass(slots=True)
class Part:
    """Some rows of one block, with copies of the resources that a request names.

    `indices` are the rows' places in the block. `amounts` change as containers are placed.
    """

    columns: NumaColumns
    size: int
    indices: Slots
    amounts: dict[str, Ints]
    units: dict[str, Floats]
    totals: dict[str, Ints]
    known: dict[str, Flags]
    aligned: dict[str, Flags]

    @property
    def count(self) -> int:
        """Return the number of rows."""
        return len(self.indices)

    def lists(self, resource: str) -> Flags:
        """Return per row whether any zone lists the resource."""
        listed: Flags = np.any(self.amounts[resource] >= 0, axis=1)
        return listed

    def copy(self) -> Part:
        """Return the same rows, with amounts of their own."""
        return replace(self, amounts={name: it.copy() for name, it in self.amounts.items()})

    def narrow(self, chosen: Flags) -> Part:
        """Return only the chosen rows, with copies of their own."""
        return Part(
            columns=self.columns,
            size=self.size,
            indices=self.indices[chosen],
            amounts={name: it[chosen] for name, it in self.amounts.items()},
            units={name: it[chosen] for name, it in self.units.items()},
            totals={name: it[chosen] for name, it in self.totals.items()},
            known={name: it[chosen] for name, it in self.known.items()},
            aligned={name: it[chosen] for name, it in self.aligned.items()},
        )


def read_part(
    columns: NumaColumns,
    size: int,
    indices: Slots,
    request: NumaRequest,
    *,
    view: View = View.FREE,
    with_units: bool = False,
    with_totals: bool = False,
) -> Part:
    """Return the rows at these places of a block, with what the request names."""
    cells = {name: columns.cells(size, name, view) for name in request.resources}
    totals = {}
    if with_totals:
        for name in request.resources:
            totals[name] = columns.cells(size, name, View.TOTAL).amounts.take(indices, axis=0)
    return Part(
        columns=columns,
        size=size,
        indices=indices,
        amounts={name: it.amounts.take(indices, axis=0) for name, it in cells.items()},
        units={name: it.units.take(indices, axis=0) for name, it in cells.items()}
        if with_units
        else {},
        totals=totals,
        known={name: it.known[indices] for name, it in cells.items()},
        aligned={name: it.aligned[indices] for name, it in cells.items()},
    )


def units(request: NumaRequest, *, is_pod_scope: bool) -> tuple[ContainerAsk, ...]:
    """Return what is placed one after the other: the containers, or the pod as a whole."""
    return (ContainerAsk("", APP, request.pod),) if is_pod_scope else request.containers


def aligned_units(request: NumaRequest, *, is_pod_scope: bool) -> tuple[ContainerAsk, ...]:
    """Return of each unit what the kubelet itself aligns; units without any are left out."""
    if is_pod_scope:
        return (ContainerAsk("", APP, request.aligned_pod),) if request.aligned_pod else ()
    return request.aligned


def keeps(kind: str, request: NumaRequest) -> bool:
    """Return whether a container keeps what it takes while the next one is placed.

    A restartable init container does; upstream has it give everything back.
    """
    return kind == APP or (kind == SIDECAR and not request.is_strict_upstream)


def constrains(part: Part, request: NumaRequest, resource: str) -> Flags:
    """Return per row whether zones are to be looked at for a resource at all."""
    if not part.size and is_affine(resource) and not request.has_pod_resources:
        # Such a topology is not understood: upstream finds no zone that lists the resource.
        return np.ones(part.count, dtype=np.bool_)
    if not is_aligned(request, resource):
        return np.zeros(part.count, dtype=np.bool_)
    if is_host_level(resource):
        return part.lists(resource)
    is_found_out = not request.is_strict_upstream and not request.aligned_resources
    # Upstream has cpu aligned whatever the node lists.
    if is_affine(resource) and is_found_out and not (request.is_literal and resource == CPU):
        return part.aligned[resource].copy()
    return np.ones(part.count, dtype=np.bool_)


def serving(part: Part, request: NumaRequest, amounts: Amounts) -> tuple[Flags, Flags]:
    """Return per row whether the request can be served, and per row and zone which may serve it."""
    possible = np.ones(part.count, dtype=np.bool_)
    mask = np.ones((part.count, part.size), dtype=np.bool_)
    bound = np.zeros(part.count, dtype=np.bool_)
    for resource, amount in amounts:
        if not amount:
            continue
        possible &= part.known[resource]
        binds = constrains(part, request, resource)
        # A pod that is not Guaranteed shares its CPUs and memory: upstream wants only a zone that
        # has any.
        least = amount if request.is_guaranteed or not is_affine(resource) else 0
        mask &= (part.amounts[resource] >= least) | ~binds[:, None]
        bound |= binds
    return possible & (mask.any(axis=1) | ~bound), mask


def subtract(part: Part, request: NumaRequest, amounts: Amounts, rows: Flags, slots: Slots) -> None:
    """Take a container's amounts off the chosen zones of some rows."""
    at = np.flatnonzero(rows)
    if not part.size:
        return
    for resource, amount in amounts:
        if not amount or (is_affine(resource) and not request.is_guaranteed):
            continue
        cells = part.amounts[resource]
        before = cells[at, slots[at]]
        # What is not bound to zones may be asked for where too little is listed.
        cells[at, slots[at]] = np.where(before >= 0, np.maximum(before - amount, 0), before)


def align(part: Part, request: NumaRequest, asks: tuple[ContainerAsk, ...]) -> NDArray[np.int64]:
    """Place the asks one after the other; return per row the first that no zone serves.

    `NOBODY` where all are served. Amounts of a row stand as they were when it failed.
    """
    failed = np.full(part.count, NOBODY, dtype=np.int64)
    for index, ask in enumerate(asks):
        alive = failed == NOBODY
        possible, mask = serving(part, request, ask.amounts)
        failed[alive & ~possible] = index
        if keeps(ask.kind, request) and index + 1 < len(asks) and part.size:
            subtract(part, request, ask.amounts, alive & possible, mask.argmax(axis=1))
    return failed
