"""A real kube-scheduler that asks the extender, beside the webhook and its queue, on nodes with XPUs.

The simulated device plugins are the judge: they know who was really given what.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from berthmaster.api.quantities import parse_size
from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.installing import IMAGES, install
from berthmaster_sandbox.pki import Authority
from berthmaster_sandbox.simnodes import wait_nodes_ready
from berthmaster_sandbox.world.xpu import XpuWorld
from berthmaster_sandbox.world.xpu_hosts import Habits, Host, make_host
from support.harbour import HOOK, INVENTORIES, SYSTEM, create, new_namespace, until
from support.overlays import write_overlay
from support.xpu_pods import make_share_pod

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(900),
]

logger = logging.getLogger(__name__)

SIZES = (1000, 2000, 2500, 3000)
STORM = 500
NODES = 20
DEVICES = 8


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def port(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Sandbox]:
    """A cluster with the component `extender`, whose kube-scheduler is configured for it."""
    folder = tmp_path_factory.mktemp("extender")
    authority = Authority(folder / "authority")
    overlay = write_overlay(
        folder / "overlay",
        "extender",
        secretGenerator=[
            {
                "name": "berthmaster-extender",
                "namespace": SYSTEM,
                "files": ["ca.crt"],
                "options": {"disableNameSuffixHash": True},
            }
        ],
    )
    (overlay / "ca.crt").write_bytes(authority.certificate_path.read_bytes())
    async with Sandbox.start(process_nodes=2, images=IMAGES) as running:
        await install(running, config=overlay)
        await running.plane.configure_scheduler(await configuration(running, authority, folder))
        yield running


async def configuration(port: Sandbox, authority: Authority, folder: Path) -> dict[str, Any]:
    """Return what docs/extender.md says, with the addresses of this cluster."""
    hook = await port.client.get(HOOK)
    trusted = folder / "trusted.crt"
    trusted.write_bytes(base64.b64decode(hook["webhooks"][0]["clientConfig"]["caBundle"]))
    path = f"/api/v1/namespaces/{SYSTEM}/services/berthmaster-extender"
    address = (await port.client.get(path))["spec"]["clusterIP"]
    client = authority.issue_client("scheduler", "kube-scheduler")
    return {
        "extenders": [
            {
                "urlPrefix": f"https://{address}:12345/xpushare-scheduler",
                "filterVerb": "filter",
                "prioritizeVerb": "prioritize",
                "bindVerb": "bind",
                "weight": 1,
                "enableHTTPS": True,
                "nodeCacheCapable": True,
                "ignorable": False,
                "managedResources": [{"name": "baidu.com/xpu-mem", "ignoredByScheduler": False}],
                "tlsConfig": {
                    "serverName": f"berthmaster-webhook.{SYSTEM}.svc",
                    "caFile": str(trusted),
                    "certFile": str(client.certificate_path),
                    "keyFile": str(client.key_path),
                },
            }
        ]
    }


async def add_hosts(port: Sandbox, world: XpuWorld, hosts: list[Host], label: str) -> None:
    """Create nodes and wait until their inventories have every device."""
    for host in hosts:
        await world.add_host(host, labels={"test": label})
    await wait_nodes_ready(port.client, [it.name for it in hosts])
    wanted = {it.name: len(it.devices) for it in hosts}

    async def known() -> dict[str, int]:
        found = (await port.client.get(INVENTORIES))["items"]
        counts = {
            it["metadata"]["name"]: len(it.get("status", {}).get("xpus") or ()) for it in found
        }
        return {name: counts.get(name, 0) for name in wanted}

    await until(known, lambda it: it == wanted, 60)


def share(name: str, mib: int, label: str, *, opts_in: bool, count: int | None = None) -> Any:
    annotations = {"berthmaster.io/placement": "required"} if opts_in else {}
    pod = make_share_pod(name, mib, count=count, annotations=annotations)
    del pod["metadata"]["uid"], pod["metadata"]["namespace"]
    pod["spec"]["nodeSelector"] = {"test": label}
    return {"apiVersion": "v1", "kind": "Pod", **pod}


async def phases(port: Sandbox, namespace: str) -> Counter[str]:
    found = await port.client.get(f"/api/v1/namespaces/{namespace}/pods")
    return Counter(it["status"].get("phase", "") for it in found["items"])


async def why_pending(port: Sandbox, namespace: str) -> str:
    """Return what kube-scheduler says of the pods that are not bound."""
    pods = (await port.client.get(f"/api/v1/namespaces/{namespace}/pods"))["items"]
    return ", ".join(
        condition.get("message", "")
        for pod in pods
        if pod["status"]["phase"] == "Pending"
        for condition in pod["status"].get("conditions", ())
        if condition["type"] == "PodScheduled"
    )


async def test_pods_that_never_heard_of_us_get_their_devices(port: Sandbox) -> None:
    """As xpushare's own sample: no annotation, two replicas that cannot share a device."""
    namespace = await new_namespace(port, "extender-sample")
    async with XpuWorld(port.client) as world:
        await add_hosts(port, world, [make_host("xpu-sample", devices=2)], "sample")

        for name in ("a", "b", "c"):
            await create(port, namespace, share(name, 4500, "sample", opts_in=False))

        await until(lambda: phases(port, namespace), lambda it: it["Running"] == 2, 60)
        await world.settled()
        books = world.kubelet("xpu-sample").books
        assert [books.used(it) for it in range(2)] == [4500, 4500]
        pods = (await port.client.get(f"/api/v1/namespaces/{namespace}/pods"))["items"]
        # At first it may tell of a bind that came too late.
        await until(
            lambda: why_pending(port, namespace),
            lambda it: "Insufficient XPU Memory in one device" in it,
            60,
        )

        # What leaves makes room.
        running = next(it for it in pods if it["status"]["phase"] == "Running")
        path = f"/api/v1/namespaces/{namespace}/pods/{running['metadata']['name']}"
        await port.client.delete(path)
        await until(lambda: phases(port, namespace), lambda it: it == {"Running": 2}, 60)
        await world.settled()
        assert world.findings == []
        assert world.rejections == {}
        await port.client.delete(f"/api/v1/namespaces/{namespace}")


async def test_storm_through_webhook_queue_and_extender(port: Sandbox) -> None:
    """With plugins that are quick, slow, and that die in the middle; whoever is turned away comes again."""
    namespace = await new_namespace(port, "extender-storm")
    quick = Habits(pickup_jitter_s=0.3, allocate_jitter_s=0.2, verdict_jitter_s=0.2, start_s=0.1)
    slow = replace(quick, allocate_s=0.6, verdict_s=0.5)
    mortal = replace(quick, crash_probability=0.05, restart_s=1.5)
    habits = (quick, quick, slow, mortal)
    hosts = [
        make_host(f"xpu-storm-{at:02d}", devices=DEVICES, habits=habits[at % len(habits)])
        for at in range(NODES)
    ]
    rng = random.Random(7)  # noqa: S311 - no secret
    async with XpuWorld(port.client, seed=7) as world:
        await add_hosts(port, world, hosts, "storm")
        numbers = iter(range(STORM))

        async def create_some() -> None:
            for number in numbers:
                mib = rng.choice(SIZES)
                # Every other pod has heard of us; the webhook places it, or the queue when the node has to
                # serve another first.
                pod = share(f"p{number:03d}", mib, "storm", opts_in=number % 2 == 0)
                await create(port, namespace, pod)

        await asyncio.gather(*(create_some() for _ in range(16)))

        async def running() -> Counter[str]:
            await replace_failed(port, namespace)
            return await phases(port, namespace)

        await until(running, lambda it: it == {"Running": STORM}, 600)
        await world.settled()
        assert [str(it) for it in world.findings] == []
        assert world.admitted == STORM
        crashes = sum(
            plugin.lives - 1
            for host in hosts
            for plugin in world.kubelet(host.name).plugins.values()
        )
        # Where nothing died nobody was turned away.
        turned_away = [key for host in hosts for key in world.kubelet(host.name).rejected]
        logger.info(
            "%d pods run, plugins died %d times, %d pods were turned away",
            *(world.admitted, crashes, len(turned_away)),
        )
        assert 0 < crashes <= len(turned_away)
        assert all(host.habits is mortal or not world.kubelet(host.name).rejected for host in hosts)
        await port.client.delete(f"/api/v1/namespaces/{namespace}")


async def replace_failed(port: Sandbox, namespace: str) -> None:
    """Do as a controller does: for each pod that was turned away make another."""
    path = f"/api/v1/namespaces/{namespace}/pods"
    for pod in (await port.client.get(path, {"fieldSelector": "status.phase=Failed"}))["items"]:
        name, spec = pod["metadata"]["name"], pod["spec"]
        limits = spec["containers"][0]["resources"]["limits"]
        opts_in = "berthmaster.io/placement" in pod["metadata"].get("annotations", {})
        mib = parse_size(limits["baidu.com/xpu-mem"])
        await port.client.delete(f"{path}/{name}")
        await create(port, namespace, share(f"{name}x", mib, "storm", opts_in=opts_in))
