"""What the owner of a pod hears of its kubelet's aligning, and who hears nothing."""

from __future__ import annotations

from typing import Any

import pytest

from berthmaster.api.objects import pod_from_manifest
from berthmaster.concerns.numa.advising import advise
from support.builders import make_pod_manifest

GPU = "vendor.com/gpu"
FULL = {"cpu": "4", "memory": "1Gi"}


def container(name: str = "c", requests: Any = None, **limits: str) -> dict[str, Any]:
    wanted = {key.replace("gpu", GPU): value for key, value in limits.items()}
    return {"name": name, "resources": {"limits": wanted, "requests": requests or {}}}


def advice(*containers: dict[str, Any], numa: str = "", **spec: Any) -> tuple[str, ...]:
    annotations = {"berthmaster.io/numa": numa} if numa else {}
    manifest = make_pod_manifest(containers=list(containers), annotations=annotations, **spec)
    return advise(pod_from_manifest(manifest))


@pytest.mark.parametrize(
    ("containers", "fields", "words"),
    [
        (
            [container("worker", cpu="4", gpu="1")],
            {},
            f"{GPU} and CPUs will not be aligned: container worker lacks a limit of memory",
        ),
        (
            [container(requests={"cpu": "2"}, gpu="1", **FULL)],
            {},
            f"{GPU} and CPUs will not be aligned: container c requests less cpu than its limit",
        ),
        (
            [container(gpu="1")],
            {},
            f"{GPU} and CPUs will not be aligned: container c lacks a limit of cpu and memory",
        ),
        (
            [container(gpu="1", **FULL)],
            {"resources": {"limits": FULL}},
            f"{GPU} and CPUs will not be aligned: the pod has resources of its own (spec.resources)",
        ),
        (
            [container("a", **FULL), container("b", cpu="1"), container("c")],
            {},
            "CPUs and memory will not be aligned: container b lacks a limit of memory (and 1 more)",
        ),
        (
            [container(cpu="2", requests={"cpu": "2"})],
            {},
            "CPUs and memory will not be aligned: container c lacks a limit of memory",
        ),
        (
            [container("half", cpu="1500m", memory="1Gi")],
            {},
            "CPUs and memory will not be aligned: container half asks 1.5, no whole number",
        ),
        (
            [container(requests={"cpu": "1"})],
            {"numa": "strict"},
            "CPUs and memory will not be aligned: container c lacks a limit of cpu and memory",
        ),
    ],
)
def test_pods_that_seem_to_want_it(
    containers: list[dict[str, Any]], fields: dict[str, Any], words: str
) -> None:
    assert advice(*containers, **fields) == (f"NUMA: {words}",)


@pytest.mark.parametrize(
    ("containers", "numa"),
    [
        ([container(**FULL)], ""),
        ([container(gpu="1", **FULL)], "strict"),
        # A sidecar's tenth of a CPU is meant to be shared.
        ([container(**FULL), container("side", cpu="100m", memory="1Mi")], ""),
        # An ordinary Burstable pod: its limit is no promise to itself.
        ([container(requests={"cpu": "1"}, **FULL)], ""),
        ([container(requests={"cpu": "1"})], ""),
        ([container(cpu="500m")], ""),
        ([container()], ""),
        ([container(gpu="1")], "ignore"),
        ([{"name": "c"}], ""),
    ],
)
def test_others_hear_nothing(containers: list[dict[str, Any]], numa: str) -> None:
    assert advice(*containers, numa=numa) == ()
