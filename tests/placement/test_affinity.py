from __future__ import annotations

import copy
from typing import Any

import jsonpatch
import pytest
from hypothesis import given
from hypothesis import strategies as st

from berthmaster.api.json_pointer import escape, unescape
from berthmaster.placement.affinity import (
    Operation,
    annotate,
    annotate_all,
    can_pin,
    guard,
    pin_at_creation,
    pin_gated,
    prefer,
    remove_gate,
)
from berthmaster.placement.injecting import inject

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
Data = dict[str, Any]
PIN = {"key": "metadata.name", "operator": "In", "values": ["n1"]}
PIN_TERM = {"matchFields": [PIN]}
A = {"key": "a", "operator": "Exists"}
B = {"key": "b", "operator": "In", "values": ["x", "y"]}
ELSEWHERE = {"key": "metadata.name", "operator": "In", "values": ["n2"]}
POD_AFFINITY = {REQUIRED: [{"topologyKey": "zone"}]}


def pod_with(**spec: Any) -> Data:
    return {"metadata": {"name": "p", "uid": "u", "resourceVersion": "7"}, "spec": spec}


def pod_with_terms(*terms: Data, **affinity: Any) -> Data:
    node_affinity = {REQUIRED: {"nodeSelectorTerms": list(terms)}}
    return pod_with(affinity={"nodeAffinity": node_affinity, **affinity})


def apply(pod: Data, operations: list[Operation]) -> Data:
    before = copy.deepcopy(pod)
    after: Data = jsonpatch.apply_patch(pod, operations)
    assert pod == before
    return after


def terms_of(pod: Data) -> list[Data]:
    found: list[Data] = pod["spec"]["affinity"]["nodeAffinity"][REQUIRED]["nodeSelectorTerms"]
    return found


# The rows of the facts, 2.4, in which a pin takes part.
TABLE: dict[str, tuple[Data, list[Data]]] = {
    "1 no affinity": (pod_with(), [PIN_TERM]),
    "1 affinity null": (pod_with(affinity=None), [PIN_TERM]),
    "1 node affinity null": (pod_with(affinity={"nodeAffinity": None}), [PIN_TERM]),
    "1 required null": (pod_with(affinity={"nodeAffinity": {REQUIRED: None}}), [PIN_TERM]),
    "4 one term": (
        pod_with_terms({"matchExpressions": [A]}),
        [{"matchExpressions": [A], "matchFields": [PIN]}],
    ),
    "5 two terms": (
        pod_with_terms({"matchExpressions": [A]}, {"matchExpressions": [B]}),
        [
            {"matchExpressions": [A], "matchFields": [PIN]},
            {"matchExpressions": [B], "matchFields": [PIN]},
        ],
    ),
    "8 fields already": (
        pod_with_terms({"matchFields": [ELSEWHERE], "matchExpressions": [B]}),
        [{"matchFields": [ELSEWHERE, PIN], "matchExpressions": [B]}],
    ),
    "9 empty term": (
        pod_with_terms({}, {"matchExpressions": [A]}),
        [{}, {"matchExpressions": [A], **PIN_TERM}],
    ),
    "9 term of empty lists": (
        pod_with_terms({"matchExpressions": [], "matchFields": []}),
        [{"matchExpressions": [], "matchFields": []}],
    ),
    "fields an empty list": (
        pod_with_terms({"matchExpressions": [A], "matchFields": []}),
        [{"matchExpressions": [A], "matchFields": [PIN]}],
    ),
    "15 pod affinity only": (pod_with(affinity={"podAffinity": POD_AFFINITY}), [PIN_TERM]),
    "17 preferences only": (
        pod_with(affinity={"nodeAffinity": {PREFERRED: [{"weight": 1, "preference": {}}]}}),
        [PIN_TERM],
    ),
    "no terms": (pod_with_terms(), []),
}


@pytest.mark.parametrize(("pod", "terms"), TABLE.values(), ids=TABLE.keys())
def test_pin_is_added_to_every_term(pod: Data, terms: list[Data]) -> None:
    pinned = apply(pod, pin_at_creation(pod, "n1"))

    assert terms_of(pinned) == terms
    assert pin_at_creation(pinned, "n1") == []
    assert pin_gated(pod, "n1") == pin_at_creation(pod, "n1")


def test_pin_leaves_everything_else() -> None:
    preferred = [{"weight": 3, "preference": {"matchExpressions": [A]}}]
    pod = pod_with_terms({"matchExpressions": [A]}, podAffinity=POD_AFFINITY)
    pod["spec"]["affinity"]["nodeAffinity"][PREFERRED] = preferred

    pinned = apply(pod, pin_at_creation(pod, "n1"))

    assert pinned["spec"]["affinity"]["podAffinity"] == POD_AFFINITY
    assert pinned["spec"]["affinity"]["nodeAffinity"][PREFERRED] == preferred


@pytest.mark.parametrize(
    ("pod", "possible"),
    [
        (pod_with(), True),
        (pod_with_terms({"matchExpressions": [A]}), True),
        (pod_with_terms({"matchFields": [PIN]}), True),
        (pod_with_terms({"matchFields": [ELSEWHERE]}), False),
        (pod_with_terms({"matchFields": [ELSEWHERE]}, {"matchExpressions": [A]}), True),
        (pod_with_terms({"matchFields": [{**ELSEWHERE, "operator": "NotIn"}]}), True),
        (pod_with_terms({"matchFields": [{**PIN, "operator": "NotIn"}]}), False),
        (pod_with_terms({}), False),
        (pod_with_terms(), False),
    ],
)
def test_a_pin_needs_a_term_that_allows_the_node(pod: Data, possible: bool) -> None:
    assert can_pin(pod, "n1") is possible


@pytest.mark.parametrize(
    ("gates", "left"),
    [(["ours"], None), (["ours", "other"], ["other"]), (["other", "ours"], ["other"])],
)
def test_gate_is_taken_off(gates: list[str], left: list[str] | None) -> None:
    pod = pod_with(schedulingGates=[{"name": gate} for gate in gates])

    opened = apply(pod, remove_gate(pod, "ours"))

    found = opened["spec"].get("schedulingGates")
    assert (found and [gate["name"] for gate in found]) == left
    assert remove_gate(opened, "ours") == []


def test_gate_patch_fails_on_a_pod_that_moved_on() -> None:
    pod = pod_with(schedulingGates=[{"name": "ours"}, {"name": "other"}])
    moved = pod_with(schedulingGates=[{"name": "other"}, {"name": "ours"}])

    with pytest.raises(jsonpatch.JsonPatchTestFailed):
        apply(moved, remove_gate(pod, "ours"))


@pytest.mark.parametrize("field", ["uid", "resourceVersion"])
def test_guard_lets_only_this_version_through(field: str) -> None:
    pod = pod_with()
    other = {**pod, "metadata": {**pod["metadata"], field: "other"}}

    assert apply(pod, guard(pod)) == pod
    with pytest.raises(jsonpatch.JsonPatchTestFailed):
        apply(other, guard(pod))


def test_one_patch_does_it_all() -> None:
    pod = pod_with_terms({"matchExpressions": [A]})
    pod["spec"]["schedulingGates"] = [{"name": "ours"}]
    operations = [
        *guard(pod),
        *annotate_all(pod, {"x/y": "1", "z~": "2"}),
        *pin_gated(pod, "n1"),
        *remove_gate(pod, "ours"),
    ]

    placed = apply(pod, operations)

    assert placed["metadata"]["annotations"] == {"x/y": "1", "z~": "2"}
    assert terms_of(placed) == [{"matchExpressions": [A], "matchFields": [PIN]}]
    assert "schedulingGates" not in placed["spec"]


def test_preference_joins_others_once() -> None:
    bare = pod_with()
    others = pod_with(affinity={"nodeAffinity": {PREFERRED: [{"weight": 1, "preference": {}}]}})

    for pod, count in ((bare, 1), (others, 2)):
        preferring = apply(pod, inject(pod, preferred=prefer({"n1": 40})))
        found = preferring["spec"]["affinity"]["nodeAffinity"][PREFERRED]
        assert found[-1] == {"weight": 40, "preference": PIN_TERM}
        assert len(found) == count
        assert inject(preferring, preferred=prefer({"n1": 40})) == []


def test_pointer_escapes_in_the_right_order() -> None:
    assert escape("a/b~c") == "a~1b~0c"
    assert unescape("a~1b~0c") == "a/b~c"


@given(
    st.none() | st.dictionaries(st.text(max_size=6), st.text(max_size=3), max_size=3),
    st.text(max_size=6),
    st.text(max_size=3),
)
def test_annotation_is_set_and_others_stay(
    known: dict[str, str] | None, key: str, value: str
) -> None:
    pod: Data = {"metadata": {"annotations": known}} if known is not None else {"metadata": {}}

    annotated = apply(pod, annotate(pod, key, value))

    assert annotated["metadata"]["annotations"] == {**(known or {}), key: value}
    assert annotate(annotated, key, value) == []


NODES = {"n1": {"a": "1"}, "n2": {"a": "1", "b": "x"}, "n3": {}}
expressions = st.sampled_from([A, B])
fields = st.builds(
    lambda operator, node: {"key": "metadata.name", "operator": operator, "values": [node]},
    st.sampled_from(["In", "NotIn"]),
    st.sampled_from(sorted(NODES)),
)
user_terms = st.fixed_dictionaries(
    {},
    optional={
        "matchExpressions": st.none() | st.lists(expressions, max_size=2),
        "matchFields": st.none() | st.lists(fields, max_size=2),
    },
)


def matches(pod: Data, name: str) -> bool:
    return any(
        (term.get("matchExpressions") or term.get("matchFields"))
        and all(
            it["key"] in NODES[name]
            and NODES[name][it["key"]] in it.get("values", NODES[name].values())
            for it in term.get("matchExpressions") or ()
        )
        and all(
            (name in it["values"]) == (it["operator"] == "In")
            for it in term.get("matchFields") or ()
        )
        for term in terms_of(pod)
    )


@given(st.lists(user_terms, min_size=1, max_size=4), st.sampled_from(sorted(NODES)))
def test_pinned_pod_matches_its_node_alone(terms: list[Data], node: str) -> None:
    pod = pod_with_terms(*terms)

    pinned = apply(pod, pin_at_creation(pod, node))

    accepted = {name for name in NODES if matches(pinned, name)}
    assert accepted == ({node} if matches(pod, node) else set())
    assert can_pin(pod, node) or not accepted
    assert len(terms_of(pinned)) == len(terms)
    for old, new in zip(terms, terms_of(pinned), strict=True):
        for key in ("matchExpressions", "matchFields"):
            kept = old.get(key) or []
            assert (new.get(key) or [])[: len(kept)] == kept
        if not old.get("matchExpressions") and not old.get("matchFields"):
            assert new == old
