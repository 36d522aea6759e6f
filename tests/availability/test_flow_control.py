"""Our requests have a priority level of their own, so that nobody's flood can keep a Lease from renewal."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio

from benching.outages import LEASE
from berthmaster.api import names
from berthmaster_sandbox.cluster import Sandbox
from support.harbour import SYSTEM

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]

FLOW = "/apis/flowcontrol.apiserver.k8s.io/v1"
ACCOUNTS = f"/api/v1/namespaces/{SYSTEM}/serviceaccounts"


async def token_of(harbour: Sandbox, account: str) -> str:
    made = await harbour.client.create(
        f"{ACCOUNTS}/{account}/token", {"spec": {"expirationSeconds": 3600}}
    )
    return str(made["status"]["token"])


@pytest_asyncio.fixture(loop_scope="session")
async def session(harbour: Sandbox) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(
        limit=0, ssl=ssl.create_default_context(cafile=str(harbour.ca_path))
    )
    async with aiohttp.ClientSession(harbour.server, connector=connector) as running:
        yield running


@pytest.mark.parametrize("account", ["berthmaster-webhook", "berthmaster-operator"])
async def test_every_request_of_ours_goes_by_our_own_level(
    harbour: Sandbox, session: aiohttp.ClientSession, account: str
) -> None:
    schema = await harbour.client.get(f"{FLOW}/flowschemas/berthmaster")
    level = await harbour.client.get(f"{FLOW}/prioritylevelconfigurations/berthmaster")
    lease = LEASE.replace(names.WEBHOOK_LEASE, account)
    headers = {"Authorization": f"Bearer {await token_of(harbour, account)}"}

    for path in (lease, "/api/v1/nodes?limit=1", "/api/v1/pods?limit=1", "/version", "/apis"):
        async with session.get(path, headers=headers) as response:
            assert response.status == 200, path
            found = {
                response.headers["X-Kubernetes-PF-FlowSchema-UID"],
                response.headers["X-Kubernetes-PF-PriorityLevel-UID"],
            }
        assert found == {schema["metadata"]["uid"], level["metadata"]["uid"]}, path
    dangling = [it for it in schema["status"]["conditions"] if it["type"] == "Dangling"]
    assert [it["status"] for it in dangling] == ["False"]
