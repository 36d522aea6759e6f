"""A queue of keys that need work: each once, each by one worker at a time, now or later.

A key that is added again while it waits keeps one place, the earlier of both times. A key that is
added while it is worked on is worked on once more afterwards. What the work returns is the number of
seconds after which it wants to be called again without any event; this is the only timer the
operator has, a heap, never a poll. Work that fails is repeated after a growing pause of its own; no
failure ends the queue.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import time
from collections.abc import Awaitable, Callable

from berthmaster.cluster.backoffs import Backoff
from berthmaster.cluster.errors import ApiError, ClusterError

logger = logging.getLogger(__name__)

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0

Work = Callable[[str], Awaitable[float | None]]


class WorkQueue:
    """Call `work(key)` for every key added; `run` does it until cancelled.

    `name` is for logs, `workers` bounds how many keys are worked on at once.
    """

    def __init__(
        self,
        name: str,
        work: Work,
        *,
        workers: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._work = work
        self._clock = clock
        self._slots = asyncio.Semaphore(workers)
        self._due_s: dict[str, float] = {}
        self._heap: list[tuple[float, int, str]] = []
        self._order = itertools.count()
        self._running: set[str] = set()
        self._backoffs: dict[str, Backoff] = {}
        self._changed = asyncio.Event()
        self.failures = 0

    def __len__(self) -> int:
        return len(self._due_s) + len(self._running)

    def add(self, key: str, *, after_s: float = 0.0) -> None:
        """Have the key worked on in so many seconds, or earlier if that was wanted already."""
        due_s = self._clock() + after_s
        known_s = self._due_s.get(key)
        if known_s is not None and known_s <= due_s:
            return
        self._due_s[key] = due_s
        if key not in self._running:
            self._push(key, due_s)

    async def run(self) -> None:
        """Work until cancelled; cancelling waits for nothing."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._slots.acquire()
                key = await self._take()
                tasks.create_task(self._guarded(key), name=f"{self._name} {key}")

    def _push(self, key: str, due_s: float) -> None:
        heapq.heappush(self._heap, (due_s, next(self._order), key))
        self._changed.set()

    async def _take(self) -> str:
        while True:
            wait_s = self._pop_outdated()
            if wait_s is not None and wait_s <= 0:
                _, _, key = heapq.heappop(self._heap)
                del self._due_s[key]
                self._running.add(key)
                return key
            self._changed.clear()
            try:
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def _pop_outdated(self) -> float | None:
        """Return the seconds until the first key is due, None when none waits."""
        while self._heap:
            due_s, _, key = self._heap[0]
            if self._due_s.get(key) == due_s and key not in self._running:
                return due_s - self._clock()
            heapq.heappop(self._heap)
        return None

    async def _guarded(self, key: str) -> None:
        again_s: float | None = None
        try:
            again_s = await self._work(key)
            self._backoffs.pop(key, None)
        except ClusterError as error:
            again_s = self._pause_s(key, error)
            logger.warning(
                "work failed",
                extra={"queue": self._name, "key": key, "error": str(error), "retry_in_s": again_s},
            )
        # The boundary of one key: a defect that one object brings to light must not stop the others.
        except Exception:
            again_s = self._pause_s(key, None)
            logger.exception("work broke", extra={"queue": self._name, "key": key})
        finally:
            self._running.discard(key)
            self._slots.release()
        if again_s is not None:
            self.add(key, after_s=again_s)
        if key in self._due_s:
            self._push(key, self._due_s[key])

    def _pause_s(self, key: str, error: ClusterError | None) -> float:
        self.failures += 1
        backoff = self._backoffs.get(key)
        if backoff is None:
            backoff = Backoff(first_s=FIRST_PAUSE_S, cap_s=LONGEST_PAUSE_S, clock=self._clock)
            self._backoffs[key] = backoff
        wish_s = error.retry_after_s if isinstance(error, ApiError) else None
        return round(max(0.1, backoff.next_s(wish_s)), 2)
