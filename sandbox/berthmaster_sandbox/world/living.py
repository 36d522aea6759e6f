"""What every simulated world does: start its watches and tasks, and end them all with the block."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Iterable, Sequence
from types import TracebackType
from typing import Any, Self

from berthmaster.cluster.informers import Informer

START_DEADLINE_S = 60.0

Work = Coroutine[Any, Any, None]


class World(ABC):
    """A world that lives within `async with`."""

    def __init__(self) -> None:
        self._group: asyncio.TaskGroup | None = None
        self._lasting: list[asyncio.Task[None]] = []

    @abstractmethod
    def _informers(self) -> Sequence[Informer[Any]]:
        """Return the watches without whose first list the world does not know itself."""

    @abstractmethod
    def _others(self) -> Iterable[Work]:
        """Return what else runs as long as the world."""

    @abstractmethod
    def _stop(self) -> None:
        """Cancel what the world started later, by `_start`."""

    async def __aenter__(self) -> Self:
        """Start watching; raises `TimeoutError` where no list came within `START_DEADLINE_S`."""
        self._group = asyncio.TaskGroup()
        await self._group.__aenter__()
        informers = self._informers()
        for work in (*(it.run() for it in informers), *self._others()):
            self._lasting.append(self._start(work))
        try:
            async with asyncio.timeout(START_DEADLINE_S):
                for informer in informers:
                    await informer.synced.wait()
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop everything; what it wrote stays."""
        group = self._running_group()
        for task in self._lasting:
            task.cancel()
        self._stop()
        self._group = None
        await group.__aexit__(exc_type, exc, traceback)

    def _start(self, work: Work) -> asyncio.Task[None]:
        return self._running_group().create_task(work)

    def _running_group(self) -> asyncio.TaskGroup:
        if self._group is None:
            raise RuntimeError("the world is not started: use it with `async with`")
        return self._group
