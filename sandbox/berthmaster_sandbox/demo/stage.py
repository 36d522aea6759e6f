"""The stage on which stories play: nodes, disks, zones, pods, and what became of each pod.

A story's nodes carry its label and its pods select it, so that stories do not meet.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from berthmaster.api import names
from berthmaster.api.allocation import Allocation, read_allocation
from berthmaster.api.objects import Pod
from berthmaster.cli import concern_table
from berthmaster.cli.output import Table
from berthmaster.cli.why import needs_recomputing, recompute, sentence
from berthmaster.cluster.client import Client
from berthmaster.cluster.snapshot import Snapshot, load_engine
from berthmaster_sandbox.demo.pod_watch import (
    DEADLINE_S,
    NAMESPACE,
    PODS,
    PodWatch,
    StoryError,
)
from berthmaster_sandbox.simnodes import build_node, create_nodes, wait_nodes_ready
from berthmaster_sandbox.world.datashim import write_dataset
from berthmaster_sandbox.world.disk_books import Amount, DiskFunction, SimulatedDisk
from berthmaster_sandbox.world.diskio import DiskWorld
from berthmaster_sandbox.world.numa import NumaWorld, UpdaterHabits
from berthmaster_sandbox.world.numa_machines import (
    CPU,
    MEMORY,
    Device,
    KubeletSettings,
    Machine,
    Zone,
)
from berthmaster_sandbox.world.numa_verdicts import Admitted
from berthmaster_sandbox.world.power import PowerWorld
from berthmaster_sandbox.world.power_machines import Machine as PowerMachine
from berthmaster_sandbox.world.xpu import XpuWorld
from berthmaster_sandbox.world.xpu_hosts import Habits, Host, make_host

STORY_LABEL = "demo.berthmaster.io/story"
MIB, GIB = 2**20, 2**30
GPU = "vendor.example/gpu"

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


def disk(read: int, write: int, total: int, *, key: str = "Intel-P4510") -> SimulatedDisk:
    """Return an emptyDir disk; numbers in MiB per second."""
    vendor, _, model = key.partition("-")
    return SimulatedDisk(
        capacity=Amount(read * MIB, write * MIB, total * MIB), vendor=vendor, model=model
    )


def io(read: int, write: int, block_size: str = "4k") -> str:
    """Return the annotation for a request in MiB per second."""
    return json.dumps({"rbps": f"{read}Mi", "wbps": f"{write}Mi", "blocksize": block_size})


def machine(
    policy: str,
    *,
    cpus: tuple[int, ...] = (8, 8),
    gpus: tuple[int, ...] = (),
    scope: str = "container",
) -> Machine:
    """Return a machine whose kubelet aligns CPUs, memory and GPUs by a topology manager policy.

    `cpus` are those that pods may have, zone by zone, beside one that is reserved; each zone has 32 GiB.
    `gpus` has the zone of each GPU.
    """
    return Machine(
        zones=tuple(
            Zone(
                id=id_,
                cpus=count + 1,
                memory=33 * GIB,
                reserved_cpus=1,
                reserved_memory={MEMORY: GIB},
            )
            for id_, count in enumerate(cpus)
        ),
        devices=tuple(
            Device(resource=GPU, id=f"gpu-{at}", zones=(zone,)) for at, zone in enumerate(gpus)
        ),
        settings=KubeletSettings(
            topology_manager_policy=policy,
            topology_manager_scope=scope,
            cpu_manager_policy="static",
            memory_manager_policy="Static",
        ),
    )


def aligned(cpu: int, *, gpu: int = 0) -> dict[str, str]:
    """Return the limits of a Guaranteed pod that kubelets align."""
    return {CPU: str(cpu), MEMORY: "1Gi", **({GPU: str(gpu)} if gpu else {})}


@dataclass(frozen=True, slots=True, kw_only=True)
class Landing:
    """What became of a pod: its node and how long after its creation it was bound, or None.

    `seen` is the pod as it was then: its story may delete it. `why` is the sentence of `kubectl berth
    why` as of then, empty where that of the end of the demo does.
    """

    story: str
    pod: str
    node: str | None
    bound_after_s: float | None
    seen: Pod
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Berth:
    """In which zones a pod lies: as predicted when it was placed, and as its kubelet chose."""

    story: str
    pod: str
    node: str
    policy: str
    asks: str
    predicted: tuple[int, ...]
    chosen: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceHold:
    """What a pod has of accelerators: MiB by device, as decided and as its device plugin gave it."""

    story: str
    pod: str
    node: str
    asks: str
    decided: Mapping[int, int]
    given: Mapping[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Worlds:
    """The simulated worlds that all stories share."""

    disks: DiskWorld
    numa: NumaWorld
    power: PowerWorld
    xpus: XpuWorld


@dataclass(frozen=True, slots=True, kw_only=True)
class Everything:
    """A node with a disk, two NUMA zones, accelerators and meters; `cpus` are those of each zone."""

    name: str
    power: PowerMachine
    labels: Mapping[str, str]
    cpus: tuple[int, ...] = (8, 8)
    card_mib: int = 8064


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What each concern says of each node for a pod that was placed, as tables of `kubectl berth why`."""

    pod: str
    tables: tuple[Table, ...]


class Stage:
    """One story's hold on the cluster; `watch` is shared by all stages."""

    def __init__(self, story: str, client: Client, worlds: Worlds, watch: PodWatch) -> None:
        self.story = story
        self._client = client
        self.worlds = worlds
        self._watch = watch
        self.landings: list[Landing] = []
        self.berths: list[Berth] = []
        self.holds: list[DeviceHold] = []
        self.comparisons: list[Comparison] = []

    @property
    def client(self) -> Client:
        """Return the administrator's client."""
        return self._client

    async def node(
        self,
        name: str,
        disks: SimulatedDisk | None = None,
        *,
        cpu: str = "32",
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """Add a Ready node of this story, with a disk and its driver if one is given."""
        node = build_node(name, cpu=cpu, labels={STORY_LABEL: self.story, **(labels or {})})
        await create_nodes(self._client, iter([node]))
        await wait_nodes_ready(self._client, [name])
        if disks is not None:
            await self.worlds.disks.add_node(name, devices={"fakeDevice": disks})
            await self._until_inventory(name, _has_reported_disks, "a reported disk")

    async def numa_node(self, name: str, machine: Machine, updater: UpdaterHabits) -> None:
        """Add a Ready node of this story with zones, a kubelet and a topology updater."""
        labels = {STORY_LABEL: self.story}
        await self.worlds.numa.add_node(name, machine, habits=updater, labels=labels)
        await wait_nodes_ready(self._client, [name])
        await self._until_inventory(name, lambda status: bool(status.get("zones")), "zones")

    async def power_node(self, name: str, machine: PowerMachine) -> None:
        """Add a Ready node of this story whose meters and power model answer."""
        await self.node(name, cpu=str(machine.cores))
        await self._meter(name, machine)
        await self._until_inventory(name, _has_modelled_power, "watts of a model server")

    async def node_of_all(self, it: Everything) -> None:
        """Add a Ready node of this story that every concern knows."""
        name, worlds = it.name, self.worlds
        labels = {STORY_LABEL: self.story, **it.labels}
        host = make_host(name, devices=2, memory_mib=it.card_mib, habits=Habits(allocate_s=0.2))
        await worlds.xpus.add_host(host, labels=labels, has_agent=True)
        zoned = machine("single-numa-node", cpus=it.cpus)
        habits = UpdaterHabits(delay_s=0.3)
        await worlds.numa.add_node(name, zoned, habits=habits, starts_pods=False)
        await wait_nodes_ready(self._client, [name])
        await worlds.disks.add_node(name, devices={"fakeDevice": disk(1000, 1000, 2000)})
        await self._meter(name, it.power)
        await self._until_inventory(name, _has_everything, "a disk, zones, devices and watts")

    async def _meter(self, name: str, machine: PowerMachine) -> None:
        """Let a node's meters and power model answer."""
        spec = await self.worlds.power.add_node(name, machine)
        await self._client.create(
            f"/apis/{names.WAO_API_VERSIONS[0]}/namespaces/{NAMESPACE}/nodeconfigs",
            {
                "apiVersion": names.WAO_API_VERSIONS[0],
                "kind": "NodeConfig",
                "metadata": {"name": name},
                "spec": spec,
            },
        )

    async def foresees(
        self,
        node: str,
        limits: Mapping[str, str],
        words: str,
        *,
        request: str | None = None,
        dataset: str = "",
    ) -> None:
        """Wait until a pod of this story would go to a node, its allocation with these words."""
        annotations = {names.PLACEMENT: "required"}
        if request is not None:
            annotations[names.DISKIO_REQUEST] = request
        deadline = time.monotonic() + DEADLINE_S
        while True:
            manifest = self._manifest("foreseen", annotations, limits, dataset=dataset)
            pod = await self._client.create(PODS, manifest, {"dryRun": "All"})
            told = str(pod["metadata"].get("annotations", {}).get(names.ALLOCATION, ""))
            if f'"node":"{node}"' in told and words in told:
                return
            if time.monotonic() > deadline:
                raise StoryError(f"expected {words} on {node}, found {told}")
            await asyncio.sleep(0.1)

    async def xpu_node(self, host: Host) -> None:
        """Add a Ready node of this story with accelerators and their device plugins."""
        await self.worlds.xpus.add_host(host, labels={STORY_LABEL: self.story})
        await wait_nodes_ready(self._client, [host.name])
        count = len(host.devices)
        await self._until_inventory(
            host.name, lambda status: len(status.get("xpus") or ()) == count, f"{count} devices"
        )

    async def pod(
        self,
        name: str,
        request: str | None = None,
        *,
        on: str | None = None,
        opts_in: bool = True,
        limits: Mapping[str, str] | None = None,
        dataset: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """Create a pod of this story; `on` limits it to one node by its own node selector.

        `limits` are those of its container, which asks for no less, so that the pod is Guaranteed.
        `dataset` is the one that it names by label.
        """
        annotations = {names.PLACEMENT: "required"} if opts_in else {}
        if request is not None:
            annotations[names.DISKIO_REQUEST] = request
        self._watch.note_creation(name)
        manifest = self._manifest(name, annotations, limits, on=on, dataset=dataset, labels=labels)
        await self._client.create(PODS, manifest)

    async def dataset(self, name: str, *, gateway: str, is_usable: bool = True) -> None:
        """Write a dataset with a gateway on a node, and wait until the webhook decides by it."""
        await write_dataset(self._client, NAMESPACE, name, gateways=[gateway])
        word = '"mode":"gateway"' if is_usable else '"notUsable"'
        observed = {names.PLACEMENT: "observe"}
        probe = self._manifest(f"probe-{name}", observed, None, dataset=name)
        deadline = time.monotonic() + DEADLINE_S
        told = ""
        while word not in told:
            if time.monotonic() > deadline:
                raise StoryError(f"dataset {name}: expected {word} in a decision, found {told}")
            await asyncio.sleep(0.1)
            seen = await self._client.create(PODS, probe, {"dryRun": "All"})
            told = seen["metadata"]["annotations"].get(names.ALLOCATION, "")

    async def until_busy(self, node: str) -> None:
        """Wait until the operator has found the node's gateways overloaded."""
        await self._until_inventory(node, lambda it: bool(it.get("gatewayBusy")), "a busy gateway")

    async def lands(self, name: str, node: str, *, score: float | None = None) -> None:
        """Wait until the pod is bound and hold its node, and disk IO score, against the story."""
        pod = await self._watch.until(name, lambda it: bool(it.spec.node_name), "bound")
        self._take_note(name, pod.spec.node_name)
        if pod.spec.node_name != node:
            raise StoryError(f"{name}: expected on {node}, landed on {pod.spec.node_name}")
        found = allocation_of(pod).scores.get("diskio")
        if score is not None and found != score:
            raise StoryError(f"{name}: expected disk IO score {score}, found {found}")

    async def berths_at(self, name: str, *nodes: str) -> None:
        """Wait until a kubelet of one of the nodes has taken the pod, and note in which zones."""
        pod = await self._watch.until(
            name, lambda it: it.status.phase in ("Running", "Failed"), "running"
        )
        node = pod.spec.node_name
        verdict = self.worlds.numa.verdict(pod.metadata.uid)
        if node not in nodes or not isinstance(verdict, Admitted):
            raise StoryError(f"{name}: expected in {nodes}, found on {node}: {verdict}")
        zones = allocation_of(pod).allocated.get("numa", {}).get("zones", {})
        self.berths.append(
            Berth(
                story=self.story,
                pod=name,
                node=node,
                policy=self.worlds.numa.kubelet(node).machine.settings.topology_manager_policy,
                asks=", ".join(_asks(pod)),
                predicted=tuple(sorted(map(int, zones))),
                chosen=tuple(sorted({id_ for it in verdict.zones.values() for id_ in it})),
            )
        )

    async def holds_devices(self, name: str, node: str, devices: Mapping[int, int]) -> None:
        """Wait until the pod runs on the node, and hold MiB by device against the story."""
        pod = await self._watch.until(
            name, lambda it: it.status.phase in ("Running", "Failed"), "running"
        )
        self._take_note(name, pod.spec.node_name)
        given = self.worlds.xpus.kubelet(node).books.devices_of(pod.metadata.uid)
        decided: dict[int, int] = {}
        for it in allocation_of(pod).allocated.get("xpu", {}).get("devices", ()):
            decided[it["i"]] = decided.get(it["i"], 0) + it["mem"]
        self.holds.append(
            DeviceHold(
                story=self.story,
                pod=name,
                node=pod.spec.node_name,
                # The vendors' domains are left out.
                asks=", ".join(re.sub(r" \S*/", " ", it) for it in _asks(pod)),
                decided=decided,
                given=given,
            )
        )
        if pod.spec.node_name != node or given != devices:
            raise StoryError(
                f"{name}: expected {dict(devices)} on {node}, has {given} on {pod.spec.node_name}"
            )

    async def compares(self, name: str, *nodes: str) -> None:
        """Note what each concern says of each of these nodes for a pod that was placed."""
        found = recompute(self._watch.pod(name), await load_engine(self._client))
        verdicts = [it for it in (*found.feasible, *found.refused) if it.node in nodes]
        tables = tuple(concern_table.build(verdicts, found.asked, found.objections))
        self.comparisons.append(Comparison(pod=name, tables=tables))

    async def waits(self, name: str, words: str) -> None:
        """Wait until the pod says why it waits, in these words."""

        def says_why(pod: Pod) -> bool:
            return any(
                it.type == names.PLACED_CONDITION and it.status == "False" and words in it.message
                for it in pod.status.conditions or ()
            )

        await self._watch.until(name, says_why, f'waiting with "{words}"')

    async def explains(self, name: str, words: str) -> None:
        """Note what `kubectl berth why` says of a pod that waits, and hold it against the story."""
        pod = self._watch.pod(name)
        told = why(pod, await load_engine(self._client))
        if words not in told:
            raise StoryError(f'{name}: expected "{words}", found "{told}"')
        self._take_note(name, None, why=told)

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

    def _take_note(self, name: str, node: str | None, *, why: str = "") -> None:
        self.landings.append(
            Landing(
                story=self.story,
                pod=name,
                node=node,
                bound_after_s=self._watch.bound_after_s(name),
                seen=self._watch.pod(name),
                why=why,
            )
        )

    def _manifest(
        self,
        name: str,
        annotations: Mapping[str, str],
        limits: Mapping[str, str] | None,
        *,
        on: str | None = None,
        dataset: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        named = {"dataset.0.id": dataset, "dataset.0.useas": "mount"} if dataset else {}
        selector = {STORY_LABEL: self.story}
        if on is not None:
            selector["kubernetes.io/hostname"] = on
        container: dict[str, Any] = {"name": "app", "image": "registry.k8s.io/pause:3.10"}
        if limits is not None:
            container["resources"] = {"limits": dict(limits)}
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "annotations": dict(annotations),
                "labels": {**named, **(labels or {})},
            },
            "spec": {"nodeSelector": selector, "containers": [container]},
        }

    async def _until_inventory(
        self, node: str, is_there: Callable[[Mapping[str, Any]], bool], what: str
    ) -> None:
        """Wait until the operator has published what the story needs of a node."""
        path = f"/apis/{names.API_VERSION}/nodeinventories"
        deadline = time.monotonic() + DEADLINE_S
        while True:
            found = await self._client.get(path, {"fieldSelector": f"metadata.name={node}"})
            statuses = [item.get("status", {}) for item in found["items"]]
            if any(map(is_there, statuses)):
                return
            if time.monotonic() > deadline:
                raise StoryError(f"{node}: no inventory with {what}, found {statuses}")
            await asyncio.sleep(0.1)


def _has_modelled_power(status: Mapping[str, Any]) -> bool:
    power = status.get("power") or {}
    return bool(power.get("link") == "ModelServer" and power.get("usage") is not None)


def _has_everything(status: Mapping[str, Any]) -> bool:
    has_devices = bool(status.get("xpus")) and bool(status.get("zones"))
    return has_devices and _has_reported_disks(status) and _has_modelled_power(status)


def _has_reported_disks(status: Mapping[str, Any]) -> bool:
    """Return whether a node's disk is there, with its model and report."""
    disks = status.get("disks") or ()
    return bool(disks) and all(it.get("function") and it.get("allocable") for it in disks)


def _asks(pod: Pod) -> Iterator[str]:
    for container in pod.spec.containers or ():
        limits = container.resources.limits if container.resources is not None else None
        # Each asks the same memory; what differs is told.
        yield from (f"{amount} {name}" for name, amount in (limits or {}).items() if name != MEMORY)


def why(pod: Pod, snapshot: Snapshot) -> str:
    """Return the sentence of `kubectl berth why`."""
    return sentence(pod, recompute(pod, snapshot) if needs_recomputing(pod) else None)


def allocation_of(pod: Pod) -> Allocation:
    """Return what was decided for a placed pod."""
    found = read_allocation(pod.annotations.get(names.ALLOCATION))
    if found is None:
        raise StoryError(f"{pod.key}: expected an allocation")
    return found
