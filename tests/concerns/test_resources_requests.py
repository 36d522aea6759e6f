from __future__ import annotations

from typing import Any

import pytest

from berthmaster.api.objects import pod_from_manifest
from berthmaster.api.policy import PlacementPolicySpec
from berthmaster.api.quantities import LIMIT
from berthmaster.concerns.resources import CONCERN
from berthmaster.concerns.resources.labels import to_integer
from berthmaster.concerns.resources.request import ANY_IP, read_request, read_usage
from berthmaster.concerns.shape import InvalidRequestError
from support.builders import make_container, make_pod, make_pod_manifest

POLICY = PlacementPolicySpec()


def ask(**requests: str) -> dict[str, Any]:
    return make_container(requests=requests)


def init(*, is_sidecar: bool = False, **requests: str) -> dict[str, Any]:
    return make_container(requests=requests, is_sidecar=is_sidecar)


GPU = {"example.com/gpu": "2"}

TABLE: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "nothing but being a pod": ({"containers": [ask()]}, {}),
    "containers add up": ({"containers": [ask(cpu="1"), ask(cpu="250m")]}, {"cpu": 1250}),
    "the sum is rounded up, not its parts": ({"containers": [ask(cpu="0.5m")] * 3}, {"cpu": 2}),
    "a fraction of a byte is a byte": ({"containers": [ask(memory="100m")]}, {"memory": 1}),
    "zero asks nothing": ({"containers": [ask(cpu="0")]}, {}),
    "limits stand in for requests": (
        {"containers": [make_container(limits={"cpu": "2", "memory": "1Ki"})]},
        {"cpu": 2000, "memory": 1024},
    ),
    "requests count before limits": (
        {"containers": [make_container(requests={"cpu": "1"}, limits={"cpu": "2"})]},
        {"cpu": 1000},
    ),
    "extended resources are pieces": (
        {"containers": [make_container(requests=GPU, limits=GPU)]},
        {"example.com/gpu": 2},
    ),
    "largest init container": (
        {"containers": [ask(cpu="1")], "initContainers": [init(cpu="3"), init(cpu="2")]},
        {"cpu": 3000},
    ),
    "sidecar before an init container": (
        {
            "containers": [ask(cpu="1")],
            "initContainers": [init(cpu="500m", is_sidecar=True), init(cpu="3")],
        },
        {"cpu": 3500},
    ),
    "sidecar after an init container": (
        {
            "containers": [ask(cpu="1")],
            "initContainers": [init(cpu="3"), init(cpu="500m", is_sidecar=True)],
        },
        {"cpu": 3000},
    ),
    "sidecars stay beside the containers": (
        {"containers": [ask(cpu="1")], "initContainers": [init(cpu="2", is_sidecar=True)]},
        {"cpu": 3000},
    ),
    "the documented example": (
        {
            "containers": [ask(cpu="1"), ask(cpu="1")],
            "initContainers": [init(cpu="500m", is_sidecar=True), init(cpu="3")],
            "overhead": {"cpu": "100m"},
        },
        {"cpu": 3600},
    ),
    "pod-level requests replace": (
        {
            "containers": [ask(cpu="3", memory="3")],
            "resources": {"requests": {"cpu": "2"}},
            "overhead": {"cpu": "1"},
        },
        {"cpu": 3000, "memory": 3},
    ),
    "pod-level limit where no container asks": (
        {"containers": [ask()], "resources": {"limits": {"cpu": "2"}}},
        {"cpu": 2000},
    ),
    "pod-level limit where a container asks": (
        {"containers": [ask(cpu="1")], "resources": {"limits": {"cpu": "2"}}},
        {"cpu": 1000},
    ),
    "pod-level knows only some resources": (
        {"containers": [ask()], "resources": {"requests": {"example.com/gpu": "1"}}},
        {},
    ),
    "more than any machine has": ({"containers": [ask(cpu="9E")]}, {"cpu": LIMIT}),
}


@pytest.mark.parametrize(("spec", "amounts"), TABLE.values(), ids=TABLE.keys())
def test_effective_requests(spec: dict[str, Any], amounts: dict[str, int]) -> None:
    usage, problems = read_usage(make_pod(**spec))

    assert dict(usage.amounts) == {"pods": 1, **amounts}
    assert not problems


@pytest.mark.parametrize(
    ("condition", "millicores"),
    [(None, 3000), ("Deferred", 3000), ("Infeasible", 2000)],
)
def test_resize_counts_the_largest(condition: str | None, millicores: int) -> None:
    manifest = make_pod_manifest(cpu="3", node="n1")
    manifest["status"]["containerStatuses"] = [
        {
            "name": "main",
            "allocatedResources": {"cpu": "1"},
            "resources": {"requests": {"cpu": "2"}},
        }
    ]
    if condition:
        pending = {"type": "PodResizePending", "status": "True", "reason": condition}
        manifest["status"]["conditions"] = [pending]

    usage, _ = read_usage(pod_from_manifest(manifest))

    assert dict(usage.amounts)["cpu"] == millicores


def test_infeasible_without_status_counts_the_spec() -> None:
    manifest = make_pod_manifest(cpu="3", node="n1")
    manifest["status"]["conditions"] = [{"type": "PodResizePending", "reason": "Infeasible"}]

    assert dict(read_usage(pod_from_manifest(manifest))[0].amounts)["cpu"] == 3000


def test_sidecars_are_resized_too() -> None:
    manifest = make_pod_manifest(initContainers=[init(cpu="1", is_sidecar=True)])
    manifest["spec"]["initContainers"][0]["name"] = "proxy"
    manifest["status"]["initContainerStatuses"] = [
        {"name": "proxy", "allocatedResources": {"cpu": "2"}}
    ]

    assert dict(read_usage(pod_from_manifest(manifest))[0].amounts)["cpu"] == 2000


def test_score_substitutes_what_is_not_said() -> None:
    usage, _ = read_usage(make_pod(containers=[ask(), ask(cpu="1"), ask(memory="0")]))

    assert usage.scored_cpu == 1200
    assert usage.scored_memory == 2 * 200 * 1024**2


def test_every_fault_of_a_pod_is_told() -> None:
    pod = make_pod(containers=[ask(cpu="a lot"), ask(memory="-1")], overhead={"cpu": "?"})

    with pytest.raises(InvalidRequestError) as caught:
        CONCERN.request(pod, POLICY)

    assert [it.field for it in caught.value.problems] == [
        "spec.containers[0].resources.requests[cpu]",
        "spec.containers[1].resources.requests[memory]",
        "spec.overhead[cpu]",
    ]
    usage = CONCERN.usage(pod, None)
    assert usage is not None
    assert usage.amounts == (("pods", 1),)


def test_request_is_a_value() -> None:
    pods = [
        make_pod(name, cpu=cpu, nodeSelector=selector)
        for name, cpu, selector in [
            ("a", "1", {"x": "1", "y": "2"}),
            ("b", "1000m", {"y": "2", "x": "1"}),
        ]
    ]

    assert len({CONCERN.request(pod, POLICY) for pod in pods}) == 1


@pytest.mark.parametrize(
    ("spec", "ports"),
    [
        ({}, [(ANY_IP, "TCP", 80)]),
        ({"hostNetwork": True}, [(ANY_IP, "TCP", 80), ("10.0.0.1", "UDP", 53)]),
    ],
)
def test_host_network_takes_container_ports(
    spec: dict[str, Any], ports: list[tuple[str, str, int]]
) -> None:
    listening: list[dict[str, Any]] = [
        {"containerPort": 8080, "hostPort": 80},
        {"containerPort": 53, "protocol": "UDP", "hostIP": "10.0.0.1"},
    ]
    usage, _ = read_usage(make_pod(containers=[make_container(ports=listening)], **spec))

    found = {(it.ip, it.protocol, it.number) for it in usage.ports}
    assert found == set(ports)


def test_ports_of_sidecars_count_and_of_other_inits_not() -> None:
    inits = [
        make_container(ports=[{"containerPort": 1, "hostPort": 81}], is_sidecar=True),
        make_container(ports=[{"containerPort": 1, "hostPort": 82}]),
    ]

    assert [it.number for it in read_usage(make_pod(initContainers=inits))[0].ports] == [81]


@pytest.mark.parametrize(
    "term",
    [
        {},
        {"matchExpressions": [{"key": "a", "operator": "In", "values": []}]},
        {"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["x"]}]},
        {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["x"]}]},
        {"matchExpressions": [{"key": "a", "operator": "Near", "values": ["x"]}]},
        {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["a", "b"]}]},
        {"matchFields": [{"key": "metadata.uid", "operator": "In", "values": ["a"]}]},
    ],
)
def test_a_term_that_is_not_valid_matches_nothing(term: dict[str, Any]) -> None:
    required = {"nodeSelectorTerms": [term]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}

    assert read_request(make_pod(affinity=affinity)).terms == ()


@pytest.mark.parametrize(
    ("text", "number"),
    [("5", 5), ("-7", -7), ("+3", 3), ("1_0", None), (" 1", None), ("", None), ("1.5", None)],
)
def test_integers_as_go_reads_them(text: str, number: int | None) -> None:
    assert to_integer(text) == number
    assert to_integer(str(2**63)) is None
