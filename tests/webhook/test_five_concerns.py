"""All five concerns in one pod through admission: what is written of them, in each mode."""

from __future__ import annotations

from typing import Any

import pytest

from berthmaster.api import names
from berthmaster.cluster.informers import EventKind
from support.five_concerns import make_node_of_five, make_pod_of_five
from support.webhook_world import Manifest, World, allocation_of, ask, node_pin, patched

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
FIVE = {"numa", "xpu", "diskio", "dataset", "power"}
SSD, FAST = ({"key": it, "operator": "Exists"} for it in ("ssd", "fast"))
LIKED = {"weight": 7, "preference": {"matchExpressions": [FAST]}}


@pytest.fixture
async def harbour(world: World) -> World:
    """Return three nodes: the gateway's is without room, its neighbour is warmer than the third."""
    labels = {"ssd": "yes", "fast": "yes"}
    fields: dict[str, dict[str, Any]] = {
        "gate": {"zone": "a", "corpus": "gateway", "disk": "50Mi"},
        "near": {"zone": "a"},
        "far": {"zone": "b", "watts_per_core": 4.0},
    }
    for name, of_node in fields.items():
        node, inventory = make_node_of_five(name, labels=labels, **of_node)
        world.state.inventories._put(EventKind.ADDED, name, inventory)
        world.state.nodes._put(EventKind.ADDED, name, node)
    return world


def asking(mode: str, **fields: Any) -> Manifest:
    gates = [{"name": names.GATE}] if mode == "required" else []
    own = {REQUIRED: {"nodeSelectorTerms": [{"matchExpressions": [SSD]}]}, PREFERRED: [LIKED]}
    affinity = {"nodeAffinity": own}
    return make_pod_of_five(mode=mode, schedulingGates=gates, affinity=affinity, **fields)


def affinity_of(pod: Manifest) -> Manifest:
    found: Manifest = pod["spec"]["affinity"]["nodeAffinity"]
    return found


async def test_required_is_one_pin_beside_the_pod_s_own_terms(harbour: World) -> None:
    pod = asking("required")
    result = patched(pod, ask(harbour, pod))

    assert node_pin(result) == "near"
    (term,) = affinity_of(result)[REQUIRED]["nodeSelectorTerms"]
    assert term["matchExpressions"] == [SSD]
    assert affinity_of(result)[PREFERRED] == [LIKED]
    assert set(allocation_of(result)["allocated"]) == FIVE
    assert set(allocation_of(result)["scores"]) == {*FIVE, "resources"}
    # Upstream's own keys stand beside ours, for the device plugin that reads only them.
    assert result["metadata"]["annotations"]["BAIDU_COM_XPU_MEM_IDX"] == "0"


async def test_a_pod_that_gets_a_device_is_required_though_it_said_preferred(
    harbour: World,
) -> None:
    pod = asking("preferred")
    result = patched(pod, ask(harbour, pod))

    assert node_pin(result) == "near"
    assert allocation_of(result)["mode"] == "required"


async def test_preferred_is_one_list_of_weights_shared_by_what_tells_nodes_apart(
    harbour: World,
) -> None:
    """What tells near and far apart are data and watts, so each has its half."""
    pod = asking("preferred", share_mib=0)
    result = patched(pod, ask(harbour, pod))
    own, *added = affinity_of(result)[PREFERRED]

    assert own == LIKED
    assert affinity_of(result)[REQUIRED] == {"nodeSelectorTerms": [{"matchExpressions": [SSD]}]}
    by_node = {
        it["preference"]["matchFields"][0]["values"][0]: it["weight"]
        for it in added
        if "matchFields" in it["preference"]
    }
    by_label = [it["weight"] for it in added if "matchExpressions" in it["preference"]]
    assert max(by_node, key=lambda it: by_node[it]) == "near"
    assert (by_node["near"], sum(by_label)) == (50, 50)
    assert allocation_of(result)["mode"] == "preferred"


async def test_a_file_system_is_and_ed_into_each_of_the_pod_s_alternatives(harbour: World) -> None:
    node, inventory = make_node_of_five("store", labels={"fast": "yes"}, files="data")
    harbour.state.inventories._put(EventKind.ADDED, "store", inventory)
    harbour.state.nodes._put(EventKind.ADDED, "store", node)
    pod = asking("preferred", share_mib=0, dataset="files")
    alternatives = [{"matchExpressions": [SSD]}, {"matchExpressions": [FAST]}]
    pod["spec"]["affinity"]["nodeAffinity"][REQUIRED]["nodeSelectorTerms"] = alternatives
    result = patched(pod, ask(harbour, pod))

    here = {"key": names.HOSTNAME_LABEL, "operator": "In", "values": ["store"]}
    assert affinity_of(result)[REQUIRED]["nodeSelectorTerms"] == [
        {"matchExpressions": [SSD, here]},
        {"matchExpressions": [FAST, here]},
    ]


async def test_observe_writes_what_would_have_been_and_nothing_else(harbour: World) -> None:
    pod = asking("observe")
    result = patched(pod, ask(harbour, pod))

    assert result["spec"] == pod["spec"]
    added = set(result["metadata"]["annotations"]) - set(pod["metadata"]["annotations"])
    assert added == {names.ALLOCATION}
    assert set(allocation_of(result)["allocated"]) == FIVE
    assert allocation_of(result)["node"] == "near"
    assert not harbour.state.ledger.assumed


async def test_where_all_refuse_the_pod_waits_with_the_words_of_each(harbour: World) -> None:
    pod = asking("required", rate="600Mi", cpu="17")
    result = patched(pod, ask(harbour, pod))

    assert result["spec"]["schedulingGates"] == [{"name": names.GATE}]
    engine = harbour.state.engine
    shown = harbour.show(result)
    request = engine.read_request(shown, harbour.state.policies.choose({}, {}).spec)
    assert "cannot align container" in engine.decide(request, "id").describe()
    assert set(engine.objections(request)["gate"]) >= {"numa", "diskio"}


# Of a node that one concern finds better than its twin.
BETTER: dict[str, dict[str, Any]] = {
    "diskio": {"disk": "2000Mi"},
    "numa": {"free_cpus": (64, 64)},
    "xpu": {"card_mib": 16000},
    "dataset": {"zone": "a"},
    "power": {"watts_per_core": 4.0},
}


@pytest.fixture(params=sorted(BETTER))
def twins(request: pytest.FixtureRequest, world: World) -> tuple[World, str]:
    """Return a world of two nodes that one concern alone tells apart, and its name."""
    concern: str = request.param
    gate: dict[str, Any] = {"zone": "a", "corpus": "gateway", "cpu": "0"}
    for name, fields in {"b": {}, "a": BETTER[concern], "gate": gate}.items():
        node, inventory = make_node_of_five(name, **{"zone": "b", **fields})
        world.state.inventories._put(EventKind.ADDED, name, inventory)
        world.state.nodes._put(EventKind.ADDED, name, node)
    return world, concern


def plain(mode: str, **fields: Any) -> Manifest:
    gates = [{"name": names.GATE}] if mode == "required" else []
    return make_pod_of_five(mode=mode, schedulingGates=gates, **fields)


async def test_observe_writes_down_what_each_concern_would_have(
    twins: tuple[World, str],
) -> None:
    world, concern = twins
    pod = plain("observe")
    result = patched(pod, ask(world, pod))

    assert result["spec"] == pod["spec"]
    found = allocation_of(result)
    assert (found["node"], found["mode"]) == ("a", "observe")
    assert concern in found["scores"]
    assert concern in found["allocated"]


async def test_preferred_has_kube_scheduler_like_what_each_concern_likes(
    twins: tuple[World, str],
) -> None:
    """But a device is handed out by the answer alone, so a pod that asks for one is required."""
    world, concern = twins
    pod = plain("preferred", share_mib=2000 if concern == "xpu" else 0)
    result = patched(pod, ask(world, pod))

    if concern == "xpu":
        assert node_pin(result) == "a"
        return
    assert REQUIRED not in affinity_of(result)
    labels = {name: it.metadata.labels or {} for name, it in world.state.nodes.store.items()}
    weights = {
        name: sum(
            it["weight"]
            for it in affinity_of(result)[PREFERRED]
            if _is_met(it["preference"], name, labels[name])
        )
        for name in ("a", "b")
    }
    assert weights["a"] > weights["b"]


def _is_met(term: Manifest, node: str, labels: dict[str, str]) -> bool:
    return all(node in it["values"] for it in term.get("matchFields", ())) and all(
        labels.get(it["key"]) in it["values"] for it in term.get("matchExpressions", ())
    )
