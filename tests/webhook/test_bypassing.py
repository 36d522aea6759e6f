from __future__ import annotations

from typing import Any

import pytest

from berthmaster.api import names
from berthmaster.api.objects import Pod, pod_from_manifest
from berthmaster.cluster.events import EventRecorder
from berthmaster_webhook.bypassing import BypassedPods, is_bypassed
from berthmaster_webhook.measuring import Books
from support.builders import make_pod_manifest
from support.pages import scrape
from support.webhook_world import PodServer, World

ASKS = {names.PLACEMENT: "required"}


def make_pod(annotations: dict[str, str] | None = None, **fields: Any) -> Pod:
    fields.setdefault("nodeName", "n1")
    return pod_from_manifest(make_pod_manifest("pod", annotations=annotations or ASKS, **fields))


async def test_bound_pods_without_allocation_are_counted_until_they_are_gone(world: World) -> None:
    metrics = world.tools.metrics
    filling = Books(world.state, metrics).filling
    server = PodServer(world)
    events = EventRecorder(server, "test")
    bypassed = BypassedPods(metrics, world.state.ledger, filling, events, may_tell=lambda: True)
    world.state.on_pod.append(bypassed.take_pod)
    world.add_node("n1", cpu="4")
    pod, other = make_pod(cpu="3"), make_pod_manifest("plain", cpu="2", node="n1")
    cpu = 'berthmaster_bypassed_used{concern="resources",resource="cpu",unit="cores"}'

    world.show(pod)
    world.show(pod)
    world.show(other)
    found = scrape(metrics)
    assert (found["berthmaster_bypassed_pods"], found[cpu]) == (1, 3)
    # Of all pods, ours or not.
    assert found[cpu.replace("bypassed", "nodes")] == 5
    assert found['berthmaster_nodes_over_capacity{concern="resources",resource="cpu"}'] == 1

    await events.drain(1.0)
    ((_, event),) = server.created
    assert event["reason"] == "BoundPastUs"
    assert "runs on n1 without a decision" in event["note"]
    assert len(bypassed) == 1

    world.show_gone(pod.metadata.uid)
    found = scrape(metrics)
    assert found["berthmaster_bypassed_pods"] == 0
    assert cpu not in found
    assert found['berthmaster_nodes_over_capacity{concern="resources",resource="cpu"}'] == 0


@pytest.mark.parametrize(
    "pod",
    [
        pytest.param(make_pod(nodeName=""), id="not bound"),
        pytest.param(make_pod({**ASKS, names.ALLOCATION: "{}"}), id="allocated"),
        pytest.param(make_pod({"else": "x"}), id="does not ask"),
        pytest.param(make_pod({names.PLACEMENT: "observe"}), id="observes"),
        pytest.param(make_pod({names.PLACEMENT: "off"}), id="off"),
        pytest.param(make_pod(namespace="kube-system"), id="exempt"),
    ],
)
def test_others_are_not_counted(pod: Pod) -> None:
    assert not is_bypassed(pod)
