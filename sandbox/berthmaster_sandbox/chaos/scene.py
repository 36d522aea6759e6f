"""The cluster on which the chaos plays: installed as users install it, with all five concerns.

Owns which nodes there are, what they have, and the lines that the independent count goes by. Nodes carry
the label `PART`, and workloads select by it:

    plain   CPU and memory        disk    a disk and an IO driver      numa    two zones, a kubelet, a disk
    xpu     four accelerators     power   meters and a power model

Every third disk node is a dataset's gateway. What differs from an installation of users' is made here, as a
kustomize overlay: three replicas of the webhook, its waits in step with the API server's request timeout,
and the shifted clock.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from berthmaster.api import names
from berthmaster.cluster.client import Client, read_items
from berthmaster.cluster.errors import ClusterError
from berthmaster_sandbox.chaos.clocks import Clock
from berthmaster_sandbox.chaos.plan import Plan
from berthmaster_sandbox.chaos.recount import Disk, Lines, Obj, Seen, count_ends
from berthmaster_sandbox.chaos.relays import Relay
from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.demo.stage import FUNCTIONS, MODELS, disk, machine
from berthmaster_sandbox.errors import SandboxError
from berthmaster_sandbox.installing import CONFIG, IMAGES, PROJECT, install
from berthmaster_sandbox.world.datashim import install_datashim, write_dataset
from berthmaster_sandbox.world.disk_books import SimulatedDisk
from berthmaster_sandbox.world.diskio import DiskWorld
from berthmaster_sandbox.world.numa import NumaWorld, UpdaterHabits
from berthmaster_sandbox.world.power import PowerWorld
from berthmaster_sandbox.world.power_machines import FRUGAL, LEAN
from berthmaster_sandbox.world.xpu import XpuWorld
from berthmaster_sandbox.world.xpu_hosts import make_host

T = TypeVar("T")

NAMESPACES = ("chaos-roomy", "chaos-tight")
CANARIES = "chaos-canaries"
# How many pods the tight namespace may have, as a share of what its controllers want.
TIGHT_SHARE = 0.6
PART = "chaos.berthmaster.io/part"
DATASETS = ("images", "films")
WEBHOOK, OPERATOR = "berthmaster-webhook", "berthmaster-operator"
REPLICAS = {WEBHOOK: 3, OPERATOR: 2}
PROCESS_NODES = 3
PODS = "/api/v1/pods"
POLICIES = f"/apis/{names.API_VERSION}/placementpolicies"
SYSTEM = f"/api/v1/namespaces/{names.SYSTEM_NAMESPACE}"
HOOK = (
    "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/"
    f"{names.WEBHOOK_CONFIGURATION}"
)
DEADLINE_S = 180.0
# The policies that stay: one selects pods that do not ask themselves.
STANDING_POLICIES: Mapping[str, Mapping[str, Any]] = {
    "chaos-selected": {
        "podSelector": {"matchLabels": {"placed-by": "policy"}},
        "namespaceSelector": {"matchLabels": {"chaos": "yes"}},
    },
}
_DISKS = (disk(1000, 1000, 1800), disk(1200, 1200, 2400, key="Acme-X1"))
PROMPT = UpdaterHabits(delay_s=0.5)
_OBJECT: msgspec.json.Decoder[dict[str, Any]] = msgspec.json.Decoder(dict[str, Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Worlds:
    """The simulated worlds; `rejections` and findings are what their own books say."""

    disks: DiskWorld
    numa: NumaWorld
    power: PowerWorld
    xpus: XpuWorld

    def complaints(self) -> list[str]:
        """Return everything that ever was past a line, or was turned away, by the worlds' books."""
        turned_away = [
            f"{it.node} turned {it.pod} away: {it.reason}" for it in self.numa.rejections
        ]
        turned_away += [f"{pod}: {it.message}" for pod, it in self.xpus.rejections.items()]
        found = (*self.disks.overflows, *self.numa.overfilled, *self.xpus.findings)
        return [*map(str, found), *turned_away]


class Scene:
    """What faults, load and count hold in their hands; made by `open_scene`."""

    def __init__(
        self,
        plan: Plan,
        sandbox: Sandbox,
        relays: Mapping[str, Relay],
        worlds: Worlds,
        clock: Clock,
    ) -> None:
        self.plan = plan
        self.sandbox = sandbox
        self.relays = relays
        self.worlds = worlds
        self.clock = clock
        # What nodes have beyond CPU and memory.
        self.disks: dict[str, SimulatedDisk] = {}
        self.devices: dict[str, Mapping[int, int]] = {}
        self.zoned: list[str] = []

    @property
    def lines(self) -> Lines:
        """Return the lines of the world that are not in a Node."""
        disks = {node: _line(it) for node, it in self.disks.items()}
        return Lines(disks=disks, devices=self.devices)

    @property
    def client(self) -> Client:
        """Return the administrator's client, which goes past the relays."""
        return self.sandbox.client

    # Our programs.

    async def program_pods(self, name: str) -> list[Obj]:
        """Return the pods of a program that are not on their way out."""
        found = await self.client.get(
            f"{SYSTEM}/pods", {"labelSelector": f"app.kubernetes.io/name={name}"}
        )
        return [it for it in found["items"] if not it["metadata"].get("deletionTimestamp")]

    async def own_ends(self) -> dict[str, int]:
        """Return how often the process of each pod of ours has ended."""
        return count_ends([pod for name in REPLICAS for pod in await self.program_pods(name)])

    async def leader(self, name: str = WEBHOOK) -> Obj:
        """Wait for the pod that holds a program's Lease, and return it."""
        path = f"/apis/coordination.k8s.io/v1/namespaces/{names.SYSTEM_NAMESPACE}/leases/{name}"

        async def find() -> Obj | None:
            holder = (await self.client.get(path))["spec"].get("holderIdentity") or ""
            pods = await self.program_pods(name)
            return next((it for it in pods if holder.startswith(it["metadata"]["name"])), None)

        return await until(find, f"nobody leads {name}")

    def pid_of(self, pod: Obj) -> int | None:
        """Return the process of a pod of ours, None between two runs."""
        kubelet = self.sandbox.kubelets.get(pod["spec"].get("nodeName", ""))
        if kubelet is None:
            return None
        try:
            return kubelet.find_process(names.SYSTEM_NAMESPACE, pod["metadata"]["name"])
        except KeyError:
            return None

    async def scale(self, name: str, replicas: int) -> None:
        """Set how many pods a program has."""
        await self.sandbox.kubectl(
            "-n", names.SYSTEM_NAMESPACE, "scale", f"deployment/{name}", f"--replicas={replicas}"
        )

    # The cluster's objects.

    async def look(self) -> Seen:
        """Read everything that the count needs. Raises ClusterError."""
        jobs, deployments, events = [], [], []
        for namespace in NAMESPACES:
            jobs += await self._list(f"/apis/batch/v1/namespaces/{namespace}/jobs")
            deployments += await self._list(f"/apis/apps/v1/namespaces/{namespace}/deployments")
            events += await self.failures(namespace)
        policies = await self._list(POLICIES)
        pods = await self._list(PODS)
        return Seen(
            nodes=await self._list("/api/v1/nodes"),
            pods=[it for it in pods if it["metadata"]["namespace"] in (*NAMESPACES, CANARIES)],
            jobs=jobs,
            deployments=deployments,
            events=events,
            policies={
                it["metadata"]["name"]: it["metadata"]["creationTimestamp"] for it in policies
            },
            standing=frozenset(STANDING_POLICIES),
            at_s=time.time(),
        )

    async def failures(self, namespace: str) -> list[Obj]:
        """Return the Events about creations that failed."""
        return await self._list(f"/api/v1/namespaces/{namespace}/events", "reason=FailedCreate")

    async def _list(self, path: str, selector: str = "") -> list[Obj]:
        query = {"fieldSelector": selector} if selector else None
        found: list[Obj] = []
        async for page in self.client.list_pages(path, query):
            found += [_OBJECT.decode(it) for it in read_items(page)]
        return found

    async def publish_anew(self) -> None:
        """Let every vendor publish again what was deleted, and wait until all of it is known."""
        for node, chosen in self.disks.items():
            await self.worlds.disks.add_node(node, devices={"d": chosen})
        for node in self.zoned:
            self.worlds.numa.set_habits(node, PROMPT)
        await self.until_known()

    async def until_known(self) -> None:
        """Wait until every disk, zone and accelerator is in its node's inventory."""

        async def is_known() -> bool:
            found = await self._list(f"/apis/{names.API_VERSION}/nodeinventories")
            status = {it["metadata"]["name"]: it.get("status", {}) for it in found}
            wanted = (("disks", self.disks), ("zones", self.zoned), ("xpus", self.devices))
            return all(status.get(node, {}).get(part) for part, its in wanted for node in its)

        await until(is_known, "not every node's inventory was published")

    async def write_policies(self) -> None:
        """Write the policies that stay."""
        for name, spec in STANDING_POLICIES.items():
            await self.write_policy(name, spec)

    async def write_policy(self, name: str, spec: Mapping[str, Any]) -> None:
        """Write a PlacementPolicy."""
        manifest = {
            "apiVersion": names.API_VERSION,
            "kind": "PlacementPolicy",
            "metadata": {"name": name},
            "spec": spec,
        }
        await self.sandbox.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))


async def until(
    look: Callable[[], Awaitable[T | None]], complaint: str, *, deadline_s: float = DEADLINE_S
) -> T:
    """Return what `look` finds once it is anything; an API server that is away is waited for.

    Raises SandboxError at the deadline.
    """
    end_s = time.monotonic() + deadline_s
    while True:
        try:
            if found := await look():
                return found
        except ClusterError:
            pass
        if time.monotonic() > end_s:
            raise SandboxError(f"after {deadline_s:.0f} s: {complaint}")
        await asyncio.sleep(0.25)


@asynccontextmanager
async def open_scene(
    plan: Plan, *, say: Callable[[str], None] = lambda _words: None
) -> AsyncIterator[Scene]:
    """Start the cluster, install Berthmaster, and build the worlds; end all with the block."""
    async with AsyncExitStack() as stack:
        relays = {
            f"sandbox-{index}": await stack.enter_async_context(Relay())
            for index in range(1, PROCESS_NODES + 1)
        }
        sandbox = await stack.enter_async_context(
            Sandbox.start(
                process_nodes=PROCESS_NODES,
                images=IMAGES,
                api_server_flags={"request-timeout": f"{plan.request_timeout_s:.0f}s"},
                pod_servers={node: relay.url for node, relay in relays.items()},
            )
        )
        for relay in relays.values():
            relay.target = ("127.0.0.1", sandbox.slot.api_server_port)
        clock = Clock(sandbox.folder / "clock")
        overlay = _write_overlay(sandbox.folder / "overlay", plan, clock)
        await sandbox.kubectl("apply", "-k", str(PROJECT / "crds" / "wao"))
        await install_datashim(sandbox)
        say("kubectl apply -k, with three webhooks and two operators")
        seconds = await install(sandbox, config=overlay)
        say(f"installed after {seconds:.0f} s; making {plan.nodes} nodes and their worlds")
        worlds = Worlds(
            disks=await stack.enter_async_context(DiskWorld(sandbox.client, functions=FUNCTIONS)),
            numa=await stack.enter_async_context(NumaWorld(sandbox.client, seed=plan.seed)),
            power=await stack.enter_async_context(PowerWorld(sandbox.client)),
            xpus=await stack.enter_async_context(XpuWorld(sandbox.client, seed=plan.seed)),
        )
        scene = Scene(plan, sandbox, relays, worlds, clock)
        await _furnish(scene)
        say("every disk, zone and accelerator is known")
        yield scene


def _write_overlay(folder: Path, plan: Plan, clock: Clock) -> Path:
    """Write what the suite adds to the sandbox's own overlay, and return its folder."""
    folder.mkdir()

    def reach(path: Path) -> str:
        return os.path.relpath(path, folder.resolve())

    waits = {
        "BERTHMASTER_TAKEOVER_WAIT_S": f"{plan.takeover_wait_s:g}",
        "BERTHMASTER_ASSUME_TTL_S": f"{plan.assume_ttl_s:g}",
    }
    patches = [
        _environment(WEBHOOK, "webhook", {**waits, **clock.environment}),
        _environment(OPERATOR, "operator", clock.environment),
    ]
    overlay = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [reach(CONFIG)],
        "components": [reach(PROJECT / "config" / "components" / "ha")],
        "replicas": [{"name": name, "count": count} for name, count in REPLICAS.items()],
        "patches": [{"patch": json.dumps(it)} for it in patches],
    }
    # JSON is YAML, too.
    (folder / "kustomization.yaml").write_text(json.dumps(overlay, indent=2), encoding="utf-8")
    return folder


def _environment(deployment: str, container: str, variables: Mapping[str, str]) -> dict[str, Any]:
    listed = [{"name": name, "value": value} for name, value in variables.items()]
    spec = {"containers": [{"name": container, "env": listed}]}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": deployment, "namespace": names.SYSTEM_NAMESPACE},
        "spec": {"template": {"spec": spec}},
    }


# What the scene is furnished with.


async def _furnish(scene: Scene) -> None:
    client, plan, worlds = scene.client, scene.plan, scene.worlds
    models = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": names.DISK_MODELS_CONFIG_MAP},
        "data": {names.DISK_MODELS_KEY: json.dumps(MODELS)},
    }
    await client.create(f"/api/v1/namespaces/{names.DISKIO_NAMESPACE}/configmaps", models)
    for namespace in (*NAMESPACES, CANARIES):
        await _make_namespace(scene, namespace)
    await scene.write_policies()
    for name in _names("numa", plan.count(0.04, at_least=2)):
        aligned = machine("single-numa-node")
        await worlds.numa.add_node(name, aligned, habits=PROMPT, labels={PART: "numa"})
        scene.zoned.append(name)
    for name in _names("xpu", plan.count(0.03, at_least=2)):
        host = make_host(name, devices=4)
        await worlds.xpus.add_host(host, labels={PART: "xpu"})
        scene.devices[name] = {it.index: it.memory_mib for it in host.devices}
    with_disk = await _create(scene, "disk", plan.count(0.08, at_least=3))
    for index, name in enumerate((*with_disk, *scene.zoned)):
        scene.disks[name] = _DISKS[index % len(_DISKS)]
        await worlds.disks.add_node(name, devices={"d": scene.disks[name]})
    powered = await _create(scene, "power", plan.count(0.02, at_least=2))
    for index, name in enumerate(powered):
        spec = await worlds.power.add_node(name, (FRUGAL, LEAN)[index % 2])
        await _configure_power(client, name, spec)
    rest = plan.nodes - len(scene.disks) - len(scene.devices) - len(powered)
    await _create(scene, "plain", max(2, rest))
    for index, dataset in enumerate(DATASETS):
        gateways = with_disk[index :: 3 * len(DATASETS)] or with_disk[:1]
        for namespace in NAMESPACES:
            await write_dataset(client, namespace, dataset, gateways=gateways)
    await scene.until_known()


async def _make_namespace(scene: Scene, name: str) -> None:
    labels = {"chaos": "yes"}
    manifest = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": labels},
    }
    await scene.client.create("/api/v1/namespaces", manifest)
    if name == NAMESPACES[1]:
        hard = {"pods": str(round(scene.plan.alive / len(NAMESPACES) * TIGHT_SHARE))}
        quota = {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": "tight"},
            "spec": {"hard": hard},
        }
        await scene.client.create(f"/api/v1/namespaces/{name}/resourcequotas", quota)


def _names(part: str, count: int) -> list[str]:
    return [f"{part}-{index:04d}" for index in range(1, count + 1)]


async def _create(scene: Scene, part: str, count: int) -> list[str]:
    return await scene.sandbox.create_nodes(
        count, name=part + "-{index:04d}", labels={PART: part, names.ZONE: f"zone-{count % 3}"}
    )


def _line(disk_: SimulatedDisk) -> Disk:
    """Return what the count goes by, of a disk as it is simulated and its model as it is published."""
    model = next(it for it in MODELS if f"{it['vendor']}-{it['model']}" == disk_.key)
    return Disk(
        read=disk_.capacity.read,
        write=disk_.capacity.write,
        total=disk_.capacity.total,
        read_ratio={size: Fraction(it) for size, it in model["readRatio"].items()},
        write_ratio={size: Fraction(it) for size, it in model["writeRatio"].items()},
    )


async def _configure_power(client: Client, node: str, spec: Mapping[str, Any]) -> None:
    version = names.WAO_API_VERSIONS[0]
    manifest = {
        "apiVersion": version,
        "kind": "NodeConfig",
        "metadata": {"name": node},
        "spec": spec,
    }
    await client.create(f"/apis/{version}/namespaces/{CANARIES}/nodeconfigs", manifest)
