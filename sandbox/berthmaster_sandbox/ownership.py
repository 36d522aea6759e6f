"""Tasks that belong to an object and not to a block of code.

`asyncio.TaskGroup` must be left by the task that entered it. The sandbox is also held by test
fixtures, whose beginning and end run in different tasks. This owner keeps what matters of a
group: no task outlives it, and no failure is lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine

logger = logging.getLogger(__name__)


class TaskOwner:
    """Runs background tasks that are expected never to end, until `close`."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed = asyncio.Event()
        self._failures: list[BaseException] = []
        self._is_closing = False

    def start(self, name: str, work: Coroutine[object, object, None]) -> None:
        """Run `work` in the background; its end before `close` counts as a failure."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._note_end)

    async def wait_failed(self) -> BaseException:
        """Wait until a task has ended too early and return the reason."""
        await self._failed.wait()
        return self._failures[0]

    def check(self) -> None:
        """Raise the first failure, if there was one."""
        if self._failures:
            raise self._failures[0]

    async def close(self) -> None:
        """Cancel all tasks, newest included, and return when they have ended."""
        self._is_closing = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _note_end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is None and self._is_closing:
            return
        error = error or RuntimeError(f"{task.get_name()} ended although nobody asked it to")
        self._failures.append(error)
        self._failed.set()
        logger.error(
            "a task of the sandbox failed", extra={"task": task.get_name()}, exc_info=error
        )
