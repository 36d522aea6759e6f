"""A cluster with Berthmaster installed from config/, shared by the end-to-end tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.installing import IMAGES, install
from support.harbour import PROGRAMS, SYSTEM

AUDIT = os.environ.get("BERTHMASTER_AUDIT")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what runs on a cluster of its own where `make rbac` asks for what was done on this one."""
    if AUDIT is None:
        return

    def is_audited(item: pytest.Item) -> bool:
        has_own = hasattr(getattr(item, "module", None), "harbour")
        return "harbour" in getattr(item, "fixturenames", ()) and not has_own

    config.hook.pytest_deselected(items=[it for it in items if not is_audited(it)])
    items[:] = [it for it in items if is_audited(it)]


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def harbour() -> AsyncIterator[Sandbox]:
    """A cluster of its own where operator and webhook run as pods on process nodes."""
    accounts = [f"system:serviceaccount:{SYSTEM}:{it}" for it in PROGRAMS]
    async with Sandbox.start(process_nodes=2, images=IMAGES, audited=accounts) as running:
        await install(running)
        yield running
        # `make rbac` asks for what our programs did.
        if AUDIT is not None:
            shutil.copy(running.plane.audit_path, AUDIT)
