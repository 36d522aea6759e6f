"""The lines in which gated pods stand: one per request shape, the most important pod first.

A line is open while its first pod is to be decided, and closed while it fits nowhere. One that was closed
is known to a sieve, so that a node with new room finds the lines that could use it without asking each.
Heaps hold entries of pods that have left or moved on; those are skipped when they come to the front,
and taken out where they are many: behind a pod that stays for weeks a million may come and go.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field

from berthmaster.api.objects import Pod
from berthmaster.cluster.backoffs import Backoff
from berthmaster.placement.shapes import PodRequest
from berthmaster.placement.sieve import Sieve
from berthmaster_webhook.turns import Turns

# A heap shorter than this may hold whatever it does.
_SWEPT_FROM = 64
# Priority (higher first), then creation, then name.
Order = tuple[int, str, str]
# The same, with the namespace's turn after the priority.
Rank = tuple[int, float, str, str]


@dataclass(eq=False, slots=True)
class Line:
    """Pods that ask for the same, avoid the same nodes and take turns with the same others.

    `codes` and `message` say why the first one fitted nowhere at `decided_s`, when it was decided for the
    last time. While it is open, it may fit `anywhere`, or only where room has come free since.
    """

    key: Hashable
    request: PodRequest
    avoided: frozenset[str] = frozenset()
    # Its pods' namespace where namespaces take turns, else empty.
    namespace: str = ""
    heap: list[tuple[Order, str]] = field(default_factory=list)
    # When the heap is this long, the entries of pods that are gone are taken out.
    swept_at: int = _SWEPT_FROM
    # The number and the rank of its entry among the open lines; 0: it has none.
    entry: int = 0
    rank: Rank = (0, 0.0, "", "")
    anywhere: bool = True
    is_closed: bool = False
    message: str = ""
    codes: frozenset[str] = frozenset()
    decided_s: float = 0.0
    # Whether nothing but nodes by themselves refused it, so that nothing else can help.
    is_local: bool = True


@dataclass(eq=False, slots=True)
class Waiter:
    """One gated pod. `why` is for the gauge; `line` is None where it does not stand in one.

    `request` is its own, equal to its line's as of when it joined.
    """

    pod: Pod
    since_s: float
    backoff: Backoff
    line: Line | None = None
    request: PodRequest = ()
    # Its entry in the heap of `line`, if that is still there.
    queued: Order | None = None
    why: str = "new"
    # Since when the policy that took it over is not there.
    unseen_s: float | None = None
    # A patch is under way, or was taken and has not been seen yet.
    is_busy: bool = False
    not_before_s: float = 0.0

    @property
    def order(self) -> Order:
        """Return its place among all that wait."""
        metadata = self.pod.metadata
        return (-(self.pod.spec.priority or 0), metadata.creation_timestamp or "", self.pod.key)


class Lines:
    """All lines, and among them the open ones by their first pod. `waiters` is the owner's, by uid.

    A line that `take_open` has returned is in its caller's hand, who opens or closes it again.
    """

    def __init__(self, waiters: Mapping[str, Waiter], turns: Turns | None = None) -> None:
        self._waiters = waiters
        self._turns = turns
        self._lines: dict[Hashable, Line] = {}
        self._sieve: Sieve[Line] = Sieve()
        self._open: list[tuple[Rank, int, Line]] = []
        self._opened = 0

    def __len__(self) -> int:
        return len(self._lines)

    def join(self, request: PodRequest, avoided: frozenset[str], uid: str, waiter: Waiter) -> Line:
        """Put a pod into its line; if it stands there already nothing changes."""
        namespace = waiter.pod.metadata.namespace if self._turns is not None else ""
        key = (request, avoided, namespace)
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = Line(key, request, avoided, namespace)
        order = waiter.order
        if waiter.line is not line or waiter.queued != order:
            waiter.line = line
            waiter.request = request
            waiter.queued = order
            heapq.heappush(line.heap, (order, uid))
            self._sweep(line)
            if not line.is_closed:
                self.open(line)
        return line

    def leave(self, waiter: Waiter) -> None:
        """Take a pod out of its line, if it stands in one."""
        waiter.line = waiter.queued = None

    def first(self, line: Line) -> Waiter | None:
        """Return the most important pod of a line."""
        while line.heap:
            waiter = self._waiter_of(line, *line.heap[0])
            if waiter is not None:
                return waiter
            heapq.heappop(line.heap)
        return None

    def members(self, line: Line) -> Iterator[Waiter]:
        """Yield the pods of a line in no order."""
        for entry in line.heap:
            waiter = self._waiter_of(line, *entry)
            if waiter is not None:
                yield waiter

    def _waiter_of(self, line: Line, order: Order, uid: str) -> Waiter | None:
        """Return the pod of an entry in a line's heap, None if it has left or moved on."""
        waiter = self._waiters.get(uid)
        is_there = waiter is not None and waiter.line is line and waiter.queued == order
        return waiter if is_there else None

    def _sweep(self, line: Line) -> None:
        if len(line.heap) >= line.swept_at:
            line.heap = [it for it in line.heap if self._waiter_of(line, *it) is not None]
            heapq.heapify(line.heap)
            line.swept_at = max(_SWEPT_FROM, 2 * len(line.heap))

    def open(self, line: Line, *, anywhere: bool = False) -> None:
        """Let a line be served. One that may fit `anywhere` stays so until it is closed."""
        line.is_closed = False
        first = self.first(line)
        if first is None:
            self._forget(line)
            return
        line.anywhere |= anywhere
        rank = self._rank(line, first)
        if not line.entry or rank < line.rank:
            self._enter(line, rank)

    def close(self, line: Line, needs: Callable[[], Mapping[str, int]]) -> None:
        """Let a line wait until there is hope; `needs` says what a node must have free for it at least."""
        if self.first(line) is None:
            self._forget(line)
            return
        line.entry = 0
        line.anywhere = False
        line.is_closed = True
        if line not in self._sieve:
            self._sieve.put(line, needs())

    def take_open(self) -> Line | None:
        """Return the open line whose first pod is the most important of all."""
        while self._open:
            _, number, line = heapq.heappop(self._open)
            if number != line.entry:
                continue
            first = self.first(line)
            line.entry = 0
            if first is None:
                self._forget(line)
                continue
            rank = self._rank(line, first)
            if rank == line.rank:
                return line
            self._enter(line, rank)
        return None

    def take_turn(self, line: Line) -> None:
        """Note that a pod of the line was given a node: that was its namespace's turn."""
        if self._turns is not None:
            self._turns.take(line.namespace)

    @property
    def any_open(self) -> bool:
        """Return whether a line may be open."""
        return bool(self._open)

    @property
    def opened(self) -> tuple[Line, ...]:
        """Return the open lines, in no order."""
        return tuple(line for _, number, line in self._open if number == line.entry)

    @property
    def closed(self) -> tuple[Line, ...]:
        """Return the closed lines; those in which nobody stands any more are forgotten."""
        lines = tuple(line for line in self._lines.values() if line.is_closed)
        for line in lines:
            if self.first(line) is None:
                self._forget(line)
        return tuple(line for line in lines if line.is_closed)

    def with_room(self, free: Mapping[str, int]) -> list[Line]:
        """Return those of the lines that were ever closed that lack nothing counted where so much is free."""
        return self._sieve.passing(free)

    def _enter(self, line: Line, rank: Rank) -> None:
        # The number tells a line's last entry from older ones, and keeps the heap from comparing lines.
        self._opened += 1
        line.entry, line.rank = self._opened, rank
        heapq.heappush(self._open, (rank, line.entry, line))

    def _forget(self, line: Line) -> None:
        line.entry = 0
        line.is_closed = False
        self._sieve.remove(line)
        if self._lines.get(line.key) is line:
            del self._lines[line.key]

    def _rank(self, line: Line, first: Waiter) -> Rank:
        priority, created, key = first.queued or first.order
        turn = 0.0 if self._turns is None else self._turns.of(line.namespace)
        return (priority, turn, created, key)
