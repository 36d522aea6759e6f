"""The lines in which gated pods stand: one per request shape, the most important pod first.

A line whose first pod fits nowhere is closed as a whole until the count of helpful events has moved.
Heaps hold entries of pods that have left or moved on; those are skipped when they come to the front.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field

from berthmaster.api.objects import Pod
from berthmaster.cluster.backoffs import Backoff
from berthmaster.placement.shapes import PodRequest

# Priority (higher first), then creation, then name.
Order = tuple[int, str, str]


@dataclass(eq=False, slots=True)
class Line:
    """Pods that ask for the same; `codes` and `message` say why the first one fitted nowhere."""

    request: PodRequest
    heap: list[tuple[Order, str]] = field(default_factory=list)
    # The help count at which its first pod fitted nowhere.
    closed_at: int = -1
    message: str = ""
    codes: frozenset[str] = frozenset()


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
    # A patch is under way, or was taken and has not been seen yet.
    is_busy: bool = False
    not_before_s: float = 0.0

    @property
    def order(self) -> Order:
        """Return its place among all that wait."""
        metadata = self.pod.metadata
        return (-(self.pod.spec.priority or 0), metadata.creation_timestamp or "", self.pod.key)


class Lines:
    """All lines, and among them the open ones by their first pod. `waiters` is the owner's, by uid."""

    def __init__(self, waiters: Mapping[str, Waiter]) -> None:
        self._waiters = waiters
        self._lines: dict[Hashable, Line] = {}
        self._open: list[tuple[Order, int, Line]] = []
        self._opened = 0

    def __len__(self) -> int:
        return len(self._lines)

    def join(self, key: Hashable, request: PodRequest, uid: str, waiter: Waiter) -> Line:
        """Put a pod into the line of `key`; if it stands there already nothing changes."""
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = Line(request)
        order = waiter.order
        if waiter.line is not line or waiter.queued != order:
            waiter.line = line
            waiter.request = request
            waiter.queued = order
            heapq.heappush(line.heap, (order, uid))
        return line

    def leave(self, waiter: Waiter) -> None:
        """Take a pod out of its line, if it stands in one."""
        waiter.line = waiter.queued = None

    def first(self, line: Line) -> Waiter | None:
        """Return the most important pod of a line."""
        while line.heap:
            order, uid = line.heap[0]
            waiter = self._waiters.get(uid)
            if waiter is not None and waiter.line is line and waiter.queued == order:
                return waiter
            heapq.heappop(line.heap)
        return None

    def members(self, line: Line) -> Iterator[Waiter]:
        """Yield the pods of a line in no order."""
        for order, uid in line.heap:
            waiter = self._waiters.get(uid)
            if waiter is not None and waiter.line is line and waiter.queued == order:
                yield waiter

    def open(self, line: Line) -> None:
        """Let a line be served, if anybody stands in it."""
        first = self.first(line)
        if first is not None:
            # The number keeps the heap from comparing lines.
            self._opened += 1
            heapq.heappush(self._open, (first.order, self._opened, line))

    def reopen(self, help_count: int) -> None:
        """Let all lines be served that were closed before the last help; forget empty ones."""
        self._open.clear()
        for key, line in list(self._lines.items()):
            if self.first(line) is None:
                del self._lines[key]
            elif line.closed_at != help_count:
                self.open(line)

    def next_open(self, help_count: int) -> Line | None:
        """Return the open line whose first pod is the most important of all; it is not open then."""
        while self._open:
            order, _, line = heapq.heappop(self._open)
            first = self.first(line)
            if first is None or line.closed_at == help_count:
                continue
            if first.order == order:
                return line
            self.open(line)
        return None
