"""Say how long to wait after a failed attempt, as client-go does for its reflectors."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

# The longest wish of a server that is honoured; a proxy in maintenance may ask for hours.
LONGEST_WISH_S = 30.0


class Backoff:
    """Count failures: each doubles the ceiling of a random wait, health for a while forgets them.

    Full jitter: the n-th wait is uniform in [0, min(cap_s, first_s * 2**(n-1))] seconds. After
    `reset_after_s` seconds without a failure (beyond the wait itself) counting starts again.
    """

    def __init__(
        self,
        *,
        first_s: float = 0.8,
        cap_s: float = 30.0,
        reset_after_s: float = 120.0,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._first_s = first_s
        self._cap_s = cap_s
        self._reset_after_s = reset_after_s
        self._rng = rng if rng is not None else random.Random()  # noqa: S311 - jitter, no secret
        self._clock = clock
        self._failures = 0
        self._resume_at_s = clock()

    def next_s(self, at_least_s: float | None = None) -> float:
        """Note a failure and return the wait in seconds.

        `at_least_s` is the server's Retry-After; of more than `LONGEST_WISH_S` only that counts.
        """
        now_s = self._clock()
        if now_s - self._resume_at_s >= self._reset_after_s:
            self._failures = 0
        # 2**20 is far beyond any cap and still a small number.
        ceiling_s = min(self._cap_s, self._first_s * 2.0 ** min(self._failures, 20))
        self._failures += 1
        wait_s = max(self._rng.uniform(0.0, ceiling_s), min(at_least_s or 0.0, LONGEST_WISH_S))
        self._resume_at_s = now_s + wait_s
        return wait_s
