"""What all test folders share: one cluster for the whole run.

A test that needs the cluster says so at the top of its module:

    pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]

and takes the fixture `sandbox` (`berthmaster_sandbox.cluster.Sandbox`). The cluster is shared, so
a test works in the namespace that the fixture `namespace` gives it, and leaves cluster-wide
objects as it found them. A test that needs a cluster of its own enters `Sandbox.start` itself.

The cluster's kubelets and proxy are tasks of the session's event loop and stand still whenever
another loop or a synchronous test runs. Tests that share it are therefore moved to the end of the
run, behind one another (on one worker, where there are several), and are asynchronous, without blocking calls
of more than a few seconds.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from berthmaster_sandbox.cluster import Sandbox

SIMULATED_NODES = 4


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put tests in order, and say which go to one worker where there are several.

    Alone, tests without a cluster come first, then those with their own, then those that share one. With
    workers those with clusters of their own come first, since they take longest. Before other plugins: the one
    of the workers writes the groups into the names of the tests.
    """
    has_workers = hasattr(config, "workerinput")
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))
    order = (_OWN, _NONE, _SHARED) if has_workers else (_NONE, _OWN, _SHARED)
    items.sort(key=lambda item: order.index(_cluster(item)))


_NONE, _OWN, _SHARED = "none", "own", "shared"


def _cluster(item: pytest.Item) -> str:
    """Return which cluster a test needs."""
    if item.get_closest_marker("cluster") is None:
        return _NONE
    return _SHARED if "sandbox" in getattr(item, "fixturenames", ()) else _OWN


def _group(item: pytest.Item) -> str:
    """Return what stays together: those that share a cluster, else those of one file."""
    if _cluster(item) == _SHARED:
        return "sandbox"
    has_own = hasattr(getattr(item, "module", None), "harbour")
    is_shared = "harbour" in getattr(item, "fixturenames", ()) and not has_own
    return str(item.path.parent if is_shared else item.path)


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
