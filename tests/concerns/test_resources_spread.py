"""Topology spread that may not be broken, by the examples and rules of Kubernetes' documentation."""

from __future__ import annotations

import pytest

from concerns.judged import HOST, REQUIRED, ZONE, Judged, Manifest, spread
from support.builders import make_node, make_taint

FOO = {"foo": "bar"}
SKEWED = "node(s) didn't match pod topology spread constraints"
UNLABELLED = f"{SKEWED} (missing required label)"


def documented() -> Judged:
    """Zone A has node1 with two pods and node2 with none, zone B node3 with one and node4 with none."""
    harbour = Judged({"node1": "A", "node2": "A", "node3": "B", "node4": "B"})
    for node in ("node1", "node1", "node3"):
        harbour.put(node, FOO)
    return harbour


def asked(harbour: Judged, *constraints: Manifest, **fields: object) -> set[str]:
    return harbour.fits(FOO, topologySpreadConstraints=list(constraints), **fields)


def test_one_constraint() -> None:
    why = documented().why(FOO, topologySpreadConstraints=[spread(FOO)])

    assert why == {"node1": SKEWED, "node2": SKEWED, "node3": "", "node4": ""}


def test_two_constraints_must_both_hold() -> None:
    assert asked(documented(), spread(FOO), spread(FOO, HOST)) == {"node4"}


def test_constraints_may_contradict_each_other() -> None:
    harbour = Judged({"node1": "A", "node2": "A", "node3": "B"})
    for node in ("node1", "node1", "node2", "node2", "node3", "node3", "node3"):
        harbour.put(node, FOO)
    assert asked(harbour, spread(FOO, HOST)) == {"node1", "node2"}
    assert asked(harbour, spread(FOO)) == {"node3"}

    assert asked(harbour, spread(FOO), spread(FOO, HOST)) == set()


def test_a_larger_skew_lets_more_in() -> None:
    assert asked(documented(), spread(FOO, skew=2)) == {"node1", "node2", "node3", "node4"}


def test_preferences_refuse_nothing() -> None:
    harbour = documented()

    assert len(asked(harbour, spread(FOO, whenUnsatisfiable="ScheduleAnyway"))) == 4


def test_nodes_without_the_label_are_no_domain() -> None:
    harbour = documented()
    harbour.engine.ledger.write_node(make_node("x", labels={HOST: "x"}), None)

    why = harbour.why(FOO, topologySpreadConstraints=[spread(FOO)])

    assert why["x"] == UNLABELLED
    assert [name for name, words in why.items() if not words] == ["node3", "node4"]


def test_a_node_that_lacks_one_label_counts_for_no_constraint() -> None:
    harbour = documented()
    # An empty zone C whose only node has no host name: were it a domain, B would be too full.
    harbour.engine.ledger.write_node(make_node("x", labels={ZONE: "C"}), None)

    assert asked(harbour, spread(FOO), spread(FOO, HOST, skew=5)) == {"node3", "node4"}
    assert asked(harbour, spread(FOO)) == {"x"}


@pytest.mark.parametrize(
    ("policy", "fits"), [({}, {"node3", "node4"}), ({"nodeAffinityPolicy": "Ignore"}, set())]
)
def test_zones_that_the_pod_cannot_go_to(policy: Manifest, fits: set[str]) -> None:
    harbour = documented()
    harbour.engine.ledger.write_node(make_node("node5", labels={ZONE: "C", HOST: "node5"}), None)
    not_c = {"key": ZONE, "operator": "NotIn", "values": ["C"]}
    terms = {"nodeSelectorTerms": [{"matchExpressions": [not_c]}]}

    found = asked(harbour, spread(FOO, **policy), affinity={"nodeAffinity": {REQUIRED: terms}})

    assert found == fits


@pytest.mark.parametrize(
    ("policy", "fits"), [({}, set()), ({"nodeTaintsPolicy": "Honor"}, {"node3", "node4"})]
)
def test_zones_that_taints_keep_the_pod_from(policy: Manifest, fits: set[str]) -> None:
    harbour = documented()
    tainted = make_node("node5", labels={ZONE: "C"}, taints=[make_taint("mine")])
    harbour.engine.ledger.write_node(tainted, None)

    assert asked(harbour, spread(FOO, **policy)) == fits


def test_too_few_domains_count_as_empty_ones() -> None:
    harbour = documented()
    ignored: Manifest = {"nodeAffinityPolicy": "Ignore"}

    assert asked(harbour, spread(FOO, minDomains=2, **ignored)) == {"node3", "node4"}
    assert asked(harbour, spread(FOO, minDomains=3, **ignored)) == set()
    assert asked(harbour, spread(FOO, skew=2, minDomains=3, **ignored)) == {"node3", "node4"}


def test_a_pinned_pod_has_one_domain_its_node() -> None:
    # With minDomains, kube-scheduler will not let the pod that we pin join another on its node.
    assert asked(documented(), spread(FOO, minDomains=2)) == {"node4"}


def test_a_pod_that_is_not_selected_adds_nothing() -> None:
    harbour = documented()

    fits = harbour.fits({"foo": "other"}, topologySpreadConstraints=[spread(FOO)])

    assert fits == {"node1", "node2", "node3", "node4"}


def test_who_is_counted() -> None:
    harbour = documented()
    harbour.put("node4", FOO, is_leaving=True)
    harbour.put("node4", FOO, namespace="other")
    harbour.put("node4", FOO, phase="Failed")
    harbour.put("node4", {"foo": "other"})
    assert asked(harbour, spread(FOO)) == {"node3", "node4"}

    harbour.put("node4", FOO)
    assert asked(harbour, spread(FOO)) == {"node1", "node2", "node3", "node4"}


def test_answers_count_before_their_pods_are_seen() -> None:
    harbour = documented()
    harbour.assume("node4", FOO)

    assert asked(harbour, spread(FOO)) == {"node1", "node2", "node3", "node4"}


def test_an_empty_selector_counts_nobody() -> None:
    assert len(asked(documented(), spread({}))) == 4


def test_no_selector_counts_nobody() -> None:
    constraint = spread({})
    del constraint["labelSelector"]

    assert len(asked(documented(), constraint)) == 4


def test_label_keys_tell_rollouts_apart() -> None:
    harbour = Judged({"node1": "A", "node2": "B"})
    for _ in range(3):
        harbour.put("node1", {**FOO, "hash": "old"})
    harbour.put("node2", {**FOO, "hash": "new"})
    constraint = spread(FOO, matchLabelKeys=["hash"])

    fits = harbour.fits({**FOO, "hash": "new"}, topologySpreadConstraints=[constraint])

    assert fits == {"node1"}


def test_a_burst_spreads_evenly() -> None:
    harbour = Judged({f"n{index}": "ABC"[index % 3] for index in range(9)})
    pod = {"topologySpreadConstraints": [spread(FOO), spread(FOO, HOST)]}

    for _ in range(18):
        fits = harbour.fits(FOO, **pod)
        harbour.assume(sorted(fits)[0], FOO, **pod)

    held = [len(harbour.engine.ledger.on_node(f"n{index}")) for index in range(9)]
    assert held == [2] * 9
