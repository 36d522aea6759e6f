"""The dataset concern by example: what users write, what moves, what stands on the pod."""

from __future__ import annotations

from typing import Any

import pytest

from berthmaster.api.datasets import (
    CacheSighting,
    Dataset,
    dataset_from_manifest,
    internal_from_manifest,
)
from berthmaster.api.inventory import NodeInventory, NodeInventoryStatus
from berthmaster.api.objects import Pod, pod_from_manifest
from berthmaster.api.policy import PlacementPolicySpec
from berthmaster.concerns.dataset import CONCERN
from berthmaster.concerns.dataset.inventory import (
    DatasetMode,
    DatasetState,
    NodeIndex,
    choose,
    locate,
)
from berthmaster.concerns.dataset.request import MOST_DATASETS, labelled_datasets
from berthmaster.concerns.shape import InvalidRequestError
from berthmaster.placement.engine import Decision, Engine
from support.builders import make_node, make_pod_manifest

ZONE, REGION = "topology.kubernetes.io/zone", "topology.kubernetes.io/region"
POLICY = PlacementPolicySpec()


def policy(**settings: Any) -> PlacementPolicySpec:
    return PlacementPolicySpec.model_validate({"concerns": {"dataset": settings}})


def pod_with(labels: dict[str, str] | None = None, **fields: Any) -> Pod:
    manifest = make_pod_manifest("train", namespace="ml", **fields)
    manifest["metadata"]["labels"] = labels if labels is not None else {"dataset.0.id": "d"}
    return pod_from_manifest(manifest)


def write(
    engine: Engine, node: str, zone: str = "z1", *datasets: tuple[str, str], busy: bool = False
) -> None:
    entries = [{"namespace": "ml", "name": name, "role": role} for name, role in datasets]
    status = NodeInventoryStatus.model_validate({"datasets": entries, "gatewayBusy": busy})
    labels = {ZONE: zone, REGION: "r1"} if zone else {}
    engine.ledger.write_node(
        make_node(node, labels=labels), NodeInventory(name=node, status=status)
    )


def scores(
    engine: Engine, pod: Pod | None = None, spec: PlacementPolicySpec = POLICY
) -> dict[str, float | str]:
    request = engine.read_request(pod or pod_with(), spec)
    return {
        it.node: it.reason.detail if it.reason else it.scores.get("dataset", -1.0)
        for it in engine.verdicts(request)
    }


def decide(engine: Engine, spec: PlacementPolicySpec = POLICY, pod: Pod | None = None) -> Decision:
    return engine.decide(engine.read_request(pod or pod_with(), spec), "id")


@pytest.fixture
def engine() -> Engine:
    engine = Engine([CONCERN])
    write(engine, "n1", "z1", ("d", "gateway"))
    write(engine, "n2", "z1")
    write(engine, "n3", "z2")
    write(engine, "n4", "")
    return engine


def test_tiers_follow_the_gateway_and_its_node(engine: Engine) -> None:
    assert scores(engine) == {"n1": 100, "n2": 50, "n3": 25, "n4": 0}
    write(engine, "n1", "z2", ("d", "gateway"))
    assert scores(engine) == {"n1": 100, "n2": 25, "n3": 50, "n4": 0}
    write(engine, "n1", "z2")
    write(engine, "n2", "z1", ("d", "gateway"))
    assert scores(engine) == {"n1": 25, "n2": 100, "n3": 25, "n4": 0}
    write(engine, "n2", "z1")
    assert scores(engine) == {"n1": 0, "n2": 0, "n3": 0, "n4": 0}


def test_a_busy_gateway_has_the_tier_of_its_zone(engine: Engine) -> None:
    write(engine, "n1", "z1", ("d", "gateway"), busy=True)
    assert scores(engine) == {"n1": 50, "n2": 50, "n3": 25, "n4": 0}


def test_pods_placed_beside_a_gateway_make_it_busy_where_the_policy_says_so(
    engine: Engine,
) -> None:
    spec = policy(podsPerGateway=2)
    for number in range(3):
        decision = decide(engine, spec)
        is_beside = decision.node == "n1"
        assert is_beside == (number < 2) or decision.score == 50
        pod = pod_with(uid=str(number))
        usages = engine.ledger.usages_of(pod, decision.allocated)
        engine.ledger.assume(
            str(number),
            node="n1",
            usages=usages,
            namespace="ml",
            name=str(number),
            owner=None,
            now_s=0.0,
        )
    assert scores(engine, spec=spec)["n1"] == 50
    assert scores(engine)["n1"] == 100
    engine.ledger.drop("0")
    engine.ledger.drop("1")
    assert scores(engine, spec=spec)["n1"] == 100


def test_data_behind_a_gateway_may_be_spared(engine: Engine) -> None:
    write(engine, "n2", "z1", ("d", "backing"))
    write(engine, "n4", "", ("d", "backing"))
    assert scores(engine) == {"n1": 100, "n2": 50, "n3": 25, "n4": 0}
    spec = policy(spareDataLocations=True)
    assert scores(engine, spec=spec) == {"n1": 100, "n2": 49, "n3": 25, "n4": 0}


def test_a_file_system_is_required_and_by_annotation_preferred(engine: Engine) -> None:
    write(engine, "n3", "z2", ("f", "data"))
    pod = pod_with({"dataset.0.id": "f", "dataset.1.id": "d"})
    nowhere = "the data are on n3"
    assert scores(engine, pod) == {"n1": nowhere, "n2": nowhere, "n3": 62, "n4": nowhere}
    decision = decide(engine, pod=pod)
    assert decision.describe() == (
        "1/4 nodes: 3 (n1, n2, n4) Node does not have cache deployment for pod"
    )
    preferring = pod_with(
        {"dataset.0.id": "f", "dataset.1.id": "d"}, annotations={"berthmaster.io/dataset": "prefer"}
    )
    assert scores(engine, preferring) == {"n1": 62, "n2": 37, "n3": 62, "n4": 0}


def test_two_file_systems_without_a_common_node_leave_none_and_say_so(engine: Engine) -> None:
    write(engine, "n2", "z1", ("f", "data"))
    write(engine, "n3", "z2", ("g", "data"))
    pod = pod_with({"dataset.0.id": "f", "dataset.1.id": "g"})
    decision = decide(engine, pod=pod)
    assert decision.node is None
    reasons = {
        it.node: it.reason for it in engine.verdicts(engine.read_request(pod, POLICY)) if it.reason
    }
    assert reasons["n1"].text == "Node does not have cache deployment for pod: f, g"
    assert reasons["n2"].text == "Node does not have cache deployment for pod: g"
    assert "no node has all of its data" in reasons["n1"].detail


def test_a_claim_counts_only_as_a_dataset_and_a_foreign_one_not_at_all(engine: Engine) -> None:
    def claiming(name: str) -> Pod:
        volume = {"name": "v", "persistentVolumeClaim": {"claimName": name}}
        return pod_with({}, volumes=[volume])

    assert scores(engine, claiming("d")) == {"n1": 100, "n2": 50, "n3": 25, "n4": 0}
    assert scores(engine, claiming("other")) == {"n1": -1, "n2": -1, "n3": -1, "n4": -1}
    assert decide(engine, pod=claiming("other")).score == 100
    assert CONCERN.request(claiming("d"), policy(claims=False)) is None


def test_what_stands_on_the_pod_says_how_near_its_data_are(engine: Engine) -> None:
    pod = pod_with({"dataset.0.id": "d", "dataset.1.id": "ghost"})
    assert decide(engine, pod=pod).allocated == {
        "dataset": {
            "datasets": {"d": {"mode": "gateway", "nodes": 1, "at": ["n1"], "tier": 100}},
            "notUsable": {"ghost": "missing"},
            "besideGateway": True,
        }
    }


def test_labels_count_in_numeric_order_once_and_only_in_their_exact_form() -> None:
    pod = pod_with(
        {
            "dataset.10.id": "late",
            "dataset.9.id": "early",
            "dataset.11.id": "early",
            "dataset.0.useas": "mount",
            "dataset.x.id": "no",
            "dataset.1.id.x": "no",
            "my.dataset.1.id": "no",
            "dataset.2.id": "",
            "example.test/dataset-provider-id": "no",
        }
    )
    assert labelled_datasets(pod) == ("ml/early", "ml/late")
    assert CONCERN.request(pod_with({"app": "web"}), POLICY) is None


def test_a_thousand_datasets_are_cut_and_answered(engine: Engine) -> None:
    labels = {f"dataset.{number}.id": f"d{number}" for number in range(1000)}
    request = CONCERN.request(pod_with(labels), POLICY)
    assert request is not None
    assert len(request.labelled) == MOST_DATASETS
    assert request.labelled[-1] == f"ml/d{MOST_DATASETS - 1}"
    assert scores(engine, pod_with(labels)) == {"n1": 0, "n2": 0, "n3": 0, "n4": 0}


def test_an_unknown_word_in_our_annotation_is_told_with_the_known_ones() -> None:
    pod = pod_with(annotations={"berthmaster.io/dataset": "maybe"})
    with pytest.raises(InvalidRequestError) as caught:
        CONCERN.request(pod, POLICY)
    assert str(caught.value) == (
        'metadata.annotations[berthmaster.io/dataset]: unknown word "maybe", expected one of '
        "require, prefer"
    )


def test_an_allocation_that_was_forged_holds_nothing() -> None:
    for allocated in (None, {}, {"besideGateway": "yes"}, {"besideGateway": [1]}):
        assert CONCERN.usage(pod_with(), allocated) is None


GROUPS = ("com.ie.ibm.hpsys", "datashim.io")


def test_the_newer_group_wins() -> None:
    both = [
        dataset_from_manifest(
            {"apiVersion": f"{group}/v1alpha1", "metadata": {"namespace": "ml", "name": "d"}}
        )
        for group in (*GROUPS, "datasets.datashim.io")
    ]
    found = choose(both)
    assert found is not None
    assert found.group == "datashim.io"
    assert choose(both[2:]) is None


def test_each_state_is_named() -> None:
    def state(provision: str, caching: str, *values: str) -> DatasetState:
        dataset = dataset_from_manifest(
            {"status": {"provision": {"status": provision}, "caching": {"status": caching}}}
        )
        gateways = [{"key": "kubernetes.io/hostname", "value": it} for it in values]
        placements = {"placements": {"gateways": gateways}}
        internal = internal_from_manifest({"status": {"caching": placements}})
        return locate(dataset, internal, NodeIndex({"n1": {}})).state

    assert locate(None, None, NodeIndex({})).state is DatasetState.MISSING
    assert locate(dataset_from_manifest({}), None, NodeIndex({})).state is DatasetState.NO_INTERNAL
    assert state("Pending", "OK", "n1") is DatasetState.NOT_PROVISIONED
    assert state("OK", "Disabled", "n1") is DatasetState.CACHING_DISABLED
    assert state("OK", "Failed", "n1") is DatasetState.CACHING_NOT_READY
    assert state("OK", "Pending") is DatasetState.NO_PLACEMENT
    assert state("OK", "OK", "gone") is DatasetState.STALE
    assert state("OK", "Pending", "gone", "n1") is DatasetState.USABLE


def test_data_behind_a_gateway_are_told_apart_from_it() -> None:
    dataset = dataset_from_manifest(
        {"status": {"provision": {"status": "OK"}, "caching": {"status": "OK"}}}
    )
    named = [{"key": "kubernetes.io/hostname", "value": it} for it in ("n1", "n2")]
    nodes = NodeIndex({"n1": {}, "n2": {}, "n3": {}})

    def roles(**placements: Any) -> dict[str, str]:
        internal = internal_from_manifest({"status": {"caching": {"placements": placements}}})
        return {node: str(it) for node, it in locate(dataset, internal, nodes).roles.items()}

    assert roles(gateways=named[:1], datalocations=named) == {"n1": "gateway", "n2": "backing"}
    assert roles(datalocations=named) == {"n1": "data", "n2": "data"}


def test_odd_objects_are_read_as_far_as_they_can_be_and_their_secrets_are_not() -> None:
    dataset = dataset_from_manifest(
        {
            "apiVersion": 7,
            "metadata": {"namespace": "ml", "name": "d"},
            "spec": {"local": {"secretAccessKey": "hush", "readonly": "true"}},
            "status": {"provision": "OK", "caching": {"status": {"hush": 1}}},
        }
    )
    assert (dataset.key, dataset.provision, dataset.caching) == ("ml/d", "", "")
    assert dataset.is_read_only
    assert dataset.problems == (
        "status.provision: expected an object, found str",
        "apiVersion: expected text, found int",
        "status.caching.status: expected text, found dict",
    )
    assert "hush" not in repr(dataset)


def test_placements_are_bounded_deduplicated_and_rid_of_empty_ones() -> None:
    entries: list[Any] = [
        {"key": "kubernetes.io/hostname", "value": "n1"},
        {"key": "kubernetes.io/hostname", "value": "n1"},
        {"key": "kubernetes.io/hostname", "value": ""},
        {"value": "n2"},
        "n3",
        {"key": 1, "value": "n4"},
    ]
    placements = {"gateways": entries, "datalocations": {"n1": "n1"}}
    internal = internal_from_manifest({"status": {"caching": {"placements": placements}}})
    assert [str(it) for it in internal.gateways] == ["kubernetes.io/hostname=n1"]
    assert internal.data_locations == ()
    assert len(internal.problems) == 3
    many = {"gateways": [{"key": "k", "value": str(it)} for it in range(6000)]}
    internal = internal_from_manifest({"status": {"caching": {"placements": many}}})
    assert len(internal.gateways) == 5000
    assert internal.problems == (
        "status.caching.placements.gateways: 6000 entries, only 5000 are read",
    )


def announced(caching: str, provision: str = "OK", group: str = "datashim.io") -> Dataset:
    return dataset_from_manifest(
        {
            "apiVersion": f"{group}/v1alpha1",
            "metadata": {"namespace": "ml", "name": "new"},
            "status": {"provision": {"status": provision}, "caching": {"status": caching}},
        }
    )


def test_a_cache_that_is_being_built_is_waited_for_where_the_policy_says_so(
    engine: Engine,
) -> None:
    pod, spec = pod_with({"dataset.0.id": "new"}), policy(hold="60s")
    assert decide(engine, spec, pod).node is not None
    engine.observe(announced("Pending"))
    news = engine.news
    decision = decide(engine, spec, pod)
    assert decision.node is None
    assert "the cache of new is still being built" in decision.describe()
    assert decide(engine, spec.without_hold(), pod).node is not None
    assert decide(engine, policy(), pod).node is not None
    write(engine, "n3", "z2", ("new", "gateway"))
    assert engine.news > news
    assert decide(engine, spec, pod).node == "n3"


def sighting(found: Dataset, *, is_declared: bool) -> CacheSighting:
    return CacheSighting(
        group=found.group, namespace=found.namespace, name=found.name, is_declared=is_declared
    )


@pytest.mark.parametrize(
    ("found", "is_declared", "state"),
    [
        (announced("Disabled"), True, "caching-disabled"),
        (announced("Failed"), True, "caching-not-ready"),
        (announced("OK"), None, "no-internal"),
        (announced("OK"), False, "no-placement"),
        (announced("OK"), True, "stale"),
        (announced("Pending", "Pending"), True, "not-provisioned"),
        (announced("Disabled"), None, "no-internal"),
    ],
)
def test_what_is_not_being_built_is_not_waited_for_and_its_state_is_told(
    engine: Engine, found: Dataset, is_declared: bool | None, state: str
) -> None:
    pod = pod_with({"dataset.0.id": "new"})
    engine.observe(found)
    if is_declared is not None:
        engine.observe(sighting(found, is_declared=is_declared))
    if found.caching != "Pending":
        assert decide(engine, policy(hold="60s"), pod).node is not None
    assert decide(engine, pod=pod).allocated["dataset"]["notUsable"] == {"new": state}
    engine.observe(found, is_gone=True)
    assert decide(engine, pod=pod).allocated["dataset"]["notUsable"] == {"new": "missing"}


def test_only_the_internal_of_the_same_group_counts_and_its_end_is_seen(engine: Engine) -> None:
    pod, new = pod_with({"dataset.0.id": "new"}), announced("OK")
    old = announced("OK", group="com.ie.ibm.hpsys")
    for found in (new, old):
        engine.observe(found)
    engine.observe(sighting(old, is_declared=True))

    def told() -> str:
        state: str = decide(engine, pod=pod).allocated["dataset"]["notUsable"]["new"]
        return state

    assert told() == "no-internal"
    engine.observe(sighting(new, is_declared=True))
    assert told() == "stale"
    engine.observe(sighting(new, is_declared=True), is_gone=True)
    assert told() == "no-internal"
    engine.observe(new, is_gone=True)
    assert told() == "stale"


def no_datasets(**fields: Any) -> Pod:
    return pod_with({}, **fields)


def test_pods_without_datasets_keep_a_little_off_file_systems_where_the_policy_says_so(
    engine: Engine,
) -> None:
    for node, role in (("n3", "data"), ("n4", "backing")):
        write(engine, node, "z2", ("files", role))
    spec = policy(avoidFilesystems=10)
    claim = {"name": "v", "persistentVolumeClaim": {"claimName": "nobody-s"}}

    for pod in (no_datasets(), no_datasets(volumes=[claim])):
        assert scores(engine, pod, spec) == {"n1": 100, "n2": 100, "n3": 90, "n4": 100}
        assert set(scores(engine, pod).values()) == {-1.0}
    assert scores(engine, spec=spec)["n1"] == 100
    assert scores(engine, pod_with({"dataset.0.id": "ghost"}), spec) == dict.fromkeys(
        ("n1", "n2", "n3", "n4"), 0
    )
    write(engine, "n3", "z2")
    assert scores(engine, no_datasets(), spec)["n3"] == 100


def test_kube_scheduler_is_told_the_same_by_one_mild_preference(engine: Engine) -> None:
    labels = {ZONE: "z2", REGION: "r1", "kubernetes.io/hostname": "host-3"}
    status = NodeInventoryStatus.model_validate(
        {"datasets": [{"namespace": "ml", "name": "files", "role": "data"}]}
    )
    engine.ledger.write_node(
        make_node("n3", labels=labels), NodeInventory(name="n3", status=status)
    )
    request = engine.read_request(no_datasets(), policy(avoidFilesystems=10))
    terms, rest = engine.affinity(request, "n1")

    (preferred,) = terms.preferred
    assert preferred["weight"] == 10
    assert preferred["preference"]["matchExpressions"] == [
        {"key": "kubernetes.io/hostname", "operator": "NotIn", "values": ["host-3"]}
    ]
    assert not terms.required
    assert rest == 0
    write(engine, "n3", "z2")
    assert engine.affinity(request, "n1")[0].preferred == ()


@pytest.mark.parametrize("entry", [{"key": "kubernetes.io/hostname", "value": ""}, {}])
def test_a_gateway_that_is_not_scheduled_yet_makes_no_file_system_of_its_cache(
    entry: dict[str, str],
) -> None:
    """The Ceph plugin writes an empty value for it; pods must not be kept to the storage nodes."""
    data = [{"key": "kubernetes.io/hostname", "value": "n1"}]
    internal = internal_from_manifest(
        {
            "apiVersion": "datashim.io/v1alpha1",
            "metadata": {"namespace": "ml", "name": "new"},
            "status": {"caching": {"placements": {"gateways": [entry], "datalocations": data}}},
        }
    )
    found = locate(announced("Pending"), internal, NodeIndex({"n1": {}}))

    assert (found.state, found.mode) == (DatasetState.STALE, DatasetMode.GATEWAY)
    assert not found.roles


def test_of_two_groups_the_newer_says_how_far_a_dataset_is(engine: Engine) -> None:
    pod, spec = pod_with({"dataset.0.id": "new"}), policy(hold="60s")
    engine.observe(announced("Pending", group="com.ie.ibm.hpsys"))
    assert decide(engine, spec, pod).node is None
    engine.observe(announced("Disabled"))
    assert decide(engine, spec, pod).node is not None
    engine.observe(announced("Disabled"), is_gone=True)
    assert decide(engine, spec, pod).node is None


def test_nodes_that_came_and_went_leave_nothing_behind() -> None:
    engine = Engine([CONCERN])
    columns = engine.table.columns["dataset"]
    for number in range(20):
        labels = {"kubernetes.io/hostname": f"host-{number}"}
        engine.ledger.write_node(make_node("n1", uid=str(number), labels=labels), None)

    assert {host for host in columns.hostnames if host} == {"host-19"}
