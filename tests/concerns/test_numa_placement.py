"""Beyond upstream: states, managers, restricted kubelets, predicted zones, and words that help."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from berthmaster.api.inventory import Freshness, NodeInventoryStatus
from berthmaster.api.objects import Pod, node_from_manifest, pod_from_manifest
from berthmaster.api.policy import PlacementPolicySpec
from berthmaster.api.topology import topology_from_manifest
from berthmaster.cli.cases.worlds import as_read
from berthmaster.concerns.numa import CONCERN
from berthmaster.concerns.numa.inventory import build_topology
from berthmaster.concerns.shape import InvalidRequestError
from berthmaster.placement.engine import Engine, Verdict

GPU = "vendor.com/gpu"


def make_node(
    *zones: Mapping[str, str],
    policy: str = "single-numa-node",
    scope: str = "container",
    allocatable: Mapping[str, str] | None = None,
    **attributes: str,
) -> dict[str, Any]:
    """Return a topology; `allocatable` is what each zone has in all, else what is available."""
    told = {"topologyManagerPolicy": policy, "topologyManagerScope": scope, **attributes}
    return {
        "metadata": {"name": "n"},
        "attributes": [{"name": name, "value": value} for name, value in told.items()],
        "zones": [
            {
                "name": f"node-{at}",
                "type": "Node",
                "resources": [
                    {
                        "name": name,
                        "capacity": (allocatable or zone)[name],
                        "allocatable": (allocatable or zone)[name],
                        "available": free,
                    }
                    for name, free in zone.items()
                ],
            }
            for at, zone in enumerate(zones)
        ],
    }


def make_container(name: str = "c", *, kind: str = "", **asked: str) -> dict[str, Any]:
    named = {key.replace("gpu", GPU): value for key, value in asked.items()}
    resources = {"cpu": "1", "memory": "1Gi", **named}
    found = {"name": name, "resources": {"requests": resources, "limits": resources}}
    return {**found, "restartPolicy": kind} if kind else found


def make_pod(*containers: dict[str, Any], mode: str = "", **spec: Any) -> Pod:
    annotations = {"berthmaster.io/numa": mode} if mode else {}
    return pod_from_manifest(
        {
            "metadata": {
                "name": "p",
                "namespace": "default",
                "uid": "p",
                "annotations": annotations,
            },
            "spec": {"containers": list(containers) or [make_container()], **spec},
        }
    )


def decide(
    nodes: Mapping[str, dict[str, Any] | None],
    pod: Pod,
    *,
    freshness: Freshness | None = None,
    **numa: Any,
) -> tuple[dict[str, Verdict], Engine, Any]:
    engine = Engine([CONCERN])
    policy = PlacementPolicySpec.model_validate({"concerns": {"numa": numa}})
    engine.configure([policy])
    for name, topology in nodes.items():
        node = node_from_manifest(
            {"metadata": {"name": name, "uid": name}, "status": {"allocatable": {GPU: "8"}}}
        )
        inventory = None
        if topology is not None:
            built = build_topology(topology_from_manifest(topology), freshness=freshness)
            status = NodeInventoryStatus(topology=built.topology, zones=built.zones)
            inventory = as_read(name, status)
        engine.ledger.write_node(node, inventory)
    request = engine.read_request(pod, policy)
    return {it.node: it for it in engine.verdicts(request)}, engine, request


def reason_of(topology: dict[str, Any] | None, pod: Pod, **fields: Any) -> str:
    reason = decide({"n": topology}, pod, **fields)[0]["n"].reason
    return reason.text if reason is not None else ""


FOUR = {"cpu": "4", GPU: "1"}


def test_pods_that_no_kubelet_aligns_cost_nothing() -> None:
    asked = {"cpu": "1", "memory": "1Gi"}
    burstable = pod_from_manifest(
        {"spec": {"containers": [{"name": "c", "resources": {"requests": asked}}]}}
    )
    plain = pod_from_manifest({"spec": {"containers": [{"name": "c"}]}})

    for pod in (burstable, plain, make_pod(mode="ignore")):
        assert CONCERN.request(pod, PlacementPolicySpec()) is None
    for pod in (burstable, plain):
        assert CONCERN.usage(pod, None) is None


def test_unknown_mode_is_refused_with_the_way_out() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        CONCERN.request(make_pod(mode="always"), PlacementPolicySpec())

    assert str(caught.value) == (
        "metadata.annotations[berthmaster.io/numa]: expected one of strict, prefer, ignore, "
        'found "always"'
    )


@pytest.mark.parametrize(
    ("mode", "numa", "words"),
    [
        ("", {}, ""),
        ("", {"whenMissing": "Refuse"}, "no node topology data"),
        ("strict", {}, "no node topology data"),
        ("prefer", {"whenMissing": "Refuse"}, ""),
    ],
)
def test_node_without_topology(mode: str, numa: dict[str, Any], words: str) -> None:
    assert reason_of(None, make_pod(mode=mode), **numa).startswith(words or "\0") == bool(words)


def test_known_nodes_may_be_preferred() -> None:
    nodes = {"known": make_node(FOUR, policy="none"), "unknown": None}

    found = decide(nodes, make_pod(), whenMissing="PreferKnown")[0]

    assert found["known"].score > found["unknown"].score


@pytest.mark.parametrize(
    ("mode", "numa", "words"),
    [
        ("", {}, ""),
        ("", {"whenStale": "Refuse"}, "stale node topology data"),
        ("strict", {}, "stale node topology data"),
    ],
)
def test_stale_topology(mode: str, numa: dict[str, Any], words: str) -> None:
    text = reason_of(make_node(FOUR), make_pod(mode=mode), freshness=Freshness.STALE, **numa)

    assert text.startswith(words)
    assert bool(text) == bool(words)


@pytest.mark.parametrize(
    ("mode", "words"),
    [("", "invalid node topology data"), ("strict", "invalid node topology data"), ("prefer", "")],
)
def test_topology_that_a_kubelet_refuted(mode: str, words: str) -> None:
    text = reason_of(make_node(FOUR), make_pod(mode=mode), freshness=Freshness.UNRELIABLE)

    assert text.startswith(words)
    assert bool(text) == bool(words)


def test_pod_that_only_prefers_goes_where_it_cannot_be_aligned() -> None:
    assert reason_of(make_node(FOUR), make_pod(make_container(cpu="9"), mode="prefer")) == ""


@pytest.mark.parametrize(
    ("containers", "words"),
    [
        (
            [make_container("ok"), make_container("big", cpu="10")],
            "cannot align container: big asks 10 cpu, best zone node-1 has 8; "
            "fits if the limit were 8",
        ),
        (
            [make_container("many", gpu="3")],
            f"cannot align container: many asks 3 {GPU}, best zone node-0 has 2; "
            "fits if the limit were 2",
        ),
        (
            [make_container("torn", cpu="8", gpu="2")],
            f"cannot align container: torn asks 8 cpu, 2 {GPU}, and no one zone has all of it: "
            f"cpu only in node-1; {GPU} only in node-0; nearest is node-0: asks 8 cpu, free 6; "
            "fits if the limit of cpu were 6",
        ),
    ],
)
def test_words_name_container_resource_and_what_would_fit(
    containers: list[dict[str, Any]], words: str
) -> None:
    node = make_node({"cpu": "6", GPU: "2"}, {"cpu": "8", GPU: "0"})

    assert reason_of(node, make_pod(*containers)) == words


@pytest.mark.parametrize(
    ("scope", "containers", "words"),
    [
        (
            "container",
            # The kubelet puts the first into the lower zone, and never takes that back.
            [make_container("a", cpu="4"), make_container("b", cpu="8"), make_container("c")],
            "b asks 8 cpu, best zone node-0 has 6; fits if the limit were 6",
        ),
        (
            "pod",
            [make_container("a", cpu="6"), make_container("b", cpu="6")],
            "the pod asks 12 cpu, best zone node-0 has 10; "
            "fits if the limits together were 10, or in scope container",
        ),
        (
            "pod",
            [make_container("a", cpu="9", gpu="2"), make_container("b", cpu="9")],
            # In node-0 there are too few of both, and in node-1 none of the one.
            f"the pod asks 18 cpu, best zone node-0 has 10; "
            f"fits if the limits together were 10 cpu, 1 {GPU}",
        ),
        (
            "container",
            [make_container("b", cpu="100", gpu="2")],
            f"b asks 100 cpu, best zone node-0 has 10; fits if the limits were 10 cpu, 1 {GPU}",
        ),
    ],
)
def test_what_is_said_to_help_was_tried(
    scope: str, containers: list[dict[str, Any]], words: str
) -> None:
    node = make_node({"cpu": "10", GPU: "1"}, {"cpu": "6"}, scope=scope)

    assert reason_of(node, make_pod(*containers)).partition(": ")[2] == words


def test_lower_limit_that_leaves_nothing_for_the_next_container_is_not_proposed() -> None:
    node = make_node({"cpu": "4"})
    pod = make_pod(make_container("a", cpu="6"), make_container("b", cpu="1"))

    assert reason_of(node, pod) == ("cannot align container: a asks 6 cpu, best zone node-0 has 4")


@pytest.mark.parametrize(
    ("asked", "free", "words"),
    [
        # Two zones of GPUs need two of CPUs: more than one zone has.
        ({"cpu": "10", "gpu": "6"}, {"cpu": "16", GPU: "4"}, "fits if the limit of cpu were 17"),
        # So many CPUs are not free, but four GPUs of one zone are.
        ({"cpu": "6", "gpu": "6"}, {"cpu": "6", GPU: "4"}, f"fits if the limit of {GPU} were 4"),
        ({"cpu": "10", "gpu": "6"}, {"cpu": "2", GPU: "4"}, ""),
    ],
)
def test_restricted_kubelet_is_told_amounts_of_one_width(
    asked: dict[str, str], free: dict[str, str], words: str
) -> None:
    node = make_node(free, free, policy="restricted", allocatable={"cpu": "16", GPU: "4"})

    text = reason_of(node, make_pod(make_container(**asked)), restricted="Predict")

    assert text.startswith("cannot align container minimally: c needs at least ")
    assert text.partition("best-effort")[2].removeprefix("; ") == words


def test_another_scope_of_a_restricted_kubelet_is_proposed() -> None:
    node = make_node(FOUR, {"cpu": "4"}, policy="restricted", scope="pod")
    pod = make_pod(make_container("a", cpu="4", gpu="1"), make_container("b", cpu="2"))

    text = reason_of(node, pod, restricted="Predict")

    assert text.startswith("cannot align pod minimally: the pod needs at least 6 cpu in 2 zones, ")
    assert text.endswith("; fits if the limits of cpu together were 4, or in scope container")


def test_memory_that_no_zone_lists_is_nobody_s_to_align() -> None:
    node = make_node(FOUR)

    assert reason_of(node, make_pod()) == ""
    assert reason_of(node, make_pod(), strictUpstream=True).startswith("cannot align container")


def test_cpus_without_static_manager_are_nobody_s_to_align() -> None:
    pod = make_pod(make_container(cpu="9"))

    assert reason_of(make_node(FOUR), pod) != ""
    assert reason_of(make_node(FOUR, cpuManagerPolicy="static"), pod) != ""
    assert reason_of(make_node(FOUR, cpuManagerPolicy="none"), pod) == ""
    assert reason_of(make_node(FOUR), pod, alignedResources=["memory"]) != ""
    assert reason_of(make_node({**FOUR, "memory": "2Gi"}), pod, alignedResources=["memory"]) == ""


def test_cpus_are_nobody_s_to_align_where_no_zone_has_any_to_give() -> None:
    pod, without = make_pod(), {"cpu": "0", GPU: "1"}

    assert reason_of(make_node(without, {GPU: "1"}), pod) == ""
    assert reason_of(make_node(without, cpuManagerPolicy="static"), pod) != ""
    # Held by others, they are there all the same.
    assert reason_of(make_node(without, allocatable=FOUR), pod) != ""
    assert reason_of(make_node(without), pod, books="Upstream") != ""


def test_fractions_of_cpus_come_from_the_shared_pool() -> None:
    pod = make_pod(make_container("half", cpu="4500m"))

    assert reason_of(make_node(FOUR), pod) == ""
    assert reason_of(make_node(FOUR, scope="pod"), pod) == ""
    assert reason_of(make_node(FOUR), pod, books="Upstream") == (
        "cannot align container: half asks 4.5 cpu, best zone node-0 has 4; "
        "fits if the limit were 4"
    )


def test_pod_scope_counts_whole_cpus_without_overhead() -> None:
    node = make_node(FOUR, scope="pod")
    half, whole = make_container("half", cpu="2500m"), make_container("whole", cpu="4")

    assert reason_of(node, make_pod(half, whole, overhead={"cpu": "1"})) == ""
    _, engine, request = decide({"n": node}, make_pod(half, whole))
    assert engine.decide(request, "d").allocated == {"numa": {"zones": {"0": {"cpu": "4"}}}}


def test_sidecars_keep_what_they_take_as_kubernetes_has_it() -> None:
    pod = make_pod(
        make_container("app", cpu="3"),
        initContainers=[make_container("proxy", kind="Always", cpu="2")],
    )

    assert reason_of(make_node(FOUR), pod).startswith("cannot align container: app asks 3 cpu")
    assert reason_of(make_node({**FOUR, "memory": "9Gi"}), pod, strictUpstream=True) == ""


def test_what_init_containers_had_is_used_again_and_binds() -> None:
    node = make_node({"cpu": "4", GPU: "1"}, {"cpu": "8", GPU: "2"})

    def init(**asked: str) -> dict[str, Any]:
        return {"initContainers": [make_container("first", **asked)]}

    # CPUs: the app has to come to the zone where those of the init container are.
    bound = make_pod(make_container("app", cpu="8"), **init(cpu="2"))
    assert reason_of(node, bound).startswith("cannot align container: app asks 8 cpu")
    assert reason_of(node, bound, books="Upstream") == ""
    assert reason_of(node, make_pod(make_container("app", cpu="4"), **init(cpu="2"))) == ""
    assert "binds it to their zones; fits if the limit of cpu were 2" in reason_of(node, bound)
    a, b, c = (make_container(name, cpu=cpu) for name, cpu in (("a", "6"), ("b", "2"), ("c", "4")))
    assert reason_of(node, make_pod(a, b, c, **init(cpu="8"))) == ""
    assert "app asks 2 cpu, which node-1 has; what init containers had must be used" in reason_of(
        make_node({"cpu": "2"}, {"cpu": "2"}, {"cpu": "1"}),
        make_pod(make_container("side", cpu="1"), make_container("app", cpu="2"), **init(cpu="2")),
    )
    # While some of them are left, all come there.
    assert reason_of(node, make_pod(a, c, **init(cpu="8"))) != ""
    # Devices likewise, unless the app asks for none.
    assert (
        reason_of(node, make_pod(make_container("app", gpu="2"), **init(cpu="500m", gpu="1"))) != ""
    )
    assert (
        reason_of(node, make_pod(make_container("app", cpu="7"), **init(cpu="500m", gpu="1"))) == ""
    )


def test_memory_of_init_containers_does_not_bind() -> None:
    node = make_node({"cpu": "9", "memory": "4Gi"}, {"cpu": "9", "memory": "8Gi"})
    init = [make_container("first", cpu="500m", memory="3Gi")]

    def with_app(memory: str, count: int = 1) -> Pod:
        apps = [make_container(f"app-{it}", memory=memory) for it in range(count)]
        return make_pod(*apps, initContainers=init)

    assert reason_of(node, with_app("8Gi")) == ""
    assert reason_of(node, with_app("4Gi", 3)) == ""
    assert reason_of(node, with_app("4Gi", 4)) != ""


def test_restricted_kubelet_uses_again_what_init_containers_had() -> None:
    node = make_node({"cpu": "4"}, {"cpu": "4"}, {"cpu": "8"}, policy="restricted")
    init = [make_container("first", cpu="2")]

    assert reason_of(node, make_pod(make_container("app", cpu="8"))) == ""
    assert reason_of(node, make_pod(make_container("app", cpu="8"), initContainers=init)) != ""
    assert reason_of(node, make_pod(make_container("app", cpu="9"), initContainers=init)) == ""


def test_memory_of_several_zones_comes_from_zones_that_nobody_has_memory_of() -> None:
    def fits(*free: int, memory: str = "6Gi") -> bool:
        node = make_node(
            *({"cpu": "8", "memory": f"{it}Gi"} for it in free),
            policy="restricted",
            allocatable={"cpu": "8", "memory": "4Gi"},
            cpuManagerPolicy="none",
        )
        return reason_of(node, make_pod(make_container(memory=memory))) == ""

    assert fits(4, 4, 4)
    assert fits(3, 4, 4)
    assert not fits(3, 3, 4)
    assert fits(3, 3, 4, memory="3Gi")


def test_nothing_follows_what_lies_in_zones_that_are_not_certain() -> None:
    wide, small = make_container("wide", cpu="6"), make_container("small")
    two = make_node({"cpu": "4"}, {"cpu": "4"}, policy="restricted")
    three = make_node({"cpu": "4"}, {"cpu": "4"}, {"cpu": "4"}, policy="restricted")

    assert reason_of(two, make_pod(wide)) == reason_of(three, make_pod(wide)) == ""
    # Of three zones the kubelet may have been told to prefer the nearest two.
    assert reason_of(three, make_pod(wide, small)) == (
        "cannot align container minimally: wide may get zones of which it is not certain which and how "
        "much of each, and so not what is left for the containers after it; fits in scope pod"
    )
    # Of two it is certain, and not how many CPUs of which.
    assert reason_of(two, make_pod(wide, small)) != ""
    assert reason_of(two, make_pod(wide, make_container("fraction", cpu="500m"))) == ""


def test_requests_of_the_pod_itself_are_not_aligned() -> None:
    own = {"cpu": "9", "memory": "1Gi"}
    pod = make_pod(make_container(cpu="9"), resources={"requests": own, "limits": own})

    assert reason_of(make_node(FOUR), pod) == ""


TWO = ({"cpu": "16", GPU: "4"}, {"cpu": "16", GPU: "4"})


@pytest.mark.parametrize(
    ("zones", "asked", "words"),
    [
        (TWO, {"cpu": "10", "gpu": "6"}, "10 cpu in 1 zone, 6 vendor.com/gpu in 2 zones"),
        (TWO, {"cpu": "24", "gpu": "6"}, ""),
        (TWO, {"cpu": "16", "gpu": "4"}, ""),
        (
            ({"cpu": "16", GPU: "2"}, {"cpu": "16", GPU: "2"}),
            {"cpu": "1", "gpu": "4"},
            "1 cpu in 1 zone, 4 vendor.com/gpu in 2 zones",
        ),
    ],
)
def test_restricted_kubelets_are_foreseen(
    zones: tuple[dict[str, str], ...], asked: dict[str, str], words: str
) -> None:
    node, pod = make_node(*zones, policy="restricted"), make_pod(make_container(**asked))

    text = reason_of(node, pod, restricted="Predict")

    assert text.startswith("cannot align container minimally: c needs at least") == bool(words)
    assert words in text
    assert reason_of(node, pod) == text
    # As upstream has it, nothing is foreseen.
    for fields in ({"restricted": "Pass"}, {"books": "Upstream"}, {"strictUpstream": True}):
        assert reason_of(node, pod, **fields) == ""


def test_restricted_kubelet_counts_what_zones_could_ever_hold() -> None:
    whole = {"cpu": "16", GPU: "4"}
    node = make_node({"cpu": "2", GPU: "4"}, {"cpu": "2", GPU: "4"}, policy="restricted",
                     allocatable=whole)  # fmt: skip

    text = reason_of(node, make_pod(make_container(cpu="4", gpu="1")), restricted="Predict")

    # Two zones have 4 CPUs free together, but one could hold them if it were empty.
    assert "no such zones have it free together" in text


def test_predicted_zone_is_the_one_that_the_pod_fills_most() -> None:
    nodes = {
        "empty": make_node({"cpu": "16"}, allocatable={"cpu": "16"}),
        "fuller": make_node({"cpu": "4"}, allocatable={"cpu": "16"}),
        # Its lowest zone is what the kubelet takes, however well the other one would do.
        "lowest": make_node({"cpu": "16"}, {"cpu": "4"}, allocatable={"cpu": "16"}),
    }

    found = decide(
        nodes, make_pod(make_container(cpu="4")), scoringStrategy={"type": "PredictedZone"}
    )[0]

    assert found["fuller"].score == 100
    assert found["empty"].score == found["lowest"].score == 50 + 50 * 4 / 16


def test_predicted_zone_puts_one_zone_above_two() -> None:
    nodes = {
        "one": make_node({"cpu": "8"}, {"cpu": "0"}, policy="best-effort"),
        "two": make_node({"cpu": "4"}, {"cpu": "4"}, policy="best-effort"),
    }

    found = decide(
        nodes, make_pod(make_container(cpu="6")), scoringStrategy={"type": "PredictedZone"}
    )[0]

    assert found["one"].score >= 50 > found["two"].score > 0


def test_answer_records_what_each_zone_gives() -> None:
    node = make_node({"cpu": "3", GPU: "1"}, {"cpu": "8", GPU: "1"})
    pod = make_pod(make_container("a", cpu="2", gpu="1"), make_container("b", cpu="4"))

    _, engine, request = decide({"n": node}, pod)

    assert engine.decide(request, "d").allocated == {
        "numa": {"zones": {"0": {"cpu": "2", GPU: "1"}, "1": {"cpu": "4"}}}
    }


def test_burst_fills_each_zone_and_no_more() -> None:
    pod = make_pod(make_container(cpu="3"))
    _, engine, request = decide({"n": make_node({"cpu": "8"}, {"cpu": "7"})}, pod)

    placed = 0
    while (decision := engine.decide(request, f"d{placed}")).node is not None:
        engine.ledger.assume(
            decision.id,
            node=decision.node,
            usages=engine.ledger.usages_of(pod, decision.allocated),
            namespace="default",
            name=f"p{placed}",
            owner=None,
            now_s=0.0,
        )
        placed += 1

    # 15 CPUs would do for five; two zones hold two each.
    assert placed == 4
    assert "1 (n) cannot align container" in decision.describe()


def test_zones_beyond_any_search_are_still_answered() -> None:
    zones = [{"cpu": "2", GPU: "1"}] * 64
    node = make_node(*zones, policy="best-effort")

    found = decide(
        {"n": node},
        make_pod(make_container(cpu="100")),
        scoringStrategy={"type": "LeastNUMANodes"},
    )[0]

    # 50 zones of at most 8: as bad as can be, and no answer of 2**64 combinations.
    assert found["n"].score == 0
    assert found["n"].reason is None


@pytest.mark.parametrize("strategy", ["LeastAllocated", "LeastNUMANodes", "PredictedZone"])
def test_node_without_zones_scores_nothing(strategy: str) -> None:
    found = decide(
        {"n": make_node(policy="best-effort")}, make_pod(), scoringStrategy={"type": strategy}
    )[0]

    assert (found["n"].reason, found["n"].score) == (None, 0)
