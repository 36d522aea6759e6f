"""What an owner's next pods heed after some came to nothing: nodes to stay away from, and pauses."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from berthmaster.cluster.backoffs import Backoff

AVOID_S = 600.0
_OWNERS_REMEMBERED = 1024


class AvoidedNodes:
    """Nodes by owner uid, each until its time is over. Times are seconds of one monotonic clock."""

    def __init__(self, *, avoid_s: float = AVOID_S) -> None:
        self._avoid_s = avoid_s
        self._until: OrderedDict[str, dict[str, float]] = OrderedDict()

    def add(self, owner_uid: str, node: str, now_s: float) -> None:
        """Let the owner's next pods avoid the node."""
        self._until.setdefault(owner_uid, {})[node] = now_s + self._avoid_s
        self._until.move_to_end(owner_uid)
        if len(self._until) > _OWNERS_REMEMBERED:
            self._until.popitem(last=False)

    def of(self, owner_uid: str, now_s: float) -> frozenset[str]:
        """Return the nodes that the owner's pods avoid now."""
        until = self._until.get(owner_uid, {})
        return frozenset(node for node, end_s in until.items() if end_s > now_s)

    def expire(self, now_s: float) -> bool:
        """Forget what is over; return whether anything was."""
        ended = [
            (owner, node)
            for owner, until in self._until.items()
            for node, end_s in until.items()
            if end_s <= now_s
        ]
        for owner, node in ended:
            del self._until[owner][node]
            if not self._until[owner]:
                del self._until[owner]
        return bool(ended)

    @property
    def next_end_s(self) -> float | None:
        """Return when the first of them ends, None without any."""
        ends = [end_s for until in self._until.values() for end_s in until.values()]
        return min(ends, default=None)


class OwnerPauses:
    """Pauses by owner uid, which grow while the owner's pods keep failing. `clock` gives monotonic seconds.

    The first is of `first_s` at least; the ceiling doubles each time, up to `AVOID_S`.
    """

    def __init__(self, first_s: float, *, clock: Callable[[], float]) -> None:
        self._first_s = first_s
        self._clock = clock
        self._backoffs: OrderedDict[str, Backoff] = OrderedDict()
        self._until_s: dict[str, float] = {}

    def pause(self, owner_uid: str) -> float:
        """Let the owner's pods pause from now on; return until when."""
        backoff = self._backoffs.get(owner_uid)
        if backoff is None:
            backoff = self._backoffs[owner_uid] = Backoff(
                first_s=2 * self._first_s,
                cap_s=AVOID_S,
                reset_after_s=2 * AVOID_S,
                clock=self._clock,
            )
        self._backoffs.move_to_end(owner_uid)
        until_s = self._until_s[owner_uid] = self._clock() + backoff.next_s(self._first_s)
        if len(self._backoffs) > _OWNERS_REMEMBERED:
            forgotten, _ = self._backoffs.popitem(last=False)
            del self._until_s[forgotten]
        return until_s

    def until_s(self, owner_uid: str) -> float:
        """Return until when the owner's pods pause, 0 where they never did."""
        return self._until_s.get(owner_uid, 0.0)
