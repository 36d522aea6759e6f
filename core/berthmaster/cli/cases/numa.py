"""Decision cases of NUMA: a plugin's arguments, its cache and vendors' objects, as we take them.

The plugin's arguments become settings with books Upstream. What its cache held before the decision
becomes inventories, as the operator writes them, and reservations, as answers of ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from berthmaster.api.inventory import Freshness, NodeInventory, NodeInventoryStatus
from berthmaster.api.objects import pod_from_manifest
from berthmaster.api.policy import ConcernSettings
from berthmaster.api.settings.numa import NumaSettings
from berthmaster.api.topology import NodeResourceTopology, topology_from_manifest
from berthmaster.cli.cases.worlds import Case, CaseWorld, as_read, check_keys, check_no_metrics
from berthmaster.concerns.numa import CONCERN
from berthmaster.concerns.numa.inventory import build_topology
from berthmaster.concerns.numa.upstream_cache import UpstreamCache

_CONFIG_KEYS = {
    "plugin",
    "scoringStrategy",
    "cacheResyncPeriodSeconds",
    "discardReservedNodes",
    "cache",
    "cacheState",
    "preemptionMode",
    "quirk",
}
_STATE_KEYS = {
    "cachedTopologies",
    "reserved",
    "dirtyNodes",
    "nodesNotFresh",
    "attributeChanged",
    "schedulerProfiles",
    "resync",
}
_ARGUMENTS = (
    "scoringStrategy",
    "cacheResyncPeriodSeconds",
    "discardReservedNodes",
    "cache",
    "preemptionMode",
)
_KINDS = ("NodeResourceTopology",)


def load(case: Case) -> CaseWorld:
    """Return the world of a case."""
    config, cluster = case["config"], case["cluster"]
    state = config.get("cacheState") or {}
    check_no_metrics(case)
    check_keys(config, _CONFIG_KEYS, "config")
    check_keys(state, _STATE_KEYS, "config.cacheState")
    settings = NumaSettings.model_validate(
        {
            **{key: config[key] for key in _ARGUMENTS if key in config},
            "books": "Upstream",
            # Such a case pins behaviour that we change by default.
            "strictUpstream": "quirk" in config,
        }
    )
    live = _topologies(cluster["resources"])
    reserved = [(it["node"], pod_from_manifest(it["pod"])) for it in state.get("reserved", ())]
    is_cached = settings.cache_resync_period_seconds > 0 and not settings.discard_reserved_nodes
    if not is_cached:
        served, unreliable = live, set[str]()
    else:
        cached = state.get("cachedTopologies")
        cache = UpstreamCache(
            settings=settings.cache,
            cached=dict(live) if cached is None else _topologies(cached),
            reserved=reserved,
            maybe_over_reserved=set(state.get("dirtyNodes", ())),
            with_foreign_pods=set(state.get("nodesNotFresh", ())),
            changed_attributes=set(state.get("attributeChanged", ())),
        )
        pods = [pod_from_manifest(it) for it in cluster.get("pods", ())]
        if state.get("schedulerProfiles"):
            cache.detect_foreign(pods, state["schedulerProfiles"])
        if state.get("resync"):
            cache.resync(live, pods)
        served, reserved, unreliable = cache.cached, cache.reserved, cache.with_foreign_pods
    inventories = {
        node: _inventory(topology, is_unreliable=node in unreliable)
        for node, topology in served.items()
    }
    return CaseWorld(
        concern=CONCERN,
        settings=ConcernSettings(numa=settings),
        inventories=inventories,
        reserved=tuple(reserved),
    )


def _topologies(manifests: Iterable[Mapping[str, Any]]) -> dict[str, NodeResourceTopology]:
    found = {}
    for manifest in manifests:
        if manifest["kind"] not in _KINDS:
            raise ValueError(f"cluster.resources: unknown kind {manifest['kind']}")
        topology = topology_from_manifest(manifest)
        found[topology.name] = topology
    return found


def _inventory(topology: NodeResourceTopology, *, is_unreliable: bool) -> NodeInventory:
    freshness = Freshness.UNRELIABLE if is_unreliable else None
    built = build_topology(topology, freshness=freshness)
    status = NodeInventoryStatus(topology=built.topology, zones=built.zones)
    return as_read(topology.name, status)
