"""Waiting: for a condition, or for as long as there is anything to do at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

# More than any chain of tasks here that wake each other.
_TURNS = 500


async def until(is_true: Callable[[], bool], *, limit_s: float = 10.0) -> None:
    """Wait until something is so; what is awaited has no event of its own."""
    async with asyncio.timeout(limit_s):
        while not is_true():
            await asyncio.sleep(0.005)


async def until_idle() -> None:
    """Let all tasks go on until each waits for time or for others, on however slow a machine.

    Only where nothing that is tested sleeps, or talks to anybody outside the loop.
    """
    for _ in range(_TURNS):
        await asyncio.sleep(0)


def wait_for(condition: Callable[[], bool], what: str, *, limit_s: float = 60.0) -> None:
    """Wait until something is so, where there is no loop; `what` is said when it does not come."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
