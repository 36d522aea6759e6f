"""The real metrics-server, and what the installed operator reads from it under its own service account."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from berthmaster.api import names
from berthmaster.api.quantities import NANO, parse_nanocores
from berthmaster_sandbox.binaries import ensure_metrics_server, find_metrics_server
from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.metrics_server import USAGE_ANNOTATION, meter_nodes, serve_metrics
from support.harbour import create, inventory_of, make_pod, new_namespace, until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif(
        not find_metrics_server().exists(), reason="metrics-server is not built: make test-peers"
    ),
]

NODE = "metered"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def metered(harbour: Sandbox) -> AsyncIterator[str]:
    """A namespace under rule WAOv1 whose pod uses 1.5 of the 8 CPUs of a node, which has a PowerModel."""
    namespace = await new_namespace(harbour, "metered")
    await harbour.create_nodes(1, name=NODE, cpu="8", labels={"power": "metered"})
    await meter_nodes(harbour, [NODE])
    model = {
        "apiVersion": "berthmaster.io/v1alpha1",
        "kind": "PowerModel",
        "metadata": {"name": "metered"},
        "spec": {
            "nodeSelector": {"matchLabels": {"power": "metered"}},
            "polynomial": {"coefficients": [100, 80]},
        },
    }
    policy = {
        "apiVersion": "berthmaster.io/v1alpha1",
        "kind": "PlacementPolicy",
        "metadata": {"name": "metered"},
        "spec": {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
            "mode": "preferred",
            "concerns": {"power": {"rule": "WAOv1"}},
        },
    }
    objects = {"apiVersion": "v1", "kind": "List", "items": [model, policy]}
    await harbour.kubectl("apply", "--filename=-", stdin=json.dumps(objects))
    pod = make_pod("busy", placement="preferred", select={"power": "metered"}, limits={"cpu": "2"})
    pod["metadata"]["annotations"][USAGE_ANNOTATION] = "1500m"
    await until_assumed(harbour, namespace, pod)
    await create(harbour, namespace, pod)
    async with serve_metrics(harbour, ensure_metrics_server()):
        yield namespace
    await harbour.kubectl("delete", "--filename=-", stdin=json.dumps(objects))


async def until_assumed(harbour: Sandbox, namespace: str, pod: dict[str, Any]) -> None:
    """Wait until the webhook knows the rule."""

    async def allocation() -> str:
        created = await harbour.client.create(
            f"/api/v1/namespaces/{namespace}/pods", pod, {"dryRun": "All"}
        )
        return str(created["metadata"]["annotations"].get(names.ALLOCATION, ""))

    await until(allocation, lambda text: '"assumed"' in text, 60)


async def test_usage_of_a_node_comes_from_metrics_server(harbour: Sandbox, metered: str) -> None:
    async def usage() -> float:
        power = (await inventory_of(harbour, NODE)).get("power", {})
        return parse_nanocores(power.get("usage", "0")) / NANO

    found = await until(usage, lambda it: it > 1.2, 60)

    # kwok counts on between its answer and the time that metrics-server writes down for it.
    assert found == pytest.approx(1.5, abs=0.1)


async def test_usage_of_a_pod_is_known_once_it_reached_half_of_what_v1_assumed(
    harbour: Sandbox, metered: str
) -> None:
    """It may use 2 CPUs, of which v1 assumes 1.7; more than half of that counts as all of it."""
    pod = await harbour.client.get(f"/api/v1/namespaces/{metered}/pods/busy")

    async def usages() -> list[dict[str, str]]:
        power = (await inventory_of(harbour, NODE)).get("power", {})
        return list(power.get("podUsage", ()))

    found = await until(usages, lambda it: bool(it) and it[0]["usage"] == "1700m", 60)

    assert found == [{"uid": pod["metadata"]["uid"], "usage": "1700m"}]
