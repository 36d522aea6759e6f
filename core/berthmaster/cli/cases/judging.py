"""Decide cases, and compare what was decided with what is expected."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from berthmaster.api import names
from berthmaster.api.allocation import Allocation, write_allocation
from berthmaster.api.objects import (
    Node,
    Pod,
    node_from_manifest,
    pod_from_manifest,
)
from berthmaster.api.policy import Mode, PlacementPolicy, PlacementPolicySpec, PolicySet
from berthmaster.cli.cases import dataset, diskio, numa, podspread, power, xpu
from berthmaster.cli.cases.worlds import Case, CaseWorld, UnknownKeyError, check_keys
from berthmaster.placement.engine import Engine, Verdict
from berthmaster.placement.shapes import PodRequest

_KEYS = {
    *("name", "source", "why", "derived", "config", "cluster", "metrics", "pod", "expect"),
    *("behaviour", "quirk", "trace", "defect", "expectFixed"),
}
_CLUSTER_KEYS = {"nodes", "resources", "pods"}
_EXPECT_KEYS = {"feasible", "reasons", "scores", "best", "resources", "devices", "annotations"}

LOADERS: Mapping[str, Callable[[Case], CaseWorld]] = {
    "DiskIO": diskio.load,
    "NodeResourceTopologyMatch": numa.load,
    "PodSpread": podspread.load,
    **dict.fromkeys(power.PLUGINS, power.load),
    "CacheAwarePlugin": dataset.load,
    **dict.fromkeys(names.XPU_DIALECTS, xpu.load),
}


# What changes a pod and chooses no node.
_CHANGES: Mapping[str, Callable[[Case, Mapping[str, Any]], Iterator[str]]] = {
    "DatasetPodMutator": dataset.judge_mounting,
    "AffinityInjection": dataset.judge_injection,
}


def run_case(case: Case) -> list[str]:
    """Decide one case; return each difference between expected and actual."""
    check_keys(case, _KEYS, "case")
    check_keys(case["cluster"], _CLUSTER_KEYS, "cluster")
    # What a correct system decides stands instead of what upstream's defect makes of it.
    expect = case.get("expectFixed", case["expect"])
    # Of the XPU dialects none is a plugin.
    plugin = case["config"].get("plugin") or case["config"].get("dialect")
    if plugin in _CHANGES:
        return list(_CHANGES[plugin](case, expect))
    check_keys(expect, _EXPECT_KEYS, "expect")
    if plugin not in LOADERS:
        known = ", ".join((*LOADERS, *_CHANGES))
        raise UnknownKeyError(f"config.plugin: {plugin}, expected one of {known}")
    world = LOADERS[plugin](case)
    pod = pod_from_manifest(case["pod"])
    engine, request = _build(world, case, pod)
    verdicts = {verdict.node: verdict for verdict in engine.verdicts(request)}
    if world.scores_alone:
        own = world.concern.name
        verdicts = {
            name: replace(it, score=it.scores.get(own, 0.0)) for name, it in verdicts.items()
        }
    differences = [*_differences(expect, verdicts), *_other_objects(expect, world.made)]
    if world.compare is not None:
        fitting = {name: it.score for name, it in verdicts.items() if it.reason is None}
        differences += world.compare(expect, engine, request, pod, fitting)
    return differences


def _build(world: CaseWorld, case: Case, pod: Pod) -> tuple[Engine, PodRequest]:
    policies = PolicySet(
        [PlacementPolicy(name="case", spec=PlacementPolicySpec(concerns=world.settings))]
    )
    engine = Engine([*world.beside, world.concern])
    engine.configure(policies.specs)
    for manifest in case["cluster"].get("nodes", ()):
        node: Node = node_from_manifest(manifest)
        engine.ledger.write_node(node, world.inventories.get(node.metadata.name))
    for found in world.surroundings:
        engine.observe(found)
    for manifest in case["cluster"].get("pods", ()):
        engine.ledger.see(pod_from_manifest(_as_stored(manifest, world)))
    for number, (node_name, other) in enumerate(world.reserved):
        given: dict[str, dict[str, Any]] = {world.concern.name: {"zones": {}}}
        engine.ledger.assume(
            f"reserved-{number}",
            node=node_name,
            usages=engine.ledger.usages_of(other, given),
            namespace=other.metadata.namespace,
            name=other.metadata.name,
            owner=None,
            now_s=0.0,
        )
    policy = policies.choose({}, {})
    return engine, engine.read_request(pod, policy.spec, is_strict=False)


def _as_stored(manifest: Mapping[str, Any], world: CaseWorld) -> Mapping[str, Any]:
    """Return a pod with what every stored one has, a uid, and with what it was given by us."""
    metadata = manifest["metadata"]
    key = (metadata.get("namespace", ""), metadata["name"])
    metadata = {"uid": "/".join(key), **metadata}
    if key in world.allocated:
        allocation = Allocation(
            version=1,
            id=metadata["uid"],
            node=manifest["spec"]["nodeName"],
            mode=str(Mode.REQUIRED),
            allocated={world.concern.name: dict(world.allocated[key])},
        )
        annotations = metadata.get("annotations") or {}
        annotations = {**annotations, names.ALLOCATION: write_allocation(allocation)}
        metadata = {**metadata, "annotations": annotations}
    return {**manifest, "metadata": metadata}


def _other_objects(expect: Mapping[str, Any], made: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    def ordered(objects: Iterable[Mapping[str, Any]]) -> list[str]:
        return sorted(json.dumps(it, sort_keys=True) for it in objects)

    if "resources" in expect and ordered(expect["resources"]) != ordered(made):
        yield f"resources: expected {ordered(expect['resources'])}, actual {ordered(made)}"


def _differences(expect: Mapping[str, Any], verdicts: Mapping[str, Verdict]) -> Iterator[str]:
    for node, feasible in expect.get("feasible", {}).items():
        actual = verdicts[node].reason is None
        if actual != feasible:
            reason = verdicts[node].reason
            why = f" ({reason.text})" if reason is not None else ""
            yield f"feasible[{node}]: expected {feasible}, actual {actual}{why}"
    for node, words in expect.get("reasons", {}).items():
        reason = verdicts[node].reason
        text = reason.text if reason is not None else ""
        if words not in text:
            yield f'reasons[{node}]: expected "{words}", actual "{text}"'
    for node, score in expect.get("scores", {}).items():
        found = verdicts[node].score
        if found != score:
            yield f"scores[{node}]: expected {score}, actual {found:g}"
    if "best" in expect:
        fitting = [verdict for verdict in verdicts.values() if verdict.reason is None]
        top = max((verdict.score for verdict in fitting), default=None)
        best = sorted(verdict.node for verdict in fitting if verdict.score == top)
        named = expect["best"]
        wanted = sorted(named) if isinstance(named, list) else [named] if named else []
        if wanted != best and not (isinstance(named, str) and named in best):
            yield f"best: expected {', '.join(wanted) or None}, actual {', '.join(best) or None}"


def read_cases(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield each case of a file, or of all JSON files of a folder, with a name for it."""
    files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
    for file in files:
        cases = json.loads(file.read_text(encoding="utf-8"))
        for index, case in enumerate(cases):
            name = case.get("name", "?") if isinstance(case, dict) else "?"
            yield f"{file.name}[{index}] {name}", case


def judge(case: Any) -> list[str]:
    """Return what is wrong with one case; a case that cannot be run is wrong as a whole."""
    try:
        return run_case(case)
    # Whatever a case does to us is a failure of this case, and the others still run.
    except Exception as error:  # noqa: BLE001
        return [f"{type(error).__name__}: {error}"]


def main(arguments: list[str] | None = None) -> int:
    """Run the cases of the files and folders named; return 1 if any failed."""
    paths = [Path(argument) for argument in (sys.argv[1:] if arguments is None else arguments)]
    missing = [str(path) for path in paths if not path.exists()]
    if missing or not paths:
        print(f"no such file or folder: {', '.join(missing) or '(none named)'}", file=sys.stderr)
        return 2
    passed = failed = 0
    for path in paths:
        for name, case in read_cases(path):
            differences = judge(case)
            passed += not differences
            failed += bool(differences)
            for difference in differences:
                print(f"FAILED {name}: {difference}")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0
