"""The stories: what disk IO placement does, one idea each, and a pin that fails.

Each is a coroutine over a stage that raises `StoryError` as soon as something is not as written.
Numbers are MiB per second. Disks are read/write/total.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from berthmaster.api import names
from berthmaster.api.objects import Pod
from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.demo.pod_watch import NAMESPACE, PODS
from berthmaster_sandbox.demo.stage import STORY_LABEL, Stage, disk, io


@dataclass(frozen=True, slots=True)
class Story:
    """A story, its label value and the idea it shows."""

    key: str
    title: str
    play: Callable[[Stage], Awaitable[None]]


async def _tutorial(stage: Stage) -> None:
    await stage.node("tutorial", disk(1000, 1000, 2000))
    await stage.pod("pod1", io(900, 900))
    await stage.lands("pod1", "tutorial")
    await stage.pod("pod1-copy", io(900, 900))
    await stage.waits("pod1-copy", "disk IO read bandwidth is not enough")
    await stage.delete("pod1")
    await stage.lands("pod1-copy", "tutorial")


async def _least_allocated(stage: Stage) -> None:
    await stage.node("least-a", disk(1000, 1000, 2000))
    await stage.node("least-b", disk(100, 100, 200))
    await stage.pod("least-1", io(30, 20))
    await stage.lands("least-1", "least-a", score=97)
    await stage.pod("least-2", io(30, 20))
    await stage.lands("least-2", "least-a", score=97)


async def _best_effort(stage: Stage) -> None:
    await stage.node("effort-a", disk(1000, 1000, 2000))
    await stage.node("effort-b")
    await stage.pod("effort")
    await stage.lands("effort", "effort-b", score=100)


async def _equal_is_enough(stage: Stage) -> None:
    await stage.node("equal", disk(1000, 1000, 2000))
    await stage.pod("equal", io(1000, 1000, "512"))
    await stage.lands("equal", "equal", score=0)


async def _total_is_a_limit(stage: Stage) -> None:
    await stage.node("total", disk(500, 500, 700))
    await stage.pod("total", io(400, 400))
    await stage.waits("total", "disk IO total bandwidth is not enough")
    stage.remains_waiting("total")


async def _what_is_left(stage: Stage) -> None:
    await stage.node("left-a", disk(1000, 1000, 2000))
    await stage.node("left-b", disk(400, 400, 800))
    await stage.pod("left-heavy", io(800, 800), on="left-a")
    await stage.lands("left-heavy", "left-a")
    await stage.pod("left", io(100, 100))
    await stage.lands("left", "left-b", score=75)


async def _coefficients(stage: Stage) -> None:
    await stage.node("acme", disk(200, 200, 400, key="Acme-X1"))
    await stage.pod("acme", io(50, 25, "4k"))
    await stage.lands("acme", "acme", score=50)


async def _lagging_report(stage: Stage) -> None:
    await stage.node("lagging", disk(100, 100, 200))
    # Its last report says 100 free; nobody will tell it of the pods that come now.
    stage.worlds.disks.stop_driver("lagging")
    await stage.pod("lagging-40", io(40, 40))
    await stage.lands("lagging-40", "lagging")
    await stage.pod("lagging-70", io(70, 70))
    await stage.waits("lagging-70", "disk IO read bandwidth is not enough")
    await stage.pod("lagging-60", io(60, 60))
    await stage.lands("lagging-60", "lagging", score=0)
    stage.remains_waiting("lagging-70")


STORIES = (
    Story("1-tutorial", "a disk is full: the copy waits, and moves in when the first is gone",
          _tutorial),
    Story("2-least-allocated", "of two disks the emptier one", _least_allocated),
    Story("3-best-effort", "a pod that asks nothing leaves the known disks alone", _best_effort),
    Story("4-equal", "what exactly fits, fits", _equal_is_enough),
    Story("5-total", "read and write fit, together they do not", _total_is_a_limit),
    Story("6-left", "what is left counts, not what the disk once had", _what_is_left),
    Story("7-coefficients", "small accesses cost more, by the disk's model", _coefficients),
    Story("8-lagging", "a report that lags does not undo a placement", _lagging_report),
)  # fmt: skip

SCHEDULER = "kube-scheduler"
PIN_KEY = "9-pin-fails"
PIN_TITLE = "a stranger takes the room: the pod gives up its pin, its successor goes elsewhere"


async def pin_fails(stage: Stage, sandbox: Sandbox) -> None:
    """Play the pin that fails: kube-scheduler is away while a stranger binds itself.

    It is started anew rather than paused, since it lists all pods before it binds any: one that
    wakes up may bind the pod before it hears of the stranger.
    """
    await stage.node("pin-a", cpu="2")
    await stage.node("pin-b", cpu="2")
    await sandbox.plane.kill(SCHEDULER)
    try:
        await _create_opted_in_deployment(stage)
        first, pod = await stage.until("pin-", _is_placed, "placed")
        node = _pinned_node(pod)
        await stage.client.create(PODS, _stranger(node))
    finally:
        await sandbox.plane.launch(SCHEDULER)
    second, pod = await stage.until(
        "pin-", lambda it: it.metadata.name != first and bool(it.spec.node_name), "moved"
    )
    stage.note_landing(second, pod)


def _is_placed(pod: Pod) -> bool:
    return names.ALLOCATION in pod.annotations


def _pinned_node(pod: Pod) -> str:
    affinity = pod.spec.affinity
    required = affinity.node_affinity.required if affinity and affinity.node_affinity else None
    for term in (required.node_selector_terms if required else None) or ():
        for field in term.match_fields or ():
            return (field.values or [""])[0]
    return ""


async def _create_opted_in_deployment(stage: Stage) -> None:
    """Create a Deployment whose pods a PlacementPolicy selects; they carry no annotation of ours."""
    labels = {"app": "pin"}
    await stage.client.create(
        f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments",
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "pin"},
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": {**labels, "placed-by": "policy"}},
                    "spec": {
                        "nodeSelector": {STORY_LABEL: stage.story},
                        "containers": [
                            {
                                "name": "app",
                                "image": "registry.k8s.io/pause:3.10",
                                "resources": {"requests": {"cpu": "1500m"}},
                            }
                        ],
                    },
                },
            },
        },
    )


def _stranger(node: str) -> dict[str, object]:
    container = {
        "name": "app",
        "image": "registry.k8s.io/pause:3.10",
        "resources": {"requests": {"cpu": "1500m"}},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "stranger"},
        "spec": {"nodeName": node, "containers": [container]},
    }
