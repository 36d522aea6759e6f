"""Decision cases: worlds with the decision that is expected of them, run through the public path.

    vendors' objects -> inventory -> columns -> decision

`python -m berthmaster.cli.cases FILE|FOLDER ...` runs every case of every file, prints each failure
with expected and actual, and a closing line with the counts. A key that is not understood makes its
case fail, so that nothing is skipped silently.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from berthmaster.api import names
from berthmaster.api.allocation import Allocation, write_allocation
from berthmaster.api.inventory import NodeInventory
from berthmaster.api.objects import (
    Node,
    Pod,
    node_from_manifest,
    pod_from_manifest,
    replica_set_from_manifest,
)
from berthmaster.api.policy import (
    ConcernSettings,
    DatasetSettings,
    DiskIOSettings,
    Mode,
    PlacementPolicy,
    PlacementPolicySpec,
    PodSpreadSettings,
    PolicySet,
)
from berthmaster.cli import case_dataset, case_diskio, case_numa, case_power, case_xpu
from berthmaster.concerns import dataset, diskio, numa, podspread, power, resources, xpu
from berthmaster.concerns.shape import AnyConcern, Surrounding
from berthmaster.placement.engine import Engine, Verdict
from berthmaster.placement.shapes import PodRequest

_KEYS = {
    *("name", "source", "why", "derived", "config", "cluster", "metrics", "pod", "expect"),
    *("behaviour", "quirk", "trace", "defect", "expectFixed"),
}
_CLUSTER_KEYS = {"nodes", "resources", "pods"}
_EXPECT_KEYS = {"feasible", "reasons", "scores", "best", "resources", "devices", "annotations"}

Case = Mapping[str, Any]


class UnknownKeyError(ValueError):
    """A case says something that this loader does not understand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseWorld:
    """What a concern's loader makes of a case: its concern, settings and inventories.

    `reserved` are pods that were promised to nodes and have not been seen yet, `allocated` what pods that
    are there were given, by namespace and name. `surroundings` are what wide concerns are told of, and
    `made` the objects that are derived from others. `beside` are further concerns
    that filter. `scores_alone`: scores are those of `concern`, 0 where the pod asks nothing of it.
    """

    concern: AnyConcern
    settings: ConcernSettings
    inventories: Mapping[str, NodeInventory]
    reserved: Sequence[tuple[str, Pod]] = ()
    allocated: Mapping[tuple[str, str], Mapping[str, Any]] = field(default_factory=dict)
    surroundings: Sequence[Surrounding] = ()
    made: Sequence[Mapping[str, Any]] = ()
    beside: Sequence[AnyConcern] = ()
    scores_alone: bool = False


def _load_diskio(case: Case) -> CaseWorld:
    config, cluster = case["config"], case["cluster"]
    _check_no_metrics(case)
    check_keys(config, {"plugin", "scoreStrategy", "nsWhiteList", "normalizers"}, "config")
    settings = DiskIOSettings.model_validate(
        {
            "strategy": config.get("scoreStrategy", "LeastAllocated"),
            "nsWhiteList": config.get("nsWhiteList") or (),
        }
    )
    return CaseWorld(
        concern=diskio.CONCERN,
        settings=ConcernSettings(diskio=settings),
        inventories=case_diskio.build_inventories(
            cluster["resources"], config.get("normalizers") or {}
        ),
    )


def _load_numa(case: Case) -> CaseWorld:
    config, cluster = case["config"], case["cluster"]
    _check_no_metrics(case)
    check_keys(config, case_numa.CONFIG_KEYS, "config")
    check_keys(config.get("cacheState") or {}, case_numa.STATE_KEYS, "config.cacheState")
    world = case_numa.build_world(config, cluster)
    return CaseWorld(
        concern=numa.CONCERN,
        settings=ConcernSettings(numa=world.settings),
        inventories=world.inventories,
        reserved=world.reserved,
    )


def _load_power(case: Case) -> CaseWorld:
    check_keys(case["config"], case_power.CONFIG_KEYS, "config")
    check_keys(case.get("metrics") or {}, case_power.METRICS_KEYS, "metrics")
    world = case_power.build_world(case)
    return CaseWorld(
        concern=power.CONCERN,
        settings=ConcernSettings(power=world.settings),
        inventories=world.inventories,
        allocated=world.allocated,
        made=world.made,
    )


def _load_dataset(case: Case) -> CaseWorld:
    config, cluster = case["config"], case["cluster"]
    check_keys(config, case_dataset.CONFIG_KEYS, "config")
    others = {"NodeResourcesFit": resources.CONCERN}
    check_keys({it: None for it in config.get("otherFilters") or ()}, set(others), "otherFilters")
    if config.get("weights", case_dataset.UPSTREAM_WEIGHTS) != case_dataset.UPSTREAM_WEIGHTS:
        raise UnknownKeyError(f"config.weights: expected {case_dataset.UPSTREAM_WEIGHTS}")
    settings = DatasetSettings.model_validate({"tiers": config.get("tiers") or {}})
    return CaseWorld(
        concern=dataset.CONCERN,
        settings=ConcernSettings(dataset=settings),
        inventories=case_dataset.build_inventories(
            cluster["resources"], cluster.get("nodes") or ()
        ),
        beside=[others[it] for it in config.get("otherFilters") or ()],
        scores_alone=True,
    )


def _load_podspread(case: Case) -> CaseWorld:
    check_keys(case["config"], {"plugin", "generation", "annotation"}, "config")
    _check_no_metrics(case)
    if case["config"]["annotation"] not in names.SPREAD_RATES:
        raise UnknownKeyError(f"config.annotation: {case['config']['annotation']}")
    unknown = {it["kind"] for it in case["cluster"]["resources"]} - {"ReplicaSet"}
    if unknown:
        raise UnknownKeyError(f"cluster.resources: unknown kind {', '.join(unknown)}")
    settings = PodSpreadSettings(strict_upstream="quirk" in case)
    finished = [
        pod_from_manifest({**it, "metadata": {"uid": it["metadata"]["name"], **it["metadata"]}})
        for it in case["cluster"].get("pods", ())
    ]
    return CaseWorld(
        concern=podspread.CONCERN,
        settings=ConcernSettings(podspread=settings),
        inventories={},
        surroundings=[
            *map(replica_set_from_manifest, case["cluster"]["resources"]),
            *(pod for pod in finished if pod.is_finished),
        ],
    )


def _load_xpu(case: Case) -> CaseWorld:
    _check_no_metrics(case)
    check_keys(case["config"], case_xpu.CONFIG_KEYS, "config")
    settings = case_xpu.read_settings(case["config"])
    return CaseWorld(
        concern=xpu.CONCERN,
        settings=ConcernSettings(xpu=settings),
        inventories=case_xpu.build_inventories(case["cluster"], settings.names_in_force),
    )


LOADERS: Mapping[str, Callable[[Case], CaseWorld]] = {
    "DiskIO": _load_diskio,
    "NodeResourceTopologyMatch": _load_numa,
    "PodSpread": _load_podspread,
    **dict.fromkeys(case_power.PLUGINS, _load_power),
    "CacheAwarePlugin": _load_dataset,
    **dict.fromkeys(names.XPU_DIALECTS, _load_xpu),
}


def _judge_mounting(case: Case, expect: Mapping[str, Any]) -> Iterator[str]:
    check_keys(case["config"], case_dataset.MUTATOR_KEYS, "config")
    check_keys(expect, {"admission", "patch"}, "expect")
    check_keys(expect.get("admission") or {}, case_dataset.ADMISSION_KEYS, "expect.admission")
    return case_dataset.judge_mounting(case, expect)


def _judge_injection(case: Case, expect: Mapping[str, Any]) -> Iterator[str]:
    check_keys(case["config"], case_dataset.INJECTION_KEYS, "config")
    check_keys(case["config"].get("inject") or {}, case_dataset.INJECT_KEYS, "config.inject")
    check_keys(expect, {"nodeAffinity"}, "expect")
    return case_dataset.judge_injection(case, expect)


# What changes a pod and chooses no node.
_CHANGES: Mapping[str, Callable[[Case, Mapping[str, Any]], Iterator[str]]] = {
    "DatasetPodMutator": _judge_mounting,
    "AffinityInjection": _judge_injection,
}


def _check_no_metrics(case: Case) -> None:
    if case.get("metrics"):
        raise UnknownKeyError("metrics: none are understood for this plugin")


def check_keys(found: Mapping[str, Any], known: set[str], at: str) -> None:
    """Raise `UnknownKeyError` if a mapping has keys beyond the known ones."""
    unknown = sorted(set(found) - known)
    if unknown:
        raise UnknownKeyError(f"{at}: unknown key(s) {', '.join(unknown)}")


def run_case(case: Mapping[str, Any]) -> list[str]:
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
    if world.concern is xpu.CONCERN:
        fitting = {name: it.score for name, it in verdicts.items() if it.reason is None}
        differences += case_xpu.find_differences(expect, engine, request, pod, fitting)
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


if __name__ == "__main__":
    sys.exit(main())
