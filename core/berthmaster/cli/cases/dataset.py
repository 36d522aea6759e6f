"""Decision cases of datasets: Datashim's objects to inventories; its label webhook; merged affinity."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from berthmaster.api.datasets import (
    Dataset,
    DatasetInternal,
    dataset_from_manifest,
    internal_from_manifest,
)
from berthmaster.api.inventory import NodeInventory, NodeInventoryStatus
from berthmaster.api.policy import ConcernSettings
from berthmaster.api.settings.dataset import DatasetSettings
from berthmaster.cli.cases.worlds import Case, CaseWorld, UnknownKeyError, as_read, check_keys
from berthmaster.concerns import resources
from berthmaster.concerns.dataset import CONCERN
from berthmaster.concerns.dataset.inventory import NodeIndex, choose, here, locate
from berthmaster.concerns.dataset.mounting import mount
from berthmaster.placement.injecting import add, inject, own_keys

_OTHER_FILTERS = {"NodeResourcesFit": resources.CONCERN}
_CONFIG_KEYS = {"plugin", "weights", "tiers", "otherFilters"}
_MUTATOR_KEYS = {"plugin", "operation"}
_INJECTION_KEYS = {"plugin", "inject", "localityKeys"}
_INJECT_KEYS = {"required", "preferred"}
_ADMISSION_KEYS = {"allowed", "code", "message"}
# The weights of upstream's score are constants; a case with others tests another program.
_UPSTREAM_WEIGHTS = {"cacheAffinity": 2, "neighbour": 1, "balancedResource": 1}


def load(case: Case) -> CaseWorld:
    """Return the world of a case."""
    config, cluster = case["config"], case["cluster"]
    check_keys(config, _CONFIG_KEYS, "config")
    beside = config.get("otherFilters") or ()
    check_keys(dict.fromkeys(beside), set(_OTHER_FILTERS), "config.otherFilters")
    if config.get("weights", _UPSTREAM_WEIGHTS) != _UPSTREAM_WEIGHTS:
        raise UnknownKeyError(f"config.weights: expected {_UPSTREAM_WEIGHTS}")
    settings = DatasetSettings.model_validate({"tiers": config.get("tiers") or {}})
    return CaseWorld(
        concern=CONCERN,
        settings=ConcernSettings(dataset=settings),
        inventories=build_inventories(cluster["resources"], cluster.get("nodes") or ()),
        beside=[_OTHER_FILTERS[it] for it in beside],
        scores_alone=True,
    )


def build_inventories(
    resources: Iterable[Mapping[str, Any]], nodes: Iterable[Mapping[str, Any]]
) -> dict[str, NodeInventory]:
    """Return an inventory for each node, as the operator would write it."""
    datasets, internals = _read(resources)
    labels = {it["metadata"]["name"]: it["metadata"].get("labels") or {} for it in nodes}
    index = NodeIndex(labels)
    located = {}
    for key in datasets.keys() | {it.key for it in internals.values()}:
        dataset = choose(datasets.get(key, ()))
        internal = internals.get((dataset.group, key)) if dataset is not None else None
        located[key] = locate(dataset, internal, index)
    inventories = {}
    for name in labels:
        status = NodeInventoryStatus(datasets=here(name, located))
        inventories[name] = as_read(name, status)
    return inventories


def judge_mounting(case: Case, expect: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the label webhook does differently from what a case expects."""
    check_keys(case["config"], _MUTATOR_KEYS, "config")
    check_keys(expect, {"admission", "patch"}, "expect")
    check_keys(expect.get("admission") or {}, _ADMISSION_KEYS, "expect.admission")
    datasets, _ = _read(case["cluster"]["resources"])
    pod = case["pod"]
    namespace = pod["metadata"].get("namespace", "")

    def find(name: str) -> Dataset | None:
        return choose(datasets.get(f"{namespace}/{name}", ()))

    found = mount(pod, namespace, find, operation=case["config"]["operation"])
    admission = expect.get("admission", {})
    if "allowed" in admission and admission["allowed"] != found.is_allowed:
        yield f"allowed: expected {admission['allowed']}, actual {found.is_allowed}"
    if "code" in admission and admission["code"] != found.code:
        yield f"code: expected {admission['code']}, actual {found.code}"
    if admission.get("message", "") not in found.message:
        yield f'message: expected "{admission["message"]}", actual "{found.message}"'
    if "patch" in expect:
        wanted, actual = (add(pod, it) for it in (expect["patch"], found.operations))
        if wanted != actual:
            yield f"patch: expected {json.dumps(expect['patch'])}, actual {found.operations}"


def judge_injection(case: Case, expect: Mapping[str, Any]) -> Iterator[str]:
    """Yield where the merged node affinity differs from what a case expects."""
    check_keys(case["config"], _INJECTION_KEYS, "config")
    check_keys(case["config"].get("inject") or {}, _INJECT_KEYS, "config.inject")
    check_keys(expect, {"nodeAffinity"}, "expect")
    config, pod = case["config"], case["pod"]
    operations = []
    # The cases go by Fluid's rule: a pod that uses any of the keys itself is left alone as a whole.
    if not own_keys(pod) & set(config.get("localityKeys") or ()):
        terms = config.get("inject") or {}
        operations = inject(
            pod, required=terms.get("required") or (), preferred=terms.get("preferred") or ()
        )
    after = add(pod, operations)
    actual = (after["spec"].get("affinity") or {}).get("nodeAffinity")
    if _in_order(actual) != _in_order(expect["nodeAffinity"]):
        wanted = json.dumps(expect["nodeAffinity"])
        yield f"nodeAffinity: expected {wanted}, actual {json.dumps(actual)}"


def _read(
    resources: Iterable[Mapping[str, Any]],
) -> tuple[dict[str, list[Dataset]], dict[tuple[str, str], DatasetInternal]]:
    datasets: dict[str, list[Dataset]] = defaultdict(list)
    internals = {}
    for resource in resources:
        if resource["kind"] == "Dataset":
            dataset = dataset_from_manifest(resource)
            datasets[dataset.key].append(dataset)
        elif resource["kind"] == "DatasetInternal":
            internal = internal_from_manifest(resource)
            internals[internal.group, internal.key] = internal
        else:
            raise ValueError(f"cluster.resources: unknown kind {resource['kind']}")
    return datasets, internals


def _in_order(value: Any) -> Any:
    """Return node affinity with the expressions of each term in one order, which means nothing."""
    if isinstance(value, list):
        return [_in_order(it) for it in value]
    if not isinstance(value, dict):
        return value
    return {
        key: sorted(it, key=json.dumps)
        if key in ("matchExpressions", "matchFields")
        else _in_order(it)
        for key, it in value.items()
    }
