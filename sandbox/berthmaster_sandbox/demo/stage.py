"""The stage on which stories play: nodes, disks, pods, and what became of each pod.

A story's nodes carry its label and its pods select it, so that stories do not meet.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from berthmaster.api import names
from berthmaster.api.allocation import Allocation, read_allocation
from berthmaster.api.objects import Pod, decode_pod
from berthmaster.cluster.client import Client
from berthmaster.cluster.informers import EventKind, Informer
from berthmaster_sandbox.simnodes import build_node, create_nodes, wait_nodes_ready
from berthmaster_sandbox.world.disk_books import Amount, DiskFunction, SimulatedDisk
from berthmaster_sandbox.world.diskio import DiskWorld

NAMESPACE = "harbour"
STORY_LABEL = "demo.berthmaster.io/story"
MIB = 2**20
DEADLINE_S = 30.0
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"

# Disk models of the demo: the ConfigMap's entries and the same for the simulated drivers.
MODELS: tuple[dict[str, Any], ...] = (
    {"vendor": "Intel", "model": "P4510", "readRatio": {"32k": 1}, "writeRatio": {"32k": 1}},
    {
        "vendor": "Acme",
        "model": "X1",
        "readRatio": {"4k": 2, "32k": 1},
        "writeRatio": {"4k": 4, "32k": 1},
    },
)
FUNCTIONS = {
    "Acme-X1": DiskFunction(read={"4k": Fraction(2)}, write={"4k": Fraction(4)}),
}


class StoryError(Exception):
    """A story did not come out as it is written."""


def disk(read: int, write: int, total: int, *, key: str = "Intel-P4510") -> SimulatedDisk:
    """Return an emptyDir disk; numbers in MiB per second."""
    vendor, _, model = key.partition("-")
    return SimulatedDisk(
        capacity=Amount(read * MIB, write * MIB, total * MIB), vendor=vendor, model=model
    )


def io(read: int, write: int, block_size: str = "4k") -> str:
    """Return the annotation for a request in MiB per second."""
    return json.dumps({"rbps": f"{read}Mi", "wbps": f"{write}Mi", "blocksize": block_size})


@dataclass(frozen=True, slots=True, kw_only=True)
class Landing:
    """What became of a pod: its node and how long after its creation it was bound, or None.

    `seen` is the pod as it was then: its story may delete it.
    """

    story: str
    pod: str
    node: str | None
    bound_after_s: float | None
    seen: Pod


class Stage:
    """One story's hold on the cluster; `informer` is shared by all stages."""

    def __init__(self, story: str, client: Client, world: DiskWorld, watch: PodWatch) -> None:
        self.story = story
        self._client = client
        self.world = world
        self._watch = watch
        self.landings: list[Landing] = []

    @property
    def client(self) -> Client:
        """Return the administrator's client."""
        return self._client

    async def node(self, name: str, disks: SimulatedDisk | None = None, *, cpu: str = "32") -> None:
        """Add a Ready node of this story, with a disk and its driver if one is given."""
        node = build_node(name, cpu=cpu, labels={STORY_LABEL: self.story})
        await create_nodes(self._client, iter([node]))
        await wait_nodes_ready(self._client, [name])
        if disks is not None:
            await self.world.add_node(name, devices={"fakeDevice": disks})
        await self._until_inventory(name, has_disk=disks is not None)

    async def pod(
        self,
        name: str,
        request: str | None = None,
        *,
        on: str | None = None,
        opts_in: bool = True,
    ) -> None:
        """Create a pod of this story; `on` limits it to one node by its own node selector."""
        annotations = {names.PLACEMENT: "required"} if opts_in else {}
        if request is not None:
            annotations[names.DISKIO_REQUEST] = request
        selector = {STORY_LABEL: self.story}
        if on is not None:
            selector["kubernetes.io/hostname"] = on
        self._watch.note_creation(name)
        await self._client.create(
            PODS,
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "annotations": annotations},
                "spec": {
                    "nodeSelector": selector,
                    "containers": [{"name": "app", "image": "registry.k8s.io/pause:3.10"}],
                },
            },
        )

    async def lands(self, name: str, node: str, *, score: float | None = None) -> None:
        """Wait until the pod is bound and hold its node, and disk IO score, against the story."""
        pod = await self._watch.until(name, lambda it: bool(it.spec.node_name), "bound")
        self._take_note(name, pod.spec.node_name)
        if pod.spec.node_name != node:
            raise StoryError(f"{name}: expected on {node}, landed on {pod.spec.node_name}")
        found = allocation_of(pod).scores.get("diskio")
        if score is not None and found != score:
            raise StoryError(f"{name}: expected disk IO score {score}, found {found}")

    async def waits(self, name: str, words: str) -> None:
        """Wait until the pod says why it waits, in these words."""

        def says_why(pod: Pod) -> bool:
            return any(
                it.type == names.PLACED_CONDITION and it.status == "False" and words in it.message
                for it in pod.status.conditions or ()
            )

        await self._watch.until(name, says_why, f'waiting with "{words}"')

    def remains_waiting(self, name: str) -> None:
        """Note that the story ends with the pod at the gate."""
        if self._watch.pod(name).spec.node_name:
            raise StoryError(f"{name}: expected to wait, is bound")
        self._take_note(name, None)

    async def delete(self, name: str) -> None:
        """Delete a pod at once and wait until it is gone."""
        await self._client.delete(f"{PODS}/{name}", query={"gracePeriodSeconds": 0})
        await self._watch.until_gone(name)

    async def until(
        self, name_prefix: str, check: Callable[[Pod], bool], what: str
    ) -> tuple[str, Pod]:
        """Wait until a pod whose name starts so passes the check; return its name and itself."""
        return await self._watch.until_any(name_prefix, check, what)

    def note_landing(self, name: str, pod: Pod) -> None:
        """Note where a pod that a controller made has landed."""
        self._take_note(name, pod.spec.node_name)

    def _take_note(self, name: str, node: str | None) -> None:
        self.landings.append(
            Landing(
                story=self.story,
                pod=name,
                node=node,
                bound_after_s=self._watch.bound_after_s(name),
                seen=self._watch.pod(name),
            )
        )

    async def _until_inventory(self, node: str, *, has_disk: bool) -> None:
        """Wait until the operator has published the node's disk, with its model and report."""
        if not has_disk:
            return
        path = f"/apis/{names.API_VERSION}/nodeinventories"
        deadline = time.monotonic() + DEADLINE_S
        while True:
            found = await self._client.get(path, {"fieldSelector": f"metadata.name={node}"})
            disks = [
                it for item in found["items"] for it in item.get("status", {}).get("disks", ())
            ]
            if disks and all(it.get("function") and it.get("allocable") for it in disks):
                return
            if time.monotonic() > deadline:
                raise StoryError(f"{node}: no inventory with a reported disk, found {disks}")
            await asyncio.sleep(0.1)


def allocation_of(pod: Pod) -> Allocation:
    """Return what was decided for a placed pod."""
    found = read_allocation(pod.annotations.get(names.ALLOCATION))
    if found is None:
        raise StoryError(f"{pod.key}: expected an allocation")
    return found


class PodWatch:
    """All pods of the demo as they change; run it as a task."""

    def __init__(self, client: Client) -> None:
        self._created: dict[str, float] = {}
        self._bound: dict[str, float] = {}
        self._changed = asyncio.Event()
        self._informer = Informer(
            client,
            PODS,
            decode=decode_pod,
            key=lambda pod: pod.metadata.name,
            on_event=self._see,
        )

    async def run(self) -> None:
        """Watch until cancelled."""
        await self._informer.run()

    async def synced(self) -> None:
        """Return when the first list is complete."""
        await asyncio.wait_for(self._informer.synced.wait(), DEADLINE_S)

    @property
    def pods(self) -> Mapping[str, Pod]:
        """Return the pods by name."""
        return self._informer.store

    def pod(self, name: str) -> Pod:
        """Return a pod that exists."""
        return self._informer.store[name]

    def note_creation(self, name: str) -> None:
        """Start a pod's clock."""
        self._created[name] = time.monotonic()

    def bound_after_s(self, name: str) -> float | None:
        """Return how long after its creation the watch showed the pod bound."""
        bound, created = self._bound.get(name), self._created.get(name)
        return None if bound is None or created is None else bound - created

    async def until(self, name: str, check: Callable[[Pod], bool], what: str) -> Pod:
        """Return the pod once it passes the check; raises StoryError after `DEADLINE_S`."""
        _, pod = await self.until_any(name, lambda it: it.metadata.name == name and check(it), what)
        return pod

    async def until_any(
        self, prefix: str, check: Callable[[Pod], bool], what: str
    ) -> tuple[str, Pod]:
        """Return the first pod of that prefix that passes the check."""
        found: list[tuple[str, Pod]] = []

        def look() -> bool:
            found[:] = [it for it in self.pods.items() if it[0].startswith(prefix) and check(it[1])]
            return bool(found)

        await self._wait(look, f"{prefix}: not {what} after {DEADLINE_S:.0f} s")
        return found[0]

    async def until_gone(self, name: str) -> None:
        """Return once the pod's object is gone."""
        await self._wait(lambda: name not in self.pods, f"{name}: not gone")

    async def _wait(self, check: Callable[[], bool], complaint: str) -> None:
        try:
            async with asyncio.timeout(DEADLINE_S):
                while not check():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError as error:
            raise StoryError(complaint) from error

    def _see(self, kind: EventKind, pod: Pod) -> None:
        del kind
        name = pod.metadata.name
        now = time.monotonic()
        self._created.setdefault(name, now)
        if pod.spec.node_name:
            self._bound.setdefault(name, now)
        self._changed.set()
