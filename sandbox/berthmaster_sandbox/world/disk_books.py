"""The world's own arithmetic of disks: what a pod uses of a disk, and who uses more than there is.

Owns the reading of the request annotation, the ratio tables, and the books: per node the sum of what
its bound, unfinished pods use, now and at its highest. Pure: no clock, no API server. Amounts are
whole bytes per second in the disk's normalised units; nothing is ever floored or capped here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

import msgspec

from berthmaster.api.quantities import QuantityError, parse_quantity

REQUEST_ANNOTATION = "blockio.kubernetes.io/resources"
DEFAULT_DISK_TYPE = "emptyDir"
MI = 2**20
BLOCK_SIZES = ("512", "1k", "4k", "8k", "16k", "32k")
DIMENSIONS = ("read", "write", "total")


class Amount(NamedTuple):
    """Bytes per second. `total` is a limit of its own for capacities, read + write for pods."""

    read: int = 0
    write: int = 0
    total: int = 0

    def plus(self, other: Amount) -> Amount:
        """Return the sum, dimension by dimension."""
        return Amount(self.read + other.read, self.write + other.write, self.total + other.total)

    def minus(self, other: Amount) -> Amount:
        """Return the difference, which may be negative."""
        return Amount(self.read - other.read, self.write - other.write, self.total - other.total)

    def peak(self, other: Amount) -> Amount:
        """Return the larger number of each dimension."""
        return Amount(*(max(mine, theirs) for mine, theirs in zip(self, other, strict=True)))


NOTHING = Amount()
BEST_EFFORT = Amount(5 * MI, 5 * MI, 10 * MI)


class MalformedError(ValueError):
    """A request annotation that no driver can use; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskFunction:
    """A disk model: block size to factor, for reading and for writing; absent sizes count 1."""

    read: Mapping[str, Fraction] = field(default_factory=dict)
    write: Mapping[str, Fraction] = field(default_factory=dict)


PLAIN = DiskFunction()


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedDisk:
    """One disk as its profile says."""

    capacity: Amount
    vendor: str = "Intel"
    model: str = "P4510"
    type: str = DEFAULT_DISK_TYPE

    @property
    def key(self) -> str:
        """Return `<vendor>-<model>`."""
        return f"{self.vendor}-{self.model}"


# What the reference driver publishes, whatever the hardware is.
FAKE_DISKS: Mapping[str, SimulatedDisk] = {
    "fakeDevice": SimulatedDisk(capacity=Amount(1000 * MI, 1000 * MI, 2000 * MI))
}


class PodView(msgspec.Struct, frozen=True, kw_only=True):
    """What the world remembers of a pod."""

    uid: str
    name: str
    namespace: str
    version: str
    node: str
    is_finished: bool
    request: str | None

    @property
    def key(self) -> str:
        """Return `namespace/name`."""
        return f"{self.namespace}/{self.name}"


class _Meta(msgspec.Struct, rename="camel"):
    uid: str = ""
    name: str = ""
    namespace: str = ""
    resource_version: str = ""
    annotations: dict[str, str] | None = None


class _Spec(msgspec.Struct, rename="camel"):
    node_name: str = ""


class _Status(msgspec.Struct):
    phase: str = ""


class _Pod(msgspec.Struct):
    metadata: _Meta
    spec: _Spec = msgspec.field(default_factory=_Spec)
    status: _Status = msgspec.field(default_factory=_Status)


_POD = msgspec.json.Decoder(_Pod)


def decode_pod(raw: bytes) -> PodView:
    """Read a pod; raises `msgspec.DecodeError` on what is none."""
    pod = _POD.decode(raw)
    meta = pod.metadata
    return PodView(
        uid=meta.uid,
        name=meta.name,
        namespace=meta.namespace,
        version=meta.resource_version,
        node=pod.spec.node_name,
        is_finished=pod.status.phase in {"Succeeded", "Failed"},
        request=(meta.annotations or {}).get(REQUEST_ANNOTATION),
    )


def measure(request: str | None, function: DiskFunction = PLAIN) -> Amount:
    """Return what a request annotation takes of a disk.

    Absent or empty: 5Mi read and 5Mi write, un-scaled. Else ceil(bytes * ratio[block size]) each
    way. Worked: 50Mi and 25Mi at 4k with ratios 2 and 4 take 100Mi, 100Mi, and 200Mi in total.

    Raises:
        MalformedError: the annotation says something that has no meaning.
    """
    if not request:
        return BEST_EFFORT
    try:
        said = json.loads(request)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"not JSON: {error}") from error
    if not isinstance(said, dict):
        raise MalformedError("not a JSON object")
    # Later spellings of one key replace earlier ones.
    keys = {key.lower(): value for key, value in said.items()}
    size = keys.get("blocksize")
    if size not in BLOCK_SIZES:
        raise MalformedError(f"block size {size!r}")
    read = _scaled(keys.get("rbps"), function.read.get(size, Fraction(1)))
    write = _scaled(keys.get("wbps"), function.write.get(size, Fraction(1)))
    return Amount(read, write, read + write)


def measure_leniently(request: str | None, function: DiskFunction = PLAIN) -> Amount:
    """Return what a request takes, the default where it is malformed: such a pod still uses a disk."""
    try:
        return measure(request, function)
    except MalformedError:
        return BEST_EFFORT


def _scaled(rate: object, ratio: Fraction) -> int:
    if not isinstance(rate, str):
        raise MalformedError(f"rate {rate!r}")
    try:
        scaled = parse_quantity(rate) * ratio
    except QuantityError as error:
        raise MalformedError(str(error)) from error
    if scaled < 0:
        raise MalformedError(f"rate {rate} is negative")
    return -(-scaled.numerator // scaled.denominator)


@dataclass(frozen=True, slots=True, kw_only=True)
class Overflow:
    """A disk of which its pods use more than there is; `pods` are `namespace/name`, sorted."""

    node: str
    dimension: str
    used: int
    capacity: int
    pods: tuple[str, ...]

    def __str__(self) -> str:
        who = ", ".join(self.pods[:5]) + (", ..." if len(self.pods) > 5 else "")
        over = Fraction(self.used - self.capacity, MI)
        return f"{self.node}: {self.dimension} over by {float(over):g}Mi ({len(self.pods)} pods: {who})"


@dataclass(slots=True)
class _Shelf:
    """One node: what it has, and what of it is used now and was at the most."""

    disk: SimulatedDisk
    used: Amount = NOTHING
    highest: Amount = NOTHING
    pods: dict[str, tuple[str, Amount]] = field(default_factory=dict)


class Books:
    """Who uses which disk, kept one pod event at a time."""

    def __init__(
        self, functions: Mapping[str, DiskFunction], *, uncounted: Iterable[str] = ()
    ) -> None:
        self._functions = functions
        self._uncounted = frozenset(uncounted)
        self._shelves: dict[str, _Shelf] = {}
        self._nodes_of: dict[str, str] = {}
        # Every (node, dimension) that was ever over, at its worst.
        self.overflows: dict[tuple[str, str], Overflow] = {}

    def add_node(self, node: str, disks: Mapping[str, SimulatedDisk]) -> None:
        """Let a node exist, or have other disks; whoever adds it shows its pods again.

        One without a default disk has nothing that can overflow.
        """
        known = self._shelves.pop(node, None)
        for uid in known.pods if known is not None else ():
            del self._nodes_of[uid]
        disk = find_default(disks)
        if disk is not None:
            highest = known.highest if known is not None else NOTHING
            self._shelves[node] = _Shelf(disk, highest=highest)

    @property
    def nodes(self) -> tuple[str, ...]:
        """Return the nodes that have a default disk."""
        return tuple(self._shelves)

    def used(self, node: str) -> Amount:
        """Return what is used on the node now."""
        return self._shelves[node].used

    def highest(self, node: str) -> Amount:
        """Return the highest sum seen per dimension."""
        return self._shelves[node].highest

    def see(self, pod: PodView) -> None:
        """Take a pod over as it is now, safe to repeat."""
        known = self._nodes_of.get(pod.uid)
        counts = pod.node in self._shelves and not pod.is_finished
        if known is not None and (not counts or known != pod.node):
            self.forget(pod.uid)
            known = None
        if known is None and counts and pod.namespace not in self._uncounted:
            self._enter(pod)

    def forget(self, uid: str) -> None:
        """Take a pod out; unknown ones are ignored."""
        node = self._nodes_of.pop(uid, None)
        if node is None or node not in self._shelves:
            return
        shelf = self._shelves[node]
        _, amount = shelf.pods.pop(uid)
        shelf.used = shelf.used.minus(amount)

    def over_now(self) -> list[Overflow]:
        """Return every dimension of every node that is over its capacity now."""
        return [it for node in sorted(self._shelves) for it in self._over(node)]

    def _enter(self, pod: PodView) -> None:
        shelf = self._shelves[pod.node]
        amount = measure_leniently(pod.request, self._functions.get(shelf.disk.key, PLAIN))
        shelf.pods[pod.uid] = (pod.key, amount)
        self._nodes_of[pod.uid] = pod.node
        shelf.used = shelf.used.plus(amount)
        shelf.highest = shelf.highest.peak(shelf.used)
        for found in self._over(pod.node):
            worst = self.overflows.get((found.node, found.dimension))
            if worst is None or found.used > worst.used:
                self.overflows[found.node, found.dimension] = found

    def _over(self, node: str) -> list[Overflow]:
        shelf = self._shelves[node]
        return [
            Overflow(
                node=node,
                dimension=dimension,
                used=used,
                capacity=capacity,
                pods=tuple(sorted(key for key, _ in shelf.pods.values())),
            )
            for dimension, used, capacity in zip(
                DIMENSIONS, shelf.used, shelf.disk.capacity, strict=True
            )
            if used > capacity
        ]


def find_default(disks: Mapping[str, SimulatedDisk]) -> SimulatedDisk | None:
    """Return the disk behind emptyDir volumes: the first of that type by id."""
    return next((disks[id_] for id_ in sorted(disks) if disks[id_].type == DEFAULT_DISK_TYPE), None)
