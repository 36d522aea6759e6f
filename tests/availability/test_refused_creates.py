"""Creates that were answered and came to nothing, on a node with room for ten: no phantom stays.

What the leader holds for answers whose pods it has not seen is read from its metrics. That its books are
right afterwards shows by what still fits: each free CPU can be had, and not one more.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from availability.living import ASSUME_TTL_S
from benching.outages import SYSTEM_PODS, find_leader
from berthmaster.cluster.errors import ApiError, ClusterError
from berthmaster.placement.ledger import OVERDUE_S
from berthmaster_sandbox.addresses import bind_address
from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.scraping import make_reader, read_metrics
from support.harbour import create, make_pod, new_namespace, until, until_bound, until_waiting

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]

BERTH = "berth"
ROOM = 10
NAMESPACE = "refused"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
POLICIES = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
REFUSED = {"refused": "yes"}

Assumed = Callable[[], Awaitable[int]]


def pod_of(name: str, **fields: Any) -> dict[str, Any]:
    """Return a pod that takes one CPU of the berth."""
    pod = make_pod(name, on=BERTH, **fields)
    pod["spec"]["containers"][0]["resources"] = {"requests": {"cpu": "1"}}
    return pod


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def assumed(harbour: Sandbox) -> AsyncIterator[Assumed]:
    """How many answers the leader holds room for; with the node and namespace of these tests."""
    await harbour.create_nodes(1, name=BERTH, cpu=str(ROOM))
    await new_namespace(harbour, NAMESPACE)
    token = await make_reader(harbour.client)
    async with aiohttp.ClientSession() as session:

        async def read() -> int:
            leader = await find_leader(harbour)
            if leader is None:
                return -1
            pod = await harbour.client.get(f"{SYSTEM_PODS}/{leader.pod}")
            address = pod["status"]["podIP"]
            host = bind_address(address, int(address.split(".")[1]))
            page = await read_metrics(session, host, token)
            found = re.search(r"^berthmaster_assumed_pods (.+)$", page, re.MULTILINE)
            return int(float(found[1])) if found else -1

        yield read


async def until_none_is_assumed(assumed: Assumed) -> None:
    await until(assumed, lambda it: it == 0, ASSUME_TTL_S + 20)


async def fill(harbour: Sandbox, prefix: str, free: int) -> None:
    """Take all that should be free, see that no more can be had, and give it back."""
    for index in range(free):
        await create(harbour, NAMESPACE, pod_of(f"{prefix}-{index}"))
    for index in range(free):
        assert await until_bound(harbour, NAMESPACE, f"{prefix}-{index}") == BERTH
    await create(harbour, NAMESPACE, pod_of(f"{prefix}-more"))
    _, message = await until_waiting(harbour, NAMESPACE, f"{prefix}-more")
    assert "Insufficient cpu" in message
    await harbour.client.delete(PODS, query={"gracePeriodSeconds": 0})

    async def left() -> int:
        return len((await harbour.client.get(PODS))["items"])

    await until(left, lambda it: it == 0, 30)


async def test_replica_set_against_a_full_quota_holds_two_pods_at_most(
    harbour: Sandbox, assumed: Assumed
) -> None:
    quota = {"metadata": {"name": "three"}, "spec": {"hard": {"pods": "3"}}}
    await harbour.client.create(f"/api/v1/namespaces/{NAMESPACE}/resourcequotas", quota)
    path = f"/apis/apps/v1/namespaces/{NAMESPACE}/replicasets"
    template = pod_of("any", labels={"app": "many"})
    replica_set = {
        "metadata": {"name": "many"},
        "spec": {
            "replicas": 10,
            "selector": {"matchLabels": {"app": "many"}},
            "template": {"metadata": template["metadata"], "spec": template["spec"]},
        },
    }
    await harbour.client.create(path, replica_set)

    async def conditions() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await harbour.client.get(f"{path}/many"))["status"].get(
            "conditions", []
        )
        return found

    failed = await until(conditions, bool, 30)
    assert "exceeded quota" in failed[0]["message"]
    held = []
    # Well into the time in which it retries, and past the moment at which the first ones lapse.
    for _ in range(int(2 * (ASSUME_TTL_S + OVERDUE_S))):
        held.append(await assumed())
        await asyncio.sleep(0.5)

    assert 0 < max(held) <= 2
    await harbour.client.delete(f"{path}/many", query={"propagationPolicy": "Foreground"})
    await harbour.client.delete(f"/api/v1/namespaces/{NAMESPACE}/resourcequotas/three")
    await until_none_is_assumed(assumed)
    await fill(harbour, "after-quota", ROOM)


async def refuse_later(harbour: Sandbox) -> None:
    """Have the API server refuse pods with a label, after all mutation."""
    policy = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": "refused"},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {
                "resourceRules": [
                    {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"]}
                    | {"resources": ["pods"]}
                ]
            },
            "validations": [
                {
                    "expression": "!has(object.metadata.labels) || !('refused' in object.metadata.labels)",
                    "message": "refused later",
                }
            ],
        },
    }
    binding = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": "refused"},
        "spec": {"policyName": "refused", "validationActions": ["Deny"]},
    }
    for manifest in (policy, binding):
        await harbour.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))

    async def acts() -> bool:
        return await outcome(harbour, pod_of("probe", labels=REFUSED), {"dryRun": "All"}) == 422

    await until(acts, bool, 30)


async def outcome(
    harbour: Sandbox, pod: dict[str, Any], query: dict[str, str] | None = None
) -> int:
    """Return the status that the creation of a pod came to."""
    try:
        await harbour.client.create(PODS, pod, query, timeout_s=30)
    except ApiError as error:
        return error.status
    return 201


async def abandon(
    harbour: Sandbox, pod: dict[str, Any], *, after_s: float = 30, api_after_s: float = 30
) -> None:
    """Create a pod that client or API server gives up after so long, whatever became of it."""
    query = {"timeout": f"{api_after_s * 1000:.0f}ms"}
    with contextlib.suppress(ClusterError):
        await harbour.client.create(PODS, pod, query, timeout_s=after_s)


async def test_whatever_becomes_of_creates_no_phantom_stays(
    harbour: Sandbox, assumed: Assumed
) -> None:
    await refuse_later(harbour)
    kept = {"metadata": {**pod_of("x")["metadata"], "generateName": "again-"}}
    kept["metadata"].pop("name")
    generated = {**pod_of("x"), **kept}

    # Refused after we were asked, again and again.
    for index in range(4):
        assert await outcome(harbour, pod_of(f"refused-{index}", labels=REFUSED)) == 422
    # Asked for without effect.
    for index in range(4):
        assert await outcome(harbour, pod_of(f"dry-{index}"), {"dryRun": "All"}) == 201
    # Given up at different moments, and tried again: once with a name, once without.
    for index in range(6):
        limit_s = 0.004 * 2**index
        await abandon(harbour, pod_of(f"gone-{index}"), after_s=limit_s)
        await abandon(harbour, pod_of(f"gone-{index}"))
        await abandon(harbour, generated, after_s=limit_s)
        await abandon(harbour, pod_of(f"late-{index}"), api_after_s=limit_s)
    await harbour.client.delete(PODS, query={"gracePeriodSeconds": 0})

    await until_none_is_assumed(assumed)
    await harbour.client.delete(PODS, query={"gracePeriodSeconds": 0})
    await fill(harbour, "after-all", ROOM)
    await harbour.client.delete(f"{POLICIES}/refused")
