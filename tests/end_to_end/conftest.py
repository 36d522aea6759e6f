"""A cluster with Berthmaster installed from config/, shared by the end-to-end tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator

import pytest_asyncio

from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.installing import IMAGES, install
from support.harbour import PROGRAMS, SYSTEM


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def harbour() -> AsyncIterator[Sandbox]:
    """A cluster of its own where operator and webhook run as pods on process nodes."""
    accounts = [f"system:serviceaccount:{SYSTEM}:{it}" for it in PROGRAMS]
    async with Sandbox.start(process_nodes=2, images=IMAGES, audited=accounts) as running:
        await install(running)
        yield running
        # `make rbac` asks for what our programs did.
        if audit := os.environ.get("BERTHMASTER_AUDIT"):
            shutil.copy(running.plane.audit_path, audit)
