"""The component client-certificate with an API server that shows its certificate to webhooks."""

from __future__ import annotations

import itertools
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from berthmaster.api import names
from berthmaster_sandbox.addresses import bind_address
from berthmaster_sandbox.cluster import Sandbox
from support.harbour import SYSTEM, create, make_pod, new_namespace, program_pods, until
from support.overlays import CONFIG, write_overlay

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(400),
]

NAMESPACE = "callers"


async def roll_out(harbour: Sandbox, folder: Path) -> None:
    await harbour.kubectl("apply", "-k", str(folder))
    program = "deployment/berthmaster-webhook"
    await harbour.kubectl("-n", SYSTEM, "rollout", "status", program, "--timeout=120s")
    await until(lambda: leaders(harbour), lambda found: len(found) == 1, 120)
    # Who comes next counts processes: the replaced one is to be gone.
    await until(
        lambda: program_pods(harbour, "berthmaster-webhook"), lambda found: len(found) == 1, 120
    )


async def leaders(harbour: Sandbox) -> list[dict[str, Any]]:
    return [
        it
        for it in await program_pods(harbour, "berthmaster-webhook")
        if it["metadata"]["labels"].get(names.ROLE_LABEL) == names.ROLE_LEADER
    ]


@pytest_asyncio.fixture(loop_scope="session")
async def strict(harbour: Sandbox, tmp_path: Path) -> AsyncIterator[None]:
    await new_namespace(harbour, NAMESPACE)
    await harbour.create_nodes(1, name=NAMESPACE)
    authority = {"ca.crt": harbour.ca_path.read_text()}
    config_map = {"metadata": {"name": "berthmaster-callers"}, "data": authority}
    await harbour.client.create(f"/api/v1/namespaces/{SYSTEM}/configmaps", config_map)
    await roll_out(harbour, write_overlay(tmp_path / "strict", "client-certificate"))
    yield
    await roll_out(harbour, CONFIG / "overlays" / "sandbox")


async def test_the_api_server_gets_through_and_nobody_else(harbour: Sandbox, strict: None) -> None:
    numbers = itertools.count()

    async def was_placed() -> bool:
        pod = await create(harbour, NAMESPACE, make_pod(f"pod-{next(numbers)}"))
        return names.ALLOCATION in pod["metadata"].get("annotations", {})

    await until(was_placed, bool, 120)

    (leader,) = await leaders(harbour)
    ip = leader["status"]["podIP"]
    url = f"https://{bind_address(ip, int(ip.split('.')[1]))}:{names.WEBHOOK_PORT}/place"
    stranger = ssl.create_default_context()
    stranger.check_hostname, stranger.verify_mode = False, ssl.CERT_NONE
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError):
            await session.post(url, data=b"{}", ssl=stranger)
        # Somebody of the same authority with another name.
        stranger.load_cert_chain(
            harbour.folder / "pki" / "admin.crt", harbour.folder / "pki" / "admin.key"
        )
        async with session.post(url, data=b"{}", ssl=stranger) as answer:
            assert answer.status == 403
