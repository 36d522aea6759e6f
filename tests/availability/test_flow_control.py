"""Our requests have a priority level of their own, so that nobody's flood can keep a Lease from renewal."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial

import aiohttp
import pytest
import pytest_asyncio

from availability.living import LEASE_S, NODE
from benching.outages import LEASE, find_leader
from berthmaster.api import names
from berthmaster_sandbox.cluster import Sandbox
from support.harbour import SYSTEM, create, make_pod, new_namespace, until

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]

FLOW = "/apis/flowcontrol.apiserver.k8s.io/v1"
# Twelve seats in all, some five of them for what has no level of its own.
SCARCE = {"max-requests-inflight": 8, "max-mutating-requests-inflight": 4}
FLOOD = 400
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


async def flood(session: aiohttp.ClientSession, token: str, statuses: Counter[int]) -> None:
    """List all there is, again and again."""
    while True:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with session.get(
                "/api/v1/pods", headers={"Authorization": f"Bearer {token}"}
            ) as response:
                await response.read()
                statuses[response.status] += 1
                if response.status == 429:
                    await asyncio.sleep(1)


async def test_lease_is_kept_and_pods_are_placed_under_a_flood(
    harbour: Sandbox, session: aiohttp.ClientSession
) -> None:
    """An API server with few seats, and as many lists of one foreign account as fill its queues."""
    await new_namespace(harbour, "flooded")
    path = "/api/v1/namespaces/flooded/serviceaccounts"
    await harbour.client.create(path, {"metadata": {"name": "flood"}})
    made = await harbour.client.create(f"{path}/flood/token", {"spec": {"expirationSeconds": 3600}})
    await harbour.kubectl(
        "create",
        "clusterrolebinding",
        "flood",
        "--clusterrole=view",
        "--serviceaccount=flooded:flood",
    )
    await harbour.plane.configure_api_server(SCARCE)
    statuses: Counter[int] = Counter()
    try:
        before = await until_led(harbour)
        async with asyncio.TaskGroup() as tasks:
            flooding = [
                tasks.create_task(flood(session, made["status"]["token"], statuses))
                for _ in range(FLOOD)
            ]
            # Longer than the Lease, so that it must have been renewed meanwhile.
            began_s = time.monotonic()
            for number in itertools.count():
                await create(harbour, "flooded", make_pod(f"p-{number}", on=NODE))
                await until(partial(is_placed, harbour, f"p-{number}"), bool, 60)
                if time.monotonic() > began_s + LEASE_S + 2:
                    break
            for task in flooding:
                task.cancel()
        after = (await harbour.client.get(LEASE))["spec"]
    finally:
        await harbour.plane.configure_api_server({})

    # It was one: the level of others had no place in its queues left.
    assert statuses[429] > FLOOD / 8
    assert after["holderIdentity"] == before["holderIdentity"]
    assert after["leaseTransitions"] == before["leaseTransitions"]


async def is_placed(harbour: Sandbox, name: str) -> bool:
    pod = await harbour.client.get(f"/api/v1/namespaces/flooded/pods/{name}")
    return names.ALLOCATION in pod["metadata"].get("annotations", {})


async def until_led(harbour: Sandbox) -> dict[str, object]:
    """Wait until a leader that is there keeps its Lease and its marks; return the Lease's spec.

    A leader that lost its Lease while the API server restarted takes it anew with the next renewal.
    """
    await until(lambda: find_leader(harbour), bool, 120)
    seen: list[dict[str, object]] = []

    async def renewals() -> list[dict[str, object]]:
        spec = (await harbour.client.get(LEASE))["spec"]
        if not seen or spec["renewTime"] != seen[-1]["renewTime"]:
            seen.append(spec)
        return seen

    def is_kept(specs: list[dict[str, object]]) -> bool:
        return len(specs) > 1 and len({it["leaseTransitions"] for it in specs[-2:]}) == 1

    kept: list[dict[str, object]] = await until(renewals, is_kept, 60)
    return kept[-1]
