"""A cluster with Berthmaster installed from config/, shared by the end-to-end tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.installing import IMAGES, install


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def harbour() -> AsyncIterator[Sandbox]:
    """A cluster of its own where operator and webhook run as pods on process nodes."""
    async with Sandbox.start(process_nodes=2, images=IMAGES) as running:
        await install(running)
        yield running
