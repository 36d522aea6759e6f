"""Which closed lines are opened by what has happened, and when.

Room on a node opens the lines that lack nothing counted there, told by a sieve for all of them at once; when
one's turn comes it is judged by that node alone, and decided only if it still fits. What is no room (pods near and
far, storage, datasets) opens the lines whom such things matter to, and a change of policies all. However much
happens, looking for lines and deciding in vain takes a fifth of one CPU at most; what happens meanwhile is
collected.

A line that is not opened keeps the words that its pods were told. So while things happen, those decided
longest ago are opened for a new decision from time to time.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Awaitable, Callable

from berthmaster.api.objects import Pod
from berthmaster_webhook.deciding import Tools
from berthmaster_webhook.lines import Line, Lines
from berthmaster_webhook.state import ANYTHING, Help

# For each second of looking or deciding in vain, so many of rest.
REST = 4
# Whoever waits for room is not kept waiting for longer by others who do.
LONGEST_REST_S = 2.0
# Words are renewed after so long, of at most so many lines in so many seconds.
WORDS_S = 60.0
RENEWED_AT_ONCE = 20
RENEWAL_PAUSE_S = 1.0
# A pod that has waited for so long and was not decided yet goes before any that is being created.
LONG_S = 10.0
_MOST_RIVALS = 16


class Waking:
    """What has happened since lines were opened for the last time."""

    def __init__(self, tools: Tools, lines: Lines) -> None:
        self._tools = tools
        self._lines = lines
        self._roomier: dict[str, None] = {}
        # The nodes with room for which lines are open now.
        self._offered: dict[str, None] = {}
        self._has_news = self._is_anything = False
        self._helped_s = -math.inf
        # The lines that lack nothing counted on a node, by its name, with the version of its row.
        self._having: dict[str, tuple[int, frozenset[Line]]] = {}
        # By the processor's clock, which a test of the queue does not move.
        self._rest_until_s = 0.0
        # When each line was decided in vain; those decided again have a later entry, too.
        self._decided: list[tuple[float, int, Line]] = []
        self._decisions = 0
        self._renew_s = -math.inf

    def note(self, help_: Help) -> None:
        """Take over that something has happened."""
        if help_.node:
            self._roomier[help_.node] = None
        self._has_news |= help_.is_news
        self._is_anything |= help_ == ANYTHING
        self._helped_s = self._tools.clock()

    @property
    def is_awake(self) -> bool:
        """Return whether something has happened that was not looked into yet."""
        return bool(self._roomier or self._has_news or self._is_anything)

    def rest(self, seconds: float) -> None:
        """Note how much CPU time was used in vain."""
        now_s = time.monotonic()
        self._rest_until_s = min(
            max(self._rest_until_s, now_s) + REST * seconds, now_s + LONGEST_REST_S
        )

    @property
    def rest_s(self) -> float:
        """Return for how long no line is to be opened now."""
        return self._rest_until_s - time.monotonic()

    async def open_helped(self, breathe: Callable[[], Awaitable[None]]) -> bool:
        """Open the lines that may be helped; False if that has to rest. `breathe` is awaited in between."""
        if not self.is_awake:
            return True
        if self.rest_s > 0:
            return False
        nodes, self._roomier = self._roomier, {}
        has_news, self._has_news = self._has_news, False
        is_anything, self._is_anything = self._is_anything, False
        if is_anything or has_news:
            for line in self._lines.closed:
                if is_anything or self._minds(line):
                    self._lines.open(line, anywhere=True)
        lines: set[Line] = set()
        for node in nodes:
            began_s = time.thread_time()
            having = self._having_room(node)
            if having:
                self._offered[node] = None
                lines.update(having)
            self.rest(time.thread_time() - began_s)
            await breathe()
        began_s = time.thread_time()
        for line in lines:
            self._lines.open(line)
        self.rest(time.thread_time() - began_s)
        return True

    def withdraw_offers(self) -> None:
        """Note that nobody is left who may fit on the nodes with room."""
        self._offered.clear()
        self._having.clear()

    def _minds(self, line: Line) -> bool:
        """Return whether something else than room on a node may help a line."""
        return not line.is_local or self._tools.state.engine.resolve(line.request) != line.request

    def _having_room(self, node: str) -> frozenset[Line]:
        """Return the lines that lack nothing counted on a node, found once for each version of its row."""
        engine = self._tools.state.engine
        row = engine.table.row_of(node)
        if row is None:
            return frozenset()
        version = int(engine.table.versions[row])
        known = self._having.get(node)
        if known is None or known[0] != version:
            lines = frozenset(self._lines.with_room(engine.free(node)))
            known = self._having[node] = (version, lines)
        return known[1]

    def has_hope(self, line: Line) -> bool:
        """Return whether a line's first pod may still fit where it was opened for."""
        if line.anywhere:
            return True
        nodes = []
        for node in tuple(self._offered):
            having = self._having_room(node)
            if not having:
                del self._offered[node]
            elif line in having and node not in line.avoided:
                nodes.append(node)
        return bool(nodes) and self._tools.state.engine.may_fit(line.request, nodes)

    # Words.

    def note_decided(self, line: Line) -> None:
        """Note that a line's first pod was decided in vain just now."""
        line.decided_s = self._tools.clock()
        self._decisions += 1
        heapq.heappush(self._decided, (line.decided_s, self._decisions, line))

    @property
    def due_s(self) -> float:
        """Return when the next words are to be renewed, infinity while nothing has happened."""
        if not self._decided or self._decided[0][0] >= self._helped_s:
            return math.inf
        return max(self._decided[0][0] + WORDS_S, self._renew_s)

    def open_stale(self) -> None:
        """Open some of the lines whose words may be old."""
        now_s = self._tools.clock()
        opened = 0
        while opened < RENEWED_AT_ONCE and self.due_s <= now_s:
            decided_s, _, line = heapq.heappop(self._decided)
            if line.decided_s == decided_s and line.is_closed:
                self._lines.open(line, anywhere=True)
                opened += 1
        if opened:
            self._renew_s = now_s + RENEWAL_PAUSE_S

    # Who comes from outside.

    def goes_first(self, pod: Pod, node: str) -> bool:
        """Return whether a pod that waits has an older right to a node than one that is being created.

        It has to be at least as important, and to have found no room before, of which there is some on the
        node now, or to have waited long without a decision. Where many might, one of them is taken to.
        """
        engine = self._tools.state.engine
        priority = -(pod.spec.priority or 0)
        rivals: list[Line] = []
        for line in self._lines.opened:
            first = self._lines.first(line)
            if first is None or first.order[0] > priority:
                continue
            if not line.codes and self._tools.clock() - first.since_s > LONG_S:
                return True
            if line.codes and (line.anywhere or node in self._offered):
                rivals.append(line)
        if node in self._roomier:
            rivals += (
                line
                for line in self._having_room(node)
                if line.is_closed
                and (first := self._lines.first(line)) is not None
                and first.order[0] <= priority
            )
        return len(rivals) > _MOST_RIVALS or any(
            node not in line.avoided and engine.may_fit(engine.resolve(line.request), (node,))
            for line in rivals
        )
