"""Upstream's over-reserve cache: which topologies it serves, and which reservations it still keeps.

For who has to foresee what the Go plugin would decide. It serves copies of topologies; a copy is
replaced, and the node's reservations dropped, only by a resync: of nodes that are marked (a refusal
there, foreign pods, changed settings), and only where the fingerprint of the node's pods is that of
the live topology. All its oddities are kept: a node without pods, or without a mark, never follows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from berthmaster.api import names
from berthmaster.api.objects import Pod
from berthmaster.api.settings.numa import ForeignPodsDetect, InformerMode, NumaCache, ResyncMethod
from berthmaster.api.topology import NodeResourceTopology
from berthmaster.concerns.numa.fingerprint import fingerprint
from berthmaster.concerns.numa.request import holds_exclusive


@dataclass(slots=True, kw_only=True)
class UpstreamCache:
    """The cache's memory; nodes by name, reservations as (node, pod) in their order."""

    settings: NumaCache
    cached: dict[str, NodeResourceTopology]
    reserved: list[tuple[str, Pod]] = field(default_factory=list)
    maybe_over_reserved: set[str] = field(default_factory=set)
    with_foreign_pods: set[str] = field(default_factory=set)
    changed_attributes: set[str] = field(default_factory=set)

    def detect_foreign(self, pods: Iterable[Pod], profiles: Sequence[str]) -> None:
        """Mark the nodes of bound pods that none of the named schedulers placed."""
        for pod in pods:
            node = pod.spec.node_name
            if node in self.cached and self._is_foreign(pod, profiles):
                self.with_foreign_pods.add(node)

    def resync(self, live: Mapping[str, NodeResourceTopology], pods: Iterable[Pod]) -> None:
        """Take over the live topologies of marked nodes, where the rules allow it."""
        by_node: dict[str, list[Pod]] = {}
        for pod in pods:
            if pod.spec.node_name and self._is_counted(pod):
                by_node.setdefault(pod.spec.node_name, []).append(pod)
        for node in sorted(self.maybe_over_reserved | self.with_foreign_pods):
            topology, counted = live.get(node), by_node.get(node)
            if topology is not None and counted and self._matches(topology, counted):
                self._flush(node, topology)
        for node in sorted(self.changed_attributes):
            if node in live:
                self._flush(node, live[node])

    def _flush(self, node: str, topology: NodeResourceTopology) -> None:
        self.cached[node] = topology
        self.reserved = [it for it in self.reserved if it[0] != node]
        self.maybe_over_reserved.discard(node)
        self.with_foreign_pods.discard(node)
        self.changed_attributes = self.changed_attributes - {node}

    def _is_counted(self, pod: Pod) -> bool:
        if self.settings.informer_mode is InformerMode.SHARED:
            return pod.status.phase == "Running"
        return pod.status.phase != "Pending"

    def _matches(self, topology: NodeResourceTopology, pods: Sequence[Pod]) -> bool:
        if not topology.fingerprint:
            return False
        if self._takes_exclusive(topology):
            pods = [pod for pod in pods if _is_exclusive(pod, topology)]
        found = fingerprint((it.metadata.namespace, it.metadata.name) for it in pods)
        return found == topology.fingerprint

    def _takes_exclusive(self, topology: NodeResourceTopology) -> bool:
        method = self.settings.resync_method
        if method is ResyncMethod.AUTODETECT:
            return (
                not topology.is_fingerprint_annotated
                and topology.fingerprint_method == names.FINGERPRINT_EXCLUSIVE
            )
        return method is ResyncMethod.ONLY_EXCLUSIVE_RESOURCES

    def _is_foreign(self, pod: Pod, profiles: Sequence[str]) -> bool:
        detect = self.settings.foreign_pods_detect
        if pod.asked_scheduler in profiles or detect is ForeignPodsDetect.NONE:
            return False
        if detect is ForeignPodsDetect.ALL:
            return True
        return _is_exclusive(pod, self.cached[pod.spec.node_name])


def _is_exclusive(pod: Pod, topology: NodeResourceTopology) -> bool:
    native, devices = holds_exclusive(pod)
    return native or any(it in zone.resources for zone in topology.zones for it in devices)
