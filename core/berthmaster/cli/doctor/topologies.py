"""NUMA: does every node that has zones have a topology, from one updater, that can be relied upon?"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from berthmaster.api import names
from berthmaster.api.topology import NodeResourceTopology, topology_from_manifest
from berthmaster.cli.doctor.facts import (
    Facts,
    TopologySeen,
    Unread,
    dig,
    items,
    mapping,
    metadata,
    name_of,
)
from berthmaster.cli.doctor.findings import Finding, Part, some
from berthmaster.concerns.numa.amounts import CPU, MEMORY, read_offer

PART = Part("NUMA")
PATH = f"/apis/{names.TOPOLOGY_API_VERSION}/noderesourcetopologies"
_READY = names.TOPOLOGY_READY
_REFUSING = ("single-numa-node", "restricted")
# What whoever writes zones also writes; of lists without keys only the last writer is remembered.
_OWNED = ("f:zones", "f:attributes", "f:topologyPolicies")
_ANNOTATIONS = ("f:k8stopoawareschedwg/rte-update", f"f:{names.FINGERPRINT_ANNOTATION}")
_NODE_UPDATER = (
    "kubectl get pods -A -o wide --field-selector spec.nodeName={node}   # its topology updater"
)
_WAYS_OUT = {
    "NoZones": "kubectl get noderesourcetopologies {node} -o yaml   # zones of type Node, node-<number>",
}
_KUBELET = (
    "in the kubelet's configuration: {setting}; drain the node and remove {file} before it restarts"
)
_decode = msgspec.json.Decoder(dict[str, Any]).decode


def decode(raw: bytes) -> TopologySeen:
    """Read a NodeResourceTopology; raises `msgspec.DecodeError` on what is no JSON object."""
    manifest = _decode(raw)
    return TopologySeen(
        topology=topology_from_manifest(manifest), writers=tuple(sorted(_writers(manifest)))
    )


def check(facts: Facts) -> Iterator[Finding]:
    """Look at topologies against nodes, at their writers, at kubelets, at what came of them."""
    topologies, nodes = facts.topologies, facts.nodes
    if isinstance(topologies, Unread):
        yield PART.not_checked("NodeResourceTopologies", topologies.why)
        return
    if not topologies:
        yield PART.ok("no node has a NodeResourceTopology: NUMA zones are not looked at")
        return
    if isinstance(nodes, Unread):
        yield PART.not_checked("NodeResourceTopologies without a node", nodes.why)
    else:
        yield from _check_names({it.topology.name for it in topologies}, nodes or ())
    yield from _check_writers(topologies)
    yield from _check_kubelets([it.topology for it in topologies])
    yield from _check_conditions(facts)


def _check_names(known: set[str], nodes: Iterable[Mapping[str, Any]]) -> Iterator[Finding]:
    there = {name_of(it): it for it in nodes}
    strays = sorted(known - there.keys())
    if strays:
        yield PART.warning(
            f"NodeResourceTopologies have names of no node: {some(strays)}",
            f"kubectl delete noderesourcetopologies {strays[0]}   # if its node is gone for good",
        )
    lacking = sorted(name for name, node in there.items() if name not in known and _takes(node))
    if not lacking:
        return
    words = (
        f"{some(lacking)} has no NodeResourceTopology while others have: pods are not aligned there"
    )
    if len(lacking) > len(there.keys() & known):
        # Updaters for a pool of nodes alone are somebody's choice.
        yield PART.ok(words)
    else:
        yield PART.warning(
            words,
            _NODE_UPDATER.format(node=lacking[0])
            + "; where none is meant to run: whenMissing of the PlacementPolicy",
        )


def _takes(node: Mapping[str, Any]) -> bool:
    """Return whether pods without tolerations are let onto the node."""
    effects = {it.get("effect") for it in items(node, "spec", "taints")}
    return not dig(node, "spec", "unschedulable") and effects.isdisjoint(
        {"NoSchedule", "NoExecute"}
    )


def _check_writers(topologies: Iterable[TopologySeen]) -> Iterator[Finding]:
    crowds: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for it in topologies:
        if len(it.writers) > 1:
            crowds[it.writers].append(it.topology.name)
    for writers, written in sorted(crowds.items()):
        yield PART.warning(
            f"several write the topology of {some(written)}, and each undoes the other: "
            f"{some(writers)}",
            "run one topology updater per node; kubectl get noderesourcetopologies "
            f"{written[0]} -o yaml --show-managed-fields",
        )


def _check_kubelets(topologies: list[NodeResourceTopology]) -> Iterator[Finding]:
    refusing = [it for it in topologies if it.policy in _REFUSING and it.zones]
    without_cpu = [it.name for it in refusing if _manages_no_cpu(it)]
    without_memory = [
        it.name for it in refusing if it.name not in without_cpu and not _lists(it, MEMORY)
    ]
    if without_cpu:
        yield PART.warning(
            f"{some(without_cpu)} aligns no CPUs: no zone has any to give, or its cpuManagerPolicy is none",
            _KUBELET.format(setting="cpuManagerPolicy: static", file="cpu_manager_state"),
        )
    if without_memory:
        yield PART.warning(
            f"{some(without_memory)} lists cpu and in no zone memory: memory and hugepages are not "
            "aligned there, and not looked at",
            _KUBELET.format(
                setting="memoryManagerPolicy: Static, and reservedMemory",
                file="memory_manager_state",
            ),
        )
    unknown = [it.name for it in refusing if it.cpu_manager_policy is None]
    counts = Counter(f"{it.policy}, scope {it.scope}" for it in topologies)
    kinds = "; ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    taken = f"; the CPU manager of {len(unknown)} is not told and taken for static"
    yield PART.ok(f"kubelets by policy: {kinds}{taken if unknown else ''}")


def _manages_no_cpu(topology: NodeResourceTopology) -> bool:
    most = (
        read_offer(CPU, it.resources[CPU].allocatable)
        for it in topology.zones
        if CPU in it.resources
    )
    return topology.cpu_manager_policy == "none" or not any(most)


def _lists(topology: NodeResourceTopology, resource: str) -> bool:
    return any(resource in it.resources for it in topology.zones)


def _check_conditions(facts: Facts) -> Iterator[Finding]:
    inventories = facts.inventories
    if isinstance(inventories, Unread):
        yield PART.not_checked("NodeInventories", inventories.why)
        return
    troubles: dict[str, list[tuple[str, str]]] = defaultdict(list)
    good = 0
    for inventory in inventories or ():
        conditions = items(inventory, "status", "conditions")
        condition = next((it for it in conditions if it.get("type") == _READY), None)
        if condition is not None and condition.get("status") == "True":
            good += 1
        elif condition is not None:
            reason = str(condition.get("reason") or "no reason")
            troubles[reason].append((name_of(inventory), str(condition.get("message") or "")))
    for reason, found in sorted(troubles.items()):
        node, message = found[0]
        yield PART.warning(
            f"{reason} on {some([name for name, _ in found])}: {message}",
            _WAYS_OUT.get(reason, _NODE_UPDATER).format(node=node),
        )
    if good:
        yield PART.ok(f"{good} {'node' if good == 1 else 'nodes'} with topologies to rely upon")
    elif not troubles:
        yield PART.broken(
            "there are NodeResourceTopologies and no zones in any NodeInventory",
            f"kubectl -n {facts.system_namespace} logs deployment/berthmaster-operator",
        )


def _writers(manifest: Mapping[str, Any]) -> set[str]:
    """Return who writes an updater's fields; by annotations the one is known that lost the zones."""
    found = set()
    for entry in items(metadata(manifest), "managedFields"):
        fields = mapping(entry.get("fieldsV1"))
        annotations = mapping(dig(fields, "f:metadata", "f:annotations"))
        if any(it in fields for it in _OWNED) or any(it in annotations for it in _ANNOTATIONS):
            found.add(str(entry.get("manager") or "unknown"))
    return found
