"""Our verdict on random worlds with disks against the rules, spelled out over the manifests.

Each world is a decision case, as `make cases` runs them: nodes with and without disks, reports that count and that
lag, models, pods in any spelling. What must come out is computed by `support.diskio_reference`.

    python -m pytest tests/differential/test_diskio.py
    DIFFERENTIAL_WORLDS=100000 python -m pytest tests/differential/test_diskio.py      for some minutes
"""

from __future__ import annotations

import json
import os
import random
import re
from collections import Counter
from typing import Any

import pytest

from berthmaster.cli.cases.judging import judge
from support.diskio_reference import BLOCK_SIZES, KEY, expect

pytestmark = pytest.mark.timeout(3600)

Manifest = dict[str, Any]
WORLDS = int(os.environ.get("DIFFERENTIAL_WORLDS", "500"))
NAMESPACES = ("default", "team-a", "team-b", "kube-system")
ONES = dict.fromkeys(BLOCK_SIZES, 1)
TABLES = (
    {"readRatio": ONES, "writeRatio": ONES},
    {
        "readRatio": dict(zip(BLOCK_SIZES, (15, 10, 6, 4, 2, 1), strict=True)),
        "writeRatio": dict(zip(BLOCK_SIZES, (14, 11, 5, 3, 3, 1), strict=True)),
    },
    {
        "readRatio": dict(zip(BLOCK_SIZES, (4, 3, 2, 1.5, 1.25, 1), strict=True)),
        "writeRatio": dict(zip(BLOCK_SIZES, (8, 6, 4, 2.5, 1.5, 1), strict=True)),
    },
)
MODELS = (("Intel", "P4510"), ("Acme", "X1"), ("Samsung", "PM-1733"), ("vendor-1", "m"))
SIZES = (
    *("100Mi", "200Mi", "400Mi", "500Mi", "750Mi", "1Gi", "1.5Gi", "2G", "536870912", "5Gi"),
    *("10Mi", "20Mi", "0", "1e9", "1.5e8"),
)
REPORTED = (*SIZES, "50Mi", "60Mi", "150Mi", "-5Mi", "5Mi")
RATES = (
    *("0", "4Mi", "10Mi", "20Mi", "25Mi", "40Mi", "50Mi", "80Mi", "100Mi", "200Mi", "1Gi"),
    *("100M", "0.25G", "65536Ki", "52428800", "33333333", "7340033", "1.5Gi", "0.5Mi", "1500m"),
    *("+30Mi", ".5Gi", "5.e6", "3E7", "100u", "1n", "-0", "30000k", "100Ti"),
)
FAULTY_RATES = (
    "",
    "-30Mi",
    "abc",
    "10 Mi",
    "10K",
    "10mi",
    "1e",
    "--1",
    "1Mib",
    "٣Mi",
    "1_000",
    "NaN",
)
FAULTY_SIZES = ("", "4K", "4Ki", "64k", "2k", "512B", " 4k", "4096")
SPELLINGS = {
    "rbps": ("rbps", "rbps", "RBPS", "Rbps"),
    "wbps": ("wbps", "wbps", "WBPS", "wBpS"),
    "blocksize": ("blocksize", "blocksize", "blockSize", "BLOCKSIZE"),
}
ODD_TEXTS = (
    *("[]", "true", "30", '"4k"', "null", "{}", "{", "not json", " ", "[1, 2]", "{}{}", "NaN"),
    '{"rbps": "10Mi", "wbps": "10Mi", "blocksize": "4k",}',
    '{"rbps": "10Mi", "wbps": "10Mi", "blocksize": "4k"} x',
    ' \n{"rbps": "10Mi", "wbps": "10Mi", "blocksize": "4k"}\t ',
    '{"rbps": NaN, "wbps": "10Mi", "blocksize": "4k"}',
    '{"rbps": "10Mi", "wbps": "10Mi", "blocksize": "4k", "x": Infinity}',
    "{'rbps': '10Mi', 'wbps': '10Mi', 'blocksize': '4k'}",
)


class World:
    """One random decision case."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311 - for a test
        pick = self.random.choice
        self.nodes = [f"node{number}" for number in range(self.random.randint(1, 5))]
        white = pick(((), ("kube-system",), ("kube-system", "team-b")))
        self.config = {
            "plugin": "DiskIO",
            "scoreStrategy": pick(("LeastAllocated", "MostAllocated")),
            "nsWhiteList": list(white),
            "normalizers": {
                f"{vendor}-{model}": pick(TABLES)
                for vendor, model in MODELS
                if self.random.random() < 0.8
            },
        }
        self.pods = [self._placed(number) for number in range(self.random.randint(0, 6))]
        self.resources: list[Manifest] = []
        for node in (*self.nodes, "gone"):
            if self.random.random() < 0.85:
                self.resources.append(self._disks(node))
            if self.random.random() < 0.5:
                self.resources.append(self._report(node))
        self.random.shuffle(self.resources)

    @property
    def case(self) -> Manifest:
        pod = {"metadata": self._metadata("asked"), "spec": {"containers": []}}
        return {
            "name": "random",
            "config": self.config,
            "cluster": {
                "nodes": [{"metadata": {"name": it}} for it in self.nodes],
                "resources": self.resources,
                "pods": self.pods,
            },
            "metrics": {},
            "pod": pod,
        }

    def _metadata(self, name: str) -> Manifest:
        metadata: Manifest = {
            "name": name,
            "namespace": self.random.choice(NAMESPACES),
            "uid": f"uid-{name}",
        }
        chance = self.random.random()
        if chance < 0.6:
            metadata["annotations"] = {KEY: self._asked()}
        elif chance < 0.7:
            metadata["annotations"] = {KEY: ""}
        elif chance < 0.75:
            metadata["annotations"] = {"blockio.kubernetes.io/throughput": self._asked()}
        return metadata

    def _asked(self) -> str:
        if self.random.random() < 0.1:
            return self.random.choice(ODD_TEXTS)
        pairs: list[tuple[str, Any]] = []
        for key, spellings in SPELLINGS.items():
            if self.random.random() < 0.98:
                pairs.append((self.random.choice(spellings), self._value(key)))
            while self.random.random() < 0.05:
                pairs.append((self.random.choice(spellings), self._value(key)))
        if self.random.random() < 0.2:
            pairs.append(("iops", self.random.choice((None, 5, "x", {"rbps": 3}, [1.5]))))
        self.random.shuffle(pairs)
        # Keys may stand twice, which no dictionary can say.
        return "{" + ", ".join(f"{json.dumps(key)}: {json.dumps(it)}" for key, it in pairs) + "}"

    def _value(self, key: str) -> Any:
        chance = self.random.random()
        if chance < 0.01:
            return self.random.choice((30, None, True, [], {}))
        faulty = chance < 0.04
        if key == "blocksize":
            return self.random.choice(FAULTY_SIZES if faulty else BLOCK_SIZES)
        return self.random.choice(FAULTY_RATES if faulty else RATES)

    def _placed(self, number: int) -> Manifest:
        metadata = self._metadata(f"placed-{number}")
        spec: Manifest = {"containers": []}
        if self.random.random() < 0.95:
            spec["nodeName"] = self.random.choice([*self.nodes, "gone"])
        phase = self.random.choice(("Running",) * 8 + ("Pending", "Succeeded", "Failed"))
        return {"metadata": metadata, "spec": spec, "status": {"phase": phase}}

    def _disks(self, node: str) -> Manifest:
        devices = {}
        count = self.random.choice((0, *(1,) * 8, 2, 2, 3))
        for id_ in self.random.sample(("sda", "nvme0n1", "INT_1", "data"), count):
            vendor, model = self.random.choice(MODELS)
            type_ = self.random.choice(("emptyDir",) * 6 + ("others", "", "EmptyDir"))
            device = {
                "vendor": vendor,
                "model": model,
                "type": type_,
                "capacity": self._amounts(SIZES),
            }
            # Only the name has to be there.
            kept = {key: it for key, it in device.items() if self.random.random() < 0.98}
            devices[id_] = {"name": id_, **kept}
        name = self.random.choice((node, f"disks-of-{node}"))
        return {
            "apiVersion": "diskio.x-k8s.io/v1alpha1",
            "kind": "NodeDiskDevice",
            "metadata": {"name": f"{name}-nodediskdevice", "namespace": "ioi-system"},
            "spec": {"nodeName": node, **({"devices": devices} if devices else {})},
        }

    def _report(self, node: str) -> Manifest:
        generation = self.random.randint(1, 3)
        status: Manifest = {}
        if self.random.random() < 0.85:
            ids = self.random.sample(("sda", "nvme0n1", "INT_1", "data"), self.random.randint(1, 4))
            status["allocableBandwidth"] = {it: self._amounts(REPORTED) for it in ids}
        if self.random.random() < 0.9:
            status["observedGeneration"] = generation + self.random.choice((0, 0, 0, -1, 1))
        uids = [
            it["metadata"]["uid"]
            for it in self.pods
            if it["spec"].get("nodeName") == node
            and it["status"]["phase"] not in ("Succeeded", "Failed")
            and it["metadata"]["namespace"] not in self.config["nsWhiteList"]
        ]
        report = {
            "apiVersion": "diskio.x-k8s.io/v1alpha1",
            "kind": "NodeDiskIOStats",
            "metadata": {
                "name": f"{node}-nodediskiostats",
                "namespace": "ioi-system",
                "generation": generation,
            },
            "spec": {"nodeName": node, "reservedPods": uids},
        }
        return {**report, "status": status} if status else report

    def _amounts(self, texts: tuple[str, ...]) -> dict[str, str]:
        return {
            it: self.random.choice(texts)
            for it in ("read", "write", "total")
            if self.random.random() < 0.97
        }


def test_every_verdict_follows_the_rules() -> None:
    seen: Counter[str] = Counter()
    differences = []
    for seed in range(WORLDS):
        world = World(seed)
        case = world.case
        expected = {node: expect(case, node) for node in world.nodes}
        for it in expected.values():
            said = re.sub(r"node\d+ |normalizer \S+ ", "", it.reason)
            seen["fits" if it.fits else said or "open"] += 1
        case["expect"] = {
            "feasible": {node: it.fits for node, it in expected.items()},
            "reasons": {node: it.reason for node, it in expected.items() if it.reason},
            "scores": {node: it.score for node, it in expected.items() if it.fits},
        }
        differences += [f"seed {seed}: {it}\n  {json.dumps(case)}" for it in judge(case)]
    assert not differences, "\n".join(differences[:20])
    # Worlds in which a reason is never given would prove little about it.
    assert len(seen) == 9, seen
    assert min(seen.values()) >= WORLDS / 100, seen
