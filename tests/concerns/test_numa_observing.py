"""Placement attributes of topologies: against an encoder of their own, and whatever else may come."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from berthmaster.concerns.numa.fingerprint import xxh64
from berthmaster.concerns.numa.observing import ContainerKey, decode_placement
from berthmaster_sandbox.world.numa_placements import encode, encode_number

NAMES = st.text("abc-0", min_size=1, max_size=6)
KEYS = st.tuples(NAMES, NAMES, NAMES)


@settings(max_examples=300)
@given(st.dictionaries(KEYS, st.integers(0, 7), max_size=40), st.integers(8, 64))
def test_what_is_encoded_is_read(zone_of: dict[ContainerKey, int], zones: int) -> None:
    metadata, vectors = encode(zone_of, zones)

    assert decode_placement(metadata, vectors, reversed(list(zone_of))) == zone_of


def test_long_vectors_are_read() -> None:
    """Distances of one, two and three characters, among 5,000 containers."""
    keys = [("ns", f"pod-{number}", "c") for number in range(5000)]
    ordered = sorted(keys, key=lambda it: xxh64("\0".join(it).encode()))
    away = {ordered[at] for at in (0, 63, 127, 191, 255, 319, 1983, 3647, 4999)}
    zone_of = {key: int(key in away) for key in keys}
    metadata, vectors = encode(zone_of, 2)

    assert decode_placement(metadata, vectors, keys) == zone_of


@pytest.mark.parametrize(
    ("key", "expected"),
    [(("", "", ""), 11145182160106660097), (("ns", "pod", "cnt"), 9468815510407277218)],
)
def test_hash_is_that_of_the_updater(key: ContainerKey, expected: int) -> None:
    assert xxh64("\0".join(key).encode()) == expected


@pytest.mark.parametrize(
    ("number", "length"),
    [(0, 1), (63, 1), (64, 2), (1663, 2), (1664, 3), (40063, 3), (40064, 4)],
)
def test_encoder_of_this_test_writes_numbers_as_long_as_the_updater_does(
    number: int, length: int
) -> None:
    assert len(encode_number(number)) == length


TWO = {("n", "a", "c"): 0, ("n", "b", "c"): 1}
GOOD, VECTORS = encode(TWO, 2)


@pytest.mark.parametrize(
    ("metadata", "vectors"),
    [
        ("", VECTORS),
        (GOOD.replace("v001", "v002"), VECTORS),
        (GOOD.replace("leb89", "plain"), VECTORS),
        (GOOD.replace("cc=2", "cc=3"), VECTORS),
        (GOOD.replace("cc=2", "cc=-2"), VECTORS),
        (GOOD.replace("cc=2", "cc=" + "2" * 5000), VECTORS),
        (GOOD.replace("::bn=0", ""), VECTORS),
        (GOOD + "::xx=1", VECTORS),
        (GOOD.replace("bn=0", "bn=2"), VECTORS),
        # The busiest zone, a zone that is not there, and one zone too many.
        (GOOD, {0: "!"}),
        (GOOD, {2: "!"}),
        (GOOD.replace("nn=2", "nn=1"), VECTORS),
        # Out of range, the same twice, no letter of the alphabet, cut in a number, endless.
        (GOOD, {1: "$"}),
        (GOOD, {1: "!!"}),
        (GOOD, {1: '"'}),
        (GOOD, {1: "f"}),
        (GOOD, {1: "~" * 100_000}),
        (GOOD.replace("nn=2", "nn=3"), {1: "!", 2: "!"}),
    ],
)
def test_what_does_not_agree_says_nothing(metadata: str, vectors: dict[int, str]) -> None:
    assert decode_placement(GOOD, VECTORS, TWO) == TWO
    assert decode_placement(metadata, vectors, TWO) is None


def test_other_containers_than_the_updater_saw_say_nothing() -> None:
    assert decode_placement(GOOD, VECTORS, [("n", "a", "c")]) is None


@given(st.text(max_size=60), st.dictionaries(st.integers(-1, 70), st.text(max_size=20), max_size=5))
def test_nothing_that_comes_raises(metadata: str, vectors: dict[int, str]) -> None:
    for text in (metadata, f"npv0v001::{metadata}", GOOD):
        decode_placement(text, vectors, TWO)
