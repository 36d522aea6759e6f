"""Everything the operator knows, by node: the driver's objects, the pods, what we published.

Pure bookkeeping on the event loop: `see_*` and `lose_*` take what watches show, in any order and as
often as they like, and tell `on_dirty` whose node may need a write. No I/O, no clock of its own.
Objects are attributed to a node by their `spec.nodeName`; of NodeDiskIOStats only the one with the
conventional name beside the node's NodeDiskDevice counts, others are counted as strays.

`is_complete` turns true once every kind was listed. Before that nothing may be written (upstream's
defect D4: an empty list of pods written at start makes the drivers drop their reservations).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

from berthmaster.api import names
from berthmaster.api.diskio import NodeDiskDevice, NodeDiskIOStats, stats_name
from berthmaster.api.inventory import DatasetRole, NodeInventoryStatus
from berthmaster.api.node_xpus import NodeXPU
from berthmaster.api.policy import ConcernSettings, PlacementPolicy, PolicySet
from berthmaster.api.settings.dataset import GatewayOverload, GatewayReading
from berthmaster.api.settings.power import CpuUsageFormat
from berthmaster.api.topology import NodeResourceTopology
from berthmaster.api.xpu_names import XPUNames
from berthmaster.concerns.diskio.models import DiskModels
from berthmaster.concerns.xpu.inventory import XPUInventory
from berthmaster_operator.datasets.mapping import DatasetMap
from berthmaster_operator.datasets.overload import Load
from berthmaster_operator.metrics import InventoryFigures
from berthmaster_operator.power.book import PowerBook
from berthmaster_operator.power.pod_usages import AssumedPod
from berthmaster_operator.remembering import Remembered
from berthmaster_operator.settling import Rises
from berthmaster_operator.sightings import (
    ConfigMapSeen,
    FailureSeen,
    InventorySeen,
    NodeSeen,
    PodSeen,
    is_older,
)

ObjectKey = tuple[str, str]

DEFAULT_STALE_AFTER_S = 60.0
DEFAULT_TOPOLOGY_STALE_AFTER_S = 180.0
DEFAULT_XPU_STALE_AFTER_S = 90.0
DEFAULT_XPU_ASSIGN_TIMEOUT_S = 300.0
DEFAULT_POWER_STALE_AFTER_S = 90.0
# Longer than an updater takes from its look at the pods to its write.
NAMES_KEPT_S = 30.0
# Below this a driver could not keep up, and every report would be stale on arrival.
SHORTEST_STALE_AFTER_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSeen:
    """A NodeDiskDevice as stored."""

    device: NodeDiskDevice
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StatsSeen:
    """A NodeDiskIOStats as stored, and when (monotonic seconds) its driver last gave a sign of life."""

    stats: NodeDiskIOStats
    version: str
    alive_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TopologySeen:
    """A NodeResourceTopology as stored."""

    topology: NodeResourceTopology
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TopologyFigures:
    """All topologies together: how many by reason, the age of the oldest, the longest lag."""

    by_reason: Mapping[str, int]
    oldest_s: float
    lag_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeXPUSeen:
    """A NodeXPU as stored; `status` is the whole of it as JSON."""

    node_xpu: NodeXPU
    version: str
    status: Mapping[str, Any]


@dataclass(slots=True, kw_only=True)
class NodeState:
    """One node. Only `Fleet` and the node's worker change it, both on the event loop."""

    name: str
    node: NodeSeen | None = None
    devices: dict[ObjectKey, DeviceSeen] = field(default_factory=dict)
    stats: dict[ObjectKey, StatsSeen] = field(default_factory=dict)
    topology: TopologySeen | None = None
    node_xpu: NodeXPUSeen | None = None
    # Made of the Node and the NodeXPU.
    xpus: Remembered[XPUInventory] = field(default_factory=Remembered)
    # When the NodeXPU's status is to be written (monotonic seconds), None while it says what there is.
    node_xpu_due_s: float | None = None
    # Pods told of, and why: as above, for Events.
    told_xpus: frozenset[tuple[str, str]] = frozenset()
    pods: dict[str, PodSeen] = field(default_factory=dict)
    # Names of pods that have gone lately, and when (monotonic seconds).
    names_left: dict[ObjectKey, float] = field(default_factory=dict)
    # Pods that the kubelet could not align.
    failures: dict[str, FailureSeen] = field(default_factory=dict)
    inventory: InventorySeen | None = None
    # What the last pass computed; the handshake continues from it. None: continue from the API.
    computed: NodeInventoryStatus | None = None
    # What was last stored, by us or as the watch showed it; None: read `inventory`.
    published: NodeInventoryStatus | None = None
    published_s: float | None = None
    # Since when (monotonic seconds) the Node has been missing; None while it is there.
    missing_since_s: float | None = None
    # Whether its driver was found stale; then a sign of life is news, whatever it says.
    is_stale: bool = False
    # Reports that are above what is published, and since when.
    rises: Rises = field(default_factory=dict)
    # Pods whose start or end the topology does not show, and since when (monotonic seconds).
    unreflected: Mapping[str, float] = field(default_factory=dict)
    # How its gateways were loaded when it was last looked at.
    load: Load = field(default_factory=Load)
    # Faults told already, so that an Event stands for a change.
    told: tuple[str, ...] = ()

    @property
    def is_idle(self) -> bool:
        """Return whether nothing at all is known of this node."""
        objects = (
            self.node,
            self.devices,
            self.stats,
            self.topology,
            self.node_xpu,
            self.inventory,
        )
        return not any((*objects, self.pods, self.failures))


class Fleet:
    """The nodes, the policies and the disk models."""

    def __init__(
        self,
        *,
        diskio_namespace: str,
        clock: Callable[[], float],
        on_dirty: Callable[[str], None],
        wall_clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._diskio_namespace = diskio_namespace
        self._clock = clock
        self._wall_clock = wall_clock
        self._on_dirty = on_dirty
        self._nodes: dict[str, NodeState] = {}
        self._node_of_pod: dict[str, str] = {}
        self._node_of_object: dict[tuple[str, str, str], str] = {}
        self.power = PowerBook(on_dirty=on_dirty, begins=self._begins)
        self.power.is_watched = self._is_busy_by_cpu
        self._policies: dict[str, PlacementPolicy] = {}
        self._policy_set = PolicySet()
        # ConfigMaps of kube-system by name, for the lists of unhealthy devices.
        self._lists: dict[str, Mapping[str, str]] = {}
        # A pod made later than this had no predecessor that we have not seen, whatever clocks differ by.
        self._watches_since_s = wall_clock().timestamp() + NAMES_KEPT_S
        self.models = DiskModels()
        self.datasets = DatasetMap(on_dirty)
        self.is_complete = False

    # What is known.

    def __iter__(self) -> Iterator[NodeState]:
        return iter(tuple(self._nodes.values()))

    def find(self, name: str) -> NodeState | None:
        """Return what is known of a node."""
        return self._nodes.get(name)

    def device_of(self, state: NodeState) -> NodeDiskDevice | None:
        """Return the node's device object: the one in our namespace, else the first by name."""
        keys = sorted(state.devices, key=lambda it: (it[0] != self._diskio_namespace, it))
        return state.devices[keys[0]].device if keys else None

    def stats_of(self, state: NodeState) -> StatsSeen | None:
        """Return the NodeDiskIOStats that belongs to the node's device object."""
        device = self.device_of(state)
        if device is None:
            return None
        return state.stats.get((device.namespace, stats_name(state.name)))

    @property
    def strays(self) -> int:
        """Return how many NodeDiskIOStats have an unexpected name."""
        return sum(
            name != stats_name(state.name)
            for state in self._nodes.values()
            for _, name in state.stats
        )

    @property
    def white_list(self) -> frozenset[str]:
        """Return the namespaces whose pods are not counted: those of all policies together."""
        return frozenset(self._policy_set.white_list)

    @property
    def stale_after_s(self) -> float:
        """Return how old a report may grow: the shortest that any policy asks for."""
        return self._shortest_s(lambda it: it.diskio.stale_after, DEFAULT_STALE_AFTER_S)

    @property
    def stale_safety_percent(self) -> int:
        """Return how much of a stale driver's disks is kept back: the most that any policy asks for."""
        wanted = (it.concerns.diskio.stale_safety_percent for it in self._policy_set.specs)
        return max(wanted, default=0)

    @property
    def topology_stale_after_s(self) -> float:
        """Return how long a topology may lag: the shortest that any policy asks for."""
        return self._shortest_s(lambda it: it.numa.stale_after, DEFAULT_TOPOLOGY_STALE_AFTER_S)

    @property
    def xpu_names(self) -> XPUNames:
        """Return what the XPU dialects call things in this cluster."""
        return self._policy_set.xpu_names

    @property
    def xpu_stale_after_s(self) -> float:
        """Return how old an agent's heartbeat may grow: the shortest that any policy asks for."""
        return self._shortest_s(lambda it: it.xpu.stale_after, DEFAULT_XPU_STALE_AFTER_S)

    @property
    def xpu_assign_timeout_s(self) -> float:
        """Return how long a bound pod may wait for its device plugin: the shortest that any policy asks for."""
        return self._shortest_s(lambda it: it.xpu.assign_timeout, DEFAULT_XPU_ASSIGN_TIMEOUT_S)

    @property
    def overload(self) -> GatewayOverload:
        """Return when a gateway is busy: what the most important policy says that names it."""
        named = (it.concerns.dataset.overload for it in self._policy_set.specs)
        return next((it for it in named if it is not None), GatewayOverload())

    def _is_busy_by_cpu(self, node: str) -> bool:
        """Return whether a node has gateways that are busy by its CPU usage."""
        return self.overload.reading is GatewayReading.CPU and any(
            it.role is DatasetRole.GATEWAY for it in self.datasets.here(node) or ()
        )

    @property
    def power_stale_after_s(self) -> float:
        """Return how old a reading of power may grow: the shortest that any policy asks for."""
        return self._shortest_s(lambda it: it.power.stale_after, DEFAULT_POWER_STALE_AFTER_S)

    @property
    def policies(self) -> Mapping[str, PlacementPolicy]:
        """Return the policies by name."""
        return self._policies

    def measure_topologies(self) -> TopologyFigures:
        """Return how many topologies there are by reason, the age of the oldest, the longest lag.

        Ages are by our clock and the API server's; one in the future is none.
        """
        now_s, wall_s = self._clock(), self._wall_clock().timestamp()
        by_reason: Counter[str] = Counter()
        oldest_s = lag_s = 0.0
        for state in self._nodes.values():
            if state.topology is None or state.node is None:
                continue
            written_s = state.topology.topology.written_s
            oldest_s = max(oldest_s, wall_s - written_s if written_s is not None else 0.0)
            lag_s = max(lag_s, now_s - min(state.unreflected.values(), default=now_s))
            conditions = (state.computed.conditions if state.computed is not None else None) or ()
            by_reason.update(it.reason for it in conditions if it.type == names.TOPOLOGY_READY)
        return TopologyFigures(by_reason=by_reason, oldest_s=oldest_s, lag_s=lag_s)

    def measure_inventories(self) -> InventoryFigures:
        """Return how many inventories there are by condition, and the age of the oldest power sample."""
        wall_s = self._wall_clock().timestamp()
        by_condition: Counter[tuple[str, str, str]] = Counter()
        oldest_s = 0.0
        for state in self._nodes.values():
            if state.node is None or state.computed is None:
                continue
            conditions = state.computed.conditions or ()
            by_condition.update((it.type, it.status, it.reason) for it in conditions)
            power = state.computed.power
            if power is not None and power.usage_sampled_s is not None:
                oldest_s = max(oldest_s, wall_s - power.usage_sampled_s)
        return InventoryFigures(by_condition=by_condition, oldest_sample_s=oldest_s)

    # What watches show.

    def see_pod(self, pod: PodSeen) -> None:
        """Take over a pod."""
        before = self._node_of_pod.get(pod.uid, "")
        if before and before != pod.node:
            self._remove_pod(pod.uid, before)
        if not pod.node:
            return
        state = self._state(pod.node)
        known = state.pods.get(pod.uid)
        if known is None:
            pod = replace(pod, is_first=self._is_first(state, pod))
        else:
            # Every later write to its status moves the time; the first is the nearest to the start.
            started_s = pod.started_s if known.started_s is None else known.started_s
            pod = replace(pod, is_first=known.is_first, started_s=started_s)
        state.pods[pod.uid] = pod
        if pod.is_finished:
            self.power.pods.lose(pod.uid)
        elif pod.assumed and pod.started_s is not None:
            self.power.pods.see(
                AssumedPod(
                    uid=pod.uid,
                    namespace=pod.namespace,
                    name=pod.name,
                    node=pod.node,
                    assumed=pod.assumed,
                )
            )
        self._node_of_pod[pod.uid] = pod.node
        if known != pod:
            self._on_dirty(pod.node)

    def lose_pod(self, uid: str) -> None:
        """Forget a pod that is gone."""
        node = self._node_of_pod.get(uid)
        if node is not None:
            self._remove_pod(uid, node)

    def see_failure(self, failure: FailureSeen) -> None:
        """Take over a pod that failed; only those that their kubelet could not align matter here."""
        if failure.unaligned_s is None or not failure.node:
            return
        state = self._state(failure.node)
        # As with the start of a pod, the first sight is the nearest to what happened.
        if failure.uid not in state.failures:
            state.failures[failure.uid] = failure
            self._on_dirty(failure.node)

    def lose_failure(self, failure: FailureSeen) -> None:
        """Forget a failed pod that is gone."""
        state = self._nodes.get(failure.node)
        if state is not None and state.failures.pop(failure.uid, None) is not None:
            self._on_dirty(failure.node)
            self._prune(failure.node)

    def see_node(self, node: NodeSeen) -> None:
        """Take over a Node; a new uid means another machine, of which nothing was published."""
        state = self._state(node.name)
        known = state.node
        if known is not None and known.uid != node.uid:
            state.computed = None
        state.node = node
        if node.power is not None:
            self.power.see_node(node.power)
        state.missing_since_s = None
        self.datasets.see_node(node.name, node.labels)
        if known != node:
            self._on_dirty(node.name)

    def lose_node(self, name: str) -> None:
        """Note that a Node is gone; what its driver left stays known until it is cleaned up."""
        state = self._nodes.get(name)
        if state is None:
            return
        state.node = None
        self.power.lose_node(name)
        state.computed = None
        self.datasets.lose_node(name)
        state.missing_since_s = self._clock()
        self._on_dirty(name)
        self._prune(name)

    def see_device(self, device: NodeDiskDevice, version: str) -> None:
        """Take over a NodeDiskDevice; an older version than the known one changes nothing."""
        if not device.node_name:
            self.lose_device(device.namespace, device.name)
            return
        key = (device.namespace, device.name)
        state = self._relocate("device", key, device.node_name)
        if state is None:
            return
        known = state.devices.get(key)
        if (
            known is not None
            and known.device.uid == device.uid
            and is_older(version, known.version)
        ):
            return
        state.devices[key] = DeviceSeen(device=device, version=version)
        if known is None or known.device != device:
            self._on_dirty(state.name)

    def lose_device(self, namespace: str, name: str, uid: str = "") -> None:
        """Forget a NodeDiskDevice, but not the successor of the one with this uid."""
        if self._is_succeeded("device", (namespace, name), uid):
            return
        self._relocate("device", (namespace, name), "")

    def see_stats(self, stats: NodeDiskIOStats, version: str) -> None:
        """Take over a NodeDiskIOStats; an older version than the known one changes nothing."""
        if not stats.node_name:
            self.lose_stats(stats.namespace, stats.name)
            return
        key = (stats.namespace, stats.name)
        state = self._relocate("stats", key, stats.node_name)
        if state is None:
            return
        known = state.stats.get(key)
        is_same = known is not None and known.stats.uid == stats.uid
        if known is not None and is_same and is_older(version, known.version):
            return
        is_alive = not is_same or known is None or known.stats.sign != stats.sign
        if known is not None and is_same:
            alive_s = self._clock() if is_alive else known.alive_s
        else:
            alive_s = self._clock() - self._age_s(stats)
        state.stats[key] = StatsSeen(stats=stats, version=version, alive_s=alive_s)
        # A heartbeat alone is no news, unless it ends a silence.
        if known is None or known.stats != stats or (is_alive and state.is_stale):
            self._on_dirty(state.name)

    def lose_stats(self, namespace: str, name: str, uid: str = "") -> None:
        """Forget a NodeDiskIOStats, but not the successor of the one with this uid."""
        if self._is_succeeded("stats", (namespace, name), uid):
            return
        self._relocate("stats", (namespace, name), "")

    def see_topology(self, topology: NodeResourceTopology, version: str) -> None:
        """Take over a NodeResourceTopology; an older version than the known one changes nothing."""
        if not topology.name:
            return
        state = self._state(topology.name)
        known = state.topology
        is_same = known is not None and known.topology.uid == topology.uid
        if known is not None and is_same and is_older(version, known.version):
            return
        state.topology = TopologySeen(topology=topology, version=version)
        if known is None or known.topology != topology:
            self._on_dirty(state.name)

    def lose_topology(self, name: str, uid: str = "") -> None:
        """Forget a NodeResourceTopology, but not the successor of the one with this uid."""
        state = self._nodes.get(name)
        if state is None or state.topology is None:
            return
        if uid not in ("", state.topology.topology.uid):
            return
        state.topology = None
        self._on_dirty(name)
        self._prune(name)

    def see_node_xpu(self, seen: NodeXPUSeen) -> None:
        """Take over a NodeXPU; an older version than the known one changes nothing."""
        name = seen.node_xpu.name
        if not name:
            return
        state = self._state(name)
        known = state.node_xpu
        is_same = known is not None and known.node_xpu.uid == seen.node_xpu.uid
        if known is not None and is_same and is_older(seen.version, known.version):
            return
        state.node_xpu = seen
        if known is None or (known.node_xpu, known.status) != (seen.node_xpu, seen.status):
            self._on_dirty(name)

    def lose_node_xpu(self, name: str, uid: str) -> None:
        """Forget a NodeXPU, unless its successor is known already."""
        state = self._nodes.get(name)
        if state is None or state.node_xpu is None or state.node_xpu.node_xpu.uid != uid:
            return
        state.node_xpu = state.node_xpu_due_s = None
        self._on_dirty(name)
        self._prune(name)

    def see_config_map(self, seen: ConfigMapSeen) -> None:
        """Take over a ConfigMap that may list unhealthy devices."""
        before = self._lists.get(seen.name, {})
        self._lists[seen.name] = seen.data
        if before != seen.data:
            self._mark_listed(seen.name)

    def lose_config_map(self, name: str) -> None:
        """Forget such a ConfigMap."""
        if self._lists.pop(name, None):
            self._mark_listed(name)

    def unhealthy_of(self, node: str) -> str:
        """Return the list of a node's unhealthy devices as it is written, empty for none."""
        names = self.xpu_names
        found = self._lists.get(f"{names.unhealthy_prefix}{node}") or {}
        return found.get(names.unhealthy_key, "")

    def _mark_listed(self, name: str) -> None:
        node = name.removeprefix(self.xpu_names.unhealthy_prefix)
        if node != name and node in self._nodes:
            self._on_dirty(node)

    def see_inventory(self, inventory: InventorySeen) -> None:
        """Take over a NodeInventory as stored."""
        state = self._state(inventory.name)
        known = state.inventory
        is_same = known is not None and known.uid == inventory.uid
        if known == inventory or (known and is_same and is_older(inventory.version, known.version)):
            return
        state.inventory = inventory
        state.published = None
        self._on_dirty(inventory.name)

    def lose_inventory(self, name: str, uid: str) -> None:
        """Forget a NodeInventory, unless its successor is known already."""
        state = self._nodes.get(name)
        if state is None or (state.inventory is not None and state.inventory.uid != uid):
            return
        state.inventory = state.published = state.published_s = None
        self._on_dirty(name)
        self._prune(name)

    def see_models(self, models: DiskModels) -> None:
        """Take over the disk models."""
        if models != self.models:
            self.models = models
            self.mark_all()

    def see_policy(self, policy: PlacementPolicy) -> None:
        """Take over a policy."""
        self._policies[policy.name] = policy
        self._policies_changed()

    def lose_policy(self, name: str, uid: str = "") -> None:
        """Forget a policy, but not the successor of the one with this uid."""
        known = self._policies.get(name)
        if known is not None and uid in ("", known.uid):
            del self._policies[name]
            self._policies_changed()

    def mark_all(self) -> None:
        """Have every node looked at again."""
        for name in self._nodes:
            self._on_dirty(name)

    def restart_books(self) -> None:
        """Continue from what is stored, as a fresh process would: for a new leader."""
        for state in self._nodes.values():
            state.computed = None
            state.told = ()
            state.rises = {}
        self.mark_all()

    def known_objects(self, kind: str) -> dict[tuple[str, str], str]:
        """Return the uid of every known object of a kind, by namespace and name.

        Kinds are `device` and `stats`, and, without namespaces, `topology` and `node_xpu`.
        """
        found: dict[tuple[str, str], str] = {}
        for state in self._nodes.values():
            if kind == "topology":
                if state.topology is not None:
                    found["", state.name] = state.topology.topology.uid
                continue
            if kind == "node_xpu":
                if state.node_xpu is not None:
                    found["", state.name] = state.node_xpu.node_xpu.uid
                continue
            seen: Mapping[ObjectKey, Any] = state.devices if kind == "device" else state.stats
            found.update({key: getattr(it, kind).uid for key, it in seen.items()})
        return found

    def known_versions(self) -> dict[str, str]:
        """Return the version of each object that `known_objects` tells of, of all kinds, by uid."""
        found: dict[str, str] = {}
        for state in self._nodes.values():
            found.update((it.device.uid, it.version) for it in state.devices.values())
            found.update((it.stats.uid, it.version) for it in state.stats.values())
            if state.topology is not None:
                found[state.topology.topology.uid] = state.topology.version
            if state.node_xpu is not None:
                found[state.node_xpu.node_xpu.uid] = state.node_xpu.version
        return found

    def _begins(self, name: str, after_s: float, until_s: float) -> bool:
        """Tell whether a pod on the node began to run within a span of time."""
        state = self._nodes.get(name)
        started = (it.started_s for it in state.pods.values()) if state is not None else ()
        return any(it is not None and after_s < it <= until_s for it in started)

    def _policies_changed(self) -> None:
        before = self._joint_settings()
        self._policy_set = PolicySet(self._policies.values())
        if before != self._joint_settings():
            self.mark_all()
        formats = (it.concerns.power.cpu_usage_format for it in self._policy_set.specs)
        self.power.configure(
            next((it for it in formats if it is not None), CpuUsageFormat.RAW),
            self.power_stale_after_s,
        )

    def _shortest_s(self, read: Callable[[ConcernSettings], Fraction], default_s: float) -> float:
        wanted_s = (float(read(it.concerns)) for it in self._policy_set.specs)
        return max(SHORTEST_STALE_AFTER_S, min(wanted_s, default=default_s))

    def _joint_settings(self) -> tuple[object, ...]:
        return (
            self.white_list,
            self.stale_after_s,
            self.stale_safety_percent,
            self.topology_stale_after_s,
            self.overload,
            self.xpu_names,
            self.xpu_stale_after_s,
            self.xpu_assign_timeout_s,
        )

    def _age_s(self, stats: NodeDiskIOStats) -> float:
        """Return how old the driver's last write is, for an object that was not known before.

        That is by the API server's clock and ours; a restart must not make a dead driver's last
        report fresh. Where the time is unknown, or in the future, the report counts as new.
        """
        try:
            written_at = datetime.fromisoformat(stats.written_at)
            return max(0.0, (self._wall_clock() - written_at).total_seconds())
        except (ValueError, TypeError):
            return 0.0

    def _state(self, name: str) -> NodeState:
        state = self._nodes.get(name)
        if state is None:
            state = self._nodes[name] = NodeState(name=name, missing_since_s=self._clock())
        return state

    def _remove_pod(self, uid: str, node: str) -> None:
        del self._node_of_pod[uid]
        self.power.pods.lose(uid)
        state = self._nodes.get(node)
        gone = state.pods.pop(uid, None) if state is not None else None
        if state is not None and gone is not None:
            state.names_left[gone.namespace, gone.name] = self._clock()
            self._on_dirty(node)
            self._prune(node)

    def _is_first(self, state: NodeState, pod: PodSeen) -> bool:
        """Return whether no pod of this name can be in a topology that is as old as the pod.

        False where that is not known: a predecessor may have ended before we began to watch.
        """
        until_s = self._clock() - NAMES_KEPT_S
        state.names_left = {key: at_s for key, at_s in state.names_left.items() if at_s > until_s}
        if pod.created_s is None or pod.created_s < self._watches_since_s:
            return False
        name = (pod.namespace, pod.name)
        is_there = any((it.namespace, it.name) == name for it in state.pods.values())
        return not is_there and name not in state.names_left

    def _is_succeeded(self, kind: str, key: ObjectKey, uid: str) -> bool:
        """Tell whether a device or stats object of this key is known that is not the one with the uid.

        Kopf works on each uid by itself, so of an object that was made anew at once the end of the old one may
        come last.
        """
        state = self._nodes.get(self._node_of_object.get((kind, *key), ""))
        if state is None or not uid:
            return False
        objects: Mapping[ObjectKey, Any] = state.devices if kind == "device" else state.stats
        return key in objects and getattr(objects[key], kind).uid != uid

    def _relocate(self, kind: str, key: ObjectKey, node: str) -> NodeState | None:
        """Return the state of the node that an object belongs to now, taking it from another.

        With an empty `node` the object is taken away, and None returned.
        """
        index = (kind, *key)
        before = self._node_of_object.get(index, "")
        if before and before != node:
            state = self._nodes[before]
            objects: dict[ObjectKey, Any] = state.devices if kind == "device" else state.stats
            objects.pop(key, None)
            del self._node_of_object[index]
            self._on_dirty(before)
            self._prune(before)
        if not node:
            return None
        self._node_of_object[index] = node
        return self._state(node)

    def _prune(self, name: str) -> None:
        state = self._nodes.get(name)
        if state is not None and state.is_idle:
            del self._nodes[name]
