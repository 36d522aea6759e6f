"""Can one zone serve this? Upstream's filter, for all nodes of a block at once.

A container is served by the lowest zone that has everything it asks; the choice is greedy and never
taken back, as the kubelet's. Amounts are taken off container by container in the scope container;
the scope pod asks once for the whole pod.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from berthmaster.concerns.numa.amounts import CPU, is_affine, is_host_level
from berthmaster.concerns.numa.columns import (
    Block,
    Flags,
    Floats,
    Ints,
    NumaColumns,
    Small,
    View,
    rows_of,
)
from berthmaster.concerns.numa.request import (
    APP,
    SIDECAR,
    Amounts,
    ContainerAsk,
    NumaRequest,
    is_aligned,
)

Slots = NDArray[np.intp]
_Number = TypeVar("_Number", bound=np.generic)
NOBODY = -1
# More than anything can ask: what a zone offers of a resource for which zones are not looked at.
_UNBOUND = np.iinfo(np.int64).max


@dataclass(slots=True)
class Part:
    """Some rows of one block, with the resources that a request names.

    `indices` are the rows' places in the block; `picked` those of them that were asked for, None for all.
    What changes as containers are placed are amounts of the part's own (`own`). Arrays of rows and zones lie zone by zone in memory: what goes
    over all zones of a row is then quick.
    """

    columns: NumaColumns
    block: Block
    indices: Slots
    amounts: dict[str, Ints]
    units: dict[str, Floats]
    totals: dict[str, Ints]
    known: dict[str, Flags]
    aligned: dict[str, Flags]
    picked: Slots | None = None
    # Amounts if no init container of others held anything; empty where they are the same.
    most: dict[str, Ints] = field(default_factory=dict)
    # By resource: where zones are looked at and where the Node has it; None where both is so everywhere.
    exceptions: dict[str, tuple[Flags, Flags] | None] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Return the number of rows."""
        return len(self.indices)

    @property
    def size(self) -> int:
        """Return the number of zones."""
        return self.block.size

    def pick(self, values: NDArray[_Number]) -> NDArray[_Number]:
        """Return of values by row those that were asked for."""
        return values if self.picked is None else values[self.picked]

    def lists(self, resource: str) -> Flags:
        """Return per row whether any zone lists the resource."""
        listed: Flags = np.any(self.amounts[resource] >= 0, axis=1)
        return listed

    def own(self, resource: str) -> Ints:
        """Return the amounts of a resource, to be changed; nobody else sees the changes."""
        amounts = self.amounts[resource]
        if not amounts.flags.writeable:
            amounts = self.amounts[resource] = amounts.copy("F")
        return amounts

    def with_most(self) -> Part:
        """Return the same rows, with the amounts that there are at the most."""
        return replace(self, amounts={name: it.copy("F") for name, it in self.most.items()})

    def copy(self) -> Part:
        """Return the same rows, with amounts of their own."""
        return replace(self, amounts={name: it.copy("F") for name, it in self.amounts.items()})

    def narrow(self, chosen: Flags) -> Part:
        """Return only the chosen rows, with copies of their own."""
        at = chosen.nonzero()[0]
        return Part(
            columns=self.columns,
            block=self.block,
            indices=self.indices[at],
            amounts={name: rows_of(it, at) for name, it in self.amounts.items()},
            units={name: rows_of(it, at) for name, it in self.units.items()},
            totals={name: rows_of(it, at) for name, it in self.totals.items()},
            known={name: it[at] for name, it in self.known.items()},
            aligned={name: it[at] for name, it in self.aligned.items()},
            most={name: rows_of(it, at) for name, it in self.most.items()},
        )

    def pieces(self, count: int) -> Iterator[Part]:
        """Yield the rows, so many at once, to be looked at only."""
        if self.count <= count:
            yield self
            return
        for start in range(0, self.count, count):
            rows = slice(start, start + count)
            yield Part(
                columns=self.columns,
                block=self.block,
                indices=self.indices[rows],
                amounts={name: rows_of(it, rows) for name, it in self.amounts.items()},
                units={name: it[rows] for name, it in self.units.items()},
                totals={name: it[rows] for name, it in self.totals.items()},
                known={name: it[rows] for name, it in self.known.items()},
                aligned={name: it[rows] for name, it in self.aligned.items()},
            )

    def offers(self, request: NumaRequest, resource: str) -> Ints:
        """Return what each zone has to offer: -1 where the Node lacks the resource or the zone does.

        A zone offers without end where zones are not looked at. A node without zones is one zone here,
        which lists nothing. To be read only.
        """
        if resource not in self.exceptions:
            binds, known = constrains(self, request, resource), self.known[resource]
            is_plain = self.size and binds.all() and known.all()
            self.exceptions[resource] = None if is_plain else (binds, known)
        exceptions = self.exceptions[resource]
        amounts = self.amounts[resource]
        if exceptions is None:
            return amounts
        binds, known = exceptions
        offers = amounts.copy("K") if self.size else np.full((self.count, 1), -1, dtype=np.int64)
        offers[~binds] = _UNBOUND
        offers[~known] = -1
        return offers


def read_part(
    columns: NumaColumns,
    block: Block,
    indices: Slots,
    request: NumaRequest,
    *,
    view: View = View.FREE,
    with_units: bool = False,
    with_totals: bool = False,
    with_most: bool = False,
) -> Part:
    """Return the rows at these places of a block, with what the request names.

    Where they are most of the block it is all of it: more rows cost less than gathering some.
    """
    is_most = 2 * len(indices) > block.end
    at = slice(block.end) if is_most else indices
    cells = {name: columns.cells(block, name, view) for name in request.resources}
    totals = {}
    if with_totals:
        for name in request.resources:
            totals[name] = rows_of(columns.cells(block, name, View.TOTAL).amounts, at)
    most = {}
    if with_most:
        for name in request.resources:
            most[name] = rows_of(columns.cells(block, name, View.MOST).amounts, at)
    return Part(
        columns=columns,
        block=block,
        indices=np.arange(block.end) if is_most else indices,
        picked=indices if is_most else None,
        amounts={name: rows_of(it.amounts, at) for name, it in cells.items()},
        units={name: rows_of(it.units, at) for name, it in cells.items()} if with_units else {},
        totals=totals,
        known={name: it.known[at] for name, it in cells.items()},
        aligned={name: it.aligned[at] for name, it in cells.items()},
        most=most,
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


def serving(part: Part, request: NumaRequest, amounts: Amounts) -> tuple[Flags, Slots]:
    """Return per row whether some zone serves the amounts, and the lowest that does, else the first."""
    mask: Flags | None = None
    for resource, amount in amounts:
        if not amount:
            continue
        # A pod that is not Guaranteed shares its CPUs and memory: upstream wants only a zone that
        # has any.
        least = amount if request.is_guaranteed or not is_affine(resource) else 0
        fits = part.offers(request, resource) >= least
        mask = fits if mask is None else np.logical_and(mask, fits, out=mask)
    if mask is None:
        return np.ones(part.count, dtype=np.bool_), np.zeros(part.count, dtype=np.intp)
    size = mask.shape[1]
    # The lowest zone has the highest number, so that one maximum finds it.
    ranks = (mask * _ranks(size)).max(axis=1)
    possible = ranks > 0
    return possible, np.where(possible, size - ranks.astype(np.intp), 0)


@lru_cache(maxsize=64)
def _ranks(size: int) -> Small:
    return np.arange(size, 0, -1, dtype=np.uint8)


def subtract(part: Part, request: NumaRequest, amounts: Amounts, rows: Flags, slots: Slots) -> None:
    """Take a container's amounts off the chosen zones of some rows."""
    if not part.size:
        return
    at = rows.nonzero()[0]
    places = slots[at] * part.count + at
    for resource, amount in amounts:
        if amount and (request.is_guaranteed or not is_affine(resource)):
            # Where zones are not looked at this may go below 0, which nobody looks at either.
            part.own(resource).T.reshape(-1)[places] -= amount


def align(part: Part, request: NumaRequest, asks: tuple[ContainerAsk, ...]) -> NDArray[np.int64]:
    """Place the asks one after the other; return per row the first that no zone serves.

    `NOBODY` where all are served. Amounts of a row stand as they were when it failed.
    """
    failed = np.full(part.count, NOBODY, dtype=np.int64)
    for index, ask in enumerate(asks):
        possible, slots = serving(part, request, ask.amounts)
        if not possible.all():
            failed[(failed == NOBODY) & ~possible] = index
        if index + 1 < len(asks) and keeps(ask.kind, request):
            subtract(part, request, ask.amounts, failed == NOBODY, slots)
    return failed
