"""Two operators: one writes, the other takes over, and one that has slept past its Lease writes nothing."""

from __future__ import annotations

import os
import re
import signal
import time
from typing import Any

import aiohttp
import pytest

from availability.living import LEASE_S
from berthmaster.api import names
from berthmaster_sandbox.addresses import bind_address
from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.demo.stage import disk
from berthmaster_sandbox.scraping import make_reader, read_metrics
from berthmaster_sandbox.world.diskio import DiskWorld
from support.harbour import SYSTEM, apply_models, inventory_of, program_pods, until, until_reason

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]

LEASE = f"/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases/{names.OPERATOR_LEASE}"


async def leader(harbour: Sandbox) -> str:
    """Return the pod of the operator that holds the Lease."""
    spec = (await harbour.client.get(LEASE))["spec"]
    return str(spec.get("holderIdentity", "")).partition("_")[0]


def pid_of(harbour: Sandbox, pod: dict[str, Any]) -> int:
    kubelet = harbour.kubelets[pod["spec"]["nodeName"]]
    pid = kubelet.find_process(SYSTEM, pod["metadata"]["name"])
    assert pid is not None
    return pid


async def count_writes(harbour: Sandbox, token: str, pod: dict[str, Any]) -> int:
    """Return how many objects an operator has written, by its metrics."""
    address = pod["status"]["podIP"]
    host = bind_address(address, int(address.split(".")[1]))
    async with aiohttp.ClientSession() as session:
        page = await read_metrics(session, host, token)
    found = re.findall(r"^berthmaster_operator_writes_total{.*} (.+)$", page, re.MULTILINE)
    return sum(int(float(it)) for it in found)


async def test_standby_takes_over_from_one_that_sleeps_and_only_one_writes(
    harbour: Sandbox,
) -> None:
    await apply_models(harbour)
    token = await make_reader(harbour.client)
    pods = {
        it["metadata"]["name"]: it for it in await program_pods(harbour, "berthmaster-operator")
    }
    first = pods.pop(await leader(harbour))
    (second,) = pods.values()

    async def has_disk(node: str) -> bool:
        return bool((await inventory_of(harbour, node)).get("disks"))

    async with DiskWorld(harbour.client) as world:
        await harbour.create_nodes(1, name="dock-1")
        await world.add_node("dock-1", devices={"d": disk(1000, 1000, 2000)})
        await until_reason(harbour, "dock-1", "Reported")
        assert await count_writes(harbour, token, second) == 0
        by_first = await count_writes(harbour, token, first)
        assert by_first > 0

        await harbour.create_nodes(1, name="dock-2")
        os.kill(pid_of(harbour, first), signal.SIGSTOP)
        began_s = time.monotonic()
        try:
            await world.add_node("dock-2", devices={"d": disk(1000, 1000, 2000)})
            await until(lambda: has_disk("dock-2"), bool, 60)
            # Not at once: the Lease has to end first.
            assert time.monotonic() - began_s > LEASE_S - 2
            assert await leader(harbour) == second["metadata"]["name"]
        finally:
            os.kill(pid_of(harbour, first), signal.SIGCONT)

        # It sees what there is to be written, as it has always done, and leaves it to the other one.
        await harbour.create_nodes(1, name="dock-3")
        await world.add_node("dock-3", devices={"d": disk(1000, 1000, 2000)})
        await until_reason(harbour, "dock-3", "Reported")
        assert await count_writes(harbour, token, first) == by_first
        assert await count_writes(harbour, token, second) > 0
