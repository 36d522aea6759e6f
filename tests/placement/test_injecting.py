"""Joining node affinity keeps its meaning: a node satisfies the result if it satisfies both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jsonpatch
from hypothesis import given
from hypothesis import strategies as st

from berthmaster.placement.injecting import inject, join, own_keys

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
Data = dict[str, Any]

expressions = st.builds(
    lambda key, values: {"key": key, "operator": "In", "values": values},
    st.sampled_from(["a", "b"]),
    st.lists(st.sampled_from(["1", "2"]), min_size=1, max_size=2, unique=True),
)
fields = st.sampled_from(["n1", "n2"]).map(
    lambda it: {"key": "metadata.name", "operator": "In", "values": [it]}
)
terms = st.fixed_dictionaries(
    {},
    optional={
        "matchExpressions": st.lists(expressions, max_size=2),
        "matchFields": st.lists(fields, max_size=1),
    },
)
term_lists = st.lists(terms, max_size=3)
preferences = st.lists(
    st.builds(
        lambda weight, term: {"weight": weight, "preference": term}, st.integers(1, 100), terms
    ),
    max_size=2,
)
NODES = [
    {"name": name, "labels": {"a": a, "b": b}}
    for name in ("n1", "n2")
    for a in ("1", "2", "3")
    for b in ("1", "2")
]


def is_met(node: Data, term: Mapping[str, Any]) -> bool:
    parts = [
        *((it, node["labels"].get(it["key"])) for it in term.get("matchExpressions") or ()),
        *((it, node["name"]) for it in term.get("matchFields") or ()),
    ]
    return bool(parts) and all(value in it["values"] for it, value in parts)


def meets(node: Data, of: Iterable[Mapping[str, Any]]) -> bool:
    return any(is_met(node, it) for it in of)


def apply(pod: Data, **injected: Any) -> Data:
    after: Data = jsonpatch.apply_patch(pod, inject(pod, **injected))
    return after


@given(term_lists, term_lists)
def test_a_node_satisfies_the_joined_terms_if_it_satisfies_both(
    own: list[Data], injected: list[Data]
) -> None:
    joined = join(own, injected)
    wanted = [it for it in injected if it.get("matchExpressions") or it.get("matchFields")]
    # Terms that are all empty give way, as in the system that the rule is taken from.
    kept = [it for it in own if it.get("matchExpressions") or it.get("matchFields")]
    for node in NODES:
        if not wanted:
            assert joined is None
        else:
            both = meets(node, wanted) and (not kept or meets(node, kept))
            assert meets(node, joined or []) == both


@given(
    st.one_of(st.none(), term_lists),
    st.one_of(st.none(), preferences),
    st.lists(terms, max_size=1),
    preferences,
)
def test_a_second_injection_changes_nothing_and_preferences_stay_in_front(
    own: list[Data] | None, known: list[Data] | None, required: list[Data], preferred: list[Data]
) -> None:
    affinity: Data = {}
    if own is not None:
        affinity[REQUIRED] = {"nodeSelectorTerms": own}
    if known is not None:
        affinity[PREFERRED] = known
    pod = {"spec": {"affinity": {"nodeAffinity": affinity}}}
    once = apply(pod, required=required, preferred=preferred)

    assert inject(once, required=required, preferred=preferred) == []
    after = once["spec"]["affinity"]["nodeAffinity"].get(PREFERRED) or []
    assert after[: len(known or [])] == (known or [])
    assert all(it in after for it in preferred)


def test_missing_levels_are_made_once() -> None:
    term, preference = {"matchFields": [{"key": "k"}]}, {"weight": 1, "preference": {}}
    for spec in ({}, {"affinity": None}, {"affinity": {"nodeAffinity": None}}):
        after = apply({"spec": spec}, required=[term], preferred=[preference])
        assert after["spec"]["affinity"]["nodeAffinity"] == {
            REQUIRED: {"nodeSelectorTerms": [term]},
            PREFERRED: [preference],
        }


def test_keys_by_which_a_pod_chooses_are_found_wherever_they_stand() -> None:
    def term(key: str) -> Data:
        return {"matchExpressions": [{"key": key, "operator": "Exists"}]}

    affinity = {
        REQUIRED: {"nodeSelectorTerms": [term("r"), {}]},
        PREFERRED: [{"weight": 1, "preference": term("p")}],
    }
    spec = {"nodeSelector": {"s": "x"}, "affinity": {"nodeAffinity": affinity}}
    assert own_keys({"spec": spec}) == {"r", "p", "s"}
    assert own_keys({"spec": {}}) == frozenset()
