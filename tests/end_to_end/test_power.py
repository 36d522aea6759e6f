"""Power through the real control plane: WAO's objects, meters and a model server on loopback."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.installing import install_kinds
from berthmaster_sandbox.world.power import PowerWorld
from berthmaster_sandbox.world.power_machines import FRUGAL, LEAN, STOCKY
from support.harbour import (
    create,
    inventory_of,
    make_pod,
    new_namespace,
    until,
    until_bound,
    until_reason,
)

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]

CRDS = Path(__file__).parents[2] / "crds" / "wao"
READY = "PowerReady"
NODES = {"pw-stocky": STOCKY, "pw-lean": LEAN, "pw-frugal": FRUGAL}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def world(harbour: Sandbox) -> AsyncIterator[PowerWorld]:
    """Install WAO's kinds where the programs run already, and play three machines."""
    await install_kinds(harbour, *sorted(CRDS.glob("*_*.yaml")))
    await new_namespace(harbour, "wao-system")
    async with PowerWorld(harbour.client) as world:
        for name, machine in NODES.items():
            await harbour.create_nodes(
                1, name=name, cpu=str(machine.cores), labels={"power": "yes"}
            )
            await write_config(harbour, name, await world.add_node(name, machine))
        yield world


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def namespace(harbour: Sandbox) -> str:
    return await new_namespace(harbour, "power")


async def write_config(harbour: Sandbox, name: str, spec: dict[str, Any]) -> None:
    manifest = {
        "apiVersion": "wao.bitmedia.co.jp/v1beta1",
        "kind": "NodeConfig",
        "metadata": {"name": name, "namespace": "wao-system"},
        "spec": spec,
    }
    await harbour.kubectl("apply", "--filename=-", stdin=json.dumps(manifest))


def working(name: str, cpu: str = "4") -> dict[str, Any]:
    pod = make_pod(name, placement="preferred", select={"power": "yes"})
    pod["spec"]["containers"][0]["resources"] = {"requests": {"cpu": cpu}}
    return pod


async def test_curves_are_published_with_their_origin(harbour: Sandbox, world: PowerWorld) -> None:
    for name, machine in NODES.items():
        message = await until_reason(harbour, name, "ModelServer", 60, condition=READY)
        assert message.startswith(f"watts by {machine.name} at {world.origin}")

        power = (await inventory_of(harbour, name))["power"]

        assert power["curve"]["watts"][0] == machine.idle_watts
        assert power["curve"]["cores"][-1] == machine.cores
        assert {it["name"]: it["value"] for it in power["readings"]} == {
            "deltaP": 0.01,
            "inlet": 22,
        }


async def test_a_burst_goes_where_it_costs_least_and_does_not_pile_up(
    harbour: Sandbox, world: PowerWorld, namespace: str
) -> None:
    """3.75, 4.7 and 6.25 W a core: four pods fill the frugal node, the others go to the lean one."""
    await until_decided(harbour, namespace, "pw-frugal", watts=15.0)
    names = [f"burst-{number}" for number in range(7)]

    for name in names:
        await create(harbour, namespace, working(name))
    landed = [await until_bound(harbour, namespace, name) for name in names]

    assert Counter(landed) == {"pw-frugal": 4, "pw-lean": 3}
    pod = await harbour.client.get(f"/api/v1/namespaces/{namespace}/pods/burst-0")
    allocation = json.loads(pod["metadata"]["annotations"]["berthmaster.io/allocation"])
    assert allocation["allocated"]["power"] == {"watts": 15.0, "by": "ModelServer"}


async def until_decided(
    harbour: Sandbox, namespace: str, node: str, *, watts: float | None = None
) -> None:
    """Wait until the webhook knows of a node's power and would choose it, for so much."""
    wanted = f'"watts":{watts}' if watts is not None else '"watts":'

    async def decided() -> str:
        created = await harbour.client.create(
            f"/api/v1/namespaces/{namespace}/pods", working("probe"), {"dryRun": "All"}
        )
        return str(created["metadata"]["annotations"].get("berthmaster.io/allocation", ""))

    await until(decided, lambda text: f'"node":"{node}"' in text and wanted in text, 60)


async def test_dead_servers_delay_no_pod_and_a_model_takes_over(
    harbour: Sandbox, world: PowerWorld, namespace: str
) -> None:
    world.stop_answering()
    model = {
        "apiVersion": "berthmaster.io/v1alpha1",
        "kind": "PowerModel",
        "metadata": {"name": "any"},
        # Not of the others, which would have it as well once their readings are too old.
        "spec": {
            "nodeSelector": {"matchLabels": {"kubernetes.io/hostname": "pw-new"}},
            "polynomial": {"coefficients": [100, 60]},
        },
    }
    await harbour.kubectl("apply", "--filename=-", stdin=json.dumps(model))
    await harbour.create_nodes(1, name="pw-new", cpu="32", labels={"power": "yes"})
    await write_config(harbour, "pw-new", await world.add_node("pw-new", STOCKY))

    message = await until_reason(harbour, "pw-new", "Model", 60, condition=READY)

    assert message.startswith("watts by PowerModel any; ")
    # How many watts depends on the share of their requests that pods were seen to use.
    await until_decided(harbour, namespace, "pw-new")
    await create(harbour, namespace, working("late"))
    assert await until_bound(harbour, namespace, "late") == "pw-new"
