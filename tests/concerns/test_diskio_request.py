"""The disk IO annotation: every spelling that Go accepts, and every fault named."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from berthmaster.api.objects import pod_from_manifest
from berthmaster.api.policy import ConcernSettings, DiskIOSettings, PlacementPolicySpec
from berthmaster.concerns.diskio.request import (
    BEST_EFFORT,
    Usage,
    parse_annotation,
    read_request,
    read_usage,
)
from berthmaster.concerns.shape import InvalidRequestError

MIB = 2**20
KEY = "blockio.kubernetes.io/resources"


@pytest.mark.parametrize(
    ("text", "usage"),
    [
        ('{"rbps": "900Mi", "wbps": "1M", "blocksize": "4k"}', Usage(900 * MIB, 10**6, "4k")),
        ('{"RBPS": "1Mi", "WbPs": "2Mi", "blockSize": "512"}', Usage(MIB, 2 * MIB, "512")),
        ('{"rbps": "1Mi", "RBPS": "3Mi", "wbps": "0", "blocksize": "1k"}', Usage(3 * MIB, 0, "1k")),
        ('{"rbps": "1.5Gi", "wbps": "1500m", "blocksize": "32k"}', Usage(1536 * MIB, 2, "32k")),
        ('{"rbps": "1Mi", "rbps": null, "wbps": "1", "blocksize": "8k", "x": {"y": []}}',
         Usage(MIB, 1, "8k")),
        ("", BEST_EFFORT),
    ],
    ids=["plain", "any-case", "later-spelling-wins", "fractions-round-up", "null-and-unknown", "empty"],
)  # fmt: skip
def test_annotation_is_understood(text: str, usage: Usage) -> None:
    assert parse_annotation(text) == (usage, ())


@pytest.mark.parametrize(
    ("text", "field", "words"),
    [
        ('{"rbps": "1", "wbps": "1", "blocksize": "4Ki"}', "blocksize", "unsupported block size"),
        ('{"rbps": "1", "wbps": "1", "blocksize": "4k", "BLOCKSIZE": "64k"}', "blocksize", "64k"),
        ('{"rbps": "1", "wbps": "1"}', "blocksize", "none is given"),
        ('{"wbps": "1", "blocksize": "4k"}', "rbps", "missing, expected bytes per second"),
        ('{"rbps": "1", "wbps": "-5Mi", "blocksize": "4k"}', "wbps", "negative"),
        ('{"rbps": "abc", "wbps": "1", "blocksize": "4k"}', "rbps", "not a quantity"),
        ('{"rbps": 30, "wbps": "1", "blocksize": "4k"}', "", "must be text in quotes"),
        ("[]", "", "JSON object is expected"),
        ("null", "rbps", "missing"),
        ('{"rbps": NaN}', "", "NaN"),
        ("[" * 100_000, "", "not understood"),
        ("{", "", "not understood"),
    ],
)
def test_fault_names_field_and_way_out(text: str, field: str, words: str) -> None:
    usage, problems = parse_annotation(text)

    assert usage == BEST_EFFORT
    named = [problem for problem in problems if words in problem.message]
    assert named, problems
    assert named[0].field.startswith(f"metadata.annotations[{KEY}]")
    assert named[0].field.endswith(field)


def test_every_fault_is_told_at_once() -> None:
    _, problems = parse_annotation('{"rbps": "x", "wbps": "-1", "blocksize": "7k"}')

    assert [problem.field.rpartition(".")[2] for problem in problems] == [
        "rbps",
        "wbps",
        "blocksize",
    ]


@given(st.text() | st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["rbps", "WBPS", "blockSize", "x"]), inner, max_size=4),
    max_leaves=8,
).map(json.dumps))  # fmt: skip
def test_no_text_gets_past_its_faults(text: str) -> None:
    usage, problems = parse_annotation(text)

    assert usage.read_bytes_per_s >= 0
    assert usage.write_bytes_per_s >= 0
    assert usage == BEST_EFFORT or not problems


@pytest.mark.parametrize("key", ["rbps", "wbps", "blocksize"])
def test_fault_is_short_and_can_be_sent(key: str) -> None:
    """Half a character from a \\u escape, and a text without end: both go into conditions."""
    fields = {"rbps": "1", "wbps": "1", "blocksize": "4k", key: "\ud800" + "x" * 100_000}

    _, problems = parse_annotation(json.dumps(fields))

    (problem,) = problems
    assert len(str(problem).encode()) < 1000


def test_invalid_request_carries_a_refused_form() -> None:
    pod = pod_from_manifest({"metadata": {"namespace": "a", "annotations": {KEY: "{}"}}})

    with pytest.raises(InvalidRequestError) as caught:
        read_request(pod, PlacementPolicySpec())

    assert caught.value.request.problem  # type: ignore[attr-defined]


def test_white_listed_namespace_asks_nothing() -> None:
    policy = PlacementPolicySpec(
        concerns=ConcernSettings(diskio=DiskIOSettings(ns_white_list=("quiet",)))
    )
    pod = pod_from_manifest({"metadata": {"namespace": "quiet", "annotations": {KEY: "{}"}}})

    assert read_request(pod, policy) is None


@pytest.mark.parametrize(
    "allocated",
    [
        {"rbps": -1, "wbps": 1, "blockSize": "4k"},
        {"rbps": 1, "wbps": 1, "blockSize": []},
        {"rbps": "1"},
        {"device": "sda"},
    ],
)
def test_odd_allocation_counts_as_default(allocated: dict[str, object]) -> None:
    assert read_usage(pod_from_manifest({}), allocated) == BEST_EFFORT
