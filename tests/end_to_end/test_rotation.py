"""Certificates change while pods are created without a pause: no call fails, nobody restarts.

What each creation was answered is the first witness, the API server's metrics and log the second.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from berthmaster.api import names
from berthmaster.api.digests import certificate_digest
from berthmaster.cluster.client import PatchKind
from berthmaster_operator.certificates import is_trusted
from berthmaster_sandbox.cluster import Sandbox
from support.harbour import (
    HOOK,
    SYSTEM,
    kill_program,
    make_pod,
    new_namespace,
    program_pids,
    program_pods,
    scale_program,
    until,
)
from support.traffic import count_fail_open, traffic, webhook_path

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(600),
]

NAMESPACE = "rotation"
NODE = "rotation"
PER_SECOND = 20
WEBHOOK = "berthmaster-webhook"
SECRETS = f"/api/v1/namespaces/{SYSTEM}/secrets"
CA = f"{SECRETS}/{names.WEBHOOK_CA_SECRET}"
TLS = f"{SECRETS}/{names.WEBHOOK_TLS_SECRET}"


async def bundle(harbour: Sandbox) -> bytes:
    found = await harbour.client.get(HOOK)
    return base64.b64decode(found["webhooks"][0]["clientConfig"].get("caBundle", ""))


async def part(harbour: Sandbox, path: str, key: str) -> bytes:
    return base64.b64decode((await harbour.client.get(path))["data"][key])


async def is_settled(harbour: Sandbox, before: bytes) -> bool:
    """Tell whether another authority than before is trusted alone, and everybody serves its pair."""
    found = await harbour.client.get(SECRETS)
    data = {it["metadata"]["name"]: it["data"] for it in found["items"]}
    if not {names.WEBHOOK_CA_SECRET, names.WEBHOOK_TLS_SECRET} <= data.keys():
        return False
    authority = base64.b64decode(data[names.WEBHOOK_CA_SECRET]["tls.crt"])
    return (
        await bundle(harbour) == authority != before
        and data[names.WEBHOOK_TLS_SECRET]["ca.crt"] == data[names.WEBHOOK_CA_SECRET]["tls.crt"]
        and await serve_the_secret(harbour)
    )


async def serve_the_secret(harbour: Sandbox) -> bool:
    """Tell whether all replicas say that they serve what is in the Secret."""
    digest = certificate_digest(await part(harbour, TLS, "tls.crt"))
    reported = [
        it["metadata"].get("annotations", {}).get(names.SERVING)
        for it in await program_pods(harbour, WEBHOOK)
    ]
    return reported == [digest] * 2


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pair(harbour: Sandbox) -> AsyncIterator[Sandbox]:
    """The harbour with a leader and a standby, and a node that holds many pods."""
    await new_namespace(harbour, NAMESPACE)
    await harbour.create_nodes(1, name=NODE, pods=10_000)
    await scale_program(harbour, WEBHOOK, 2)
    await until(lambda: serve_the_secret(harbour), bool, 60)
    yield harbour
    await harbour.client.delete(f"/api/v1/namespaces/{NAMESPACE}")
    await scale_program(harbour, WEBHOOK, 1)
    await until(lambda: program_pods(harbour, WEBHOOK), lambda pods: len(pods) == 1, 60)


async def renew_leaf(harbour: Sandbox) -> None:
    before = await part(harbour, TLS, "tls.crt")
    await harbour.client.delete(TLS)

    async def is_another() -> bool:
        found = await harbour.client.get(SECRETS)
        there = {it["metadata"]["name"] for it in found["items"]}
        if names.WEBHOOK_TLS_SECRET not in there:
            return False
        return await part(harbour, TLS, "tls.crt") != before and await serve_the_secret(harbour)

    await until(is_another, bool, 60)


async def ask_for_authority(harbour: Sandbox) -> None:
    before = await bundle(harbour)
    await harbour.kubectl(
        "-n", SYSTEM, "annotate", "secret", names.WEBHOOK_CA_SECRET, f"{names.RENEW}=now"
    )
    await until(lambda: is_settled(harbour, before), bool, 180)


async def lose_authority_and_operator(harbour: Sandbox) -> None:
    before = await bundle(harbour)
    await harbour.client.delete(CA)

    async def trusts_both() -> bool:
        now = await bundle(harbour)
        return now != before and is_trusted(now, before)

    await until(trusts_both, bool, 60)
    # While the new one is trusted and not used yet.
    await kill_program(harbour, "berthmaster-operator")
    await until(lambda: is_settled(harbour, before), bool, 180)


async def test_leaf_and_authority_change_under_load(pair: Sandbox) -> None:
    pids, before = await program_pids(pair, WEBHOOK), await webhook_path(pair)
    async with traffic(pair, NAMESPACE, node=NODE, per_second=PER_SECOND) as seen:
        for change in (renew_leaf, ask_for_authority, lose_authority_and_operator):
            await change(pair)

    assert await program_pids(pair, WEBHOOK) == pids, "a webhook was restarted"
    assert seen.created > 100
    assert seen.about_certificates == []
    assert seen.refused == []
    # Every call that failed has its line.
    assert len(seen.failures) == seen.fail_open
    # A busy machine may exceed the second that a call has, or make the leader lose its lease.
    if await webhook_path(pair) == before:
        assert len(seen.failures) == seen.slow <= seen.created / 100
        assert len(seen.gated) <= seen.slow


async def test_certificate_that_is_not_trusted_would_have_been_noticed(pair: Sandbox) -> None:
    hook = await pair.client.get(HOOK)
    config: dict[str, Any] = hook["webhooks"][0]["clientConfig"]
    await scale_program(pair, "berthmaster-operator", 0)
    await until(lambda: program_pods(pair, "berthmaster-operator"), lambda pods: not pods, 60)
    other = (await pair.client.get("/api/v1/namespaces/default/configmaps/kube-root-ca.crt"))[
        "data"
    ]["ca.crt"]

    async def set_bundle(text: str) -> None:
        patch = [{"op": "replace", "path": "/webhooks/0/clientConfig/caBundle", "value": text}]
        await pair.client.patch(HOOK, patch, PatchKind.JSON)

    async def is_gated() -> bool:
        probe = make_pod("probe", on=NODE)
        made = await pair.client.create(
            f"/api/v1/namespaces/{NAMESPACE}/pods", probe, {"dryRun": "All"}
        )
        return bool(made["spec"].get("schedulingGates"))

    before = await count_fail_open(pair)
    try:
        await set_bundle(base64.b64encode(other.encode()).decode())
        await until(is_gated, bool, 30)
        assert await count_fail_open(pair) > before
    finally:
        await set_bundle(config["caBundle"])
        await scale_program(pair, "berthmaster-operator", 1)
    await until(is_gated, lambda gated: not gated, 60)
