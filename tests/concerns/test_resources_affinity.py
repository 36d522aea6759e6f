"""Required affinity and anti-affinity between pods, by the rules of Kubernetes' documentation."""

from __future__ import annotations

from berthmaster.api.objects import pod_from_manifest
from concerns.judged import HOST, ZONE, Judged, far, labelled, near, term

WEB, DB = {"app": "web"}, {"app": "db"}
NEAR = "node(s) didn't match pod affinity rules"
FAR = "node(s) didn't match pod anti-affinity rules"
OBJECTED = "node(s) didn't satisfy existing pods anti-affinity rules"


def two_zones() -> Judged:
    """Two nodes in each of two zones, and one node without a zone."""
    return Judged({"a1": "a", "a2": "a", "b1": "b", "b2": "b", "x": ""})


class TestAffinity:
    def test_pods_go_where_the_others_zone_is(self) -> None:
        harbour = two_zones()
        harbour.put("b1", DB)

        why = harbour.why(WEB, affinity=near(term(DB)))

        assert why == {"a1": NEAR, "a2": NEAR, "b1": "", "b2": "", "x": NEAR}

    def test_nobody_there_is_nowhere(self) -> None:
        assert two_zones().fits(WEB, affinity=near(term(DB))) == set()

    def test_the_first_of_its_own_kind_goes_anywhere_with_the_label(self) -> None:
        harbour = two_zones()

        assert harbour.fits(WEB, affinity=near(term(WEB))) == {"a1", "a2", "b1", "b2"}
        harbour.put("a2", WEB)
        assert harbour.fits(WEB, affinity=near(term(WEB))) == {"a1", "a2"}

    def test_one_of_its_kind_outside_all_domains_does_not_count(self) -> None:
        harbour = two_zones()
        harbour.put("x", WEB)

        assert harbour.fits(WEB, affinity=near(term(WEB))) == {"a1", "a2", "b1", "b2"}

    def test_its_own_kind_elsewhere_makes_no_first(self) -> None:
        harbour = two_zones()

        assert harbour.fits(WEB, affinity=near(term(WEB, namespaces=["other"]))) == set()

    def test_one_pod_must_meet_all_terms(self) -> None:
        harbour = two_zones()
        harbour.put("a1", {"app": "db"})
        harbour.put("a2", {"tier": "back"})
        terms = near(term({"app": "db"}), term({"tier": "back"}))

        assert harbour.fits(WEB, affinity=terms) == set()
        harbour.put("b1", {"app": "db", "tier": "back"})
        assert harbour.fits(WEB, affinity=terms) == {"b1", "b2"}

    def test_each_term_has_its_own_nearness(self) -> None:
        harbour = two_zones()
        harbour.put("b1", DB)

        assert harbour.fits(WEB, affinity=near(term(DB), term(DB, HOST))) == {"b1"}

    def test_pods_of_the_own_namespace_are_meant(self) -> None:
        harbour = two_zones()
        harbour.put("a1", DB, namespace="other")

        assert harbour.fits(WEB, affinity=near(term(DB))) == set()
        assert harbour.fits(WEB, namespace="other", affinity=near(term(DB))) == {"a1", "a2"}

    def test_namespaces_by_name_by_label_and_all(self) -> None:
        harbour = two_zones()
        harbour.add_namespace("other", team="sea")
        harbour.put("a1", DB, namespace="other")
        sea = term(DB, namespaceSelector={"matchLabels": {"team": "sea"}})

        assert harbour.fits(WEB, affinity=near(term(DB, namespaces=["other"]))) == {"a1", "a2"}
        assert harbour.fits(WEB, affinity=near(sea)) == {"a1", "a2"}
        assert harbour.fits(WEB, affinity=near(term(DB, namespaceSelector={}))) == {"a1", "a2"}
        harbour.add_namespace("other", team="land")
        assert harbour.fits(WEB, affinity=near(sea)) == set()

    def test_pods_that_are_being_deleted_still_attract(self) -> None:
        harbour = two_zones()
        harbour.put("a1", DB, is_leaving=True)

        assert harbour.fits(WEB, affinity=near(term(DB))) == {"a1", "a2"}

    def test_pods_that_are_finished_do_not(self) -> None:
        harbour = two_zones()
        harbour.put("a1", DB, phase="Succeeded")

        assert harbour.fits(WEB, affinity=near(term(DB))) == set()

    def test_answers_count_before_their_pods_are_seen(self) -> None:
        harbour = two_zones()
        decision = harbour.assume("a1", DB)

        assert harbour.fits(WEB, affinity=near(term(DB))) == {"a1", "a2"}
        harbour.engine.ledger.drop(decision)
        assert harbour.fits(WEB, affinity=near(term(DB))) == set()


class TestAntiAffinity:
    def test_pods_stay_out_of_the_others_zone(self) -> None:
        harbour = two_zones()
        harbour.put("b1", DB)

        why = harbour.why(WEB, affinity=far(term(DB)))

        assert why == {"a1": "", "a2": "", "b1": FAR, "b2": FAR, "x": ""}

    def test_one_of_several_terms_is_enough(self) -> None:
        harbour = two_zones()
        harbour.put("b1", DB)
        harbour.put("a1", {"app": "cache"})

        fits = harbour.fits(WEB, affinity=far(term(DB), term({"app": "cache"}, HOST)))

        assert fits == {"a2", "x"}

    def test_pods_that_are_there_keep_others_away(self) -> None:
        harbour = two_zones()
        harbour.put("b1", DB, affinity=far(term(WEB)))

        assert harbour.why(WEB)["b2"] == OBJECTED
        assert harbour.fits(WEB) == {"a1", "a2", "x"}
        assert harbour.fits(DB) == {"a1", "a2", "b1", "b2", "x"}
        assert harbour.fits(WEB, namespace="other") == {"a1", "a2", "b1", "b2", "x"}

    def test_answers_keep_others_away_before_their_pods_are_seen(self) -> None:
        harbour = two_zones()
        harbour.assume("b1", DB, affinity=far(term(WEB)))

        assert harbour.fits(WEB) == {"a1", "a2", "x"}

    def test_objections_end_with_their_pod(self) -> None:
        harbour = two_zones()
        pod = harbour.put("b1", DB, affinity=far(term(WEB)))
        harbour.engine.ledger.forget(pod)

        assert len(harbour.fits(WEB)) == 5

    def test_objections_reach_namespaces_by_their_labels(self) -> None:
        harbour = two_zones()
        sea = term(WEB, namespaceSelector={"matchLabels": {"team": "sea"}})
        harbour.put("b1", DB, affinity=far(sea))
        harbour.add_namespace("other", team="sea")

        assert harbour.fits(WEB, namespace="other") == {"a1", "a2", "x"}
        # A namespace selector replaces the own namespace.
        assert len(harbour.fits(WEB)) == 5

    def test_no_selector_means_no_pod_and_an_empty_one_all(self) -> None:
        harbour = two_zones()
        harbour.put("b1", DB)

        assert len(harbour.fits(WEB, affinity=far(term(None)))) == 5
        assert harbour.fits(WEB, affinity=far(term({}))) == {"a1", "a2", "x"}


class TestLabelKeys:
    def test_matching_keys_mean_pods_of_the_same_rollout(self) -> None:
        harbour = two_zones()
        harbour.put("a1", {**WEB, "hash": "old"})
        harbour.put("b1", {**WEB, "hash": "new"})
        affinity = far(term(WEB, matchLabelKeys=["hash"]))

        assert harbour.fits({**WEB, "hash": "new"}, affinity=affinity) == {"a1", "a2", "x"}
        # A key that the pod does not have asks nothing.
        assert harbour.fits(WEB, affinity=affinity) == {"x"}

    def test_mismatching_keys_mean_all_others(self) -> None:
        harbour = two_zones()
        harbour.put("a1", {**WEB, "tenant": "one"})
        harbour.put("b1", {**WEB, "tenant": "two"})
        affinity = far(term(WEB, mismatchLabelKeys=["tenant"]))

        assert harbour.fits({**WEB, "tenant": "one"}, affinity=affinity) == {"a1", "a2", "x"}

    def test_stored_pods_have_them_in_their_selector(self) -> None:
        # The API server merges them at creation; a label that changes later changes nothing.
        harbour = two_zones()
        harbour.put("a1", {**WEB, "hash": "new"})
        merged = {
            "topologyKey": ZONE,
            "matchLabelKeys": ["hash"],
            "labelSelector": {
                "matchLabels": WEB,
                "matchExpressions": [{"key": "hash", "operator": "In", "values": ["old"]}],
            },
        }

        fits = harbour.fits({**WEB, "hash": "new"}, affinity=far(merged), is_stored=True)

        assert len(fits) == 5


def test_pods_that_differ_in_labels_that_nobody_minds_ask_for_the_same() -> None:
    harbour = two_zones()
    first, second, other = (
        labelled(name, {**WEB, "pod-index": name}) for name in ("one", "two", "three")
    )
    assert harbour.request(first) == harbour.request(second)

    harbour.put("b1", DB, affinity=far(term({"pod-index": "three"})))

    assert harbour.request(first) == harbour.request(second)
    assert harbour.request(other) != harbour.request(first)


def test_a_request_read_earlier_hears_of_objections() -> None:
    harbour = two_zones()
    request = harbour.request(labelled("new", WEB))
    harbour.put("b1", DB, affinity=far(term(WEB)))

    fits = {it.node for it in harbour.engine.verdicts(request) if it.reason is None}
    decision = harbour.engine.decide(request, "d")

    assert fits == {"a1", "a2", "x"}
    assert decision.node in fits
    assert decision.feasible == 3
    assert [str(it) for it in decision.refusals] == [f"2 (b1, b2) {OBJECTED}"]
    assert harbour.engine.resolve(request) != request


def test_a_pod_that_others_may_want_near_is_news() -> None:
    harbour = two_zones()
    harbour.fits(WEB, affinity=near(term(DB)))
    before = harbour.engine.news

    harbour.put("a1", WEB)
    assert harbour.engine.news == before
    harbour.put("a1", DB)
    assert harbour.engine.news != before
    again = harbour.engine.news
    harbour.engine.ledger.see(pod_from_manifest(labelled("later", DB)))
    assert harbour.engine.news == again
