"""`preferred` and `bind` through a real API server, scheduler and the installed programs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from berthmaster_sandbox.cluster import Sandbox
from support.harbour import (
    apply_policy,
    create,
    make_pod,
    new_namespace,
    until,
    until_bound,
    until_event,
)

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]

TAINT = {"key": "example.com/berthmaster-only", "effect": "NoSchedule"}
TOLERATION = {"key": TAINT["key"], "operator": "Exists"}
REQUESTS = {"resources": {"requests": {"cpu": "1"}}}


def pod_of(name: str, placement: str, label: str, **spec: Any) -> dict[str, Any]:
    pod = make_pod(name, placement=placement, select={"modes": label})
    pod["spec"]["containers"][0].update(REQUESTS)
    pod["spec"].update(spec)
    return pod


async def stored(harbour: Sandbox, namespace: str, name: str) -> dict[str, Any]:
    return await harbour.client.get(f"/api/v1/namespaces/{namespace}/pods/{name}")


async def scheduled_by(harbour: Sandbox, namespace: str, name: str) -> list[str]:
    """Return who said that they had scheduled the pod."""
    events = await harbour.client.get(
        f"/api/v1/namespaces/{namespace}/events",
        {"fieldSelector": f"involvedObject.name={name},reason=Scheduled"},
    )
    return [str(it.get("reportingComponent")) for it in events["items"]]


async def test_exclusive_nodes_are_filled_past_the_scheduler_and_not_past_the_line(
    harbour: Sandbox,
) -> None:
    """Thirty pods against room for eight, eight CPUs on two nodes that are ours alone."""
    nodes = await harbour.create_nodes(
        2, labels={"modes": "ours"}, name="modes-ours-{index}", first=1, cpu="4"
    )
    for node in nodes:
        await harbour.kubectl("taint", "node", node, f"{TAINT['key']}=:{TAINT['effect']}")
    await apply_policy(harbour, "modes-ours", {"priority": -1, "exclusiveTaints": [TAINT]})
    namespace = await new_namespace(harbour, "modes-ours")

    async def bound_at_once() -> bool:
        probe = pod_of("probe", "bind", "ours", tolerations=[TOLERATION])
        created = await harbour.client.create(
            f"/api/v1/namespaces/{namespace}/pods", probe, {"dryRun": "All"}
        )
        return bool(created["spec"].get("nodeName"))

    await until(bound_at_once, bool, 30)
    pods = [pod_of(f"p{i}", "bind", "ours", tolerations=[TOLERATION]) for i in range(30)]
    await asyncio.gather(*(create(harbour, namespace, pod) for pod in pods))

    async def bound() -> int:
        found = (await harbour.client.get(f"/api/v1/namespaces/{namespace}/pods"))["items"]
        return sum(bool(it["spec"].get("nodeName")) for it in found)

    await until(bound, lambda count: count == 8, 60)
    found = (await harbour.client.get(f"/api/v1/namespaces/{namespace}/pods"))["items"]
    per_node = {node: sum(it["spec"].get("nodeName") == node for it in found) for node in nodes}
    past_the_scheduler = [
        it["metadata"]["name"]
        for it in found
        if it["spec"].get("nodeName") and '"mode":"bind"' in str(it["metadata"]["annotations"])
    ]
    assert per_node == dict.fromkeys(nodes, 4)
    assert past_the_scheduler
    for name in past_the_scheduler:
        assert await scheduled_by(harbour, namespace, name) == []
    await harbour.kubectl("delete", "placementpolicy", "modes-ours")


async def test_bind_elsewhere_is_required_and_an_event_says_why(harbour: Sandbox) -> None:
    await harbour.create_nodes(1, labels={"modes": "shared"}, name="modes-shared-{index}", first=1)
    namespace = await new_namespace(harbour, "modes-shared")

    pod = await until_placed(harbour, namespace, "p", "bind", "shared")

    assert "requiredDuringSchedulingIgnoredDuringExecution" in str(pod["spec"]["affinity"])
    await until_event(harbour, "p", "bind became required", namespace=namespace)
    assert await scheduled_by(harbour, namespace, "p") == ["default-scheduler"]


async def test_preferred_pod_follows_the_preference_and_never_waits(harbour: Sandbox) -> None:
    await harbour.create_nodes(
        4, labels={"modes": "liked"}, name="modes-liked-{index}", first=1, cpu="8"
    )
    namespace = await new_namespace(harbour, "modes-liked")

    pod = await until_placed(harbour, namespace, "p", "preferred", "liked")
    too_big = pod_of("big", "preferred", "liked")
    too_big["spec"]["containers"][0]["resources"]["requests"]["cpu"] = "64"
    big = await create(harbour, namespace, too_big)

    affinity = pod["spec"]["affinity"]["nodeAffinity"]
    chosen = affinity["preferredDuringSchedulingIgnoredDuringExecution"][0]
    assert list(affinity) == ["preferredDuringSchedulingIgnoredDuringExecution"]
    assert chosen["preference"]["matchFields"][0]["values"] == [pod["spec"]["nodeName"]]
    assert "schedulingGates" not in big["spec"]
    assert "affinity" not in big["spec"]


async def until_placed(
    harbour: Sandbox, namespace: str, name: str, placement: str, label: str
) -> dict[str, Any]:
    """Create pods until one is decided at creation, wait until it is bound, and return it.

    The webhook may not have seen a node that is this young.
    """

    async def decided() -> bool:
        probe = pod_of("probe", placement, label)
        created = await harbour.client.create(
            f"/api/v1/namespaces/{namespace}/pods", probe, {"dryRun": "All"}
        )
        return "berthmaster.io/allocation" in created["metadata"]["annotations"]

    await until(decided, bool, 30)
    await create(harbour, namespace, pod_of(name, placement, label))
    await until_bound(harbour, namespace, name)
    return await stored(harbour, namespace, name)
