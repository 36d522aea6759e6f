from __future__ import annotations

from typing import Any

from berthmaster.api import names
from berthmaster.api.policy import PlacementPolicy, policy_from_manifest
from berthmaster_operator.bindings import (
    COLLECTION,
    BindingReconciler,
    binding_name,
    build_binding,
)
from berthmaster_operator.fleet import Fleet
from berthmaster_operator.metrics import Metrics
from operator_program.stores import FakeStore


def make_policy(name: str = "lab", **spec: Any) -> PlacementPolicy:
    return policy_from_manifest({"metadata": {"name": name, "uid": "u"}, "spec": spec})


def test_selectors_become_match_resources() -> None:
    expression = {"key": "tier", "operator": "In", "values": ["a"]}
    policy = make_policy(
        namespaceSelector={"matchLabels": {"team": "x"}},
        podSelector={"matchExpressions": [expression, {"key": "k", "operator": "Exists"}]},
    )

    binding = build_binding(policy)

    assert binding is not None
    assert binding["metadata"]["name"] == "berthmaster-policy-lab"
    owner = binding["metadata"]["ownerReferences"][0]
    assert (owner["kind"], owner["name"], owner["uid"]) == ("PlacementPolicy", "lab", "u")
    assert binding["spec"] == {
        "policyName": names.SELECTED_POLICY,
        "paramRef": {"name": "lab", "parameterNotFoundAction": "Allow"},
        "matchResources": {
            "matchPolicy": "Equivalent",
            "namespaceSelector": {"matchLabels": {"team": "x"}},
            "objectSelector": {
                "matchExpressions": [expression, {"key": "k", "operator": "Exists"}]
            },
        },
    }


def test_scheduler_names_alone_match_everywhere() -> None:
    binding = build_binding(make_policy(schedulerNames=["old"]))

    assert binding is not None
    assert binding["spec"]["matchResources"]["namespaceSelector"] == {}


def test_policy_that_opts_nobody_in_has_none() -> None:
    assert build_binding(make_policy()) is None


def test_policy_that_is_off_keeps_its_binding() -> None:
    assert build_binding(make_policy(podSelector={}, mode="off")) is not None


def test_long_names_stay_apart() -> None:
    first, second = binding_name("a" * 250), binding_name("a" * 249 + "b")

    assert first != second
    assert len(first) <= 253


async def test_binding_comes_and_goes_with_the_selectors() -> None:
    store = FakeStore()
    fleet = Fleet(diskio_namespace="d", clock=lambda: 0.0, on_dirty=lambda _: None)
    reconciler = BindingReconciler(store, fleet, may_write=lambda: True, metrics=Metrics())
    path = f"{COLLECTION}/berthmaster-policy-lab"
    fleet.see_policy(make_policy(podSelector={}))
    await reconciler.reconcile("lab")
    assert store.writes == [], "nothing before all was seen"
    fleet.is_complete = True

    assert await reconciler.reconcile("lab") == 600
    assert path in store.objects

    fleet.see_policy(make_policy())
    assert await reconciler.reconcile("lab") is None
    assert path not in store.objects
    assert await reconciler.reconcile("lab") is None
