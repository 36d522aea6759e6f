"""What datasets decide, spelled out for one node at a time over manifests, in exact fractions.

Written from the rules and not from the arrays: every question is asked anew of the raw objects.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

Manifest = Mapping[str, Any]
HOST = "kubernetes.io/hostname"
ZONE = "topology.kubernetes.io/zone"
REGION = "topology.kubernetes.io/region"
NEW, OLD = "datashim.io/v1alpha1", "com.ie.ibm.hpsys/v1alpha1"


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The settings that matter."""

    node: int = 100
    zone: int = 50
    region: int = 25
    requires: bool = True
    counts_claims: bool = True
    spares_data: bool = False


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What must come out for one node; `score` counts only where `absent` is empty."""

    absent: tuple[str, ...]
    score: int


def expect(
    node: Manifest,
    *,
    nodes: Sequence[Manifest],
    resources: Sequence[Manifest],
    pod: Manifest,
    rules: Rules,
    busy: frozenset[str] = frozenset(),
) -> Expected:
    """Return what the rules say about one node."""
    usable = [
        found
        for name in used_by(pod, rules)
        if (found := _find(name, pod["metadata"]["namespace"], resources, nodes)) is not None
    ]
    absent = tuple(
        it.name
        for it in usable
        if rules.requires and not it.gateways and node["metadata"]["name"] not in _names(it.data)
    )
    if not usable:
        return Expected(absent=(), score=0)
    tiers = [_tier(node, it, rules, busy) for it in usable]
    return Expected(absent=absent, score=math.floor(Fraction(sum(tiers), len(tiers))))


def used_by(pod: Manifest, rules: Rules) -> list[str]:
    """Return the names that a pod uses: by labels in numeric order, then by claims."""
    numbered = []
    for key, value in (pod["metadata"].get("labels") or {}).items():
        match = re.match(r"^dataset\.(\d+)\.id$", key)
        if match and value:
            numbered.append((int(match.group(1)), value))
    names = [value for _, value in sorted(numbered)]
    if rules.counts_claims:
        claims = [it.get("persistentVolumeClaim") for it in pod["spec"].get("volumes") or []]
        names += [it["claimName"] for it in claims if it]
    return list(dict.fromkeys(names))


@dataclass(frozen=True, kw_only=True)
class _Usable:
    name: str
    gateways: Sequence[Manifest]
    data: Sequence[Manifest]


def _find(
    name: str, namespace: str, resources: Sequence[Manifest], nodes: Sequence[Manifest]
) -> _Usable | None:
    group = NEW if _object("Dataset", NEW, namespace, name, resources) else OLD
    dataset = _object("Dataset", group, namespace, name, resources)
    internal = _object("DatasetInternal", group, namespace, name, resources)
    if dataset is None or internal is None:
        return None
    status = dataset.get("status") or {}
    if (status.get("provision") or {}).get("status") != "OK":
        return None
    if (status.get("caching") or {}).get("status") not in ("OK", "Pending"):
        return None
    placements = ((internal.get("status") or {}).get("caching") or {}).get("placements") or {}
    gateways = [it for it in placements.get("gateways") or [] if it.get("key") and it.get("value")]
    data = [it for it in placements.get("datalocations") or [] if it.get("key") and it.get("value")]
    at_gateways = [it for it in nodes if any(_is_meant(it, entry) for entry in gateways)]
    at_data = [it for it in nodes if any(_is_meant(it, entry) for entry in data)]
    # What is declared counts, also an entry that says nothing.
    if placements.get("gateways"):
        return _Usable(name=name, gateways=at_gateways, data=at_data) if at_gateways else None
    return _Usable(name=name, gateways=(), data=at_data) if at_data else None


def _object(
    kind: str, group: str, namespace: str, name: str, resources: Sequence[Manifest]
) -> Manifest | None:
    for it in resources:
        metadata = it["metadata"]
        if (it["kind"], it["apiVersion"]) == (kind, group) and (
            metadata["namespace"],
            metadata["name"],
        ) == (namespace, name):
            return it
    return None


def _is_meant(node: Manifest, entry: Manifest) -> bool:
    metadata = node["metadata"]
    if (metadata.get("labels") or {}).get(entry["key"]) == entry["value"]:
        return True
    return bool(entry["key"] == HOST and metadata["name"] == entry["value"])


def _tier(node: Manifest, dataset: _Usable, rules: Rules, busy: frozenset[str]) -> int:
    name = node["metadata"]["name"]
    places = dataset.gateways or dataset.data
    best = 0
    for place in places:
        if _same(node, place, ZONE) and _same(node, place, REGION):
            best = max(best, rules.zone)
        if _same(node, place, REGION):
            best = max(best, rules.region)
        if place["metadata"]["name"] == name:
            is_busy = bool(dataset.gateways) and name in busy
            best = max(best, rules.zone if is_busy else rules.node)
    is_backing = bool(dataset.gateways) and name in _names(dataset.data)
    if rules.spares_data and is_backing and name not in _names(dataset.gateways):
        best = max(best - 1, 0)
    return best


def _same(node: Manifest, other: Manifest, key: str) -> bool:
    mine = (node["metadata"].get("labels") or {}).get(key)
    theirs = (other["metadata"].get("labels") or {}).get(key)
    return bool(mine) and mine == theirs


def _names(nodes: Sequence[Manifest]) -> set[str]:
    return {it["metadata"]["name"] for it in nodes}
