"""Our decisions about random worlds with datasets against those of upstream's programs.

Each world is a decision case, as `make cases` runs them. What upstream decides is computed by
`support.dataset_upstream`. Where a world may show one of the plugin's known faults, what must come out is what
the rules of `support.dataset_reference` say; everywhere else both must say the same.

    python -m pytest tests/differential/test_datasets.py
    DIFFERENTIAL_WORLDS=100000 python -m pytest tests/differential/test_datasets.py      for some minutes
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from copy import deepcopy
from typing import Any

import pytest

from berthmaster.cli.cases.judging import judge
from support.dataset_reference import HOST, NEW, OLD, REGION, ZONE, Rules, expect
from support.dataset_upstream import REFUSAL, Verdict, decide, faults, merged, mounted

pytestmark = pytest.mark.timeout(3600)

Manifest = dict[str, Any]
WORLDS = int(os.environ.get("DIFFERENTIAL_WORLDS", "500"))
NAMES = ("train-data", "labels", "weights-v2", "unrelated", "ghost")
NAMESPACES = ("ml", "default")


class World:
    """One random case of the cache-aware plugin; `is_plain` if no fault should decide it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311 - for a test
        self.is_plain = seed % 3 == 0
        self.nodes = [self._node(number) for number in range(self.random.randint(1, 6))]
        self.namespace = self.random.choice(NAMESPACES)
        # Datasets of one world that share their placements are judged alike by either rule.
        self.shared = self._placements() if self.is_plain else None
        self.resources = [it for name in NAMES[:-1] for it in self._dataset(name)]
        self.random.shuffle(self.resources)

    @property
    def names(self) -> list[str]:
        return [it["metadata"]["name"] for it in self.nodes]

    @property
    def case(self) -> Manifest:
        region = 25 if self.is_odd(0.3) else 0
        pod = {
            "metadata": {"name": "train", "namespace": self.namespace, "labels": self._labels()},
            "spec": {"containers": [{"name": "main", "image": "busybox"}]},
        }
        return {
            "name": "random",
            "config": {
                "plugin": "CacheAwarePlugin",
                "tiers": {"node": 100, "zone": 50, "region": region},
            },
            "cluster": {"nodes": self.nodes, "resources": self.resources, "pods": []},
            "pod": pod,
        }

    def is_odd(self, chance: float) -> bool:
        return not self.is_plain and self.random.random() < chance

    def _node(self, number: int) -> Manifest:
        name = f"node-{number}"
        labels = {HOST: name}
        if self.is_odd(0.05):
            labels[HOST] = self.random.choice(("host-0", f"host-{number}", "node-1"))
        if self.is_odd(0.03):
            del labels[HOST]
        for key, values in ((ZONE, ("z1", "z2")), (REGION, ("r1", "r2"))):
            if self.random.random() < 0.8:
                labels[key] = self.random.choice(values)
        return {"metadata": {"name": name, "labels": labels}}

    def _labels(self) -> dict[str, str]:
        labels = {"app": "train"} if self.random.random() < 0.5 else {}
        for number in self.random.sample((0, 1, 2, 9, 10), self.random.randint(1, 3)):
            labels[f"dataset.{number}.id"] = self.random.choice((*NAMES[:3] * 3, "ghost"))
            if self.random.random() < 0.5:
                labels[f"dataset.{number}.useas"] = self.random.choice(("mount", "configmap"))
        if self.is_odd(0.1):
            labels = {"example.test/dataset-provider-id": "labels", "datasets.validated": "no"}
        if self.is_odd(0.1):
            labels["dataset.0.id.old"] = "labels"
        if self.is_odd(0.03):
            labels = {"app": "dataset"}
        return labels

    def _dataset(self, name: str) -> list[Manifest]:
        group = NEW if self.is_odd(0.1) else OLD
        namespace = self.namespace if self.random.random() < 0.95 else "other"
        metadata = {"name": name, "namespace": namespace}
        caching = self.random.choice((*("OK", "Pending") * 12, "ok", "Failed", "Initializing", ""))
        provision = "OK"
        if self.is_odd(0.05):
            caching = "Disabled"
        if self.is_odd(0.05):
            provision = self.random.choice(("Pending", "Failed", ""))
        status = {"caching": {"status": caching}, "provision": {"status": provision}}
        dataset = {"kind": "Dataset", "apiVersion": group, "metadata": metadata, "status": status}
        placements = self.shared if self.shared is not None else self._placements()
        internal = {
            "kind": "DatasetInternal",
            "apiVersion": OLD if self.is_odd(0.05) else group,
            "metadata": metadata,
            "status": {"caching": {"placements": placements}},
        }
        found = [it for it in (dataset, internal) if self.random.random() < 0.95]
        if self.is_odd(0.1):
            found.append({**deepcopy(dataset), "apiVersion": NEW if group == OLD else OLD})
        return found

    def _placements(self) -> Manifest:
        placements = {}
        if self.random.random() < 0.5:
            count = 1 if self.is_plain else self.random.randint(0, 2)
            gateway = [{"key": HOST, "value": self.random.choice(self.names)}] * count
            if self.is_odd(0.3):
                gateway = [self._entry() for _ in range(count)]
            repeated = self.random.choice((1, 1, 2))
            placements["gateways"] = [*gateway * repeated, *self._gone()]
        if self.random.random() < 0.6:
            chosen = [{"key": HOST, "value": it} for it in self.names if self.random.random() < 0.5]
            if self.is_odd(0.2):
                chosen = [self._entry() for _ in range(self.random.randint(1, 3))]
            placements["datalocations"] = [*chosen, *chosen[:1], *self._gone()]
        return placements

    def _gone(self) -> list[Manifest]:
        gone = [{"key": HOST, "value": "gone"}, {"key": HOST, "value": ""}]
        return [it for it in gone if self.random.random() < 0.1]

    def _entry(self) -> Manifest:
        values = (*self.names, "host-0", "host-1", "gone", "")
        return self.random.choice(
            (
                {"key": HOST, "value": self.random.choice(values)},
                {"key": ZONE, "value": self.random.choice(("z1", "z3"))},
                {"key": "rack", "value": "k1"},
                {},
            )
        )


def by_our_rules(case: Manifest) -> dict[str, Verdict]:
    nodes, resources = case["cluster"]["nodes"], case["cluster"]["resources"]
    tiers = case["config"]["tiers"]
    found = {}
    for node in nodes:
        it = expect(
            node,
            nodes=nodes,
            resources=resources,
            pod=case["pod"],
            rules=Rules(region=tiers["region"]),
        )
        found[node["metadata"]["name"]] = Verdict(fits=not it.absent, score=it.score)
    return found


def as_expected(verdicts: dict[str, Verdict]) -> Manifest:
    best = max((it.score for it in verdicts.values() if it.fits), default=None)
    return {
        "feasible": {node: it.fits for node, it in verdicts.items()},
        "reasons": {node: REFUSAL for node, it in verdicts.items() if not it.fits},
        "scores": {node: it.score for node, it in verdicts.items() if it.fits},
        "best": [node for node, it in verdicts.items() if it.fits and it.score == best],
    }


def test_placement_is_upstreams_but_for_its_faults() -> None:
    seen: Counter[str] = Counter()
    differences = []
    for seed in range(WORLDS):
        case = World(seed).case
        shown = faults(case)
        ours, theirs = by_our_rules(case), decide(case)
        seen.update(shown or ("plain",))
        seen["refused"] += not shown and not all(it.fits for it in theirs.values())
        seen["scored"] += not shown and any(it.score for it in theirs.values())
        judged = {node: it if it.fits else it.fits for node, it in ours.items()}
        if not shown and judged != {
            node: it if it.fits else it.fits for node, it in theirs.items()
        }:
            differences.append(
                f"seed {seed}: rules {ours}, upstream {theirs}\n  {json.dumps(case)}"
            )
        case["expect"] = as_expected(ours)
        differences += [f"seed {seed}: {it}\n  {json.dumps(case)}" for it in judge(case)]
    assert not differences, "\n".join(differences[:20])
    # Worlds in which nothing happens, or only faults do, would prove little.
    assert min(seen[it] for it in ("plain", "refused", "scored")) > WORLDS / 20, seen
    assert len(seen) == 14, seen


USES = ("mount", "configmap", "mount.configmap", "configmap.mount", "mount.mount.configmap", None)


class MountingWorld:
    """One random pod that uses datasets, of which some may be there already."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311 - for a test
        self.read_only = {it: self.random.random() < 0.3 for it in NAMES}
        labels = {"app": "x", "dataset.example.com/name": "y", "mydataset.0.id": "z"}
        for number in self.random.sample((0, 1, 2, 9, 10, 11), self.random.randint(0, 4)):
            free = [it for it in NAMES if it not in labels.values()]
            labels[f"dataset.{number}.id"] = self.random.choice(free)
            use = self.random.choice(USES)
            if use is not None:
                labels[f"dataset.{number}.useas"] = use
        spec: Manifest = {
            "containers": [self._container() for _ in range(self.random.randint(1, 3))]
        }
        if self.random.random() < 0.5:
            spec["initContainers"] = [self._container() for _ in range(self.random.randint(0, 2))]
        if self.random.random() < 0.8:
            spec["volumes"] = self._volumes()
        self.pod = {
            "metadata": {"name": "p", "namespace": "ml", "labels": labels},
            "spec": spec,
        }

    @property
    def case(self) -> Manifest:
        resources = []
        for name, read_only in self.read_only.items():
            local = {"type": "COS", "readonly": "true" if read_only else "True"}
            metadata = {"name": name, "namespace": "ml"}
            group = self.random.choice((NEW, OLD))
            resources.append(
                {
                    "kind": "Dataset",
                    "apiVersion": group,
                    "metadata": metadata,
                    "spec": {"local": local},
                }
            )
        return {
            "name": "random",
            "config": {"plugin": "DatasetPodMutator", "operation": "CREATE"},
            "cluster": {"nodes": [], "resources": resources, "pods": []},
            "pod": self.pod,
        }

    def _volumes(self) -> list[Manifest]:
        found: list[Manifest] = [{"name": "scratch", "emptyDir": {}}]
        for name in NAMES:
            if self.random.random() < 0.15:
                own = self.random.choice((name, f"my-{name}"))
                found.append({"name": own, "persistentVolumeClaim": {"claimName": name}})
        return found[self.random.randint(0, 1) :]

    def _container(self) -> Manifest:
        container: Manifest = {"name": "c"}
        if self.random.random() < 0.7:
            names = [it for it in ("scratch", *NAMES) if self.random.random() < 0.2]
            container["volumeMounts"] = [{"name": it, "mountPath": f"/own/{it}"} for it in names]
        if self.random.random() < 0.5:
            container["envFrom"] = [
                {self.random.choice(("configMapRef", "secretRef")): {"name": it}}
                for it in ("other", *NAMES)
                if self.random.random() < 0.15
            ]
        return container


def test_mounting_is_upstreams_but_for_its_faults() -> None:
    differences = []
    for seed in range(WORLDS):
        world = MountingWorld(seed)
        case = world.case
        spec = mounted(world.pod, world.read_only)
        message = (
            "does not need to be mutated" if spec == world.pod["spec"] else "added volumes to Pod"
        )
        case["expect"] = {
            "admission": {"allowed": True, "message": message},
            "patch": [{"op": "add", "path": "/spec", "value": spec}],
        }
        differences += [f"seed {seed}: {it}" for it in judge(case)]
    assert not differences, "\n".join(differences[:20])


def test_affinity_is_joined_as_fluid_does() -> None:
    differences = []
    for seed in range(WORLDS):
        case = injection_case(random.Random(seed))  # noqa: S311 - for a test
        differences += [f"seed {seed}: {it}\n  {json.dumps(case)}" for it in judge(case)]
    assert not differences, "\n".join(differences[:20])


def injection_case(source: random.Random) -> Manifest:
    """Return a case with the terms of a pod and those to inject, all of different keys."""
    numbers = iter(range(100))

    def requirement(part: str) -> Manifest:
        key = f"label-{next(numbers)}" if part == "matchExpressions" else "metadata.name"
        return {"key": key, "operator": "In", "values": [f"v{next(numbers)}"]}

    def term() -> Manifest:
        counts = {
            "matchExpressions": source.choice((0, 1, 1, 2)),
            "matchFields": source.choice((0, 0, 1)),
        }
        return {part: [requirement(part) for _ in range(it)] for part, it in counts.items() if it}

    def required() -> list[Manifest]:
        return [term() for _ in range(source.randint(0, 3))]

    def preferred() -> list[Manifest]:
        return [
            {"weight": source.randint(1, 100), "preference": term()}
            for _ in range(source.randint(0, 2))
        ]

    affinity: Manifest = {}
    if own := required():
        affinity["requiredDuringSchedulingIgnoredDuringExecution"] = {"nodeSelectorTerms": own}
    if own := preferred():
        affinity["preferredDuringSchedulingIgnoredDuringExecution"] = own
    spec: Manifest = {"containers": []}
    if affinity or source.random() < 0.2:
        spec["affinity"] = {"nodeAffinity": affinity} if affinity else {"podAffinity": {}}
    if source.random() < 0.2:
        spec["nodeSelector"] = {source.choice(("zone", "disk")): "x"}
    keys = ["zone", "label-0"] if source.random() < 0.5 else []
    inject = {"required": required(), "preferred": preferred()}
    used = {*spec.get("nodeSelector", ()), *expression_keys(affinity)}
    after = affinity if used & {*keys} else merged(affinity, **inject)
    return {
        "name": "random",
        "config": {"plugin": "AffinityInjection", "inject": inject, "localityKeys": keys},
        "cluster": {"nodes": [], "resources": [], "pods": []},
        "pod": {"metadata": {"name": "p", "namespace": "ml"}, "spec": spec},
        "expect": {"nodeAffinity": after or None},
    }


def expression_keys(value: Any) -> set[str]:
    """Return the keys of all expressions in node affinity."""
    if isinstance(value, list):
        return {key for it in value for key in expression_keys(it)}
    if not isinstance(value, dict):
        return set()
    own = {it["key"] for it in value.get("matchExpressions", ())}
    return own.union(*(expression_keys(it) for it in value.values()))
