"""A cluster into which nothing is installed yet."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.installing import IMAGES
from installation.living import NEXT_IMAGE, NODE


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def bare() -> AsyncIterator[Sandbox]:
    """Three nodes that run processes, and one simulated one that holds many pods."""
    images = {**IMAGES, NEXT_IMAGE: ("berthmaster-webhook",)}
    async with Sandbox.start(process_nodes=3, images=images) as running:
        await running.create_nodes(1, name=NODE, pods=10_000)
        yield running
