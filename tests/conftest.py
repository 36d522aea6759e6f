"""What all test folders share: one cluster for the whole run.

A test that needs the cluster says so at the top of its module:

    pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]

and takes the fixture `sandbox` (`berthmaster_sandbox.cluster.Sandbox`). The cluster is shared, so
a test works in the namespace that the fixture `namespace` gives it, and leaves cluster-wide
objects as it found them. A test that needs a cluster of its own enters `Sandbox.start` itself.

The cluster's kubelets and proxy are tasks of the session's event loop and stand still whenever
another loop or a synchronous test runs. Tests that share it are therefore moved to the end of the
run, behind one another, and are asynchronous, without blocking calls of more than a few seconds.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from berthmaster_sandbox.cluster import Sandbox

SIMULATED_NODES = 4


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run tests without a cluster first, then those with their own, then those that share one."""
    items.sort(key=_rank)


def _rank(item: pytest.Item) -> int:
    if item.get_closest_marker("cluster") is None:
        return 0
    return 2 if "sandbox" in getattr(item, "fixturenames", ()) else 1


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def sandbox() -> AsyncIterator[Sandbox]:
    """A running cluster: `sim-0001` to `sim-0004` by kwok, `sandbox-1` to `sandbox-3` by us."""
    async with Sandbox.start(sim_nodes=SIMULATED_NODES) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def namespace(sandbox: Sandbox) -> AsyncIterator[str]:
    """A namespace of the test's own; its deletion is begun and not waited for."""
    name = f"test-{secrets.token_hex(4)}"
    await sandbox.client.create(
        "/api/v1/namespaces",
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}},
    )
    yield name
    await sandbox.client.delete(f"/api/v1/namespaces/{name}")
