"""What upstream's cache-aware plugin decides, its label webhook mounts and Fluid's merge joins, over manifests.

Written from the rules alone. `faults` names what a world has that makes one of the plugin's known faults decide;
of the webhook the same is told without its faults, as ours has to do it.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from support.dataset_reference import HOST, OLD, REGION, ZONE

Manifest = Mapping[str, Any]
Terms = Sequence[Mapping[str, Any]]

REFUSAL = "Node does not have cache deployment for pod"
_LABEL = re.compile(r"dataset\.[0-9]+\.id")
_PARTS = ("matchExpressions", "matchFields")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the plugin says about one node."""

    fits: bool
    score: int


def decide(case: Manifest) -> dict[str, Verdict]:
    """Return the plugin's verdict on each node."""
    nodes = {it["metadata"]["name"]: _labels(it) for it in case["cluster"]["nodes"]}
    gateways, data = _gather(case, nodes)
    return {
        name: Verdict(
            fits=bool(gateways) or not data or any(_same(own, nodes[it], HOST) for it in data),
            score=_score(own, [nodes[it] for it in gateways], [nodes[it] for it in data]),
        )
        for name, own in nodes.items()
    }


def faults(case: Manifest) -> set[str]:
    """Return the faults of the plugin that this world may show."""
    return {*_faults_of_objects(case), *_faults_of_placements(case)}


def _faults_of_objects(case: Manifest) -> Iterator[str]:
    nodes = {it["metadata"]["name"]: _labels(it) for it in case["cluster"]["nodes"]}
    labels = _labels(case["pod"])
    if any(not _LABEL.fullmatch(it) for it in _loose(labels)):
        yield "loose label"
    if not _loose(labels):
        yield "pod without datasets"
    if case["config"]["tiers"]["region"]:
        yield "no region tier"
    if any(it["apiVersion"] != OLD for it in case["cluster"]["resources"]):
        yield "new group"
    hosts = [it.get(HOST) for it in nodes.values()]
    if hosts != list(nodes):
        yield "hostname is not the name"


def _faults_of_placements(case: Manifest) -> Iterator[str]:
    nodes = {it["metadata"]["name"]: _labels(it) for it in case["cluster"]["nodes"]}
    labels = _labels(case["pod"])
    vetoed, used = False, []
    for name in {labels[it] for it in _loose(labels)}:
        dataset, internal = (_find(case, it, name) for it in ("Dataset", "DatasetInternal"))
        if not dataset or not internal:
            continue
        provision, caching = _states(dataset)
        if provision != "OK" or caching == "Disabled":
            vetoed = True
        elif caching in ("OK", "Pending"):
            used.append(_placements(internal))
    if vetoed and used:
        yield "veto"
    entries = [it for placed in used for found in placed for it in found]
    if any(it.get("key") != HOST for it in entries):
        yield "other key"
    known = [tuple({it.get("value") for it in found} & nodes.keys() for found in it) for it in used]
    if any(
        placed[0] and not found[0] and found[1] for placed, found in zip(used, known, strict=True)
    ):
        yield "stale gateway"
    if len({it for found in known for it in found[0]}) > 1:
        yield "several gateways"
    by_files = [
        found[1] for placed, found in zip(used, known, strict=True) if not placed[0] and found[1]
    ]
    if by_files and any(found[0] for found in known):
        yield "gateway beside a file system"
    if any(it != by_files[0] for it in by_files):
        yield "several file systems"


def _gather(case: Manifest, nodes: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    gateways: list[str] = []
    data: list[str] = []
    labels = _labels(case["pod"])
    for key in _loose(labels):
        dataset, internal = (_find(case, it, labels[key]) for it in ("Dataset", "DatasetInternal"))
        if not dataset or not internal:
            continue
        provision, caching = _states(dataset)
        if provision != "OK" or caching == "Disabled":
            return [], []
        if caching not in ("OK", "Pending"):
            continue
        for found, into in zip(_placements(internal), (gateways, data), strict=True):
            into += [it["value"] for it in found if it.get("key") == HOST and it["value"] in nodes]
    return gateways, data


def _score(own: Manifest, gateways: Sequence[Manifest], data: Sequence[Manifest]) -> int:
    score = 0
    if not gateways and any(HOST in own and _same(own, it, HOST) for it in data):
        score = 100
    for it in gateways:
        if HOST in own and _same(own, it, HOST):
            score = 100
        elif all(key in own and _same(own, it, key) for key in (ZONE, REGION)):
            score = 50
        else:
            score = 0
    return score


def _same(own: Manifest, other: Manifest, key: str) -> bool:
    return bool(own.get(key, "") == other.get(key, ""))


def _loose(labels: Manifest) -> list[str]:
    return [it for it in labels if "dataset" in it and "id" in it]


def _labels(manifest: Manifest) -> dict[str, str]:
    return dict(manifest["metadata"].get("labels") or {})


def _find(case: Manifest, kind: str, name: str) -> Manifest | None:
    namespace = case["pod"]["metadata"]["namespace"]
    for it in case["cluster"]["resources"]:
        key = (it["metadata"]["namespace"], it["metadata"]["name"])
        if it["kind"] == kind and it["apiVersion"] == OLD and key == (namespace, name):
            found: Manifest = it
            return found
    return None


def _states(dataset: Manifest) -> tuple[str, str]:
    status = dataset.get("status") or {}
    provision, caching = (
        str((status.get(it) or {}).get("status", "")) for it in ("provision", "caching")
    )
    return provision, caching


def _placements(internal: Manifest) -> tuple[Terms, Terms]:
    status = internal.get("status") or {}
    placements = (status.get("caching") or {}).get("placements") or {}
    return placements.get("gateways") or (), placements.get("datalocations") or ()


def mounted(pod: Manifest, datasets: Mapping[str, bool]) -> dict[str, Any]:
    """Return the spec of a pod with its datasets mounted; `datasets` says which of them are read only."""
    spec: dict[str, Any] = copy.deepcopy(pod["spec"])
    labels = _labels(pod)
    numbers = sorted(
        int(it.split(".")[1]) for it in labels if re.fullmatch(r"dataset\.\d+\.id", it)
    )
    uses = [(labels[f"dataset.{it}.id"], labels.get(f"dataset.{it}.useas", "")) for it in numbers]
    mounts = [name for name, use in uses if "mount" in use.split(".")]
    configured = [name for name, use in uses if "configmap" in use.split(".")]
    by_claim = {
        it["persistentVolumeClaim"]["claimName"]: it["name"]
        for it in spec.get("volumes", ())
        if "persistentVolumeClaim" in it
    }
    _extend(spec, "volumes", [_volume(it, datasets[it]) for it in mounts if it not in by_claim])
    for container in (*spec.get("initContainers", ()), *spec["containers"]):
        there = {it["name"] for it in container.get("volumeMounts", ())}
        wanted = [(by_claim.get(it, it), f"/mnt/datasets/{it}") for it in mounts]
        missing = [{"name": name, "mountPath": path} for name, path in wanted if name not in there]
        _extend(container, "volumeMounts", missing)
        refs = ("configMapRef", "secretRef")
        known = {
            it[ref]["name"] for it in container.get("envFrom", ()) for ref in refs if ref in it
        }
        unknown = [it for it in configured if it not in known]
        sources = [{"prefix": f"{it}_", ref: {"name": it}} for it in unknown for ref in refs]
        _extend(container, "envFrom", sources)
    return spec


def _volume(dataset: str, is_read_only: bool) -> dict[str, Any]:
    only = {"readOnly": True} if is_read_only else {}
    return {"name": dataset, "persistentVolumeClaim": {"claimName": dataset, **only}}


def _extend(owner: dict[str, Any], part: str, items: Sequence[Manifest]) -> None:
    if items:
        owner.setdefault(part, []).extend(items)


def merged(affinity: Manifest, required: Terms, preferred: Terms) -> dict[str, Any]:
    """Return node affinity with terms injected by Fluid's rules."""
    after: dict[str, Any] = copy.deepcopy(dict(affinity))
    keys = [f"{it}DuringSchedulingIgnoredDuringExecution" for it in ("required", "preferred")]
    if preferred:
        after[keys[1]] = [*after.get(keys[1], ()), *preferred]
    own = (after.get(keys[0]) or {}).get("nodeSelectorTerms") or []
    kept, wanted = ([it for it in terms if any(map(it.get, _PARTS))] for terms in (own, required))
    joined = own
    if wanted:
        joined = [_both(it, other) for it in kept for other in wanted] or wanted
    if joined:
        after[keys[0]] = {"nodeSelectorTerms": joined}
    return after


def _both(own: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    parts = {part: [*own.get(part, ()), *other.get(part, ())] for part in _PARTS}
    return {part: it for part, it in parts.items() if it}
