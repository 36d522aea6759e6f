"""What one run of the suite does: sizes, times, and the seed of all chance."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much of everything; times in seconds.

    `pods` is how many are to be created in all, `alive` how many controllers want at the same time.
    Faults go on, in rounds, until the pods were created, or `duration_s` is over, and at least for one
    whole round; `faults` limits the kinds, by name, and their order is then the one given.
    `request_timeout_s` is the API server's `--request-timeout`, on which what the webhook is told to
    wait depends.
    """

    seed: int = 1
    nodes: int = 500
    pods: int = 10_000
    alive: int = 800
    duration_s: float = 1080.0
    faults: tuple[str, ...] = ()
    down_s: float = 60.0
    gap_s: tuple[float, float] = (3.0, 8.0)
    request_timeout_s: float = 20.0

    @property
    def takeover_wait_s(self) -> float:
        """Return how long a leader waits after one that crashed: as the default does, 5 s longer."""
        return self.request_timeout_s + 5.0

    @property
    def assume_ttl_s(self) -> float:
        """Return when an answer whose pod never came lapses: as the default, 10 s after the limit."""
        return self.request_timeout_s + 10.0

    def count(self, share: float, *, at_least: int = 1) -> int:
        """Return a share of the nodes."""
        return max(at_least, round(self.nodes * share))
