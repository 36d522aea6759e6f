"""Disk models by expression and by URL on the real cluster: to a placement, and through faults."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.demo.stage import disk
from berthmaster_sandbox.world.disk_books import DiskFunction
from berthmaster_sandbox.world.diskio import DiskWorld
from support.harbour import (
    SYSTEM,
    apply_models,
    condition_of,
    create,
    inventory_of,
    io,
    make_pod,
    new_namespace,
    until,
    until_bound,
    until_event,
    until_reason,
)
from support.model_site import ModelSite, serve_models

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(240),
]

NAMESPACE = "disk-models"
BY_EXPRESSION, BY_URL = "expression-1", "url-1"
MIB = 2**20
SIX, FOUR = DiskFunction(read={"4k": Fraction(6)}), DiskFunction(read={"4k": Fraction(4)})
EXPRESSION = {
    "vendor": "Acme",
    "model": "E",
    "expression": 'direction == "read" && blockSize == 4096 ? 4.0 : 1.0',
}
TABLE = '{"readRatio": {"512": 1, "4k": 6, "8k": 1}, "writeRatio": {}}'


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ModelSite]:
    folder: Path = tmp_path_factory.mktemp("site")
    async with serve_models(folder) as running:
        yield running


async def trust(harbour: Sandbox, site: ModelSite) -> None:
    """Give the operator the site's authority as a file, as docs/disk-io.md has it."""
    await harbour.client.create(
        f"/api/v1/namespaces/{SYSTEM}/configmaps",
        {"metadata": {"name": "model-ca"}, "data": {"ca.crt": site.ca_file.read_text()}},
    )
    mount = {"name": "model-ca", "mountPath": "/etc/berthmaster/model-ca"}
    volume = {"name": "model-ca", "configMap": {"name": "model-ca"}}
    arguments = [
        f"--model-origins={site.origin}",
        "--model-ca-file=/etc/berthmaster/model-ca/ca.crt",
        "--model-timeout=2",
    ]
    container = {"name": "operator", "args": arguments, "volumeMounts": [mount]}
    await change_operator(harbour, {"containers": [container], "volumes": [volume]})


async def change_operator(harbour: Sandbox, pod: dict[str, Any]) -> None:
    """Change the operator's Deployment and wait for the new one."""
    patch = {"spec": {"template": {"spec": pod}}}
    command = ("-n", SYSTEM, "patch", "deployment/berthmaster-operator", "-p", json.dumps(patch))
    await harbour.kubectl(*command)

    async def is_rolled_out() -> bool:
        path = f"/apis/apps/v1/namespaces/{SYSTEM}/deployments/berthmaster-operator"
        found = await harbour.client.get(path)
        status = found["status"]
        return bool(
            status.get("observedGeneration") == found["metadata"]["generation"]
            and status.get("updatedReplicas") == status.get("readyReplicas") == 1
            and status.get("replicas") == 1
        )

    await until(is_rolled_out, bool, 60)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def world(harbour: Sandbox, site: ModelSite) -> AsyncIterator[DiskWorld]:
    """Two nodes, one disk each, and an operator that may fetch from the site."""
    await trust(harbour, site)
    await new_namespace(harbour, NAMESPACE)
    functions = {"Acme-E": FOUR, "Acme-U": SIX}
    async with DiskWorld(harbour.client, functions=functions) as running:
        for node, key in ((BY_EXPRESSION, "Acme-E"), (BY_URL, "Acme-U")):
            await harbour.create_nodes(1, name=node)
            await running.add_node(node, devices={"d": disk(1000, 1000, 2000, key=key)})
        yield running
        assert await running.judge() == []
    await apply_models(harbour)
    await change_operator(harbour, {"containers": [{"name": "operator", "args": []}]})


async def place(harbour: Sandbox, name: str, node: str) -> dict[str, Any]:
    """Place a pod that reads and writes 10Mi/s at 4k; return what it was allocated of the disk."""
    await create(harbour, NAMESPACE, make_pod(name, request=io("10Mi"), on=node))
    assert await until_bound(harbour, NAMESPACE, name) == node
    pod = await harbour.client.get(f"/api/v1/namespaces/{NAMESPACE}/pods/{name}")
    allocation = json.loads(pod["metadata"]["annotations"]["berthmaster.io/allocation"])
    found: dict[str, Any] = allocation["allocated"]["diskio"]
    return found


async def until_says(harbour: Sandbox, words: str) -> tuple[str, str]:
    """Wait until the condition of the node by URL has these words; return its reason and message."""
    reason, message = await until(
        lambda: condition_of(harbour, BY_URL, "DiskIOReady"), lambda it: words in it[1], 40
    )
    return str(reason), str(message)


def by_url(url: str, sha256: str) -> dict[str, str]:
    return {"vendor": "Acme", "model": "U", "url": url, "sha256": sha256}


async def test_expression_and_url_lead_to_placements(
    harbour: Sandbox, world: DiskWorld, site: ModelSite
) -> None:
    entry = by_url(*site.put("/u.json", TABLE))

    await apply_models(harbour, json.dumps([EXPRESSION, entry]))
    await until_reason(harbour, BY_EXPRESSION, "Reported")
    await until_reason(harbour, BY_URL, "Reported")

    placed = await place(harbour, "by-expression", BY_EXPRESSION)
    assert (placed["read"], placed["write"]) == (40 * MIB, 10 * MIB)
    placed = await place(harbour, "by-url", BY_URL)
    assert (placed["read"], placed["write"]) == (60 * MIB, 10 * MIB)


async def test_a_source_with_a_fault_leaves_the_old_model(
    harbour: Sandbox, world: DiskWorld, site: ModelSite
) -> None:
    good = by_url(*site.put("/u.json", TABLE))
    long = by_url(*site.put("/long.json", " " * 70_000 + TABLE))
    hanging = by_url(*site.put("/hangs.json", TABLE))
    site.hangs = {"/hangs.json"}
    await apply_models(harbour, json.dumps([EXPRESSION, good]))
    await until_reason(harbour, BY_URL, "Reported")

    for number, (entry, words) in enumerate(
        (
            ({**good, "sha256": "0" * 64}, f"what the url gives has {good['sha256']}, expected 00"),
            (long, "gives more than 65536 bytes"),
            (hanging, "no answer within 2 s"),
            (by_url(f"{site.origin}/gone.json", "0" * 64), "status 404"),
            (by_url("https://kubernetes.default.svc/", "0" * 64), "is not among the origins"),
        )
    ):
        await apply_models(harbour, json.dumps([EXPRESSION, entry]))
        await until_event(harbour, "normalization-func", words)
        found = await until_says(harbour, words)
        assert found[0] == "Reported"
        assert "the model from before counts" in found[1]
        assert (await place(harbour, f"through-{number}", BY_URL))["read"] == 60 * MIB

    # What is fetched is used, and the complaint is over.
    new = by_url(*site.put("/v.json", '{"expression": "6"}'))
    await apply_models(harbour, json.dumps([EXPRESSION, new]))
    found = await until(
        lambda: condition_of(harbour, BY_URL, "DiskIOReady"), lambda it: "url" not in it[1], 40
    )
    assert found[0] == "Reported"
    status = await inventory_of(harbour, BY_URL)
    assert status["disks"][0]["function"]["writeRatio"]["8k"] == "6"
