"""A pin that fails, since somebody took the room before kube-scheduler came to bind the pod."""

from __future__ import annotations

import json
from typing import Any

import pytest

from berthmaster.api import names
from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.controlplane import SCHEDULER
from support.harbour import (
    POLICIES,
    apply_policy,
    create,
    make_pod,
    new_namespace,
    until,
    until_event,
)

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]

NAMESPACE = "pins"
NODES = {"pins-a", "pins-b"}
DEPLOYMENTS = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments"


def deployment() -> dict[str, Any]:
    """Return a Deployment of one pod, of which a node takes one."""
    pod = make_pod("", limits={"cpu": "1500m"}, select={"pins": "yes"}, labels={"app": "pinned"})
    metadata = {key: pod["metadata"][key] for key in ("annotations", "labels")}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "pinned"},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": metadata["labels"]},
            "template": {"metadata": metadata, "spec": pod["spec"]},
        },
    }


async def pods(harbour: Sandbox) -> list[dict[str, Any]]:
    found = await harbour.client.get(
        f"/api/v1/namespaces/{NAMESPACE}/pods", {"labelSelector": "app=pinned"}
    )
    return list(found["items"])


async def test_owned_pod_is_evicted_and_its_successor_goes_elsewhere(harbour: Sandbox) -> None:
    """kube-scheduler is started anew rather than paused: it lists all pods before it binds any."""
    await new_namespace(harbour, NAMESPACE)
    selector = {"matchLabels": {"kubernetes.io/metadata.name": NAMESPACE}}
    await apply_policy(
        harbour, "short-patience", {"namespaceSelector": selector, "pinPatience": "1s"}
    )
    for node in NODES:
        await harbour.create_nodes(1, name=node, cpu="2", labels={"pins": "yes"})
    await harbour.plane.kill(SCHEDULER)
    try:
        await harbour.client.create(DEPLOYMENTS, deployment())
        (first,) = await until(
            lambda: pods(harbour),
            lambda found: (
                [names.ALLOCATION in it["metadata"]["annotations"] for it in found] == [True]
            ),
            40,
        )
        name = first["metadata"]["name"]
        node = json.loads(first["metadata"]["annotations"][names.ALLOCATION])["node"]
        stranger = make_pod("stranger", placement=None, limits={"cpu": "1"}, nodeName=node)
        await create(harbour, NAMESPACE, stranger)
    finally:
        await harbour.plane.launch(SCHEDULER)

    (second,) = await until(
        lambda: pods(harbour),
        lambda found: (
            [(it["metadata"]["name"] != name, "nodeName" in it["spec"]) for it in found]
            == [(True, True)]
        ),
        60,
    )

    assert {second["spec"]["nodeName"]} == NODES - {node}
    await until_event(harbour, name, "it is evicted", namespace=NAMESPACE)
    await harbour.client.delete(f"{POLICIES}/short-patience")
    await harbour.client.delete(f"{DEPLOYMENTS}/pinned", query={"propagationPolicy": "Background"})
