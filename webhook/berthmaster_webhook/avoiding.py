"""Nodes that successors of a pod whose pin failed stay away from for a while."""

from __future__ import annotations

from collections import OrderedDict

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
