from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from berthmaster.cluster.errors import ApiError
from berthmaster_operator.work_queues import Work, WorkQueue
from support.waiting import until, until_idle


@contextlib.asynccontextmanager
async def running(work: Work, *, workers: int = 1) -> AsyncIterator[WorkQueue]:
    queue = WorkQueue("test", work, workers=workers)
    task = asyncio.create_task(queue.run())
    yield queue
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_keys_added_twice_are_worked_on_once() -> None:
    done: list[str] = []

    async def work(key: str) -> None:
        done.append(key)

    async with running(work) as queue:
        for key in ("a", "b", "a"):
            queue.add(key)
        await until_idle()

    assert done == ["a", "b"]
    assert len(queue) == 0


async def test_key_added_during_work_runs_again_alone() -> None:
    begun: list[str] = []
    may_end = asyncio.Event()

    async def work(key: str) -> None:
        begun.append(key)
        await may_end.wait()

    async with running(work, workers=4) as queue:
        queue.add("a")
        await until_idle()
        queue.add("a")
        queue.add("b")
        await until_idle()
        at_once = list(begun)
        may_end.set()
        await until_idle()

    assert at_once == ["a", "b"]
    assert begun == ["a", "b", "a"]


async def test_earlier_wish_wins() -> None:
    done = asyncio.Event()

    async def work(key: str) -> None:
        done.set()

    async with running(work) as queue:
        queue.add("a", after_s=60)
        queue.add("a", after_s=0.01)
        queue.add("a", after_s=60)
        await asyncio.wait_for(done.wait(), 30)


async def test_wish_of_the_work_is_kept() -> None:
    calls = 0

    async def work(key: str) -> float | None:
        nonlocal calls
        calls += 1
        return 0.01 if calls < 3 else None

    async with running(work) as queue:
        queue.add("a")
        await until(lambda: calls == 3)
        await until_idle()

        assert len(queue) == 0
    assert calls == 3


@pytest.mark.parametrize(
    "error", [ApiError(409, "Conflict", "x"), KeyError("defect")], ids=["refused", "defect"]
)
async def test_failing_key_is_repeated_and_harms_none(error: Exception) -> None:
    calls: list[str] = []

    async def work(key: str) -> None:
        calls.append(key)
        if key == "bad" and calls.count("bad") == 1:
            raise error

    async with running(work) as queue:
        queue.add("bad")
        queue.add("good")
        await until(lambda: calls.count("bad") == 2)

    assert calls.count("bad") == 2
    assert calls.count("good") == 1
    assert queue.failures == 1
