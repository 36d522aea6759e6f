"""What pods ask of disks: every spelling that Go accepts, the other shapes, and every fault named."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from berthmaster.api import names
from berthmaster.api.objects import pod_from_manifest
from berthmaster.api.policy import ConcernSettings, PlacementPolicySpec
from berthmaster.api.settings.diskio import BlockSizePolicy, DiskIOSettings
from berthmaster.concerns.diskio.request import read_request, read_usage
from berthmaster.concerns.diskio.shapes import (
    BEST_EFFORT,
    Rules,
    Usage,
    is_for_every_driver,
    read_annotations,
)
from berthmaster.concerns.shape import InvalidRequestError, Problem

MIB = 2**20
KEY = "blockio.kubernetes.io/resources"
READ, WRITE, SIZE = names.DISK_READ, names.DISK_WRITE, names.DISK_BLOCK_SIZE
STRICT, NEAREST = Rules(), Rules(BlockSizePolicy.NEAREST)


def parse_annotation(text: str, rules: Rules = STRICT) -> tuple[Usage | None, tuple[Problem, ...]]:
    return read_annotations({KEY: text}, rules)


def typed(read: str = "1Mi", write: str = "2Mi", size: str | None = "4k") -> dict[str, str]:
    found = {READ: read, WRITE: write}
    return found if size is None else {**found, SIZE: size}


def volume(read: str, write: str) -> dict[str, object]:
    return {"requests": {"rbps": read, "wbps": write}, "limits": {"rbps": "9Gi"}}


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

    assert usage is not None
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


def test_volumes_are_added_up() -> None:
    text = json.dumps({"a": volume("50Mi/8k", "1Mi/8k"), "b": volume("7Mi/8k", "0/8k")})

    assert parse_annotation(text) == (Usage(57 * MIB, MIB, "8k"), ())


def test_volume_without_a_block_size_counts_4k() -> None:
    assert parse_annotation(json.dumps({"a": volume("5Mi", "1Mi/4k")}))[0] == Usage(
        5 * MIB, MIB, "4k"
    )


def test_annotations_of_their_own_say_the_same() -> None:
    assert read_annotations(typed(), STRICT) == (Usage(MIB, 2 * MIB, "4k"), ())


def test_two_ways_that_agree_are_one() -> None:
    flat = json.dumps({"rbps": "1024Ki", "wbps": "2Mi", "blocksize": "4k"})

    assert read_annotations({KEY: flat, **typed()}, STRICT) == (Usage(MIB, 2 * MIB, "4k"), ())


@pytest.mark.parametrize(
    ("annotations", "fields", "words"),
    [
        ({KEY: "", **typed()}, [KEY], [READ, WRITE, SIZE, "keep one"]),
        ({KEY: '{"rbps": "3Mi", "wbps": "2Mi", "blocksize": "4k"}', **typed()}, [KEY],
         ["3Mi read", "1Mi read", READ]),
        ({KEY: json.dumps({"rbps": "1", "data": volume("1", "1")})}, [KEY],
         ["both shapes", "rbps", '"data"', "keep one"]),
        ({READ: "1Mi"}, [WRITE, SIZE], ["missing", "none is given"]),
        (typed(read="-1"), [READ], ["negative"]),
        (typed(size="9z"), [SIZE], ["unsupported block size", '"9z"', "512, 1k"]),
        ({KEY: json.dumps({"data": {"limits": {"rbps": "1"}}})}, [f"{KEY}].data.requests"],
         ["missing", "for each volume"]),
        ({KEY: json.dumps({"data": {"requests": {"rbps": "1/4k", "wbps": 3}}})},
         [f"{KEY}].data.requests.wbps"], ["text in quotes"]),
        ({KEY: json.dumps({"data": {"requests": {"rbps": "1/4k"}}})},
         [f"{KEY}].data.requests.wbps"], ["missing"]),
        ({KEY: json.dumps({"data": volume("-1/4k", "x/64k")})},
         [f"{KEY}].data.requests.rbps", f"{KEY}].data.requests.wbps"],
         ["negative", "not a quantity", '"64k"']),
        ({KEY: json.dumps({"a": volume("1/4k", "1/4k"), "b": volume("1/8k", "1/8k")})},
         [f"{KEY}].b.requests.rbps"], ["block size 8k, but 4k in", "one block size"]),
    ],
    ids=["empty-and-typed", "differ", "both-shapes", "typed-missing", "typed-negative", "typed-size",
         "no-requests", "number", "volume-missing", "volume-faults", "two-sizes"],
)  # fmt: skip
def test_fault_of_any_shape_is_named(
    annotations: dict[str, str], fields: list[str], words: list[str]
) -> None:
    usage, problems = read_annotations(annotations, STRICT)

    text = "; ".join(map(str, problems))
    assert usage == BEST_EFFORT
    for part in (*fields, *words):
        assert part in text, text
    assert {problem.field.startswith("metadata.annotations[") for problem in problems} == {True}


@given(st.dictionaries(
    st.sampled_from([KEY, READ, WRITE, SIZE]),
    st.sampled_from(["", "1Mi", "4k", "-1", "1.5Gi", "{", "null"]) | st.recursive(
        st.sampled_from(["1Mi", "2Mi/4k", "4k", "-1/8k", "", "/", "1/2/3"]) | st.none(),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(
            st.sampled_from(["rbps", "WBPS", "blockSize", "requests", "vol"]), inner, max_size=4),
        max_leaves=10,
    ).map(json.dumps),
), st.sampled_from([STRICT, NEAREST, Rules(BlockSizePolicy.STRICT, "8k")]))  # fmt: skip
def test_no_annotations_get_past_their_faults(annotations: dict[str, str], rules: Rules) -> None:
    usage, problems = read_annotations(annotations, rules)

    assert (usage is None) == (not annotations)
    assert not problems or usage == BEST_EFFORT
    if usage is not None and usage != BEST_EFFORT:
        assert usage.block_size in ("512", "1k", "4k", "8k", "16k", "32k")
        assert min(usage.read_bytes_per_s, usage.write_bytes_per_s) >= 0


@pytest.mark.parametrize(
    ("text", "size"),
    [("4k", "4k"), ("4K", "4k"), ("4Ki", "4k"), ("4KiB", "4k"), ("4096", "4k"), ("4096B", "4k"),
     ("512B", "512"), ("64k", "32k"), ("1M", "32k"), ("6k", "4k"), ("100", "512"), ("8191", "4k")],
)  # fmt: skip
def test_nearest_takes_the_next_lower_size(text: str, size: str) -> None:
    annotation = json.dumps({"rbps": "1", "wbps": "1", "blocksize": text})

    assert parse_annotation(annotation, NEAREST) == (Usage(1, 1, size), ())


@pytest.mark.parametrize("text", ["", "0", "0k", "k", "-4k", "4 k", "4kk", "4G", "1" * 12])
def test_nearest_refuses_what_is_no_size(text: str) -> None:
    annotation = json.dumps({"rbps": "1", "wbps": "1", "blocksize": text})

    (problem,) = parse_annotation(annotation, NEAREST)[1]

    assert problem.field.endswith(".blocksize")
    assert "64Ki" in problem.message


def test_default_block_size_counts_where_none_is_given() -> None:
    rules = Rules(BlockSizePolicy.STRICT, "8k")

    assert parse_annotation('{"rbps": "1", "wbps": "1"}', rules)[0] == Usage(1, 1, "8k")
    assert read_annotations(typed(size=None), rules)[0] == Usage(MIB, 2 * MIB, "8k")
    assert parse_annotation('{"rbps": "1", "wbps": "1", "blocksize": "4k"}', rules)[0] == Usage(
        1, 1, "4k"
    )


def test_pod_bound_by_another_is_read_in_any_spelling() -> None:
    pod = pod_from_manifest({"metadata": {"annotations": typed(size="64Ki")}})

    assert read_usage(pod, None) == Usage(MIB, 2 * MIB, "32k", needs_nearest=True)


@pytest.mark.parametrize("text", ["{", "{}", '{"rbps": "-1", "wbps": "1Mi", "blocksize": "64k"}'])
def test_pod_bound_by_another_with_a_fault_counts_as_default(text: str) -> None:
    pod = pod_from_manifest({"metadata": {"annotations": {KEY: text}}})

    assert read_usage(pod, None) == BEST_EFFORT


@pytest.mark.parametrize(
    ("text", "is_plain"),
    [
        ('{"rbps": "1024Ki", "WBPS": "2097152", "blocksize": "4k"}', True),
        ('{"rbps": "1.0Mi", "wbps": "2Mi", "blocksize": "4k"}', False),
        ('{"rbps": "1048576000m", "wbps": "2Mi", "blocksize": "4k"}', False),
        ('{"rbps": "1Mi", "wbps": "2Mi", "blocksize": "4Ki"}', False),
        ('{"rbps": "2Mi", "wbps": "2Mi", "blocksize": "4k"}', False),
        ('{"data": {"requests": {"rbps": "1Mi/4k", "wbps": "2Mi/4k"}}}', False),
        ("{", False),
        (None, False),
    ],
)
def test_only_the_flat_shape_with_whole_quantities_is_for_every_driver(
    text: str | None, is_plain: bool
) -> None:
    assert is_for_every_driver(text, Usage(MIB, 2 * MIB, "4k")) is is_plain


def test_long_text_is_read_like_a_short_one() -> None:
    short = '{"rbps": "7Mi", "wbps": "8Mi", "blocksize": "4k"}'
    long = short.replace(",", "," + " " * 600)

    for text in (short, long, short, long):
        assert read_annotations({names.DISKIO_REQUEST: text}, Rules()) == (
            Usage(7 * MIB, 8 * MIB, "4k"),
            (),
        )
        assert is_for_every_driver(text, Usage(7 * MIB, 8 * MIB, "4k"))
        assert not is_for_every_driver(text, Usage(7 * MIB, 9 * MIB, "4k"))


def test_same_text_means_what_each_policy_says() -> None:
    annotations = {names.DISKIO_REQUEST: '{"rbps": "7Mi", "wbps": "8Mi", "blocksize": "5k"}'}

    nearest, _ = read_annotations(annotations, Rules(BlockSizePolicy.NEAREST))
    _, problems = read_annotations(annotations, Rules(BlockSizePolicy.STRICT))

    assert nearest == Usage(7 * MIB, 8 * MIB, "4k")
    assert problems
