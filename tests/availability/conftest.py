"""A cluster with the component `ha`, three webhooks and two operators, whose waits are short."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from availability.living import ASSUME_TTL_S, NODE, TAKEOVER_WAIT_S
from benching.outages import write_overlay
from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.installing import IMAGES, install


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def harbour(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Sandbox]:
    """Three nodes that run processes, and one simulated one that holds many pods."""
    overlay = write_overlay(
        tmp_path_factory.mktemp("ha"),
        replicas=3,
        takeover_wait_s=TAKEOVER_WAIT_S,
        assume_ttl_s=ASSUME_TTL_S,
    )
    async with Sandbox.start(process_nodes=3, images=IMAGES) as running:
        await running.create_nodes(1, name=NODE, cpu="1000", pods=10_000)
        await install(running, config=overlay)
        yield running
