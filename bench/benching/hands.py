"""Several hands that do the same work at once, so that nobody waits for the API server alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")
HANDS = 16


async def for_each(
    items: Iterable[T], work: Callable[[T], Awaitable[object]], *, hands: int = HANDS
) -> None:
    """Do the work for each item, so many at a time. Raises an ExceptionGroup of what it raises."""
    left = iter(items)

    async def hand() -> None:
        for item in left:
            await work(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(hands):
            group.create_task(hand())
