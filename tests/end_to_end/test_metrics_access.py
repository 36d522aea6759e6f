"""Who reads the metrics of what config/ installs: TLS, tokens and rights of the real API server."""

from __future__ import annotations

import base64
import ssl
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import yaml

from berthmaster_sandbox.addresses import bind_address
from berthmaster_sandbox.cluster import Sandbox
from support.harbour import PROGRAMS, SYSTEM, program_pods, until
from support.overlays import CONFIG

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(120),
]

COMPONENT = CONFIG / "components" / "prometheus"
READER = [
    COMPONENT / f"reader-{it}.yaml" for it in ("service-account", "token", "cluster-role-binding")
]
SECRETS = f"/api/v1/namespaces/{SYSTEM}/secrets"


def endpoint_of(program: str) -> dict[str, Any]:
    """Return what the PodMonitor of a program says."""
    name = f"{program.removeprefix('berthmaster-')}-pod-monitor.yaml"
    (endpoint,) = yaml.safe_load((COMPONENT / name).read_text())["spec"]["podMetricsEndpoints"]
    found: dict[str, Any] = endpoint
    return found


async def secret_value(harbour: Sandbox, chosen: dict[str, str]) -> str:
    """Return what a selector of a key in a Secret leads to."""

    async def look() -> str:
        secret = await harbour.client.get(f"{SECRETS}/{chosen['name']}")
        return base64.b64decode(secret.get("data", {}).get(chosen["key"], "")).decode()

    return str(await until(look, bool, 20))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def reader(harbour: Sandbox) -> AsyncIterator[None]:
    """The component's account, its token and its right."""
    for path in READER:
        await harbour.kubectl("apply", "-f", str(path))
    yield
    for path in reversed(READER):
        await harbour.kubectl("delete", "-f", str(path), "--wait=false")


async def address_of(harbour: Sandbox, program: str) -> str:
    (pod,) = await program_pods(harbour, program)
    ip = pod["status"]["podIP"]
    return bind_address(ip, int(ip.split(".")[1]))


@pytest.mark.parametrize("program", PROGRAMS)
async def test_pod_monitor_as_it_stands_reads_metrics(
    harbour: Sandbox, reader: None, program: str
) -> None:
    said = endpoint_of(program)
    authority = await secret_value(harbour, said["tlsConfig"]["ca"]["secret"])
    token = await secret_value(harbour, said["authorization"]["credentials"])
    (pod,) = await program_pods(harbour, program)
    (container,) = pod["spec"]["containers"]
    (port,) = (it["containerPort"] for it in container["ports"] if it["name"] == said["port"])
    context = ssl.create_default_context(cadata=authority)
    address = await address_of(harbour, program)

    async with (
        aiohttp.ClientSession() as session,
        session.get(
            f"{said['scheme']}://{address}:{port}{said['path']}",
            headers={"Authorization": f"{said['authorization']['type']} {token}"},
            ssl=context,
            server_hostname=said["tlsConfig"]["serverName"],
        ) as answer,
    ):
        text = await answer.text()

    assert answer.status == 200
    assert "berthmaster_" in text
    assert token not in text


@pytest.mark.parametrize("program", PROGRAMS)
async def test_nobody_else_does(harbour: Sandbox, program: str) -> None:
    address = await address_of(harbour, program)
    made = await harbour.client.create(
        "/api/v1/namespaces/default/serviceaccounts/default/token", {"spec": {}}
    )
    without_right = made["status"]["token"]
    for_others = await harbour.client.create(
        "/api/v1/namespaces/default/serviceaccounts/default/token",
        {"spec": {"audiences": ["somebody-else"]}},
    )
    headers = {
        "none": "",
        "garbage": "Bearer eyJhbGciOiJub25lIn0.e30.",
        "for others": f"Bearer {for_others['status']['token']}",
        "without the right": f"Bearer {without_right}",
    }
    found = {}
    async with aiohttp.ClientSession() as session:
        for name, header in headers.items():
            async with session.get(
                f"https://{address}:8443/metrics", headers={"Authorization": header}, ssl=False
            ) as answer:
                found[name] = (answer.status, "berthmaster_" in await answer.text())
        async with session.get(f"http://{address}:8080/metrics") as plain:
            found["plain"] = (plain.status, "berthmaster_" in await plain.text())

    assert found == {
        "none": (401, False),
        "garbage": (401, False),
        "for others": (401, False),
        "without the right": (403, False),
        "plain": (404, False),
    }
