from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from support.webhook_world import World


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    it = World()
    yield it
    await it.close()
